"""`qmt-bridge tape info` and `verify`: what they say of tapes, and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qmt_bridge import cli
from qmt_bridge.tapes import tally as tally_module
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import STATUS_TOPIC, Topic

# 2023-02-01 09:30:00.123 in Shanghai
NOON_NS = 1_675_215_000_123_000_000
QUOTE = "quote/600519.SH/tick/"


def frame(topic: str, seq: int, body: object = None) -> Frame:
    return Frame(Topic(topic), 7, seq, 1, 2, encode(body))


def write(path: Path, *frames: Frame) -> Path:
    writer = TapeWriter(path, Recorded(NOON_NS, session_frame(["quote/", "trade/"], "1.0")))
    writer.flush()
    for second, each in enumerate(frames):
        writer.write(NOON_NS + second * 1_000_000_000, each)
        writer.flush()
    writer.close()
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["tape", *map(str, arguments)])


def test_info_says_time_source_sessions_kinds_and_gaps(tmp_path: Path) -> None:
    status = {"source": "sim", "simulated": True}
    event = {"type": "order", "seq": 8812, "data": {}}
    frames = frame(STATUS_TOPIC, 1, status), frame(QUOTE, 1), frame(QUOTE, 4), frame("trade/1/", 1, event)
    path = write(tmp_path / "day.tape", *frames)
    result = run("info", path)
    assert result.exit_code == 0
    assert [line.split() for line in result.output.splitlines()] == [
        line.split()
        for line in (
            f"{path}: {path.stat().st_size} bytes, 4 messages of 3 topics",
            "source sim, SIMULATED data",
            "from 2023-02-01 09:30:00.123",
            "to 2023-02-01 09:30:03.123",
            "session 2023-02-01 09:30:00.123 quote/ trade/",
            "quote 2 messages 8 bytes 1 topics",
            f"status 1 messages {len(encode(status))} bytes 1 topics",
            f"trade 1 messages {len(encode(event))} bytes 1 topics",
            "gaps 1, 2 messages missing",
        )
    ]


def test_info_of_an_empty_recording_has_no_time(tmp_path: Path) -> None:
    result = run("info", write(tmp_path / "day.tape"))
    assert result.exit_code == 0
    assert "0 messages of 0 topics" in result.output
    assert "1970" not in result.output


def test_info_as_json_is_a_line_for_each_tape(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.tape", frame(QUOTE, 1), frame(QUOTE, 4)) for n in (1, 2)]
    with paths[1].open("ab") as file:
        file.write(b"torn")
    first, second = [json.loads(line) for line in run("info", "--json", *paths).output.splitlines()]
    assert first == {
        "file": str(paths[0]),
        "bytes": paths[0].stat().st_size,
        "messages": 2,
        "topics": 1,
        "sources": [],
        "simulated": False,
        "first_ns": NOON_NS,
        "last_ns": NOON_NS + 1_000_000_000,
        "sessions": [{"begin_ns": NOON_NS, "topics": ["quote/", "trade/"], "version": "1.0"}],
        "kinds": {"quote": {"messages": 2, "bytes": 8, "topics": 1}},
        "gaps": 1,
        "missing": 2,
        "damages": [],
        "torn": 0,
    }
    assert (second["bytes"], second["torn"]) == (first["bytes"] + 4, 4)


def test_verify_of_whole_tapes_finds_no_fault(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, frame(QUOTE, 1), frame(QUOTE, 2)) for name in ("a.tape", "b.tape.zst")]
    result = run("verify", *paths)
    assert result.exit_code == 0
    assert result.output.splitlines() == [f"{path}: 2 messages, nothing is missing" for path in paths]


def test_verify_names_every_fault_and_fails(tmp_path: Path) -> None:
    good = write(tmp_path / "good.tape", frame(QUOTE, 1))
    bad = write(tmp_path / "bad.tape", frame(QUOTE, 1), frame(QUOTE, 2), frame(QUOTE, 4), frame(QUOTE, 3))
    data = bytearray(bad.read_bytes())
    # Every message has a block of its own.
    size = len(encode(None)) + len(QUOTE) + 46 + 20
    first = len(data) - 4 * size
    data[first + 30] ^= 1
    bad.write_bytes(bytes(data) + b"torn")
    result = run("verify", bad, good)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{bad}: byte {first}: {size} bytes are damaged",
        f"{bad}: byte {len(data)}: the last block is torn, 4 bytes",
        f"{bad}: 2023-02-01 09:30:02.123 {QUOTE}: seq 2 is followed by 4, 1 missing",
        f"{bad}: 2023-02-01 09:30:03.123 {QUOTE}: seq 4 is followed by 3, goes back",
        f"{good}: 1 messages, nothing is missing",
    ]
    assert "damaged  75 bytes in 1 places, 4 torn at the end".replace("75", str(size)) in run("info", bad).output


def test_verify_says_how_many_gaps_it_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MAX_GAPS", 1)
    path = write(tmp_path / "day.tape", *(frame(QUOTE, seq) for seq in (1, 3, 5, 7)))
    lines = run("verify", path).output.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("... and 2 gaps more")


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_tape_is_named(tmp_path: Path, command: str) -> None:
    (tmp_path / "ticks.csv").write_text("code,time\n")
    for name, said in (("ticks.csv", "is no tape"), ("absent.tape", "cannot read")):
        result = run(command, tmp_path / name)
        assert result.exit_code == 1
        assert said in result.output
