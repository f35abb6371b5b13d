"""The stored messages of one topic over all parts, in the order of their positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qmt_bridge.store.database import Column
from qmt_bridge.store.layout import LARGEST, Record


class View:
    """The messages of the topic `number` in `columns`, oldest first; methods raise `DatabaseError`."""

    def __init__(self, columns: Sequence[Column], number: int) -> None:
        self._columns = columns
        self._number = number

    def last(self) -> Record | None:
        """Return the newest message."""
        return self.last_before(LARGEST, LARGEST)

    def first_from(self, epoch: int, seq: int) -> Record | None:
        """Return the first message at or behind a position."""
        # Positions grow from one part to the next.
        found = (column.first_from(self._number, epoch, seq) for column in self._columns)
        return next((record for record in found if record is not None), None)

    def last_before(self, epoch: int, seq: int) -> Record | None:
        """Return the last message before a position."""
        found = (column.last_before(self._number, epoch, seq) for column in reversed(self._columns))
        return next((record for record in found if record is not None), None)

    def records(self, epoch: int, seq: int) -> Iterator[Record]:
        """Yield the messages at or behind a position."""
        for column in self._columns:
            yield from column.records(self._number, epoch, seq)
