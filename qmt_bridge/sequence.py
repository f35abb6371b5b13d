"""What a consumer receives, in order: a last value before the news, trade events without a gap. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from qmt_bridge.errors import Refused, WireError, WireVersionError
from qmt_bridge.reading.stored_topic import StoredTopic
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.journal import replayed, successors
from qmt_bridge.wire.messages import FeedStatus, event_position, read_status
from qmt_bridge.wire.positions import JournalPosition, Position, Step
from qmt_bridge.wire.requests import CatchUp, TopicState, parts_of
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Topic, behaviour_of, shown_topic

# Seconds without any answer about a trade topic after which its question is asked again: the answer was lost.
AGAIN_SECONDS = 5.0
# Seconds that messages are waited for which a last value shows: they come by another socket than the value.
LATE_SECONDS = 10.0
# Bytes of a journal that one question asks for. The caller sets the pace: without a limit, all that a slow caller has
# not taken yet would be queued in memory.
ROOM_BYTES = 512 * 1024
# Trade events that are held because events before them are missing; what does not fit is read from the journal.
MAX_HELD = 20_000

T = TypeVar("T")


class LastValues:
    """Puts last values before the news: holds what arrives until the question about its topic is answered."""

    def __init__(self, topics: list[Topic], snapshot: bool | Iterable[Topic]) -> None:
        """Put last values before the news of all topics, of none, or of those of `snapshot`."""
        self.unasked: set[Topic] = set(topics)
        self._snapshot = frozenset(topics if snapshot is True else () if snapshot is False else snapshot)
        self.held: dict[Topic, list[Frame]] = {topic: [] for topic in self._snapshot}
        # The parts of an answer that is not complete: between two of them messages are handed out.
        self._parts: dict[Topic, list[Frame]] = {}
        # Last values that came after messages of their topics were handed out, and are newer. What is between is on its
        # way, or lost: answers and messages come by two sockets.
        self._late: dict[Topic, list[Frame]] = {}
        # Since when each is waited for, s of the caller's clock.
        self._late_since: dict[Topic, float] = {}
        self._gaps: list[tuple[Topic, int | None]] = []
        # The topics of which an answer of an older epoch was dropped.
        self._asked_again: set[Topic] = set()
        # The position of the newest message of a topic.
        self._positions: dict[Topic, Position] = {}

    def arrived(self, frame: Frame) -> list[Frame]:
        """Return the frame if it is newer than the one before, nothing if it is old or has to be held.

        A late last value is before or behind it, where the frame shows that nothing else will be.
        """
        held = self.held.get(frame.topic)
        if held is not None:
            held.append(frame)
            return []
        if frame.topic not in self._late:
            return [frame] if self._is_news(frame) else []
        late = self._late[frame.topic][0]
        frames = []
        if (frame.epoch, frame.seq) > (late.epoch, late.seq):
            # What is between the newest message and the last value is lost.
            frames += self._hand_out_late(frame.topic)
        if self._is_news(frame):
            frames.append(frame)
        return frames + self._meet(frame.topic)

    def answered(self, state: TopicState) -> list[Frame]:
        """Return the last value and what was held, or raise `Refused`.

        Where messages were handed out, because no answer came in time, the last value waits for those before it. Then a
        market's is handed out, which has codes that no message had; any other is the newest message.
        """
        topic = Topic(state.topic)
        if state.epoch and state.epoch < self._newest_epoch(topic):
            return self._answered_by_an_ended_process(topic, state)
        if state.state == "refused":
            raise _refused(state)
        if state.state == "pending":
            # The source has yet to decide. The feeder answers the next question when it has, or says pending again.
            self.unasked.add(topic)
            return self._release(topic)
        value = self._parts.pop(topic, [])
        if value and (value[0].epoch, value[0].seq) != (state.epoch, state.seq):
            # The rest of that answer was lost.
            value = []
        if state.body is not None and topic in self._snapshot:
            value.append(Frame(topic, state.epoch, state.seq, 0, 0, state.body))
        if state.more:
            self._parts[topic] = value
            return []
        if topic not in self._positions:
            if value:
                self._positions[topic] = Position(state.epoch, state.seq)
            return value + self._release(topic)
        if value:
            self._late[topic] = value
            self._late_since.pop(topic, None)
        return self._meet(topic)

    @property
    def has_late(self) -> bool:
        """Return whether a last value waits for the messages before it."""
        return bool(self._late)

    def take_overdue(self, now: float) -> list[Frame]:
        """Return late last values whose messages have not come for `LATE_SECONDS`, as after a loss that no other shows.

        Call it only when no more messages can be taken at once.
        """
        frames: list[Frame] = []
        for topic in [*self._late]:
            if now >= self._late_since.setdefault(topic, now) + LATE_SECONDS:
                frames += self._hand_out_late(topic)
        return frames

    def _is_news(self, frame: Frame) -> bool:
        """Take the position of a frame that is newer than the one before, and note what is missing between."""
        before = self._positions.get(frame.topic)
        if before is not None:
            if frame.epoch != before.epoch:
                self._gaps.append((frame.topic, None))
            elif frame.seq <= before.seq:
                return False
            elif frame.seq > before.seq + 1:
                self._gaps.append((frame.topic, frame.seq - before.seq - 1))
        self._positions[frame.topic] = Position(frame.epoch, frame.seq)
        return True

    def _meet(self, topic: Topic) -> list[Frame]:
        """Return the late last value if the message of its position was handed out; drop it if a newer one was."""
        late = self._late.get(topic)
        if late is None or (position := Position(late[0].epoch, late[0].seq)) > self._positions[topic]:
            return []
        self._drop_late(topic)
        is_of_many = behaviour_of(topic).keeps == "by_code"
        return late if is_of_many and position == self._positions[topic] else []

    def _hand_out_late(self, topic: Topic) -> list[Frame]:
        """Return the late last value in the place of messages that are lost."""
        late = self._late[topic]
        self._drop_late(topic)
        return late if self._is_news(late[0]) else []

    def _drop_late(self, topic: Topic) -> None:
        del self._late[topic]
        self._late_since.pop(topic, None)

    def _newest_epoch(self, topic: Topic) -> int | float:
        before = self._positions.get(topic)
        held = (frame.epoch for frame in self.held.get(topic, ()))
        return max((before.epoch if before is not None else 0, *held))

    def _answered_by_an_ended_process(self, topic: Topic, state: TopicState) -> list[Frame]:
        """Drop a late answer; ask once more where the last value is still waited for.

        Only once, because a process whose clock was set back answers with an older epoch for ever.
        """
        if state.more or topic not in self.held:
            return []
        if topic in self._asked_again:
            return self._release(topic)
        self._asked_again.add(topic)
        self.unasked.add(topic)
        return []

    def give_up(self) -> list[Frame]:
        """Return everything held: no answer came in time."""
        return [frame for topic in list(self.held) for frame in self._release(topic)]

    def begin(self, topic: Topic, position: Position) -> None:
        """Take the position of a topic whose messages up to it were handed out by another way."""
        if position.epoch:
            self._positions[topic] = position

    def missed(self, topic: Topic, count: int | None) -> None:
        """Note that messages are missing."""
        self._gaps.append((topic, count))

    def take_gaps(self) -> list[tuple[Topic, int | None]]:
        """Return once what was lost: topic and number of messages, None where the feeder has a new epoch."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def _release(self, topic: Topic) -> list[Frame]:
        return [frame for held in self.held.pop(topic, []) for frame in self.arrived(held)]


