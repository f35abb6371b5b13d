"""Completes the day of a code that is asked for, from the source's history: what to ask the feeder, and what is kept.

No sockets and no clock. A code is subscribed while its history is looked for, so that both overlap: what is published
up to the question is in the history, what follows is stored. It stays subscribed until the day is over: a pause of the
demand would be missing without a trace. The history is put in front of the stored messages (`store.filled`), each
record once (`store.seam`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple

from qmt_bridge.errors import WireError
from qmt_bridge.store.filled import EPOCH_STEP, Filled
from qmt_bridge.store.layout import Record
from qmt_bridge.store.log import Log
from qmt_bridge.store.record_time import record_ms
from qmt_bridge.store.seam import Message, join, marked, message_of, up_to
from qmt_bridge.store.timeline import find
from qmt_bridge.store.view import View
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import AskHistory
from qmt_bridge.wire.source_history import HISTORY_BYTES, SourceHistory
from qmt_bridge.wire.topics import Kind, Topic, parse_topic, shown_topic

logger = logging.getLogger(__name__)

# Codes that the feeder is asked for at a time, and those that wait for that.
MOST_ASKED = 20
MOST_WAITING = 500
# Codes that are subscribed because their day was completed.
MOST_FOLLOWED = 1000
# Seconds from the first question about a code on after which it is given up, and of a wait for its turn before.
SECONDS = 60.0
WAIT_SECONDS = 120.0
# Seconds after which a question without any answer is asked again, and one whose topic the source does not serve yet.
UNANSWERED_SECONDS = 3.0
AGAIN_SECONDS = 0.2
# Seconds that messages may be on their way here that the feeder published before its answer, or a first one after it.
ARRIVAL_SECONDS = 2.0
# A terminal's history may be behind its stream: it is asked for so many times, with so many seconds between.
ATTEMPTS = 3
LATE_SECONDS = 3.0
# Seconds for which a failure is the answer to everybody, and how many are remembered.
FAILED_SECONDS = 60.0
_MOST_FAILED = 10_000
# Bytes of the messages of all histories that are being taken.
MOST_BYTES = 64 * 1024 * 1024
# Stored messages of one time that are compared.
MOST_EQUAL = 1000


class _Phase(Enum):
    """What a job waits for."""

    TURN = auto()
    # The time to ask.
    PAUSE = auto()
    # The first answer.
    ANSWER = auto()
    # The messages.
    MESSAGES = auto()
    # What the feeder has published meanwhile.
    ARRIVAL = auto()


class _Job:
    """The history of one topic that is looked for; `start_ms` is the moment from which on somebody wants it."""

    __slots__ = (
        "answer", "attempts", "day_ms", "history", "number", "phase", "since", "size", "start_ms", "topic", "until",
    )  # fmt: skip

    def __init__(self, topic: Topic, start_ms: int, now: float) -> None:
        self.topic = topic
        self.start_ms = start_ms
        self.phase = _Phase.TURN
        self.since = now
        # When the phase ends.
        self.until = now + WAIT_SECONDS
        self.number = 0
        self.attempts = 0
        self.history: list[Message] = []
        self.size = 0
        self.answer: SourceHistory | None = None

    def is_over(self, now: float) -> bool:
        return self.phase is not _Phase.TURN and now - self.since >= SECONDS


class _Failed(NamedTuple):
    reason: str
    until: float


class _FailedError(Exception):
    """Ends a job; the text is told to the askers."""


class Backfill:
    """The jobs of a store, which calls `step` in each turn. `ask` sends a question and says whether it could."""

    def __init__(
        self,
        log: Log,
        ask: Callable[[AskHistory], bool],
        follow: Callable[[Topic], None],
        leave: Callable[[Topic], None],
    ) -> None:
        self._log = log
        self._ask = ask
        self._follow = follow
        self._leave = leave
        self._jobs: dict[Topic, _Job] = {}
        self._asked = 0
        # Topics that stay subscribed, and the day of that.
        self._followed: set[Topic] = set()
        self._day = ""
        self._failed: dict[Topic, _Failed] = {}
        self._number = 0
        self._now = 0.0
        self._time_ns = 0
        # Topics whose history was put in front, and those of which it was not.
        self.filled = 0
        self.unfilled = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def want(self, topic: Topic, start_ms: int) -> str | None:
        """Return None while the history of a topic is looked for, from now on if it is not yet; else why it is not."""
        if topic in self._jobs:
            return None
        failed = self._failed.get(topic)
        if failed is not None and self._now < failed.until:
            return failed.reason
        if parse_topic(topic).kind is not Kind.QUOTE:
            return "only quotes of single codes are completed from the source's history"
        if len(self._jobs) >= MOST_WAITING or len(self._followed) >= MOST_FOLLOWED:
            self.unfilled += 1
            return f"the history of {len(self._jobs)} codes is looked for, and {len(self._followed)} are completed"
        self._jobs[topic] = _Job(topic, start_ms, self._now)
        return None

    def stop(self, reason: str) -> None:
        """End all jobs, because nothing can be stored now."""
        for job in list(self._jobs.values()):
            self._fail(job, reason)

    def take(self, answer: SourceHistory) -> None:
        """Take an answer of the feeder."""
        job = next((job for job in self._jobs.values() if job.number == answer.id and job.topic == answer.topic), None)
        if job is None or job.phase not in (_Phase.ANSWER, _Phase.MESSAGES):
            return
        try:
            self._take(job, answer)
        except _FailedError as exc:
            self._fail(job, str(exc))
        except WireError as exc:
            self._fail(job, f"what the feeder has answered cannot be read: {exc}")

    def step(self, now: float, time_ns: int, day: str) -> None:
        """Do what is due at `now` (seconds, monotonic); `time_ns` is the wall clock, `day` the one of new messages."""
        self._now, self._time_ns = now, time_ns
        if day != self._day:
            self._day = day
            for topic in self._followed - self._jobs.keys():
                self._leave(topic)
            self._followed &= self._jobs.keys()
        for job in list(self._jobs.values()):
            try:
                self._step(job, now, time_ns, day)
            except _FailedError as exc:
                self._fail(job, str(exc))
            except WireError as exc:
                self._fail(job, f"what the feeder has answered cannot be read: {exc}")

    def _step(self, job: _Job, now: float, time_ns: int, day: str) -> None:
        if job.is_over(now):
            raise _FailedError(f"the source has not given its history in {SECONDS:g} s")
        match job.phase:
            case _Phase.TURN if self._asked < MOST_ASKED:
                self._asked += 1
                if job.topic not in self._followed:
                    self._follow(job.topic)
                job.since = now
                job.phase, job.until = _Phase.PAUSE, now
                self._send(job, now)
            case _Phase.TURN if now >= job.until:
                raise _FailedError(f"the source was busy with others for {WAIT_SECONDS:g} s")
            case _Phase.PAUSE | _Phase.ANSWER if now >= job.until:
                if job.phase is _Phase.ANSWER and now - job.since >= 2 * UNANSWERED_SECONDS:
                    raise _FailedError("the feeder does not answer")
                self._send(job, now)
            case _Phase.ARRIVAL if self._has_arrived(job) or now >= job.until:
                self._finish(job, now, time_ns, day)

    def _send(self, job: _Job, now: float) -> None:
        self._number += 1
        job.number = self._number
        job.history, job.size, job.answer = [], 0, None
        place = _place(self._log, job)
        if self._ask(AskHistory(job.number, job.topic, place.day_ms)):
            job.phase, job.until = _Phase.ANSWER, now + UNANSWERED_SECONDS
        elif now - job.since >= 2 * UNANSWERED_SECONDS:
            raise _FailedError("there is no connection to the feeder")
        else:
            job.phase, job.until = _Phase.PAUSE, now + AGAIN_SECONDS

    def _take(self, job: _Job, answer: SourceHistory) -> None:
        match answer.state:
            case "refused":
                raise _FailedError(answer.error or "the source has none")
            case "pending":
                job.phase, job.until = _Phase.PAUSE, self._now + AGAIN_SECONDS
            case "taken":
                job.phase = _Phase.MESSAGES
            case "history":
                self._take_part(job, answer)

    def _take_part(self, job: _Job, part: SourceHistory) -> None:
        for raw in part.bodies:
            body = bytes(raw)
            job.size += len(body)
            job.history.append(_message(body, self._time_ns))
        if job.size > HISTORY_BYTES:
            raise _FailedError(f"its history has more than {HISTORY_BYTES:,} bytes")
        if sum(each.size for each in self._jobs.values()) > MOST_BYTES:
            raise _FailedError(f"the histories that are being taken have more than {MOST_BYTES:,} bytes")
        if not part.more:
            job.answer = part
            job.phase, job.until = _Phase.ARRIVAL, self._now + ARRIVAL_SECONDS

    def _has_arrived(self, job: _Job) -> bool:
        """Return whether all is here that the feeder published before its answer."""
        assert job.answer is not None
        newest = self._log.newest(job.topic)
        return newest is not None and newest[0] >= Position(job.answer.epoch, max(1, job.answer.newest))

    def _finish(self, job: _Job, now: float, time_ns: int, day: str) -> None:
        answer = job.answer
        assert answer is not None
        job.attempts += 1
        self._log.commit()
        place = _place(self._log, job, answer.epoch)
        before = [message for message in place.before if message.ms >= answer.from_ms]
        history = [message for message in job.history if message.ms >= answer.from_ms]
        known = _known(answer, history, time_ns)
        if place.after:
            joined = join(history, before, place.after)
            is_next = place.epoch == answer.epoch and place.seq <= answer.seq + 1 and known is not None
            until = place.seq if joined.right or is_next else 0
        else:
            # What follows the newest published message will be stored.
            joined = join(history if known is None else known, before, [])
            until = 0 if known is None else answer.seq + 1
        if not until and job.attempts < ATTEMPTS:
            job.phase, job.until = _Phase.PAUSE, now + LATE_SECONDS
            return
        epoch = place.epoch - EPOCH_STEP
        from_ms = before[-1].ms + 1 if before else answer.from_ms
        filled = Filled(epoch, len(joined.messages), from_ms, joined.left, until)
        self._log.fill(job.topic, list(_records(joined.messages, epoch, time_ns)), filled, day)
        logger.info("%s: %d messages of the source's history", shown_topic(job.topic), filled.count)
        self.filled += 1
        self._followed.add(job.topic)
        self._end(job)

    def _fail(self, job: _Job, reason: str) -> None:
        logger.warning("%s is not completed from the source's history: %s", shown_topic(job.topic), reason)
        self.unfilled += 1
        self._failed.pop(job.topic, None)
        self._failed[job.topic] = _Failed(reason, self._now + FAILED_SECONDS)
        while len(self._failed) > _MOST_FAILED:
            del self._failed[next(iter(self._failed))]
        self._end(job)

    def _end(self, job: _Job) -> None:
        del self._jobs[job.topic]
        if job.phase is not _Phase.TURN:
            self._asked -= 1
            if job.topic not in self._followed:
                self._leave(job.topic)


class _Place(NamedTuple):
    """Where a history belongs: in front of the message `seq` of `epoch`, or of the first one that will be stored."""

    epoch: int
    seq: int
    # The stored messages on both sides that have the time of the last one, and of the first one.
    before: list[Message]
    after: list[Message]
    # A time of the day that is meant; 0: the newest.
    day_ms: int


def _place(log: Log, job: _Job, epoch: int = 0) -> _Place:
    """Return where the history of a job belongs; `epoch` is the feeder's, for a topic without a message."""
    log.commit()
    stored = log.find(job.topic)
    if stored is None:
        return _Place(epoch, 0, [], [], 0)
    view = log.view(stored)
    first, before = find(view, job.start_ms)
    if first is None:
        newest = view.last()
        if newest is not None and epoch and newest.epoch >= epoch - EPOCH_STEP:
            raise _FailedError("nothing of the day is stored yet that its history could precede")
        return _Place(epoch, 0, [], [], 0 if newest is None else newest.ms)
    last = view.last_before(first.epoch, first.seq)
    if last is not None and last.epoch >= first.epoch - EPOCH_STEP:
        raise _FailedError("earlier messages are stored of the same feeder")
    return _Place(first.epoch, first.seq, list(_ending(view, before)), list(_beginning(view, first)), first.ms)


