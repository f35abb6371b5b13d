"""Streams whose members may be read what the store of the day has, before they meet the live stream. Pure.

The phases are those of a journal's reader (see `cohort`): a chunk is delivered, and once the client was sent it the
next one is asked for. The frames that are held meanwhile are the end of the reading: where they follow what was read,
they are delivered and the member is live. A member is never given a frame twice, and what is missing is told with both
sides. With a playback a chunk is delivered record by record, as each is due, and the next one is asked for after that.
A member that is to miss nothing (`keep`) is read the store again when a message was lost on the way to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial

from gateway.streams.cohort import Cohort, Phase
from gateway.streams.held import HeldBytes
from gateway.streams.member import Beginning, Gap, Member, Reader, StoreQuestion
from gateway.streams.questions import Questions
from gateway.streams.reading import AGAIN, FILLING_AGAIN, PATIENCE, Owed, Reading, follows, gap_of, position_of
from gateway.streams.stream import ANSWER_TIMEOUT, Losses, Stream, contains
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory, timed_frames
from qmt_bridge.wire.playback import Playback
from qmt_bridge.wire.positions import NOWHERE, Position, Step, held_instead
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import Topic


class StoredStream(Stream):
    """Reads members the store, each at its own pace."""

    __slots__ = ("_complete",)

    def __init__(self, topic: Topic, questions: Questions, losses: Losses, held: HeldBytes) -> None:
        super().__init__(topic, questions, losses, held)
        # The members that are to miss nothing, each with what to ask of the store after a loss; mostly there are none.
        self._complete: dict[Member, tuple[Reader, StoreQuestion]] | None = None

    def keep(self, reader: Reader, question: StoreQuestion) -> None:
        """Let a member miss nothing: what is lost on the way to it is read from the store, in chunks of `question`."""
        if self._complete is None:
            self._complete = {}
        self._complete[reader] = (
            reader,
            question._replace(start=None, after=None, end=None, room=question.chunk, playback=None),
        )

    @property
    def keeps(self) -> bool:
        """Return whether any member is to miss nothing."""
        return bool(self._complete)

    def leave(self, member: Member) -> None:
        """Remove a member."""
        if self._complete is not None:
            self._complete.pop(member, None)
        super().leave(member)

    def _refuse(self, cohorts: Iterable[Cohort], state: TopicState) -> None:
        cohorts = list(cohorts)
        if self._complete is not None:
            for cohort in cohorts:
                for member in cohort.members:
                    self._complete.pop(member, None)
        super()._refuse(cohorts, state)

    def _reread(self, cohort: Cohort, target: Position, now: float) -> None:
        """Read those members of a cohort the store that are to miss nothing: up to `target` something was lost.

        A cohort without a position has received nothing yet, so nothing is missing for it.
        """
        position = self.position if cohort is self.live else cohort.position
        # What a reader is owed is told at once: the store was asked before, and did not have it.
        if self._complete is None or not position.epoch or cohort.owed is not None:
            return
        owns: list[Cohort] = []
        for member in [member for member in cohort.members if member in self._complete]:
            del cohort.members[member]
            own = Cohort(Phase.ASKED, now, position)
            own.settled = True
            own.members[member] = None
            own.reading = Reading(*self._complete[member])
            # Where its records begin was told before, or not asked for.
            own.reading.answered = True
            own.reading.target = target
            owns.append(own)
        self.waiting += owns
        for own in owns:
            self._ask_on(own, now)

    def _apart(self, cohort: Cohort) -> Cohort:
        """Take the members that are to miss nothing out of a waiting cohort; return them with what they are owed."""
        own = Cohort(Phase.ASKED, position=cohort.position)
        own.settled, own.parts = cohort.settled, [*cohort.parts]
        own.members = {member: None for member in cohort.members if member in (self._complete or ())}
        for member in own.members:
            del cohort.members[member]
        if cohort.owed is not None and cohort.owed.reader in own.members:
            own.owed, cohort.owed = cohort.owed, None
        return own

    def _incomplete(self, cohort: Cohort) -> list[Member]:
        """Return the members of a cohort that are told how many messages were lost: they are read nothing again."""
        return [member for member in cohort.members if member not in (self._complete or ())]

    def read(self, reader: Reader, question: StoreQuestion, now: float) -> Cohort:
        """Add a member that is read the answers to `question` first.

        Return its cohort: the feeder is asked whether it serves the topic, and how far the store has to be read. With
        an `end` the store alone is asked.
        """
        cohort = Cohort(Phase.ASKED, now)
        cohort.reading = Reading(reader, question)
        cohort.settled = True
        cohort.members[reader] = None
        self.waiting.append(cohort)
        return cohort

    def ask_store(self, cohort: Cohort, reading: Reading, now: float) -> None:
        """Ask the store what follows, for the first time once it is the member's turn.

        A store answers one question after the other. All codes of a client at once would make every other client wait,
        longer than until an answer counts as lost.
        """
        if cohort.position.epoch:
            reading.question = reading.question._replace(start=None, after=cohort.position)
        reading.at_store = True
        reading.is_behind = False
        reading.fruitless_since = now
        if reading.opened:
            self._questions.again(self, cohort, now)
            return
        reading.opened = reading.opening = True
        cohort.phase, cohort.question = Phase.DRAINING, None
        reading.reader.open(partial(self._open, cohort, reading))

    def _open(self, cohort: Cohort, reading: Reading, now: float) -> None:
        if cohort.phase is Phase.DRAINING and cohort in self.waiting and cohort.reading is reading:
            cohort.phase = Phase.ASKED
            reading.fruitless_since = now
            self._questions.again(self, cohort, now)

    def _expire_questions(self, now: float) -> None:
        super()._expire_questions(now)
        if now - self._questions.store_seen < PATIENCE:
            # A turn that does not come while the store answers others is only late.
            return
        for cohort in list(self.waiting):
            reading = cohort.reading
            if reading is None or not reading.opening or cohort.phase is not Phase.DRAINING:
                continue
            if cohort not in self.waiting:
                continue
            if now - reading.fruitless_since >= PATIENCE:
                cohort.phase = Phase.ASKED
                self._give_up(cohort, reading, "store_away", now)

    def history(self, answer: TopicHistory, now: float) -> None:
        """Take an answer of the store."""
        cohort = next((cohort for cohort in self.waiting if cohort.question == answer.id), None)
        if cohort is None or (reading := cohort.reading) is None:
            return
        cohort.asked_at = now
        if answer.state == "refused":
            self._give_up(cohort, reading, "store_away" if answer.code == "internal" else "not_stored", now)
            return
        if reading.opening:
            reading.opening = False
            reading.reader.rest()
        if answer.state == "filling":
            self._ask_later(cohort, reading, now, FILLING_AGAIN)
            reading.fruitless_since = now
            return
        records = timed_frames(answer)
        if records and contains(cohort.position, records[0][1]):
            records = [(ms, frame) for ms, frame in records if not contains(cohort.position, frame)]
        frames = [frame for _, frame in records]
        gaps = [gap_of(hole) for hole in answer.holes]
        is_first = not reading.answered
        if is_first:
            opening = self._begin(reading, answer, gaps, position_of(frames[0]) if frames else None)
            if opening is not None and not frames and not answer.epoch and reading.question.end is None:
                # Nothing is stored, so the client gets what it would get without a start.
                self._ask_last(cohort, reading, now)
                return
        elif gaps and not frames and not answer.epoch and reading.question.end is None:
            # Nothing is stored, or not any more.
            self._give_up(cohort, reading, gaps[0].reason, now)
            return
        question = reading.question
        playback = question.playback
        if playback is not None and records:
            reading.load(records, gaps, playback)
            # The clock is started once the client was told of the first records of all its topics.
            due = [] if is_first else reading.take_due(playback, now)
            behind = reading.gaps = self._deliver_stored(cohort, reading, due, reading.gaps)
        else:
            met = self._held_instead(cohort, gaps, frames)
            if met is not None:
                del frames[met:]
                self._deliver_stored(cohort, reading, frames, gaps if frames else ())
                self._end_reading(cohort, reading, now)
                return
            behind = self._deliver_stored(cohort, reading, frames, gaps)
        if answer.epoch:
            # Of a market the messages behind the last one of a code were looked through.
            reading.reached = self._exact(answer, reading)
            if not reading.pending:
                cohort.position = max(cohort.position, reading.reached)
        # A time of day stays the one of the day that the first answer meant.
        start = None if question.start is None else answer.start_ms or question.start
        end = answer.end_ms or question.end
        reading.question = question._replace(start=start, end=end, room=question.chunk)
        if frames:
            reading.fruitless_since = now
            reading.claimed = None
        if reading.pending and playback is not None:
            self._begin_playing(cohort)
            reading.reader.rest()
            self._wait_due(cohort, reading, playback, now)
        elif answer.more and playback is not None:
            self._begin_playing(cohort)
            reading.reader.read_on(partial(self._ask_played, cohort, reading))
        elif answer.more:
            self._drain(cohort)
        elif question.end is not None:
            for gap in behind:
                # Its other side is after the end.
                reading.reader.gap(gap)
            self._end(cohort, reading)
        else:
            self._end_reading(cohort, reading, now)

    def _held_instead(self, cohort: Cohort, gaps: list[Gap], frames: list[Frame]) -> int | None:
        """Return after how many stored frames a held one follows that the store has missed; None: nowhere."""
        reading = cohort.reading
        if not gaps or not frames or reading is None or reading.question.end is not None:
            return None
        held = [position_of(frame) for frame in self._news(cohort.position)]
        before = [gap.before for gap in gaps]
        return held_instead(cohort.position, [position_of(frame) for frame in frames], before, held) if held else None

    def _begin_playing(self, cohort: Cohort) -> None:
        self.waiting.remove(cohort)
        cohort.phase, cohort.question = Phase.PLAYING, None
        self.playing.append(cohort)
        self._tidy()

    def _wait_due(self, cohort: Cohort, reading: Reading, playback: Playback, now: float) -> None:
        # The first question of all starts the clock, and has to come after the ack.
        at = playback.due(reading.reader, now) if playback.is_started else now
        reading.reader.play(at, partial(self._play, cohort, reading, playback))

    def _play(self, cohort: Cohort, reading: Reading, playback: Playback, now: float) -> None:
        """Deliver the records that are due; after the last one ask the store what follows."""
        if cohort not in self.playing or cohort.reading is not reading:
            return
        due = reading.take_due(playback, now)
        reading.gaps = self._deliver_stored(cohort, reading, due, reading.gaps)
        if reading.pending:
            self._wait_due(cohort, reading, playback, now)
        else:
            cohort.position = max(cohort.position, reading.reached)
            reading.reader.read_on(partial(self._ask_played, cohort, reading))

    def _ask_played(self, cohort: Cohort, reading: Reading, now: float) -> None:
        if cohort in self.playing and cohort.reading is reading:
            self.playing.remove(cohort)
            cohort.phase = Phase.ASKED
            self.waiting.append(cohort)
            self.ask_store(cohort, reading, now)

    def _exact(self, answer: TopicHistory, reading: Reading) -> Position:
        """Return the position of an answer; a client that named it may have rounded its epoch, as browsers do."""
        known = (self.epoch, reading.target.epoch)
        epoch = next((epoch for epoch in known if float(epoch) == float(answer.epoch)), answer.epoch)
        return Position(answer.epoch if answer.frames else epoch, answer.seq)

    def _begin(self, reading: Reading, answer: TopicHistory, gaps: list[Gap], first: Position | None) -> Gap | None:
        """Tell where the records begin; return what is missing there, before the first one."""
        reading.answered = True
        if reading.is_at_beginning():
            gaps.clear()
        opening = next((gap for gap in gaps if gap.after is None or first is None or _is_before(gap, first)), None)
        if opening is not None:
            gaps.remove(opening)
        from_ms = answer.from_ms if opening is not None else answer.start_ms or answer.from_ms
        reading.reader.begins(Beginning(from_ms, opening, answer.source))
        self._start(reading.reader, answer.epoch, answer.seq, reading.outcome)
        return opening

    def _deliver_stored(self, cohort: Cohort, reading: Reading, frames: list[Frame], gaps: Iterable[Gap]) -> deque[Gap]:
        """Deliver frames, each after the gaps before it; return the gaps behind the last one.

        A gap without another side is told once that is known.
        """
        told = deque(gap for gap in gaps if gap.before is not None and gap.before > cohort.position)
        if frames and not told:
            # The usual case, whose cost limits how fast a morning is read.
            deliver = reading.reader.deliver
            for frame in frames:
                deliver(frame)
            cohort.position = position_of(frames[-1])
            return told
        for frame in frames:
            position = position_of(frame)
            while told and told[0].before is not None and told[0].before <= position:
                reading.reader.gap(told.popleft())
            reading.reader.deliver(frame)
            cohort.position = position
        return told

    def _end_reading(self, cohort: Cohort, reading: Reading, now: float) -> None:
        """Go on with the held frames, if they follow what the store has."""
        news = self._news(cohort.position)
        if news and follows(cohort.position, news[0], across=True) and not reading.stays_behind:
            self._take_held(cohort, reading, news, across=True)
        elif not news and reading.has_reached(cohort.position, self.position):
            self._rest(cohort, reading)
        elif now - reading.fruitless_since >= PATIENCE:
            self._give_up(cohort, reading, "store_behind", now)
        else:
            reading.is_behind = True
            self._ask_later(cohort, reading, now, AGAIN)

    def _ask_later(self, cohort: Cohort, reading: Reading, now: float, seconds: float) -> None:
        """Let `expire` ask the store again after so many seconds."""
        cohort.question = None
        cohort.asked_at = now - ANSWER_TIMEOUT + seconds
        reading.reader.rest()

    def _take_held(self, cohort: Cohort, reading: Reading, news: list[Frame], *, across: bool) -> None:
        """Deliver a chunk of the held frames; after the last of them the member is live."""
        room = reading.question.chunk
        reading.claimed = None
        for frame in news:
            if room <= 0 or not follows(cohort.position, frame, across=across):
                self._drain(cohort)
                return
            if cohort.position.epoch and frame.epoch != cohort.position.epoch:
                reading.reader.gap(Gap("restart", cohort.position, position_of(frame)))
            reading.reader.deliver(frame)
            cohort.position = position_of(frame)
            room -= len(frame.body)
        self.waiting.remove(cohort)
        self._meet(cohort, reading)
        self._tidy()

    def _meet(self, cohort: Cohort, reading: Reading) -> None:
        cohort.reading = None
        reading.reader.met()
        self.live.members |= cohort.members

    def _rest(self, cohort: Cohort, reading: Reading) -> None:
        """Wait for the next frame, which shows whether the stream goes on at the end of what was read."""
        self.waiting.remove(cohort)
        cohort.phase = Phase.AHEAD
        self.ahead.append(cohort)
        reading.reader.rest()
        self._tidy()

    def _end(self, cohort: Cohort, reading: Reading) -> None:
        self.waiting.remove(cohort)
        self._tidy()
        reading.reader.ended()

    def _ask_on(self, cohort: Cohort, now: float) -> None:
        reading = cohort.reading
        if reading is None:
            super()._ask_on(cohort, now)
            return
        news = self._news(cohort.position)
        if news and follows(cohort.position, news[0], across=False):
            self._take_held(cohort, reading, news, across=False)
        else:
            self.ask_store(cohort, reading, now)

    def _catch_up(self, cohort: Cohort, frame: Frame, now: float) -> bool:
        reading = cohort.reading
        position = cohort.position
        if reading is None:
            is_next = contains(position, frame) or follows(position, frame, across=False)
            if self._complete is not None and position.epoch and not is_next:
                if not self.waiting:
                    self.held.append(frame)
                self._reread(cohort, position_of(frame), now)
                self._tidy()
            return super()._catch_up(cohort, frame, now)
        if contains(position, frame):
            if position != position_of(frame) or reading.stays_behind:
                return False
        elif follows(position, frame, across=True) and not reading.stays_behind:
            if position.epoch and frame.epoch != position.epoch:
                reading.reader.gap(Gap("restart", position, position_of(frame)))
            reading.reader.deliver(frame)
        else:
            # The store may have what was lost on the way from the feeder.
            if not self.waiting:
                self.held.append(frame)
            cohort.phase = Phase.ASKED
            self.waiting.append(cohort)
            self.ask_store(cohort, reading, now)
            return True
        self._meet(cohort, reading)
        return True

    def _take_feeders(self, cohort: Cohort, reading: Reading, state: TopicState, now: float) -> None:
        """Take the feeder's answer: it serves the topic, and the store has to be read up to its position."""
        if state.more:
            return
        reading.target = Position(state.epoch, state.seq)
        reading.outcome = "pending" if state.state == "pending" else "live"
        if reading.is_claim_wrong():
            # All that is published would count as older than what the client says it has.
            gap = Gap("unknown_position")
            if reading.answered:
                reading.reader.gap(gap)
            else:
                reading.reader.begins(Beginning(None, gap))
            cohort.position = NOWHERE
            self._ask_last(cohort, reading, now)
            return
        self.ask_store(cohort, reading, now)

    def _unread(self, cohort: Cohort, reading: Reading, now: float) -> None:
        """Ask again, or another one, or give up: no answer has come."""
        if not reading.at_store:
            self.ask_store(cohort, reading, now)
        elif now - reading.fruitless_since >= PATIENCE:
            self._give_up(cohort, reading, "store_behind" if reading.is_behind else "store_away", now)
        else:
            self._questions.again(self, cohort, now)

    def _give_up(self, cohort: Cohort, reading: Reading, reason: str, now: float) -> None:
        """Tell the client what is missing, and go on without the store."""
        news = self._news(cohort.position)
        gap = Gap(reason, cohort.position if cohort.position.epoch else None)
        if not reading.answered:
            reading.answered = True
            reading.reader.begins(Beginning(None, gap))
            if reading.question.end is not None:
                self._start(reading.reader, 0, 0)
                self._end(cohort, reading)
            else:
                self._ask_last(cohort, reading, now)
        elif reading.question.end is not None:
            reading.reader.gap(gap)
            self._end(cohort, reading)
        elif news:
            if not follows(cohort.position, news[0], across=True):
                reading.reader.gap(gap._replace(before=position_of(news[0])))
                cohort.position = Position(news[0].epoch, news[0].seq - 1)
            self._take_held(cohort, reading, news, across=True)
        else:
            cohort.owed = Owed(reading.reader, gap)
            self._ask_last(cohort, reading, now)

    def _ask_last(self, cohort: Cohort, reading: Reading, now: float) -> None:
        """Go on as a member without a start: the feeder is asked for the last value."""
        cohort.reading = None
        reading.reader.met()
        self._questions.again(self, cohort, now)
        if cohort.question is None:
            self.unanswered(cohort, now)

    def _pay(self, cohort: Cohort, before: Position | None) -> bool:
        """Tell a gap that ends at what is delivered next, the message `before`; return whether one was owed."""
        owed, cohort.owed = cohort.owed, None
        if owed is None:
            return False
        after = owed.gap.after
        if before is None or after is None or after.step(before) in (Step.GAP, Step.NEW_EPOCH):
            owed.reader.gap(owed.gap._replace(before=before))
        return True

    def forget_position(self) -> None:
        """Forget the positions; members that are read the store are told that it cannot be met, and go on like others.

        The numbers of the feeder's older epoch say nothing about what follows the stored records of the newer one, and
        a store does not keep them; so members that are to miss nothing are told too.
        """
        if self._complete is not None:
            for cohort in self.cohorts:
                position = self.position if cohort is self.live else cohort.position
                for member in cohort.members if cohort.reading is None and position.epoch else ():
                    if member in self._complete:
                        self._complete[member][0].gap(Gap("restart", position))
        for cohort in [*self.waiting, *self.ahead, *self.playing]:
            reading = cohort.reading
            if reading is None or reading.question.end is not None:
                continue
            next(cohorts for cohorts in (self.waiting, self.ahead, self.playing) if cohort in cohorts).remove(cohort)
            reading.drop()
            gap = Gap("restart", cohort.position if cohort.position.epoch else None)
            if reading.answered:
                reading.reader.gap(gap)
            else:
                reading.reader.begins(Beginning(None, gap))
                self._start(reading.reader, 0, 0)
            self._meet(cohort, reading)
        ending = [cohort.position for cohort in self.waiting if cohort.reading is not None]
        super().forget_position()
        for cohort, position in zip((c for c in self.waiting if c.reading is not None), ending, strict=True):
            cohort.position = position


def _is_before(gap: Gap, first: Position) -> bool:
    return gap.before is not None and gap.before <= first
