"""`subscribe` against a whole feeder on free ports; the source is this file's own."""

from __future__ import annotations

import ast
import math
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from feeder.app import Feeder
from qmt_bridge import consumer as consumer_module
from qmt_bridge import sequence, silence, sockets
from qmt_bridge.addresses import ipc_folder
from qmt_bridge.config import Config
from qmt_bridge.consumer import subscribe
from qmt_bridge.curve.key_folder import make_keys
from qmt_bridge.errors import BadCode, BadRequest, ConfigError, Refused, WireError
from qmt_bridge.handshakes import Notice, Trouble
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import TopicState, decode_ask, encode_reply
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Topic, quote_topic, whole_topic
from tests.support.foreigner import foreigner
from tests.support.greeter import (
    SECONDS,
    Addresses,
    Greeter,
    addresses,
    take,
    take_until_live,
    trade_once,
    trading,
)
from tests.support.paths import ROOT
from tests.support.ports import ANY_ADDRESSES, ANY_PORT
from tests.support.waiting import SLOWNESS, wait_for

QUOTE = quote_topic("600519.SH")
OTHER = quote_topic("000001.SZ")
WHOLE = whole_topic("SH")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(**ANY_ADDRESSES, data_dir=str(tmp_path))


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


def test_the_shortest_program_prints_ticks(feed: Addresses) -> None:
    for frame in feed.subscribe(QUOTE):
        assert frame.topic == QUOTE
        if frame.seq == 2:
            assert frame.data == {"600519.SH": {"number": 2}}
            break


def test_seq_never_goes_back(feed: Addresses, source: Greeter) -> None:
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
            told: list[int | None] = []
            late = take(feed.subscribe(QUOTE, on_gap=lambda _, missed, told=told: told.append(missed)), 20)
            seqs = [frame.seq for frame in late]
            # The answer may be older than the first frame: the two come by two sockets. Then the gap is told.
            hole = seqs[1] - seqs[0] - 1
            assert told == [hole] * (hole > 0)
            assert seqs[1:] == list(range(seqs[0] + hole + 1, seqs[0] + hole + 20))
            assert hole >= 0
            assert (late[0].received_ns, late[1].received_ns) == (0, 1)
            assert all(one.data == {"600519.SH": {"number": one.seq}} for one in late)
    finally:
        stop.set()
        flooder.join(SECONDS)
        first.close()  # type: ignore[attr-defined]
    assert frame.seq in (1, 2)


def test_a_late_joiner_of_a_market_gets_every_code_first(feed: Addresses, source: Greeter) -> None:
    early = feed.subscribe(WHOLE)
    next(early)
    ticks = {f"{number:06}.SH": "x" * 1000 for number in range(1000)}
    source.sink.publish_whole(WHOLE, ticks, 1)
    while "000999.SH" not in next(early).data:
        pass
    merged: dict[str, object] = {}
    # The snapshot comes in batches.
    late: list[Frame] = []
    for frame in feed.subscribe(WHOLE):
        merged |= frame.data
        late.append(frame)
        if len(merged) == len(ticks) + 1:
            break
    assert merged == ticks | {"SH": {"number": 2}}
    assert len({frame.seq for frame in late}) == 1
    early.close()  # type: ignore[attr-defined]


