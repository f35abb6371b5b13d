"""A replay of a hostile tape: refused by name, one line without a traceback, and bounded in what it keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feeder.replay import recording
from feeder.replay.recording import open_recording
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.topics import Topic
from tests.support import hostile_files as hostile
from tests.support.hostile_files import record
from tests.support.ports import free_port
from tests.support.sink import Recording
from tests.support.waiting import SLOWNESS

STATUS = record(b"status/feeder/", b'{"source": "x"}')


class Sink(Recording):
    """Notes what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Any] = []

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        self.published.append(body)

    def publish_whole(self, topic: Topic, ticks: Any, received_ns: int) -> None:
        self.published.append(dict(ticks))


def test_a_message_that_cannot_be_read_is_refused_with_the_file(tmp_path: Path) -> None:
    path = hostile.tape_of(tmp_path / "day.tape", STATUS)
    with pytest.raises(ConfigError, match=r"file: .*day\.tape: a message of status/feeder/ cannot be read"):
        open_recording(path, 1)


def test_newest_values_beyond_the_room_are_published_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_NEWEST_BYTES", 100)
    small, large = b'{"1.SH":{"a":1}}', b'{"1.SH":{"a":"' + b"x" * 200 + b'"},"2.SH":{"a":2}}'
    quote, whole = Topic("quote/600519.SH/tick/"), Topic("whole/SH/")
    bodies = ((quote, small), (quote, large), (whole, small), (whole, large))
    tape: Any = open_recording(
        hostile.tape_of(tmp_path / "day.tape", *(record(topic.encode(), body) for topic, body in bodies)), 1
    )
    sink: Any = Sink()
    for _, moment in tape.moments():
        tape.publish(moment, {quote, whole}, sink, 1)
    assert len(sink.published) == 4
    sink.published.clear()
    for topic in (quote, whole):
        tape.publish_newest(topic, sink, 1)
    assert [list(ticks) for ticks in sink.published] == [["2.SH"]]
    assert tape._newest_bytes == len(b'{"a":2}')


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(hostile.zstd_bomb, id="bomb"),
        pytest.param(lambda path: hostile.tape_of(path, STATUS), id="status"),
        pytest.param(hostile.marks_everywhere, id="marks"),
    ],
)
def test_replay_of_a_hostile_tape_ends_with_one_line(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path / "day.tape")
    names = ("market", "trade", "ask", "trade-ask")
    addresses = (f"--{name}-addr=tcp://127.0.0.1:{free_port()}" for name in names)
    command = [sys.executable, "-m", "qmt_bridge", "replay", str(path), f"--data-dir={tmp_path / 'data'}", *addresses]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60 * SLOWNESS, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "day.tape" in ended.stderr.splitlines()[-1]
