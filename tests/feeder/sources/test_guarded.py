"""What the feeder does with a source that breaks the rules: the call is lost, or the process ends for a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from feeder import app
from feeder.app import Feeder
from feeder.source import DownloadRequest, Health, Sink
from feeder.sources import guarded
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.sockets import connect_dealer, connect_subscriber
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_reply, encode_ask
from qmt_bridge.wire.topics import STATUS_TOPIC, Kind, Topic, TopicParts, quote_topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.waiting import SLOWNESS, wait_for

SECONDS = 30.0 * SLOWNESS
TICKS = quote_topic("600519.SH")


class Rude:
    """A source that does in each call what the test tells it to."""

    protocol, name, simulated, lossless = 1, "rude", True, False
    kinds = frozenset((Kind.QUOTE, Kind.DOWNLOAD))

    def __init__(self, **does: Callable[..., object]) -> None:
        self._does = does

    def _do(self, call: str, otherwise: object = None) -> object:
        return self._does[call]() if call in self._does else otherwise

    def start(self, sink: Sink) -> None:
        self.sink = sink
        sink.set_state("up")
        self._do("start")

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        self._do("subscribe")
        self.sink.accept(topic)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        self._do("unsubscribe")

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        self._do("download")

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        self._do("history")

    def upstream(self) -> int:
        return self._do("upstream", 0)  # type: ignore[return-value]

    def hung(self) -> str | None:
        return self._do("hung")  # type: ignore[return-value]

    def health(self) -> Health:
        return self._do("health", Health())  # type: ignore[return-value]

    def capabilities(self) -> dict[str, str]:
        return self._do("capabilities", {})  # type: ignore[return-value]

    def close(self) -> None:
        self._do("close")


def raises(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


class Watching:
    """A feeder over a source, in a thread as its process runs it, and what a consumer is told."""

    def __init__(self, config: Config, source: Rude) -> None:
        self.feeder = Feeder(config, source)
        self.stop = threading.Event()
        self.codes: list[int] = []
        self.states: list[tuple[str, str | None, bool]] = []
        self.thread = threading.Thread(target=lambda: self.codes.append(self.feeder.run(self.stop)))
        self.thread.start()
        wait_for(lambda: self.feeder.publisher._opened.is_set(), "the start")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.market = connect_subscriber(self._context, self.feeder.publisher.market_addr, None)
        self._dealer = connect_dealer(self._context, self.feeder.publisher.ask_addr, None)
        self.market.subscribe(STATUS_TOPIC)

    def read(self) -> None:
        assert self.market.poll(int(SECONDS * 1000)), self.states
        frame = Frame.from_parts(self.market.recv_multipart())
        if frame.topic == STATUS_TOPIC:
            self.states.append((frame.data["state"], frame.data["reason"], frame.data["data_lost"]))

    def until(self, state: tuple[str, str | None, bool]) -> None:
        while state not in self.states:
            self.read()

    def asked(self, topic: Topic = TICKS) -> TopicState:
        """Return where a topic stands once it is decided."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            self._dealer.send(encode_ask(CatchUp(1, [topic])))
            assert self._dealer.poll(int(SECONDS * 1000))
            answer = decode_reply(self._dealer.recv_multipart()[-1])
            assert isinstance(answer, TopicState)
            if answer.state != "pending":
                return answer
        raise AssertionError("pending for ever")

    def close(self) -> None:
        self.stop.set()
        self.thread.join(SECONDS)
        self._context.destroy(linger=0)


@pytest.fixture
def config(tmp_path: object) -> Config:
    return Config(**ANY_ADDRESSES, data_dir=str(tmp_path))


@contextmanager
def watching(config: Config, source: Rude) -> Iterator[Watching]:
    seen = Watching(config, source)
    try:
        yield seen
    finally:
        seen.close()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("odd"), "internal", "source rude failed: odd"),
        (SystemExit(3), "internal", "source rude failed: SystemExit: 3"),
        (Refused("nonsense", "why"), "internal", "'nonsense' is no error code; its reason: why"),  # type: ignore[arg-type]
        (Refused("unknown_symbol", 5), "unknown_symbol", "5"),  # type: ignore[arg-type]
    ],
)
def test_an_error_of_subscribe_refuses_that_topic_alone(
    config: Config, error: BaseException, code: str, said: str
) -> None:
    left = [raises(error)]
    with watching(config, Rude(subscribe=lambda: left.pop()() if left else None)) as seen:
        seen.market.subscribe(TICKS)
        answer = seen.asked()
        assert (answer.state, answer.code) == ("refused", code)
        assert said in str(answer.error)
        other = quote_topic("000001.SZ")
        seen.market.subscribe(other)
        assert seen.asked(other).state == "live"
    assert seen.codes == [0]


