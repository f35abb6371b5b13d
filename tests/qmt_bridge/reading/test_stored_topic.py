"""A consumer's topic from a moment of the past on: stored messages, then published ones, or told gaps."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qmt_bridge import subscribe
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest, Refused
from qmt_bridge.reading import stored_topic
from qmt_bridge.reading.stored_topic import PATIENCE, StoredTopic
from qmt_bridge.sequence import LastValues, Sequence
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.playback import Playback
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.support.morning import CODE, TICK, Market, demand, market_of
from tests.support.ports import ANY_ADDRESSES, free_port, tcp
from tests.support.store import Day, position

BEGAN = midnight(1_764_300_000_000) + 9 * 3_600_000


class World:
    """A feeder, a store and one reader, with pipes between them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.is_quiet = seed % 3 == 0
        self.now = 0.0
        self.epoch, self.seq, self.time = 1000, 0, BEGAN
        self.day = Day(self.epoch)
        self.published: list[Frame] = []
        self.to_store: deque[Frame] = deque()
        self.to_reader: deque[Frame] = deque()
        self.asks: deque[CatchUp] = deque()
        self.answers: deque[TopicHistory] = deque()
        self.reader: StoredTopic | None = None
        self.start = 0
        # The gaps that were told and that no message has shown yet.
        self.told = 0
        # What it got, and None where it was told a gap.
        self.got: list[Frame | None] = []
        self.number = 0

    def publish(self) -> None:
        self.seq += 1
        self.time += self.random.choice((0, 1, 500))
        body = frames.encode({CODE: [{"time": self.time, "pad": "x" * 100}]})
        frame = Frame(TICK, self.epoch, self.seq, 1, 1, body)
        self.published.append(frame)
        self.to_store.append(frame)
        if self.reader is not None:
            self.to_reader.append(frame)

    def join(self) -> None:
        if self.reader is None and self.day.kept:
            self.start = self.random.randint(BEGAN, self.time + 100)
            speed = self.random.choice((0, 0, 3, 1000))
            self.playback = Playback(speed) if speed else None
            self.reader = StoredTopic(TICK, self.start, self.playback)
            self.reader.target = Position(self.epoch, self.seq)

    def take(self, taken: list[Frame]) -> None:
        assert self.reader is not None
        self.told += len(self.reader.gaps)
        self.got += [None] * len(self.reader.gaps)
        self.reader.gaps.clear()
        for frame in taken:
            before = next((of for of in reversed(self.got) if of is not None), None)
            if before is not None and not position(before).is_followed_by(position(frame), across=False):
                self.told -= 1
                assert self.told >= 0, f"{before} is followed by {frame}"
            self.got.append(frame)

    def arrive(self) -> None:
        if self.reader is not None and not self.reader.live and self.to_reader:
            self.take(self.reader.arrived(self.to_reader.popleft()))

    def store(self) -> None:
        if self.to_store:
            self.day.keep(self.to_store.popleft())

    def ask(self) -> None:
        if self.reader is not None and self.reader.asks(self.now):
            self.number += 1
            self.asks.append(self.reader.ask(self.number, self.now))

    def answer(self) -> None:
        if self.asks:
            self.answers.extend(self.day.answer(self.asks.popleft()))

    def reply(self) -> None:
        if self.reader is not None and self.answers and not self.reader.live:
            self.take(self.reader.answered(self.answers.popleft(), self.now))

    def play(self) -> None:
        if self.reader is not None and self.reader.is_answered:
            self.take([frame for _, frame in self.reader.take_due(self.now)])

    def wait(self) -> None:
        self.now += 0.01 if self.is_quiet else self.random.choice((0.05, 1.0))
        if self.reader is not None:
            self.take(self.reader.give_up(self.now))

    def lose(self) -> None:
        pipe = self.random.choice((self.to_store, self.to_reader))
        if pipe:
            pipe.pop()

    def lose_answers(self) -> None:
        self.random.choice((self.asks, self.answers)).clear()

    def restart(self) -> None:
        self.epoch += 1
        self.seq = 0


@pytest.mark.parametrize("seed", range(200))
def test_reader_gets_stored_then_published_or_is_told(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_topic, "ROOM_BYTES", 300)
    monkeypatch.setattr(stored_topic, "PLAYED_BYTES", 300)
    if seed % 2:
        monkeypatch.setattr(stored_topic, "HELD_BYTES", 500)
    world = World(seed)
    often = [world.publish, world.arrive, world.arrive, world.store, world.ask, world.answer, world.reply]
    seldom = [world.wait, world.join, world.play]
    rare = [world.lose, world.lose_answers, world.restart]
    for _ in range(400):
        kind = world.random.choices((often, seldom, rare), (20, 4, 0 if world.is_quiet else 1))[0]
        world.random.choice(kind)()
    for _ in range(200):
        world.join()
        world.publish()
        for step in (world.store, world.arrive, world.ask, world.answer, world.reply, world.play):
            for _ in range(20):
                step()
        world.now += 0.2
        assert world.reader is not None, "the store has nothing"
        world.take(world.reader.give_up(world.now))
        if world.reader.live:
            break
    assert world.reader is not None
    assert world.reader.live
    got = [frame for frame in world.got if frame is not None]
    wanted = [frame for frame in world.published if frame.data[CODE][0]["time"] >= world.start]
    assert [position(frame) for frame in got] == sorted({position(frame) for frame in got})
    assert all(frame is not None or not world.is_quiet for frame in world.got)
    if wanted and got and world.got[0] is not None and got[0].epoch == wanted[0].epoch:
        # Of an epoch of which no message arrived anywhere nobody knows.
        assert position(got[0]) <= position(wanted[0])


