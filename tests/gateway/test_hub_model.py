"""A random model test of the hub: late and lost messages, feeder restarts, members that join and leave."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from gateway.hub import Hub
from gateway.streams.member import Refusal
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import ALL_TRADES, Topic, quote_topic, trade_topic, whole_topic

TICK, SH = quote_topic("600519.SH"), whole_topic("SH")
EVENTS = [trade_topic("1"), trade_topic("2")]
CHUNK = 8


class Trader:
    """Keeps its position when it joins again, as a client does."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.got: list[int] = []
        self.acts: list[Callable[[float], None]] = []
        self.joined = False

    @property
    def position(self) -> int:
        return self.got[-1] if self.got else self.start

    @property
    def epoch(self) -> int | None:
        """Return an epoch whose journal has the position, if one is known."""
        return None

    def deliver(self, frame: Frame) -> None:
        self.got.append(frame.seq)

    def starts(self, epoch: int, seq: int) -> bool:
        return True

    def settle(self, outcome: str, refusal: Refusal | None) -> None:
        assert refusal is None

    def when_drained(self, act: Callable[[float], None]) -> None:
        self.acts.append(act)

    def missed(self, count: int) -> None:
        raise AssertionError("a trade event is missing")

    def snapshot_ended(self, count: int) -> None:
        raise AssertionError("trade events have no snapshot")


class Newcomer(Trader):
    """A connection without a position: it receives the events that are published after it joins."""

    def __init__(self, published: int, positioned: bool) -> None:
        super().__init__(published)
        self.positioned = positioned


