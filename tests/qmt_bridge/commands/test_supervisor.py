"""The children of `qmt-bridge up` one by one: when one is started again, how each is ended, and which answers count."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import zmq

from feeder import app, publisher
from gateway import server
from qmt_bridge import sockets
from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.commands import supervisor
from qmt_bridge.config import FEEDER, GATEWAY, LOG, WIRE, Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.process import child as child_process
from qmt_bridge.process.pulse import Pulse
from qmt_bridge.process.stop import Stop
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.history import StoredFrame, TopicHistory, encode_history
from qmt_bridge.wire.topics import STATUS_TOPIC, STORE_TOPIC
from tests.support.ports import ANY_PORT
from tests.support.processes import runs
from tests.support.waiting import SLOWNESS, wait_for

DEADLINE = 30.0 * SLOWNESS
ENDS = "raise SystemExit(3)"
# A program that ends with its standard input.
LISTENS = "import sys; sys.stdin.read()"
STAYS = "import time; time.sleep(1000)"


class Clock:
    """Replaces the module `time`; the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


@pytest.fixture
def child() -> Iterator[Callable[[str], supervisor._Child]]:
    """Start a part that runs a program of the test."""
    children: list[supervisor._Child] = []

    def start(program: str) -> supervisor._Child:
        child = supervisor._Child("part", {})
        child._command = [sys.executable, "-S", "-c", program]
        child.start()
        children.append(child)
        return child

    yield start
    for child in children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()
            child.stop()


def test_the_pause_before_a_restart_grows_with_each_end(
    child: Callable[[str], supervisor._Child], clock: Clock
) -> None:
    part = child(ENDS)

    def dies_and_is_back_after(pause: float) -> None:
        assert part.process is not None
        assert part.process.wait(DEADLINE) == 3
        assert part.watch(clock.now) == 3
        clock.now += pause - 0.01
        assert part.watch(clock.now) is None
        assert part.process is None
        clock.now += 0.02
        assert part.watch(clock.now) is None
        assert part.process is not None

    for pause in (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0):
        dies_and_is_back_after(pause)
    clock.now += supervisor.STEADY + 1
    # It ended for a new reason, so the pause is the shortest again.
    dies_and_is_back_after(0.2)


