"""The tape: messages on disk as a consumer received them, stamps included. Called from one thread at a time.

A tape is a row of blocks and nothing else. A block that is torn or damaged costs its own records only: the next one is
found by its mark. Numbers are big-endian::

    block   mark        12 bytes, 50 2a 4d 18 0c 00 00 00 51 4d 54 32; the last one is the version
            length      u32: bytes behind the CRC
            crc         u32: CRC-32 of these bytes
            content     records, or a zstd frame (28 b5 2f fd ..) that holds a whole block of records
    record  times       five u64: arrival_ns (when the recorder had it), then the message's stamp: epoch, seq,
                        received_ns, published_ns; the last two are 0 in a last value and in a replayed trade event
            sizes       u16: bytes of the topic; u32: bytes of the body
            topic       ASCII
            body        JSON, as published; MessagePack in a block of version 1, whose mark ends in 31

zstd takes mark, length and CRC for a skippable frame, so that ``zstd -d`` makes a plain tape of a compressed one.
A recorder that begins, also at the end of an older tape, writes a record of the topic ``tape/session/`` first.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from qmt_bridge import private
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.system.in_use import patiently
from qmt_bridge.wire import frames
from qmt_bridge.wire.earlier import modern
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Body: ``{"topics": [what was subscribed], "version": recorder}``.
SESSION_TOPIC = Topic("tape/session/")

_MARK = bytes.fromhex("50 2a 4d 18 0c 00 00 00") + b"QMT2"
# The last byte is the version of the format. A tape that was continued has blocks of both versions.
_ANY_VERSION, _VERSION = _MARK[:-1], _MARK[-1:]
_EARLIER = _ANY_VERSION + b"1"
_MARKS = (_EARLIER, _MARK)
_BLOCK = struct.Struct(f">{len(_MARK)}sII")
_RECORD = struct.Struct(">5QHI")
_ZSTD = b"\x28\xb5\x2f\xfd"
# One write: some 500 ticks, from where on compression gains little.
_BLOCK_BYTES = 256 * 1024
# A longer length in a file is damage: every message is far shorter, and a reader holds a block several times.
_MAX_BLOCK = 16 * 1024 * 1024
_SEARCH_BYTES = 1 << 20
# A block has at most this body behind the records before it, with their sizes and topic.
MAX_BODY = _MAX_BLOCK - _BLOCK_BYTES - 64 * 1024 - 64
# The longest window of a frame (log2 of bytes): a block fits into it, and the decompressor allocates no more.
_WINDOW_LOG = 24
# Blocks may unpack to so many times the bytes of the tape that were read, beyond an allowance. Ours unpack to 10 times.
_MOST_RATIO = 200
_RATIO_ALLOWANCE = 64 * 1024 * 1024
# What looks like a block and is none is read to compute its CRC: a damaged tape has each byte read about once so.
_MOST_REREADS = 4
_REREAD_ALLOWANCE = 256 * 1024 * 1024
# The first damages are kept one by one; the others are only counted.
MAX_DAMAGES = 1000


class Recorded(NamedTuple):
    """A message and when the recorder had it (ns since 1970)."""

    arrival_ns: int
    frame: Frame


class Block(NamedTuple):
    """The mark of a block, which tells its version, and its records."""

    mark: bytes
    content: bytes


class Damage(NamedTuple):
    """A part of a tape that is no block."""

    offset: int
    size: int


def is_tape(path: Path) -> bool:
    """Return whether a file that can be read is a tape: of any version, and also if its beginning is damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(_SEARCH_BYTES)
    except OSError:
        return False
    return head.startswith(_ANY_VERSION) or any(mark in head for mark in _MARKS)


def session_frame(topics: Sequence[str], version: str) -> Frame:
    """Return what a recorder of `topics` writes first."""
    return Frame(SESSION_TOPIC, 0, 0, 0, 0, frames.encode({"topics": list(topics), "version": version}))


def read_tape(path: str | Path, on_read: Callable[[int], None] | None = None) -> Iterator[Recorded]:
    """Return the messages of a tape in the order of their arrival, without what is damaged (see `TapeReader`)."""
    reader = TapeReader(Path(path))
    reader.on_read = on_read
    return (recorded for recorded in reader if recorded.frame.topic != SESSION_TOPIC)


