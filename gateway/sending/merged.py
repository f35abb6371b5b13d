"""What waits of one topic: the newest version of each thing, and everything that is no version of another.

Pure. `Behaviour.versions` says what may replace what. Nothing is decoded while a single frame waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Versions

# What a waiting frame costs a client besides its bytes, which clients share. A record that is a client's own copy costs
# more; that is counted where only bytes bound their number, and not where the codes do.
OVERHEAD = 64
_OWN_OVERHEAD = 256


class Merged:
    """The frames of one topic that wait. `size` counts their bytes, `kept` those that nothing newer can replace."""

    __slots__ = ("_lot", "_only", "versions")

    def __init__(self, versions: Versions) -> None:
        self.versions = versions
        # The frame that waits alone, as it came; else `_lot` has what waits.
        self._only: Frame | None = None
        self._lot: _Lot | None = None

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return self._only is not None or self._lot is not None

    @property
    def size(self) -> int:
        """Return the bytes that wait."""
        if self._only is not None:
            return _size(self._only)
        return 0 if self._lot is None else self._lot.size

    @property
    def kept(self) -> int:
        """Return the bytes that wait whatever comes; a limit on them bounds the memory without a loss."""
        if self.versions in ("topic", "code"):
            return 0 if self._lot is None else self._lot.kept
        return self.size

    def add(self, frame: Frame) -> int:
        """Take a frame; return how many older records (or frames) it replaced."""
        only = self._only
        if self._lot is None:
            if only is None:
                self._only = frame
                return 0
            superseded = _superseded(self.versions, only, frame)
            if superseded:
                self._only = frame
                return superseded
            self._lot = _lot(self.versions)
            self._only = None
            return self._lot.add(only) + self._lot.add(frame)
        return self._lot.add(frame)

    def batches(self) -> Iterator[Frame]:
        """Yield what waits: a lone frame as it came, records in bodies of the size that the feeder makes."""
        if self._only is not None:
            yield self._only
        elif self._lot is not None:
            yield from self._lot.batches()


class _Lot(Protocol):
    """Several frames that wait, kept by one rule."""

    @property
    def size(self) -> int:
        """Return the bytes that wait."""

    @property
    def kept(self) -> int:
        """Return those that nothing newer can replace."""

    def add(self, frame: Frame) -> int:
        """Take a frame; return how many older records it replaced."""

    def batches(self) -> Iterator[Frame]:
        """Yield the frames to send."""


class _ByCode:
    """The newest record of each code, with the stamp of the newest frame."""

    __slots__ = ("_newest", "_records", "_undivided", "kept", "size")

    def __init__(self) -> None:
        self.size = 0
        self.kept = 0
        self._records: dict[str, msgspec.Raw] = {}
        self._newest: Frame | None = None
        # Bodies that are no map by code: nothing is known of them, so nothing may replace them.
        self._undivided: list[Frame] = []

    def add(self, frame: Frame) -> int:
        try:
            by_code = frames.split(frame.body)
        except WireError:
            self._undivided.append(frame)
            self.size += _size(frame)
            self.kept += _size(frame)
            return 0
        replaced = 0
        known = self._records
        for code, given in by_code.items():
            if _is_one(given):
                record = given
            else:
                count, record = _last(given)
                if not count:
                    continue
                replaced += count - 1
            older = known.get(code)
            if older is None:
                self.size += OVERHEAD
            else:
                replaced += 1
                self.size -= len(memoryview(older))
            # A copy, since a Raw is a view that would keep the whole batch alive.
            known[code] = record.copy()
            self.size += len(memoryview(record))
        self._newest = frame.with_body(b"")
        return replaced

    def batches(self) -> Iterator[Frame]:
        yield from self._undivided
        if self._newest is not None:
            yield from map(self._newest.with_body, frames.join(self._records))


class _ByThing:
    """Every record in its order, put together by code; of bars, the newest state of each."""

    __slots__ = ("_are_bars", "_finished", "_newest", "_records", "_serial", "size")

    def __init__(self, are_bars: bool) -> None:
        self.size = 0
        self._are_bars = are_bars
        # By code and a bar's time, or a number of its own where a record is no version of another.
        self._records: dict[tuple[str, object], msgspec.Raw] = {}
        self._serial = 0
        self._newest: Frame | None = None
        # A body that is no map of lists by code, and what came before it, which it may not overtake.
        self._finished: list[Frame] = []

    @property
    def kept(self) -> int:
        return self.size

    def add(self, frame: Frame) -> int:
        try:
            by_code = frames.split_lists(frame.body)
        except WireError:
            self._finished = [*self.batches(), frame]
            self._records.clear()
            self.size = sum(map(_size, self._finished))
            return 0
        replaced = 0
        for code, records in by_code.items():
            for record in records:
                key = (code, self._thing(record))
                older = self._records.get(key)
                replaced += older is not None
                self._records[key] = record.copy()
                self.size += len(memoryview(record)) + (_OWN_OVERHEAD if older is None else -len(memoryview(older)))
        self._newest = frame.with_body(b"")
        return replaced

    def batches(self) -> Iterator[Frame]:
        yield from self._finished
        if self._newest is not None:
            records = ((code, record) for (code, _), record in self._records.items())
            yield from map(self._newest.with_body, frames.join_lists(records))

    def _thing(self, record: msgspec.Raw) -> object:
        """Return what two records of one code share that are versions of one thing."""
        if self._are_bars:
            try:
                time = frames.read(_bar_decoder, record).time
            except WireError:
                time = None
            if time is not None:
                return time
        self._serial += 1
        # No bar's time is a tuple.
        return (self._serial,)


class _ByBars:
    """A formula's frames; one is dropped when a newer frame repeats all of its values (bars and outputs).

    A frame that names no bar has the present value: a newer one without bars replaces it, and it replaces no bars.
    """

    __slots__ = ("_calculated", "size")

    def __init__(self) -> None:
        self.size = 0
        self._calculated: list[_Calculated] = []

    @property
    def kept(self) -> int:
        return self.size

    def add(self, frame: Frame) -> int:
        try:
            newer, times = _calculated(frame)
        except WireError:
            newer, times = _Calculated(frame), frozenset()
        left = [older for older in self._calculated if not _covers(newer, times, older)]
        replaced = len(self._calculated) - len(left)
        if replaced:
            self.size = sum(_size(older.frame) for older in left)
        self._calculated = left
        self._calculated.append(newer)
        self.size += _size(frame)
        return replaced

    def batches(self) -> Iterator[Frame]:
        for calculated in self._calculated:
            yield calculated.frame


class _Bar(msgspec.Struct):
    time: int | float | str | None = None


class _Values(msgspec.Struct):
    timelist: msgspec.Raw
    outputs: dict[str, msgspec.Raw] = {}


class _Formula(msgspec.Struct):
    data: _Values


class _Calculated(NamedTuple):
    """A formula's frame, the bars that it has values of (encoded, and how many), and the names of these values."""

    frame: Frame
    times: bytes = b""
    bars: int = 0
    names: frozenset[str] = frozenset()


