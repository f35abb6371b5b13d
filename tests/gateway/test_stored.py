"""What readers of the store are told in the rare orders of messages: a store behind, away, or of a newer epoch."""

from __future__ import annotations

from collections.abc import Callable

from gateway.hub import Hub
from gateway.streams.member import Gap, StoreQuestion
from gateway.streams.reading import PATIENCE
from gateway.streams.stream import ANSWER_TIMEOUT
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.requests import CatchUp, TopicState
from qmt_bridge.wire.topics import Topic
from tests.gateway.test_start_model import BEGAN, CHUNK, TICK, Reader
from tests.support.store import Day, position


class Wire:
    """A store and a feeder that the test lets answer."""

    def __init__(self) -> None:
        self.hub = Hub(self)
        self.day = Day()
        self.subscribed: list[Topic] = []
        self.asked = 0
        # The newest questions.
        self.question = 0
        self.ask_of_store: CatchUp | None = None

    def subscribe(self, topic: Topic) -> None:
        self.subscribed.append(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self.subscribed.remove(topic)

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        self.asked += 1
        self.question = self.asked
        return self.asked

    def ask_store(self, topics: list[Topic], question: StoreQuestion) -> int | None:
        self.asked += 1
        after = question.after
        seq, epoch = (None, None) if after is None else (after.seq, after.epoch)
        self.ask_of_store = CatchUp(
            self.asked, [*topics], seq, question.room, epoch, start=question.start, end=question.end
        )
        return self.asked

    def read(self, end: int | None = None, kind: type[Reader] | None = None) -> Reader:
        reader = (kind or Prompt)(BEGAN, end)
        self.hub.read({TICK: (reader, StoreQuestion(BEGAN, None, end, CHUNK, CHUNK))}, 0.0)
        return reader

    def answer(self, seq: int, now: float, *, epoch: int = 100) -> None:
        body = frame(seq, epoch).body if seq else None
        self.hub.answer(TopicState(self.question, TICK, "live", epoch=epoch, seq=seq, body=body), now)

    def answer_store(self, now: float) -> None:
        ask, self.ask_of_store = self.ask_of_store, None
        assert ask is not None
        for history in self.day.answer(ask):
            self.hub.history(history, now)


class Prompt(Reader):
    """A reader whose client has its turn at once."""

    def open(self, act: Callable[[float], None]) -> None:
        act(0.0)


class Follower(Prompt):
    """A reader that takes older epochs too."""

    def deliver(self, frame: Frame) -> None:
        self.got.append(frame)


def frame(seq: int, epoch: int = 100) -> Frame:
    return Frame(TICK, epoch, seq, 1, 1, frames.encode({"600519.SH": [{"time": BEGAN + seq, "seq": seq}]}))


def seqs(reader: Reader) -> list[int | Gap | None]:
    return [of.seq if isinstance(of, Frame) else of for of in reader.got]


def test_store_that_stays_behind_is_given_up_for_the_last_value() -> None:
    wire = Wire()
    reader = wire.read()
    for seq in (1, 2):
        wire.day.keep(frame(seq))
    # The feeder is further, and publishes nothing.
    wire.answer(5, 0.0)
    wire.answer_store(0.0)
    now, first = 0.0, wire.question
    while wire.question == first:
        now += 0.25
        wire.hub.expire(now)
        if wire.ask_of_store is not None:
            wire.answer_store(now)
    assert now >= PATIENCE
    wire.answer(5, now)
    gap = Gap("store_behind", Position(100, 2), Position(100, 5))
    assert seqs(reader) == [1, 2, None, gap, 5]
    wire.hub.receive(frame(6), now)
    assert seqs(reader)[-1] == 6


def test_gap_is_told_although_the_feeder_does_not_answer_either() -> None:
    wire = Wire()
    reader = wire.read()
    for seq in (1, 2):
        wire.day.keep(frame(seq))
    wire.answer(5, 0.0)
    wire.answer_store(0.0)
    now = 0.0
    while now < PATIENCE + ANSWER_TIMEOUT + 2:
        now += 0.25
        wire.hub.expire(now)
        if wire.ask_of_store is not None:
            wire.answer_store(now)
    assert seqs(reader) == [1, 2, None, Gap("store_behind", Position(100, 2))]
    wire.hub.receive(frame(6), now)
    assert seqs(reader)[-1] == 6


def test_part_of_a_store_that_is_away_ends_and_says_so() -> None:
    wire = Wire()
    reader = wire.read(BEGAN + 100)
    assert wire.subscribed == []
    now = 0.0
    while now < PATIENCE + 1:
        now += 0.25
        wire.hub.expire(now)
    assert reader.beginning is not None
    assert (reader.beginning.gap, reader.is_ended) == (Gap("store_away"), True)
    wire.hub.expire(now + 1)
    assert wire.hub.streams == {}


def test_reader_follows_a_feeder_whose_clock_was_set_back() -> None:
    wire = Wire()
    reader = wire.read(kind=Follower)
    wire.day.keep(frame(1))
    wire.answer(1, 0.0)
    wire.answer_store(0.0)
    wire.hub.feeder_seen(100, 0, 0.0)
    wire.hub.receive(frame(1), 0.0)
    second = wire.read(kind=Follower)
    wire.answer(1, 0.0)
    for now in (1.0, 2.0):
        wire.hub.feeder_seen(99, 0, now)
    wire.answer(1, 2.0, epoch=99)
    wire.hub.receive(frame(2, 99), 2.0)
    assert position(frame(2, 99)) == reader.last == second.last
    assert second.beginning is not None
    assert second.beginning.gap == Gap("restart")


def test_message_lost_before_the_meeting_is_read_from_the_store() -> None:
    wire = Wire()
    reader = wire.read()
    wire.day.keep(frame(1))
    wire.answer(1, 0.0)
    wire.answer_store(0.0)
    for seq in (2, 3):
        wire.day.keep(frame(seq))
    # 2 was lost on the way to the gateway.
    wire.hub.receive(frame(3), 0.0)
    assert seqs(reader) == [1]
    wire.answer_store(0.0)
    assert seqs(reader) == [1, 2, 3]
    wire.hub.receive(frame(4), 0.0)
    assert seqs(reader)[-2:] == [None, 4] or seqs(reader)[-2:] == [4, None]


def test_first_message_of_a_new_epoch_is_told_to_be_one() -> None:
    wire = Wire()
    reader = wire.read()
    wire.day.keep(frame(1))
    wire.answer(1, 0.0)
    wire.answer_store(0.0)
    wire.hub.receive(frame(1, 101), 0.0)
    assert seqs(reader) == [1, Gap("restart", Position(100, 1), Position(101, 1)), 1, None]


def test_held_messages_that_the_store_has_missed_are_delivered() -> None:
    wire = Wire()
    reader = wire.read()
    wire.day.keep(frame(1))
    wire.answer(1, 0.0)
    # The store loses 3 and 4 here, and the first message after the restart; the gateway holds all of them.
    for seq in (2, 3, 4, 5):
        wire.hub.receive(frame(seq), 0.0)
    for seq in (2, 5):
        wire.day.keep(frame(seq))
    for seq in (1, 2):
        wire.hub.receive(frame(seq, 101), 0.0)
    wire.day.keep(frame(2, 101))
    wire.answer_store(0.0)
    assert seqs(reader) == [1, 2, 3, 4, 5, Gap("restart", Position(100, 5), Position(101, 1)), 1, 2, None]


def test_gap_is_told_where_held_messages_do_not_fill_it() -> None:
    wire = Wire()
    reader = wire.read()
    wire.day.keep(frame(1))
    wire.answer(1, 0.0)
    for seq in (3, 4, 5):
        wire.hub.receive(frame(seq), 0.0)
    wire.day.keep(frame(5))
    wire.answer_store(0.0)
    [first, gap, last] = seqs(reader)
    assert isinstance(gap, Gap)
    assert (first, gap.reason, gap.after, gap.before, last) == (1, "gap", Position(100, 1), Position(100, 5), 5)


def test_reader_without_a_turn_waits_while_the_store_answers() -> None:
    wire = Wire()
    wire.day.keep(frame(1))
    waiting = wire.read(BEGAN + 100, Reader)
    assert wire.ask_of_store is None
    now = 0.0
    while now < 3 * PATIENCE:
        now += PATIENCE / 2
        wire.read(BEGAN + 100)
        wire.answer_store(now)
        wire.hub.expire(now)
    assert waiting.beginning is None
    [open] = waiting.acts
    open(now)
    wire.answer_store(now)
    assert (seqs(waiting), waiting.is_ended) == ([1], True)


def test_reader_without_a_turn_is_told_of_a_store_that_is_away() -> None:
    wire = Wire()
    waiting = wire.read(None, Reader)
    wire.answer(1, 0.0)
    wire.hub.expire(PATIENCE - 0.1)
    assert waiting.beginning is None
    wire.hub.expire(PATIENCE)
    assert waiting.beginning is not None
    assert waiting.beginning.gap == Gap("store_away")
    wire.answer(1, PATIENCE)
    # The turn that comes then changes nothing.
    [open] = waiting.acts
    open(PATIENCE)
    assert (seqs(waiting), wire.ask_of_store) == ([None, 1], None)
