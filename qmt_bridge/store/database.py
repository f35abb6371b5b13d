"""The database of the store (RocksDB): parts of a day each, which are dropped as a whole, and a table of topics.

One process at a time has it open, and one thread uses it. What is written has reached the operating system when
`write` returns, so that a killed process loses nothing of it; `sync` brings it to the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
)

from qmt_bridge.errors import QMTBridgeError
from qmt_bridge.store.layout import Record, key_of, read_record

# Which messages lie beside each other. Batches of a market are large, and alike only to those some seconds before:
# they are compressed in blocks that hold several rounds of all codes. Of the others a block holds the messages of one
# topic, and is small enough to be read for one of them.
Shape = Literal["messages", "batches"]
SHAPES: tuple[Shape, ...] = ("messages", "batches")
_BLOCK_BYTES: dict[Shape, int] = {"messages": 128 * 1024, "batches": 4 * 1024 * 1024}
# Of zstd. Measured on a simulated market: batches have 72 bytes a tick with level 3, and 52 with 9.
_LEVEL: dict[Shape, int] = {"messages": 3, "batches": 9}
# Memory. What is written waits in buffers until it is compressed; blocks that were read stay in the cache.
_BUFFER_BYTES = 16 * 1024 * 1024
_BUFFERS_BYTES = 48 * 1024 * 1024
_CACHE_BYTES: dict[Shape, int] = {"messages": 16 * 1024 * 1024, "batches": 32 * 1024 * 1024}
_OPEN_FILES = 500
_WAL_BYTES = 64 * 1024 * 1024
_LOG_BYTES = 1024 * 1024
# zstd's own window.
_WINDOW = -14

_PART = b"part/"
_TOPIC = b"topic/"
_MAIN = "default"
_NUMBER_BYTES = 4


class DatabaseError(QMTBridgeError):
    """The database cannot be opened, read or written."""

    @property
    def is_locked(self) -> bool:
        """Return whether another process has it open."""
        return "lock file" in str(self).lower() or "lock hold" in str(self).lower()

    @property
    def is_damage(self) -> bool:
        """Return whether the files are damaged, so that opening them again cannot help."""
        return str(self).startswith("Corruption")


class Column:
    """The messages of one shape in one part, sorted by topic, epoch and sequence number."""

    def __init__(self, table: Rdict, handle: Any) -> None:
        self.table = table
        self.handle = handle

    def first_from(self, number: int, epoch: int, seq: int) -> Record | None:
        """Return the first message of a topic at or behind a position."""
        with _failures():
            found = self.table.iter()
            found.seek(key_of(number, epoch, seq))
            return _record(number, found)

    def last_before(self, number: int, epoch: int, seq: int) -> Record | None:
        """Return the last message of a topic before a position."""
        with _failures():
            found = self.table.iter()
            # The key with the next smaller number is the one before, since keys have one length.
            found.seek_for_prev((int.from_bytes(key_of(number, epoch, seq)) - 1).to_bytes(len(key_of(0, 0, 0))))
            return _record(number, found)

    def records(self, number: int, epoch: int, seq: int) -> Iterator[Record]:
        """Yield the messages of a topic at or behind a position, in their order."""
        with _failures():
            for key, value in _items(self.table, key_of(number, epoch, seq)):
                record = read_record(number, key, value)
                if record is None:
                    return
                yield record


class Part(msgspec.Struct, frozen=True):
    """What arrived on one day (Shanghai, such as 2026-11-27), or in a part of it."""

    number: int
    day: str
    columns: dict[str, Column] = {}

    def column(self, shape: Shape) -> Column:
        """Return its messages of one shape."""
        return self.columns[shape]


class Database:
    """The parts, oldest first, and the numbers of the topics."""

    def __init__(self, folder: Path) -> None:
        """Open or make the database in `folder`, which exists; raise `DatabaseError`."""
        self.folder = folder
        # A cache that is cut into shards by its own rule keeps no block of 4 MiB; this one is told of their size.
        self._caches: dict[Shape, Cache] = {
            shape: Cache.new_hyper_clock_cache(_CACHE_BYTES[shape], _BLOCK_BYTES[shape]) for shape in SHAPES
        }
        with _failures():
            names = Rdict.list_cf(str(folder), _options()) if (folder / "CURRENT").exists() else [_MAIN]
            columns = {name: self._column_options(name) for name in names if name != _MAIN}
            self._main = Rdict(str(folder), _options(), columns)
        self.parts: list[Part] = []
        with _failures():
            self._open_parts({name for name in names if name != _MAIN})

    def _open_parts(self, names: set[str]) -> None:
        for key, value in _items(self._main, _PART):
            if not key.startswith(_PART):
                break
            number = int.from_bytes(key[len(_PART) :])
            found = {shape: _column_name(shape, number) for shape in SHAPES}
            if names.issuperset(found.values()):
                names.difference_update(found.values())
                columns: dict[str, Column] = {shape: self._column(name) for shape, name in found.items()}
                self.parts.append(Part(number, value.decode(), columns))
        # A process that was killed may have left a part that it was making or dropping.
        for name in names:
            self._main.drop_column_family(name)

    def topics(self) -> Iterator[tuple[int, bytes]]:
        """Yield each topic's number, and what was kept of it; raise `DatabaseError`."""
        with _failures():
            for key, value in _items(self._main, _TOPIC):
                if not key.startswith(_TOPIC):
                    return
                yield int.from_bytes(key[len(_TOPIC) :]), value

    def begin_part(self, day: str) -> Part:
        """Begin a part for what arrives from now on; raise `DatabaseError`."""
        number = self.parts[-1].number + 1 if self.parts else 1
        with _failures():
            for column in self.parts[-1].columns.values() if self.parts else ():
                # The log of what was written can be deleted only when its last part is in files.
                column.table.flush(False)
            columns: dict[str, Column] = {}
            for shape in SHAPES:
                name = _column_name(shape, number)
                self._main.create_column_family(name, self._column_options(name)).close()
                columns[shape] = self._column(name)
            self._main.put(_PART + number.to_bytes(_NUMBER_BYTES), day.encode())
        part = Part(number, day, columns)
        self.parts.append(part)
        return part

    def drop_oldest(self) -> None:
        """Delete the oldest part and its files; raise `DatabaseError`."""
        part = self.parts.pop(0)
        with _failures():
            self._main.delete(_PART + part.number.to_bytes(_NUMBER_BYTES))
            for shape in SHAPES:
                part.columns[shape].table.close()
                self._main.drop_column_family(_column_name(shape, part.number))

    def batch(self) -> WriteBatch:
        """Return a new batch of changes."""
        return WriteBatch(raw_mode=True)

    def note_topic(self, batch: WriteBatch, number: int, kept: bytes) -> None:
        """Add to a batch what is to be kept of a topic."""
        batch.put(_TOPIC + number.to_bytes(_NUMBER_BYTES), kept, self._main_handle())

    def write(self, batch: WriteBatch) -> None:
        """Write a batch as a whole or not at all; raise `DatabaseError`."""
        with _failures():
            self._main.write(batch)

    def sync(self) -> None:
        """Bring what was written to the disk; raise `DatabaseError`."""
        with _failures():
            self._main.flush_wal(True)

    def size(self, part: Part) -> int:
        """Return the bytes of a part in files and in memory."""
        with _failures():
            return sum(
                column.table.property_int_value(name) or 0
                for column in part.columns.values()
                for name in ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables")
            )

    def close(self) -> None:
        """Close it; raise `DatabaseError`. Nothing that was made from it may be used any more."""
        with _failures():
            # The library keeps it open, and locked, as long as anything else holds a column.
            while self.parts:
                for column in self.parts.pop().columns.values():
                    column.table.close()
            self._main.close()

    def _main_handle(self) -> Any:
        return self._main.get_column_family_handle(_MAIN)

    def _column(self, name: str) -> Column:
        return Column(self._main.get_column_family(name), self._main.get_column_family_handle(name))

    def _column_options(self, name: str) -> Options:
        shape: Shape = "batches" if name.startswith("batches") else "messages"
        options = _options()
        table = BlockBasedOptions()
        table.set_block_size(_BLOCK_BYTES[shape])
        table.set_block_cache(self._caches[shape])
        options.set_block_based_table_factory(table)
        options.set_compression_type(DBCompressionType.zstd())
        options.set_compression_options(_WINDOW, _LEVEL[shape], 0, 0)
        return options


def _items(table: Rdict, key: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values at or behind `key`: in raw mode both are bytes."""
    return cast(Iterator[tuple[bytes, bytes]], table.items(from_key=key))


def _record(number: int, found: RdictIter) -> Record | None:
    return read_record(number, cast(bytes, found.key()), found.value()) if found.valid() else None


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(_BUFFER_BYTES)
    options.set_db_write_buffer_size(_BUFFERS_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_max_open_files(_OPEN_FILES)
    options.set_max_total_wal_size(_WAL_BYTES)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_LOG_BYTES)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


def _column_name(shape: Shape, number: int) -> str:
    return f"{shape}-{number:06d}"


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except DatabaseError:
        raise
    except (GeneratorExit, AssertionError):
        raise
    except Exception as exc:
        # The library raises no other class than this.
        raise DatabaseError(str(exc)) from exc
