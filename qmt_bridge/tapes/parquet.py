"""`qmt-bridge tape export`: the messages of a tape as Parquet files, one for each kind of row; pyarrow is an extra.

Runs in the main thread. Reads the tape twice, first for the columns and their types, and never holds all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from qmt_bridge import private
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.tapes.file_names import file_names
from qmt_bridge.tapes.tape import SESSION_TOPIC, Recorded, TapeReader, read_tape
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.topics import Kind, shown_topic

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# Rows that are collected before they are written, as one row group, and values with those that a row lacks.
_ROWS = 20_000
_VALUES = 2_000_000
# A tape may come from anybody. Beyond these it is refused: an empty list of three bytes takes 64 in memory, and each
# column costs memory in each row.
_MOST_COLUMNS = 1000
_MOST_TABLES = 200
_MOST_CONTAINERS = 200_000
_MOST_NAME = 200
# Characters and items of lists in the rows that wait to be written.
_WAITING_BYTES = 8 * 1024 * 1024
# Maps within maps become columns, down to this level; deeper ones are JSON text.
_LEVELS = 4
# Kinds whose bodies are maps from a code to a record or to a list of records.
_BY_CODE = (Kind.QUOTE, Kind.WHOLE, Kind.L2)


def export(tape: Path, folder: Path, on_read: Callable[[int], None] | None = None) -> dict[Path, int]:
    """Write the rows of a tape (see `rows`) into `folder`; return the files and how many rows each has.

    Lists become list columns, integers beside floats floats; a column with values of several other types is JSON text.
    Of a damaged tape what can be read is written, and the log says what is not. A tape is read twice; `on_read` is
    called with the bytes that are read so far.
    Raise `ConfigError` without pyarrow, for a tape that cannot be read, or a folder that cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise ConfigError("parquet", "needs pyarrow: pip install 'qmt-bridge-gateway[parquet]'") from exc

    messages, tables, size = _columns(tape, on_read)
    names = file_names(tables)
    try:
        private.make_folder(folder)
        with ExitStack() as closing:
            files = {
                name: _File(closing, pyarrow, parquet, folder / f"{names[name]}.parquet", tables[name])
                for name in tables
            }
            # A recorder may have added more meanwhile.
            again = None if on_read is None else lambda read: on_read(size + read)
            for recorded in islice(read_tape(tape, again), messages):
                for table, row in _rows(tape, recorded):
                    files[table].add(row)
            for file in files.values():
                file.flush()
    except WireError as exc:
        raise ConfigError("file", f"{tape}: {exc}") from exc
    except OSError as exc:
        raise ConfigError("parquet", f"cannot write {folder}: {exc.strerror or exc}") from exc
    except (pyarrow.ArrowException, OverflowError) as exc:
        raise ConfigError("parquet", f"{tape} does not fit Parquet: {exc}") from exc
    return {file.path: file.rows for file in files.values()}


def _columns(tape: Path, on_read: Callable[[int], None] | None) -> tuple[int, dict[str, dict[str, Column]], int]:
    """Return how many messages a tape has, the columns of each table, and its bytes; the log says what is damaged."""
    messages = 0
    tables: dict[str, dict[str, Column]] = {}
    reader = TapeReader(tape)
    reader.on_read = on_read
    for recorded in reader:
        if recorded.frame.topic == SESSION_TOPIC:
            continue
        messages += 1
        for table, row in _rows(tape, recorded):
            columns = tables.setdefault(table, {})
            for name, value in row.items():
                columns.setdefault(name, Column()).note(value)
            if len(columns) > _MOST_COLUMNS or len(tables) > _MOST_TABLES:
                raise ConfigError(
                    "file", f"{tape} has more than {_MOST_COLUMNS} columns or {_MOST_TABLES} kinds of rows"
                )
    if reader.damage:
        logger.error("%s is damaged: %d messages can be read, %s", tape, messages, reader.damage)
    return messages, tables, reader.end


def _rows(tape: Path, recorded: Recorded) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows(recorded)
    except WireError as exc:
        raise ConfigError("file", f"{tape}: a message of {shown_topic(recorded.frame.topic)!r}: {exc}") from exc


