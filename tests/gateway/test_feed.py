"""What a worker asks by itself, without clients; and how it takes messages while clients have to answer first."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import zmq

from gateway import feed as feed_module
from gateway.feed import LOOK_EVERY, Feed, _Resident
from gateway.hub import Hub
from gateway.streams.member import Outcome, Refusal, StoreQuestion
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory, encode_history
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import DownloadStarted, TopicState, encode_reply
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Topic, quote_topic
from tests.support.foreigner import STATUS
from tests.support.waiting import until

ANY_PORT = "tcp://127.0.0.1:*"
TOPIC = quote_topic("600519.SH")


class Line:
    """Replaces the feed: records questions, and keeps the calls that are to be made later."""

    def __init__(self) -> None:
        self.hub = Hub(self)
        self.asked: list[int | None] = []
        self.waiting: list[Callable[[float], None]] = []

    def subscribe(self, topic: Topic) -> None:
        """Ignore it."""

    def unsubscribe(self, topic: Topic) -> None:
        """Ignore it."""

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int:
        self.asked.append(None if after is None else after.seq)
        return len(self.asked)

    def later(self, delay: float, act: Callable[[float], None]) -> None:
        self.waiting.append(act)


def resident() -> Line:
    line = Line()
    line.hub.feeder_seen(1, 5, 0.0)
    _Resident(cast(Feed, line)).join()
    return line


def test_worker_reads_the_journal_to_its_end() -> None:
    line = resident()
    line.hub.answer(TopicState(1, ALL_TRADES, "live", epoch=1, seq=6, body=frames.encode([{"seq": 6}]), more=True), 0.0)
    line.waiting.pop()(0.0)
    assert line.asked == [5, 6]


def test_worker_joins_again_after_a_refusal() -> None:
    line = resident()
    line.hub.answer(TopicState(1, ALL_TRADES, "refused", "not there", "resume_expired", 2, 3), 0.0)
    assert not line.hub.streams
    line.waiting.pop()(1.0)
    assert list(line.hub.streams) == [ALL_TRADES]


class Clients:
    """The senders of clients that answer soon, but not before the test says so."""

    def __init__(self) -> None:
        self.pressed = True
        self.turns = 0
        # How often a turn that left messages has asked whether to wait.
        self.asked = 0

    def flush(self) -> None:
        """Ignore it."""

    def waits(self) -> bool:
        self.asked += 1
        return self.pressed

    def end_turn(self, seconds: float) -> None:
        self.turns += 1


class Member:
    """A client that is delivered to, and does nothing else."""

    def deliver(self, frame: Frame) -> None:
        """Ignore it."""

    def starts(self, epoch: int, seq: int) -> bool:
        return False

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Ignore it."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Ignore it."""

    def missed(self, count: int) -> None:
        """Ignore it."""

    def snapshot_ended(self, count: int) -> None:
        """Ignore it."""


class Loop:
    """The event loop; counts the calls that are planned for later."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.planned = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        self.planned += 1
        return self._loop.call_later(delay, self._called, act)

    def _called(self, act: Callable[[], None]) -> None:
        self.planned -= 1
        act()


class Pressed:
    """A feed that gets more than its clients can take, and has taken as much as it may."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.market = sockets.bind_publisher(self.context, "market_addr", ANY_PORT, None)
        self.trade = sockets.bind_publisher(self.context, "trade_addr", ANY_PORT, None)
        self.router = sockets.bind_router(self.context, ANY_PORT, None)
        market, trade, ask = (
            each.getsockopt_string(zmq.LAST_ENDPOINT) for each in (self.market, self.trade, self.router)
        )
        config = Config(market_addr=market, trade_addr=trade, ask_addr=ask, open_trade_addr=True, api_key="x" * 32)
        self.clients = Clients()
        self.feed = Feed(config, lambda: None, self.clients)
        self.seq = 0

    async def start(self) -> None:
        self.feed.start()
        self.feed.follow_trades()
        self.loop = self.feed._loop = Loop(self.feed._loop)  # type: ignore[assignment]
        self.feed.hub.join({TOPIC: Member()}, time.monotonic())
        wanted = {b"\1" + TOPIC.encode(), b"\1" + ALL_TRADES.encode()}
        asked: set[bytes] = set()
        while not wanted <= asked:
            await until(lambda: self.market.poll(0) or self.trade.poll(0))
            asked |= {each.recv() for each in (self.market, self.trade) if each.poll(0)}

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.seq += 1
            self.market.send_multipart(Frame(TOPIC, 1, self.seq, 1, 1, frames.encode({"600519.SH": []})).to_parts())

    def trade_event(self, number: int) -> None:
        body = frames.encode({"seq": number, "epoch": 1, "account": "1", "kind": "order"})
        self.trade.send_multipart(Frame(Topic("trade/1/"), 1, number, 1, 1, body).to_parts())

    def has_taken(self, count: int) -> bool:
        return self.taken == count

    @property
    def taken(self) -> int:
        return self.feed.hub.received


@pytest.fixture
def pressed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pressed]:
    monkeypatch.setattr(feed_module, "LONGEST_PAUSE", 1000.0)
    pressed = Pressed()
    yield pressed
    pressed.feed.stop()
    pressed.context.destroy(0)


async def test_market_data_waits_until_quick_clients_answer(pressed: Pressed) -> None:
    await pressed.start()
    pressed.publish(10 * LOOK_EVERY)
    # The first messages may come in turns of their own, which leave nothing.
    await until(lambda: pressed.clients.asked)
    taken = pressed.taken
    # Trade events go on meanwhile, and plan no calls of their own.
    for number in range(1, 11):
        pressed.trade_event(number)
        await until(functools.partial(pressed.has_taken, taken + number))
    turns = pressed.clients.turns
    pressed.publish(LOOK_EVERY)
    await until(lambda: pressed.clients.turns > turns + 10)
    assert pressed.taken == taken + 10
    # The next turn, and the regular look at the heartbeat.
    assert pressed.loop.planned <= 2
    pressed.clients.pressed = False
    await until(lambda: pressed.taken == 11 * LOOK_EVERY + 10)


