"""What came from outside and was refused: counted, and told in at most one line of the log a peer and minute.

Pure: time is an argument (seconds of any monotonic clock).
"""

from __future__ import annotations

# Between two lines about one peer.
MINUTE = 60.0
# Peers whose last line is remembered. A program may connect anew for each question, so that each comes from another
# peer: beyond this number no new peer gets a line before one of them is a minute old.
MAX_PEERS = 100


class Refusals:
    """Counts refusals, and says which of them deserve a line."""

    def __init__(self) -> None:
        self.count = 0
        # By peer, oldest first: when its last line was, and how many refusals had none since.
        self._told: dict[bytes, tuple[float, int]] = {}

    def note(self, peer: bytes, now: float) -> int | None:
        """Count one refusal of `peer`; None if it gets no line, else the number of those before it that got none."""
        self.count += 1
        told = self._told.get(peer)
        if told is not None:
            at, untold = told
            if now < at + MINUTE:
                self._told[peer] = at, untold + 1
                return None
            del self._told[peer]
        else:
            untold = 0
            while len(self._told) >= MAX_PEERS:
                oldest = next(iter(self._told))
                if now < self._told[oldest][0] + MINUTE:
                    return None
                del self._told[oldest]
        self._told[peer] = now, 0
        return untold