class Events:
    """The events of one trade topic in order, each once; what is missing is read from the journal.

    `after` is the position of the last event that an earlier run has seen, or the moment from which on they are wanted;
    None begins with what is published from now on. The rules are those of `qmt_bridge.wire.journal`.
    """

    def __init__(self, topic: Topic, after: JournalPosition | None = None) -> None:
        self.topic = topic
        # Whether events from the moment on are missing; taken by the sequence.
        self.is_incomplete = False
        # The moment, until the journal has told which position that is.
        self._moment: JournalPosition | None = None
        if after is not None and after.start is not None:
            self._moment, after = after, None
        # The position of the last event that was handed out, or that an earlier run has seen.
        self._after = after
        # Without that, where the journal was when the first question was answered.
        self._start: JournalPosition | None = None
        # Events before which others are missing, and those of an epoch whose journal has not answered yet.
        self._held: deque[tuple[Position, Frame]] = deque(maxlen=MAX_HELD)
        self._unasked = True
        # The id of the question under way, its position, and when it was sent or an answer came.
        self._question: int | None = None
        self._asked: JournalPosition | None = None
        self._heard_at = 0.0

    def asks(self, now: float) -> bool:
        """Return whether there is something to ask."""
        return self._unasked or (self._question is not None and now >= self._heard_at + AGAIN_SECONDS)

    def ask(self, number: int, now: float) -> CatchUp:
        """Return what to ask as question `number`."""
        self._unasked = False
        self._question = number
        self._heard_at = now
        self._asked = self._moment or self._after or self._start
        return CatchUp.after_position(number, [self.topic], self._asked, ROOM_BYTES)

    def check(self, is_new_epoch: bool) -> None:
        """Ask the journal for events that may have been lost without a later one that would show the gap.

        In a new epoch, a question to the process before will not be answered.
        """
        if is_new_epoch:
            self._question = None
        self._unasked = self._unasked or self._question is None

    def arrived(self, frame: Frame, seq: int) -> list[Frame]:
        """Return the frame, whose sequence number is `seq`, if it is next, nothing if it is old or has to be held."""
        position = Position(frame.epoch, seq)
        if self._moment is not None:
            self._held.append((position, frame))
            return []
        if self._after is None:
            self._after = self._begin(seq)
        match self._position.step(position):
            case Step.NEXT:
                return [self._hand_out(frame, position)]
            case Step.GAP | Step.NEW_EPOCH:
                self._held.append((position, frame))
                self._unasked = self._unasked or self._question is None
        return []

    def answered(self, state: TopicState, now: float) -> list[Frame]:
        """Return the events of an answer that are news, and the held ones that follow; raise `Refused`."""
        # The answer to an older question also shows that the feeder is answering: it answers in order.
        self._heard_at = now
        if state.id != self._question:
            return []
        if state.state == "refused":
            raise _refused(state)
        self._question = None
        if self._is_of_another_epoch(state.epoch):
            self._unasked = True
            return []
        if state.body is None:
            self._take_position(JournalPosition(state.seq, state.epoch, exact=True))
            return []
        return self._take_events(state)

    @property
    def _position(self) -> Position:
        assert self._after is not None
        return Position(self._after.epoch or 0, self._after.seq)

    def _begin(self, seq: int) -> JournalPosition:
        """Return the position of a consumer that named none, when the event `seq` is the first that arrives.

        It may have been published before the question was answered and still arrive after the answer.
        """
        start = self._start
        if start is None:
            return JournalPosition(seq - 1)
        return start if seq > start.seq + 1 else JournalPosition(seq - 1, start.epoch, start.exact)

    def _is_of_another_epoch(self, epoch: int) -> bool:
        """Return whether an answer with `epoch` says nothing about the position that has been reached."""
        known = self._after or self._start
        if known is None or known.epoch is None or epoch == known.epoch:
            return False
        # The process of an older epoch has ended. One of a newer epoch answered about the position of the question,
        # not about a position that was reached since.
        moved = self._after is not None and (self._asked is None or self._after.seq != self._asked.seq)
        return epoch < known.epoch or moved

    def _take_position(self, position: JournalPosition) -> None:
        """Take where the journal is."""
        if self._start is None:
            self._start = position
        if self._after is not None:
            self._after = JournalPosition(self._after.seq, position.epoch, exact=True)

    def _take_events(self, state: TopicState) -> list[Frame]:
        bodies = replayed(state)
        after = self._after or self._start or JournalPosition(0)
        if self._moment is not None:
            after = JournalPosition(state.seq - len(bodies))
            self._moment = None
            self.is_incomplete = bool(state.holes)
        self._after = JournalPosition(after.seq, state.epoch, exact=True)
        frames = [
            self._hand_out(Frame(self.topic, state.epoch, seq, 0, 0, body), Position(state.epoch, seq))
            for seq, body in enumerate(bodies, state.seq - len(bodies) + 1)
            if seq > self._position.seq
        ]
        if not state.more:
            frames += [self._hand_out(frame, position) for position, frame in successors(self._position, self._held)]
            # Held events of an older epoch that this journal does not have will never follow.
            reached = self._position
            self._held = deque((held for held in self._held if held[0] > reached), MAX_HELD)
        self._unasked = state.more or bool(self._held)
        return frames

    def _hand_out(self, frame: Frame, position: Position) -> Frame:
        self._after = JournalPosition(position.seq, position.epoch, exact=True)
        return frame


