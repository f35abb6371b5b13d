"""What a consumer receives, in order: a last value before the news, trade events without a hole. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import msgspec

from qmt_bridge.errors import Refused, WireError
from qmt_bridge.wire.frames import Frame, read
from qmt_bridge.wire.messages import FeedStatus, event_position
from qmt_bridge.wire.requests import CatchUp, TopicState, parts_of
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Topic, shown_topic

# A question about trade events that nothing was heard of for so long is asked again: its answer was lost.
AGAIN_SECONDS = 5.0
# Of a journal so many bytes are asked for at a time, at the caller's pace: else a slow one would have all of it queued.
ROOM_BYTES = 512 * 1024
# Trade events that wait for those before them; what does not fit is in the journal.
MAX_AHEAD = 20_000

T = TypeVar("T")


_status_decoder = msgspec.msgpack.Decoder(FeedStatus)
_events_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])


class LastValues:
    """Puts last values before the news: holds what arrives until the question about its topic is answered."""

    def __init__(self, topics: list[Topic], snapshot: bool) -> None:
        self.unasked: set[Topic] = set(topics)
        self.held: dict[Topic, list[Frame]] = {topic: [] for topic in topics} if snapshot else {}
        self._snapshot = snapshot
        self._gaps: list[tuple[Topic, int | None]] = []
        # Epoch and seq that a topic has reached.
        self._reached: dict[Topic, tuple[int, int]] = {}

    def arrived(self, frame: Frame) -> list[Frame]:
        """Return the frame if it is next, nothing if it is held or old."""
        held = self.held.get(frame.topic)
        if held is not None:
            held.append(frame)
            return []
        epoch, seq = self._reached.get(frame.topic, (0, 0))
        if frame.epoch == epoch:
            if frame.seq <= seq:
                return []
            if frame.seq > seq + 1:
                self._gaps.append((frame.topic, frame.seq - seq - 1))
        elif epoch:
            self._gaps.append((frame.topic, None))
        self._reached[frame.topic] = frame.epoch, frame.seq
        return [frame]

    def answered(self, state: TopicState) -> list[Frame]:
        """Return the last value and what was held, or raise `Refused`."""
        topic = Topic(state.topic)
        if state.state == "refused":
            raise _refused(state)
        if state.state == "pending":
            # The source has yet to decide; the feeder answers when it has, or says pending again.
            self.unasked.add(topic)
            return self._release(topic)
        frames = []
        epoch, seq = self._reached.get(topic, (0, 0))
        news = state.epoch != epoch or state.seq > seq
        if state.body is not None and self._snapshot and news:
            frames.append(Frame(topic, state.epoch, state.seq, 0, 0, state.body))
            if not state.more:
                self._reached[topic] = state.epoch, state.seq
        return frames if state.more else frames + self._release(topic)

    def give_up(self) -> list[Frame]:
        """Return everything held: no answer came in time."""
        return [frame for topic in list(self.held) for frame in self._release(topic)]

    def take_gaps(self) -> list[tuple[Topic, int | None]]:
        """Return once what was lost: topic and number of messages, None where the feeder has started anew."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def _release(self, topic: Topic) -> list[Frame]:
        return [frame for waiting in self.held.pop(topic, []) for frame in self.arrived(waiting)]