def test_absent_store_is_told_after_some_seconds() -> None:
    topic = StoredTopic(TICK, "09:30")
    assert topic.asks(0.0)
    frame = Frame(TICK, 7, 5, 1, 1, b"{}")
    assert topic.arrived(frame) == []
    assert topic.give_up(PATIENCE - 0.1) == []
    assert topic.give_up(PATIENCE) == [frame]
    assert (topic.gaps, topic.live) == ([None], True)


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    with market_of(Config(**ANY_ADDRESSES, data_dir=str(tmp_path), open_market_data=True)) as market, demand(market):
        yield market


def consume(market: Market, **options: object) -> Iterator[Frame]:
    addresses = {"market_addr": market.rig.config.market_addr, "ask_addr": market.rig.config.ask_addr}
    return subscribe(TICK, **addresses, **{"store_addr": market.store.address, "timeout": 10.0, **options})  # type: ignore[arg-type]


def test_consumer_gets_the_day_so_far_and_then_what_is_published(market: Market) -> None:
    market.publish(30)
    market.wait_stored()
    gaps: list[object] = []
    got: list[int] = []
    for frame in consume(market, start="09:30:06", on_gap=lambda *gap: gaps.append(gap)):
        got.append(frame.data[CODE][0]["volume"])
        if got[-1] == 30:
            threading.Thread(target=market.publish, args=(5,)).start()
        if got[-1] == 35:
            break
    assert got == list(range(3, 36))
    assert gaps == []


def test_consumer_plays_the_day_and_then_gets_what_is_published(market: Market) -> None:
    market.publish(30)
    market.wait_stored()
    got: list[int] = []
    for frame in consume(market, start="09:30:06", speed=1000):
        got.append(frame.data[CODE][0]["volume"])
        if got[-1] == 30:
            threading.Thread(target=market.publish, args=(5,)).start()
        if got[-1] == 35:
            break
    assert got == list(range(3, 36))


def recorded(topic: Topic, *seconds: int) -> list[Frame]:
    """Return messages whose records are so many seconds behind the first of all."""
    return [
        Frame(topic, 7, seq, 1, 1, frames.encode({CODE: [{"time": BEGAN + 1000 * at}]}))
        for seq, at in enumerate(seconds, 1)
    ]


def test_topics_are_played_in_the_order_of_their_times() -> None:
    other = quote_topic("000001.SZ")
    playback = Playback(1)
    readers = [StoredTopic(topic, BEGAN, playback) for topic in (TICK, other)]
    sequence = Sequence(LastValues([TICK, other], ()), {}, False, readers)
    day = Day()
    for frame in (*recorded(TICK, 0, 4, 5), *recorded(other, 2, 3, 6)):
        day.keep(frame)
    got: list[tuple[float, str, int]] = []
    for now in range(10):
        for ask in sequence.questions("store", now):
            for answer in day.answer(ask):
                assert sequence.read(answer, now) == []
        got += [(now, frame.topic, frame.seq) for frame in sequence.play(now)]
    wanted = [(0, TICK, 1), (2, other, 1), (3, other, 2), (4, TICK, 2), (5, TICK, 3), (6, other, 3)]
    assert got == wanted
    assert sequence.next_due(9) is None


def test_nothing_is_played_before_each_topic_has_begun() -> None:
    other = quote_topic("000001.SZ")
    playback = Playback(1)
    first, second = (StoredTopic(topic, BEGAN, playback) for topic in (TICK, other))
    sequence = Sequence(LastValues([TICK, other], ()), {}, False, [first, second])
    day = Day()
    for frame in (*recorded(TICK, 9), *recorded(other, 0)):
        day.keep(frame)
    asks = list(sequence.questions("store", 0.0))
    for answer in day.answer(asks[0]):
        sequence.read(answer, 0.0)
    assert (sequence.play(0.0), sequence.next_due(0.0)) == ([], None)
    for answer in day.answer(asks[1]):
        sequence.read(answer, 0.0)
    assert [frame.topic for frame in sequence.play(0.0)] == [other]
    assert sequence.next_due(0.0) == 9.0


