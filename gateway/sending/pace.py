"""A limit on the rate of a topic's frames, set by the client (option ``max_rate_ms``). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Protocol

import msgspec

from gateway.sending.merged import OVERHEAD, Merged
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import BATCH_BYTES, Frame, LastValue
from qmt_bridge.wire.topics import Behaviour, Versions

# The codes of a market are due at different times. They are passed on at most so many times in an interval, and not
# more often than each 20 ms: a frame for each code alone would be thousands a second.
PARTS = 8
SHORTEST = 0.02


class Limit(Protocol):
    """What may pass at once, and what has to wait until `due`."""

    # When to call `take`, in seconds.
    due: float

    @property
    def waits(self) -> bool:
        """Return whether something was kept for `take`."""

    @property
    def full(self) -> bool:
        """Return whether so much waits that it is sent early."""

    @property
    def size(self) -> int:
        """Return the bytes that were kept."""

    def offer(self, frame: Frame, now: float) -> list[Frame]:
        """Return what may be sent at once, in order; the rest is kept. A last value is never kept."""

    def take(self, now: float) -> list[Frame]:
        """Return what was kept and is due, in order."""

    def take_all(self) -> list[Frame]:
        """Return what was kept, in order."""


def limit(interval: float, behaviour: Behaviour) -> Limit:
    """Return the limit for a topic: at most one frame of a code in `interval` seconds."""
    return MarketPace(interval) if behaviour.keeps == "by_code" else Pace(interval, behaviour.versions)


class Pace:
    """Every `interval` seconds, passes on what has arrived: the newest version of each thing, and every event."""

    __slots__ = ("_waiting", "due", "interval")

    def __init__(self, interval: float, versions: Versions) -> None:
        self.interval = interval
        # When the next frame may pass, in seconds.
        self.due = 0.0
        self._waiting = Merged(versions)

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Return whether more than one frame's size of irreplaceable records waits; they are then sent early.

        Otherwise an hour of trade prints would wait in memory for a client that asked for one frame an hour.
        """
        return self._waiting.kept > BATCH_BYTES

    @property
    def size(self) -> int:
        return self._waiting.size

    def offer(self, frame: Frame, now: float) -> list[Frame]:
        if not isinstance(frame, LastValue):
            return [frame] if self.admits(frame, now) else []
        # It is newer than all that waits, and contains its codes.
        kept = [] if self._waiting.versions in ("code", "topic") else list(self._waiting.batches())
        self._waiting = Merged(self._waiting.versions)
        self.due = now + self.interval
        return [*kept, frame]

    def admits(self, frame: Frame, now: float) -> bool:
        """Return whether `frame` may be sent at once; otherwise it is kept for `take`."""
        if not self._waiting and now >= self.due:
            self.due = now + self.interval
            return True
        self._waiting.add(frame)
        return False

    def take(self, now: float) -> list[Frame]:
        self.due = now + self.interval
        return self.take_all()

    def take_all(self) -> list[Frame]:
        waiting, self._waiting = self._waiting, Merged(self._waiting.versions)
        return list(waiting.batches())


class MarketPace:
    """Passes on each code of a market at most once in `interval` seconds: its newest record.

    The first record of a code passes at once, so a whole snapshot does. What is passed on has the stamp of the newest
    frame.
    """

    __slots__ = ("_dues", "_newest", "_taken_at", "_waiting", "due", "interval", "size")

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.due = inf
        # When each code may pass again.
        self._dues: dict[str, float] = {}
        self._waiting: dict[str, msgspec.Raw] = {}
        self.size = 0
        self._newest: Frame | None = None
        self._taken_at = -inf

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Return False: a newer record of a code replaces the one that waits."""
        return False

    def offer(self, frame: Frame, now: float) -> list[Frame]:
        try:
            by_code = frames.split(frame.body)
        except WireError:
            # It is not known which codes it has.
            return [frame]
        if self._newest is None or frame.epoch != self._newest.epoch:
            # The first records of a new feeder process are its last values.
            self._dues.clear()
        self._newest = frame
        held = [] if isinstance(frame, LastValue) else [code for code in by_code if self._dues.get(code, now) > now]
        for code in held:
            # A copy, since a Raw is a view that would keep the whole batch in memory.
            self._drop(code)
            self._waiting[code] = record = by_code.pop(code).copy()
            self.size += _size(record)
        self._plan(held)
        self._note(by_code, now)
        return [frame] if not held else self._framed(by_code)

    def take(self, now: float) -> list[Frame]:
        due = {code: record for code, record in self._waiting.items() if self._due_of(code) <= now}
        self._note(due, now)
        self._taken_at = now
        self.due = inf
        self._plan(self._waiting)
        return self._framed(due)

    def take_all(self) -> list[Frame]:
        waiting, self._waiting = self._waiting, {}
        self.size = 0
        self.due = inf
        return self._framed(waiting)

    def _note(self, passed: Iterable[str], now: float) -> None:
        due = now + self.interval
        for code in passed:
            self._dues[code] = due
            self._drop(code)

    def _due_of(self, code: str) -> float:
        # A code that waits since before a restart of the feeder is due at once.
        return self._dues.get(code, -inf)

    def _drop(self, code: str) -> None:
        record = self._waiting.pop(code, None)
        if record is not None:
            self.size -= _size(record)

    def _plan(self, codes: Iterable[str]) -> None:
        """Call `take` once one of `codes`, which wait, is due, but not too soon after the last time."""
        earliest = min(map(self._due_of, codes), default=inf)
        self.due = min(self.due, max(earliest, self._taken_at + max(SHORTEST, self.interval / PARTS)))

    def _framed(self, by_code: dict[str, msgspec.Raw]) -> list[Frame]:
        return list(self._frames(by_code)) if by_code else []

    def _frames(self, by_code: dict[str, msgspec.Raw]) -> Iterator[Frame]:
        assert self._newest is not None
        yield from map(self._newest.with_body, frames.join(by_code))


def _size(record: msgspec.Raw) -> int:
    return len(memoryview(record)) + OVERHEAD
