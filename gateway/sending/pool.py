"""What waits for all clients of one worker together: a bound in bytes, and the tables that its outboxes share. Pure.

Each client alone has a bound of some megabytes (`Outbox.limit`), but a worker has thousands of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.sending.newest import Tables

# What is left of the limit once the worst clients have been dropped, so that it is not reached again at once.
_LEFT = 0.75


class Backlog(Protocol):
    """One client's outbox, as far as it takes part in the bound."""

    @property
    def size(self) -> int:
        """Return the bytes that wait."""

    def conflate(self) -> None:
        """Keep only the newest versions of what waits."""


class Pool:
    """Counts the bytes of all outboxes, and calls `on_full` once when they are more than `limit`."""

    __slots__ = ("_is_full", "_on_full", "limit", "size", "tables")

    def __init__(self, limit: int, on_full: Callable[[], None] = lambda: None) -> None:
        self.limit = limit
        # The bytes of all outboxes; a frame that waits for several clients counts for each of them.
        self.size = 0
        self.tables = Tables()
        self._on_full = on_full
        self._is_full = False

    def add(self, size: int) -> None:
        """Count bytes that wait, or wait no longer."""
        self.size += size
        if self.size > self.limit and not self._is_full:
            self._is_full = True
            self._on_full()

    def relieve(self, outboxes: Iterable[Backlog]) -> list[int]:
        """Conflate the largest of `outboxes`; return the places of those to drop if that is not enough."""
        self._is_full = False
        if self.size <= self.limit:
            return []
        wanted = int(self.limit * _LEFT)
        sized = sorted(((outbox.size, place, outbox) for place, outbox in enumerate(outboxes)), key=_by_size)
        for size, _, outbox in sized:
            if self.size <= wanted or not size:
                break
            outbox.conflate()
        if self.size <= self.limit:
            return []
        left = self.size
        dropped = []
        for size, place in sorted(((outbox.size, place) for _, place, outbox in sized), reverse=True):
            if left <= wanted or not size:
                break
            left -= size
            dropped.append(place)
        return dropped


def _by_size(sized: tuple[int, int, Backlog]) -> tuple[int, int]:
    return -sized[0], sized[1]
