"""Random payloads through xtquant's real Python layer: the feeder continues whatever native code passes to it."""

from __future__ import annotations

import datetime
import logging
import math
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import native
import pytest
import zmq

from feeder.app import Feeder
from feeder.source import FeedState
from feeder.xt.quotes import intervals, newest
from feeder.xt.quotes.session import XtQuote
from qmt_bridge import Frame
from qmt_bridge.config import Config
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire import frames
from qmt_bridge.wire.topics import FormulaSpec, Topic, formula_topic, l2_topic, parse_topic, quote_topic, whole_topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.sink import Recording
from tests.support.waiting import SLOWNESS, wait_for

SECONDS = 40.0 * SLOWNESS
CODES = ("600519.SH", "600000.SH", "688981.SH")
TOPICS = (
    quote_topic("600519.SH"),
    quote_topic("600519.SH", "1m"),
    l2_topic("600519.SH"),
    whole_topic("SH"),
    formula_topic(FormulaSpec("MA", "600519.SH")),
)

# Messages published, and faults counted.
Outcome = tuple[int, int]


class Recorder(Recording):
    """A Sink that counts what it is told to publish, and keeps what cannot be encoded, which the publisher counts."""

    def __init__(self) -> None:
        super().__init__()
        self.published: Counter[Topic] = Counter()
        self.accepted: list[Topic] = []
        self.unfit: list[object] = []

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        try:
            frames.decode(frames.encode(body))
        except Exception:
            self.unfit.append(body)
        else:
            self.published[topic] += 1

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        self.publish(topic, ticks, received_ns)

    def accept(self, topic: Topic) -> None:
        self.accepted.append(topic)

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        assert state == "up", reason


@pytest.fixture
def terminal() -> Iterator[native.Terminal]:
    with native.installed() as terminal:
        yield terminal
        assert terminal.escaped == []


