"""Readers of the store in random worlds: each one gets what is stored and then live, or is told what is missing.

A feeder, a store that follows it, and a hub. Messages are lost on both ways, answers come late or not at all, the
feeder and the store are started again, and what the hub holds overflows.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from gateway.hub import Hub
from gateway.streams import held
from gateway.streams.member import Beginning, Gap, Refusal, StoreQuestion
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.playback import Playback
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.requests import CatchUp, TopicState
from qmt_bridge.wire.topics import Topic, quote_topic, whole_topic
from tests.support.store import Day, position, time_of

CODE = "600519.SH"
TICK = quote_topic(CODE)
SH = whole_topic("SH")
BEGAN = midnight(1_764_300_000_000) + 9 * 3_600_000
# Bytes of a message, and of a chunk of the store: two messages.
BODY = 100
CHUNK = 250


class Reader:
    """A client that asked for the topic from a time on."""

    def __init__(self, start: int, end: int | None, complete: bool = False) -> None:
        self.start, self.end = start, end
        self.complete = complete
        self.beginning: Beginning | None = None
        # What it got, and None where it met the live stream.
        self.got: list[Frame | Gap | None] = []
        self.acts: list[Callable[[float], None]] = []
        # What is to be called from a time on.
        self.later: list[tuple[float, Callable[[float], None]]] = []
        # The bytes of records that are not due yet.
        self.kept = 0
        self.playback: Playback | None = None
        self.outcomes: list[str] = []
        self.is_live = False
        # Messages that were lost after it had met the live stream, as it was told.
        self.missing = 0
        self.told = 0
        self.is_ended = False

    def deliver(self, frame: Frame) -> None:
        assert self.outcomes, "a frame before the outcome"
        assert not self.is_ended
        last = self.last
        assert last is None or position(frame) > last, "a repeated frame, or one out of order"
        if self.complete:
            pass
        elif self.is_live and last is not None and last.epoch == frame.epoch and not isinstance(self.got[-1], Gap):
            self.missing += frame.seq - last.seq - 1
        self.got.append(frame)

    @property
    def last(self) -> Position | None:
        return next((position(of) for of in reversed(self.got) if isinstance(of, Frame)), None)

    def begins(self, beginning: Beginning) -> None:
        assert self.beginning is None
        self.beginning = beginning

    def gap(self, gap: Gap) -> None:
        assert gap.reason
        self.got.append(gap)

    def met(self) -> None:
        assert self.complete or not self.is_live
        self.is_live = True
        self.got.append(None)

    def rest(self) -> None:
        pass

    def read_on(self, act: Callable[[float], None]) -> None:
        self.acts.append(act)

    open = when_drained = read_on

    def play(self, at: float, act: Callable[[float], None]) -> None:
        self.later.append((at, act))

    def keep(self, size: int) -> None:
        self.kept = size

    def run(self, now: float) -> None:
        """Call what its client is ready for."""
        acts, self.acts = self.acts, []
        due, self.later = [act for at, act in self.later if at <= now], [each for each in self.later if each[0] > now]
        for act in (*acts, *due):
            act(now)

    def ended(self) -> None:
        assert self.end is not None
        self.is_ended = True

    def starts(self, epoch: int, seq: int) -> bool:
        return True

    def settle(self, outcome: str, refusal: Refusal | None) -> None:
        assert refusal is None
        self.outcomes.append(outcome)

    def missed(self, count: int) -> None:
        assert not self.complete, "a loss that was not read again"
        self.told += count

    def snapshot_ended(self, count: int) -> None:
        pass


class World:
    """A feeder, a store and a hub, with pipes between them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # Without losses and long waits every reader has to get all.
        self.is_quiet = seed % 4 == 1
        self.now = 0.0
        self.epoch = 1000
        self.time = BEGAN
        self.seqs = {TICK: 0, SH: 0}
        self.published: dict[Topic, list[Frame]] = {TICK: [], SH: []}
        self.to_hub: deque[Frame | int] = deque()
        self.to_store: deque[Frame] = deque()
        self.questions: deque[tuple[int, Topic]] = deque()
        self.replies: deque[TopicState] = deque()
        self.asks: deque[CatchUp] = deque()
        self.histories: deque[TopicHistory] = deque()
        self.subscribed: set[Topic] = set()
        self.asked = 0
        self.store_away = False
        self.day = Day(self.epoch)
        self.hub = Hub(self)
        self.readers: dict[Topic, list[Reader]] = {TICK: [], SH: []}
        self.gone: list[Reader] = []

    # -- Upstream

    def subscribe(self, topic: Topic) -> None:
        assert topic not in self.subscribed
        self.subscribed.add(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self.subscribed.remove(topic)

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        assert after is None
        self.asked += 1
        self.questions.extend((self.asked, topic) for topic in topics)
        return self.asked

    def ask_store(self, topics: list[Topic], question: StoreQuestion) -> int | None:
        self.asked += 1
        if self.store_away:
            return None
        after = question.after
        seq, epoch = (None, None) if after is None else (after.seq, after.epoch)
        ask = CatchUp(self.asked, [*topics], seq, question.room, epoch, start=question.start, end=question.end)
        self.asks.append(ask)
        return self.asked

    # -- What happens

    def publish(self) -> None:
        topic = self.random.choice((TICK, SH))
        self.seqs[topic] += 1
        self.time += self.random.choice((0, 1, 500))
        record = {"time": self.time, "pad": "x" * BODY}
        body = frames.encode({CODE: [record] if topic == TICK else record})
        frame = Frame(topic, self.epoch, self.seqs[topic], 1, 1, body)
        self.published[topic].append(frame)
        self.to_store.append(frame)
        if topic in self.subscribed:
            self.to_hub.append(frame)

    def arrive(self) -> None:
        if self.to_hub:
            arrived = self.to_hub.popleft()
            if isinstance(arrived, Frame):
                self.hub.receive(arrived, self.now)
            else:
                self.hub.feeder_seen(arrived, 0, self.now)

    def store(self) -> None:
        if self.to_store and not self.store_away:
            self.day.keep(self.to_store.popleft())

    def answer(self) -> None:
        if self.questions:
            number, topic = self.questions.popleft()
            newest = self.published[topic][-1:] if self.seqs[topic] else []
            body = newest[0].body if newest else None
            self.replies.append(TopicState(number, topic, "live", epoch=self.epoch, seq=self.seqs[topic], body=body))

    def reply(self) -> None:
        if self.replies:
            self.hub.answer(self.replies.popleft(), self.now)

    def answer_store(self) -> None:
        if self.asks:
            self.histories.extend(self.day.answer(self.asks.popleft()))

    def reply_store(self) -> None:
        if self.histories:
            self.hub.history(self.histories.popleft(), self.now)

    def drain(self) -> None:
        reader = self.random.choice([*self.readers[TICK], *self.readers[SH], *self.gone, Reader(0, None)])
        reader.run(self.now)

    def join(self) -> None:
        topic = self.random.choice((TICK, SH))
        start = self.random.randint(BEGAN, self.time + 300)
        end = self.random.randint(start, self.time + 300) if self.random.random() < 0.2 else None
        reader = Reader(start, end, complete=end is None and self.random.random() < 0.5)
        self.readers[topic].append(reader)
        room = self.random.choice((1, CHUNK))
        speed = 0 if reader.complete else self.random.choice((0, 0, 0, 1, 3, 1000))
        reader.playback = Playback(speed) if speed else None
        question = StoreQuestion(start, None, end, room, CHUNK, reader.playback, complete=reader.complete)
        self.hub.read({topic: (reader, question)}, self.now)

    def leave(self) -> None:
        topic = self.random.choice((TICK, SH))
        if self.readers[topic]:
            reader = self.readers[topic].pop(self.random.randrange(len(self.readers[topic])))
            self.gone.append(reader)
            self.hub.leave(topic, reader)

    def lose(self) -> None:
        pipe: deque[Frame | int] | deque[Frame] = self.random.choice((self.to_hub, self.to_store))
        for _ in range(self.random.choice((1, 3, len(pipe)))):
            if pipe:
                pipe.pop()

    def lose_answers(self) -> None:
        self.random.choice((self.questions, self.replies, self.asks, self.histories)).clear()

    def restart(self) -> None:
        self.epoch += 1
        self.seqs = dict.fromkeys(self.seqs, 0)
        self.questions.clear()

    def toggle_store(self) -> None:
        self.store_away = not self.store_away
        self.asks.clear()

    def heartbeat(self) -> None:
        self.to_hub.append(self.epoch)

    def wait(self) -> None:
        self.now += 0.01 if self.is_quiet else self.random.choice((0.01, 0.25, 1.0))
        self.hub.expire(self.now)

    def settle(self) -> None:
        """Let everything arrive, and quiet topics be compared."""
        self.store_away = False
        for _ in range(160):
            self.heartbeat()
            while self.to_hub or self.to_store or self.questions or self.replies or self.asks or self.histories:
                for step in (self.arrive, self.store, self.answer, self.reply, self.answer_store, self.reply_store):
                    step()
                self.drain()
            for reader in [*self.readers[TICK], *self.readers[SH]]:
                reader.run(self.now)
            self.now += 0.5
            self.hub.expire(self.now)

    def check(self, topic: Topic, reader: Reader) -> None:
        """Check that nothing is missing of which the reader was not told."""
        assert reader.beginning is not None
        published = [frame for frame in self.published[topic] if reader.start <= time_of(frame)]
        got = [of for of in reader.got if isinstance(of, Frame)]
        assert reader.told >= reader.missing
        if got and reader.beginning.gap is None and not isinstance(reader.got[0], Gap):
            # A start that is later than all that is stored begins behind that.
            assert not published or position(got[0]) <= position(published[0]), "its beginning is not complete"
        before: Frame | None = None
        is_told = is_live = False
        for of in reader.got:
            if isinstance(of, Gap):
                is_told = True
            elif of is None:
                is_live = not reader.complete
            else:
                if before is not None and not is_live:
                    is_next = of.epoch == before.epoch and of.seq == before.seq + 1
                    assert is_next != is_told, f"{before} is followed by {of}"
                assert of.body == self.frame(topic, of).body
                before, is_told = of, False
        if not got:
            # All that is stored was before its start, and nothing came after it.
            assert reader.end is not None or not published or reader.beginning.gap is not None
        elif reader.end is None and self.seqs[topic]:
            assert reader.last == Position(self.epoch, self.seqs[topic]), reader.got[-3:]

    def frame(self, topic: Topic, like: Frame) -> Frame:
        return next(frame for frame in self.published[topic] if position(frame) == position(like))


@pytest.mark.parametrize("seed", range(400))
def test_reader_gets_stored_then_live_or_is_told(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(seed)
    if seed % 3 == 0:
        monkeypatch.setattr(held, "STREAM_BYTES", 3 * (2 * BODY + held.OVERHEAD))
    often = [
        world.publish, world.arrive, world.arrive, world.store, world.answer, world.reply,
        world.answer_store, world.reply_store, world.drain,
    ]  # fmt: skip
    seldom = [world.heartbeat, world.join, world.wait]
    rare = [world.lose, world.lose_answers, world.restart, world.toggle_store, world.leave]
    for _ in range(600):
        kind = world.random.choices((often, seldom, rare), (20, 3, 0 if world.is_quiet else 1))[0]
        world.random.choice(kind)()
    world.settle()
    for topic, readers in world.readers.items():
        for reader in readers:
            world.check(topic, reader)
            if world.is_quiet and reader.end is None and reader.beginning is not None and reader.beginning.gap is None:
                assert [of for of in reader.got if isinstance(of, Gap)] == []
                assert reader.missing == 0
