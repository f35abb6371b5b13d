"""Files that were made to cost their reader memory or time: tapes, CSV files, settings, keys, positions, journals.

Each function writes one file and returns it. They are small, or quickly made, beside what a careless reader spends.
"""

from __future__ import annotations

import gzip
import io
import sqlite3
import struct
import zlib
from contextlib import closing
from pathlib import Path

from qmt_bridge.journal_file import TABLES, VERSION
from qmt_bridge.tapes.tape import zstd
from qmt_bridge.wire.frames import encode

MARK = bytes.fromhex("50 2a 4d 18 0c 00 00 00") + b"QMT2"
MIB = 1024 * 1024
TICK = {"time": 1751338260000, "lastPrice": 1.0}


def block(content: bytes, mark: bytes = MARK) -> bytes:
    """Return a block of a tape."""
    return struct.pack(">12sII", mark, len(content), zlib.crc32(content)) + content


def record(topic: bytes, body: bytes, seq: int = 1) -> bytes:
    """Return a record of a tape."""
    return struct.pack(">5QHI", 1, 1, seq, 1, 1, len(topic), len(body)) + topic + body


def tape_of(path: Path, *records: bytes, packed: bool = False) -> Path:
    """Write a tape with a session and one block of `records`."""
    session = record(b"tape/session/", encode({"topics": ["quote/"], "version": "1"}))
    content = b"".join((session, *records))
    path.write_bytes(block(zstd.compress(block(content))) if packed else block(content))
    return path


def zstd_bomb(path: Path, mib: int = 255) -> Path:
    """Write a tape of some KB with one body of so many MiB."""
    body = b'{"600519.SH": [{"n": "' + b"x" * (mib * MIB) + b'"}]}'
    return tape_of(path, record(b"quote/600519.SH/tick/", body), packed=True)


def many_bombs(path: Path, count: int = 100, mib: int = 8) -> Path:
    """Write a tape that unpacks to `count` blocks of `mib` MiB."""
    one = block(zstd.compress(block(record(b"quote/600519.SH/tick/", b'{"a": "' + b"x" * (mib * MIB) + b'"}'))))
    path.write_bytes(block(record(b"tape/session/", encode({"topics": [], "version": "1"}))) + one * count)
    return path


def marks_everywhere(path: Path, size: int = 1_800_000) -> Path:
    """Write a tape in which a block with a wrong CRC, as long as the rest of the file, begins every 20 bytes."""
    content = bytearray(tape_of(path).read_bytes())
    while len(content) < size:
        content += struct.pack(">12sII", MARK, max(0, size - len(content) - 20), 1)
    path.write_bytes(content)
    return path


def junk_between_blocks(path: Path, count: int = 80_000) -> Path:
    """Write a tape of empty blocks with a damaged byte between any two."""
    path.write_bytes(tape_of(path).read_bytes() + (b"\0" + block(b"")) * count)
    return path


def many_topics(path: Path, count: int = 2_000_000) -> Path:
    """Write a compressed tape on which each message has a topic of its own."""
    per_block = 100_000
    with path.open("wb") as file:
        for start in range(0, count, per_block):
            names = range(start, min(start + per_block, count))
            content = b"".join(record(b"quote/%07d.SH/tick/" % name, b"{}") for name in names)
            file.write(block(zstd.compress(block(content))))
    return path


def many_sessions(path: Path, count: int = 1_000_000) -> Path:
    """Write a compressed tape of sessions alone."""
    content = b"".join(record(b"tape/session/", b'{"topics":[],"version":"1"}') for _ in range(10_000))
    path.write_bytes(block(zstd.compress(block(content))) * (count // 10_000))
    return path


def long_field(path: Path, mib: int = 1024) -> Path:
    """Write a CSV file with one field of so many MiB."""
    with path.open("wb") as file:
        file.write(b"code,time,lastPrice\n600519.SH,1751338260000,")
        for _ in range(mib):
            file.write(b"1" * MIB)
        file.write(b"\n600519.SH,1751338260000,1.0\n")
    return path


def long_header(path: Path, mib: int = 256) -> Path:
    """Write a CSV file whose first line has so many MiB."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(b"code,time,a" * (MIB // 11))
    return path


def endless_row(path: Path, mib: int = 256) -> Path:
    """Write a CSV file with one row of short fields over many lines: each has a line end in quotation marks."""
    with path.open("wb") as file:
        file.write(b"code,time,lastPrice\n600519.SH,1751338260000")
        for _ in range(mib):
            file.write(b',"a\n"' * (MIB // 5))
        file.write(b"\n")
    return path


def gzip_bomb(path: Path, mib: int = 1024, chunk: bytes = b"1") -> Path:
    """Write a gzip file of a CSV file with one field of so many MiB."""
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(b"code,time,lastPrice\n600519.SH,1751338260000,")
        for _ in range(mib):
            file.write(chunk * (MIB // len(chunk)))
    return path


def gzip_rows(path: Path, mib: int = 512) -> Path:
    """Write a gzip file of the same row again and again."""
    return gzip_bomb(path, mib, b"1.0\n600519.SH,1751338260000,")


def journal_of(path: Path, *statements: str, version: int = VERSION, tables: bool = True) -> Path:
    """Write a database file with the tables of a journal, changed by `statements`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in (*(TABLES if tables else ()), f"PRAGMA user_version={version}", *statements):
            database.execute(statement)
    return path


def utf16(text: str) -> bytes:
    """Return a text as UTF-16 with its mark."""
    return io.BytesIO(text.encode("utf-16")).getvalue()
