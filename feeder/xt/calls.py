"""Calls: what the thread that calls xtquant does now, noted so that another thread sees when it does not return.

Pure: the time is an argument. Neither side takes a lock, which a call that hangs could hold.
"""

from __future__ import annotations

from typing import Any

# What one look may add to the age of a call: a process that was frozen, or a machine that slept, did not wait.
_STEP = 1.0


class Calls:
    """`begin` and `rest` are for the thread that calls, `hung` for the one that watches.

    `limit` is in seconds, 0 for never.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        # Replaced as a whole: each object is one call.
        self._doing: list[str] | None = None
        self._seen: list[str] | None = None
        self._age = 0.0
        self._looked = 0.0

    def begin(self, name: str) -> None:
        """Note that `name` begins, and that what ran before has ended."""
        self._doing = [name]

    def rest(self) -> None:
        """Note that nothing runs: the thread waits for work."""
        self._doing = None

    def through(self, owner: Any) -> Any:
        """Return `owner`, an object of xtquant's, with each of its functions noted while it runs."""
        return _Noted(owner, self)

    def hung(self, now: float) -> str | None:
        """Return what has been running for the limit or longer, and how long; look about once a second or oftener.

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
                return value(*args, **options)
            finally:
                # A lock could hold this thread up as well.
                self._calls.begin("work after " + name)

        return call
