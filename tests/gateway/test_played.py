"""Stored records that are played at a pace: when each is delivered, what meets the live stream, and what is held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import msgspec
import pytest

from gateway.streams.member import Gap, StoreQuestion
from gateway.streams.reading import PATIENCE
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.playback import Playback
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp, TopicState
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.gateway.test_start_model import BEGAN, CHUNK, TICK, Reader
from tests.gateway.test_stored import Wire

OTHER = quote_topic("000001.SZ")


class Played(Reader):
    """A reader that notes when it got each frame. What it is to be called for is called by `run`."""

    def __init__(self, wire: World, end: int | None = None) -> None:
        super().__init__(BEGAN, end)
        self.wire = wire
        self.times: list[tuple[int, float]] = []
        # While its client reads nothing, it is not called.
        self.reads = True

    def deliver(self, frame: Frame) -> None:
        super().deliver(frame)
        self.times.append((frame.seq, round(self.wire.now, 3)))

    def open(self, act: Callable[[float], None]) -> None:
        act(self.wire.now)


class World(Wire):
    """A store and a feeder that answer at once, and a clock that the test moves."""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.now = 0.0
        self.playback = Playback(speed)
        self.readers: list[Played] = []

    def begin(self, topics: Iterable[Topic] = (TICK,), end: int | None = None, chunk: int = CHUNK) -> list[Played]:
        self.readers = [Played(self, end) for _ in topics]
        for topic, reader in zip(topics, self.readers, strict=True):
            question = StoreQuestion(BEGAN, None, end, chunk, chunk, self.playback)
            self.hub.read({topic: (reader, question)}, self.now)
            if end is None:
                self.hub.answer(TopicState(self.question, topic, "live", epoch=100, seq=0, body=None), self.now)
            self.answer_stores()
        return self.readers

    def answer_stores(self) -> None:
        while self.ask_of_store is not None:
            self.answer_store(self.now)

    def run(self, until: float, step: float = 0.05) -> None:
        """Let time pass; clients that read are called, the store answers."""
        while self.now < until - 1e-9:
            self.now = round(self.now + step, 3)
            for _ in range(20):
                for reader in self.readers:
                    if reader.reads:
                        reader.run(self.now)
                self.answer_stores()
            self.hub.expire(self.now)


def record(seq: int, seconds: float, topic: Topic = TICK, epoch: int = 100) -> Frame:
    """Return message `seq`, whose record is so many seconds behind the first."""
    code = topic.split("/")[1]
    body = frames.encode({code: [{"time": BEGAN + int(1000 * seconds), "pad": "x" * 60}]})
    return Frame(topic, epoch, seq, 1, 1, body)


def keep(world: World, *seconds: float, topic: Topic = TICK) -> None:
    for seq, at in enumerate(seconds, 1):
        world.day.keep(record(seq, at, topic))


def seqs(reader: Reader) -> list[int | Gap | None]:
    return [of.seq if isinstance(of, Frame) else of for of in reader.got]


@pytest.mark.parametrize(("speed", "at"), [(1, [0, 3, 6, 60]), (10, [0, 0.3, 0.6, 6]), (0.5, [0, 6, 12, 120])])
def test_records_come_at_the_pace_of_their_times(speed: float, at: list[float]) -> None:
    world = World(speed)
    keep(world, 0, 3, 6, 60)
    [reader] = world.begin()
    assert reader.times == []
    world.run(150.0)
    # The clock is started by the first call.
    assert [(seq, round(when - 0.05, 2)) for seq, when in reader.times] == list(zip((1, 2, 3, 4), at, strict=True))


def test_topics_are_played_in_one_time() -> None:
    world = World(1)
    keep(world, 0, 4, 8)
    keep(world, 2, 6, 10, topic=OTHER)
    first, second = world.begin((TICK, OTHER))
    world.run(12.0)
    assert [round(when - 0.05, 2) for _, when in first.times] == [0, 4, 8]
    assert [round(when - 0.05, 2) for _, when in second.times] == [2, 6, 10]


def test_client_that_pauses_is_not_hurried_after() -> None:
    world = World(1)
    keep(world, *range(0, 40, 2))
    keep(world, *range(1, 41, 2), topic=OTHER)
    readers = world.begin((TICK, OTHER))
    world.run(5.0)
    for reader in readers:
        reader.reads = False
    world.run(65.0)
    before = [len(reader.times) for reader in readers]
    for reader in readers:
        reader.reads = True
    world.run(75.0)
    for reader, had in zip(readers, before, strict=True):
        later = [when for _, when in reader.times[had:]]
        assert len(later) in (5, 6)
        assert all(b - a == pytest.approx(2, abs=0.06) for a, b in pairwise(later))


def test_nothing_is_held_and_little_asked_for_while_it_plays() -> None:
    world = World(1)
    keep(world, *range(100))
    [reader] = world.begin()
    stream = world.hub.streams[TICK]
    kept = 0
    for seq in range(101, 150):
        world.hub.receive(record(seq, seq), world.now)
        world.run(world.now + 0.5)
        kept = max(kept, reader.kept)
        assert len(stream.held) == 0
    assert 0 < kept <= CHUNK
    assert len(world.hub.streams[TICK].playing) == 1


def test_faster_than_real_time_meets_the_live_stream() -> None:
    world = World(2)
    published = 20
    keep(world, *range(0, 60, 3))
    [reader] = world.begin()
    while world.now < 120:
        # One record each three seconds, and the next ones of the day.
        world.run(world.now + 3.0)
        published += 1
        frame = record(published, 3 * (published - 1))
        world.day.keep(frame)
        world.hub.receive(frame, world.now)
    world.run(world.now + 0.1)
    assert reader.is_live
    assert [of.seq for of in reader.got if isinstance(of, Frame)] == list(range(1, published + 1))
    assert reader.times[-1][1] == pytest.approx(world.now, abs=0.2)


def test_real_time_stays_behind_by_a_constant_time() -> None:
    world = World(1)
    keep(world, 0, 3, 6)
    [reader] = world.begin()
    # The fourth and later ones are published 9, 12, ... seconds behind the first: 4 s before they are due.
    world.run(5.05)
    for seq in range(4, 20):
        frame = record(seq, 3 * (seq - 1))
        world.day.keep(frame)
        world.hub.receive(frame, world.now)
        world.run(world.now + 3)
    world.run(world.now + 8)
    assert not reader.is_live
    assert [round(when - 0.05, 2) for _, when in reader.times] == [3 * seq for seq in range(19)]
    # A record after a pause of the market is as late.
    world.run(200.05 - 4)
    frame = record(20, 200)
    world.day.keep(frame)
    world.hub.receive(frame, world.now)
    world.run(210)
    assert reader.times[-1] == (20, pytest.approx(200.05, abs=0.06))
    assert not reader.is_live


def test_gap_is_told_where_it_is_played() -> None:
    world = World(1)
    for seq, at in ((1, 0), (2, 1), (5, 4), (6, 5)):
        world.day.keep(record(seq, at))
    [reader] = world.begin(chunk=10 * CHUNK)
    world.run(2.0)
    assert seqs(reader) == [1, 2]
    world.run(10.0)
    gap = reader.got[2]
    assert isinstance(gap, Gap)
    assert (gap.after, gap.before) == (Position(100, 2), Position(100, 5))
    assert [of for of in seqs(reader) if isinstance(of, int)] == [1, 2, 5, 6]


def test_part_ends_once_its_last_record_was_played() -> None:
    world = World(1)
    keep(world, 0, 1, 2, 3)
    [reader] = world.begin(end=BEGAN + 2500)
    world.run(1.5)
    assert (seqs(reader), reader.is_ended) == ([1, 2], False)
    world.run(4.0)
    assert (seqs(reader), reader.is_ended) == ([1, 2, 3], True)
    assert world.hub.streams == {}


def test_store_that_dies_while_it_plays_leaves_a_told_gap() -> None:
    world = World(10)
    keep(world, 0, 1, 2, 3)
    [reader] = world.begin()
    world.answer_stores = lambda: None  # type: ignore[method-assign]
    world.run(PATIENCE + 2)
    world.hub.receive(record(9, 9), world.now)
    world.run(world.now + 1)
    told = [of for of in reader.got if isinstance(of, Gap)]
    assert [gap.reason for gap in told] == ["store_away"]
    assert reader.is_live


def test_subscription_that_ends_is_forgotten_while_it_plays() -> None:
    world = World(1)
    keep(world, 0, 3, 6)
    [reader] = world.begin()
    world.run(1.0)
    world.hub.leave(TICK, reader)
    world.run(10.0)
    assert seqs(reader) == [1]
    assert (world.hub.streams, world.subscribed) == ({}, [])


def test_feeder_with_a_clock_set_back_ends_what_is_played() -> None:
    world = World(1)
    keep(world, 0, 3, 6)
    [reader] = world.begin()
    world.run(1.0)
    world.hub.receive(record(9, 9), world.now)
    world.hub.feeder_seen(100, 0, world.now)
    for _ in range(2):
        world.hub.feeder_seen(99, 0, world.now)
    world.run(10.0)
    assert seqs(reader) == [1, Gap("restart", Position(100, 1)), None]
    assert reader.kept == 0


def test_records_of_an_older_store_have_the_time_when_they_came() -> None:
    world = World(1)
    answer = world.day.answer

    def without_times(ask: CatchUp) -> list[TopicHistory]:
        return [msgspec.structs.replace(history, times=[]) for history in answer(ask)]

    world.day.answer = without_times  # type: ignore[method-assign]
    for seq, at in ((1, 0), (2, 5)):
        frame = record(seq, at)
        frame.received_ns = (BEGAN + 2000 * seq) * 1_000_000
        world.day.keep(frame)
    [reader] = world.begin()
    world.run(4.0)
    assert [round(when - 0.05, 2) for _, when in reader.times] == [0, 2]