class Payloads:
    """Invents payloads: those that BSON can hold, and those that it cannot."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        from xtquant.xtbson import Int64
        from xtquant.xtbson.bson37 import binary, code, dbref, decimal128, max_key, min_key, objectid, regex, timestamp

        dice = self.random
        when = datetime.datetime(2024, 12, 2, 9, 30)
        # Every type of the BSON specification that has a plain form.
        self.plain: list[Callable[[], Any]] = [
            lambda: dice.choice([0.0, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf, dice.random()]),
            lambda: dice.choice(["", "贵州茅台", "\0", "\U0001f600", "x" * 300]),
            lambda: dice.choice([True, False, None]),
            lambda: dice.choice([0, -1, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63)]),
            lambda: Int64(dice.randrange(-(2**40), 2**40)),
            lambda: dice.randbytes(5),
        ]
        # The types of the BSON specification that have no plain form.
        self.strange: list[Callable[[], Any]] = [
            lambda: binary.Binary(b"\x80", 0x80),
            lambda: binary.Binary.from_uuid(uuid.UUID(int=dice.getrandbits(128))),
            lambda: objectid.ObjectId(dice.randbytes(12)),
            lambda: when + datetime.timedelta(milliseconds=dice.randrange(10**9)),
            lambda: regex.Regex("^6", "i"),
            lambda: dbref.DBRef("ticks", dice.randrange(9)),
            lambda: code.Code("f()", {"x": 1} if dice.random() < 0.5 else None),
            lambda: timestamp.Timestamp(dice.randrange(2**31), 1),
            lambda: decimal128.Decimal128("1.10"),
            min_key.MinKey,
            max_key.MaxKey,
        ]
        # Values that a callback may receive where native code does not encode.
        self.unencodable: list[Callable[[], Any]] = [
            lambda: 2**64,
            lambda: -(2**200),
            lambda: "\ud800",
            lambda: {1, 2},
            lambda: {1: 2, "1": 3},
            lambda: {(1, 2): 3},
            lambda: (1, 2.5),
            lambda: 1j,
            object,
        ]

    def next(self) -> tuple[object, bool]:
        """Return a payload, and whether it is to go through BSON."""
        encoded = self.random.random() < 0.7
        if not encoded and self.random.random() < 0.1:
            # xtdata treats bytes as BSON, and itself drops bytes that are not BSON.
            if self.random.random() < 0.3:
                return self.random.choice([b"", b"\5\0\0\0", b"\x0e\0\0\0\2a\0\2\0\0\0\xb9\0\0"]), False
            return self.random.choice([None, 7, math.nan, "text", [], [{}], (), CODES]), False
        return self._map(encoded), encoded

    def _map(self, encoded: bool) -> dict[str, object]:
        codes = self.random.sample(CODES, *self.random.choices(range(4), (1, 20, 10, 10)))
        return {code: self._records(code, encoded) for code in codes}

    def _records(self, code: str, encoded: bool) -> object:
        match self.random.randrange(8):
            case 0:
                return self._value(encoded, 3)
            case 1:
                return []
            case 2:
                # This is deeper than the BSON decoder allows: xtdata would drop it before our callback.
                return self._nested(20 if encoded else 600)
            case 3:
                return [self._tick(code, encoded), self._value(encoded, 2)]
            case 4:
                return self._tick(code, encoded)
            case _:
                return [self._tick(code, encoded) for _ in range(self.random.randrange(1, 4))]

    def _tick(self, code: str, encoded: bool) -> dict[str, object]:
        tick = {"time": 1733118954000, "lastPrice": 10.5, "askPrice": [10.5, 10.6], "volume": 758613}
        if self.random.random() < 0.5:
            tick[self.random.choice(["time", "lastPrice", "askPrice", "不认识"])] = self._value(encoded, 3)
        return tick

    def _value(self, encoded: bool, depth: int) -> Any:
        dice = self.random.random()
        if depth and dice < 0.15:
            return [self._value(encoded, depth - 1) for _ in range(self.random.randrange(4))]
        if depth and dice < 0.3:
            return {f"k{number}": self._value(encoded, depth - 1) for number in range(self.random.randrange(4))}
        if dice < 0.7:
            return self.random.choice(self.plain)()
        if encoded or dice < 0.85:
            return self.random.choice(self.strange)()
        return self.random.choice(self.unencodable)()

    @staticmethod
    def _nested(depth: int) -> object:
        value: object = 1.0
        for level in range(depth):
            value = [value] if level % 2 else {"in": value}
        return value


def has_records(feed: native.Feed, payload: object) -> bool:
    """Return whether `payload` has records that are published or counted."""
    return feed.kind == "formula" or not isinstance(payload, dict) or any(value != [] for value in payload.values())


@pytest.mark.parametrize("seed", range(4))
def test_each_random_payload_is_delivered_or_counted(
    terminal: native.Terminal,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    # Random times jump back. Another test covers records that are out of order.
    monkeypatch.setattr(newest, "SETTLE_NS", 0)
    total = 2500
    sink, source, payloads = Recorder(), XtQuote(Config(xt_silence=0.0)), Payloads(seed)
    outcomes: list[tuple[native.Feed, object, Outcome]] = []

    def count(feed: native.Feed, payload: object, given: object) -> None:
        assert feed.callback is not None
        published, failed = sink.published.total(), source.failed + len(sink.unfit)
        feed.callback(given)
        outcome = sink.published.total() - published, source.failed + len(sink.unfit) - failed
        outcomes.append((feed, payload, outcome))

    try:
        for topic in TOPICS:
            source.subscribe(topic, parse_topic(topic))
        source.start(sink)
        wait_for(lambda: len(sink.accepted) == len(TOPICS), "the subscriptions")
        feeds = terminal.feeds()
        for _ in range(total):
            payload, encoded = payloads.next()
            feed = payloads.random.choice(feeds)
            terminal.dispatch(partial(count, feed, payload), payload, bson=encoded)  # type: ignore[arg-type]
        wait_for(lambda: len(outcomes) == total, "all payloads")
        for feed in feeds:
            terminal.dispatch(partial(count, feed, {}), {"600519.SH": native.tick("600519.SH", 1)})
        wait_for(lambda: len(outcomes) == total + len(feeds), "good ticks after all")
    finally:
        source.close()
    assert [outcome for _, _, outcome in outcomes[total:]] == [(1, 0)] * len(feeds)

    del outcomes[total:]
    empty = [(feed, payload) for feed, payload, outcome in outcomes if outcome == (0, 0)]
    assert [payload for feed, payload in empty if has_records(feed, payload)] == []
    # The fit records of a payload are delivered, and the others are counted.
    delivered = sum(published > 0 for _, _, (published, _) in outcomes)
    partly = [outcome for _, _, outcome in outcomes if min(outcome) > 0]
    counted = sum(published == 0 and faults > 0 for _, _, (published, faults) in outcomes)
    assert delivered + counted + len(empty) == total
    # Both cases are frequent, and some payloads were delivered in part.
    assert delivered > total // 5 < counted + len(partly)
    assert partly
    # Invalid text is the only fault that is found by the encoder alone.
    assert all("\\ud800" in repr(body) for body in sink.unfit)

    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    kinds = Counter((record.args, record.exc_info and record.exc_info[0]) for record in logged)
    assert {record.getMessage().split(" of ")[0] for record in logged} == {"data"}
    assert set(kinds.values()) == {1}
    assert len(kinds) <= len(TOPICS) * 5
    # No exception of ours reached xtdata's wrapper, which would print it.
    undecoded = sum(isinstance(payload, bytes) for _, payload, _ in outcomes)
    assert capsys.readouterr().out.count("callback error") == undecoded > 0


def test_a_feeder_delivers_after_random_payloads_of_eight_threads(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
    terminal.dispatchers = 8
    payloads = Payloads(4)
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path), xt_silence=0.0)
    source = XtQuote(config)
    feeder = Feeder(config, source)
    feeder.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        consumer = connect_subscriber(context, feeder.publisher.market_addr, None)
        consumer.rcvtimeo = int(SECONDS * 1000)
        for topic in TOPICS:
            consumer.subscribe(topic)
        wait_for(lambda: source.upstream() == len(TOPICS), "the subscriptions")
        for _ in range(2000):
            payload, encoded = payloads.next()
            feed = payloads.random.choice(terminal.feeds())
            assert feed.callback is not None
            terminal.dispatch(feed.callback, payload, bson=encoded)  # type: ignore[arg-type]
        marker = native.tick("688981.SH", 1) | {"last": True}
        for feed in terminal.feeds():
            assert feed.callback is not None
            terminal.dispatch(feed.callback, {"688981.SH": marker})
        waiting = set(TOPICS)
        while waiting:
            frame = Frame.from_parts(consumer.recv_multipart())
            if "'last': True" in str(frame.data):
                waiting.discard(frame.topic)
        assert source.failed > 0
        assert feeder.publisher.failure is None
    finally:
        context.destroy(linger=0)
        feeder.stop()
