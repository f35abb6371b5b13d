"""`subscribe` against a whole feeder on free ports; the source is this file's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from feeder.app import Feeder
from feeder.source import DownloadRequest, Sink
from qmt_bridge import consumer as consumer_module
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import BadCode, BadRequest, ConfigError, Refused, WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import TopicState, ask_decoder, reply_encoder
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Kind, Topic, TopicParts, quote_topic, whole_topic

QUOTE = quote_topic("600519.SH")
OTHER = quote_topic("000001.SZ")
WHOLE = whole_topic("SH")
SECONDS = 10.0


class Greeter:
    """A source that publishes two values of every topic at once and refuses one code."""

    name = "greeter"
    simulated = True
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.TRADE))
    lossless = False

    def __init__(self) -> None:
        self.sink: Sink
        self.subscribed = threading.Event()

    def start(self, sink: Sink) -> None:
        self.sink = sink
        sink.set_state("up")

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        if parts.name == "999999.SH":
            raise Refused("unknown_symbol", "no such code")
        for number in (1, 2):
            self.publish(topic, parts.name, number)
        self.subscribed.set()

    def publish(self, topic: Topic, code: str, number: int) -> None:
        self.sink.publish(topic, {code: {"number": number}}, 1)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        pass

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        raise Refused("upstream_refused", "no downloads")

    def upstream(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Addresses(msgspec.Struct):
    market_addr: str
    trade_addr: str
    ask_addr: str

    def subscribe(self, *topics: str, timeout: float | None = SECONDS, **options: bool | str) -> Iterator[Frame]:
        return subscribe(*topics, timeout=timeout, **msgspec.structs.asdict(self), **options)  # type: ignore[arg-type]


def addresses(feeder: Feeder) -> Addresses:
    publisher = feeder.publisher
    return Addresses(publisher.market_addr, publisher.trade_addr, publisher.ask_addr)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    local = "tcp://127.0.0.1:0"
    return Config(market_addr=local, trade_addr=local, ask_addr=local, data_dir=str(tmp_path))


@pytest.fixture
def source() -> Greeter:
    return Greeter()


@pytest.fixture
def feed(config: Config, source: Greeter) -> Iterator[Addresses]:
    feeder = Feeder(config, source)
    feeder.start()
    try:
        yield addresses(feeder)
    finally:
        feeder.stop()


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    taken = [next(frames) for _ in range(count)]
    frames.close()  # type: ignore[attr-defined]  # a generator
    return taken


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.001)


def test_the_shortest_program_prints_ticks(feed: Addresses) -> None:
    for frame in feed.subscribe(QUOTE):
        assert frame.topic == QUOTE
        if frame.seq == 2:
            assert frame.data == {"600519.SH": {"number": 2}}
            break


def test_seq_never_goes_back_whatever_the_answer_and_the_news_do(feed: Addresses, source: Greeter) -> None:
    first = feed.subscribe(QUOTE)
    frame = next(first)
    stop = threading.Event()

    def flood() -> None:
        number = 3
        while not stop.wait(0.0002):
            source.publish(QUOTE, "600519.SH", number)
            number += 1

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        for _ in range(10):
            late = take(feed.subscribe(QUOTE), 20)
            seqs = [frame.seq for frame in late]
            assert seqs == list(range(seqs[0], seqs[0] + 20))
            assert (late[0].received_ns, late[1].received_ns) == (0, 1)
            assert all(one.data == {"600519.SH": {"number": one.seq}} for one in late)
    finally:
        stop.set()
        flooder.join(SECONDS)
        first.close()  # type: ignore[attr-defined]
    assert frame.seq in (1, 2)


def test_a_late_joiner_of_a_market_begins_with_every_code(feed: Addresses, source: Greeter) -> None:
    early = feed.subscribe(WHOLE)
    next(early)
    ticks = {f"{number:06}.SH": "x" * 1000 for number in range(1000)}
    source.sink.publish_whole(WHOLE, ticks, 1)
    while "000999.SH" not in next(early).data:
        pass
    merged: dict[str, object] = {}
    late = take(feed.subscribe(WHOLE), 2)
    for frame in late:
        merged |= frame.data
    assert merged == ticks | {"SH": {"number": 2}}
    assert late[0].seq == late[1].seq
    early.close()  # type: ignore[attr-defined]


def test_without_snapshot_only_news_arrives(feed: Addresses, source: Greeter) -> None:
    early = feed.subscribe(QUOTE)
    next(early)
    late = feed.subscribe(QUOTE, snapshot=False)
    stop = threading.Event()

    def flood() -> None:
        while not stop.wait(0.001):
            source.publish(QUOTE, "600519.SH", 0)

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        assert next(late).received_ns == 1
    finally:
        stop.set()
        flooder.join(SECONDS)
        early.close()  # type: ignore[attr-defined]
        late.close()  # type: ignore[attr-defined]


def test_a_refused_topic_is_named(feed: Addresses) -> None:
    with pytest.raises(Refused, match=r"quote/999999\.SH/tick/: no such code") as refused:
        list(feed.subscribe(quote_topic("999999.SH")))
    assert refused.value.code == "unknown_symbol"


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        ("quote/600519/tick/", BadCode),
        ("quote/600519.SH/3x/", BadRequest),
        ("nothing/", WireError),
        ("quote", WireError),
        ("", WireError),
    ],
)
def test_a_topic_that_cannot_be_is_refused_before_anything_is_opened(topic: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        subscribe(topic)


def test_no_topic_is_no_request() -> None:
    with pytest.raises(WireError, match="no topic"):
        subscribe()


def test_missing_keys_are_told_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="curve_dir"):
        subscribe(QUOTE, curve_dir=str(tmp_path))


def test_a_prefix_listens_to_what_others_asked_for(feed: Addresses, source: Greeter) -> None:
    listener = feed.subscribe("quote/", "status/")
    assert next(listener).topic == STATUS_TOPIC
    asker = feed.subscribe(QUOTE)
    next(asker)
    assert any(next(listener).topic == QUOTE for _ in range(10))
    for one in (asker, listener):
        one.close()  # type: ignore[attr-defined]


def test_trade_events_come_over_their_own_socket_beside_quotes(feed: Addresses, source: Greeter) -> None:
    both = feed.subscribe(ALL_TRADES, QUOTE)
    stop = threading.Event()

    def trade() -> None:
        while not stop.wait(0.001):
            source.sink.publish_trade("1", "order", {"order_id": 1}, 1)

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        seen: list[Frame] = []
        while {frame.topic for frame in seen} != {QUOTE, "trade/1/"}:
            seen.append(next(both))
    finally:
        stop.set()
        trader.join(SECONDS)
        both.close()  # type: ignore[attr-defined]
    (event, *_) = [frame for frame in seen if frame.topic == "trade/1/"]
    assert event.data == {"type": "order", "seq": event.seq, "data": {"order_id": 1}}


def test_iteration_ends_after_silence(feed: Addresses) -> None:
    assert [frame.seq for frame in feed.subscribe(QUOTE, timeout=0.3)][-1] == 2


def test_iteration_over_a_feeder_that_is_away_ends_after_silence() -> None:
    away = Addresses("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1")
    assert list(away.subscribe(QUOTE, timeout=0.05)) == []


def test_a_consumer_that_came_before_its_feeder_is_served(config: Config) -> None:
    first = Feeder(config, Greeter())
    first.start()
    where = addresses(first)
    first.stop()
    received: list[Frame] = []
    thread = threading.Thread(target=lambda: received.append(next(where.subscribe(QUOTE))))
    thread.start()
    feeder = Feeder(msgspec.structs.replace(config, **msgspec.structs.asdict(where)), Greeter())
    feeder.start()
    try:
        thread.join(SECONDS)
    finally:
        feeder.stop()
    assert [frame.topic for frame in received] == [QUOTE]


def test_a_consumer_survives_a_restart_of_the_feeder(config: Config) -> None:
    feeder = Feeder(config, Greeter())
    feeder.start()
    where = addresses(feeder)
    frames = where.subscribe(QUOTE)
    try:
        before = next(frames)
        feeder.stop()
        feeder = Feeder(msgspec.structs.replace(config, **msgspec.structs.asdict(where)), Greeter())
        feeder.start()
        after = next(frame for frame in frames if frame.epoch != before.epoch)
        assert after.seq in (1, 2)
    finally:
        frames.close()  # type: ignore[attr-defined]
        feeder.stop()


def test_a_topic_goes_live_when_no_answer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "ANSWER_SECONDS", 0.05)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    local = "tcp://127.0.0.1:0"
    market = sockets.bind_publisher(context, "market_addr", local, None)
    mute = sockets.bind_router(context, local, None)
    market_addr, ask_addr = (str(one.getsockopt_string(zmq.LAST_ENDPOINT)) for one in (market, mute))
    received: list[Frame] = []

    def consume() -> None:
        frames = subscribe(QUOTE, market_addr=market_addr, ask_addr=ask_addr, timeout=SECONDS)
        received.append(next(frames))
        frames.close()  # type: ignore[attr-defined]

    thread = threading.Thread(target=consume)
    try:
        thread.start()
        assert market.poll(int(SECONDS * 1000))
        market.send_multipart(Frame(QUOTE, 7, 1, 1, 1, frames.encode({})).to_parts())
        thread.join(SECONDS)
        assert [frame.seq for frame in received] == [1]
        # It did ask.
        assert mute.poll(int(SECONDS * 1000))
        question = ask_decoder.decode(mute.recv_multipart()[-1])
        assert question.topics == [QUOTE]  # type: ignore[union-attr]
    finally:
        context.destroy(linger=0)
        thread.join(SECONDS)


def test_a_pending_topic_is_asked_about_until_it_is_decided() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    local = "tcp://127.0.0.1:0"
    market = sockets.bind_publisher(context, "market_addr", local, None)
    router = sockets.bind_router(context, local, None)
    market_addr, ask_addr = (str(one.getsockopt_string(zmq.LAST_ENDPOINT)) for one in (market, router))
    raised: list[Refused] = []

    def consume() -> None:
        try:
            next(subscribe(QUOTE, OTHER, market_addr=market_addr, ask_addr=ask_addr, timeout=SECONDS))
        except Refused as exc:
            raised.append(exc)

    thread = threading.Thread(target=consume)
    try:
        thread.start()
        asked = []
        for state in ("pending", "refused"):
            assert router.poll(int(SECONDS * 1000))
            peer, payload = router.recv_multipart()
            question = ask_decoder.decode(payload)
            asked.append(question.topics)  # type: ignore[union-attr]
            answer = TopicState(question.id, QUOTE, state, error="no", code="not_entitled")  # type: ignore[arg-type]
            router.send_multipart([peer, reply_encoder.encode(answer)])
        thread.join(SECONDS)
        assert asked == [[OTHER, QUOTE], [QUOTE]]
        assert [refused.code for refused in raised] == ["not_entitled"]
    finally:
        context.destroy(linger=0)
        thread.join(SECONDS)


def test_with_curve_the_allowed_consumer_is_served_and_a_stranger_is_not(config: Config, tmp_path: Path) -> None:
    allowed, foreign = tmp_path / "allowed", tmp_path / "foreign"
    sockets.make_keys(allowed)
    sockets.make_keys(foreign)
    # The stranger knows the feeder, but the feeder does not know the stranger.
    (foreign / "feeder.key").write_bytes((allowed / "feeder.key").read_bytes())
    feeder = Feeder(msgspec.structs.replace(config, curve_dir=str(allowed)), Greeter())
    feeder.start()
    try:
        where = addresses(feeder)
        assert list(where.subscribe(QUOTE, curve_dir=str(foreign), timeout=0.5)) == []
        assert next(where.subscribe(QUOTE, curve_dir=str(allowed))).topic == QUOTE
    finally:
        feeder.stop()
