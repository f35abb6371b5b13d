"""How much a counter has grown over the last minutes. Pure: time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

# The window slides in this many steps: a counter is read every few seconds, and need not be kept as often.
_STEPS = 60


class Window:
    """The growth of a counter over `seconds`. A total that is smaller than before is of a process that began anew."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._total: int | None = None
        # What was added, with the time at which its step began.
        self._steps: deque[tuple[float, int]] = deque()

    def note(self, now: float, total: int) -> int:
        """Take the total at `now`; return the growth. What the first total holds was there before."""
        before = total if self._total is None else self._total
        grown = total - before if total >= before else total
        self._total = total
        if grown:
            if self._steps and now - self._steps[-1][0] < self._seconds / _STEPS:
                at, sum_before = self._steps.pop()
                self._steps.append((at, sum_before + grown))
            else:
                self._steps.append((now, grown))
        return self.growth(now)

    def growth(self, now: float) -> int:
        """Return what was added in the window that ends at `now`."""
        while self._steps and self._steps[0][0] <= now - self._seconds:
            self._steps.popleft()
        return sum(grown for _, grown in self._steps)


class Windows:
    """A window for each name of a table of counters; a name that is new there began with nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._windows: dict[str, Window] = {}
        self._began = False

    def note(self, now: float, totals: Mapping[str, int]) -> None:
        """Take the totals at `now`."""
        for name, total in totals.items():
            window = self._windows.get(name)
            if window is None:
                window = self._windows[name] = Window(self._seconds)
                if self._began:
                    window.note(now, 0)
            window.note(now, total)
        self._began = True
        # A gateway that began anew has other names.
        self._windows = {name: each for name, each in self._windows.items() if name in totals or each.growth(now)}

    def growths(self, now: float) -> dict[str, int]:
        """Return the growth of each counter, 0 included, in the window that ends at `now`."""
        return {name: window.growth(now) for name, window in self._windows.items()}
