"""When to ask the terminal for an account's orders, fills, positions and asset.

Pure; the time, in seconds of one clock, is an argument. `Reconciliation` uses it, under its guard. A question is asked
until its answer is certain, ever more slowly, and from then on every `interval` seconds: a terminal can lose a push
without losing its session. What was asked and has not been answered is asked again after a while.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

# An account is quiet if for so long none of its orders has moved: an answer is then no older than what is pushed.
QUIET_SECONDS = 2.0
# The slowest pace of what has no certain answer, where `interval` is longer or is off: a terminal may tell an account
# without orders in no other way than one whose query has failed, so the pace has to suit both.
SLOWEST = 300.0


class _Question:
    __slots__ = ("again_at", "asked_at", "due", "failures", "unsure_since", "was_certain", "was_heard")

    def __init__(self, due: float) -> None:
        self.due = due
        # When it was asked, while it is not answered.
        self.asked_at: float | None = None
        # When to ask again although it will be answered: what is on its way was asked before something happened.
        self.again_at: float | None = None
        # Uncertain answers, and times without one, since the last certain answer.
        self.failures = 0
        # When it was first asked since then.
        self.unsure_since = math.inf
        self.was_certain = False
        self.was_heard = False


class Questions:
    """The questions of one account in one session."""

    def __init__(self, events: Iterable[str], now: float, interval: float, first: float, patience: float) -> None:
        """Let all be due `now`; `first` seconds lie before the first repetition, `patience` before one unanswered."""
        self._questions = {event: _Question(now) for event in events}
        self._interval = interval or math.inf
        self._first = first
        self._patience = patience
        self._moved_at = -math.inf

    def due(self, now: float) -> list[str]:
        """Return what is to be asked now."""
        return [event for event in self._questions if self._due_at(event) <= now]

    def next_at(self) -> float:
        """Return when the next one is due; infinite if none is."""
        return min(map(self._due_at, self._questions), default=math.inf)

    def ask(self, event: str, now: float) -> None:
        """Note that it is asked."""
        question = self._questions[event]
        if question.asked_at is not None:
            question.failures += 1
        question.asked_at = now
        question.unsure_since = min(question.unsure_since, now)

    def answer(self, event: str, now: float, is_certain: bool) -> None:
        """Note an answer: a certain one tells all that there is."""
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
        """Let questions be due at `at` if they would be later: something has happened that makes old answers void."""
        for event in events:
            question = self._questions[event]
            question.was_certain = False
            question.failures = 0
            if question.asked_at is None:
                question.due = min(question.due, at)
            else:
                question.again_at = at

    def moved(self, now: float) -> None:
        """Note that one of the account's orders has moved."""
        self._moved_at = now

    def unsure_for(self, event: str, now: float) -> float:
        """Return for how many seconds it has been asked without a certain answer."""
        return max(0.0, now - self._questions[event].unsure_since)

    def is_unanswered(self, event: str) -> bool:
        """Return whether it waits for its answer."""
        return self._questions[event].asked_at is not None

    def were_heard(self) -> bool:
        """Return whether each has been answered once, certainly or not, and none waits for an answer."""
        return all(each.was_heard and each.asked_at is None for each in self._questions.values())

    def _due_at(self, event: str) -> float:
        question = self._questions[event]
        if question.asked_at is not None:
            return question.asked_at + self._pause(self._patience, question.failures)
        if question.was_certain:
            return max(question.due, self._moved_at + QUIET_SECONDS)
        return question.due

    def _pause(self, first: float, failures: int) -> float:
        # 2.0 ** 1024 is none.
        return min(first * 2.0 ** min(failures, 60), max(first, min(self._interval, SLOWEST)))
