"""The pushers of deploy/push at a real feeder: what they push, and kills of both ends."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import Refused
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import FeedStatus, PusherState, read_status
from qmt_bridge.wire.topics import STATUS_TOPIC, quote_topic
from tests.support.paths import ROOT
from tests.support.ports import address_options, free_addresses, free_port, tcp
from tests.support.processes import kill
from tests.support.programs import DEADLINE, Running, needs
from tests.support.waiting import wait_for

FOLDER = ROOT / "deploy" / "push"
CODE = "600519.SH"
KEY = "a-key-of-the-pushers"
# The oldest that a user may have, if this machine has one.
OLD = Path("~/.pyenv/versions/3.6.15/bin/python").expanduser()


def command(language: str) -> list[str]:
    if language == "node":
        return [needs("node"), str(FOLDER / "pusher.mjs"), "desk"]
    python = str(OLD) if language == "python3.6" and OLD.exists() else sys.executable
    return [python, str(FOLDER / "pusher.py"), "desk"]


class Stage:
    """A feeder, and what a consumer of it has seen."""

    def __init__(self, folder: Path, start: Callable[..., Running]) -> None:
        self.addresses = free_addresses()
        self._folder, self._start, self._port = folder, start, free_port()
        self.statuses: list[FeedStatus] = []
        self.ticks: list[Frame] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self.start_feeder()
        self._thread.start()

    def start_feeder(self) -> None:
        options = [f"--data-dir={self._folder}", f"--push-addr={tcp(self._port)}", "--metrics-addr="]
        arguments = [sys.executable, "-m", "qmt_bridge.cli", "feeder", "--source=push", *options]
        self.feeder = self._start(arguments + address_options(self.addresses), {"QMT_BRIDGE_PUSH_KEY": KEY})

    def push(self, language: str) -> Running:
        env = {"QMT_BRIDGE_PUSH": f"127.0.0.1:{self._port}", "QMT_BRIDGE_PUSH_KEY": KEY}
        return self._start(command(language), env)

    def pusher(self) -> PusherState | None:
        """Return the only pusher of the newest heartbeat."""
        return next(iter(self.statuses[-1].pushers), None) if self.statuses else None

    def wait_state(self, state: str, *, data_lost: bool = False) -> None:
        def is_so() -> bool:
            status, pusher = self.statuses[-1], self.pusher()
            said = None if pusher is None else pusher.state
            return (status.state, status.data_lost, said) == (state, data_lost, state)

        wait_for(lambda: self.statuses and is_so(), lambda: f"{state}: {self.statuses[-1:]}", DEADLINE)

    def wait_ticks(self) -> None:
        """Wait for two further ticks."""
        count = len(self.ticks)
        wait_for(lambda: len(self.ticks) >= count + 2, lambda: f"ticks: {self.statuses[-1:]}", DEADLINE)

    def _read(self) -> None:
        topics = (quote_topic(CODE), STATUS_TOPIC)
        # It ends by its timeout: a heartbeat comes each second.
        while not self._stopped.is_set():
            for frame in subscribe(*topics, **self.addresses, data_dir=str(self._folder), timeout=0.3):
                if frame.topic == STATUS_TOPIC:
                    self.statuses.append(read_status(frame.body))
                else:
                    self.ticks.append(frame)
                if self._stopped.is_set():
                    return

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.fixture
def stage(tmp_path: Path, run: Callable[..., Running]) -> Iterator[Stage]:
    stage = Stage(tmp_path, run)
    yield stage
    stage.close()


@pytest.mark.parametrize("language", ["python3.6", "node"])
def test_pusher_goes_on_after_kills_of_both_ends(stage: Stage, language: str) -> None:
    pusher = stage.push(language)
    stage.wait_state("up")
    stage.wait_ticks()
    seen = stage.pusher()
    assert seen is not None
    assert (seen.name, seen.kinds, seen.refused, stage.statuses[-1].simulated) == ("desk", ("quote",), 0, True)
    [tick] = stage.ticks[-1].data[CODE]
    assert tick.keys() >= {"time", "lastPrice", "volume"}
    kill(pusher.process.pid)
    stage.wait_state("down")
    assert stage.statuses[-1].reason == "pusher_gone"
    pusher = stage.push(language)
    stage.wait_state("up", data_lost=True)
    stage.wait_ticks()
    epoch = stage.ticks[-1].epoch
    kill(stage.feeder.process.pid)
    pusher.wait_for("no connection, again in 1 s")
    stage.start_feeder()
    wait_for(lambda: stage.ticks[-1].epoch > epoch, "ticks by another feeder", DEADLINE)
    stage.wait_state("up")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that interrupts another process alone")
@pytest.mark.parametrize("language", ["python", "node"])
def test_pusher_refuses_is_replaced_and_says_bye(stage: Stage, language: str) -> None:
    first = stage.push(language)
    stage.wait_ticks()
    with pytest.raises(Refused, match="ticks only") as refused:
        list(subscribe(quote_topic(CODE, "1d"), **stage.addresses, data_dir=str(stage._folder), timeout=DEADLINE))
    assert refused.value.code == "unsupported_period"
    second = stage.push(language)
    # The first one does not come again: both would replace each other for ever.
    assert first.process.wait(DEADLINE) == 0
    first.wait_for('"replaced"')
    stage.wait_ticks()
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(DEADLINE) == 0
    wait_for(lambda: stage.pusher() is None, "the bye", DEADLINE)
    assert stage.statuses[-1].state == "connecting"
    for program in (first, second):
        assert KEY not in "".join(program.lines)


@pytest.mark.parametrize("language", ["python3.6", "node"])
def test_pusher_sends_no_key_to_another_machine(run: Callable[..., Running], language: str) -> None:
    pusher = run(command(language), {"QMT_BRIDGE_PUSH": "192.0.2.1:5560", "QMT_BRIDGE_PUSH_KEY": KEY})
    pusher.wait_for("needs TLS")
    assert pusher.process.wait(DEADLINE) == 1
