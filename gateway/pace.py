"""At most one frame in a time of the client's choice, always the newest (option ``max_rate_ms``). Pure."""

from __future__ import annotations

from gateway.outbox import Merged
from qmt_bridge.wire.frames import Frame


class Pace:
    """Passes one frame of a topic every `interval` seconds; of a market, the newest record of each code."""

    __slots__ = ("_by_code", "_waiting", "due", "interval")

    def __init__(self, interval: float, by_code: bool) -> None:
        self.interval = interval
        # When the next frame may pass, in seconds.
        self.due = 0.0
        self._by_code = by_code
        self._waiting: Frame | Merged | None = None

    def admits(self, frame: Frame, now: float) -> bool:
        """Return whether `frame` may pass at once; else it is kept for `take`."""
        if self._waiting is None and now >= self.due:
            self.due = now + self.interval
            return True
        if not self._by_code:
            self._waiting = frame
            return False
        if not isinstance(self._waiting, Merged):
            self._waiting = Merged()
        self._waiting.add(frame)
        return False

    def take(self, now: float) -> list[Frame]:
        """Return what was kept."""
        waiting, self._waiting = self._waiting, None
        self.due = now + self.interval
        if waiting is None:
            return []
        return list(waiting.batches()) if isinstance(waiting, Merged) else [waiting]