def test_without_snapshot_only_new_frames_arrive(feed: Addresses, source: Greeter) -> None:
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
def test_an_impossible_topic_is_refused_before_connecting(topic: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        subscribe(topic)


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        pytest.param("quote/600519/tick", BadCode, id="code-and-slash"),
        pytest.param("quote/600519/", BadCode, id="code-alone"),
        pytest.param("quote/600519.SH/1min", BadRequest, id="period-and-slash"),
        pytest.param("quote/600519.SH/tick/x", WireError, id="too-long"),
        pytest.param("quote/600519.SH/tick//", WireError, id="two-slashes"),
        pytest.param("whole/SH/tick", WireError, id="too-long-for-a-market"),
        pytest.param("l2/600519/", BadCode, id="depth"),
    ],
)
def test_a_prefix_that_no_topic_begins_with_is_refused(topic: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        subscribe(topic)


@pytest.mark.parametrize(
    "topic", ["quote/", "quote/6", "quote/600519.SH/", "quote/600519.SH/1", "whole/", "l2/6", "trade/"]
)
def test_a_prefix_that_some_topic_begins_with_is_allowed(topic: str, feed: Addresses) -> None:
    assert list(feed.subscribe(topic, timeout=0.01)) == []


def test_a_topic_without_its_last_slash_is_taken_as_meant(feed: Addresses) -> None:
    told: list[Notice] = []
    frame = take(feed.subscribe(QUOTE[:-1], on_notice=told.append), 1)[0]
    assert frame.topic == QUOTE
    assert [notice.reason for notice in told] == ["corrected"]
    assert QUOTE in told[0].text


def test_a_prefix_that_brings_nothing_is_told(feed: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "FIRST_SECONDS", 0.1)
    told: list[Notice] = []

    def is_told() -> bool:
        # A machine that stands still may take all of the time of one iteration.
        assert list(feed.subscribe("quote/", timeout=1.5, on_notice=told.append)) == []
        return bool(told)

    wait_for(is_told, "the notice")
    assert [notice.reason for notice in told] == ["silent"]


def test_six_thousand_topics_are_served(feed: Addresses) -> None:
    topics = {quote_topic(f"{number:06}.SZ") for number in range(6000)}
    heard = set()
    frames = feed.subscribe(*topics)
    for frame in frames:
        heard.add(frame.topic)
        if heard == topics:
            break
    frames.close()  # type: ignore[attr-defined]  # a generator
    assert heard == topics


def test_no_topic_is_no_request() -> None:
    with pytest.raises(WireError, match="no topic"):
        subscribe()


def test_missing_keys_are_told_before_connecting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="curve_dir"):
        subscribe(QUOTE, curve_dir=str(tmp_path))


def test_a_prefix_gets_what_other_programs_asked_for(feed: Addresses, source: Greeter) -> None:
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


def test_trade_events_are_replayed_while_new_ones_arrive(feed: Addresses, source: Greeter) -> None:
    trade_once(source, 4000)
    take(feed.subscribe(ALL_TRADES, after=0), 4000)
    with trading(source, "1", "2"):
        first = take_until_live(feed.subscribe(ALL_TRADES, after=0), 100)
        rest = take_until_live(feed.subscribe(ALL_TRADES, after=2000), 100)
    for got, begin in ((first, 1), (rest, 2001)):
        assert [frame.data["seq"] for frame in got] == list(range(begin, begin + len(got)))
        assert (got[0].topic, got[0].seq) == (ALL_TRADES, begin), "out of the journal"