class TapeReader:
    """Every record of a tape, sessions included; also of one that is being written: up to its last whole block.

    `begins_whole` is false where the first bytes are not a tape's, although a block follows.
    As it goes `damages` collects the first parts that had to be left out, `damage_count` and `damaged_bytes` tell of
    all, and `end` is where the last whole block ended. At the end `torn` is what follows that: the block that a crash
    has left unfinished.

    A tape may come from anybody: the memory is that of some blocks of 16 MiB, the time linear in the size of the file.
    """

    def __init__(self, path: Path) -> None:
        """Look at the file; raise `ConfigError` about ``file`` if it cannot be read or is no tape."""
        self.path = path
        self.damages: list[Damage] = []
        self.damage_count = 0
        self.damaged_bytes = 0
        self.end = 0
        self.torn = 0
        # Called with the bytes that are read so far.
        self.on_read: Callable[[int], None] | None = None
        # Bytes that blocks were unpacked to, and that were read of what was no block.
        self._unpacked = 0
        self._reread = 0
        # The last part of the file that was searched, and where it begins.
        self._searched = b""
        self._searched_at = 0
        try:
            with path.open("rb") as file:
                head = file.read(_SEARCH_BYTES)
        except OSError as exc:
            raise ConfigError("file", f"cannot read {path}: {exc.strerror or exc}") from exc
        # The first block may have been torn already, or its mark damaged.
        self.begins_whole = any(mark.startswith(head[: len(mark)]) for mark in _MARKS)
        if not self.begins_whole and not any(mark in head for mark in _MARKS):
            if head.startswith(_ANY_VERSION):
                made = head[len(_ANY_VERSION) : len(_MARK)]
                raise ConfigError(
                    "file",
                    f"{path} was made by a later version of qmt-bridge: its format is {made!r}, and this version reads "
                    f"{_VERSION!r}",
                )
            raise ConfigError("file", f"{path} is no tape")

    @property
    def damage(self) -> str:
        """Return a text about the bytes that could not be read; empty if all could be."""
        found = [f"{self.damaged_bytes} bytes in {self.damage_count} places"] if self.damage_count else []
        if self.torn:
            found.append(f"the last {self.torn} bytes")
        return f"{' and '.join(found)} of {self.end + self.torn} are damaged" if found else ""

    def __iter__(self) -> Generator[Recorded]:
        """Yield the records; raise `ConfigError` for what was not written by a recorder, or cannot be read."""
        try:
            for block in self.blocks():
                yield from _records(block)
        except (struct.error, UnicodeDecodeError) as exc:
            raise self._foreign() from exc

    def blocks(self) -> Generator[Block]:
        """Yield every whole block, unpacked."""
        try:
            with self.path.open("rb") as file:
                yield from self._blocks(file)
        except OSError as exc:
            raise ConfigError("file", f"cannot read {self.path}: {exc.strerror or exc}") from exc

    def _blocks(self, file: BinaryIO) -> Generator[Block]:
        while True:
            block = self._take(file, self.end)
            if block is None:
                found = self._search(file, self.end + 1)
                if found is None:
                    self.torn = file.seek(0, os.SEEK_END) - self.end
                    return
                self._note(Damage(self.end, found - self.end))
                self.end = found
                continue
            self.end += _BLOCK.size + len(block.content)
            if self.on_read is not None:
                self.on_read(self.end)
            yield self._unpack(block.content) if block.content.startswith(_ZSTD) else block

    def _note(self, damage: Damage) -> None:
        self.damage_count += 1
        self.damaged_bytes += damage.size
        if len(self.damages) < MAX_DAMAGES:
            self.damages.append(damage)

    def _take(self, file: BinaryIO, at: int) -> Block | None:
        """Return the block at `at`, or None if there is no whole one."""
        file.seek(at)
        head = file.read(_BLOCK.size)
        if len(head) < _BLOCK.size:
            return None
        mark, length, crc = _BLOCK.unpack(head)
        if mark not in _MARKS or length > _MAX_BLOCK:
            return None
        content = file.read(length)
        if len(content) == length and zlib.crc32(content) == crc:
            return Block(mark, content)
        self._reread += len(content)
        if self._reread > _REREAD_ALLOWANCE + _MOST_REREADS * at:
            raise ConfigError("file", f"{self.path} has more marks of blocks without a block than a damaged tape has")
        return None

    def _search(self, file: BinaryIO, at: int) -> int | None:
        """Return where the next whole block from `at` on begins."""
        is_new = False
        while True:
            # A part is read once, however many damages are in it.
            found = self._searched.find(_ANY_VERSION, at - self._searched_at) if at >= self._searched_at else -1
            if found >= 0:
                at = self._searched_at + found
                if self._take(file, at) is not None:
                    return at
                at += 1
                continue
            if is_new:
                if len(self._searched) < _SEARCH_BYTES:
                    return None
                # A mark may lie across two parts.
                at = max(at, self._searched_at + len(self._searched) - len(_MARK) + 1)
            file.seek(at)
            self._searched, self._searched_at, is_new = file.read(_SEARCH_BYTES), at, True

    def _unpack(self, content: bytes) -> Block:
        """Return the block that a compressed one holds; raise `ConfigError`."""
        decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
        try:
            block = decompressor.decompress(content, _BLOCK.size + _MAX_BLOCK)
        except zstd.ZstdError as exc:
            raise self._foreign() from exc
        if not decompressor.eof or not block.startswith(_MARKS):
            raise self._foreign()
        self._unpacked += len(block)
        if self._unpacked > _RATIO_ALLOWANCE + _MOST_RATIO * self.end:
            raise ConfigError("file", f"{self.path} unpacks to more than {_MOST_RATIO} times its size")
        return Block(block[: len(_MARK)], block[_BLOCK.size :])

    def _foreign(self) -> ConfigError:
        return ConfigError("file", f"{self.path} holds what no recorder writes, before byte {self.end}")


