"""Streams that follow the newest value of a topic: quotes, markets, depth, formulas, progress. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.streams.cohort import Cohort, Phase
from gateway.streams.held import HeldBytes
from gateway.streams.member import Member
from gateway.streams.questions import Questions
from gateway.streams.reading import is_whole, position_of
from gateway.streams.snapshot import PushedSnapshot
from gateway.streams.stored import StoredStream
from gateway.streams.stream import ANSWER_TIMEOUT, Losses, contains
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, LastValue
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import Topic


class ValueStream(StoredStream):
    """Asks for the last value when a member joins and after a loss; the value replaces everything before it."""

    __slots__ = ("_probed_codes", "_snapshot", "probe")

    def __init__(self, topic: Topic, questions: Questions, losses: Losses, held: HeldBytes) -> None:
        super().__init__(topic, questions, losses, held)
        # The id of the question whether the source serves the topic now, and the number of codes in its answer so far.
        self.probe: int | None = None
        self._probed_codes = 0
        # Only the last value of a market is sent in parts, so only there the end of a snapshot matters.
        self._snapshot = PushedSnapshot() if self.behaviour.keeps == "by_code" else None

    def join(self, member: Member, after: JournalPosition | None, now: float) -> Cohort | None:
        """Add a member, which waits for the last value; return its cohort unless it shares a question.

        Only a question of other new members is shared: earlier members may have the last value already, so it would
        not be delivered to their cohort. And only until the next frame: a client that has just ended its subscription
        may have received that frame, and the answer may have an older value.
        """
        shared = next((of for of in self.waiting if not of.settled and of.asked_from == self.position), None)
        cohort = shared or Cohort(Phase.ASKED, now)
        cohort.asked_from = self.position
        cohort.members[member] = None
        if shared is not None:
            return None
        self.waiting.append(cohort)
        return cohort

    def leave(self, member: Member) -> None:
        """Remove a member."""
        if self._snapshot is not None:
            self._snapshot.waiting.pop(member, None)
        super().leave(member)

    def _receive(self, frame: Frame, now: float) -> None:
        if not self.epoch:
            missed = 0
        elif frame.epoch == self.epoch:
            missed = frame.seq - self.seq - 1
        else:
            missed = -1
            if frame.epoch > self.epoch:
                self._reread(self.live, position_of(frame), now)
                # The new feeder process may have published values before it had the subscription.
                self._hold_and_ask(frame, now)
        if missed < 0:
            return
        if missed:
            self._reread(self.live, position_of(frame), now)
        if missed and self.behaviour.on_gap == "snapshot":
            # The lost messages are counted with the answer.
            self._hold_and_ask(frame, now)
            return
        self._count_gap(missed, self.live.members)
        self.pending_since = None
        self._pass_on(frame, now)

    def _take_refusal(self, cohort: Cohort, state: TopicState, now: float) -> None:
        self._refuse([*self.cohorts, cohort], state)

    def _take_answer(self, cohort: Cohort, state: TopicState, now: float) -> None:
        if cohort.reading is not None:
            self._note_pending(state, now)
            self._take_feeders(cohort, cohort.reading, state, now)
            return
        if state.body is not None:
            cohort.parts.append(LastValue(self.topic, state.epoch, state.seq, 0, 0, state.body))
        if state.more:
            return
        position = Position(state.epoch, state.seq)
        news = self._news(position)
        missing = self._missing(position, news)
        is_broken = not is_whole(position, news)
        come = [] if is_broken else self._take_come(cohort, position)
        if is_broken or position > cohort.position:
            self._reread(cohort, position, now)
        if is_broken and not (missing and self.behaviour.on_gap == "snapshot"):
            own = self._apart(cohort)
            self._deliver_answer(own, state, [], now)
            own.position = position
            self._reread(own, position_of(news[-1]), now)
        if missing:
            # A frame was lost after the question was sent, or was published before the subscription was in force.
            self._count_gap(missing, self._incomplete(cohort))
            if self.behaviour.on_gap == "snapshot":
                cohort.parts.clear()
                self._questions.again(self, cohort, now)
                return
        self._deliver_answer(cohort, state, news, now, come)
        # It is gone if all of its members are read the store instead.
        if cohort in self.waiting:
            self._place(cohort, position)

    def _take_come(self, cohort: Cohort, position: Position) -> list[Frame]:
        """Return the frames that earlier members lack up to the position of an answer, if all of them have come.

        Its value then replaces none of them. But the snapshot of a market replaces the last one, which it has: a member
        may have had no answer before.
        """
        come = [frame for frame in self._news(cohort.position) if contains(position, frame)]
        is_all = bool(come) and position_of(come[-1]) == position and is_whole(cohort.position, come)
        if not is_all or not cohort.position.epoch or cohort.owed is not None:
            return []
        if self._snapshot is None:
            cohort.position = position
            return come
        if self._complete is not None and not self._complete.keys().isdisjoint(cohort.members):
            # Those that are to miss no message are read the store.
            return []
        cohort.position = Position(position.epoch, position.seq - 1)
        return come[:-1]

    def _deliver_answer(
        self, cohort: Cohort, state: TopicState, news: list[Frame], now: float, come: Iterable[Frame] = ()
    ) -> None:
        """Deliver a last value, or tell that there is none yet, and the held frames after it, and those before."""
        self._note_pending(state, now)
        if self._pay(cohort, Position(state.epoch, state.seq)):
            pass
        elif cohort.position.seq and state.epoch == cohort.position.epoch:
            # The values between were lost; the last value replaces them.
            self._count_gap(state.seq - cohort.position.seq - 1, cohort.members)
        is_newer = Position(state.epoch, state.seq) > cohort.position
        # Counted once, because it reads the whole snapshot: 4 ms for the market of Shanghai and Shenzhen.
        codes = 0 if self._snapshot is None else sum(frames.count_codes(part.body) for part in cohort.parts)
        for member in cohort.members:
            starts = self._start(member, state.epoch, state.seq, "pending" if state.state == "pending" else "live")
            for frame in come:
                member.deliver(frame)
            if starts and is_newer:
                self._deliver_value(member, cohort.parts, codes, now)
            for frame in news:
                member.deliver(frame)

    def _deliver_value(self, member: Member, parts: list[Frame], codes: int, now: float) -> None:
        for frame in parts:
            member.deliver(frame)
        if self._snapshot is None:
            return
        if parts:
            self._snapshot.waiting.pop(member, None)
            member.snapshot_ended(codes)
        else:
            self._snapshot.expect(member, now + ANSWER_TIMEOUT)

    def unanswered(self, cohort: Cohort, now: float) -> None:
        """Go live with the held frames."""
        if cohort.reading is not None:
            self._unread(cohort, cohort.reading, now)
            return
        self.synced = False
        news = self._news(cohort.position)
        if news and not is_whole(cohort.position, news):
            self._reread(cohort, position_of(news[-1]), now)
        if news and not is_whole(position_of(news[0]), news[1:]):
            own = self._apart(cohort)
            self._pay(own, position_of(news[0]))
            for member in own.members:
                member.settle("unanswered", None)
                member.deliver(news[0])
            own.position = position_of(news[0])
            self._reread(own, position_of(news[-1]), now)
        is_paid = self._pay(cohort, position_of(news[0]) if news else None)
        missing = self._missing(position_of(news[0]) if is_paid and news else cohort.position, news)
        self._count_gap(missing, self._incomplete(cohort))
        if self._snapshot is not None and (not news or news[0].seq == 1):
            # The snapshot then is what the source pushes from its first message on.
            for member in cohort.members:
                self._snapshot.expect(member, now + ANSWER_TIMEOUT)
        if cohort in self.waiting:
            self._go_live_unanswered(cohort, news)

    def expire(self, now: float) -> bool:
        """Continue without the answers that are late; return whether to ask how the source serves the topic."""
        if self.waiting:
            self._expire_questions(now)
        if self.pending_since is not None and now - self.pending_since >= ANSWER_TIMEOUT:
            self.pending_since = now
            return True
        if self._snapshot is None:
            return False
        self._tell_end(self._snapshot)
        if not self._snapshot.is_due(now):
            return False
        self._snapshot.ask_at = now + ANSWER_TIMEOUT
        return True

    def probed_by(self, question: int | None) -> None:
        """Take the id of the question whether the source serves the topic now."""
        self.probe = question
        self._probed_codes = 0

    def answer(self, state: TopicState, now: float) -> None:
        """Take one reply to a CatchUp."""
        if state.id != self.probe:
            super().answer(state, now)
            return
        if state.body is not None:
            self._probed_codes += frames.count_codes(state.body)
        if state.more:
            return
        self.probe = None
        if state.state == "refused":
            self._refuse(self.cohorts, state)
        elif state.state == "live":
            was_pending, self.pending_since = self.pending_since is not None, None
            if was_pending:
                self._ask_alone(now)
            elif self._snapshot is not None:
                self._snapshot.ends_at(Position(state.epoch, state.seq), self._probed_codes)
                self._tell_end(self._snapshot)

    def _note_pending(self, state: TopicState, now: float) -> None:
        """Note that the source has not decided, unless a frame has arrived since: that one shows that it has."""
        if state.state == "pending" and self.position <= Position(state.epoch, state.seq):
            self.pending_since = now

    def _tell_end(self, snapshot: PushedSnapshot) -> None:
        # Cohorts that wait for an answer are left out: the answer brings the snapshot.
        snapshot.reached(self.position, self.live.members)
        for cohort in self.ahead:
            snapshot.reached(cohort.position, cohort.members)

    def _refuse(self, cohorts: Iterable[Cohort], state: TopicState) -> None:
        # Whether the source serves a topic now says nothing about what the store has of it.
        cohorts = [cohort for cohort in cohorts if cohort.reading is None or cohort.reading.question.end is None]
        if self._snapshot is not None:
            for cohort in cohorts:
                for member in cohort.members:
                    self._snapshot.waiting.pop(member, None)
        super()._refuse(cohorts, state)

    def _asked_at(self, position: Position, now: float) -> Cohort:
        cohort = Cohort(Phase.ASKED, now, position)
        cohort.settled = True
        return cohort