@pytest.mark.parametrize("topic", [ALL_TRADES, "trade/1/"])
def test_trade_events_from_a_moment_are_replayed_then_live(feed: Addresses, source: Greeter, topic: str) -> None:
    trade_once(source, 100)
    take(feed.subscribe(ALL_TRADES, after=0), 100)
    moment = clock.time_ns() // 10**6 + 1
    wait_for(lambda: clock.time_ns() // 10**6 >= moment, "the next millisecond")
    trade_once(source, 3000)
    take(feed.subscribe(ALL_TRADES, after=100), 3000)
    gaps: list[Topic] = []
    with trading(source, "1"):
        got = take_until_live(feed.subscribe(topic, start=moment, on_gap=lambda topic, _: gaps.append(topic)), 100)
    assert [frame.data["seq"] for frame in got] == list(range(101, 101 + len(got)))
    assert len(got) > 3000
    assert gaps == []


def test_journal_that_began_after_the_start_is_told(feed: Addresses, source: Greeter) -> None:
    trade_once(source, 3)
    gaps: list[tuple[Topic, int | None]] = []
    start = "2020-01-02T09:30:00"
    got = take(feed.subscribe(ALL_TRADES, start=start, on_gap=lambda *gap: gaps.append(gap)), 3)
    assert [frame.seq for frame in got] == [1, 2, 3]
    assert gaps == [(ALL_TRADES, None)]


def test_start_and_after_are_two_places_to_begin_at(feed: Addresses) -> None:
    with pytest.raises(BadRequest):
        feed.subscribe(ALL_TRADES, start="09:30", after=1)


def test_each_account_has_its_own_positions(feed: Addresses, source: Greeter) -> None:
    for account in ("1", "2"):
        trade_once(source, 1000, account)
    take(feed.subscribe(ALL_TRADES, after=0), 2000)
    with trading(source, "1", "2"):
        got = take(feed.subscribe("trade/1/", "trade/2/", after={"trade/1/": 0, "trade/2/": 500}), 3000)
    for topic, begin in (("trade/1/", 1), ("trade/2/", 501)):
        events = [frame for frame in got if frame.topic == topic]
        assert len(events) > 100
        assert [frame.seq for frame in events] == list(range(begin, begin + len(events)))
        assert [frame.data["data"]["order_id"] for frame in events] == [(frame.seq - 1) % 1000 for frame in events]


@pytest.mark.parametrize("topic", [ALL_TRADES, "trade/1/"])
def test_an_event_published_while_disconnected_is_replayed(
    config: Config, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the heartbeats of the new epoch may show the loss.
    monkeypatch.setattr(sequence, "AGAIN_SECONDS", math.inf)
    source = Greeter()
    feeder = Feeder(config, source)
    feeder.start()
    where = addresses(feeder)
    fixed = msgspec.structs.replace(config, **msgspec.structs.asdict(where))
    events = where.subscribe(topic, after=0)
    try:
        trade_once(source, 1)
        assert next(events).data["seq"] == 1
        # By then a heartbeat of this epoch has reached the consumer, which reads it with the next event.
        take(where.subscribe(STATUS_TOPIC), 3)
        trade_once(source, 1)
        assert next(events).data["seq"] == 2
        feeder.stop()
        # A feeder with the same journal on other addresses, which the consumer does not know.
        source = Greeter()
        feeder = Feeder(config, source)
        feeder.start()
        trade_once(source, 2)
        feeder.stop()
        feeder = Feeder(fixed, Greeter())
        feeder.start()
        assert [next(events).data["seq"], next(events).data["seq"]] == [3, 4]
    finally:
        events.close()  # type: ignore[attr-defined]
        feeder.stop()


def test_a_position_ahead_of_the_journal_is_refused(feed: Addresses, source: Greeter) -> None:
    trade_once(source, 3)
    take(feed.subscribe(ALL_TRADES, after=0), 3)
    with pytest.raises(Refused, match="trade/: ") as refused:
        next(feed.subscribe(ALL_TRADES, after=99))
    assert (refused.value.code, refused.value.newest) == ("resume_expired", 3)


@pytest.mark.parametrize(
    ("topics", "after", "named"),
    [
        pytest.param((QUOTE,), 5, "after=5 is for one trade topic, not 0", id="no-trade-topic"),
        pytest.param(("trade/1/", "trade/2/"), 5, "after=5 is for one trade topic, not 2", id="two"),
        pytest.param(("trade/1/",), {"trade/2/": 5}, "after names 'trade/2/'", id="another"),
        pytest.param(("trade/1",), {"trade/1": 5}, "after names 'trade/1'", id="some-prefix"),
        pytest.param(("trade/1/",), -1, "must not be negative, got -1", id="negative"),
    ],
)
def test_an_impossible_position_is_refused_before_connecting(
    topics: tuple[str, ...], after: object, named: str
) -> None:
    with pytest.raises(BadRequest, match=named):
        subscribe(*topics, after=after)  # type: ignore[arg-type]


def test_an_account_that_is_in_all_accounts_is_refused() -> None:
    with pytest.raises(WireError, match="trade/ carries trade/1/ already"):
        subscribe("trade/1/", ALL_TRADES)


def test_heartbeats_are_not_handed_out_for_a_trade_topic(feed: Addresses) -> None:
    assert list(feed.subscribe(ALL_TRADES, timeout=1.5)) == []
    # The last value, and what is published.
    assert [frame.topic for frame in take(feed.subscribe(ALL_TRADES, STATUS_TOPIC), 3)] == [STATUS_TOPIC] * 3


def test_lost_market_data_is_told_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    market = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    market_addr = str(market.getsockopt_string(zmq.LAST_ENDPOINT))
    gaps: list[tuple[Topic, int | None]] = []
    received: list[tuple[int, int]] = []

    def consume() -> None:
        quotes = subscribe(
            QUOTE,
            market_addr=market_addr,
            ask_addr="tcp://127.0.0.1:1",
            snapshot=False,
            timeout=SECONDS,
            on_gap=lambda topic, missed: gaps.append((topic, missed)),
        )
        received.extend((frame.epoch, frame.seq) for frame in take(quotes, len(sent)))

    sent = [(7, 1), (7, 2), (7, 5), (7, 6), (8, 1), (8, 3)]
    thread = threading.Thread(target=consume)
    try:
        thread.start()
        assert market.poll(int(SECONDS * 1000))
        for epoch, seq in sent:
            market.send_multipart(Frame(QUOTE, epoch, seq, 1, 1, frames.encode({})).to_parts())
        thread.join(SECONDS)
    finally:
        context.destroy(linger=0)
        thread.join(SECONDS)
    assert received == sent
    assert gaps == [(QUOTE, 2), (QUOTE, None), (QUOTE, 1)]
    assert [record.getMessage() for record in caplog.records] == [f"{QUOTE}: 2 messages were lost"]


@pytest.mark.skipif(sys.platform == "win32", reason="the program connects to local sockets, which Windows lacks")
def test_the_documented_program_misses_no_event(config: Config, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "zeromq.md").read_text(encoding="utf-8")
    (program,) = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "catch_up" in block]
    assert len([line for line in program.splitlines() if line]) <= 25
    source = Greeter()
    feeder = Feeder(config, source)
    feeder.start()
    trade_once(source, 1500)
    where = addresses(feeder)
    fixed = msgspec.structs.replace(config, **msgspec.structs.asdict(where))
    # As it stands, but with the folder of this test.
    documented, here = '"~/.local/share/qmt-bridge/run"', repr(str(ipc_folder.own_folder(config.data_path)))
    assert program.count(documented) == 1
    program = program.replace(documented, here)
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    command = [sys.executable, str(file)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    consumer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(consumer.stdout))  # type: ignore[arg-type]
    reader.start()
    try:
        wait_for(lambda: len(lines) >= 1500)
        with trading(source, "1", "2"):
            wait_for(lambda: len(lines) >= 3000)
        feeder.stop()
        # Published by one process of the feeder while the consumer was disconnected; no later event shows the loss.
        source = Greeter()
        feeder = Feeder(config, source)
        feeder.start()
        trade_once(source, 10)
        feeder.stop()
        feeder = Feeder(fixed, Greeter())
        feeder.start()
        newest = next(where.subscribe(STATUS_TOPIC)).data["trade_seq"]
        wait_for(lambda: len(lines) >= newest)
    finally:
        consumer.kill()
        consumer.wait()
        reader.join(SECONDS)
        consumer.stdout.close()  # type: ignore[union-attr]
        feeder.stop()
    assert [ast.literal_eval(line)["seq"] for line in lines] == list(range(1, newest + 1))


def test_iteration_ends_after_silence(feed: Addresses) -> None:
    wait_for(lambda: [frame.seq for frame in feed.subscribe(QUOTE, timeout=0.3)][-1:] == [2], "an iteration with both")


def test_iteration_over_a_feeder_that_is_away_ends_after_silence() -> None:
    away = Addresses("tcp://127.0.0.1:1", "tcp://127.0.0.1:1", "tcp://127.0.0.1:1")
    assert list(away.subscribe(QUOTE, timeout=0.05)) == []


def test_a_consumer_started_before_its_feeder_is_served(config: Config) -> None:
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
    monkeypatch.setattr(consumer_module, "ANSWER_SECONDS", 0.5)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    market = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    mute = sockets.bind_router(context, ANY_PORT, None)
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
        # The consumer asked.
        assert mute.poll(int(SECONDS * 1000))
        question = decode_ask(mute.recv_multipart()[-1])
        assert question.topics == [QUOTE]  # type: ignore[union-attr]
    finally:
        context.destroy(linger=0)
        thread.join(SECONDS)


def test_messages_on_their_way_behind_a_last_value_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "ANSWER_SECONDS", 0.0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    market = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    router = sockets.bind_router(context, ANY_PORT, None)
    market_addr, ask_addr = (str(one.getsockopt_string(zmq.LAST_ENDPOINT)) for one in (market, router))
    gaps: list[object] = []
    received: queue.SimpleQueue[tuple[str, int, int]] = queue.SimpleQueue()

    def consume() -> None:
        for frame in subscribe(
            WHOLE, QUOTE, market_addr=market_addr, ask_addr=ask_addr, on_gap=lambda *told: gaps.append(told)
        ):
            received.put((frame.topic, frame.seq, frame.published_ns))
            if frame.seq == 4:
                return

    def publish(*numbers: int) -> None:
        for seq in numbers:
            market.send_multipart(Frame(WHOLE, 7, seq, 1, 1, b"{}").to_parts())

    thread = threading.Thread(target=consume)
    try:
        thread.start()
        for _ in (WHOLE, QUOTE):
            assert market.poll(int(SECONDS * 1000))
            market.recv()
        publish(1)
        assert received.get(timeout=SECONDS) == (WHOLE, 1, 1)
        assert router.poll(int(SECONDS * 1000))
        peer, payload = router.recv_multipart()
        for topic, more in ((WHOLE, True), (WHOLE, False), (QUOTE, False)):
            answer = TopicState(decode_ask(payload).id, topic, "live", epoch=7, seq=3, body=b"{}", more=more)
            router.send_multipart([peer, encode_reply(answer)])
        # The last answer has been taken, and no message that the others contain.
        assert received.get(timeout=SECONDS) == (QUOTE, 3, 0)
        publish(2, 3, 4)
        thread.join(SECONDS)
        got = [received.get_nowait()[1:] for _ in range(received.qsize())]
        assert got == [(2, 1), (3, 1), (3, 0), (3, 0), (4, 1)]
        assert gaps == []
    finally:
        context.destroy(linger=0)
        thread.join(SECONDS)


def test_a_late_last_value_waits_while_messages_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "LATE_SECONDS", 1.0)
    values = sequence.LastValues([QUOTE], True)
    values.give_up()
    assert values.arrived(Frame(QUOTE, 7, 1, 1, 1, b"{}"))
    assert values.answered(TopicState(1, QUOTE, "live", epoch=7, seq=3, body=b"{}")) == []
    # Of each turn: when it is, and whether it leaves messages.
    turns = [(0.0, False), (2.0, True), (4.0, True), (6.0, False)]

    class Turns:
        def connect(self) -> None:
            pass

        close = connect

        def wait(self, *_: object) -> float:
            now, self.is_left = turns.pop(0)
            return now

        def take(self, *_: object) -> list[Frame]:
            return []

        def has_more(self) -> bool:
            return self.is_left

    losses = consumer_module._Losses(lambda *_: None)
    of_one = sequence.Sequence(values, {}, False)
    late = consumer_module._frames(Turns(), of_one, silence.Silence([QUOTE]), None, losses)  # type: ignore[arg-type]
    assert next(late).seq == 3
    assert turns == []
    late.close()  # type: ignore[attr-defined]