class Events:
    """The events of one trade topic in order, each once: the journal is asked for what is missing.

    `after` is the position of the last one that was seen, in the journal that had the life `epoch` if that is known;
    None begins with what is published from now on.
    """

    def __init__(self, topic: Topic, after: int | None = None, epoch: int | None = None) -> None:
        self.topic = topic
        self._after = after
        # The latest life of the feeder whose journal is known to have the position; exact: it was seen in that one.
        self._life = epoch
        self._exact = False
        # Where the topic stood when it was joined without a position.
        self._start: int | None = None
        self._ahead: deque[tuple[int, Frame]] = deque(maxlen=MAX_AHEAD)
        self._unasked = True
        # Id of the question under way, the position that it is about, and when it was asked or last answered in part.
        self._question: int | None = None
        self._asked: int | None = None
        self._heard_at = 0.0

    def asks(self, now: float) -> bool:
        """Return whether there is something to ask."""
        return self._unasked or (self._question is not None and now >= self._heard_at + AGAIN_SECONDS)

    def ask(self, number: int, now: float) -> CatchUp:
        """Return what to ask as question `number`."""
        self._unasked = False
        self._question = number
        self._heard_at = now
        self._asked = self._start if self._after is None else self._after
        return CatchUp(number, [self.topic], self._asked, ROOM_BYTES, self._life, self._exact)

    def check(self, reborn: bool) -> None:
        """See to it that the journal is asked for what may have been lost without a successor that shows it.

        `reborn`: the feeder has started anew, and will not answer what the one before was asked.
        """
        if reborn:
            self._question = None
        self._unasked = self._unasked or self._question is None

    def arrived(self, frame: Frame, at: int) -> list[Frame]:
        """Return the frame, which is that of position `at`, if it is next, nothing if it is old or has to wait."""
        if self._after is None:
            # Published before the question was answered, it may come after the answer.
            joined = self._start is None or at <= self._start + 1
            self._after = at - 1 if joined else self._start
        after = self._position()
        if self._life is not None and frame.epoch < self._life:
            # What the later life does not have died with the one before.
            return []
        # Its journal may be another one, or have lost what was seen.
        is_unknown = self._life is not None and frame.epoch > self._life
        if at <= after and not is_unknown:
            return []
        if at > after + 1 or is_unknown:
            self._ahead.append((at, frame))
            self._unasked = self._unasked or self._question is None
            return []
        return [self._pass(frame, at)]

    def answered(self, state: TopicState, now: float) -> list[Frame]:
        """Return the events of an answer that are news, and what waited for them; raise `Refused`."""
        # An older question's answer too shows that the feeder is at it: the newer one's comes behind it.
        self._heard_at = now
        if state.id != self._question:
            return []
        if state.state == "refused":
            raise _refused(state)
        self._question = None
        has_moved = self._after is not None and self._after != self._asked
        if self._life is not None and (state.epoch < self._life or (state.epoch > self._life and has_moved)):
            # Of a life that has ended; the next one says whether it goes on from there. Or of the next one, which has
            # not said so of the position that was reached since.
            self._unasked = True
            return []
        self._life, self._exact = state.epoch, True
        if state.body is None:
            if self._start is None:
                self._start = state.seq
            return []
        if self._after is None:
            self._after = self._start or 0
        bodies = _bodies(state)
        frames = [
            self._pass(Frame(self.topic, state.epoch, at, 0, 0, body), at)
            for at, body in enumerate(bodies, state.seq - len(bodies) + 1)
            if at > self._position()
        ]
        if not state.more:
            frames += self._successors()
        self._unasked = state.more or bool(self._ahead)
        return frames

    def _position(self) -> int:
        assert self._after is not None
        return self._after

    def _pass(self, frame: Frame, at: int) -> Frame:
        self._after = at
        self._life, self._exact = frame.epoch, True
        return frame

    def _successors(self) -> list[Frame]:
        # What a life did not have when the next one answered died with it, and would be waited for without end.
        life = self._life or 0
        self._ahead = deque((ahead for ahead in self._ahead if ahead[1].epoch >= life), MAX_AHEAD)
        successors = []
        while self._ahead and self._ahead[0][0] <= self._position() + 1 and self._ahead[0][1].epoch == life:
            at, frame = self._ahead.popleft()
            if at > self._position():
                successors.append(self._pass(frame, at))
        return successors


class Sequence:
    """Everything that one consumer receives: says what to ask the feeder, and what to hand out.

    `events` are those of the trade topics; with ALL_TRADES among them it stands for every account. Heartbeats are
    handed out if `shows_status`.
    """

    def __init__(self, values: LastValues, events: dict[Topic, Events], shows_status: bool) -> None:
        self.values = values
        self._events = events
        self._shows_status = shows_status
        self._questions = 0
        # The newest heartbeat, and the position in the journal of which it is known that it was not missed.
        self._status: FeedStatus | None = None
        self._checked: int | None = None

    def asks(self, now: float) -> bool:
        """Return whether `questions` has any."""
        return bool(self.values.unasked) or any(events.asks(now) for events in self._events.values())

    def questions(self, now: float) -> Iterator[CatchUp]:
        """Yield what to ask the feeder; a question counts as asked once the next one is asked for."""
        for part in parts_of(sorted(self.values.unasked)):
            self._questions += 1
            yield CatchUp(self._questions, part)
            self.values.unasked.difference_update(map(Topic, part))
        for events in self._events.values():
            if events.asks(now):
                self._questions += 1
                yield events.ask(self._questions, now)

    def answered(self, state: TopicState, now: float) -> list[Frame]:
        """Return what an answer brings; raise `Refused`."""
        events = self._events.get(Topic(state.topic))
        return self.values.answered(state) if events is None else events.answered(state, now)

    def arrived(self, frame: Frame) -> list[Frame]:
        """Return what can be handed out now that `frame` is here; raise `Refused` if a journal has begun again."""
        if frame.topic.startswith(ALL_TRADES):
            if ALL_TRADES in self._events:
                return self._events[ALL_TRADES].arrived(frame, _read(event_position, frame))
            # A prefix that is no whole topic stands for accounts which are not known before.
            return self._events.setdefault(frame.topic, Events(frame.topic)).arrived(frame, frame.seq)
        if frame.topic == STATUS_TOPIC and self._events:
            self._check(_read(partial(read, _status_decoder), frame))
            if not self._shows_status:
                return []
        return self.values.arrived(frame)

    def _check(self, status: FeedStatus) -> None:
        before, self._status = self._status, status
        if before is None:
            return
        reborn = status.epoch != before.epoch
        # An event may still be on its way when the heartbeat comes, by another socket; not so one heartbeat later.
        if reborn or before.trade_seq != self._checked:
            self._checked = before.trade_seq
            for events in self._events.values():
                events.check(reborn)


def _read(how: Callable[[bytes], T], frame: Frame) -> T:
    try:
        return how(frame.body)
    except WireError as exc:
        raise WireError(f"a message of {shown_topic(frame.topic)} cannot be read: {exc}") from exc


def _bodies(state: TopicState) -> list[bytes]:
    try:
        return [bytes(body) for body in read(_events_decoder, state.body or b"")]
    except WireError as exc:
        raise WireError(f"the answer about {shown_topic(state.topic)} holds no events: {exc}") from exc


def _refused(state: TopicState) -> Refused:
    reason = f"{state.topic}: {state.error}"
    return Refused(state.code or "internal", reason, oldest=state.oldest, newest=state.seq)
