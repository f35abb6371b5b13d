"""Trade events in the feeder, without and with a position, and the newest positions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from qmt_bridge.wire import frames

# The memory that Python needs for an event in addition to its body.
EVENT_BYTES = 300


class Unsent(NamedTuple):
    """A trade event without a position yet: `data` is encoded already."""

    account: str
    type: str
    data: msgspec.Raw


class Event(NamedTuple):
    """A trade event: position `seq` over all accounts, position `number` of its account, and the published `body`.

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
        """Return the event in the form that is published and replayed while it is not on disk."""
        return self._replace(body=self.body[:-1] + b',"journaled":false}')


class Positions:
    """The newest positions that a part of the feeder has seen: over all accounts, and of each account by its name."""

    def __init__(self, newest: int, numbers: Mapping[str, int]) -> None:
        self.newest = newest
        self.numbers = dict(numbers)

    def of(self, account: str | None = None) -> int:
        """Return the newest position of an account or of all; 0 before the first event."""
        return self.newest if account is None else self.numbers.get(account, 0)

    def reach(self, event: Event) -> None:
        """Move on to the positions of the next event."""
        self.newest = event.seq
        self.numbers[event.account] = event.number

    def give(self, events: Iterable[Unsent], time_ms: int) -> list[Event]:
        """Return `events`, which came at `time_ms`, with the positions that follow."""
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
