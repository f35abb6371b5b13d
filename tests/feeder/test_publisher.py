"""A whole feeder over real ZeroMQ on free ports; this file has its own source, and the consumers are bare sockets."""

from __future__ import annotations

import logging
import socket as net
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

from feeder import inbox as inbox_module
from feeder import publisher as publisher_module
from feeder.app import Feeder, make_source
from feeder.events import Positions, Unsent
from feeder.journal import thread as thread_module
from feeder.journal.journal import Journal
from feeder.journal.thread import JournalThread
from feeder.publisher import Publisher
from feeder.source import DownloadRequest, Health, Sink
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused
from qmt_bridge.journal_file import Reader, journal_path
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import AccountState, FeedStatus, trade_state
from qmt_bridge.wire.requests import (
    MAX_ASK_TOPICS,
    CatchUp,
    DownloadStarted,
    StartDownload,
    TopicState,
    decode_reply,
    encode_ask,
)
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Kind, Topic, TopicParts, quote_topic, trade_topic
from tests.support import zmtp
from tests.support.ports import ANY_ADDRESSES
from tests.support.waiting import SLOWNESS, wait_for
from tests.support.zmtp import raw_peer

QUOTE = quote_topic("600519.SH")
WHOLE = Topic("whole/SH/")
SECONDS = 30.0 * SLOWNESS


class HandSource:
    """A source driven by the test: it records the calls of the feeder and publishes what the test gives it."""

    name = "hand"
    simulated = True
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.TRADE, Kind.DOWNLOAD))
    lossless = False

    def __init__(self, *, lossless: bool = False) -> None:
        self.lossless = lossless
        self.condition = Health()
        self.calls: list[tuple[str, str]] = []
        self.requests: list[DownloadRequest] = []
        self.raises: Exception | None = None
        self.sink: Sink
        self.closed = False
        self.held: set[Topic] = set()

    def start(self, sink: Sink) -> None:
        if self.raises is not None:
            raise self.raises
        self.sink = sink

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.calls.append(("subscribe", topic))
        if self.raises is not None:
            raise self.raises
        self.held.add(topic)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.calls.append(("unsubscribe", topic))
        self.held.remove(topic)

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        if self.raises is not None:
            raise self.raises
        self.requests.append(request)

    def hung(self) -> str | None:
        return None

    def health(self) -> Health:
        return self.condition

    def upstream(self) -> int:
        return len(self.held)

    def close(self) -> None:
        self.closed = True

    def publish(self, topic: Topic, body: object) -> None:
        self.sink.publish(topic, body, time.time_ns())


class Consumer:
    """A SUB on each XPUB and a DEALER."""

    def __init__(self, feeder: Feeder, *, high_water_mark: int | None = None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        if high_water_mark is None:
            self.market = sockets.connect_subscriber(self.context, feeder.publisher.market_addr, None)
        else:
            self.market = self.context.socket(zmq.SUB)
            self.market.rcvhwm = high_water_mark
            self.market.connect(feeder.publisher.market_addr)
        self.trade = sockets.connect_subscriber(self.context, feeder.publisher.trade_addr, None)
        # Questions of both kinds are answered there.
        self.dealer = sockets.connect_dealer(self.context, feeder.publisher.trade_ask_addr, None)
        self.number = 0

    def frame(self, socket: zmq.Socket[bytes] | None = None) -> Frame:
        socket = socket or self.market
        assert socket.poll(int(SECONDS * 1000)), "no message in time"
        return Frame.from_parts(socket.recv_multipart())

    def send(self, payload: bytes) -> None:
        assert self.dealer.poll(int(SECONDS * 1000), zmq.POLLOUT)
        self.dealer.send(payload)

    def receive(self) -> bytes:
        assert self.dealer.poll(int(SECONDS * 1000)), "no answer in time"
        return self.dealer.recv()

    def catch_up(
        self, topic: str, after: int | None = None, epoch: int | None = None, exact: bool = False
    ) -> list[TopicState]:
        self.number += 1
        self.send(encode_ask(CatchUp(self.number, [topic], after, epoch=epoch, exact=exact)))
        states = []
        while not states or states[-1].more:
            states.append(decode_reply(self.receive()))
            assert states[-1].id == self.number
            assert states[-1].topic == topic
        return states

    def download(self, *stocks: str, period: str = "1d") -> DownloadStarted:
        self.send(encode_ask(StartDownload(3, list(stocks), period)))
        started = decode_reply(self.receive())
        assert isinstance(started, DownloadStarted)
        return started

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the heartbeat interval, so that the counters of a heartbeat arrive soon."""
    monkeypatch.setattr(publisher_module, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    # The consumer of these tests has no keys, without which there are no trade events on Windows.
    return Config(**ANY_ADDRESSES, data_dir=str(tmp_path), grace=0.05, open_trade_addr=sys.platform == "win32")


@pytest.fixture
def source() -> HandSource:
    return HandSource()


@pytest.fixture
def feeder(config: Config, source: HandSource) -> Iterator[Feeder]:
    feeder = Feeder(config, source)
    feeder.start()
    try:
        yield feeder
    finally:
        feeder.stop()


@pytest.fixture
def consumer(feeder: Feeder) -> Iterator[Consumer]:
    consumer = Consumer(feeder)
    try:
        yield consumer
    finally:
        consumer.close()


def want(consumer: Consumer, source: HandSource, topic: Topic = QUOTE) -> None:
    consumer.market.subscribe(topic.encode())
    wait_for(lambda: topic in source.held)


def listen_to_trades(consumer: Consumer, feeder: Feeder, source: HandSource) -> None:
    """Subscribe to trade events, and publish until one arrives: nothing else shows that the subscription is there."""
    consumer.trade.subscribe(ALL_TRADES.encode())
    wait_for(lambda: publish_probe(source) and consumer.trade.poll(10))
    # Probes that the journal still has would come between the events of the test.
    source.sink.publish_trade("probe", "last", {}, time.time_ns())
    while consumer.frame(consumer.trade).data["type"] != "last":
        pass


def publish_probe(source: HandSource) -> bool:
    source.sink.publish_trade("probe", "probe", {}, time.time_ns())
    return True


def saved(config: Config) -> list[int]:
    """Return the positions stored in the journal's file."""
    with Reader(journal_path(config.data_path, "hand")) as reader:
        assert list(reader.faults()) == []
        return [row.seq for row in reader.rows()]


@contextmanager
def pause(publisher: Publisher) -> Iterator[None]:
    """Block the thread of the publisher."""
    entered, go = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go.wait(SECONDS)

    publisher.inbox.put(hold)
    try:
        assert entered.wait(SECONDS)
        yield
    finally:
        go.set()


def limit_disk(publisher: Publisher, pages: int) -> None:
    """Limit the journal to `pages` pages; return when the limit is in effect."""
    statement = f"PRAGMA max_page_count={pages}"
    publisher._journal.call(lambda journal: journal._database.execute(statement).fetchall(), SECONDS)


def save(publisher: Publisher) -> None:
    """Make the journal retry, as it does once a second."""
    publisher._journal.call(Journal.save, SECONDS)
    publisher._journal.call(lambda journal: publisher._journal._tell_outcome(journal, journal.saved), SECONDS)


# -- Demand and messages


def test_a_subscription_reaches_the_source_and_gets_numbered_data(
    feeder: Feeder, source: HandSource, consumer: Consumer
) -> None:
    want(consumer, source)
    before = time.time_ns()
    source.sink.publish(QUOTE, {"600519.SH": [{"lastPrice": 1.5}]}, 12345)
    source.sink.publish(QUOTE, {"600519.SH": [{"lastPrice": float("nan")}]}, 12346)
    first, second = consumer.frame(), consumer.frame()
    assert (first.topic, first.seq, second.seq) == (QUOTE, 1, 2)
    assert first.epoch == second.epoch <= before
    assert first.received_ns == 12345
    assert before <= first.published_ns <= second.published_ns <= time.time_ns()
    assert first.data == {"600519.SH": [{"lastPrice": 1.5}]}
    assert second.body == b'{"600519.SH":[{"lastPrice":null}]}'


def test_a_body_may_change_after_it_was_published(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source)
    body = {"600519.SH": [1]}
    source.publish(QUOTE, body)
    body["600519.SH"].append(2)
    assert consumer.frame().data == {"600519.SH": [1]}


@pytest.mark.parametrize("how", ["unsubscribe", "disconnect"])
def test_the_source_unsubscribes_after_the_last_subscriber_left(
    feeder: Feeder, source: HandSource, consumer: Consumer, how: str
) -> None:
    want(consumer, source)
    if how == "unsubscribe":
        consumer.market.unsubscribe(QUOTE.encode())
    else:
        consumer.market.close(linger=0)
    wait_for(lambda: QUOTE not in source.held)
    assert source.calls == [("subscribe", QUOTE), ("unsubscribe", QUOTE)]


def test_two_subscribers_are_one_subscription_upstream(feeder: Feeder, source: HandSource, consumer: Consumer) -> None:
    other = Consumer(feeder)
    try:
        want(consumer, source)
        want(other, source)
        other.catch_up(QUOTE)
        source.publish(QUOTE, {})
        assert consumer.frame().seq == other.frame().seq == 1
        assert source.calls == [("subscribe", QUOTE)]
    finally:
        other.close()


def test_invalid_subscription_messages_do_no_harm(feeder: Feeder, source: HandSource) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.XSUB)
    try:
        stranger.connect(feeder.publisher.market_addr)
        for message in (b"", b"hello", b"\x01\xff\xfe/", b"\x01" + "报价/".encode(), b"\x01x/y/", b"\x01"):
            stranger.send(message)
        stranger.send(b"\x01" + WHOLE.encode())
        wait_for(lambda: source.held)
        assert source.calls == [("subscribe", WHOLE)]
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("said", [b"\0", b"\1\0\0"], ids=["never-subscribed", "twice"])
def test_a_false_unsubscription_takes_no_data_from_others(
    feeder: Feeder, source: HandSource, consumer: Consumer, said: bytes
) -> None:
    want(consumer, source)
    with raw_peer(feeder.publisher.market_addr, b"SUB") as hostile:
        for first in said:
            hostile.sendall(zmtp.frame(0, bytes([first]) + QUOTE.encode()))
        hostile.sendall(zmtp.frame(0, b"\1" + WHOLE.encode()))
        wait_for(lambda: WHOLE in source.held)
    # After its grace time, which is the same, a topic without subscribers has gone too.
    wait_for(lambda: WHOLE not in source.held)
    source.publish(QUOTE, {})
    assert consumer.frame().topic == QUOTE
    assert source.calls == [("subscribe", QUOTE), ("subscribe", WHOLE), ("unsubscribe", WHOLE)]
    # The true one counts.
    consumer.market.unsubscribe(QUOTE.encode())
    wait_for(lambda: not source.held)


