"""What all streams have in common: cohorts, held frames, gaps, refusals. Pure: time is an argument.

The order: subscribe, ask, hold the frames that arrive meanwhile, drop those that are not newer than the answer
(docs/wire.md, "catch_up").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial

from gateway.streams.cohort import Cohort, Phase
from gateway.streams.held import Held, HeldBytes
from gateway.streams.member import Member, Outcome, Refusal
from gateway.streams.questions import Questions
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import NOWHERE, JournalPosition, Position
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import Topic, behaviour_of

# Seconds after which a question counts as unanswered.
ANSWER_TIMEOUT = 1.0


class Losses:
    """Counts sequence gaps, and the messages that were lost in them."""

    def __init__(self) -> None:
        self.gaps = 0
        self.lost = 0


class Stream(ABC):
    """One upstream subscription: its members and its position."""

    __slots__ = (
        "_losses",
        "_questions",
        "ahead",
        "behaviour",
        "compare_at",
        "compared",
        "epoch",
        "held",
        "live",
        "pending_since",
        "playing",
        "seq",
        "subscribed",
        "synced",
        "topic",
        "waiting",
    )

    # Whether sequence numbers continue after a restart of the feeder, as those of a journal do.
    journaled = False

    def __init__(self, topic: Topic, questions: Questions, losses: Losses, held: HeldBytes) -> None:
        self.topic = topic
        # Whether the feeder sends its frames; not while all members only ask for a part of the day.
        self.subscribed = False
        self.behaviour = behaviour_of(topic)
        # The position: epoch and sequence number of the newest frame or answer; 0: not known yet.
        self.epoch = 0
        self.seq = 0
        self.live = Cohort(Phase.LIVE)
        # The cohorts that are ASKED or DRAINING, and those that are AHEAD.
        self.waiting: list[Cohort] = []
        self.ahead: list[Cohort] = []
        # Those that are PLAYING.
        self.playing: list[Cohort] = []
        # The frames that have arrived since the first waiting cohort began to wait.
        self.held = Held(held)
        # False once a question was not answered: the hub asks again with the next heartbeat.
        self.synced = True
        # The position when it was last looked at, and when to compare it with the feeder's if it has not changed.
        self.compared = NOWHERE
        self.compare_at = 0.0
        # Since when the source has not decided whether it serves the topic; None once it has.
        self.pending_since: float | None = None
        self._questions = questions
        self._losses = losses

    @property
    def position(self) -> Position:
        """Return the position of the newest frame or answer."""
        return Position(self.epoch, self.seq)

    @property
    def empty(self) -> bool:
        """Return whether the stream has no members."""
        return not any(cohort.members for cohort in self.cohorts)

    @property
    def cohorts(self) -> list[Cohort]:
        """Return the cohorts in every phase."""
        return [self.live, *self.waiting, *self.ahead, *self.playing]

    @abstractmethod
    def join(self, member: Member, after: JournalPosition | None, now: float) -> Cohort | None:
        """Add a member; return its cohort if the feeder has to be asked for it."""

    def leave(self, member: Member) -> None:
        """Remove a member."""
        for cohort in self.cohorts:
            cohort.members.pop(member, None)
        self._tidy()

    def receive(self, frame: Frame, now: float) -> None:
        """Take a frame from a SUB socket."""
        if frame.seq == self.seq + 1 and frame.epoch == self.epoch and not self.ahead:
            # The usual case. Its cost limits how many frames a worker can take: 0.4 us with one member.
            self.seq = frame.seq
            self.pending_since = None
            for member in self.live.members:
                member.deliver(frame)
            if self.waiting:
                self.held.append(frame)
            return
        self._receive(frame, now)

    @abstractmethod
    def _receive(self, frame: Frame, now: float) -> None:
        """Take a frame that may be old, may show a gap, or may have to be held."""

    def answer(self, state: TopicState, now: float) -> None:
        """Take one reply to a CatchUp."""
        cohort = next((cohort for cohort in self.waiting if cohort.question == state.id), None)
        if cohort is None:
            return
        if state.state == "refused":
            self.waiting.remove(cohort)
            self._take_refusal(cohort, state, now)
        else:
            cohort.asked_at = now
            self._take_answer(cohort, state, now)

    @abstractmethod
    def _take_refusal(self, cohort: Cohort, state: TopicState, now: float) -> None:
        """Take a refusal for `cohort`, which has just been removed."""

    @abstractmethod
    def _take_answer(self, cohort: Cohort, state: TopicState, now: float) -> None:
        """Take an answer, or a part of one."""

    @abstractmethod
    def unanswered(self, cohort: Cohort, now: float) -> None:
        """Continue without an answer: there is no connection to the feeder, or the answer is late."""

    def expire(self, now: float) -> bool:
        """Continue without the answers that are late; return whether to ask how the source serves the topic."""
        if self.waiting:
            self._expire_questions(now)
        return False

    def _expire_questions(self, now: float) -> None:
        # Four times a second for thousands of streams: what is not late has to cost little.
        late = now - ANSWER_TIMEOUT
        for cohort in [cohort for cohort in self.waiting if cohort.asked_at <= late and cohort.phase is Phase.ASKED]:
            # The call for one cohort may also remove others from `waiting` (see `_tidy`).
            if now - cohort.asked_at >= ANSWER_TIMEOUT and cohort in self.waiting:
                self.unanswered(cohort, now)

    def ask_anew(self, now: float) -> list[Cohort]:
        """Make all LIVE and AHEAD members wait for an answer; return their cohorts, one for each position."""
        by_position: dict[Position, Cohort] = {}
        reading: list[Cohort] = []
        for cohort in (self.live, *self.ahead):
            if cohort.reading is not None:
                cohort.phase = Phase.ASKED
                cohort.reading.at_store = False
                reading.append(cohort)
                continue
            position = self.position if cohort is self.live else cohort.position
            if cohort.members:
                if position not in by_position:
                    by_position[position] = self._asked_at(position, now)
                by_position[position].members |= cohort.members
        self.live.members = {}
        self.ahead = []
        asking = [*by_position.values(), *reading]
        self.waiting += asking
        return asking

    @abstractmethod
    def _asked_at(self, position: Position, now: float) -> Cohort:
        """Return an ASKED cohort for members that are at `position`."""

    def forget_position(self) -> None:
        """Forget the positions of the stream and of its waiting cohorts, and ask again with the next heartbeat."""
        self.epoch = self.seq = 0
        self.held.clear()
        for cohort in self.waiting:
            cohort.position = NOWHERE
        self.synced = False

    def _ask_alone(self, now: float) -> None:
        self._questions.ask([(self, cohort) for cohort in self.ask_anew(now)], now)

    def _hold_and_ask(self, frame: Frame, now: float) -> None:
        """Hold a frame and ask before any member receives it: the answer has this frame, or a newer value."""
        self.held.append(frame)
        self._ask_alone(now)
        self.epoch, self.seq = frame.epoch, frame.seq

    def _pass_on(self, frame: Frame, now: float) -> None:
        """Deliver the frame, which is the next one, and hold it for the cohorts that wait."""
        self.epoch, self.seq = frame.epoch, frame.seq
        for member in self.live.members:
            member.deliver(frame)
        if self.waiting:
            self.held.append(frame)
        if self.ahead:
            self.ahead = [cohort for cohort in self.ahead if not self._catch_up(cohort, frame, now)]

    def _catch_up(self, cohort: Cohort, frame: Frame, now: float) -> bool:
        """Make a cohort that is AHEAD live once the stream has reached its position; return whether it has."""
        position = cohort.position
        if not contains(position, frame):
            for member in cohort.members:
                if frame.epoch == position.epoch:
                    self._count_gap(frame.seq - position.seq - 1, [member])
                member.deliver(frame)
        elif frame.seq != position.seq or frame.epoch != position.epoch:
            return False
        self.live.members |= cohort.members
        return True

    def _drain(self, cohort: Cohort) -> None:
        """Wait until each member has been sent a chunk; from now on every member reads at its own pace."""
        self.waiting.remove(cohort)
        for own in cohort.apart():
            self.waiting.append(own)
            act = partial(self._read_on, own)
            if own.reading is not None:
                own.reading.reader.read_on(act)
            else:
                for member in own.members:
                    member.when_drained(act)

    def _read_on(self, cohort: Cohort, now: float) -> None:
        if cohort.phase is Phase.DRAINING and cohort in self.waiting:
            cohort.phase = Phase.ASKED
            self._ask_on(cohort, now)

    def _ask_on(self, cohort: Cohort, now: float) -> None:
        """Ask for the next chunk."""
        self._questions.again(self, cohort, now)

    def _news(self, position: Position) -> list[Frame]:
        return [frame for frame in self.held if not contains(position, frame)]

    def _missing(self, position: Position, frames: Iterable[Frame]) -> int:
        """Return how many messages are missing between `position` (`NOWHERE`: unknown) and `frames`, or within them."""
        missing, epoch, seq = 0, position.epoch, position.seq
        for frame in frames:
            if epoch and (self.journaled or frame.epoch == epoch):
                missing += max(0, frame.seq - seq - 1)
            epoch, seq = frame.epoch, frame.seq
        return missing

    def _place(self, cohort: Cohort, position: Position) -> None:
        """End the waiting of a cohort that has received everything up to `position`, and the held frames after it."""
        self.waiting.remove(cohort)
        self.synced = True
        is_ahead = position > self.position
        if is_ahead and self.empty:
            # There are no other members, so the stream takes the position of the answer.
            self.epoch, self.seq = int(position.epoch), position.seq
            is_ahead = False
        self._release(cohort, position if is_ahead else None)

    def _go_live_unanswered(self, cohort: Cohort, news: list[Frame]) -> None:
        """Stop waiting, and deliver what has arrived."""
        self.waiting.remove(cohort)
        for member in cohort.members:
            member.settle("unanswered", None)
            for frame in (*cohort.parts, *news):
                member.deliver(frame)
        # Members that have received nothing do not have the position of the stream.
        is_ahead = not news and (not cohort.position.epoch or cohort.position > self.position)
        self._release(cohort, cohort.position if is_ahead else None)

    def _release(self, cohort: Cohort, ahead: Position | None) -> None:
        if ahead is None:
            self.live.members |= cohort.members
        else:
            after_answer = Cohort(Phase.AHEAD, position=ahead)
            after_answer.members = cohort.members
            self.ahead.append(after_answer)
        self._tidy()

    def _count_gap(self, count: int, members: Iterable[Member]) -> None:
        """Count a gap, and tell `members`, unless the journal has what is missing."""
        if count <= 0:
            return
        self._losses.gaps += 1
        self._losses.lost += count
        if not self.journaled:
            for member in members:
                member.missed(count)

    def _start(self, member: Member, epoch: int, seq: int, outcome: Outcome = "live") -> bool:
        starts = member.starts(epoch, seq)
        member.settle(outcome, None)
        return starts

    def _refuse(self, cohorts: Iterable[Cohort], state: TopicState) -> None:
        """Remove the members of `cohorts` and tell them why."""
        code, reason = state.code or "upstream_refused", state.error or "refused by the source"
        refusal = Refusal(code, reason, state.oldest, state.seq, state.epoch)
        for cohort in cohorts:
            members, cohort.members = cohort.members, {}
            for member in members:
                member.settle("refused", refusal)
        self._tidy()

    def _tidy(self) -> None:
        """Drop empty cohorts, and the held frames once no member waits."""
        self.ahead = [cohort for cohort in self.ahead if cohort.members]
        self.playing = [cohort for cohort in self.playing if cohort.members]
        if any(cohort.reading is not None and not cohort.members for cohort in self.waiting):
            # Nobody else can use their answers.
            self.waiting = [cohort for cohort in self.waiting if cohort.reading is None or cohort.members]
        if not any(cohort.members for cohort in self.waiting):
            # Otherwise empty cohorts are kept: members that join later may share their answers.
            self.waiting.clear()
            self.held.clear()


def contains(position: Position, frame: Frame) -> bool:
    """Return whether a member at `position` has the frame, or a newer value that replaced it."""
    return frame.seq <= position.seq if frame.epoch == position.epoch else frame.epoch < position.epoch
