"""When to ask the terminal for an account's orders, fills, positions and asset.

Pure; the time, in seconds of one clock, is an argument. `Reconciliation` uses it, under its guard. A question is asked
with growing pauses until its answer is certain, and then every `interval` seconds: a push can be lost while the session
lasts. A question that is not answered is asked again after a while.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# An account is quiet if none of its orders has changed for this time: an answer is then as new as the pushes.
QUIET_SECONDS = 2.0
# The longest pause between questions that have no certain answer, if `interval` is longer or off. A terminal may answer
# in the same way for an account without orders and for a query that failed, so the pause has to suit both.
SLOWEST = 300.0


class _Question:
    __slots__ = ("again_at", "asked_at", "due", "failures", "unsure_since", "was_certain", "was_heard")

    def __init__(self, due: float) -> None:
        self.due = due
        # When it was asked, while it is not answered.
        self.asked_at: float | None = None
        # When to ask again although an answer is still to come: that question was asked before something changed.
        self.again_at: float | None = None
        # How many answers were uncertain, or did not come, since the last certain one.
        self.failures = 0
        # When it was first asked since then.
        self.unsure_since = math.inf
        self.was_certain = False
        self.was_heard = False


class Questions:
    """The questions of one account in one session."""

    def __init__(self, events: Iterable[str], now: float, interval: float, first: float, patience: float) -> None:
        """Make all due `now`. `first` is the pause (s) before the first repetition, `patience` if no answer comes."""
        self._questions = {event: _Question(now) for event in events}
        self._interval = interval or math.inf
        self._first = first
        self._patience = patience
        self._moved_at = -math.inf

    def due(self, now: float) -> list[str]:
        """Return which questions to ask now."""
        return [event for event in self._questions if self._due_at(event) <= now]

    def next_at(self) -> float:
        """Return when the next one is due; infinite if none is."""
        return min(map(self._due_at, self._questions), default=math.inf)

    def ask(self, event: str, now: float) -> None:
        """Note that a question is asked."""
        question = self._questions[event]
        if question.asked_at is not None:
            question.failures += 1
        question.asked_at = now
        question.unsure_since = min(question.unsure_since, now)

    def answer(self, event: str, now: float, is_certain: bool) -> None:
        """Note an answer; it is certain if it surely lists everything."""
        question = self._questions[event]
        question.asked_at, question.was_heard = None, True
        question.was_certain = is_certain
        if is_certain:
            question.failures = 0
            question.unsure_since = math.inf
            question.due = now + self._interval
        else:
            question.due = now + self._pause(self._first, question.failures)
            question.failures += 1
        if question.again_at is not None:
            question.due, question.again_at = min(question.due, question.again_at), None
            question.was_certain = False

    def hasten(self, events: Iterable[str], at: float) -> None:
        """Make questions due at `at` at the latest: something has changed, and old answers are no longer valid."""
        for event in events:
            question = self._questions[event]
            question.was_certain = False
            question.failures = 0
            if question.asked_at is None:
                question.due = min(question.due, at)
            else:
                question.again_at = at

    def moved(self, now: float) -> None:
        """Note that one of the account's orders has changed."""
        self._moved_at = now

    def unsure_for(self, event: str, now: float) -> float:
        """Return for how many seconds a question has had no certain answer."""
        return max(0.0, now - self._questions[event].unsure_since)

    def is_unanswered(self, event: str) -> bool:
        """Return whether a question waits for its answer."""
        return self._questions[event].asked_at is not None

    def were_heard(self) -> bool:
        """Return whether each question was answered at least once, certainly or not, and none waits for an answer."""
        return all(each.was_heard and each.asked_at is None for each in self._questions.values())

    def _due_at(self, event: str) -> float:
        question = self._questions[event]
        if question.asked_at is not None:
            return question.asked_at + self._pause(self._patience, question.failures)
        if question.was_certain:
            return max(question.due, self._moved_at + QUIET_SECONDS)
        return question.due

    def _pause(self, first: float, failures: int) -> float:
        # Limit the exponent: 2.0 ** 1024 raises OverflowError.
        return min(first * 2.0 ** min(failures, 60), max(first, min(self._interval, SLOWEST)))