def test_reader_stays_behind_at_the_pace_of_the_records() -> None:
    reader = StoredTopic(TICK, BEGAN, Playback(1))
    day = Day()
    first, second, *later = recorded(TICK, 0, 3, 6, 9, 12)
    for frame in (first, second):
        day.keep(frame)
    got: list[tuple[int, float]] = []
    for tenth in range(150):
        now = tenth / 10
        if tenth % 30 == 20 and later:
            # Each is published four seconds before it is due.
            published = later.pop(0)
            day.keep(published)
            assert reader.arrived(published) == []
        if reader.asks(now):
            for answer in day.answer(reader.ask(1, now)):
                assert reader.answered(answer, now) == []
        got += [(frame.seq, now) for _, frame in reader.take_due(now)]
        assert reader.give_up(now) == []
    assert got == [(seq, pytest.approx(3.0 * (seq - 1), abs=0.11)) for seq in range(1, 6)]
    assert not reader.live


def test_consumer_without_a_store_is_told_and_gets_what_is_published(market: Market) -> None:
    gaps: list[object] = []
    frames = consume(market, start="09:30", store_addr=tcp(free_port()), on_gap=lambda *gap: gaps.append(gap))
    stop = threading.Event()

    def publish() -> None:
        while not stop.wait(0.05):
            market.publish()

    publishing = threading.Thread(target=publish)
    publishing.start()
    try:
        assert next(frames).topic == TICK
    finally:
        stop.set()
        publishing.join()
    assert gaps[0] == (TICK, None)


def test_topic_that_the_source_refuses_is_refused_with_a_start_too(market: Market) -> None:
    addresses = {"market_addr": market.rig.config.market_addr, "ask_addr": market.rig.config.ask_addr}
    with pytest.raises(Refused):
        next(subscribe("quote/999999.SZ/tick/", **addresses, store_addr=market.store.address, start="09:30"))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"speed": 10}, {"speed": -1, "start": "09:30"}, {"speed": 1e9, "start": "09:30"}])
def test_speed_that_means_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="speed is"):
        subscribe(TICK, **options)


@pytest.mark.parametrize(
    ("topic", "start"), [(TICK, "half past nine"), ("quote/", "09:30"), ("trade/", "half past nine")]
)
def test_start_that_means_nothing_is_refused(topic: str, start: str) -> None:
    with pytest.raises(BadRequest):
        subscribe(topic, start=start, open_trade_addr=True)


def test_store_that_completes_the_day_is_asked_again() -> None:
    reader = StoredTopic(TICK, "09:30")
    now = 0.0
    # Longer than until a store counts as away.
    for number in range(40):
        assert reader.asks(now)
        reader.ask(number, now)
        assert reader.answered(TopicHistory(number, TICK, "filling"), now) == []
        assert reader.give_up(now) == []
        assert not reader.asks(now)
        now += stored_topic.FILLING_SECONDS
    assert (reader.live, reader.gaps) == (False, [])


def test_history_of_a_store_leads_to_the_feeders_next_number() -> None:
    reader = StoredTopic(TICK, "09:30")
    reader.target = Position(2**21, 4)
    assert reader.asks(0.0)
    reader.ask(1, 0.0)
    frames_ = [StoredFrame(2**20, n, 1, 1, msgspec.Raw(b"{}")) for n in (1, 2)]
    assert len(reader.answered(TopicHistory(1, TICK, frames=frames_, epoch=2**21, seq=4), 0.0)) == 2
    assert len(reader.arrived(Frame(TICK, 2**21, 5, 1, 1, b"{}"))) == 1
    assert (reader.live, reader.gaps) == (True, [])


def test_held_messages_that_the_store_has_missed_are_handed_out() -> None:
    reader = StoredTopic(TICK, "09:30")
    assert reader.asks(0.0)
    reader.ask(1, 0.0)

    def arrives(epoch: int, *seqs: int) -> None:
        for seq in seqs:
            assert reader.arrived(Frame(TICK, epoch, seq, 1, 1, b"{}")) == []

    arrives(1000, 2, 3, 4, 5)
    arrives(2000, 1, 2)
    stored = [StoredFrame(1000, 1, 1, 1, msgspec.Raw(b"{}"))]
    stored += [StoredFrame(*place, 1, 1, msgspec.Raw(b"{}")) for place in ((1000, 2), (1000, 5), (2000, 2))]
    holes = [
        Hole("gap", Position(1000, 2), Position(1000, 5)),
        Hole("restart", Position(1000, 5), Position(2000, 2)),
        Hole("gap", Position(2000, 0), Position(2000, 2)),
    ]
    got = reader.answered(TopicHistory(1, TICK, frames=stored, holes=holes, epoch=2000, seq=2), 0.0)
    assert [position(frame) for frame in got] == [
        *(Position(1000, seq) for seq in (1, 2, 3, 4, 5)),
        *(Position(2000, seq) for seq in (1, 2)),
    ]
    # The restart alone: how much is missing there is unknown.
    assert (reader.live, reader.gaps) == (True, [None])
