"""Stored records as the lines of an answer: NDJSON or CSV. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from gateway.http import table
from gateway.sending.view import View, in_one_order
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.messages import known_fields
from qmt_bridge.wire.topics import VERSIONS, Kind, Topic, parse_topic

# The levels of a tick, which has at least these columns; and the last column, with what has none of its own.
LEVELS = {"tick": 5, "l2quote": 10}
_LISTS = ("askPrice", "bidPrice", "askVol", "bidVol")
OTHER = "other"


class Rows(Protocol):
    """Renders chunk after chunk."""

    @property
    def total(self) -> int:
        """Return how many records there were so far."""

    def add(self, chunk: TopicHistory) -> bytes:
        """Return the lines of a chunk."""

    def rest(self) -> bytes:
        """Return the lines that waited for a newer record."""

    def end(self, told: msgspec.Struct) -> bytes:
        """Return the last line, which is `told`."""


def rows_of(format: str, period: str, topic: Topic, fields: Sequence[str]) -> Rows:
    """Return what renders the records of a topic in a format, with all fields or these."""
    records = _Records(topic, fields, bars=VERSIONS.get(period) == "bar")
    return _Csv(records, period, fields) if format == "csv" else _Ndjson(records)


class _Records:
    """The records of chunks. Of a bar, which is published each time it changes, only its newest state is one."""

    def __init__(self, topic: Topic, fields: Sequence[str], *, bars: bool) -> None:
        self._topic = topic
        self._code = parse_topic(topic).name
        self._view = View(fields=in_one_order(fields)) if fields else None
        self._bars = bars
        # The newest bar, which the next record may replace, and its time.
        self._open: msgspec.Raw | None = None
        self._time: object = None
        self.total = 0

    def of(self, chunk: TopicHistory) -> list[msgspec.Raw]:
        """Return the records of a chunk that nothing can replace."""
        found: list[msgspec.Raw] = []
        for frame in chunk.frames:
            for record in self._split(frame.frame(self._topic)):
                if not self._bars:
                    found.append(record)
                    continue
                time = _time(record)
                if self._open is not None and time != self._time:
                    found.append(self._open)
                self._open, self._time = record, time
        self.total += len(found)
        # The time of a bar is needed above, also where it is not asked for.
        return [self._shown(record) for record in found] if self._bars and self._view is not None else found

    def rest(self) -> list[msgspec.Raw]:
        """Return the newest bar."""
        found, self._open = [self._open] if self._open is not None else [], None
        self.total += len(found)
        return [self._shown(record) for record in found] if self._view is not None else found

    def _split(self, frame: Frame) -> Iterator[msgspec.Raw]:
        if self._view is not None and not self._bars:
            frame = frame.with_body(self._view.render(frame))
        yield from frames.split_lists(frame.body).get(self._code, ())

    def _shown(self, record: msgspec.Raw) -> msgspec.Raw:
        assert self._view is not None
        body = frames.join_all({self._code: msgspec.Raw(frames.join_records([record]))})
        [shown] = frames.split_lists(self._view.render(Frame(self._topic, 0, 0, 0, 0, body)))[self._code]
        return shown


class _Ndjson:
    """A record a line, as it was published."""

    def __init__(self, records: _Records) -> None:
        self._records = records

    @property
    def total(self) -> int:
        return self._records.total

    def add(self, chunk: TopicHistory) -> bytes:
        return b"".join(b"%b\n" % bytes(record) for record in self._records.of(chunk))

    def rest(self) -> bytes:
        return b"".join(b"%b\n" % bytes(record) for record in self._records.rest())

    def end(self, told: msgspec.Struct) -> bytes:
        return msgspec.json.encode(told) + b"\n"


class _Csv:
    """A record a row. The columns are those of the first record, after those that such records are known to have."""

    def __init__(self, records: _Records, period: str, fields: Sequence[str]) -> None:
        self._records = records
        self._period = period
        self._fields = fields
        self._columns: list[str] = []

    @property
    def total(self) -> int:
        return self._records.total

    def add(self, chunk: TopicHistory) -> bytes:
        return self._lines(self._records.of(chunk))

    def rest(self) -> bytes:
        return self._lines(self._records.rest())

    def end(self, told: msgspec.Struct) -> bytes:
        head = b"" if self._columns else self._head({})
        return head + b"# " + msgspec.json.encode(told) + b"\r\n"

    def _lines(self, records: Sequence[msgspec.Raw]) -> bytes:
        decoded = [each for record in records if isinstance(each := frames.decode(bytes(record)), dict)]
        head = self._head(decoded[0]) if decoded and not self._columns else b""
        return head + table.lines(self._row(record) for record in decoded)

    def _head(self, first: dict[str, Any]) -> bytes:
        if self._fields:
            shown = {name: first.get(name, [None] * self._levels(name)) for name in self._fields}
        else:
            known = {name: [None] * self._levels(name) for name in sorted(known_fields(Kind.QUOTE, self._period))}
            shown = first | {name: value for name, value in known.items() if name not in first}
        self._columns = table.columns([shown])
        return table.lines([[*self._columns, OTHER]])

    def _levels(self, name: str) -> int:
        return LEVELS.get(self._period, 0) if name in _LISTS else 0

    def _row(self, record: dict[str, Any]) -> list[str]:
        cells = table.cells(record)
        row = [cells.pop(name, "") for name in self._columns]
        left = {name: cells[name] for name in cells if cells[name]}
        return [*row, msgspec.json.encode(left).decode() if left else ""]


class _Timed(msgspec.Struct):
    time: Any = None


_timed = msgspec.json.Decoder(_Timed)


def _time(record: msgspec.Raw) -> object:
    try:
        return frames.read(_timed, record).time
    except WireError:
        return None
