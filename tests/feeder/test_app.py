"""One run of the feeder: a call that hangs always ends the process, and consumers receive the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from feeder import app
from feeder.app import Feeder
from feeder.source import DownloadRequest, Health, Sink
from qmt_bridge.config import Config
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import STATUS_TOPIC, Kind, Topic, TopicParts, quote_topic, whole_topic
from tests.support.paths import FAKES, ROOT
from tests.support.ports import ANY_ADDRESSES, address_env
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS


class HangingSource:
    """A source that reports a hung call when the test says so, and whose `close` waits for the test."""

    name = "hand"
    simulated = True
    kinds = frozenset((Kind.QUOTE,))
    lossless = False

    def __init__(self) -> None:
        self.said: str | None = None
        self.may_close = threading.Event()
        self.started = threading.Event()
        self.closed = False

    def start(self, sink: Sink) -> None:
        sink.set_state("up")
        self.started.set()

    def subscribe(self, topic: Topic, parts: TopicParts) -> None: ...

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None: ...

    def download(self, topic: Topic, request: DownloadRequest) -> None: ...

    def health(self) -> Health:
        return Health()

    def upstream(self) -> int:
        return 0

    def hung(self) -> str | None:
        return self.said

    def close(self) -> None:
        self.may_close.wait(SECONDS)
        self.closed = True


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(**ANY_ADDRESSES, data_dir=str(tmp_path))


class Listening:
    """A SUB on the feeder's status; `last` is the newest status received."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_subscriber(self._context, address, None)
        self._socket.subscribe(STATUS_TOPIC)
        self.told: list[tuple[str, str | None]] = []

    def want(self, topic: Topic) -> None:
        self._socket.subscribe(topic)

    def until(self, said: tuple[str, str | None]) -> None:
        until = time.monotonic() + SECONDS
        while not self.told or self.told[-1] != said:
            assert time.monotonic() < until, self.told
            self.read(100)

    def read(self, timeout_ms: int) -> bool:
        if not self._socket.poll(timeout_ms):
            return False
        frame = Frame.from_parts(self._socket.recv_multipart())
        if frame.topic == STATUS_TOPIC:
            status = frame.data
            self.told.append((status["state"], status["reason"]))
        return True

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.mark.parametrize("closes", [True, False])
def test_a_hung_call_ends_the_feeder_and_is_published(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    monkeypatch.setattr(app, "LEAVE_SECONDS", SECONDS if closes else 0.5)
    source = HangingSource()
    feeder = Feeder(config, source)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(feeder.run(threading.Event())))
    thread.start()
    assert source.started.wait(SECONDS)
    listening = Listening(feeder.publisher.market_addr)
    try:
        listening.until(("up", None))
        source.said = "subscribe_quote has not returned for 61 s"
        # Published while the source is still closing.
        listening.until(("down", "terminal_hung"))
        assert not source.closed
        if closes:
            source.may_close.set()
        thread.join(SECONDS)
        assert codes == [TRY_AGAIN]
        assert source.closed is closes
        source.may_close.set()
        assert feeder.publisher.ended.wait(SECONDS)
        while listening.read(100):
            # It is also the last status: no other reason follows.
            assert listening.told[-1] == ("down", "terminal_hung")
        assert "terminal_hung: subscribe_quote has not returned for 61 s; this process ends" in caplog.text
        assert ("the feeder does not close within" in caplog.text) is not closes
    finally:
        source.may_close.set()
        thread.join(SECONDS)
        listening.close()


# -- A real process


class Process:
    """A feeder over the stand-ins' terminal, as a supervisor starts it."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "qmt_bridge.cli", "feeder", "--source=xtquant", "--log-level=debug"],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, (FAKES, ROOT))),
                    "FAKE_XT_TICK_MS": "50",
                    "FAKE_XT_HANG_FILE": str(folder / "hanging"),
                    "QMT_BRIDGE_XT_HANG": "1",
                    "QMT_BRIDGE_DATA_DIR": str(folder),
                    **address_env(ANY_ADDRESSES),
                    **env,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, condition: Callable[[], object]) -> None:
        until = time.monotonic() + SECONDS
        while not condition():
            assert self.popen.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.02)

    @property
    def address(self) -> str:
        self.until(lambda: "market tcp://" in self.text)
        return "tcp://" + self.text.partition("market tcp://")[2].partition(",")[0]

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


@pytest.mark.parametrize(
    ("call", "name", "topic"),
    [
        ("subscribe_quote", "subscribe_quote2", quote_topic("600519.SH")),
        ("subscribe_whole_quote", "subscribe_whole_quote", whole_topic("SH")),
        ("connect", "reconnect", None),
    ],
)
def test_a_hung_native_call_ends_the_process_for_a_restart(
    tmp_path: Path, call: str, name: str, topic: Topic | None
) -> None:
    (tmp_path / "hanging").write_text(call, encoding="utf-8")
    process = Process(tmp_path)
    listening = None
    try:
        if topic is not None:
            listening = Listening(process.address)
            listening.until(("up", None))
            listening.want(topic)
            listening.until(("down", "terminal_hung"))
        assert process.popen.wait(SECONDS) == TRY_AGAIN
        assert f"terminal_hung: {name} has not returned for 1 s; this process ends" in process.text
        assert "Traceback" not in process.text
    finally:
        process.close()
        if listening is not None:
            listening.close()
