"""Stored records as a Parquet file, row group after row group; pyarrow is an extra. Pure.

The columns of a period are always the same, whatever its records have: those of the documented fields, and `other` with
what does not fit into them, as JSON. So the files of several codes and days can be read as one table.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import chain
from types import NoneType
from typing import Any

import msgspec
import pyarrow
from pyarrow import parquet

from gateway.http.formats.records import OTHER, Records
from qmt_bridge.wire import frames
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.messages import view_of
from qmt_bridge.wire.topics import Kind

# Bytes of the records of one row group in memory, and one chunk of the store more.
GROUP_BYTES = 512 * 1024
# The key of what is told at the end, in the metadata of the file.
END = b"end"
# The one field that is a text.
_TEXTS = frozenset(("timetag",))
# What pyarrow raises for a value that a column cannot hold.
_UNFIT = (TypeError, ValueError, OverflowError)


def schema_of(period: str, fields: Sequence[str] = ()) -> Any:
    """Return the columns of a period: all, or those of `fields` that have one, and `other`.

    `time` is a timestamp of milliseconds in Shanghai; a count an int64, any other number a double; a list has a value a
    level, best first. A count is what a view says 0 of where there is none (`wire.messages`).
    """
    view = view_of(Kind.QUOTE, period)
    columns: dict[str, Any] = {}
    for field in () if view is None else msgspec.structs.fields(view):
        name = field.encode_name
        if name == "time":
            columns[name] = pyarrow.timestamp("ms", "Asia/Shanghai")
        elif name in _TEXTS:
            columns[name] = pyarrow.string()
        elif field.default == ():
            columns[name] = pyarrow.list_(pyarrow.int64() if name.endswith(("Vol", "Volume")) else pyarrow.float64())
        else:
            columns[name] = pyarrow.int64() if field.default == 0 else pyarrow.float64()
    if fields:
        columns = {name: columns[name] for name in fields if name in columns}
    return pyarrow.schema([*columns.items(), (OTHER, pyarrow.string())])


class Parquet:
    """Makes the row groups of one answer (`rows.Rows`)."""

    def __init__(self, records: Records, period: str, fields: Sequence[str]) -> None:
        self._records = records
        self._schema = schema_of(period, fields)
        self._sink = _Sink()
        # Each page of a column would be a call of Python, for which the thread waits until the event loop waits.
        self._stream = pyarrow.output_stream(self._sink, buffer_size=GROUP_BYTES)
        self._writer = parquet.ParquetWriter(self._stream, self._schema, compression="zstd")
        # What waits for its row group, and its bytes.
        self._waiting: list[Any] = []
        self._size = 0
        self._told: msgspec.Struct | None = None

    @property
    def total(self) -> int:
        """Return how many records there were so far."""
        return self._records.total

    @property
    def is_full(self) -> bool:
        """Return whether a row group can be made, or the end of the file."""
        return self._size >= GROUP_BYTES or self._told is not None

    def add(self, chunk: TopicHistory) -> bytes:
        """Take the records of a chunk."""
        return self._take(self._records.of(chunk))

    def rest(self) -> bytes:
        """Take the record that waited for a newer one."""
        return self._take(self._records.rest())

    def end(self, told: msgspec.Struct) -> bytes:
        """Take what the metadata of the file says as `end`."""
        self._told = told
        return b""

    def pack(self) -> bytes:
        """Return the row group of what waits, and after `end` the footer of the file."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        if waiting:
            self._writer.write_table(pyarrow.Table.from_batches(waiting, self._schema))
        if self._told is not None:
            self._writer.add_key_value_metadata({END: msgspec.json.encode(self._told)})
            self._writer.close()
        self._stream.flush()
        return self._sink.take()

    def _take(self, records: Iterable[msgspec.Raw]) -> bytes:
        rows = [each for record in records if isinstance(each := frames.decode(bytes(record)), dict)]
        if rows:
            batch = self._batch(rows)
            self._waiting.append(batch)
            self._size += batch.nbytes
        return b""

    def _batch(self, rows: list[dict[str, Any]]) -> Any:
        columns = []
        for field in self._schema:
            if field.name == OTHER:
                # It comes last: what no column has taken is left.
                texts = [msgspec.json.encode(row).decode() if row else None for row in rows]
                columns.append(pyarrow.array(texts, field.type))
            else:
                columns.append(_column(rows, field.name, field.type))
        return pyarrow.record_batch(columns, schema=self._schema)


def _column(rows: list[dict[str, Any]], name: str, kind: Any) -> Any:
    """Take the values of one column out of the rows; what does not fit stays, and is null in the column."""
    values = [row.pop(name, None) for row in rows]
    if _fits(values, kind):
        try:
            return pyarrow.array(values, kind)
        except _UNFIT:
            # A number of too many digits.
            pass
    for place, value in enumerate(values):
        values[place] = _fitting(value, kind)
        if values[place] is None and value is not None:
            rows[place][name] = value
    return pyarrow.array(values, kind)


def _fits(values: Iterable[Any], kind: Any) -> bool:
    """Return whether all values have the types of a column: pyarrow cuts 12.5 for an int64, and takes true for 1."""
    if pyarrow.types.is_list(kind):
        lists = [each for each in values if each is not None]
        return set(map(type, lists)) <= {list} and _fits(chain.from_iterable(lists), kind.value_type)
    if pyarrow.types.is_string(kind):
        return set(map(type, values)) <= {str, NoneType}
    return set(map(type, values)) <= ({int, float, NoneType} if pyarrow.types.is_floating(kind) else {int, NoneType})


def _fitting(value: Any, kind: Any) -> Any:
    """Return a value as the column can hold it, None if it cannot. The source gives counts as floats, too."""
    if not pyarrow.types.is_floating(kind.value_type if pyarrow.types.is_list(kind) else kind):
        value = list(map(_whole, value)) if isinstance(value, list) else _whole(value)
    try:
        return value if _fits([value], kind) and pyarrow.array([value], kind) else None
    except _UNFIT:
        return None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Sink(io.RawIOBase):
    """What the writer writes, until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