_Times = frozenset[int | float | str]
_bar_decoder = msgspec.msgpack.Decoder(_Bar)
_formula_decoder = msgspec.msgpack.Decoder(_Formula)
_times_decoder = msgspec.msgpack.Decoder(_Times)
# A list of exactly one element.
_ONE = b"\x91"


def _lot(versions: Versions) -> _Lot:
    match versions:
        case "code":
            return _ByCode()
        case "values":
            return _ByBars()
        case _:
            return _ByThing(are_bars=versions == "bar")


def _superseded(versions: Versions, older: Frame, newer: Frame) -> int:
    """Return how many records wait in a lone frame if the newer one can replace it as it is, else 0.

    So a slow client of ticks shares its frames with all others, and no copy has to be rendered for it alone.
    """
    if versions == "topic":
        return 1
    if versions != "code":
        return 0
    try:
        now, before = frames.split(newer.body), frames.split(older.body)
    except WireError:
        return 0
    if not before.keys() <= now.keys():
        return 0
    for given in now.values():
        if not _is_one(given):
            return 0
    return sum(1 if _is_one(given) else len(frames.records(given)) for given in before.values())


def _calculated(frame: Frame) -> tuple[_Calculated, _Times]:
    values = frames.read(_formula_decoder, frame.body).data
    times = frames.read(_times_decoder, values.timelist)
    return _Calculated(frame, bytes(values.timelist), len(times), frozenset(values.outputs)), times


def _covers(newer: _Calculated, times: _Times, older: _Calculated) -> bool:
    if older.bars > newer.bars or not older.names <= newer.names:
        return False
    if not older.bars:
        return not newer.bars
    return older.times == newer.times or times.issuperset(_times_decoder.decode(older.times))


def _is_one(given: msgspec.Raw) -> bool:
    """Return whether a code has one record: a list of one, or a tick of a whole market."""
    first = memoryview(given)[0]
    # The headers of MessagePack's lists.
    return first == _ONE[0] or not (0x90 <= first <= 0x9F or first == 0xDC or first == 0xDD)


def _last(given: msgspec.Raw) -> tuple[int, msgspec.Raw]:
    """Return how many records a code's list has, and the last of them in a list of its own."""
    records = frames.records(given)
    return len(records), msgspec.Raw(_ONE + bytes(records[-1])) if records else given


def _size(frame: Frame) -> int:
    return len(frame.body) + OVERHEAD