def _beginning(view: View, first: Record) -> Iterator[Message]:
    for record in islice(view.records(first.epoch, first.seq), MOST_EQUAL):
        message = _message(record.body, record.received_ns)
        if record.epoch != first.epoch or record.ms != first.ms:
            return
        yield message


def _ending(view: View, last: Record | None) -> Iterator[Message]:
    found: list[Message] = []
    record = last
    while last is not None and record is not None and record.epoch == last.epoch and record.ms == last.ms:
        found.append(_message(record.body, record.received_ns))
        record = view.last_before(record.epoch, record.seq) if len(found) < MOST_EQUAL else None
    yield from reversed(found)


def _known(answer: SourceHistory, history: list[Message], time_ns: int) -> list[Message] | None:
    """Return the history up to the newest message that was published when it was asked for; None if it lacks that."""
    if not answer.seq:
        return history
    last = bytes(answer.last)
    return None if last == b"null" else up_to(history, _message(last, time_ns))


def _message(body: bytes, received_ns: int) -> Message:
    return message_of(record_ms(Kind.QUOTE, body, received_ns), body)


def _records(messages: list[Message], epoch: int, time_ns: int) -> Iterator[Record]:
    ms = 0
    for seq, message in enumerate(messages, 1):
        # As within any epoch, the times never go back.
        ms = max(ms, message.ms)
        yield Record(epoch, seq, ms, time_ns, time_ns, marked(message))