def test_a_pending_topic_is_asked_about_until_it_is_decided() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    market = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    router = sockets.bind_router(context, ANY_PORT, None)
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
            question = decode_ask(payload)
            asked.append(question.topics)  # type: ignore[union-attr]
            answer = TopicState(question.id, QUOTE, state, error="no", code="not_entitled")  # type: ignore[arg-type]
            router.send_multipart([peer, encode_reply(answer)])
        thread.join(SECONDS)
        assert asked == [[OTHER, QUOTE], [QUOTE]]
        assert [refused.code for refused in raised] == ["not_entitled"]
    finally:
        context.destroy(linger=0)
        thread.join(SECONDS)


def test_with_curve_only_the_allowed_consumer_is_served(config: Config, tmp_path: Path) -> None:
    allowed, foreign = tmp_path / "allowed", tmp_path / "foreign"
    make_keys(allowed)
    make_keys(foreign)
    # The stranger has the feeder's key, but the feeder does not have the stranger's.
    (foreign / "feeder.key").write_bytes((allowed / "feeder.key").read_bytes())
    feeder = Feeder(msgspec.structs.replace(config, curve_dir=str(allowed)), Greeter())
    feeder.start()
    try:
        where = addresses(feeder)
        told: list[Notice] = []

        def is_told() -> bool:
            assert list(where.subscribe(QUOTE, curve_dir=str(foreign), timeout=2.0, on_notice=told.append)) == []
            return bool(told)

        wait_for(is_told, "the notice")
        assert [notice.reason for notice in told] == [Trouble.KEY_REFUSED]
        assert next(where.subscribe(QUOTE, curve_dir=str(allowed))).topic == QUOTE
    finally:
        feeder.stop()


