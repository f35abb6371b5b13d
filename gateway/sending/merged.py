"""The frames of one topic that wait, conflated: the newest version of each thing, and all records without versions.

Pure. `Behaviour.versions` says which record is a newer version of which. A single waiting frame is not decoded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from gateway.sending.newest import Newest, Tables, count_records
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Versions

# Bytes that a waiting frame is counted for besides its body, which the clients share. A record copied for one client
# takes more memory (_OWN_OVERHEAD); this is counted only where the number of codes does not limit that of the records.
OVERHEAD = 64
_OWN_OVERHEAD = 256


class Merged:
    """The waiting frames of one topic. `size` is their bytes, `kept` the bytes that no newer frame can replace."""

    __slots__ = ("_lot", "_only", "_tables", "versions")

    def __init__(self, versions: Versions, tables: Tables | None = None) -> None:
        """Keep newest records by code in `tables`, which clients share; None: in a table of its own."""
        self.versions = versions
        self._tables = tables
        # A single waiting frame, as it was received; otherwise `_lot` has the frames.
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
        """Return the bytes that no newer frame can replace; a limit on them bounds the memory without a loss."""
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
            self._lot = self._new_lot(frame)
            self._only = None
            return self._lot.add(only) + self._lot.add(frame)
        return self._lot.add(frame)

    def _new_lot(self, frame: Frame) -> _Lot:
        match self.versions:
            case "code":
                return _ByCode(Newest() if self._tables is None else self._tables.of(frame.topic))
            case "values":
                return _ByBars()
            case versions:
                return _ByThing(are_bars=versions == "bar")

    def batches(self) -> Iterator[Frame]:
        """Yield what waits: a single frame as it was received, or records in bodies of the feeder's usual size."""
        if self._only is not None:
            yield self._only
        elif self._lot is not None:
            yield from self._lot.batches()

    def update(self, frame: Frame) -> tuple[int, Frame | None]:
        """Take of `frame` the codes that wait already; return how many records it replaced, and the rest."""
        return self._lot.update(frame) if isinstance(self._lot, _ByCode) else (0, frame)

    def take(self, limit: int) -> list[Frame]:
        """Return what waits and forget it; of newest records by code at least one and some `limit` bytes."""
        if isinstance(self._lot, _ByCode):
            taken = self._lot.take(limit)
        else:
            taken, self._lot = list(self.batches()), None
        self._only = None
        if self._lot is not None and not self._lot.size:
            self._lot = None
        return taken


class _Lot(Protocol):
    """Several waiting frames, conflated by one rule."""

    @property
    def size(self) -> int:
        """Return the bytes that wait."""

    @property
    def kept(self) -> int:
        """Return the bytes that no newer frame can replace."""

    def add(self, frame: Frame) -> int:
        """Take a frame; return how many older records it replaced."""

    def batches(self) -> Iterator[Frame]:
        """Yield the frames to send."""