async def test_market_data_waits_for_a_bounded_time(pressed: Pressed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "LONGEST_PAUSE", 0.01)
    await pressed.start()
    pressed.publish(10 * LOOK_EVERY)
    await until(lambda: pressed.taken == 10 * LOOK_EVERY)


async def test_live_data_has_its_turn_between_answers_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "STORE_SECONDS", 0.0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    store = sockets.bind_router(context, ANY_PORT, None)
    clients = Clients()
    feed = Feed(Config(store_addr=store.getsockopt_string(zmq.LAST_ENDPOINT)), lambda: None, clients)
    turns: list[int] = []
    monkeypatch.setattr(feed.hub, "history", lambda answer, now: turns.append(clients.turns))
    feed.start()
    # There is no connection at first.
    await until(lambda: feed.ask_store([TOPIC], StoreQuestion(start=0)))
    await until(lambda: store.poll(0))
    peer, _ = store.recv_multipart()
    for _ in range(5):
        store.send_multipart([peer, encode_history(TopicHistory(1, TOPIC))])
    await until(lambda: len(turns) == 5)
    assert len(set(turns)) == 5
    feed.stop()
    context.destroy(0)


async def test_feed_follows_trades_only_when_it_is_told_to() -> None:
    feed = Feed(Config(api_key="x" * 32), lambda: None, Clients())
    feed.start()
    assert ALL_TRADES not in feed.hub.streams
    feed.follow_trades()
    assert ALL_TRADES in feed.hub.streams
    feed.stop()


async def test_leaving_and_joining_after_the_stop_do_nothing() -> None:
    """A worker that stops ends its sessions, whose last slices of work come after it."""
    feed = Feed(Config(), lambda: None, Clients())
    feed.start()
    member = Member()
    feed.hub.join({TOPIC: member}, time.monotonic())
    feed.stop()
    feed.hub.leave(TOPIC, member)
    assert TOPIC not in feed.hub.streams
    feed.hub.join({TOPIC: member}, time.monotonic())
    feed.hub.leave(TOPIC, member)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(TopicState(1, ALL_TRADES, "live", None, None, 1, 2, frames.encode([])), id="journal"),
        pytest.param(DownloadStarted(1, "download/x/"), id="download"),
    ],
)
def test_an_answer_about_trades_on_the_open_socket_is_dropped(
    reply: TopicState | DownloadStarted, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answering:
        def recv_multipart(self, flags: int) -> list[bytes]:
            return [encode_reply(reply)]

    feed = Feed(Config(), lambda: None, Clients())
    answered: list[TopicState] = []
    monkeypatch.setattr(feed.hub, "answer", lambda state, now: answered.append(state))
    market, trade = Answering(), Answering()
    feed._dealer, feed._trade_dealer = market, trade  # type: ignore[assignment]
    feed._take_reply(market, 0.0)  # type: ignore[arg-type]
    assert (feed.malformed, answered) == (1, [])
    feed._take_reply(trade, 0.0)  # type: ignore[arg-type]
    assert feed.malformed == 1
    assert len(answered) == isinstance(reply, TopicState)


def test_the_end_of_a_feeder_is_believed_after_its_connection() -> None:
    feed = Feed(Config(), lambda: None, Clients())

    def take(epoch: int, state: str) -> tuple[int, str] | None:
        feed._take_status(frames.encode({**STATUS, "epoch": epoch, "state": state}), 1.0)
        return feed.status and (feed.status.epoch, feed.status.state)

    feed._proved = True
    assert take(7, "up") == (7, "up")
    # The connection that only the feeder can have ends before its last status is read.
    feed._proved = False
    assert take(8, "up") == take(8, "down") == (7, "up")
    assert take(7, "down") == (7, "down")
    assert take(7, "up") == (7, "down")


class Time:
    """The clock of the feed, which the test can move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(clock, name)


HEARTBEAT = Frame(STATUS_TOPIC, 1, 1, 1, 1, frames.encode({**STATUS, "epoch": 1})).to_parts()


@pytest.mark.parametrize("hears_at_its_end", [False, True])
async def test_time_in_which_a_worker_was_held_is_no_silence(
    monkeypatch: pytest.MonkeyPatch, hears_at_its_end: bool
) -> None:
    moved = Time()
    monkeypatch.setattr(feed_module, "clock", moved)
    # The test looks.
    monkeypatch.setattr(feed_module, "TICK", 3600.0)
    with zmq.Context() as context, sockets.bind_publisher(context, "market_addr", ANY_PORT, None) as market:
        config = Config(market_addr=market.getsockopt_string(zmq.LAST_ENDPOINT), open_trade_addr=True, api_key="x" * 32)
        feed = Feed(config, lambda: None, Clients())
        feed.start()
        try:
            await until(lambda: market.poll(0))
            market.send_multipart(HEARTBEAT)
            await until(lambda: feed.status)
            feed._tick()
            moved.ahead += 60.0
            if hears_at_its_end:
                heard = feed._heard_at
                market.send_multipart(HEARTBEAT)
                await until(lambda: feed._heard_at > heard)
            feed._tick()
            assert feed.status is not None
            for _ in range(5):
                moved.ahead += 0.9
                feed._tick()
            assert feed.status is None
        finally:
            feed.stop()
