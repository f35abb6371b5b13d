"""Rates a second of counters that only grow, and their growth in the last hour. Pure; time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

# Seconds over which a rate is taken, and of an hour the parts that are counted as one.
_OVER = 5.0
_PART = 60.0
_HOUR = 3600.0


class Rates:
    """The counters of one process, which are noted about once a second."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, Mapping[str, float]]] = deque()
        # The counters at the beginning of each minute of the last hour.
        self._minutes: deque[tuple[float, Mapping[str, float]]] = deque()

    def note(self, counters: Mapping[str, float], now: float) -> None:
        """Take the counters as they are at `now` (seconds of any monotonic clock)."""
        self._noted.append((now, counters))
        # One older than the span stays, so that a rate is over at least the span.
        while len(self._noted) > 2 and now - self._noted[1][0] >= _OVER:
            self._noted.popleft()
        if not self._minutes or now - self._minutes[-1][0] >= _PART:
            self._minutes.append((now, counters))
        while len(self._minutes) > 1 and now - self._minutes[1][0] >= _HOUR:
            self._minutes.popleft()

    def rate(self, name: str) -> float:
        """Return by how much a counter grows in a second; 0.0 before it was noted twice."""
        if len(self._noted) < 2:
            return 0.0
        (began, first), (ended, last) = self._noted[0], self._noted[-1]
        return round(max(0.0, last[name] - first[name]) / max(ended - began, 1e-9), 1)

    def in_hour(self, name: str) -> int:
        """Return by how much a counter has grown in the last hour, or since the first note."""
        return int(self._noted[-1][1][name] - self._minutes[0][1][name]) if self._noted else 0
