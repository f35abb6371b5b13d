"""The questions of the streams to the feeder and the store, and the facts of its newest heartbeat. Pure.

Streams share questions: after a restart of the feeder, a few questions ask for all topics of a worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gateway.streams.cohort import Cohort
from gateway.streams.member import Upstream
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.topics import Topic


class Asker(Protocol):
    """A stream, as far as questions use it."""

    topic: Topic

    def unanswered(self, cohort: Cohort, now: float) -> None:
        """Continue without an answer."""


class Questions:
    """Sends questions, as few as possible."""

    def __init__(self, upstream: Upstream) -> None:
        # The epoch of the newest heartbeat, 0 before the first, and the position of the journal in that heartbeat.
        self.epoch = 0
        self.journal: JournalPosition | None = None
        # When the store has last answered any question.
        self.store_seen = 0.0
        self._upstream = upstream

    def ask(self, asking: Iterable[tuple[Asker, Cohort]], now: float) -> None:
        """Ask for each cohort. Those with the same position share a question, unless they are of the same stream."""
        alike: dict[JournalPosition | None, list[dict[Asker, Cohort]]] = {}
        for stream, cohort in asking:
            questions = alike.setdefault(cohort.after, [])
            question = next((question for question in questions if stream not in question), None)
            if question is None:
                questions.append(question := {})
            question[stream] = cohort
        for after, questions in alike.items():
            for question in questions:
                self._send(after, question, now)

    def again(self, stream: Asker, cohort: Cohort, now: float) -> None:
        """Ask again for the events after `cohort.after`, for what the store has next, or for a newer value."""
        reading = cohort.reading
        if reading is not None and reading.at_store:
            sent = self._upstream.ask_store([stream.topic], reading.question)
        else:
            sent = self.send([stream.topic], cohort.after)
        cohort.question, cohort.asked_at = sent, now

    def send(self, topics: list[Topic], after: JournalPosition | None = None) -> int | None:
        """Send one question; return its id, or None while there is no connection to the feeder."""
        return self._upstream.ask(topics, after)

    def _send(self, after: JournalPosition | None, question: dict[Asker, Cohort], now: float) -> None:
        sent = self.send([stream.topic for stream in question], after)
        for stream, cohort in question.items():
            cohort.question, cohort.asked_at = sent, now
            if sent is None:
                stream.unanswered(cohort, now)