class TapeWriter:
    """A tape to which records are added; a tape that exists is continued behind its last whole block.

    What is written is the system's within `flush`, so that a killed recorder loses nothing of it; it is forced to the
    disk by `close` only: a power cut costs what the system has not written by itself, some 30 s on Linux.
    """

    def __init__(self, path: Path, session: Recorded) -> None:
        """Open the file and begin with `session`; raise `ConfigError` about ``out`` if it cannot be, or is no tape."""
        self.path = path
        self._compresses = path.suffix == ".zst"
        self._records = bytearray()
        # Bytes that were cut off: what a crash had left unfinished.
        self.cut = 0
        try:
            private.make_folder(path.parent)
            if path.exists():
                reader = TapeReader(path)
                if not reader.begins_whole:
                    # A file of another format may contain a tape, which must not be continued.
                    raise ConfigError("file", f"{path} does not begin as a tape; nothing is added to it")
                for _ in reader.blocks():
                    pass
                self.cut = reader.torn
                if reader.torn:
                    patiently(lambda: os.truncate(path, reader.end))
                private.warn_if_exposed(path, "what was recorded, which may be orders and fills")
            else:
                # A tape may hold orders and fills. One that exists keeps the mode that its owner has given it.
                private.make_file(path)
            # Unbuffered: a block is one write, and an error is this write's.
            self._file = patiently(lambda: path.open("ab", buffering=0))
        except ConfigError as exc:
            raise ConfigError("out", exc.reason) from exc
        except OSError as exc:
            raise ConfigError("out", f"cannot write {path}: {exc.strerror or exc}") from exc
        self.write(*session)

    @property
    def size(self) -> int:
        """Return the bytes of the file."""
        return self._file.tell() if not self._file.closed else self.path.stat().st_size

    def write(self, arrival_ns: int, frame: Frame) -> None:
        """Add a message; raise `OSError` if a block is full and cannot be written, `WireError` for one without room."""
        topic = frame.topic.encode("ascii")
        records = self._records
        if len(frame.body) > MAX_BODY:
            raise WireError(f"a message of {frame.topic} has {len(frame.body):,} bytes; a tape takes {MAX_BODY:,}")
        records += _RECORD.pack(
            arrival_ns, frame.epoch, frame.seq, frame.received_ns, frame.published_ns, len(topic), len(frame.body)
        )
        records += topic
        records += frame.body
        if len(records) >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last block; raise `OSError`, and then a part of it may be on disk."""
        if not self._records:
            return
        block = _block(self._records)
        # A failed write is not repeated: a part of it may already be on the disk.
        self._records = bytearray()
        if self._compresses:
            block = _block(zstd.compress(block))
        left = memoryview(block)
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Write what is left, force everything to the disk, and close the file; raise `OSError`."""
        with self._file:
            self.flush()
            os.fsync(self._file.fileno())


def _block(content: bytes | bytearray) -> bytes:
    return _BLOCK.pack(_MARK, len(content), zlib.crc32(content)) + content


def _records(block: Block) -> Iterator[Recorded]:
    mark, content = block
    at = 0
    while at < len(content):
        arrival_ns, epoch, seq, received_ns, published_ns, topic_size, body_size = _RECORD.unpack_from(content, at)
        middle = at + _RECORD.size + topic_size
        end = middle + body_size
        if end > len(content):
            raise struct.error("a record reaches beyond its block")
        topic = Topic(content[at + _RECORD.size : middle].decode("ascii"))
        body = content[middle:end]
        if mark == _EARLIER:
            body = modern(body)
        yield Recorded(arrival_ns, Frame(topic, epoch, seq, received_ns, published_ns, body))
        at = end
