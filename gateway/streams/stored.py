"""Streams whose members may be read what the store of the day has, before they meet the live stream. Pure.

The phases are those of a journal's reader (see `cohort`): a chunk is delivered, and once the client was sent it the
next one is asked for. The frames that are held meanwhile are the end of the reading: where they follow what was read,
they are delivered and the member is live. A member is never given a frame twice, and what is missing is told with both
sides.
"""

from __future__ import annotations

from collections import deque
from functools import partial

from gateway.streams.cohort import Cohort, Phase
from gateway.streams.member import Beginning, Gap, Reader, StoreQuestion
from gateway.streams.reading import AGAIN, FILLING_AGAIN, PATIENCE, Owed, Reading, follows, gap_of, position_of
from gateway.streams.stream import ANSWER_TIMEOUT, Stream, contains
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory, frames_of
from qmt_bridge.wire.positions import Position, Step
from qmt_bridge.wire.requests import TopicState


class StoredStream(Stream):
    """Reads members the store, each at its own pace."""

    __slots__ = ()

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
        if reading.answered:
            self._questions.again(self, cohort, now)
            return
        cohort.phase, cohort.question = Phase.DRAINING, None
        reading.reader.open(partial(self._open, cohort, reading))

    def _open(self, cohort: Cohort, reading: Reading, now: float) -> None:
        if cohort.phase is Phase.DRAINING and cohort in self.waiting and cohort.reading is reading:
            cohort.phase = Phase.ASKED
            reading.fruitless_since = now
            self._questions.again(self, cohort, now)

    def _expire_questions(self, now: float) -> None:
        super()._expire_questions(now)
        for cohort in list(self.waiting):
            reading = cohort.reading
            if reading is None or reading.answered or cohort.phase is not Phase.DRAINING or cohort not in self.waiting:
                continue
            # A turn that does not come while the store answers others is only late.
            if now - max(reading.fruitless_since, self._questions.store_seen) >= PATIENCE:
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
        if answer.state == "filling":
            self._ask_later(cohort, reading, now, FILLING_AGAIN)
            reading.fruitless_since = now
            return
        frames = [frame for frame in frames_of(answer) if not contains(cohort.position, frame)]
        gaps = [gap_of(hole) for hole in answer.holes]
        if not reading.answered:
            reading.reader.rest()
            opening = self._begin(reading, answer, gaps, position_of(frames[0]) if frames else None)
            if opening is not None and not frames and not answer.epoch and reading.question.end is None:
                # Nothing is stored, so the client gets what it would get without a start.
                self._ask_last(cohort, reading, now)
                return
        behind = self._deliver_stored(cohort, reading, frames, gaps)
        if answer.epoch:
            cohort.position = max(cohort.position, self._exact(answer, reading))
        question = reading.question
        # A time of day stays the one of the day that the first answer meant.
        start = None if question.start is None else answer.start_ms or question.start
        end = answer.end_ms or question.end
        reading.question = question._replace(start=start, end=end, room=question.chunk)
        if frames:
            reading.fruitless_since = now
        if answer.more:
            self._drain(cohort)
        elif question.end is not None:
            for gap in behind:
                # Its other side is after the end.
                reading.reader.gap(gap)
            self._end(cohort, reading)
        else:
            self._end_reading(cohort, reading, now)

    def _exact(self, answer: TopicHistory, reading: Reading) -> Position:
        """Return the position of an answer; a client that named it may have rounded its epoch, as browsers do."""
        known = (self.epoch, reading.target.epoch)
        epoch = next((epoch for epoch in known if float(epoch) == float(answer.epoch)), answer.epoch)
        return Position(answer.epoch if answer.frames else epoch, answer.seq)

    def _begin(self, reading: Reading, answer: TopicHistory, gaps: list[Gap], first: Position | None) -> Gap | None:
        """Tell where the records begin; return what is missing there, before the first one."""
        reading.answered = True
        opening = next((gap for gap in gaps if gap.after is None or first is None or gap.before == first), None)
        if opening is not None:
            gaps.remove(opening)
        from_ms = answer.from_ms if opening is not None else answer.start_ms or answer.from_ms
        reading.reader.begins(Beginning(from_ms, opening, answer.source))
        self._start(reading.reader, answer.epoch, answer.seq, reading.outcome)
        return opening

    def _deliver_stored(self, cohort: Cohort, reading: Reading, frames: list[Frame], gaps: list[Gap]) -> deque[Gap]:
        """Deliver frames, each after the gaps before it; return the gaps behind the last one.

        A gap without another side is told once that is known.
        """
        told = deque(gap for gap in gaps if gap.before is not None and gap.before > cohort.position)
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
        if news and follows(cohort.position, news[0], across=True):
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
        if reading is None:
            return super()._catch_up(cohort, frame, now)
        position = cohort.position
        if contains(position, frame):
            if position != position_of(frame):
                return False
        elif follows(position, frame, across=True):
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

        The numbers of the feeder's older epoch say nothing about what follows the stored records of the newer one.
        """
        for cohort in [*self.waiting, *self.ahead]:
            reading = cohort.reading
            if reading is None or reading.question.end is not None:
                continue
            (self.waiting if cohort in self.waiting else self.ahead).remove(cohort)
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
