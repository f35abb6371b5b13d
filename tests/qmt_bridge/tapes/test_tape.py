"""qmt_bridge.tapes.tape: what is written is read back, and a crash or a bad byte costs its own block only."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from qmt_bridge.errors import ConfigError
from qmt_bridge.tapes import tape as tape_module
from qmt_bridge.tapes.tape import (
    SESSION_TOPIC,
    Damage,
    Recorded,
    TapeReader,
    TapeWriter,
    is_tape,
    read_tape,
    session_frame,
    zstd,
)
from qmt_bridge.wire.frames import Frame, decode, encode
from qmt_bridge.wire.topics import Topic
from tests.support.waiting import SLOWNESS

QUOTE = Topic("quote/600519.SH/tick/")
SESSION = Recorded(1, session_frame(["quote/"], "1.0"))
BOTH = pytest.mark.parametrize("name", ["day.tape", "day.tape.zst"])

Plain = tuple[int, str, int, int, int, int, bytes]


def message(number: int, topic: str = QUOTE, size: int = 20) -> Recorded:
    body = encode({"600519.SH": [{"n": number, "pad": "x" * size}]})
    return Recorded(1000 + number, Frame(Topic(topic), 7, number, 10 + number, 20 + number, body))


def plain(recorded: Recorded) -> Plain:
    at, frame = recorded
    return at, frame.topic, frame.epoch, frame.seq, frame.received_ns, frame.published_ns, frame.body


def numbers(path: Path) -> list[int]:
    return [recorded.frame.seq for recorded in read_tape(path)]


def write(path: Path, *blocks: list[Recorded]) -> list[int]:
    """Write a tape whose first block is the session, and return where each block ends."""
    writer = TapeWriter(path, SESSION)
    ends = []
    for block in ([], *blocks):
        for recorded in block:
            writer.write(*recorded)
        writer.flush()
        ends.append(writer.size)
    writer.close()
    return ends


def three_blocks(path: Path) -> list[int]:
    return write(path, [message(1), message(2)], [message(3)], [message(4), message(5)])


# The messages that can be read after this many whole blocks.
READ = [[], [], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]]


@BOTH
def test_messages_are_read_back_as_they_were_in_their_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    written = [message(n, topic, size) for n, (topic, size) in enumerate([(QUOTE, 5), ("trade/1/", 300_000)] * 4)]
    write(path, written)
    assert list(map(plain, read_tape(path))) == list(map(plain, written))


@BOTH
def test_a_tape_begins_with_what_was_recorded(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, [message(1)])
    first, _ = TapeReader(tmp_path / name)
    assert first.arrival_ns == 1
    assert first.frame.topic == SESSION_TOPIC
    assert decode(first.frame.body) == {"topics": ["quote/"], "version": "1.0"}


@BOTH
def test_a_full_block_is_written_without_being_asked(tmp_path: Path, name: str) -> None:
    writer = TapeWriter(tmp_path / name, SESSION)
    writer.write(*message(1, size=200_000))
    assert numbers(tmp_path / name) == []
    writer.write(*message(2, size=100_000))
    assert numbers(tmp_path / name) == [1, 2]
    writer.close()


@BOTH
def test_a_tape_is_forced_to_the_disk_when_all_of_it_is_written(tmp_path: Path, monkeypatch, name: str) -> None:
    sizes = []
    monkeypatch.setattr(tape_module.os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    writer = TapeWriter(tmp_path / name, SESSION)
    writer.write(*message(1))
    writer.close()
    assert sizes == [(tmp_path / name).stat().st_size]
    assert numbers(tmp_path / name) == [1]


@BOTH
def test_a_tape_that_is_being_written_is_read_up_to_its_last_flush(tmp_path: Path, name: str) -> None:
    writer = TapeWriter(tmp_path / name, SESSION)
    writer.write(*message(1))
    writer.flush()
    writer.write(*message(2))
    assert numbers(tmp_path / name) == [1]
    writer.close()
    assert numbers(tmp_path / name) == [1, 2]


def test_the_documented_format_is_read_by_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    three_blocks(path)
    data = path.read_bytes()
    found, at = [], 0
    while at < len(data):
        assert data[at : at + 12] == bytes.fromhex("502a4d180c000000514d5432")
        length, crc = struct.unpack_from(">II", data, at + 12)
        records = data[at + 20 : at + 20 + length]
        assert zlib.crc32(records) == crc
        at += 20 + length
        place = 0
        while place < length:
            *times, topic_size, body_size = struct.unpack_from(">5QHI", records, place)
            place += 46
            topic = records[place : place + topic_size].decode("ascii")
            place += topic_size
            found.append((times, topic, records[place : place + body_size]))
            place += body_size
    assert found[0][1] == "tape/session/"
    expected = [([1000 + n, 7, n, 10 + n, 20 + n], QUOTE, message(n).frame.body) for n in range(1, 6)]
    assert found[1:] == expected


def test_a_compressed_tape_is_a_tape_that_zstd_can_unpack(tmp_path: Path) -> None:
    three_blocks(tmp_path / "day.tape")
    three_blocks(tmp_path / "day.tape.zst")
    compressed = (tmp_path / "day.tape.zst").read_bytes()
    assert zstd.decompress(compressed) == (tmp_path / "day.tape").read_bytes()


def test_compression_saves_nine_tenths_of_the_size(tmp_path: Path) -> None:
    block = [message(n, size=400) for n in range(1000)]
    (plain_size, *_), (size, *_) = (write(tmp_path / name, block)[1:] for name in ("day.tape", "day.tape.zst"))
    assert size < plain_size / 10


@BOTH
def test_a_tape_torn_at_any_byte_continues_at_a_whole_block(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ends = three_blocks(path)
    data = path.read_bytes()
    assert ends[-1] == len(data)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        end = ends[whole - 1] if whole else 0
        reader = TapeReader(path)
        read = [recorded.frame.seq for recorded in reader if recorded.frame.topic != SESSION_TOPIC]
        assert (cut, read, reader.end, reader.torn, reader.damages) == (cut, READ[whole], end, cut - end, [])
        writer = TapeWriter(path, SESSION)
        assert writer.cut == cut - end
        writer.write(*message(9))
        writer.close()
        assert numbers(path) == [*READ[whole], 9]
        assert path.read_bytes()[:end] == data[:end]


@BOTH
def test_a_bad_byte_costs_its_own_block_wherever_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ends = three_blocks(path)
    data = path.read_bytes()
    begin, end = ends[1], ends[2]
    for at in range(begin, end):
        path.write_bytes(data[:at] + bytes((data[at] ^ 0x55,)) + data[at + 1 :])
        reader = TapeReader(path)
        read = [recorded.frame.seq for recorded in reader if recorded.frame.topic != SESSION_TOPIC]
        assert (at, read) == (at, [1, 2, 4, 5])
        assert (reader.damages, reader.torn, reader.end) == ([Damage(begin, end - begin)], 0, len(data))


@BOTH
def test_a_damaged_tape_is_continued_at_its_end(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ends = three_blocks(path)
    data = bytearray(path.read_bytes())
    data[ends[1] + 25] ^= 1
    path.write_bytes(data)
    writer = TapeWriter(path, SESSION)
    writer.write(*message(9))
    writer.close()
    assert writer.cut == 0
    assert numbers(path) == [1, 2, 4, 5, 9]
    assert path.read_bytes().startswith(data)


def test_a_block_behind_much_damage_is_found_at_any_offset(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tape_module, "_SEARCH_BYTES", 64)
    path = tmp_path / "day.tape"
    ends = write(path, [message(1)], [message(2)])
    data = path.read_bytes()
    for size in range(1, 200):
        # Also with bytes that look like a block but are not one.
        junk = (data[:20] + b"\0" * size)[-size:]
        path.write_bytes(data[: ends[1]] + junk + data[ends[1] :])
        reader = TapeReader(path)
        assert [recorded.frame.seq for recorded in reader][1:] == [1, 2]
        assert reader.damages == [Damage(ends[1], size)]


def test_a_length_that_cannot_be_is_not_read_into_memory(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "day.tape"
    ends = write(path, [message(1, size=300)], [message(2, size=10)])
    monkeypatch.setattr(tape_module, "_MAX_BLOCK", 200)
    reader = TapeReader(path)
    assert [recorded.frame.seq for recorded in reader][1:] == [2]
    assert reader.damages == [Damage(ends[0], ends[1] - ends[0])]


def test_a_block_that_ends_with_the_file_before_its_length_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    block = tape_module._block(b"12345")
    # The CRC is right for the bytes that are in the file.
    path.write_bytes(block[:12] + struct.pack(">I", 9) + block[16:])
    reader = TapeReader(path)
    assert list(reader.blocks()) == []
    assert reader.torn == len(block)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"code,time\n", id="csv"),
        pytest.param(b"PK", id="short"),
        pytest.param(zstd.compress(b"code,time\n"), id="zstd"),
        pytest.param(bytes.fromhex("502a4d18 0c000000") + bytes(40), id="zstd-skippable"),
    ],
)
def test_another_file_is_no_tape_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "day.tape"
    path.write_bytes(content)
    assert not is_tape(path)
    with pytest.raises(ConfigError, match=r"file: .*day\.tape is no tape"):
        TapeReader(path)
    with pytest.raises(ConfigError, match=r"out: .*day\.tape is no tape"):
        TapeWriter(path, SESSION)
    assert path.read_bytes() == content


def test_a_tape_of_a_later_format_is_named_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    three_blocks(path)
    content = path.read_bytes().replace(b"QMT2", b"QMT3")
    path.write_bytes(content)
    assert is_tape(path)
    with pytest.raises(ConfigError, match="made by a later version of qmt-bridge: its format is b'3'"):
        TapeReader(path)
    with pytest.raises(ConfigError, match=r"out: .* later version"):
        TapeWriter(path, SESSION)
    assert path.read_bytes() == content


@BOTH
def test_a_tape_with_a_damaged_start_is_read_but_not_continued(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ends = three_blocks(path)
    content = b"\0\0" + path.read_bytes()[2:]
    path.write_bytes(content)
    assert is_tape(path)
    assert numbers(path) == [1, 2, 3, 4, 5]
    reader = TapeReader(path)
    assert not list(reader.blocks())[5:]
    assert reader.damage == f"{ends[0]} bytes in 1 places of {len(content)} are damaged"
    with pytest.raises(ConfigError, match=r"out: .* does not begin as a tape"):
        TapeWriter(path, SESSION)
    assert path.read_bytes() == content


def test_a_tape_is_known_by_its_beginning(tmp_path: Path) -> None:
    three_blocks(tmp_path / "a")
    assert is_tape(tmp_path / "a")
    assert not is_tape(tmp_path / "absent")
    assert not is_tape(tmp_path)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file: cannot read .*absent\.tape"):
        TapeReader(tmp_path / "absent.tape")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"out: cannot write .*day"):
        TapeWriter(tmp_path / "file" / "day.tape", SESSION)


def test_folders_of_a_tape_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "day.tape", [message(1)])
    assert numbers(tmp_path / "a" / "b" / "day.tape") == [1]


RECORD = struct.pack(">5QHI", 1, 2, 3, 4, 5, 6, 200) + b"quote/" + random.Random(1).randbytes(200)
UNFINISHED = zstd.ZstdCompressor()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(struct.pack(">5QHI", 1, 2, 3, 4, 5, 6, 7) + b"quote/body", id="short"),
        pytest.param(b"quote", id="no-record"),
        pytest.param(struct.pack(">5QHI", 1, 2, 3, 4, 5, 1, 0) + b"\xff", id="not-ascii"),
        pytest.param(b"\x28\xb5\x2f\xfd" + bytes(20), id="not-zstd"),
        pytest.param(zstd.compress(bytes(20) + RECORD), id="not-a-block"),
        pytest.param(UNFINISHED.compress(tape_module._block(RECORD), UNFINISHED.FLUSH_BLOCK), id="unfinished-frame"),
    ],
)
def test_a_whole_block_that_no_recorder_writes_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "day.tape"
    path.write_bytes(tape_module._block(content))
    with pytest.raises(ConfigError, match="no recorder writes"):
        list(TapeReader(path))


FULL_DISK = """
import resource, sys
from pathlib import Path
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire.frames import Frame
writer = TapeWriter(Path(sys.argv[1]), Recorded(1, session_frame(["quote/"], "1.0")))
writer.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
number = 0
try:
    while True:
        number += 1
        writer.write(1, Frame("quote/600519.SH/tick/", 7, number, 1, 1, bytes(20_000)))
        writer.flush()
except OSError as exc:
    print(number)
writer.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size on Windows")
def test_a_full_disk_leaves_a_tape_that_can_be_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=30 * SLOWNESS
    )
    assert (child.stderr, child.stdout) == ("", "5\n")
    # Half of the fifth block is in the file, and no part of it twice.
    assert path.stat().st_size == 100_000
    assert numbers(path) == [1, 2, 3, 4]
    writer = TapeWriter(path, SESSION)
    writer.write(*message(9))
    writer.close()
    assert numbers(path) == [1, 2, 3, 4, 9]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_new_tape_is_private_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    three_blocks(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    three_blocks(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