def rows(recorded: Recorded) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a message, each with the name of its table; the columns ``frame.*`` are topic and stamps.

    ``quote-<period>``, ``whole`` and ``l2`` have a row for each record, ``trade-<type>`` one for an event, with what
    stands beside its data as ``event.*``; anything else is a row a message. Maps within become columns with a dot.
    Raise `WireError` for a body that has another form.
    """
    arrival_ns, frame = recorded
    kind, _, rest = frame.topic.partition("/")
    stamps: Row = {
        "frame.topic": frame.topic,
        "frame.epoch": frame.epoch,
        "frame.seq": frame.seq,
        "frame.received_ns": frame.received_ns,
        "frame.published_ns": frame.published_ns,
        "frame.arrival_ns": arrival_ns,
    }
    if frame.body.count(b"[") + frame.body.count(b"{") > _MOST_CONTAINERS:
        raise WireError(f"it has more than {_MOST_CONTAINERS:,} lists and maps")
    body = frame.data
    if not isinstance(body, dict):
        raise WireError("its body is no map")
    if kind in _BY_CODE:
        table = f"{kind}-{rest.partition('/')[2].partition('/')[0]}" if kind == Kind.QUOTE else kind
        for code, records in body.items():
            for record in records if isinstance(records, list) else [records]:
                yield table, {**stamps, "code": code, **_flat(record)}
    elif kind == Kind.TRADE:
        data, name = body.pop("data", None), body.pop("type", None)
        if not isinstance(name, str):
            raise WireError("its event has no type")
        yield f"trade-{name}", {**stamps, **_flat({"event": body}), **_flat(data)}
    else:
        yield kind, {**stamps, **_flat(body)}


def _flat(record: object, prefix: str = "", levels: int = _LEVELS) -> Row:
    if not isinstance(record, dict):
        raise WireError("a record in it is no map")
    row: Row = {}
    for name, value in record.items():
        if len(name) > _MOST_NAME:
            raise WireError(f"a name in it has more than {_MOST_NAME} characters")
        if isinstance(value, dict) and levels:
            row |= _flat(value, f"{prefix}{name}.", levels - 1)
        else:
            row[f"{prefix}{name}"] = value
    return row


class Column:
    """The types of a column's values, and of the items of values that are lists."""

    def __init__(self) -> None:
        self.types: set[type] = set()
        self.items: set[type] = set()

    def note(self, value: object) -> None:
        """Note one value."""
        self.types.add(type(value))
        if isinstance(value, list):
            self.items.update(map(type, value))

    def arrow(self, pyarrow: Any) -> Any:
        """Return pyarrow's type for the column, or None if JSON text has to hold its values."""
        types = self.types - {type(None)}
        if types != {list}:
            return _scalar(pyarrow, types)
        items = _scalar(pyarrow, self.items - {type(None)})
        return None if items is None else pyarrow.list_(items)


def _scalar(pyarrow: Any, types: set[type]) -> Any:
    if types == {int}:
        return pyarrow.int64()
    if types in ({float}, {int, float}):
        return pyarrow.float64()
    if types == {str}:
        return pyarrow.string()
    if types == {bool}:
        return pyarrow.bool_()
    return None if types else pyarrow.null()


def _size(row: Row) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str | list))


class _File:
    """One Parquet file while it is written."""

    def __init__(
        self, closing: ExitStack, pyarrow: Any, parquet: Any, path: Path, columns: Mapping[str, Column]
    ) -> None:
        self.path = path
        self.rows = 0
        types = {name: column.arrow(pyarrow) for name, column in columns.items()}
        # A row that lacks a column has a null there, which takes memory too.
        self._most = max(1, min(_ROWS, _VALUES // len(columns)))
        self._texts = [name for name, kind in types.items() if kind is None]
        self._schema = pyarrow.schema([(name, kind or pyarrow.string()) for name, kind in types.items()])
        self._make = pyarrow.Table.from_pylist
        # Private, because it may hold orders and fills.
        private.make_file(path)
        self._writer = closing.enter_context(parquet.ParquetWriter(path, self._schema, compression="zstd"))
        self._waiting: list[Row] = []
        self._size = 0

    def add(self, row: Row) -> None:
        """Add a row; it is written with the others of its row group."""
        for name in self._texts:
            if row.get(name) is not None:
                try:
                    row[name] = encode(row[name]).decode()
                except (TypeError, ValueError, RecursionError) as exc:
                    raise WireError(f"column {name!r} holds what is nested too deep: {exc}") from exc
        self._waiting.append(row)
        self._size += _size(row)
        if len(self._waiting) >= self._most or self._size > _WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        self._writer.write_table(self._make(waiting, schema=self._schema))
        self.rows += len(waiting)