def test_a_part_ends_with_its_input_or_is_killed(
    child: Callable[[str], supervisor._Child], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = child(LISTENS), child(STAYS)
    for part in (good, bad):
        part.stop()
    good.wait(clock.now + DEADLINE)
    bad.wait(clock.now)
    assert good.process is not None
    assert bad.process is not None
    assert good.process.returncode == 0
    assert bad.process.returncode
    assert caplog.messages == ["part did not stop in time; killed"]


@pytest.mark.skipif(sys.platform == "win32", reason="runs a script as if it were Python")
def test_all_parts_are_asked_to_end_before_any_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # After the end of its input, each part waits for the end of the other part's input.
    script = tmp_path / "python"
    script.write_text(
        f"#!{sys.executable} -S\n"
        "import pathlib, sys, time\n"
        "part, folder = sys.argv[4], pathlib.Path(__file__).parent\n"
        "(folder / f'{part}.began').touch()\n"
        "sys.stdin.read()\n"
        "(folder / f'{part}.told').touch()\n"
        "while len(list(folder.glob('*.told'))) < 2:\n"
        "    time.sleep(0.01)\n"
        "(folder / f'{part}.ended').touch()\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setattr(child_process, "sys", SimpleNamespace(executable=str(script)))
    monkeypatch.setattr(supervisor, "STOP_SECONDS", {"feeder": DEADLINE, "gateway": DEADLINE})
    stop = Stop()
    monkeypatch.setattr(supervisor, "ask_gateway", lambda *_: None)
    # No process listens at these addresses.
    config = Config(ask_addr="tcp://127.0.0.1:9")
    parts = {"feeder": (), "gateway": ()}
    watching = threading.Thread(target=supervisor.run, args=(config, parts, stop, lambda status, pids: None))
    watching.start()
    try:
        for _ in range(int(DEADLINE / 0.01)):
            if len(list(tmp_path.glob("*.began"))) == 2:
                break
            watching.join(0.01)
    finally:
        stop.set()
        watching.join()
    assert sorted(path.name for path in tmp_path.glob("*.ended")) == ["feeder.ended", "gateway.ended"]


def test_a_feeder_gets_the_time_that_its_journal_may_need(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, float] = {}
    monkeypatch.setattr(
        supervisor._Child,
        "wait",
        lambda part, deadline: given.update({part.part: deadline - time.monotonic()}),
    )
    stop = Stop()
    stop.set()
    config = Config(ask_addr="tcp://127.0.0.1:9")
    parts = {"feeder": (), "gateway": (), "store": (), "alerts": ()}
    supervisor.run(config, parts, stop, lambda status, pids: None)
    # In the order of their limits: the wait for one part must not shorten the time of another.
    assert list(given) == ["gateway", "alerts", "store", "feeder"]
    assert {part: round(seconds) for part, seconds in given.items()} == child_process.STOP_SECONDS
    assert publisher.CLOSE_SECONDS < app.LEAVE_SECONDS
    assert child_process.STOP_SECONDS["feeder"] >= app.START_GRACE + app.LEAVE_SECONDS
    assert child_process.STOP_SECONDS["gateway"] > server.JOIN_TIMEOUT


# Frozen


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_stopped_part_and_its_children_are_killed(
    child: Callable[[str], supervisor._Child], clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = tmp_path / "started"
    part = child(
        "import pathlib, subprocess, sys, time\n"
        f"other = subprocess.Popen([sys.executable, '-S', '-c', {STAYS!r}])\n"
        f"path = pathlib.Path({str(started)!r})\n"
        "path.with_suffix('.part').write_text(str(other.pid))\n"
        "path.with_suffix('.part').rename(path)\n"
        "time.sleep(1000)"
    )
    assert part.process is not None
    wait_for(started.exists, "the process that the part starts")
    other = int(started.read_text(encoding="utf-8"))
    part.pulse = Pulse(2.0, clock.now)
    part.pulse.beat(clock.now)
    for pid in (part.process.pid, other):
        os.kill(pid, signal.SIGSTOP)
    wait_for(part.is_stopped, "the stop")
    for _ in range(21):
        clock.now += 0.1
        part.replace_if_frozen(clock.now)
    assert part.process.wait(DEADLINE) == -signal.SIGKILL
    assert part.replaced
    wait_for(lambda: not runs(other), "the end of what it started")
    assert caplog.messages == ["part has given no sign of life for 2.0 s; it is killed and replaced"]
    # The process is killed once: the next one is a new process.
    part.replace_if_frozen(clock.now)
    assert len(caplog.messages) == 1
    assert part.watch(clock.now) == -signal.SIGKILL
    clock.now += 1.0
    part.watch(clock.now)
    assert part.process is not None
    assert not part.replaced


def test_a_part_that_is_starting_is_logged_and_not_killed(
    child: Callable[[str], supervisor._Child], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    part = child(STAYS)
    part.pulse = Pulse(2.0, clock.now)
    for _ in range(1250):
        clock.now += 0.1
        part.replace_if_frozen(clock.now)
    assert part.process is not None
    assert part.process.poll() is None
    # 125 seconds, every 30.
    assert len(caplog.messages) == 4
    assert all("has not answered" in message for message in caplog.messages)


def test_a_feeder_that_freezes_as_soon_as_it_is_ready_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The gateway has received the heartbeat; `up` may connect to the feeder later and has no answer yet."""
    monkeypatch.setattr(child_process, "python", lambda *words: [sys.executable, "-S", "-c", LISTENS])
    monkeypatch.setattr(supervisor.secrets, "token_hex", lambda size: "run")
    status = {"instance": "run", "feeder_instance": "run", "serving": True}
    monkeypatch.setattr(supervisor, "ask_gateway", lambda *_: status)
    stop = Stop()
    # No process listens at this address.
    config = Config(ask_addr="tcp://127.0.0.1:9", freeze_timeout=0.4)
    parts = {"feeder": (), "gateway": ()}
    watching = threading.Thread(target=supervisor.run, args=(config, parts, stop, lambda status, pids: None))
    watching.start()
    try:
        wait_for(lambda: "feeder has given no sign of life" in caplog.text, "the report")
    finally:
        stop.set()
        watching.join()
    assert "gateway has given" not in caplog.text


# Which answers are accepted


STATE = {"id": 0, "topic": STATUS_TOPIC, "state": "live"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\xc1", id="no-json"),
        pytest.param(b'{"\xff\xfe":1}', id="no-utf8"),
        pytest.param(b'{"a":' + b"[" * 100_000, id="nested"),
        pytest.param(encode(STATE)[:-1] + b',"body":{"source":"\xff\xfe"}}', id="no-utf8-in-the-body"),
        pytest.param(encode(STATE | {"body": {"source": "sim"}}), id="another-heartbeat"),
        pytest.param(encode_history(TopicHistory(0, STORE_TOPIC)), id="no-status"),
        pytest.param(
            encode_history(TopicHistory(0, STORE_TOPIC, frames=[StoredFrame(0, 0, 0, 0, msgspec.Raw(b"[]"))])),
            id="strange-status",
        ),
        pytest.param(
            encode_history(
                TopicHistory(
                    0, STORE_TOPIC, frames=[StoredFrame(0, 0, 0, 0, msgspec.Raw(b'{"time":1,"instance":"x"}'))]
                )
            ),
            id="another-store",
        ),
    ],
)
@pytest.mark.parametrize("read", [supervisor._of_feeder, supervisor._of_store])
def test_answers_of_other_programs_are_ignored(answer: bytes, read: Callable[[bytes], str | None]) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = sockets.bind_router(context, ANY_PORT, None)
    router.rcvtimeo = int(DEADLINE * 1000)
    where = Endpoint("ask_addr", router.getsockopt_string(zmq.LAST_ENDPOINT))
    questions = supervisor._Questions(where, STATUS_TOPIC, read, "ours")
    try:
        deadline = time.monotonic() + DEADLINE
        while not router.poll(10):
            assert time.monotonic() < deadline
            questions.ask()
        peer = router.recv_multipart()[0]
        router.send_multipart([peer, answer])
        assert questions._socket.poll(DEADLINE * 1000)
        assert not questions.answered()
    finally:
        questions.close()
        context.destroy(linger=0)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "inproc://here"])
def test_an_address_that_the_gateway_cannot_know_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^trade_addr: "):
        supervisor.run(Config(trade_addr=address), {}, Stop(), lambda status, pids: None)


# The environment of a child


def test_a_child_gets_its_own_settings_and_no_other_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QMT_BRIDGE_XT_TOKEN", "QMT_BRIDGE_CONFIG", "QMT_BRIDGE_API_KEY"):
        monkeypatch.setenv(name, "from outside")
    monkeypatch.setenv("UNRELATED", "kept")
    monkeypatch.setenv("QMT_BRIDGE_LANG", "zh")
    config = Config(api_key="k3y", xt_token="t0ken", port=9)
    gateway = child_process.environment(config, (*GATEWAY, *WIRE, *LOG))
    feeder = child_process.environment(config, (*FEEDER, *WIRE, *LOG))
    download = child_process.environment(config)
    assert (gateway["QMT_BRIDGE_API_KEY"], gateway["QMT_BRIDGE_PORT"]) == ("k3y", "9")
    assert feeder["QMT_BRIDGE_XT_TOKEN"] == "t0ken"
    assert "t0ken" not in gateway.values()
    assert "k3y" not in feeder.values()
    assert [name for name in download if name.startswith("QMT_BRIDGE_")] == ["QMT_BRIDGE_LANG"]
    for env in (gateway, feeder, download):
        assert "from outside" not in env.values()
        assert env["UNRELATED"] == "kept"
