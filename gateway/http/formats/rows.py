"""Stored records as the bytes of an answer: NDJSON, CSV or Parquet. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from gateway.http.formats import table
from gateway.http.formats.records import OTHER, Records
from qmt_bridge.wire import frames
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.messages import known_fields
from qmt_bridge.wire.topics import Kind, Topic

Format = Literal["ndjson", "csv", "parquet"]
# The levels of a tick, which has at least these columns.
LEVELS = {"tick": 5, "l2quote": 10}
_LISTS = ("askPrice", "bidPrice", "askVol", "bidVol")


class Rows(Protocol):
    """Renders chunk after chunk. The event loop calls all but `pack`, one call after the other."""

    @property
    def total(self) -> int:
        """Return how many records there were so far."""

    def add(self, chunk: TopicHistory) -> bytes:
        """Return the lines of a chunk."""

    def rest(self) -> bytes:
        """Return the lines that waited for a newer record."""

    def end(self, told: msgspec.Struct) -> bytes:
        """Return the last line, which is `told`."""

    @property
    def is_full(self) -> bool:
        """Return whether something waits to be packed."""

    def pack(self) -> bytes:
        """Return what waits, packed; on another thread, because it takes some ms."""


def load_parquet() -> None:
    """Import what writes Parquet; raise ImportError if it is not installed. On another thread: it takes 0.3 s."""
    import gateway.http.formats.parquet  # noqa: F401


def rows_of(format: Format, period: str, topic: Topic, fields: Sequence[str]) -> Rows:
    """Return what renders the records of a topic in a format, with all fields or these."""
    records = Records(topic, period, fields)
    if format == "parquet":
        # pyarrow is an extra.
        from gateway.http.formats.parquet import Parquet

        return Parquet(records, period, fields)
    return _Csv(records, period, fields) if format == "csv" else _Ndjson(records)


class _Text:
    """Lines, which are made in one step."""

    is_full = False

    def __init__(self, records: Records) -> None:
        self._records = records

    @property
    def total(self) -> int:
        return self._records.total

    def pack(self) -> bytes:
        return b""


class _Ndjson(_Text):
    """A record a line, as it was published."""

    def add(self, chunk: TopicHistory) -> bytes:
        return b"".join(b"%b\n" % bytes(record) for record in self._records.of(chunk))

    def rest(self) -> bytes:
        return b"".join(b"%b\n" % bytes(record) for record in self._records.rest())

    def end(self, told: msgspec.Struct) -> bytes:
        return msgspec.json.encode(told) + b"\n"


class _Csv(_Text):
    """A record a row. The columns are those of the first record, after those that such records are known to have."""

    def __init__(self, records: Records, period: str, fields: Sequence[str]) -> None:
        super().__init__(records)
        self._period = period
        self._fields = fields
        self._columns: list[str] = []

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