class Sequence:
    """Everything that one consumer receives: says what to ask the feeder, and what to hand out.

    `events` has the trade topics; ALL_TRADES carries the events of every account. `stored` has the topics that begin
    in the past. Heartbeats are handed out if `shows_status`.
    """

    def __init__(
        self,
        values: LastValues,
        events: dict[Topic, Events],
        shows_status: bool,
        stored: Iterable[StoredTopic] = (),
    ) -> None:
        self.values = values
        # Those that have not met what is published.
        self._stored = {of.topic: of for of in stored}
        self._events = events
        self._shows_status = shows_status
        self._questions = 0
        # The newest heartbeat, and the sequence number of the journal up to which nothing was missed.
        self._status: FeedStatus | None = None
        self._checked: int | None = None

    @property
    def reads_store(self) -> bool:
        """Return whether any topic begins with what the store has."""
        return bool(self._stored)

    def asks(self, socket: str, now: float) -> bool:
        """Return whether `questions` has any for the `socket` "market", "trade" or "store"."""
        if socket == "store":
            return any(of.asks(now) for of in self._stored.values())
        if socket == "market":
            return bool(self.values.unasked)
        return any(events.asks(now) for events in self._events.values())

    def questions(self, socket: str, now: float) -> Iterator[CatchUp]:
        """Yield what to ask the feeder on that socket; a question counts as asked once the next one is asked for."""
        for part in parts_of(sorted(self.values.unasked)) if socket == "market" else ():
            self._questions += 1
            yield CatchUp(self._questions, part)
            self.values.unasked.difference_update(map(Topic, part))
        for of in [*self._stored.values()] if socket == "store" else ():
            if of.asks(now):
                self._questions += 1
                yield of.ask(self._questions, now)
        for events in self._events.values() if socket == "trade" else ():
            if events.asks(now):
                self._questions += 1
                yield events.ask(self._questions, now)

    def answered(self, state: TopicState, now: float) -> list[Frame]:
        """Return what an answer brings; raise `Refused`."""
        stored = self._stored.get(Topic(state.topic))
        if stored is not None:
            stored.target = max(stored.target, Position(state.epoch, state.seq))
        events = self._events.get(Topic(state.topic))
        if events is None:
            return self.values.answered(state)
        frames = events.answered(state, now)
        if events.is_incomplete:
            events.is_incomplete = False
            self.values.missed(events.topic, None)
        return frames

    def read(self, history: TopicHistory, now: float) -> list[Frame]:
        """Return what an answer of the store brings."""
        stored = self._stored.get(Topic(history.topic))
        return [] if stored is None else self._after(stored, stored.answered(history, now))

    def next_due(self, now: float) -> float | None:
        """Return when the next message that is played is due; None without one."""
        return min((at for of in self._playing() if (at := of.due(now)) is not None), default=None)

    def play(self, now: float) -> list[Frame]:
        """Return the messages that are due, in the order of their times."""
        due: list[tuple[int, Frame]] = []
        for of in self._playing():
            due += of.take_due(now)
            self._after(of, [])
        return [frame for _, frame in sorted(due, key=lambda played: played[0])]

    def _playing(self) -> list[StoredTopic]:
        """Return the topics that are played, once the first message of each is known: they have one clock."""
        playing = [of for of in self._stored.values() if of.playback is not None]
        return playing if all(of.is_answered for of in playing) else []

    def give_up(self, now: float) -> list[Frame]:
        """Return what can be handed out of topics about which the store has told nothing new for too long."""
        late = [self._after(of, of.give_up(now)) for of in [*self._stored.values()]]
        return [frame for frames in late for frame in frames]

    def _after(self, stored: StoredTopic, frames: list[Frame]) -> list[Frame]:
        """Note what a stored topic has told, and whether it is live now."""
        for count in stored.gaps:
            self.values.missed(stored.topic, count)
        stored.gaps.clear()
        if stored.live:
            del self._stored[stored.topic]
            self.values.begin(stored.topic, stored.position)
        return frames

    def arrived(self, frame: Frame) -> list[Frame]:
        """Return what can be handed out now that `frame` has arrived."""
        if (stored := self._stored.get(frame.topic)) is not None:
            return self._after(stored, stored.arrived(frame))
        if frame.topic.startswith(ALL_TRADES):
            if ALL_TRADES in self._events:
                return self._events[ALL_TRADES].arrived(frame, _read(event_position, frame))
            # The accounts of a prefix that is no whole topic are not known before their first event.
            return self._events.setdefault(frame.topic, Events(frame.topic)).arrived(frame, frame.seq)
        if frame.topic == STATUS_TOPIC and self._events:
            self._check(_read(read_status, frame))
            if not self._shows_status:
                return []
        return self.values.arrived(frame)

    def _check(self, status: FeedStatus) -> None:
        before, self._status = self._status, status
        if before is None:
            return
        is_new_epoch = status.epoch != before.epoch
        # Heartbeats and trade events come by two sockets: the newest event may still be on its way when a heartbeat
        # tells of it, but no longer at the next heartbeat.
        if is_new_epoch or before.trade_seq != self._checked:
            self._checked = before.trade_seq
            for events in self._events.values():
                events.check(is_new_epoch)


def _read(how: Callable[[bytes], T], frame: Frame) -> T:
    try:
        return how(frame.body)
    except WireVersionError:
        raise
    except WireError as exc:
        raise WireError(f"a message of {shown_topic(frame.topic)} cannot be read: {exc}") from exc


def _refused(state: TopicState) -> Refused:
    reason = f"{state.topic}: {state.error}"
    return Refused(state.code or "internal", reason, oldest=state.oldest, newest=state.seq)
