"""Trade events inside the feeder: before and after they have a position, and the newest positions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from qmt_bridge.wire import frames

# What Python adds to the body of an event in memory.
EVENT_BYTES = 300


class Unsent(NamedTuple):
    """A trade event without a position yet: `data` is encoded already."""

    account: str
    type: str
    data: msgspec.Raw


class Event(NamedTuple):
    """A trade event at its position `seq` over all accounts, the `number`-th of its own; `body` is what is published.

    ``{"type":..,"seq":..,"data":{..}}``, and ``"journaled":false`` if it could not be written.
    """

    seq: int
    account: str
    number: int
    time_ms: int
    body: bytes

    @property
    def size(self) -> int:
        """Return the bytes of memory that the event takes, roughly."""
        return len(self.body) + EVENT_BYTES

    def marked(self) -> Event:
        """Return the event as it is published, and replayed, while it is not on disk."""
        return self._replace(body=frames.encode({**frames.split(self.body), "journaled": False}))


class Positions:
    """The newest positions that a part of the feeder knows: over all accounts, and of each account by its name."""

    def __init__(self, newest: int, numbers: Mapping[str, int]) -> None:
        self.newest = newest
        self.numbers = dict(numbers)

    def of(self, account: str | None = None) -> int:
        """Return the newest position of an account or of all; 0 before the first event."""
        return self.newest if account is None else self.numbers.get(account, 0)

    def reach(self, event: Event) -> None:
        """Take the positions of an event that follows."""
        self.newest = event.seq
        self.numbers[event.account] = event.number

    def give(self, events: Iterable[Unsent], time_ms: int) -> list[Event]:
        """Return `events`, which came at `time_ms`, at the positions that follow."""
        given = []
        for event in events:
            seq, number = self.newest + 1, self.of(event.account) + 1
            body = frames.encode({"type": event.type, "seq": seq, "data": event.data})
            given.append(Event(seq, event.account, number, time_ms, body))
            self.reach(given[-1])
        return given

    def copy(self) -> Positions:
        """Return the same positions, for another part of the feeder."""
        return Positions(self.newest, self.numbers)
