"""Streams that follow every event of the journal: trade events. Pure.

Events that are lost on the way are read from the journal. The rules for reading it are shared with the ZeroMQ consumer
(`qmt_bridge.wire.journal`).
"""

from __future__ import annotations

from typing import cast

from gateway.streams.cohort import Cohort, Phase
from gateway.streams.member import Beginning, Gap, Member, Reader
from gateway.streams.reading import gap_of
from gateway.streams.stream import Stream
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.journal import replayed, successors
from qmt_bridge.wire.messages import event_position
from qmt_bridge.wire.positions import JournalPosition, Position, Step
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import Topic


class EventStream(Stream):
    """Delivers every event, except those of an older epoch that the journal of the newer one does not have."""

    __slots__ = ()

    journaled = True

    def join(self, member: Member, after: JournalPosition | None, now: float) -> Cohort | None:
        """Add a member, which receives the events after `after`; return its cohort if it shares no question.

        With a `start` or an `end` in `after` the member is a `Reader`, which is told where its events begin and end.

        Without `after` the member is live at once at the stream's position: after a question, it would begin at the
        answer's position and miss the events published until then. A stream without a position uses that of the newest
        heartbeat.
        """
        if after is None:
            if self.epoch:
                self.live.members[member] = None
                self._start(member, self.epoch, self.seq)
                return None
            after = self._questions.journal
        alike = (cohort for cohort in self.waiting if cohort.after == after)
        shared = next((cohort for cohort in alike if not cohort.settled), None)
        cohort = shared or Cohort(Phase.ASKED, now, after=after)
        cohort.members[member] = None
        if shared is not None:
            return None
        self.waiting.append(cohort)
        return cohort

    def count_missed(self, newest: int) -> bool:
        """Return whether an event up to `newest` was lost, for the stream or a cohort that is AHEAD; count it."""
        positions = [position for position in (self.position, *(c.position for c in self.ahead)) if position.epoch]
        oldest = min((position.seq for position in positions), default=newest)
        self._count_gap(newest - oldest, ())
        return oldest < newest

    def _receive(self, frame: Frame, now: float) -> None:
        # An AHEAD cohort may miss an event although the stream itself, which has no position yet, sees no gap.
        must_ask = any(_would_miss(cohort.position, frame) for cohort in self.ahead)
        if self.epoch:
            match self.position.step(Position(frame.epoch, frame.seq)):
                case Step.OLD:
                    # Drop it. If it is of an older epoch, the journal of the newer one has it or it was never saved.
                    return
                case Step.NEW_EPOCH:
                    # The new feeder process may have another journal, or one that has lost events.
                    must_ask = True
                case Step.GAP:
                    self._count_gap(frame.seq - self.seq - 1, ())
                    must_ask = True
        if must_ask:
            self._hold_and_ask(frame, now)
        else:
            self._pass_on(frame, now)

    def _take_refusal(self, cohort: Cohort, state: TopicState, now: float) -> None:
        if cohort.after is None:
            self._refuse([*self.cohorts, cohort], state)
            return
        if state.epoch < self.epoch:
            self._follow_older_epoch(now)
        # The position was refused, so only the members that named it are removed.
        self._refuse([cohort], state)

    def _take_answer(self, cohort: Cohort, state: TopicState, now: float) -> None:
        if state.epoch < max(self.epoch, self._questions.epoch):
            if cohort.outdated != state.epoch:
                # This answer is from a process that has ended. Ask whether the journal of the new one has the position.
                cohort.outdated = state.epoch
                self._questions.again(self, cohort, now)
                return
            self._follow_older_epoch(now)
        if cohort.after is None:
            self._take_position(cohort, state, now)
        else:
            self._take_events(cohort, cohort.after, state, now)

    def _take_position(self, cohort: Cohort, state: TopicState, now: float) -> None:
        """Take the position of the journal, for members that named none."""
        position = Position(state.epoch, state.seq)
        news = self._news(position)
        missing = self._missing(position, news)
        if missing:
            # An event was lost after the question was sent, or was published before the subscription was in force.
            self._count_gap(missing, ())
            cohort.after = JournalPosition(state.seq, state.epoch, exact=True)
            self._questions.again(self, cohort, now)
            return
        for member in cohort.members:
            self._start(member, state.epoch, state.seq)
            for frame in news:
                member.deliver(frame)
        self._place(cohort, position)

    def _take_events(self, cohort: Cohort, after: JournalPosition, state: TopicState, now: float) -> None:
        """Take a chunk of the journal."""
        events = _events(state)
        begin = after.seq
        if after.start is not None:
            begin = state.seq - len(events)
            for member in cohort.members:
                _reader(member).begins(_beginning(state))
        events = [event for event in events if event.seq > begin]
        if events and events[0].seq > begin + 1:
            # The previous chunk was lost: the feeder's socket drops answers that a worker does not read in time.
            self._questions.again(self, cohort, now)
            return
        for member in cohort.members:
            if not cohort.settled:
                self._start(member, state.epoch, begin)
            for event in events:
                member.deliver(event)
        cohort.settled = True
        seq = events[-1].seq if events else max(begin, state.seq)
        # A time of day stays the one of the day that the first answer meant.
        end = None if after.end is None else state.end_ms or after.end
        cohort.after = JournalPosition(seq, state.epoch, exact=True, end=end)
        if state.more:
            self._drain(cohort)
        elif end is not None:
            self._end_part(cohort)
        else:
            self._end_replay(cohort, Position(state.epoch, seq), bool(events), now)

    def _end_part(self, cohort: Cohort) -> None:
        """Remove the members of a cohort that have received all up to the end that they asked for."""
        self.waiting.remove(cohort)
        self._tidy()
        for member in cohort.members:
            _reader(member).ended()

    def _end_replay(self, cohort: Cohort, position: Position, has_events: bool, now: float) -> None:
        """Deliver the frames that were held, unless the journal has to be asked for more."""
        news = self._news(position)
        following = successors(position, ((Position(frame.epoch, frame.seq), frame) for frame in news))
        # An answer that ends before the stream's position did not reach the end of the journal.
        if len(following) < len(news) or (has_events and not news and self.seq > position.seq):
            self._questions.again(self, cohort, now)
            return
        for member in cohort.members:
            for frame in news:
                member.deliver(frame)
        self._place(cohort, position)

    def unanswered(self, cohort: Cohort, now: float) -> None:
        """Ask again if a position is known, because no event may be lost; otherwise go live with the held frames."""
        self.synced = False
        news = list(self.held)
        if cohort.after is None and self._missing(cohort.position, news):
            # The held frames show the position of the members.
            cohort.after = JournalPosition(news[0].seq - 1, news[0].epoch, exact=True)
        if cohort.after is not None:
            self._questions.again(self, cohort, now)
        else:
            self._go_live_unanswered(cohort, news)

    def _follow_older_epoch(self, now: float) -> None:
        """Follow a feeder that repeats an older epoch: the clock of the previous process was ahead."""
        self._ask_alone(now)
        self.forget_position()
        self.synced = True

    def _asked_at(self, position: Position, now: float) -> Cohort:
        if not position.epoch:
            # The members joined before the position of the journal was known.
            return Cohort(Phase.ASKED, now, after=self._questions.journal)
        return Cohort(Phase.ASKED, now, after=JournalPosition(position.seq, position.epoch, exact=True))


def _reader(member: Member) -> Reader:
    """Return a member as what it is that has joined at a moment, or up to one."""
    return cast(Reader, member)


def _beginning(state: TopicState) -> Beginning:
    if state.body is None:
        # A feeder that knows no moments says where the journal is.
        return Beginning(None, Gap("not_stored"))
    gap = next(map(gap_of, state.holes), None)
    return Beginning(state.start_ms if gap is None else state.from_ms, gap)


def _would_miss(position: Position, frame: Frame) -> bool:
    """Return whether `frame`, delivered at `position`, would leave a gap or come from another journal."""
    return bool(position.epoch) and (frame.seq > position.seq + 1 or frame.epoch > position.epoch)


def _events(state: TopicState) -> list[Frame]:
    bodies = replayed(state)
    topic = Topic(state.topic)
    return [Frame(topic, state.epoch, event_position(body), 0, 0, body) for body in bodies]