class Reader(Trader):
    """A client that is refused when the journal is another one, and then continues after its newest position."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.journal: int | None = None
        # The events since it joined or was refused: the number of each event by its position.
        self.content: dict[int, int] = {}
        self._epoch: int | None = None

    @property
    def epoch(self) -> int | None:
        return self._epoch

    def deliver(self, frame: Frame) -> None:
        of = frame.data["of"]
        assert self.journal in (None, of), "an event of another journal without a refusal"
        assert frame.seq == self.position + 1
        self.journal, self._epoch = of, frame.epoch
        self.content[frame.seq] = frame.data["number"]
        super().deliver(frame)

    def settle(self, outcome: str, refusal: Refusal | None) -> None:
        if refusal is not None:
            assert refusal.code == "resume_expired"
            self.joined = False
            self.got.clear()
            self.content.clear()
            self.acts.clear()
            self.start, self._epoch, self.journal = refusal.newest, refusal.epoch, None


class Resident(Trader):
    """Keeps the stream open, as a worker does, and joins again after a refusal."""

    def __init__(self) -> None:
        super().__init__(0)
        self.joined = True

    def deliver(self, frame: Frame) -> None:
        pass

    def settle(self, outcome: str, refusal: Refusal | None) -> None:
        self.joined = refusal is None


class Watcher:
    """One connection that watches a topic of market data."""

    def __init__(self) -> None:
        self.position = (0, 0)
        self.missing = 0
        self.told = 0

    def deliver(self, frame: Frame) -> None:
        epoch, seq = self.position
        assert (frame.epoch, frame.seq) > self.position, "a repeated frame, or one out of order"
        if frame.epoch == epoch:
            self.missing += frame.seq - seq - 1
        self.position = (frame.epoch, frame.seq)

    def starts(self, epoch: int, seq: int) -> bool:
        return True

    def settle(self, outcome: str, refusal: Refusal | None) -> None:
        assert refusal is None

    def when_drained(self, act: Callable[[float], None]) -> None:
        raise AssertionError("a value comes in one piece")

    def missed(self, count: int) -> None:
        self.told += count

    def snapshot_ended(self, count: int) -> None:
        """Ignore it."""


class World:
    """A feeder, its connections to one hub, and the hub's members.

    With `journals` a restart may bring another journal, also with an older epoch (a clock that was set back), or lose
    events that were not on the disk.
    """

    def __init__(self, seed: int, journals: bool = False) -> None:
        self.random = random.Random(seed)
        self.journals = journals
        self.now = 0.0
        self.epoch = 1000
        self.epochs = {self.epoch}
        self.journal = 0
        # The number of the journal, and how many events were published: each event has its own number.
        self.of = 0
        self.published = 0
        self.content: dict[int, int] = {}
        # The position of the last event on the disk.
        self.saved = 0
        # The epochs that had this journal, each with the last of its events that the journal still has.
        self.journal_epochs: dict[float, float] = {self.epoch: math.inf}
        self.seqs = {TICK: 0, SH: 0}
        self.subscribed: set[Topic] = set()
        self.trades: deque[Frame] = deque()
        # Ticks, and heartbeats between them as (epoch, trade_seq).
        self.market: deque[Frame | tuple[int, int]] = deque()
        self.questions: deque[tuple[int, Topic, int | None, float | None, bool]] = deque()
        self.replies: deque[TopicState] = deque()
        self.asked = 0
        self.away = False
        self.hub = Hub(self)
        self.traders = [Reader(0) if journals else Trader(0) for _ in range(3)]
        self.newcomers: list[Newcomer] = []
        self.watchers: dict[Topic, list[Watcher]] = {TICK: [], SH: []}
        # A worker opens its stream of trade events before clients join.
        self.resident = Resident()
        if seed % 2 and journals:
            self.hub.join({ALL_TRADES: self.resident}, self.now)
        elif seed % 2:
            self.newcomer()

    # -- Upstream

    def subscribe(self, topic: Topic) -> None:
        self.subscribed.add(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self.subscribed.discard(topic)

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        if self.away:
            return None
        self.asked += 1
        seq, epoch, exact = (None, None, False) if after is None else (after.seq, after.epoch, after.exact)
        self.questions.extend((self.asked, topic, seq, epoch, exact) for topic in topics)
        return self.asked

    # -- What happens

    def event(self) -> None:
        self.write(self.journal + 1)
        if ALL_TRADES in self.subscribed:
            topic = self.random.choice(EVENTS)
            self.trades.append(Frame(topic, self.epoch, self.journal, 1, 1, self.body(self.journal)))

    def write(self, last: int) -> None:
        for seq in range(self.journal + 1, last + 1):
            self.published += 1
            self.content[seq] = self.published
        self.journal = last

    def save(self) -> None:
        self.saved = self.journal

    def body(self, seq: int) -> bytes:
        return frames.encode({"seq": seq, "of": self.of, "number": self.content[seq]})

    def tick(self) -> None:
        topic = self.random.choice((TICK, SH))
        self.seqs[topic] += 1
        if topic in self.subscribed:
            self.market.append(Frame(topic, self.epoch, self.seqs[topic], 1, 1, frames.encode({})))

    def heartbeat(self) -> None:
        self.market.append((self.epoch, self.journal))

    def arrive(self) -> None:
        pipe = self.random.choice((self.trades, self.market))
        if not pipe:
            return
        message = pipe.popleft()
        if isinstance(message, Frame):
            self.hub.receive(message, self.now)
        else:
            self.hub.feeder_seen(*message, self.now)

    def answer(self) -> None:
        """Let the feeder answer one question; the answer from a journal is one chunk."""
        if not self.questions:
            return
        number, topic, after, epoch, exact = self.questions.popleft()
        if topic != ALL_TRADES:
            seq = self.seqs[topic]
            body = frames.encode({}) if seq else None
            self.replies.append(TopicState(number, topic, "live", epoch=self.epoch, seq=seq, body=body))
        elif after is None:
            self.replies.append(TopicState(number, topic, "live", epoch=self.epoch, seq=self.journal))
        elif after > self.journal or not self.has(after, epoch, exact):
            refused = TopicState(number, topic, "refused", "no", "resume_expired", self.epoch, self.journal)
            self.replies.append(refused)
        else:
            last = min(after + CHUNK, self.journal)
            body = frames.encode([msgspec.Raw(self.body(seq)) for seq in range(after + 1, last + 1)])
            more = last < self.journal
            self.replies.append(TopicState(number, topic, "live", None, None, self.epoch, last, body, more))

    def has(self, after: int, epoch: float | None, exact: bool) -> bool:
        return epoch is None or (epoch in self.journal_epochs and (not exact or after <= self.journal_epochs[epoch]))

    def reply(self) -> None:
        if self.replies:
            self.hub.answer(self.replies.popleft(), self.now)

    def drain(self) -> None:
        """Let the outbox of a member of trade events become empty."""
        trader = self.random.choice([*self.traders, *self.newcomers, self.resident])
        acts, trader.acts = trader.acts, []
        for act in acts:
            act(self.now)

    def lose(self) -> None:
        """Lose some messages, as a full socket does, or all of them, as a broken connection does."""
        pipe: deque[Frame] | deque[Frame | tuple[int, int]] = self.random.choice((self.trades, self.market))
        for _ in range(self.random.choice((1, 3, len(pipe)))):
            if pipe:
                pipe.pop()

    def lose_answers(self) -> None:
        self.random.choice((self.questions, self.replies)).clear()

    def restart(self) -> None:
        self.epoch = max(self.epochs) + 1
        self.seqs = dict.fromkeys(self.seqs, 0)
        self.questions.clear()
        kind = self.random.random() if self.journals else 1.0
        if kind < 0.3:
            length = self.random.choice((0, self.journal // 2, self.journal, 2 * self.journal + 100))
            if self.random.random() < 0.3:
                # Epochs are distinct and greater than 0.
                self.epoch = min(self.epochs) - 1
            self.of += 1
            self.journal_epochs.clear()
            self.content.clear()
            self.journal = 0
            self.write(length)
            self.save()
        elif kind < 0.6:
            self.journal = self.saved
        for epoch in self.journal_epochs:
            self.journal_epochs[epoch] = min(self.journal_epochs[epoch], self.journal)
        self.journal_epochs[self.epoch] = math.inf
        self.epochs.add(self.epoch)

    def toggle_link(self) -> None:
        self.away = not self.away

    def trader(self) -> None:
        trader = self.random.choice(self.traders)
        if trader.joined:
            self.hub.leave(ALL_TRADES, trader)
            trader.joined = False
        else:
            self.join(trader)

    def join(self, trader: Trader) -> None:
        trader.joined = True
        if isinstance(trader, Reader):
            # While it was not joined, the journal may have been replaced without a refusal.
            trader.content.clear()
        self.hub.join({ALL_TRADES: trader}, self.now, JournalPosition(trader.position, trader.epoch))

    def newcomer(self) -> None:
        stream = self.hub.streams.get(ALL_TRADES)
        self.newcomers.append(Newcomer(self.journal, stream is not None and stream.epoch > 0))
        self.hub.join({ALL_TRADES: self.newcomers[-1]}, self.now)

    def come_back(self) -> None:
        """Break the connections of all traders and let them join again, as after a restart of their worker."""
        for trader in self.traders:
            if trader.joined:
                self.hub.leave(ALL_TRADES, trader)
        for trader in self.traders:
            self.join(trader)

    def watcher(self) -> None:
        topic = self.random.choice((TICK, SH))
        present = self.watchers[topic]
        if len(present) > 2 or (present and self.random.random() < 0.5):
            self.hub.leave(topic, present.pop(self.random.randrange(len(present))))
        else:
            present.append(Watcher())
            self.hub.join({topic: present[-1]}, self.now)

    def wait(self) -> None:
        if not self.resident.joined:
            self.hub.join({ALL_TRADES: self.resident}, self.now)
        self.now += self.random.choice((0.01, 0.25, 1.0))
        self.hub.expire(self.now)

    def deliver_all(self) -> None:
        """Deliver every message for more than a minute, so that quiet topics are compared."""
        self.away = False
        for _ in range(160):
            self.heartbeat()
            while self.trades or self.market or self.questions or self.replies:
                self.arrive()
                self.answer()
                self.reply()
                self.drain()
            for _ in range(20 + 5 * len(self.newcomers)):
                self.drain()
            self.now += 0.5
            self.hub.expire(self.now)


@pytest.mark.parametrize("seed", range(500))
def test_every_event_and_every_loss_reaches_every_member(seed: int) -> None:
    world = World(seed)
    often = [world.event, world.tick, world.arrive, world.arrive, world.arrive, world.answer, world.reply, world.drain]
    seldom = [world.heartbeat, world.trader, world.watcher, world.wait]
    rare = [world.lose, world.lose_answers, world.restart, world.toggle_link, world.come_back, world.newcomer]
    for _ in range(600):
        kind = world.random.choices((often, seldom, rare), (20, 4, 1))[0]
        world.random.choice(kind)()
    for trader in world.traders:
        if not trader.joined:
            world.join(trader)
    for topic, present in world.watchers.items():
        if not present:
            present.append(Watcher())
            world.hub.join({topic: present[-1]}, world.now)
    world.deliver_all()
    for trader in world.traders:
        assert trader.got == list(range(1, world.journal + 1))
    for newcomer in world.newcomers:
        first = newcomer.got[0] if newcomer.got else world.journal + 1
        assert newcomer.got == list(range(first, world.journal + 1))
        if newcomer.positioned:
            assert first <= newcomer.start + 1
    for topic, present in world.watchers.items():
        for watcher in present:
            if world.seqs[topic]:
                assert watcher.position == (world.epoch, world.seqs[topic])
            assert watcher.told >= watcher.missing


@pytest.mark.parametrize("seed", range(300))
def test_another_journal_is_delivered_only_after_a_refusal(seed: int) -> None:
    world = World(seed, journals=True)
    often = [world.event, world.arrive, world.arrive, world.answer, world.reply, world.drain]
    seldom = [world.heartbeat, world.trader, world.wait, world.save]
    rare = [world.lose, world.lose_answers, world.restart, world.toggle_link, world.come_back]
    for _ in range(600):
        kind = world.random.choices((often, seldom, rare), (20, 4, 1))[0]
        world.random.choice(kind)()
    for _ in range(3):
        # A member whose position has expired continues after the newest one.
        for trader in world.traders:
            if not trader.joined:
                world.join(trader)
        world.deliver_all()
    for _ in range(5):
        world.event()
    world.deliver_all()
    for trader in world.traders:
        assert isinstance(trader, Reader)
        assert (trader.journal, trader.position) == (world.of, world.journal)
        assert trader.content.items() <= world.content.items()
