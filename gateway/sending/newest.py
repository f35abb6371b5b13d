"""The newest record of each code of one topic, kept once for all clients of a worker that are behind.

Pure. A client that is behind keeps only which codes wait for it, as the bits of an integer: of a whole market this
takes less than 1 KB, where a copy of its records takes 3 MB, and a frame is taken apart once, not once for each client.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakValueDictionary

import msgspec

from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic

# Bytes that a record takes besides its own, with its code and its position.
_RECORD_OVERHEAD = 256
_LIST = ord("[")

# The codes of one frame, as bits, and how many of its records are older versions of others in it.
Codes = tuple[int, int]


class Newest:
    """A table of records by code; a code has the same bit as long as the table exists."""

    __slots__ = ("__weakref__", "_at", "_bits", "_names", "_newest", "_records", "_shared", "size")

    def __init__(self, *, shared: bool = False) -> None:
        self.size = 0
        self._shared = shared
        self._bits: dict[str, int] = {}
        self._names: list[str] = []
        self._records: list[msgspec.Raw] = []
        # The position of each record, and the newest of them. Clients that are given the last value of a topic, and
        # then the frames after it, come with frames that are older than what others have brought already.
        self._at: list[tuple[int, int]] = []
        self._newest = (0, 0)

    def take(self, frame: Frame) -> Codes:
        """Keep the newest record of each code in `frame`; raise `WireError` if it is no map by code."""
        if not self._shared:
            return self._take(frame)
        if frame.seen is None:
            frame.seen = {}
        codes: Codes | None = frame.seen.get(self)
        if codes is None:
            codes = frame.seen[self] = self._take(frame)
        return codes

    def bit(self, code: str) -> int:
        """Return the bit of `code`; 0 if the table does not have it."""
        number = self._bits.get(code)
        return 0 if number is None else 1 << number

    def records(self, bits: int, first: int, limit: int) -> Iterator[tuple[int, str, msgspec.Raw]]:
        """Yield number, code and record of `bits`, at least one and some `limit` bytes, from number `first` on."""
        while bits and limit > 0:
            rest = bits >> first
            if not rest:
                rest, first = bits, 0
            first += (rest & -rest).bit_length() - 1
            bits ^= 1 << first
            code, record = self._names[first], self._records[first]
            limit -= len(memoryview(record)) + len(code)
            yield first, code, record

    def _take(self, frame: Frame) -> Codes:
        by_code = frames.split(frame.body)
        position = (frame.epoch, frame.seq)
        # Another epoch is a newer one, whatever its number: the clock of the feeder's machine may have been set back.
        may_be_older = position[0] == self._newest[0] and position < self._newest
        if not may_be_older:
            self._newest = position
        found = older = 0
        for code, given in by_code.items():
            record = given
            if is_list(given):
                several = frames.records(given)
                if not several:
                    continue
                if len(several) > 1:
                    older += len(several) - 1
                    record = msgspec.Raw(frames.join_records(several[-1:]))
            found |= 1 << self._put(code, record, position, may_be_older=may_be_older)
        return found, older

    def _put(self, code: str, record: msgspec.Raw, position: tuple[int, int], *, may_be_older: bool) -> int:
        """Keep a record unless there is a newer one; return the number of its code."""
        number = self._bits.get(code)
        size = len(memoryview(record))
        if number is None:
            number = self._bits[code] = len(self._names)
            self._names.append(code)
            # A copy, since a Raw is a view that would keep the whole batch in memory.
            self._records.append(record.copy())
            self._at.append(position)
            self.size += size + _RECORD_OVERHEAD
        elif not (may_be_older and self._at[number][0] == position[0] and position < self._at[number]):
            self.size += size - len(memoryview(self._records[number]))
            self._records[number] = record.copy()
            self._at[number] = position
        return number


class Tables:
    """The tables of one worker by topic; each exists while codes of it wait for some client."""

    def __init__(self) -> None:
        self._by_topic: WeakValueDictionary[Topic, Newest] = WeakValueDictionary()

    @property
    def size(self) -> int:
        """Return the bytes of all tables."""
        return sum(table.size for table in self._by_topic.values())

    def of(self, topic: Topic) -> Newest:
        """Return the table of `topic`."""
        table = self._by_topic.get(topic)
        if table is None:
            table = self._by_topic[topic] = Newest(shared=True)
        return table


def is_list(given: msgspec.Raw) -> bool:
    """Return whether a code has a list of records; in a whole market it has the record itself."""
    return memoryview(given)[0] == _LIST


def count_records(given: msgspec.Raw) -> int:
    """Return how many records a code has."""
    return len(frames.records(given)) if is_list(given) else 1
