"""Topics that are subscribed and have no place, because the feeder or their kind is full: they wait in line for one.

Pure: time is an argument. An XPUB reports the first subscription of a topic once, so what is forgotten here would stay
without data until its last subscriber has left. The number and the bytes are bounded, because peers make it grow.
"""

from __future__ import annotations

from itertools import takewhile

# Topics without a place, and their bytes; a further one is refused and forgotten.
MAX_UNPLACED = 10_000
MAX_UNPLACED_BYTES = 4 * 1024 * 1024


class Unplaced:
    """All topics without a place. Those that wait are in line, one line for each kind; the others were refused."""

    def __init__(self) -> None:
        self._topics: set[str] = set()
        self._size = 0
        # Until when each one waits, by kind. The time that it waits is constant, so the first is the next one due.
        self._lines: dict[str, dict[str, float]] = {}

    def __contains__(self, text: str) -> bool:
        return text in self._topics

    @property
    def is_full(self) -> bool:
        """Return whether no further topic is taken."""
        return len(self._topics) >= MAX_UNPLACED or self._size >= MAX_UNPLACED_BYTES

    def add(self, text: str, until: float) -> bool:
        """Put a topic at the end of its line; return False if there are too many."""
        if text not in self._topics:
            if self.is_full:
                return False
            self._topics.add(text)
            self._size += len(text)
        self.wait(text, until)
        return True

    def wait(self, text: str, until: float) -> None:
        """Have a topic without a place wait in line, unless it does."""
        self._lines.setdefault(kind_of(text), {}).setdefault(text, until)

    def waits(self, text: str) -> bool:
        """Return whether a topic is in line."""
        return text in self._lines.get(kind_of(text), ())

    def heads(self) -> list[str]:
        """Return the first topic of each line."""
        return [next(iter(line)) for line in self._lines.values()]

    def remove(self, text: str) -> None:
        """Forget a topic: it has a place, or its last subscriber has left."""
        if text in self._topics:
            self._topics.remove(text)
            self._size -= len(text)
            self._leave_line(text)

    def take_due(self, now: float) -> list[str]:
        """Return the topics that have waited long enough; they are in line no longer, and stay without a place."""
        due = [
            text for line in self._lines.values() for text, _ in takewhile(lambda item: item[1] <= now, line.items())
        ]
        for text in due:
            self._leave_line(text)
        return due

    def deadline(self) -> float | None:
        """Return when `take_due` has something to return; None if no topic waits."""
        return min((next(iter(line.values())) for line in self._lines.values()), default=None)

    def clear(self) -> None:
        """Forget all: their subscribers have left."""
        self._topics.clear()
        self._size = 0
        self._lines.clear()

    def _leave_line(self, text: str) -> None:
        line = self._lines.get(kind_of(text), {})
        line.pop(text, None)
        if not line:
            self._lines.pop(kind_of(text), None)


def kind_of(text: str) -> str:
    """Return the first part of a topic, whatever it is."""
    return text.partition("/")[0]
