"""Lines out of the bytes of a connection, numbered from 1. Pure.

A part of a line is kept until its end comes, up to the bytes of the longest one; of a longer line nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

# Bytes of a line without its end: a part of a market's snapshot, or of a history.
LINE_BYTES = 4 * 1024 * 1024


class Lines:
    """The lines of one connection; the first one, which is the hello, may have a limit of its own."""

    def __init__(self, limit: int = LINE_BYTES, first_limit: int | None = None) -> None:
        # Bytes of the longest line: of the one that comes now, and of those behind it.
        self._limit = limit if first_limit is None else first_limit
        self._later_limit = limit
        # In one piece: a list of parts of a few bytes would take many times their bytes.
        self._kept = bytearray()
        self._size = 0

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Yield each line that ends in `data`, without its end; None for one that is too long."""
        first, *more = data.split(b"\n")
        self._add(first)
        if not more:
            return
        yield self._end()
        *whole, last = more
        if len(data) <= self._limit:
            yield from whole
        else:
            yield from (line if len(line) <= self._limit else None for line in whole)
        self._add(last)

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._kept.clear()
        else:
            self._kept += part

    def _end(self) -> bytes | None:
        line = None if self._size > self._limit else bytes(self._kept)
        self._kept.clear()
        self._size = 0
        self._limit = self._later_limit
        return line


class Budget:
    """How often something may be done: so many times at once, and as many in each second. Time is an argument."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Return whether it may be done once more at `now` (seconds of any clock)."""
        if self._at is not None:
            self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