# Makes an iterator that only the garbage collector can end.
FORGOTTEN = """
import gc, sys
from feeder.app import Feeder
from qmt_bridge import subscribe
from qmt_bridge.config import Config

local = "tcp://127.0.0.1:*"
wire = {"market_addr": local, "trade_addr": local, "ask_addr": local, "trade_ask_addr": "tcp://127.0.0.1:0"}
feeder = Feeder(Config(source="sim", data_dir=sys.argv[1], **wire))
feeder.start()
publisher = feeder.publisher
frames = subscribe(
    "quote/600519.SH/tick/",
    market_addr=publisher.market_addr,
    trade_addr=publisher.trade_addr,
    ask_addr=publisher.ask_addr,
)
next(frames)
cycle = [frames]
cycle.append(cycle)
del frames, cycle
gc.collect()
feeder.stop()
print("ended")
"""


def test_a_forgotten_iterator_closes_its_sockets(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORGOTTEN, str(tmp_path)]
    program = subprocess.run(command, capture_output=True, text=True, timeout=30 * SLOWNESS, check=False)
    assert (program.returncode, program.stdout) == (0, "ended\n"), program.stderr


def test_a_feeder_of_version_1_is_told_in_a_notice() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    earlier = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    notices: list[Notice] = []
    frames = subscribe(
        "quote/", market_addr=earlier.last_endpoint.decode(), timeout=SECONDS, on_notice=notices.append, snapshot=False
    )
    reading = threading.Thread(target=lambda: next(frames))
    reading.start()
    try:
        assert earlier.poll(int(SECONDS * 1000))
        earlier.recv()
        earlier.send_multipart([b"quote/600519.SH/tick/", bytes(32), b"\x80"])
        earlier.send_multipart(Frame(QUOTE, 1, 1, 1, 1, b"{}").to_parts())
        reading.join(SECONDS)
        [text] = [notice.text for notice in notices if notice.reason == "wire_version"]
        assert "version 1 of the wire, and this program version 2: update the feeder" in text
    finally:
        frames.close()  # type: ignore[attr-defined]
        context.destroy(linger=0)


