"""Backlog: work that takes longer than a tick, done in pieces between two turns, so that no tick is delayed.

Pure. The work is the newest record of each topic that has one, and the topics that are to begin. The kinds of topics
take turns.
"""

from __future__ import annotations

from collections.abc import Callable

from qmt_bridge.wire.topics import Kind, Topic, TopicParts

# After so many records a topic that is to begin has its turn.
_RECORDS_IN_A_ROW = 10


class Backlog:
    """Pieces of work; `begin` is called for a topic that is to begin."""

    def __init__(self, begin: Callable[[Topic, TopicParts], None]) -> None:
        self._begin = begin
        self._records: dict[Topic, Callable[[], None]] = {}
        self._opening: dict[Kind, dict[Topic, TopicParts]] = {}
        self._in_a_row = 0

    def __bool__(self) -> bool:
        return bool(self._records or self._opening)

    def put(self, topic: Topic, publish: Callable[[], None]) -> None:
        """Add a topic's newest record. A topic that still waits keeps its place, and gets the newer record."""
        self._records[topic] = publish

    def open(self, topic: Topic, parts: TopicParts) -> None:
        """Add a topic that is to begin."""
        self._opening.setdefault(parts.kind, {})[topic] = parts

    def drop(self, topic: Topic, kind: Kind) -> None:
        """Remove a topic that is no longer subscribed."""
        self._records.pop(topic, None)
        opening = self._opening.get(kind, {})
        opening.pop(topic, None)
        if not opening:
            self._opening.pop(kind, None)

    def do_one(self) -> None:
        """Do the next piece."""
        if self._records and (self._in_a_row < _RECORDS_IN_A_ROW or not self._opening):
            self._in_a_row += 1
            self._records.pop(next(iter(self._records)))()
            return
        self._in_a_row = 0
        kind, topics = next(iter(self._opening.items()))
        topic = next(iter(topics))
        parts = topics.pop(topic)
        # The kind goes to the end, so that its next topic comes after one of each other kind.
        del self._opening[kind]
        if topics:
            self._opening[kind] = topics
        self._begin(topic, parts)
