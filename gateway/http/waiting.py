"""The bytes that answers of pages hold until their clients read: one limit for the worker. Pure.

A client that reads nothing is dropped after `slow_timeout` seconds. Until then each holds a chunk, and thousands may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Waiting:
    """The answers of one worker that wait until there is room for more."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        # Bytes, and how to drop the answer; the one that has waited longest comes first.
        self._answers: dict[object, tuple[int, Callable[[], None]]] = {}
        self._size = 0

    @contextmanager
    def hold(self, size: int, drop: Callable[[], None]) -> Iterator[None]:
        """Hold `size` bytes while an answer waits; beyond the limit the one that has waited longest is dropped."""
        answer = object()
        self._answers[answer] = size, drop
        self._size += size
        try:
            while self._size > self._most_bytes:
                self._end(next(iter(self._answers)))()
            yield
        finally:
            if answer in self._answers:
                self._end(answer)

    def _end(self, answer: object) -> Callable[[], None]:
        size, drop = self._answers.pop(answer)
        self._size -= size
        return drop
