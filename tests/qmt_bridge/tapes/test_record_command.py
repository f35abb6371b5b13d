"""`qmt-bridge record`, `tape` and `replay` as processes: a recorder is killed, goes on, and its tape is played."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from qmt_bridge.consumer import subscribe
from qmt_bridge.tapes.survey import survey
from qmt_bridge.tapes.tape import read_tape
from qmt_bridge.wire.topics import STATUS_TOPIC, quote_topic, whole_topic
from tests.support.ports import address_options, free_addresses
from tests.support.waiting import SLOWNESS, wait_for

DEADLINE = 30.0 * SLOWNESS
TOPICS = (quote_topic("600519.SH"), whole_topic("600519.SH"), whole_topic("000001.SZ"))


class Process:
    """A command that ends when its standard input does."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "qmt_bridge.cli", *arguments]
        self._log = (folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=folder, text=True
        )

    def end(self) -> tuple[int, str]:
        """End it and return its exit code and what it printed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        code = self.process.wait(DEADLINE)
        return code, self.process.stdout.read()

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        self._log.close()


@pytest.fixture
def wire() -> dict[str, str]:
    """Return free addresses of the wire."""
    return free_addresses()


@pytest.fixture
def running(tmp_path: Path, wire: dict[str, str]) -> Callable:
    """Run a command on the wire; it is killed at the end if it has not ended."""
    flags = address_options(wire)

    @contextmanager
    def running(*arguments: str) -> Iterator[Process]:
        process = Process(tmp_path, *arguments, *flags, "--until-eof")
        try:
            yield process
        finally:
            process.close()

    return running


def messages(path: Path) -> int:
    return sum(1 for _ in read_tape(path)) if path.exists() else 0


def by_topic(frames: Iterator) -> dict[str, list]:
    """Return the bodies by topic; of trade events, whether pushed or fetched, what a replay keeps."""
    found = defaultdict(list)
    for frame in frames:
        if frame.topic.startswith("trade/"):
            found["trade/"].append((frame.data["type"], frame.data["data"]))
        else:
            found[frame.topic].append(frame.body)
    return found


def test_a_killed_recorder_continues_and_its_tape_is_replayed(
    tmp_path: Path, wire: dict[str, str], running: Callable
) -> None:
    path = tmp_path / "day.tape.zst"
    record = ("record", "--topics", *TOPICS, "trade/", "--out", path.name, "--data-dir=sim")
    with running("feeder", "--source=sim", "--sim-interval=0.2", "--sim-order-interval=0.02", "--data-dir=sim"):
        with running(*record) as recorder:
            wait_for(lambda: messages(path) > 50)
            recorder.process.kill()
            recorder.process.wait()
        killed = survey(path)
        assert killed.damages == []
        before = [(at, frame.to_parts()) for at, frame in read_tape(path)]
        with running(*record) as recorder:
            wait_for(lambda: messages(path) > len(before) + 50)
            if os.name == "posix":
                recorder.process.terminate()
                code, said = recorder.wait()
            else:
                code, said = recorder.end()
    assert code == 0, (tmp_path / "log.txt").read_text()
    assert said.startswith("recorded ")
    found = survey(path)
    assert (found.damages, found.torn, len(found.tally.sessions)) == ([], 0, 2)
    # What was on it stays on it, and what the summary says came behind.
    after = [(at, frame.to_parts()) for at, frame in read_tape(path)]
    assert after[: len(before)] == before
    assert f"recorded {len(after) - len(before):,} messages" in said

    recorded = by_topic(frame for _, frame in read_tape(path) if frame.topic != STATUS_TOPIC)
    events = len(recorded["trade/"])
    played = []
    with running("replay", path.name, "--speed=0", "--delay=1", "--data-dir=replay") as replay:
        ended = False
        with closing(
            subscribe(*TOPICS, "trade/", STATUS_TOPIC, timeout=DEADLINE, data_dir=str(tmp_path / "replay"), **wire)
        ) as frames:
            for frame in frames:
                if frame.topic == STATUS_TOPIC:
                    ended = ended or frame.data["state"] == "ended"
                else:
                    played.append(frame)
                if ended and sum(frame.topic.startswith("trade/") for frame in played) == events:
                    break
        assert by_topic(iter(played)) == recorded
        assert replay.end()[0] == 0


def test_a_recorder_that_waits_for_its_feeder_can_be_ended(tmp_path: Path, running: Callable) -> None:
    with running("record", *TOPICS, "--out", "{date}.tape") as recorder:
        wait_for(lambda: list(tmp_path.glob("*.tape")))
        code, said = recorder.end()
    assert code == 0, (tmp_path / "log.txt").read_text()
    assert said.startswith("recorded 0 messages")
    [path] = tmp_path.glob("*.tape")
    assert survey(path).tally.sessions[0].topics == (*TOPICS, STATUS_TOPIC)


def test_three_hundred_codes_come_out_of_a_file(tmp_path: Path, running: Callable) -> None:
    path = tmp_path / "day.tape"
    codes = [f"{600000 + number}.SH" for number in range(300)]
    (tmp_path / "codes.csv").write_bytes("代码,名称\r\n".encode("gbk") + ",x\r\n".join([*codes, ""]).encode())
    with running("record", "--codes-file=codes.csv", "--period=1m", "--out", path.name) as recorder:
        wait_for(lambda: path.exists())
        code, _ = recorder.end()
    assert code == 0, (tmp_path / "log.txt").read_text()
    wanted = tuple(quote_topic(name, "1m") for name in codes)
    assert survey(path).tally.sessions[0].topics == (*wanted, STATUS_TOPIC)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["record", "--out", "day.tape"], "missing topics"),
        (["record", "quote/600519/tick/", "--out", "day.tape"], "'600519' is not a code"),
        (["record", "news/", "--out", "day.tape"], "a topic begins with one of"),
        (["record", "quote/", "--out", "log.txt"], "out: log.txt is no tape"),
        (["record", "--codes-file", "log.txt", "--out", "day.tape"], "log.txt holds no codes"),
        (["record", "--codes-file", "gone.txt", "--out", "day.tape"], "cannot read gone.txt"),
        (["record", "quote/"], "--out"),
        (["record", "quote/", "--out", "day-{dat}.tape"], "out: {dat} is no placeholder"),
        (["record", "quote/", "--out", "day.tape", "--rotate", "week"], "--rotate"),
        (["replay"], "FILE"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, running: Callable, arguments: list[str], said: str) -> None:
    (tmp_path / "log.txt").write_text("not a tape\n")
    with running(*arguments) as process:
        assert process.wait()[0] in (1, 2)
    assert said in (tmp_path / "log.txt").read_text()
    assert not (tmp_path / "day.tape").exists()