class _ByCode:
    """The newest record of each code; they are sent with the stamp of the newest frame."""

    __slots__ = ("_at", "_codes", "_newest", "_table", "_undivided", "kept")

    def __init__(self, table: Newest) -> None:
        self.kept = 0
        self._table = table
        # The codes that wait, as bits, and the number of the next one to send.
        self._codes = 0
        self._at = 0
        self._newest: Frame | None = None
        # Bodies that are no map by code: it is not known what they contain, so they may not be replaced.
        self._undivided: list[Frame] = []

    @property
    def size(self) -> int:
        """Return the bytes that wait for this client alone; the records are in the table, which counts them once."""
        return self.kept + self._codes.bit_count()

    def add(self, frame: Frame) -> int:
        try:
            codes, older = self._table.take(frame)
        except WireError:
            self._undivided.append(frame)
            self.kept += _size(frame)
            return 0
        self._newest = frame.with_body(b"")
        replaced = older + (self._codes & codes).bit_count()
        self._codes |= codes
        return replaced

    def update(self, frame: Frame) -> tuple[int, Frame | None]:
        """Take of `frame` the codes that wait already; return how many records it replaced, and the rest."""
        try:
            codes, older = self._table.take(frame)
        except WireError:
            return 0, frame
        known = codes & self._codes
        if known == codes:
            return older + known.bit_count(), None
        if not known:
            return 0, frame
        by_code = frames.split(frame.body)
        replaced = 0
        for code in list(by_code):
            if self._table.bit(code) & self._codes:
                replaced += count_records(by_code.pop(code))
        return replaced, frame.with_body(frames.join_all(by_code)) if by_code else None

    def batches(self) -> Iterator[Frame]:
        yield from self._undivided
        if self._newest is not None:
            waiting = {code: record for _, code, record in self._table.records(self._codes, self._at, sys.maxsize)}
            yield from map(self._newest.with_body, frames.join(waiting))

    def take(self, limit: int) -> list[Frame]:
        """Return a part of what waits, the codes in turn, and forget it."""
        undivided, self._undivided, self.kept = self._undivided, [], 0
        left = limit - sum(map(_size, undivided))
        taken: dict[str, msgspec.Raw] = {}
        for number, code, record in self._table.records(self._codes, self._at, left if undivided else max(1, left)):
            taken[code] = record
            self._codes ^= 1 << number
            self._at = number + 1
        newest = self._newest
        return undivided + [newest.with_body(body) for body in frames.join(taken)] if newest is not None else undivided


class _ByThing:
    """Every record in its order; of each bar, only the newest state."""

    __slots__ = ("_are_bars", "_finished", "_newest", "_records", "_serial", "size")

    def __init__(self, are_bars: bool) -> None:
        self.size = 0
        self._are_bars = are_bars
        # The key is the code with the bar's time, or with a serial number if the record is no version of another.
        self._records: dict[tuple[str, object], msgspec.Raw] = {}
        self._serial = 0
        self._newest: Frame | None = None
        # A body that is no map of lists by code, and all records before it, because the order must not change.
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
        """Return a key that is equal for two records of one code if they are versions of the same thing."""
        if self._are_bars:
            try:
                time = frames.read(_bar_decoder, record).time
            except WireError:
                time = None
            if time is not None:
                return time
        self._serial += 1
        # A tuple, because no bar's time is one.
        return (self._serial,)


class _ByBars:
    """A formula's frames; one is dropped when a newer frame has values for all its bars and outputs.

    A frame without bars has the current value: only a newer frame without bars replaces it, and it replaces no bars.
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
    """A formula's frame, its list of bars (encoded) and their number, and the names of its outputs."""

    frame: Frame
    times: bytes = b""
    bars: int = 0
    names: frozenset[str] = frozenset()


_Times = frozenset[int | float | str]
_bar_decoder = msgspec.json.Decoder(_Bar)
_formula_decoder = msgspec.json.Decoder(_Formula)
_times_decoder = msgspec.json.Decoder(_Times)


def _superseded(versions: Versions, older: Frame, newer: Frame) -> int:
    """Return the number of records in the older frame if the newer frame as a whole can replace it, else 0.

    A slow client of ticks is then sent the same frames as all others, and no copy has to be rendered for it alone.
    """
    if versions == "topic":
        return 1
    if versions != "code":
        return 0
    now, before = _counted(newer), _counted(older)
    if now is None or before is None or not now.are_single or not before.codes <= now.codes:
        return 0
    return before.records


class _Counted(NamedTuple):
    """The codes in a frame's body, the number of its records, and whether each code has one record."""

    codes: frozenset[str]
    records: int
    are_single: bool


def _counted(frame: Frame) -> _Counted | None:
    """Return what is in a frame, None if its body is no map by code; computed once for all clients that are behind."""
    if frame.seen is None:
        frame.seen = {}
    try:
        counted: _Counted | None = frame.seen[_Counted]
    except KeyError:
        counted = frame.seen[_Counted] = _count(frame)
    return counted


def _count(frame: Frame) -> _Counted | None:
    try:
        by_code = frames.split(frame.body)
        numbers = list(map(count_records, by_code.values()))
    except WireError:
        return None
    return _Counted(frozenset(by_code), sum(numbers), all(number == 1 for number in numbers))


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


def _size(frame: Frame) -> int:
    return len(frame.body) + OVERHEAD
