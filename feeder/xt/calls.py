"""Calls: record which call into xtquant runs now, so that another thread can notice a call that does not return.

Pure: the time is an argument. Neither side takes a lock, because a call that hangs could hold it.
"""

from __future__ import annotations

from typing import Any

from feeder.xt.call_times import CallTimes

# The most that one check adds to the age of a call: the time for which the process was frozen, or the machine slept,
# does not count.
_STEP = 1.0


class Calls:
    """`begin` and `rest` are for the thread that makes the calls, `hung` is for the thread that watches.

    `limit` is in seconds, 0 for never; `times` has how long each call took.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.times = CallTimes("xtdata")
        # A new list for each call: two calls of one name are two objects.
        self._doing: list[str] | None = None
        self._seen: list[str] | None = None
        self._age = 0.0
        self._looked = 0.0

    def begin(self, name: str) -> None:
        """Note that the call `name` begins, and that the call before has ended."""
        self._doing = [name]

    def rest(self) -> None:
        """Note that no call runs: the thread waits for work."""
        self._doing = None

    def through(self, owner: Any) -> Any:
        """Return a proxy of `owner`, an object of xtquant, that records each function while it runs."""
        return _Noted(owner, self)

    def under_way(self) -> tuple[str, float] | None:
        """Return the call that runs now, and its age in seconds as `hung` has last counted it; None if none runs."""
        doing = self._doing
        return None if doing is None else (doing[0], self._age if doing is self._seen else 0.0)

    def hung(self, now: float) -> str | None:
        """Return which call has run for the limit or longer, and how long; call this once a second or more often.

        `now` is in seconds of any monotonic clock.
        """
        step, self._looked = min(max(now - self._looked, 0.0), _STEP), now
        doing = self._doing
        if doing is None or doing is not self._seen:
            self._seen, self._age = doing, 0.0
            return None
        self._age += step
        if not self._limit or self._age < self._limit:
            return None
        return f"{doing[0]} has not returned for {self._age:.0f} s"


class _Noted:
    def __init__(self, owner: Any, calls: Calls) -> None:
        self._owner = owner
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._owner, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            self._calls.begin(name)
            try:
                with self._calls.times.measure(name):
                    return value(*args, **options)
            finally:
                # The work after the call may hang as well, at a lock.
                self._calls.begin("work after " + name)

        return call
