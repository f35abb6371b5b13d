"""Tapes that were made to cost memory or time are refused by name, within 256 MiB and some seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qmt_bridge.commands.tapes import info_text
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.tapes import tape as tape_module
from qmt_bridge.tapes.survey import survey
from qmt_bridge.tapes.tally import MAX_SESSIONS, MAX_SOURCES
from qmt_bridge.tapes.tape import MAX_DAMAGES, Recorded, TapeReader, TapeWriter, session_frame
from qmt_bridge.wire import earlier
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import Topic
from tests.support import hostile_files as hostile
from tests.support.limited import Ended, run_limited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are those of Linux")

INFO = "from qmt_bridge.cli import main\nimport qmt_bridge.tapes.survey"
OPEN = """
from feeder.replay.recording import open_recording
from pathlib import Path
from qmt_bridge.errors import QMTBridgeError
"""


def info(path: Path) -> Ended:
    """Run `qmt-bridge tape info` within the limits."""
    return run_limited(INFO, "main(['tape', 'info', sys.argv[1]])", path)


def replay(path: Path) -> Ended:
    """Read a recording as the feeder does before it plays it, within the limits."""
    code = "try: open_recording(Path(sys.argv[1]), 1)\nexcept QMTBridgeError as exc: sys.exit(f'Error: {exc}')"
    return run_limited(OPEN, code, path)


@pytest.mark.parametrize("read", [info, replay])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(hostile.zstd_bomb, "holds what no recorder writes", id="bomb"),
        pytest.param(hostile.many_bombs, "unpacks to more than 200 times its size", id="bombs"),
        pytest.param(hostile.marks_everywhere, "more marks of blocks without a block", id="marks"),
        pytest.param(hostile.many_topics, "topics", id="topics"),
    ],
)
def test_hostile_tape_is_refused_by_name_within_limits(
    tmp_path: Path, read: Callable[[Path], Ended], make: Callable[[Path], Path], said: str
) -> None:
    ended = read(make(tmp_path / "day.tape.zst"))
    assert "Traceback" not in ended.output
    assert (ended.code, said in ended.output, "day.tape.zst" in ended.output) == (1, True, True), ended.output[-500:]


def test_damages_of_a_tape_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    ended = info(hostile.junk_between_blocks(tmp_path / "day.tape"))
    assert ended.code == 0, ended.output[-500:]
    assert "80,000 bytes in 80,000 places" in ended.output
    found = survey(hostile.junk_between_blocks(tmp_path / "small.tape", MAX_DAMAGES + 5))
    assert (len(found.damages), found.damage_count) == (MAX_DAMAGES, MAX_DAMAGES + 5)
    assert found.faults[-1] == "... and 5 damages more"


def test_each_part_of_a_damaged_tape_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    path = hostile.junk_between_blocks(tmp_path / "day.tape", 5000)
    reader = TapeReader(path)
    search = reader._search
    monkeypatch.setattr(reader, "_search", lambda file, at: (reads.append(id(reader._searched)), search(file, at))[1])
    assert len(list(reader.blocks())) == 5001
    # The same bytes object served each search after the first.
    assert len(set(reads)) == 2


def test_sessions_of_a_tape_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    found = survey(hostile.many_sessions(tmp_path / "day.tape", 20_000))
    assert (len(found.tally.sessions), found.tally.session_count) == (MAX_SESSIONS, 20_000)
    assert f"  session  and {20_000 - MAX_SESSIONS:,} more" in info_text(found)


def test_sources_of_a_tape_are_bounded(tmp_path: Path) -> None:
    bodies = (encode({"source": f"{n:03}" + "x" * 1000, "simulated": False}) for n in range(MAX_SOURCES + 9))
    path = hostile.tape_of(tmp_path / "day.tape", *(hostile.record(b"status/feeder/", body) for body in bodies))
    sources = survey(path).tally.sources
    assert (len(sources), max(map(len, sources))) == (MAX_SOURCES, 100)


def test_controls_on_a_tape_do_not_reach_the_terminal(tmp_path: Path) -> None:
    bell = b"\x1b]0;owned\x07/x/"
    body = encode({"source": "\x1b[2J", "simulated": False})
    records = hostile.record(bell, b"{}"), hostile.record(b"status/feeder/", body)
    shown = info_text(survey(hostile.tape_of(tmp_path / "day.tape", *records)))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"\x1b[2J" in shown


def test_a_message_without_room_in_a_block_is_an_error(tmp_path: Path) -> None:
    session = Recorded(1, session_frame(["quote/"], "1.0"))
    writer = TapeWriter(tmp_path / "day.tape", session)
    largest = b'"' + b"x" * (tape_module.MAX_BODY - 2) + b'"'
    topic = Topic("formula/" + "x" * 60_000 + "/")
    # Behind records that nearly fill a block by themselves.
    writer.write(1, Frame(Topic("quote/"), 1, 1, 1, 1, b"x" * (256 * 1024 - 500)))
    writer.write(1, Frame(topic, 1, 2, 1, 1, largest))
    with pytest.raises(WireError, match="a tape takes 16,4"):
        writer.write(1, Frame(topic, 1, 3, 1, 1, largest + b" "))
    writer.close()
    assert [recorded.frame.seq for recorded in TapeReader(tmp_path / "day.tape")] == [0, 1, 2]


def test_a_long_body_of_version_1_is_not_unpacked() -> None:
    short, long = b"\xdc\x00\x02\x90\x90", b"\xdd\x00\x50\x00\x00" + b"\x90" * 0x500000
    assert earlier.modern(short) == b"[[],[]]"
    assert earlier.modern(long) is long


def test_an_unfinished_search_finds_what_was_written_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "day.tape"
    block = hostile.block(hostile.record(b"quote/", b"{}"))
    path.write_bytes(block + b"\0" + block)
    reader = TapeReader(path)
    blocks = reader.blocks()
    assert next(blocks)
    assert next(blocks)
    with path.open("ab") as file:
        file.write(b"\0" + block)
    assert len(list(blocks)) == 1
    assert (reader.damage_count, reader.torn) == (2, 0)


def test_a_tape_with_too_much_damage_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "_REREAD_ALLOWANCE", 1000)
    path = hostile.marks_everywhere(tmp_path / "day.tape", 20_000)
    with pytest.raises(ConfigError, match=r"out: .*day\.tape has more marks of blocks"):
        TapeWriter(path, Recorded(1, session_frame(["quote/"], "1.0")))