@pytest.mark.parametrize("call", ["upstream", "health", "hung"])
@pytest.mark.parametrize("bad", [raises(ValueError("odd")), object])
def test_a_question_that_fails_costs_its_answer_alone(
    config: Config, call: str, bad: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    with watching(config, Rude(**{call: bad})) as seen:
        seen.until(("up", None, False))
        wait_for(lambda: seen.feeder.publisher.source.failed > 1, "two failures")
        numbers = seen.feeder.publisher.numbers()
        assert numbers is not None
        assert numbers.counted["failed_calls"] > 1
    assert seen.codes == [0]
    # Logged at the first time, and not a second one within the minute.
    assert len([record for record in caplog.records if f"source rude: {call} " in record.message]) == 1


def test_a_call_that_does_not_return_ends_the_process(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(app, "LEAVE_SECONDS", 0.1)
    gate = threading.Event()
    with watching(config, Rude(subscribe=lambda: gate.wait(SECONDS))) as seen:
        seen.market.subscribe(TICKS)
        seen.thread.join(SECONDS)
        assert seen.codes == [TRY_AGAIN]
        gate.set()
        assert seen.feeder.publisher.ended.wait(SECONDS)
    assert "source_hung: subscribe of source rude has not returned for 0.5 s; this process ends" in caplog.text


def test_a_slow_call_is_logged(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "SLOW_SECONDS", -1.0)
    with watching(config, Rude()) as seen:
        seen.market.subscribe(TICKS)
        assert seen.asked().state == "live"
    assert "source rude: subscribe took 0.0 s, and all topics waited for it" in caplog.text


def test_an_error_that_ends_a_thread_of_the_source_ends_the_process(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    may_die = threading.Event()

    def work() -> None:
        may_die.wait(SECONDS)
        raise ValueError("out of data")

    thread = threading.Thread(target=work, name="rude-feed")
    with watching(config, Rude(start=thread.start)) as seen:
        seen.until(("up", None, False))
        before = threading.excepthook
        may_die.set()
        seen.until(("down", "source_failed", True))
        seen.thread.join(SECONDS)
        assert seen.codes == [TRY_AGAIN]
        assert threading.excepthook is not before
    assert "source_failed: thread rude-feed of source rude: ValueError: out of data; this process" in caplog.text


def test_an_error_in_a_thread_of_a_library_is_left_to_others(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no code of the source was running: what it means the source knows alone."""
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: told.append(ended.exc_value))
    with watching(config, Rude()) as seen:
        thread = threading.Thread(target=int, args=("x",))
        thread.start()
        thread.join(SECONDS)
        assert [type(each) for each in told] == [ValueError]
        seen.until(("up", None, False))
    assert seen.codes == [0]


@pytest.mark.parametrize("hangs", [True, False])
def test_a_source_that_does_not_close_is_left_behind(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(guarded, "CLOSE_SECONDS", -0.9)
    gate = threading.Event()
    close = (lambda: gate.wait(SECONDS)) if hangs else raises(ValueError("odd"))
    with watching(config, Rude(close=close)) as seen, caplog.at_level(logging.ERROR):
        seen.until(("up", None, False))
    gate.set()
    assert seen.codes == [0]
    said = "does not close within" if hangs else "source rude cannot be closed"
    assert said in caplog.text


def test_nonsense_of_a_source_reaches_no_gateway(config: Config) -> None:
    source = Rude()
    with watching(config, source) as seen:
        seen.until(("up", None, False))
        inbox = seen.feeder.publisher.inbox
        source.sink.set_state("broken")  # type: ignore[arg-type]
        source.sink.set_accounts(["1"])  # type: ignore[list-item]
        source.sink.publish(STATUS_TOPIC, {"state": "?"}, 1)
        source.sink.publish_whole(STATUS_TOPIC, {"state": "?"}, 1)
        source.sink.publish(5, {}, 1)  # type: ignore[arg-type]
        source.sink.accept(STATUS_TOPIC)
        source.sink.refuse(STATUS_TOPIC, "internal", "x")
        source.sink.publish_trade(5, "order", {}, 1)  # type: ignore[arg-type]
        source.sink.publish_trade("1", 5, {}, 1)  # type: ignore[arg-type]
        source.sink.publish_trade("1" * 1001, "order", {}, 1)
        source.sink.publish_trade("1", "order", [], 1)  # type: ignore[arg-type]
        source.sink.refuse_history(1, "?", "x")  # type: ignore[arg-type]
        assert inbox.unencodable == 12
        seen.market.subscribe(TICKS)
        assert seen.asked().state == "live"
        source.sink.refuse(TICKS, "?", 5)  # type: ignore[arg-type]
        wait_for(lambda: seen.asked().state == "refused", "the refusal")
        answer = seen.asked()
        assert (answer.code, answer.error) == ("internal", "5")
        source.sink.set_state("down", "\ud800")
        seen.until(("down", "\\ud800", False))
        assert {state for state, _, _ in seen.states} == {"up", "down"}
    assert seen.codes == [0]
