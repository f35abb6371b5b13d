"""The long answers that can never change: a part of the past of which nothing is missing. Pure.

Whether something is missing is known at the end of an answer, and its entity tag stands at the beginning. So each
answer has a tag of its own, and the worker remembers which of them were complete.
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Iterable

# Answers that are remembered; the oldest are forgotten, and then sent again.
MOST = 10_000


class ClosedAnswers:
    """The entity tags of answers that were sent completely, and what each is an answer to."""

    def __init__(self) -> None:
        self._asked: dict[str, Hashable] = {}

    def tag(self) -> str:
        """Return a tag for a new answer."""
        return f'W/"{secrets.token_hex(16)}"'

    def keep(self, tag: str, asked: Hashable) -> None:
        """Remember that the answer with this tag was complete, and cannot change."""
        self._asked[tag] = asked
        while len(self._asked) > MOST:
            del self._asked[next(iter(self._asked))]

    def find(self, tags: Iterable[str], asked: Hashable) -> str | None:
        """Return which of the tags is that of an answer to the same."""
        return next((tag for tag in tags if self._asked.get(tag) == asked), None)