def test_foreign_messages_end_no_consumer(feed: Addresses, caplog: pytest.LogCaptureFixture) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    strange = sockets.bind_publisher(context, "market_addr", ANY_PORT, None)
    asked = sockets.bind_router(context, ANY_PORT, None)
    try:
        market_addr, ask_addr = (bound.getsockopt_string(zmq.LAST_ENDPOINT) for bound in (strange, asked))
        frames = subscribe(
            STATUS_TOPIC,
            "quote/",
            market_addr=market_addr,
            trade_addr=feed.trade_addr,
            ask_addr=ask_addr,
            timeout=SECONDS,
        )
        received: list[Frame] = []
        reading = threading.Thread(target=lambda: received.append(next(frames)))
        reading.start()
        for _ in range(2):
            assert strange.poll(int(SECONDS * 1000))
            strange.recv()
        assert asked.poll(int(SECONDS * 1000))
        peer, _ = asked.recv_multipart()
        for answer in (b"", b"\xc1", b'{"x":' + b"[" * 100_000):
            asked.send_multipart([peer, answer])
        for parts in (
            [b"quote/x/"],
            [b"quote/\xff/" + bytes(32), b""],
            [b"quote/x/stamp", b""],
            [b"quote/x/"] * 2000,
        ):
            strange.send_multipart(parts)
        good = Frame(Topic("quote/x/"), 1, 1, 1, 1, b"{}")
        strange.send_multipart(good.to_parts())
        reading.join(SECONDS)
        assert [frame.body for frame in received] == [b"{}"]
        assert len([record for record in caplog.records if "is left out" in record.message]) == 1
    finally:
        frames.close()  # type: ignore[attr-defined]
        context.destroy(linger=0)


def test_an_answer_about_trades_on_the_open_socket_is_no_answer() -> None:
    link = consumer_module._Link({}, {}, print)
    market, trade = object(), object()
    with pytest.raises(WireError, match="does not belong on this socket"):
        link._check_socket("trade/", market, {"market": market, "trade": trade})  # type: ignore[arg-type,dict-item]


def test_a_consumer_takes_no_forged_trade_event(config: Config) -> None:
    feeder = Feeder(config, Greeter())
    feeder.start()
    where = addresses(feeder)
    trade_once(feeder.source, 1)  # type: ignore[arg-type]  # it is the Greeter
    assert next(where.subscribe("trade/", after=0)).data["seq"] == 1
    feeder.stop()
    with foreigner([where.market_addr], [where.ask_addr]) as foreign:

        def has_forged() -> bool:
            asked = where.subscribe("trade/", "quote/000001.SZ/tick/", after=1, timeout=2.0)
            assert [frame for frame in asked if frame.topic.startswith("trade/")] == []
            return foreign.rounds > 10 and bool(foreign.askers)

        wait_for(has_forged, "messages and a question")
