"""Lines out of the bytes of a connection, numbered from 1. Pure.

A part of a line is kept until its end comes, up to the bytes of the longest one; of a longer line nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

# Bytes of a line without its end: a part of a market's snapshot, or of a history.
LINE_BYTES = 4 * 1024 * 1024


class Lines:
    """The lines of one connection."""

    def __init__(self, limit: int = LINE_BYTES) -> None:
        # Bytes of the longest line.
        self.limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Yield each line that ends in `data`, without its end; None for one that is too long."""
        first, *more = data.split(b"\n")
        self._add(first)
        if not more:
            return
        yield self._end()
        *whole, last = more
        if len(data) <= self.limit:
            yield from whole
        else:
            yield from (line if len(line) <= self.limit else None for line in whole)
        self._add(last)

    @property
    def size(self) -> int:
        """Return the bytes that are kept of a line that has not ended."""
        return min(self._size, self.limit)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self.limit:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end(self) -> bytes | None:
        line = None if self._size > self.limit else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return line


class Budget:
    """How many error lines a connection is sent: so many at once, and as many in each second. Time is an argument."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Return whether one more may be sent at `now` (seconds of any clock)."""
        if self._at is not None:
            self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
