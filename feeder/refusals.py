"""Refused messages of peers: count them, and log at most one line per peer and minute.

Pure: time is an argument (seconds of any monotonic clock).
"""

from __future__ import annotations

# Seconds between two log lines about one peer.
MINUTE = 60.0
# The number of peers whose last line is remembered. A program may make a new connection, and so a new peer, for each
# question. If there are more peers, a new one is logged only when the line of the oldest is a minute old.
MAX_PEERS = 100


class Refusals:
    """Counts refusals, and decides which of them are logged."""

    def __init__(self) -> None:
        self.count = 0
        # By peer, oldest first: the time of its last line, and how many refusals were not logged since.
        self._logged: dict[bytes, tuple[float, int]] = {}

    def note(self, peer: bytes, now: float) -> int | None:
        """Count one refusal of `peer`; return None if it is not logged, else how many before it were not logged."""
        self.count += 1
        logged = self._logged.get(peer)
        if logged is not None:
            at, unlogged = logged
            if now < at + MINUTE:
                self._logged[peer] = at, unlogged + 1
                return None
            del self._logged[peer]
        else:
            unlogged = 0
            while len(self._logged) >= MAX_PEERS:
                oldest = next(iter(self._logged))
                if now < self._logged[oldest][0] + MINUTE:
                    return None
                del self._logged[oldest]
        self._logged[peer] = now, 0
        return unlogged