def test_an_unfinished_message_takes_no_subscription_with_it(feeder: Feeder, source: HandSource) -> None:
    with raw_peer(feeder.publisher.market_addr, b"SUB") as hostile:
        subscription = zmtp.frame(0, b"\1" + QUOTE.encode())
        # Of the second one libzmq tells only "hello, and more follows", since the subscription is not new.
        hello = zmtp.frame(zmtp.MORE, b"hello") + subscription
        hostile.sendall(hello + hello + zmtp.frame(0, b"\1" + WHOLE.encode()))
        wait_for(lambda: len(source.held) == 2)
    assert source.calls[:2] == [("subscribe", QUOTE), ("subscribe", WHOLE)]


def test_a_refusal_of_the_source_is_the_answer_to_a_question(source: HandSource, consumer: Consumer) -> None:
    source.raises = Refused("not_entitled", "no level 2 here")
    consumer.market.subscribe(QUOTE.encode())
    (state,) = consumer.catch_up(QUOTE)
    assert (state.state, state.code, state.error) == ("refused", "not_entitled", "no level 2 here")
    source.raises = None
    consumer.market.unsubscribe(QUOTE.encode())
    consumer.market.subscribe(QUOTE.encode())
    wait_for(lambda: QUOTE in source.held)


def test_a_failing_source_refuses_with_internal_and_is_logged(
    source: HandSource, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    source.raises = RuntimeError("boom")
    consumer.market.subscribe(QUOTE.encode())
    (state,) = consumer.catch_up(QUOTE)
    assert (state.state, state.code) == ("refused", "internal")
    assert "boom" in (state.error or "")
    assert any(record.exc_info for record in caplog.records)


def test_a_source_that_fails_to_unsubscribe_does_not_stop_the_feeder(
    feeder: Feeder, source: HandSource, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    want(consumer, source)
    source.held.clear()
    consumer.market.unsubscribe(QUOTE.encode())
    wait_for(lambda: ("unsubscribe", QUOTE) in source.calls)
    assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"
    assert "failed to unsubscribe" in caplog.text


# -- CatchUp


def test_a_late_joiner_receives_the_last_value(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source)
    source.publish(QUOTE, {"600519.SH": [1]})
    source.publish(QUOTE, {"600519.SH": [2]})
    consumer.frame()
    second = consumer.frame()
    (state,) = consumer.catch_up(QUOTE)
    assert state == TopicState(1, QUOTE, "live", None, None, second.epoch, 2, second.body, False)


def test_a_question_waits_for_the_answer_of_the_source(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source)
    consumer.send(encode_ask(CatchUp(1, [QUOTE])))
    # A later question that needs no source is answered, while the first one still waits.
    assert decode_reply(ask_and_receive(consumer, STATUS_TOPIC)).topic == STATUS_TOPIC
    source.sink.refuse(QUOTE, "upstream_refused", "the terminal said no")
    state = decode_reply(consumer.receive())
    assert (state.topic, state.state, state.error) == (QUOTE, "refused", "the terminal said no")


def ask_and_receive(consumer: Consumer, topic: Topic) -> bytes:
    consumer.send(encode_ask(CatchUp(2, [topic])))
    return consumer.receive()


def test_a_question_about_a_silent_source_is_answered_pending(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source)
    assert consumer.catch_up(QUOTE)[0].state == "pending"
    source.sink.accept(QUOTE)
    wait_for(lambda: consumer.catch_up(QUOTE)[0].state == "live")


def test_a_late_joiner_receives_the_newest_tick_of_every_code(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source, WHOLE)
    ticks = {f"{number:06}.SH": {"lastPrice": number, "text": "x" * 1000} for number in range(1200)}
    source.sink.publish_whole(WHOLE, ticks, time.time_ns())
    source.sink.publish(WHOLE, {"000007.SH": {"lastPrice": -1}}, time.time_ns())
    received: dict[str, Any] = {}
    batches = [consumer.frame()]
    while batches[-1].data != {"000007.SH": {"lastPrice": -1}}:
        batches.append(consumer.frame())
    for batch in batches:
        assert len(batch.body) <= frames.BATCH_BYTES
        received |= batch.data
    count = len(batches)
    assert [batch.seq for batch in batches] == list(range(1, count + 1))
    snapshot: dict[str, Any] = {}
    states = consumer.catch_up(WHOLE)
    for state in states:
        snapshot |= frames.decode(state.body or b"")
    assert {state.seq for state in states} == {count}
    assert received == snapshot == ticks | {"000007.SH": {"lastPrice": -1}}


def test_ten_thousand_topics_in_one_question_are_all_answered(source: HandSource, consumer: Consumer) -> None:
    topics = [f"quote/{number:06}.SH/tick/" for number in range(9_999)]
    consumer.send(encode_ask(CatchUp(1, [*topics, "报价/"])))
    answered = {decode_reply(consumer.receive()).topic for _ in range(10_000)}
    assert answered == {*topics, "报价/"}


def test_a_question_about_too_many_topics_is_dropped(consumer: Consumer, caplog: pytest.LogCaptureFixture) -> None:
    consumer.send(encode_ask(CatchUp(1, ["a/"] * (MAX_ASK_TOPICS + 1))))
    assert decode_reply(ask_and_receive(consumer, STATUS_TOPIC)).id == 2
    assert "`array` of length <= 10000" in caplog.text


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no-json"),
        pytest.param(msgspec.json.encode({"ask": "everything"}), id="unknown"),
        pytest.param(msgspec.json.encode({"ask": "catch_up", "id": "x", "topics": []}), id="types"),
        pytest.param(msgspec.json.encode({"ask": "catch_up", "id": 1, "topics": []}) + b"{}", id="trailing"),
        pytest.param(b'{"ask":"catch_up","id":1,"topics":["\xff\xfe"]}', id="no-utf8"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_a_malformed_question_is_dropped_with_one_line(
    consumer: Consumer, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    consumer.send(payload)
    assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1


def test_a_req_socket_may_ask_too(feeder: Feeder) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    request = context.socket(zmq.REQ)
    try:
        request.connect(feeder.publisher.ask_addr)
        request.send(encode_ask(CatchUp(9, [STATUS_TOPIC])))
        assert request.poll(int(SECONDS * 1000))
        assert decode_reply(request.recv()).id == 9
    finally:
        context.destroy(linger=0)


# -- Hostile input: refused, counted, logged once, and without effect on other clients


@contextmanager
def stranger(address: str, kind: int, **options: Any) -> Iterator[zmq.Socket[bytes]]:
    """A bare socket that may send anything."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(kind)
    for name, value in options.items():
        setattr(socket, name, value)
    socket.connect(address)
    try:
        yield socket
    finally:
        context.destroy(linger=0)


def refused(consumer: Consumer) -> int:
    """Return how many refusals the next heartbeat counts."""
    body = consumer.catch_up(STATUS_TOPIC)[0].body
    return msgspec.json.decode(body, type=FeedStatus).refused if body else 0


DIGITS = f"l2/600519.SH/{'9' * 5000}/"


@pytest.mark.usefixtures("quick_heartbeat")
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x01" + DIGITS.encode(), id="digits"),
        pytest.param(b"\x01quote/600519%2ESH/tick/", id="spelling"),
        pytest.param(b"\x01formula/" + b"%5B" * 2500 + b"/", id="nested"),
        pytest.param(b"\x01trade/%FF/", id="garbage"),
        pytest.param(b"\x01\xff\xfe/", id="no-ascii"),
        pytest.param(b"hello", id="no-subscription"),
    ],
)
def test_a_bad_subscription_is_logged_once_a_minute(
    feeder: Feeder, source: HandSource, consumer: Consumer, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with stranger(feeder.publisher.market_addr, zmq.XSUB) as socket:
        for _ in range(20):
            socket.send(message)
            if message[:1] == b"\x01":
                socket.send(b"\0" + message[1:])
        wait_for(lambda: refused(consumer))
        want(consumer, source)
    assert source.calls == [("subscribe", QUOTE)]
    assert len([record for record in caplog.records if "is refused" in record.message]) == 1
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("topic", [DIGITS, "quote/600519%2ESH/tick/", "l2/600519.SH/５/", "trade/%31/", "trade/%FF/"])
def test_a_question_about_an_impossible_topic_is_refused(consumer: Consumer, topic: str) -> None:
    (state,) = consumer.catch_up(topic)
    assert (state.state, state.code) == ("refused", "bad_request")


def test_a_question_of_version_1_is_refused_in_its_own_encoding(
    feeder: Feeder, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    topics = [QUOTE, STATUS_TOPIC]
    consumer.send(msgspec.msgpack.encode({"ask": "catch_up", "id": 5, "topics": topics, "after": None, "room": 0}))
    refused, status = (msgspec.msgpack.decode(consumer.receive()) for _ in topics)
    assert (refused["id"], refused["topic"], refused["state"]) == (5, QUOTE, "refused")
    assert "this program version 1: update this program" in refused["error"]
    told = msgspec.msgpack.decode(status["body"])
    assert (told["state"], told["reason"], told["epoch"]) == ("down", refused["error"], feeder.publisher._epoch)
    assert "is refused: it is of version 1 of the wire" in caplog.text
    assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"


def asking(**fields: object) -> bytes:
    return msgspec.json.encode({"ask": "catch_up", "id": 1, "topics": ["trade/"], "after": 0, **fields})


@pytest.mark.parametrize(
    "payload",
    [
        asking(after=2**64 - 1),
        asking(after=-(2**63)),
        asking(room=2**64 - 1),
        asking(room=-1),
        asking(id=2**64 - 1),
        asking(id=-(2**63)),
        asking(epoch=float("nan")),
        asking(epoch=float("inf")),
        asking(epoch=-1e300, exact=True),
        asking(epoch=2**64 - 1),
    ],
)
def test_a_question_with_an_odd_number_is_answered(consumer: Consumer, payload: bytes) -> None:
    consumer.send(payload)
    state = decode_reply(consumer.receive())
    assert (state.topic, state.state in ("live", "refused")) == (ALL_TRADES, True)


@pytest.mark.usefixtures("quick_heartbeat")
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b""], id="empty"),
        pytest.param([b"", b""], id="empty-parts"),
        pytest.param([b"x"] * 3000, id="parts"),
        pytest.param([b"x" * 2000, asking()], id="long-envelope"),
        pytest.param([asking()[:-1] + b',"epoch":' + b"[" * 100_000], id="deep"),
        pytest.param([asking()[:-1] + b',"x":' + b"[" * 100_000], id="deep-unknown-field"),
        pytest.param([asking(epoch=10**400)], id="large-epoch"),
        pytest.param([asking(after=2**64)], id="large-position"),
        pytest.param([asking(after=1.5)], id="float"),
        pytest.param([asking(epoch="x")], id="text"),
        pytest.param([asking(topics=[""] * 80_000)], id="many"),
        pytest.param([msgspec.json.encode({"ask": "start_download", "id": 1, "stocks": ["x"] * 20_000})], id="codes"),
    ],
)
def test_a_bad_question_is_logged_once_a_minute(
    feeder: Feeder, consumer: Consumer, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with stranger(feeder.publisher.ask_addr, zmq.DEALER) as socket:
        for _ in range(20):
            socket.send_multipart(parts)
        wait_for(lambda: feeder.publisher._refusals.count == 20)
        # The counter of the heartbeat.
        wait_for(lambda: refused(consumer) == 20)
    assert len([record for record in caplog.records if "is refused" in record.message]) == 1
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("where", ["market", "ask"])
def test_a_message_over_the_socket_limit_closes_its_connection(feeder: Feeder, consumer: Consumer, where: str) -> None:
    address = feeder.publisher.market_addr if where == "market" else feeder.publisher.ask_addr
    kind = zmq.XSUB if where == "market" else zmq.DEALER
    # Only as long as needed: the sender's own libzmq deletes its nodes by recursion.
    size = 20_000 if where == "market" else 300_000
    with stranger(address, kind) as socket:
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.send(b"\x01" + b"x" * size)
        assert monitor.poll(int(SECONDS * 1000)), "the connection goes on"
        socket.disable_monitor()
    assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"


def test_an_exception_in_a_call_of_the_source_loses_only_that_call(
    feeder: Feeder, source: HandSource, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    want(consumer, source)
    for topic in ("报价/", QUOTE):
        feeder.publisher.inbox.put(lambda: {}["missing"])  # type: ignore[index]
        source.sink.publish(Topic(topic), {"600519.SH": [1]}, 1)
    assert consumer.frame().topic == QUOTE
    assert feeder.publisher.failed_calls == 2
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_message_whose_handling_fails_loses_only_itself(
    feeder: Feeder, source: HandSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str) -> list[object]:
        raise RuntimeError(text)

    with monkeypatch.context() as patch:
        patch.setattr(feeder.publisher._registry, "make_room", fail)
        patch.setattr(feeder.publisher._registry, "states", fail)
        consumer.market.subscribe(WHOLE.encode())
        consumer.send(encode_ask(CatchUp(1, [STATUS_TOPIC])))
        wait_for(lambda: feeder.publisher._refusals.count == 2)
    want(consumer, source)
    assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"


# -- Askers that do not read


def big_market(source: HandSource, consumer: Consumer) -> dict[str, Any]:
    want(consumer, source, WHOLE)
    ticks = {f"{number:06}.SH": {"text": "x" * 1000} for number in range(4000)}
    source.sink.publish_whole(WHOLE, ticks, 1)
    wait_for(lambda: consumer.catch_up(WHOLE)[-1].seq > 60)
    return ticks


def test_a_market_named_often_in_a_question_is_answered_once(source: HandSource, consumer: Consumer) -> None:
    ticks = big_market(source, consumer)
    consumer.send(encode_ask(CatchUp(1, [WHOLE] * 300)))
    consumer.send(encode_ask(CatchUp(2, [STATUS_TOPIC])))
    received: list[str] = []
    while (state := decode_reply(consumer.receive())).id == 1:
        received += frames.decode(state.body or b"")
    assert received == list(ticks)


def test_for_a_slow_asker_questions_are_queued_not_answers(
    feeder: Feeder, source: HandSource, consumer: Consumer
) -> None:
    ticks = big_market(source, consumer)
    askers = feeder.publisher._answers.askers
    with stranger(feeder.publisher.ask_addr, zmq.DEALER, rcvhwm=1) as deaf:
        for number in range(100):
            deaf.send(encode_ask(CatchUp(number, [WHOLE])))
        wait_for(lambda: askers._full)
        # The answers are 400 MB. Other askers get theirs meanwhile, and only the questions are kept.
        assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"
        assert len(consumer.catch_up(WHOLE)) > 60
        assert askers._size < 1_000_000
        # An asker that begins to read gets all its answers.
        codes, last = 0, 0
        while last < 100:
            assert deaf.poll(int(SECONDS * 1000))
            state = decode_reply(deaf.recv())
            codes += len(frames.decode(state.body or b""))
            last += not state.more
        assert codes == 100 * len(ticks)
        for number in range(100):
            deaf.send(encode_ask(CatchUp(number, [WHOLE])))
        wait_for(lambda: askers._full)
    # Nothing is kept of an asker that has disconnected.
    wait_for(lambda: not len(askers))


def test_a_journal_is_read_only_as_fast_as_its_asker_takes_it(
    feeder: Feeder, source: HandSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(600):
        source.sink.publish_trade("1", "order", {"n": number, "text": "x" * 200_000}, 1)
        if number % 100 == 99:
            # At most 64 MiB may wait for the disk.
            wait_for(lambda last=number + 1: feeder.publisher._sent.newest == last)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 600)
    with stranger(feeder.publisher.trade_ask_addr, zmq.DEALER, rcvhwm=1) as deaf:
        deaf.send(encode_ask(CatchUp(1, [ALL_TRADES], 0)))
        wait_for(lambda: feeder.publisher._answers.askers._full)
        assert feeder.publisher._answers.replays[0].position.seq < 600
        assert consumer.catch_up(STATUS_TOPIC)[0].state == "live"
        seen: list[int] = []
        while len(seen) < 600:
            assert deaf.poll(int(SECONDS * 1000))
            seen += [event["seq"] for event in frames.decode(decode_reply(deaf.recv()).body or b"")]
        assert seen == list(range(1, 601))


# -- Status


def test_the_heartbeat_carries_exactly_the_documented_fields(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source)
    consumer.market.subscribe(STATUS_TOPIC.encode())
    first = consumer.frame()
    assert set(first.data) == set(FeedStatus.__struct_fields__)
    status = msgspec.json.decode(first.body, type=FeedStatus)
    assert (status.source, status.simulated, status.state) == ("hand", True, "connecting")
    assert (status.epoch, status.topics, status.upstream, status.trade_seq) == (first.epoch, 1, 1, 0)
    second = consumer.frame()
    assert second.seq == first.seq + 1
    assert second.data["time"] > first.data["time"]
    assert second.data["published"] > first.data["published"]


def test_invalid_text_in_a_reason_is_escaped(source: HandSource, consumer: Consumer) -> None:
    consumer.market.subscribe(STATUS_TOPIC.encode())
    consumer.frame()
    # Python decodes the name of a file that is not UTF-8 with such surrogates.
    source.sink.set_accounts([AccountState("******0365", "STOCK", "down", "no folder /data/\udcff")])
    source.sink.set_state("down", "no file /data/\udcff")
    while (told := consumer.frame().data)["reason"] is None:
        continue
    assert told["reason"] == "no file /data/\\udcff"
    assert told["accounts"][0]["reason"] == "no folder /data/\\udcff"


def test_a_change_of_state_is_published_once_without_delay(source: HandSource, consumer: Consumer) -> None:
    consumer.market.subscribe(STATUS_TOPIC.encode())
    seen = [consumer.frame().data]
    for _ in range(100):
        source.sink.set_state("up")
    source.sink.set_state("down", "terminal_disconnected", data_lost=True)
    while seen[-1]["reason"] is None:
        seen.append(consumer.frame().data)
    # There is one message, unless a heartbeat came between.
    assert 1 <= [status["state"] for status in seen].count("up") < 10
    assert seen[-1]["since"] >= seen[-2]["since"] > seen[0]["since"]
    assert (seen[-1]["reason"], seen[-1]["data_lost"]) == ("terminal_disconnected", True)
    assert consumer.catch_up(STATUS_TOPIC)[0].body == frames.encode(seen[-1])


def test_a_change_of_an_account_is_published_once_without_delay(source: HandSource, consumer: Consumer) -> None:
    consumer.market.subscribe(STATUS_TOPIC.encode())
    seen = [consumer.frame().data]
    assert seen[-1]["accounts"] == []
    account = AccountState("******0365", "STOCK", "down", "connect returned -1", 7, fault=True)
    for _ in range(100):
        source.sink.set_accounts([account])
    source.sink.set_accounts([msgspec.structs.replace(account, state="up")])
    while not seen[-1]["accounts"] or seen[-1]["accounts"][0]["state"] != "up":
        seen.append(consumer.frame().data)
    # There is one message, unless a heartbeat came between.
    assert 1 <= [bool(each["accounts"]) and each["accounts"][0]["state"] == "down" for each in seen].count(True) < 10
    assert seen[-1]["accounts"] == [msgspec.structs.asdict(account) | {"state": "up"}]
    told = consumer.catch_up(STATUS_TOPIC)[0].body
    assert told is not None
    assert msgspec.json.decode(told, type=FeedStatus).accounts[0].since == 7


def test_a_status_of_an_older_feeder_has_no_accounts() -> None:
    status = msgspec.json.decode(
        frames.encode({"source": "sim", "simulated": True, "state": "up", "epoch": 1, "time": 1}), type=FeedStatus
    )
    assert (status.accounts, trade_state(status.accounts)) == ((), "off")


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (["up", "up"], "up"),
        (["up", "connecting"], "waiting"),
        (["connecting", "down", "up"], "down"),
        (["up", "stale"], "down"),
        (["refused", "connecting"], "down"),
    ],
)
def test_the_trade_state_is_that_of_the_worst_account(states: list[Any], state: str) -> None:
    assert trade_state([AccountState("1", "STOCK", each) for each in states]) == state


# -- What cannot be encoded


def test_an_unencodable_message_is_logged_once_a_kind(
    feeder: Feeder, source: HandSource, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    want(consumer, source)
    for _ in range(3):
        source.publish(QUOTE, {"600519.SH": object()})
    endless: list[object] = []
    endless.append(endless)
    source.publish(QUOTE, {"600519.SH": endless})
    source.sink.publish(QUOTE, {}, -1)
    source.sink.publish_whole(WHOLE, None, 1)  # type: ignore[arg-type]
    source.sink.publish_trade(None, "order", {}, 1)  # type: ignore[arg-type]
    source.publish(QUOTE, {"600519.SH": ["good"]})
    assert consumer.frame().data == {"600519.SH": ["good"]}
    assert consumer.catch_up(QUOTE)[0].seq == 1
    assert feeder.publisher.inbox.unencodable == 7
    assert len([record for record in caplog.records if "of kind quote cannot be encoded" in record.message]) == 3
    assert all(record.exc_info for record in caplog.records if "cannot be encoded" in record.message)


def test_one_bad_tick_drops_no_other_tick_of_the_market(source: HandSource, consumer: Consumer) -> None:
    want(consumer, source, WHOLE)
    source.sink.publish_whole(WHOLE, {"600519.SH": {"a": 1}, "600000.SH": object(), "600001.SH": {"b": 2}}, 1)
    assert consumer.frame().data == {"600519.SH": {"a": 1}, "600001.SH": {"b": 2}}


def test_a_message_of_an_unsubscribed_topic_is_not_sent(feeder: Feeder, source: HandSource, consumer: Consumer) -> None:
    source.publish(QUOTE, {"late": True})
    wait_for(lambda: feeder.publisher.unwanted == 1)
    want(consumer, source)
    source.publish(QUOTE, {"late": False})
    frame = consumer.frame()
    assert (frame.seq, frame.data) == (1, {"late": False})


# -- Trade events


def test_a_trade_event_has_a_number_and_a_position(feeder: Feeder, source: HandSource, consumer: Consumer) -> None:
    listen_to_trades(consumer, feeder, source)
    (state,) = consumer.catch_up(ALL_TRADES)
    assert (state.state, state.body) == ("live", None)
    source.sink.publish_trade("1", "order", {"order_id": 7}, 11)
    source.sink.publish_trade("账户/2", "trade", {"traded_id": "8"}, 12)
    source.sink.publish_trade("1", "order", {"order_id": 9}, 13)
    first, second, third = (consumer.frame(consumer.trade) for _ in range(3))
    assert (first.topic, first.seq, first.received_ns) == (trade_topic("1"), 1, 11)
    assert (second.topic, second.seq) == (trade_topic("账户/2"), 1)
    assert (third.topic, third.seq) == (trade_topic("1"), 2)
    assert first.data == {"type": "order", "seq": state.seq + 1, "data": {"order_id": 7}}
    assert [second.data["seq"], third.data["seq"]] == [state.seq + 2, state.seq + 3]
    assert consumer.catch_up(trade_topic("账户/2"))[0].seq == 1
    assert consumer.catch_up(trade_topic("nobody"))[0].seq == 0


def test_events_are_replayed_unchanged_also_after_a_restart(config: Config) -> None:
    for start in range(2):
        source = HandSource()
        feeder = Feeder(config, source)
        feeder.start()
        consumer = Consumer(feeder)
        try:
            for number in range(3):
                source.sink.publish_trade(str(number % 2), "order", {"start": start, "number": number}, 1)
            newest = 3 * (start + 1)
            wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == newest)  # noqa: B023
            (state,) = consumer.catch_up(ALL_TRADES, after=2)
            events = frames.decode(state.body or b"")
            assert [event["seq"] for event in events] == list(range(3, newest + 1))
            assert events[0] == {"type": "order", "seq": 3, "data": {"start": 0, "number": 2}}
            (state,) = consumer.catch_up(trade_topic("1"), after=0)
            assert [event["seq"] for event in frames.decode(state.body or b"")] == [2, 5][: start + 1]
            assert (state.seq, state.more) == (start + 1, False)
            (state,) = consumer.catch_up(trade_topic("1"), after=1)
            assert [event["seq"] for event in frames.decode(state.body or b"")] == [5][:start]
            (state,) = consumer.catch_up(ALL_TRADES, after=newest)
            assert (state.state, frames.decode(state.body or b""), state.seq) == ("live", [], newest)
        finally:
            consumer.close()
            feeder.stop()


@pytest.mark.parametrize("after", [-1, 1, 2**60])
def test_a_position_of_another_journal_is_refused(consumer: Consumer, after: int) -> None:
    for topic in (ALL_TRADES, trade_topic("1")):
        (state,) = consumer.catch_up(topic, after)
        assert (state.state, state.code, state.oldest, state.seq) == ("refused", "resume_expired", 0, 0)


@contextmanager
def running_feeder(config: Config) -> Iterator[tuple[HandSource, Consumer]]:
    """Run a feeder; yield its source and a consumer."""
    source = HandSource()
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder)
    try:
        yield source, consumer
    finally:
        consumer.close()
        feeder.stop()


def epoch_at(consumer: Consumer, newest: int) -> int:
    """Wait until the journal ends at `newest`; return the epoch."""
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == newest)
    return consumer.catch_up(ALL_TRADES)[0].epoch


def test_a_position_is_valid_in_all_epochs_of_its_journal_only(config: Config) -> None:
    epochs: list[int] = []
    for _ in range(2):
        with running_feeder(config) as (source, consumer):
            for account in ("2", "1"):
                source.sink.publish_trade(account, "order", {}, 1)
            epochs.append(epoch_at(consumer, 2 * len(epochs) + 2))
            for topic, newest in ((ALL_TRADES, 2 * len(epochs)), (trade_topic("1"), len(epochs))):
                for epoch in epochs:
                    (state,) = consumer.catch_up(topic, newest, epoch=epoch)
                    assert (state.state, state.seq) == ("live", newest)
                for stranger in (epochs[0] - 10_000, 0):
                    (state,) = consumer.catch_up(topic, 1, epoch=stranger)
                    assert (state.code, state.oldest, state.seq) == ("resume_expired", 0, newest)
                    assert "is not one of this journal" in str(state.error)
                states = [consumer.catch_up(topic, newest, epoch=epoch, exact=True)[0] for epoch in epochs]
                # An exact position must not lie beyond the last event of its epoch.
                assert [state.state for state in states] == ["refused", "live"][-len(epochs) :]


def test_a_replay_after_an_earlier_epoch_comes_in_all_chunks(config: Config) -> None:
    with running_feeder(config) as (source, consumer):
        source.sink.publish_trade("1", "order", {}, 1)
        epoch = epoch_at(consumer, 1)
    with running_feeder(config) as (source, consumer):
        for _ in range(2500):
            source.sink.publish_trade("1", "order", {}, 1)
        epoch_at(consumer, 2501)
        states = consumer.catch_up(ALL_TRADES, 1, epoch=epoch, exact=True)
        assert len(states) > 2
        assert sum(len(frames.decode(state.body or b"")) for state in states) == 2500


def test_only_an_unreadable_past_event_is_left_out(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(journal_path(config.data_path, "hand"), days=30)
    now = time.time_ns() // 1_000_000
    # The second event is not a map, and the third one is empty.
    unsent = [Unsent("1", "order", msgspec.Raw(data)) for data in (b"{}", b"7", b"\xc1", b"{}")]
    journal.append(journal.positions.give(unsent, now))
    journal.close()
    past: list[int] = []

    class Reading(HandSource):
        def start(self, sink: Sink) -> None:
            past.extend(event.seq for _, event in sink.past_trades(0))
            super().start(sink)

    feeder = Feeder(config, Reading())
    feeder.start()
    feeder.stop()
    assert past == [1, 4]
    assert len([record for record in caplog.records if "in the trade journal cannot be read" in record.message]) == 2


def test_a_too_old_position_is_refused_with_the_oldest_valid_one(config: Config) -> None:
    path = journal_path(config.data_path, "hand")
    journal = Journal(path, days=30)
    journal.append(journal.positions.give([Unsent(account, "order", msgspec.Raw(b"{}")) for account in "1221"], 0))
    journal.append(
        journal.positions.give(
            [Unsent(account, "order", msgspec.Raw(b"{}")) for account in "122"], time.time_ns() // 1_000_000
        )
    )
    journal.close()
    feeder = Feeder(config, HandSource())
    feeder.start()
    consumer = Consumer(feeder)
    try:
        wait_for(lambda: consumer.catch_up(ALL_TRADES, after=3)[0].state == "refused")
        (state,) = consumer.catch_up(ALL_TRADES, after=3)
        assert (state.code, state.oldest, state.seq) == ("resume_expired", 4, 7)
        (state,) = consumer.catch_up(trade_topic("2"), after=1)
        assert (state.code, state.oldest, state.seq) == ("resume_expired", 2, 4)
        (state,) = consumer.catch_up(trade_topic("2"), after=2)
        assert (state.state, state.seq, len(frames.decode(state.body or b""))) == ("live", 4, 2)
    finally:
        consumer.close()
        feeder.stop()


def test_a_clock_that_jumps_ahead_deletes_nothing(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HandSource()
    feeder = Feeder(config, source)
    asked: list[int] = []
    prune = Journal.prune

    def note(journal: Journal, time_ms: int) -> bool:
        asked.append(time_ms)
        return prune(journal, time_ms)

    ahead = 400 * 24 * 3600 * 1_000_000_000
    monkeypatch.setattr(Journal, "prune", note)
    monkeypatch.setattr(thread_module, "PRUNE_SECONDS", 0.01)
    jumped = SimpleNamespace(time_ns=lambda: time.time_ns() + ahead, monotonic=clock.monotonic)
    feeder.start()
    consumer = Consumer(feeder)
    try:
        source.sink.publish_trade("1", "order", {}, 1)
        wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 1)
        monkeypatch.setattr(publisher_module, "clock", jumped)
        done = len(asked)
        wait_for(lambda: len(asked) > done + 1)
        assert consumer.catch_up(ALL_TRADES, after=0)[0].state == "live"
        assert asked[-1] * 1_000_000 <= time.time_ns()
    finally:
        consumer.close()
        feeder.stop()


def test_old_events_are_deleted_slice_by_slice(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeder.journal.journal.PRUNE_EVENTS", 2)
    monkeypatch.setattr(thread_module, "PRUNE_SECONDS", 3600.0)
    journal = Journal(journal_path(config.data_path, "hand"), days=30)
    journal.append(journal.positions.give([Unsent("1", "order", msgspec.Raw(b"{}"))] * 9, 0))
    journal.close()
    feeder = Feeder(config, HandSource())
    feeder.start()
    consumer = Consumer(feeder)
    try:
        wait_for(lambda: consumer.catch_up(ALL_TRADES, after=8)[0].state == "refused")
    finally:
        consumer.close()
        feeder.stop()


def test_an_asker_with_little_room_gets_one_chunk(source: HandSource, consumer: Consumer) -> None:
    for number in range(10):
        source.sink.publish_trade("1", "order", {"text": "x" * 1000, "number": number}, 1)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 10)
    for topic in (ALL_TRADES, trade_topic("1")):
        consumer.send(encode_ask(CatchUp(7, [topic], 2, 3500)))
        chunk = decode_reply(consumer.receive())
        assert [event["seq"] for event in frames.decode(chunk.body or b"")] == [3, 4, 5]
        assert (chunk.id, chunk.seq, chunk.more) == (7, 5, True)
        assert decode_reply(ask_and_receive(consumer, STATUS_TOPIC)).topic == STATUS_TOPIC


def test_a_fill_with_an_unencodable_field_is_still_published(
    feeder: Feeder, source: HandSource, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"traded_id": "7", "what": object, 5: [1, {"deep": "\ud800"}], "price": 10.5}
    source.sink.publish_trade("1", "trade", odd, 1)  # type: ignore[arg-type]
    source.sink.publish_trade("1", "trade", {"traded_id": "8"}, -5)
    source.sink.publish_trade("1", "\ud800", {}, 1)
    source.sink.publish_trade("\ud800", "trade", {}, 1)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 2)
    first, second = (event["data"] for event in frames.decode(consumer.catch_up(ALL_TRADES, 0)[0].body or b""))
    assert first == {"traded_id": "7", "what": "<class 'object'>", "5": "[1, {'deep': '\\ud800'}]", "price": 10.5}
    assert second == {"traded_id": "8"}
    assert feeder.publisher.inbox.unencodable == 4
    assert caplog.text.count("has a part that cannot be encoded") == 2
    assert caplog.text.count("cannot be encoded and is dropped") == 2


def test_a_long_replay_does_not_delay_other_questions(source: HandSource, consumer: Consumer) -> None:
    for number in range(5000):
        source.sink.publish_trade("1", "order", {"order_id": number}, 1)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 5000)
    consumer.send(encode_ask(CatchUp(1, [ALL_TRADES], 0)))
    consumer.send(encode_ask(CatchUp(2, [STATUS_TOPIC])))
    states = [decode_reply(consumer.receive()) for _ in range(6)]
    chunks = [state for state in states if state.id == 1]
    assert [chunk.more for chunk in chunks] == [True] * 4 + [False]
    events = [event for chunk in chunks for event in frames.decode(chunk.body or b"")]
    assert [event["data"]["order_id"] for event in events] == list(range(5000))


@pytest.mark.parametrize("topic", ["trade/1/2/", "trade/1"])
def test_a_question_about_half_an_account_is_refused(consumer: Consumer, topic: str) -> None:
    (state,) = consumer.catch_up(topic, after=0)
    assert (state.state, state.code) == ("refused", "bad_request")


def test_events_are_published_and_replayed_while_the_disk_is_full(
    feeder: Feeder, source: HandSource, consumer: Consumer
) -> None:
    listen_to_trades(consumer, feeder, source)
    start = consumer.catch_up(ALL_TRADES)[0].seq
    publisher = feeder.publisher
    limit_disk(publisher, 1)
    for number in range(3):
        source.sink.publish_trade("1", "order", {"order_id": number, "text": "x" * 5000}, 1)
    live: list[Any] = []
    while len(live) < 3:
        event = consumer.frame(consumer.trade).data
        # A probe that was published while the subscription was on its way may arrive late.
        if event["seq"] > start:
            live.append(event)
    assert [event["seq"] for event in live] == [start + 1, start + 2, start + 3]
    assert not any(event.pop("journaled") for event in live)
    (state,) = consumer.catch_up(ALL_TRADES, after=start)
    assert frames.decode(state.body or b"") == [event | {"journaled": False} for event in live]
    limit_disk(publisher, 1_000_000)
    # The events are written within the interval of a heartbeat.
    wait_for(lambda: "journaled" not in frames.decode(consumer.catch_up(ALL_TRADES, after=start)[0].body or b"")[0])
    assert frames.decode(consumer.catch_up(ALL_TRADES, after=start)[0].body or b"") == live


def test_a_failing_disk_and_its_recovery_are_reported_at_once(
    feeder: Feeder, source: HandSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer.market.subscribe(STATUS_TOPIC.encode())
    assert consumer.frame().data["journal"] is None
    # No heartbeat is sent that could report it.
    monkeypatch.setattr(publisher_module, "HEARTBEAT_SECONDS", 3600.0)
    consumer.frame()
    publisher = feeder.publisher
    limit_disk(publisher, 1)
    source.sink.publish_trade("1", "order", {"text": "x" * 5000}, 1)
    status = consumer.frame().data
    assert (status["journal"], status["trade_seq"], status["state"]) == ("database or disk is full", 1, "connecting")
    limit_disk(publisher, 1_000_000)
    save(publisher)
    assert consumer.frame().data["journal"] is None


def test_events_held_by_a_full_disk_are_written_without_heartbeat(
    config: Config, feeder: Feeder, source: HandSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feeder.journal.journal.BATCH_EVENTS", 2)
    stop_periodic_work(consumer, monkeypatch)
    publisher = feeder.publisher
    limit_disk(publisher, 1)
    for _ in range(9):
        source.sink.publish_trade("1", "order", {"text": "x" * 5000}, 1)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 9)
    limit_disk(publisher, 1_000_000)
    save(publisher)
    wait_for(lambda: saved(config) == list(range(1, 10)))


def stop_periodic_work(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop heartbeats, pruning and retries, so that only events make the feeder work."""
    consumer.market.subscribe(STATUS_TOPIC.encode())
    consumer.frame()
    monkeypatch.setattr(publisher_module, "HEARTBEAT_SECONDS", 3600.0)
    monkeypatch.setattr(thread_module, "PRUNE_SECONDS", 3600.0)
    monkeypatch.setattr(thread_module, "RETRY_SECONDS", 3600.0)
    # The last heartbeat.
    consumer.frame()


def test_a_burst_of_any_size_is_written_at_once(
    config: Config, feeder: Feeder, source: HandSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_periodic_work(consumer, monkeypatch)
    with pause(feeder.publisher):
        for number in range(3 * publisher_module.TURN):
            source.sink.publish_trade("1", "order", {"number": number}, 1)
    wait_for(lambda: len(saved(config)) == 3 * publisher_module.TURN)


def test_a_burst_is_committed_at_once_before_it_is_published(
    feeder: Feeder, source: HandSource, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_periodic_work(consumer, monkeypatch)
    publisher = feeder.publisher
    done: list[str] = []

    def trace(journal: Journal) -> None:
        journal._database.set_trace_callback(
            lambda text: done.append(text.removeprefix("PRAGMA ").split("(")[0].split()[0])
        )

    publisher._journal.call(trace, SECONDS)
    transmit = publisher._transmit

    def note(*message: Any) -> None:
        done.append("publish")
        transmit(*message)

    with pause(publisher):
        monkeypatch.setattr(publisher, "_transmit", note)
        for number in range(100):
            source.sink.publish_trade(str(number % 2), "order", {"number": number, "text": "x" * 30_000}, 1)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 100)
    # The log is checkpointed when no event waits for it.
    wait_for(lambda: "wal_checkpoint" in done)
    assert done.index("wal_checkpoint") > done.index("COMMIT")
    # The rows are the events, and the newest number of each account.
    written = ["BEGIN", "INSERT", "INSERT", "INSERT", "COMMIT"]
    assert [what for what in done if what in {*written, "publish"}] == [*written, *["publish"] * 100]


def test_a_new_epoch_is_later_than_the_last_for_any_clock(config: Config) -> None:
    journal = Journal(journal_path(config.data_path, "hand"), days=30)
    before = journal.begin_epoch(time.time_ns() + 3600 * 1_000_000_000)
    journal.close()
    source = HandSource()
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder)
    try:
        epoch = consumer.catch_up(ALL_TRADES)[0].epoch
        # It is later as a float too, but by no more than a float needs.
        assert float(before) < float(epoch) < before + 1000
        listen_to_trades(consumer, feeder, source)
        source.sink.publish_trade("1", "order", {}, 1)
        assert consumer.frame(consumer.trade).epoch == epoch
        want(consumer, source)
        source.publish(QUOTE, {"n": 1})
        assert consumer.frame().epoch == epoch
        consumer.market.subscribe(STATUS_TOPIC.encode())
        assert consumer.frame().data["epoch"] == epoch
    finally:
        consumer.close()
        feeder.stop()


@pytest.mark.parametrize(("setting", "value"), [("journal_days", 2), ("journal_max_mb", 1)])
def test_events_are_kept_as_the_settings_say(config: Config, setting: str, value: int) -> None:
    journal = Journal(journal_path(config.data_path, "hand"), days=30)
    event = Unsent("1", "order", msgspec.Raw(frames.encode({"text": "x" * 4000})))
    now = time.time_ns() // 1_000_000
    for days in (3, 1):
        journal.append(journal.positions.give([event] * 250, now - days * 24 * 3600 * 1000))
    journal.close()
    feeder = Feeder(msgspec.structs.replace(config, **{setting: value}), HandSource())
    feeder.start()
    consumer = Consumer(feeder)
    try:
        # One half of the events is too old, and both halves together are larger than a megabyte.
        wait_for(lambda: consumer.catch_up(ALL_TRADES, after=249)[0].state == "refused")
    finally:
        consumer.close()
        feeder.stop()


def test_the_journal_is_named_after_its_source(feeder: Feeder, tmp_path: Path) -> None:
    assert (tmp_path / "journal-hand.sqlite3").exists()


# -- Downloads


def test_equal_downloads_share_a_job_and_a_late_asker_sees_the_end(source: HandSource, consumer: Consumer) -> None:
    started = consumer.download("600519.SH", "000001.SZ", "600519.SH")
    assert consumer.download("000001.SZ", "600519.SH") == started
    assert source.requests == [DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", "")]
    assert started.topic is not None
    topic = Topic(started.topic)
    consumer.market.subscribe(topic.encode())
    # The job is running and has published no progress yet.
    (state,) = consumer.catch_up(topic)
    assert (state.state, state.body) == ("live", None)
    source.publish(topic, {"finished": 1, "total": 2, "stockcode": "600519.SH", "message": ""})
    source.publish(topic, {"status": "done"})
    wait_for(lambda: consumer.catch_up(topic)[0].seq == 2)
    assert frames.decode(consumer.catch_up(topic)[0].body or b"") == {"status": "done"}
    assert consumer.download("000001.SZ", "600519.SH").topic not in (None, topic)


@pytest.mark.parametrize(
    ("raised", "code"), [(Refused("upstream_refused", "no"), "upstream_refused"), (RuntimeError("boom"), "internal")]
)
def test_a_download_that_the_source_does_not_start_is_refused(
    source: HandSource, consumer: Consumer, raised: Exception, code: str
) -> None:
    source.raises = raised
    refused = consumer.download("600519.SH")
    assert (refused.topic, refused.code) == (None, code)
    source.raises = None
    assert consumer.download("600519.SH").topic is not None
    assert len(source.requests) == 1


def test_a_download_of_an_unknown_period_is_refused(consumer: Consumer) -> None:
    refused = consumer.download("600519.SH", period="3x")
    assert (refused.topic, refused.code) == (None, "unsupported_period")


# -- Lossless


def test_a_lossless_source_waits_for_a_slow_consumer(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 10)
    source = HandSource(lossless=True)
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder, high_water_mark=10)
    other = Consumer(feeder)
    total, waits = 600, []

    def play() -> None:
        for number in range(total):
            if not source.sink.wait_room(5, 0.05):
                waits.append(number)
                assert source.sink.wait_room(5, SECONDS)
            source.publish(QUOTE, {"number": number, "text": "x" * 50_000})

    player = threading.Thread(target=play)
    try:
        want(consumer, source)
        player.start()
        # No consumer reads, so the source has to wait, but questions are still answered.
        wait_for(lambda: waits)
        assert other.catch_up(STATUS_TOPIC)[0].state == "live"
        other.market.subscribe(b"whole/SH/")
        wait_for(lambda: WHOLE in source.held)
        received = [consumer.frame() for _ in range(total)]
        assert [frame.seq for frame in received] == list(range(1, total + 1))
        assert [frame.data["number"] for frame in received] == list(range(total))
    finally:
        feeder.stop()
        player.join(SECONDS)
        consumer.close()
        other.close()
    assert not player.is_alive()


def test_a_lossless_feeder_stops_though_a_consumer_never_reads(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 10)
    monkeypatch.setattr(publisher_module, "DRAIN_SECONDS", 0.05)
    source = HandSource(lossless=True)
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder, high_water_mark=10)
    try:
        want(consumer, source)
        for number in range(600):
            source.publish(QUOTE, {"number": number, "text": "x" * 50_000})
        wait_for(lambda: not source.sink.wait_room(5, 0.05))
    finally:
        feeder.stop()
        consumer.close()
    assert feeder.publisher.failure is None


def test_a_blocked_market_does_not_block_trade_events(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 10)
    monkeypatch.setattr(publisher_module, "DRAIN_SECONDS", 0.0)
    source = HandSource(lossless=True)
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder, high_water_mark=10)
    other = Consumer(feeder)
    try:
        want(consumer, source)
        for number in range(600):
            source.publish(QUOTE, {"number": number, "text": "x" * 50_000})
        wait_for(lambda: not source.sink.wait_room(5, 0.05))
        for number in range(3):
            source.sink.publish_trade("1", "order", {"number": number}, 1)
        wait_for(lambda: other.catch_up(trade_topic("1"))[0].seq == 3)
        assert not source.sink.wait_room(5, 0.01)
    finally:
        feeder.stop()
        consumer.close()
        other.close()


def test_there_is_room_while_few_messages_and_trade_events_wait(source: HandSource, feeder: Feeder) -> None:
    assert source.sink.wait_room(1, SECONDS)
    assert not source.sink.wait_room(0, 0.01)
    with pause(feeder.publisher):
        source.publish(QUOTE, {})
        source.sink.publish_trade("1", "order", {}, 1)
        assert not source.sink.wait_room(2, 0.01)
    assert source.sink.wait_room(1, SECONDS)


# -- A disk that is slow or hangs


class Disk:
    """The disk of a journal, controlled by the test: it stops at a flush, and continues when the test calls `go`."""

    def __init__(self, publisher: Publisher) -> None:
        self.stopped = threading.Event()
        self._goes = threading.Event()
        self._goes.set()
        self._at = "COMMIT"
        self._publisher = publisher
        publisher._journal.call(self._take, SECONDS)

    def _take(self, journal: Journal) -> None:
        self._database = journal._database
        journal._database = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def execute(self, query: str, *values: Any) -> Any:
        if query.startswith(self._at) and not self._goes.is_set():
            self.stopped.set()
            assert self._goes.wait(2 * SECONDS)
        return self._database.execute(query, *values)

    def stop(self, at: str = "COMMIT") -> None:
        self._at = at
        self.stopped.clear()
        self._goes.clear()

    def go(self) -> None:
        self._goes.set()


@pytest.fixture
def disk(feeder: Feeder) -> Iterator[Disk]:
    disk = Disk(feeder.publisher)
    try:
        yield disk
    finally:
        disk.go()


def test_a_slow_flush_delays_its_event_and_no_tick(
    feeder: Feeder, source: HandSource, consumer: Consumer, disk: Disk
) -> None:
    want(consumer, source)
    listen_to_trades(consumer, feeder, source)
    newest = consumer.catch_up(ALL_TRADES)[0].seq
    disk.stop()
    source.sink.publish_trade("1", "order", {"n": 1}, 1)
    assert disk.stopped.wait(SECONDS)
    source.sink.publish_trade("1", "order", {"n": 2}, 1)
    for number in range(100):
        source.publish(QUOTE, {"number": number})
    assert [consumer.frame().data["number"] for _ in range(100)] == list(range(100))
    # Neither the socket nor an answer contains an event that is not on disk.
    assert consumer.catch_up(ALL_TRADES)[0].seq == newest
    assert not consumer.trade.poll(0)
    disk.go()
    events = [consumer.frame(consumer.trade).data for _ in range(2)]
    assert [event["data"]["n"] for event in events] == [1, 2]
    assert not any("journaled" in event for event in events)


def test_the_heartbeat_is_not_ahead_of_the_published_events(
    feeder: Feeder, source: HandSource, consumer: Consumer, disk: Disk
) -> None:
    consumer.market.subscribe(STATUS_TOPIC.encode())
    consumer.frame()
    disk.stop()
    source.sink.publish_trade("1", "order", {}, 1)
    assert disk.stopped.wait(SECONDS)
    assert [(frame.data["trade_seq"], frame.data["journal"]) for frame in (consumer.frame(), consumer.frame())] == [
        (0, None)
    ] * 2
    disk.go()
    wait_for(lambda: consumer.frame().data["trade_seq"] == 1)


@pytest.mark.parametrize("statement", ["SELECT seq, body", "SELECT seq, time_ms", "PRAGMA wal_checkpoint"])
def test_ticks_pass_while_a_read_a_prune_or_a_checkpoint_is_slow(
    feeder: Feeder, source: HandSource, consumer: Consumer, disk: Disk, statement: str
) -> None:
    want(consumer, source)
    disk.stop(at=statement)
    # The log has to be checkpointed as soon as no event waits.
    feeder.publisher._journal.call(lambda journal: setattr(journal, "_carry_at", 0), SECONDS)
    source.sink.publish_trade("1", "order", {}, 1)
    wait_for(lambda: consumer.catch_up(ALL_TRADES)[0].seq == 1 or disk.stopped.is_set())
    consumer.send(encode_ask(CatchUp(99, [ALL_TRADES], 0)))
    assert disk.stopped.wait(SECONDS)
    source.publish(QUOTE, {"number": 1})
    assert consumer.frame().data["number"] == 1
    disk.go()
    state = decode_reply(consumer.receive())
    assert (state.id, state.state, state.seq) == (99, "live", 1)


def test_an_answer_comes_after_the_events_that_it_covers(
    feeder: Feeder, source: HandSource, consumer: Consumer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer of all events, which are published in several turns.
    monkeypatch.setattr("feeder.journal.journal.CHUNK_EVENTS", 5000)
    done: list[object] = []
    publisher = feeder.publisher
    transmit, reply = publisher._transmit, publisher._answers._reply

    def note_event(socket: Any, topic: Topic, seq: int, *rest: Any) -> None:
        done.extend([seq] if topic == trade_topic("1") else [])
        transmit(socket, topic, seq, *rest)

    def note_reply(peer: Any, state: Any) -> None:
        done.append(("answer", state.seq))
        reply(peer, state)

    monkeypatch.setattr(publisher, "_transmit", note_event)
    monkeypatch.setattr(publisher._answers, "_reply", note_reply)
    disk.stop()
    source.sink.publish_trade("1", "order", {}, 1)
    assert disk.stopped.wait(SECONDS)
    for _ in range(3000):
        source.sink.publish_trade("1", "order", {}, 1)
    consumer.send(encode_ask(CatchUp(1, [ALL_TRADES], 0)))
    # The question was sent while the first event was not on disk.
    wait_for(lambda: publisher._answers.looking_up)
    disk.go()
    consumer.receive()
    wait_for(lambda: 3001 in done)
    wait_for(lambda: ("answer", 3001) in done)
    (answer,) = [what for what in done if isinstance(what, tuple)]
    assert done.index(answer) > done.index(answer[1])
    assert [what for what in done if what != answer] == list(range(1, 3002))


def test_events_are_published_marked_while_the_disk_hangs(
    config: Config,
    feeder: Feeder,
    source: HandSource,
    consumer: Consumer,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(publisher_module, "HUNG_SECONDS", 0.3)
    listen_to_trades(consumer, feeder, source)
    consumer.market.subscribe(STATUS_TOPIC.encode())
    start = consumer.catch_up(ALL_TRADES)[0].seq
    disk.stop()
    for number in range(2):
        source.sink.publish_trade("1", "order", {"n": number}, 1)
    events = [consumer.frame(consumer.trade).data for _ in range(2)]
    source.sink.publish_trade("1", "order", {"n": 2}, 1)
    events.append(consumer.frame(consumer.trade).data)
    assert [(event["seq"], event.pop("journaled")) for event in events] == [
        (start + number, False) for number in (1, 2, 3)
    ]
    wait_for(lambda: "the disk has not answered for" in str(consumer.frame().data["journal"]))
    # A question that cannot be answered from the disk is refused at once.
    (state,) = consumer.catch_up(ALL_TRADES, start)
    assert (state.state, state.code, state.seq) == ("refused", "internal", start + 3)
    assert "has not answered for" in str(state.error)
    disk.go()
    wait_for(lambda: (status := consumer.frame().data)["journal"] is None and status["trade_seq"] == start + 3)
    # Later the events are written once, at the positions that were published.
    (state,) = consumer.catch_up(ALL_TRADES, start)
    assert frames.decode(state.body or b"") == events
    source.sink.publish_trade("1", "order", {"n": 3}, 1)
    event = consumer.frame(consumer.trade).data
    assert (event["seq"], event.get("journaled")) == (start + 4, None)
    assert saved(config) == list(range(1, start + 5))
    assert [record.levelname for record in caplog.records if "answer" in record.message] == ["ERROR", "WARNING"]


def test_a_recovered_disk_is_used_even_if_events_never_pause(
    feeder: Feeder, source: HandSource, consumer: Consumer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "HUNG_SECONDS", 0.3)
    listen_to_trades(consumer, feeder, source)
    disk.stop()
    source.sink.publish_trade("1", "order", {}, 1)
    assert consumer.frame(consumer.trade).data["journaled"] is False
    stopping = threading.Event()

    def push() -> None:
        while not stopping.wait(0.002):
            source.sink.publish_trade("1", "order", {}, 1)

    def flush_slowly(query: str, *values: Any) -> Any:
        # Some events arrive during each flush.
        if query == "COMMIT":
            time.sleep(0.05)
        return disk._database.execute(query, *values)

    pushing = threading.Thread(target=push)
    pushing.start()
    try:
        wait_for(lambda: consumer.frame(consumer.trade).data["seq"] > 20)
        monkeypatch.setattr(disk, "execute", flush_slowly)
        disk.go()
        wait_for(lambda: "journaled" not in consumer.frame(consumer.trade).data)
        wait_for(lambda: feeder.publisher._hung_since is None)
    finally:
        stopping.set()
        pushing.join()


def test_events_beyond_the_limit_of_a_hung_disk_are_marked(
    feeder: Feeder, source: HandSource, consumer: Consumer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_module, "MAX_UNSAVED_BYTES", 2000)
    listen_to_trades(consumer, feeder, source)
    start = consumer.catch_up(ALL_TRADES)[0].seq
    disk.stop()
    source.sink.publish_trade("1", "order", {}, 1)
    assert disk.stopped.wait(SECONDS)
    for _ in range(20):
        source.sink.publish_trade("1", "order", {}, 1)
    wait_for(lambda: feeder.publisher._given.newest == start + 21)
    disk.go()
    events = [consumer.frame(consumer.trade).data for _ in range(21)]
    assert [event["seq"] for event in events] == list(range(start + 1, start + 22))
    marks = ["journaled" in event for event in events]
    assert marks == sorted(marks)
    assert 2 < marks.count(True) < 20
    source.sink.publish_trade("1", "order", {}, 1)
    assert "journaled" not in consumer.frame(consumer.trade).data
    # No replay skips the events that were dropped.
    assert consumer.catch_up(ALL_TRADES, start)[0].state == "refused"
    (state,) = consumer.catch_up(ALL_TRADES, start + 21)
    assert [event["seq"] for event in frames.decode(state.body or b"")] == [start + 22]


def test_an_event_left_out_is_marked_even_if_later_ones_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_module, "MAX_UNSAVED_BYTES", 0)
    thread = JournalThread(tmp_path / "journal.sqlite3", 30, 0, lambda _: None)
    events = Positions(0, {}).give([Unsent("1", "order", msgspec.Raw(b"{}"))] * 2, 0)
    assert thread.write(events) == [events[0], events[1].marked()]


def test_a_journal_that_cannot_be_opened_yet_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(thread_module, "HUNG_SECONDS", 0.05)
    thread = JournalThread(tmp_path / "journal.sqlite3", 30, 0, lambda _: None)
    make, goes = thread._make, threading.Event()

    def make_late() -> Journal:
        assert goes.wait(SECONDS)
        return make()

    monkeypatch.setattr(thread, "_make", make_late)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(thread.start, 1)
        try:
            wait_for(lambda: "cannot be opened yet, the disk does not answer" in caplog.text)
        finally:
            goes.set()
        assert opened.result(SECONDS).epoch == 1
    assert thread.stop(1.0, SECONDS)


@pytest.mark.parametrize("drain", [0.0, 1.0])
def test_a_stop_while_a_flush_is_slow_loses_nothing(
    config: Config, feeder: Feeder, source: HandSource, disk: Disk, monkeypatch: pytest.MonkeyPatch, drain: float
) -> None:
    monkeypatch.setattr(publisher_module, "DRAIN_SECONDS", drain)
    disk.stop()
    source.sink.publish_trade("1", "order", {}, 1)
    assert disk.stopped.wait(SECONDS)
    for _ in range(2000):
        source.sink.publish_trade("1", "order", {}, 1)
    stopping = threading.Thread(target=feeder.stop)
    stopping.start()
    wait_for(lambda: feeder.publisher._stopping)
    disk.go()
    stopping.join(SECONDS)
    assert saved(config) == list(range(1, 2002))


def test_a_stop_with_a_hung_disk_ends_and_logs_what_may_be_lost(
    config: Config,
    feeder: Feeder,
    source: HandSource,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(publisher_module, "DRAIN_SECONDS", 0.05)
    monkeypatch.setattr(publisher_module, "CLOSE_WARNING_SECONDS", 0.05)
    monkeypatch.setattr(publisher_module, "CLOSE_SECONDS", 0.1)
    disk.stop()
    source.sink.publish_trade("1", "order", {}, 1)
    assert disk.stopped.wait(SECONDS)
    source.sink.publish_trade("1", "order", {}, 1)
    feeder.stop()
    told = [record.levelname for record in caplog.records if "seq 1 to 2 are not written" in record.message]
    assert told == ["WARNING", "ERROR"]
    # The disk answers at last.
    disk.go()
    feeder.publisher._journal._thread.join(SECONDS)
    assert saved(config) == [1, 2]


def test_past_events_come_in_pieces_to_any_thread(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeder.journal.journal.CHUNK_EVENTS", 2)

    class Asking(HandSource):
        def start(self, sink: Sink) -> None:
            super().start(sink)
            self.past = [event.seq for _, event in sink.past_trades(0)]

    with running_feeder(config) as (source, consumer):
        for _ in range(5):
            source.sink.publish_trade("1", "order", {}, 1)
        epoch_at(consumer, 5)
    source = Asking()
    feeder = Feeder(config, source)
    feeder.start()
    try:
        assert source.past == [1, 2, 3, 4, 5]
        assert [event.seq for _, event in source.sink.past_trades(0)] == [1, 2, 3, 4, 5]
        disk = Disk(feeder.publisher)
        disk.stop(at="SELECT seq, time_ms, body")
        monkeypatch.setattr(inbox_module, "HUNG_SECONDS", 0.1)
        with pytest.raises(TimeoutError):
            list(source.sink.past_trades(0))
        disk.go()
    finally:
        feeder.stop()


def test_a_failure_of_the_journal_thread_ends_the_feeder(
    config: Config, feeder: Feeder, source: HandSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Journal, "append", fail)
    source.sink.publish_trade("1", "order", {}, 1)
    assert feeder.wait(SECONDS)
    assert isinstance(feeder.publisher.failure, RuntimeError)


def test_a_damaged_journal_is_reported_and_the_feeder_starts(config: Config) -> None:
    path = journal_path(config.data_path, "hand")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a database", encoding="utf-8")
    with running_feeder(config) as (source, consumer):
        consumer.market.subscribe(STATUS_TOPIC.encode())
        status = consumer.frame().data
        assert status["journal"] is None
        assert "a damaged journal was set aside" in status["journal_note"]
        (state,) = consumer.catch_up(ALL_TRADES, 5)
        assert (state.code, state.seq) == ("resume_expired", 0)
        want(consumer, source)


@pytest.mark.parametrize("column", ["body", "time_ms", "number"])
def test_a_damaged_event_in_the_journal_does_not_end_the_feeder(config: Config, column: str) -> None:
    with running_feeder(config) as (source, consumer):
        source.sink.publish_trade("1", "order", {}, 1)
        while not consumer.catch_up(ALL_TRADES, 0)[0].seq:
            pass
    path = journal_path(config.data_path, "hand")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '')")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE event SET {column} = NULL")
    with running_feeder(config) as (source, consumer):
        assert list(source.sink.past_trades(0)) == [] or column == "number"
        states = [*consumer.catch_up(ALL_TRADES, 0), *consumer.catch_up("trade/1/", 0)]
        assert {state.code for state in states} <= {"internal", "resume_expired", None}
        assert column != "body" or states[0].code == "internal"
        want(consumer, source)


# -- Beginning and end


def test_messages_queued_before_the_stop_still_arrive(config: Config) -> None:
    source = HandSource()
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder)
    try:
        want(consumer, source)
        consumer.market.subscribe(STATUS_TOPIC.encode())
        consumer.frame()
        for number in range(3000):
            source.publish(QUOTE, {"number": number})
        source.sink.publish_trade("1", "order", {}, 1)
        feeder.stop()
        received = [consumer.frame()]
        while received[-1].topic != STATUS_TOPIC or received[-1].data["reason"] != "feeder_stopped":
            received.append(consumer.frame())
        quotes = [frame.data["number"] for frame in received if frame.topic == QUOTE]
        assert quotes == list(range(3000))
        assert received[-1].data["state"] == "down"
        assert received[-1].data["trade_seq"] == 1
    finally:
        feeder.stop()
        consumer.close()
    assert source.closed


def test_trade_events_not_sent_before_the_end_are_written(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher_module, "DRAIN_SECONDS", 0.0)
    source = HandSource()
    feeder = Feeder(config, source)
    feeder.start()
    with pause(feeder.publisher):
        for number in range(7000):
            source.sink.publish_trade("1", "order", {"number": number}, 1)
        feeder.publisher._stopping = True
    feeder.stop()
    assert saved(config) == list(range(1, 7001))
    assert "7000 trade events are written but not sent" in caplog.text


def test_trade_events_are_sent_before_the_end(config: Config) -> None:
    source = HandSource()
    feeder = Feeder(config, source)
    feeder.start()
    consumer = Consumer(feeder)
    try:
        listen_to_trades(consumer, feeder, source)
        with pause(feeder.publisher):
            for number in range(3000):
                source.sink.publish_trade("1", "order", {"number": number}, 1)
            feeder.publisher._stopping = True
        feeder.stop()
        assert [consumer.frame(consumer.trade).seq for _ in range(3000)] == list(range(1, 3001))
    finally:
        feeder.stop()
        consumer.close()


def test_trade_events_are_saved_though_the_publisher_fails(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HandSource()

    def fail(_: Publisher) -> None:
        source.sink.publish_trade("1", "order", {}, 1)
        raise RuntimeError("out of order")

    monkeypatch.setattr(Publisher, "_publish_status", fail)
    feeder = Feeder(config, source)
    assert feeder.run(threading.Event()) == 1
    assert saved(config) == [1]


def test_callbacks_after_the_end_are_ignored_trade_events_logged(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    source = HandSource()
    feeder = Feeder(config, source)
    feeder.start()
    feeder.stop()
    source.publish(QUOTE, {})
    source.sink.set_state("down")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    source.sink.publish_trade("1", "order", {}, 1)
    assert [record.levelname for record in caplog.records if "after the feeder's end" in record.message] == ["ERROR"]
    assert saved(config) == []


def test_no_thread_is_left_running_after_a_stop(config: Config) -> None:
    before = set(threading.enumerate())
    feeder = Feeder(config, HandSource())
    feeder.start()
    assert set(threading.enumerate()) > before
    feeder.stop()
    assert set(threading.enumerate()) == before


def test_a_port_in_use_is_named_and_the_source_is_not_started(config: Config) -> None:
    with net.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        source = HandSource()
        feeder = Feeder(msgspec.structs.replace(config, ask_addr=address), source)
        with pytest.raises(ConfigError, match=f"ask_addr: cannot listen on {address}"):
            feeder.start()
        assert not hasattr(source, "sink")
        assert feeder.publisher.ended.is_set()


def test_a_source_that_cannot_start_frees_the_ports(config: Config) -> None:
    source = HandSource()
    source.raises = ConfigError("file", "no such file")
    feeder = Feeder(config, source)
    with pytest.raises(ConfigError, match="no such file"):
        feeder.start()
    again = Feeder(
        msgspec.structs.replace(config, market_addr=feeder.publisher.market_addr),
        HandSource(),
    )
    again.start()
    again.stop()


def test_a_publisher_that_fails_ends_the_process_with_an_error(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Publisher) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Publisher, "_publish_status", fail)
    source = HandSource()
    assert Feeder(config, source).run(threading.Event()) == 1
    assert source.closed
    assert any(record.levelno == logging.CRITICAL and record.exc_info for record in caplog.records)


def test_a_feeder_runs_until_it_is_told_to_stop(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    stop = threading.Event()
    source = HandSource()
    feeder = Feeder(config, source)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(feeder.run(stop)))
    with caplog.at_level(logging.INFO, "feeder.app"):
        thread.start()
        try:
            wait_for(lambda: hasattr(source, "sink"))
        finally:
            stop.set()
            thread.join(SECONDS)
    assert codes == [0]
    assert source.closed
    started, stopped = [record.getMessage() for record in caplog.records if record.name == "feeder.app"]
    assert "source hand (simulated), market tcp://127.0.0.1:" in started
    assert stopped.startswith("feeder stopped")


@pytest.mark.parametrize(("importable", "name"), [(True, "xtquant"), (False, "sim")])
def test_auto_selects_xtquant_where_it_can_be_imported(
    config: Config, monkeypatch: pytest.MonkeyPatch, importable: bool, name: str
) -> None:
    monkeypatch.setattr("feeder.xt.sdk.importable", lambda: importable)
    assert make_source(msgspec.structs.replace(config, source="auto")).name == name


def test_the_simulator_is_selected_by_name(config: Config) -> None:
    source = make_source(msgspec.structs.replace(config, source="sim"))
    assert (source.name, source.simulated) == ("sim", True)
