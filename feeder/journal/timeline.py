"""Where a moment is in a journal. Pure: it asks for a few events.

Each event has the time at which it came to the feeder; orders and fills have a time of the broker too. An order keeps
its time through all of its changes, and a fill may be found by a query hours later. So a moment is that of the first
event that came, or that happened by its own time, at or after it: everything that came or happened since then follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.wire import earlier
from qmt_bridge.wire.frames import read

# How far the broker's clock may be ahead of ours, and how many events before a moment are looked at for that.
AHEAD_MS = 300_000
LOOK_BACK = 200
# In seconds, the years 2001 to 2286: what is less has no date, as the 93015 of some brokers.
_FIRST_SECOND, _LAST_SECOND = 10**9, 10**10


class Stamp(NamedTuple):
    """When an event came (ms since 1970), and its body."""

    came_ms: int
    body: bytes


Look = Callable[[int, int], Sequence[Stamp]]
"""Returns the events from one position to another, both included, of which there are at most `LOOK_BACK`."""


def position_before(look: Look, oldest: int, newest: int, moment_ms: int) -> int:
    """Return the position before the first event at or after a moment; there are events after `oldest` up to `newest`.

    Times are searched as if the clock had never been set back.
    """
    low, high = oldest + 1, newest + 1
    while low < high:
        middle = (low + high) // 2
        if look(middle, middle)[0].came_ms >= moment_ms:
            high = middle
        else:
            low = middle + 1
    begin = max(oldest + 1, low - LOOK_BACK)
    for position, stamp in enumerate(look(begin, low - 1) if begin < low else (), begin):
        if stamp.came_ms >= moment_ms - AHEAD_MS and own_ms(stamp.body) >= moment_ms:
            return position - 1
    return low - 1


class _Dated(msgspec.Struct, frozen=True):
    traded_time: Any = None
    order_time: Any = None


class _Event(msgspec.Struct, frozen=True):
    data: _Dated = _Dated()


_decoder = msgspec.json.Decoder(_Event)


def own_ms(body: bytes) -> int:
    """Return the time of a fill or an order in ms since 1970; 0 if it has none with a date."""
    try:
        data = read(_decoder, earlier.modern(body)).data
    except WireError:
        return 0
    given = data.order_time if data.traded_time is None else data.traded_time
    if not isinstance(given, int | float) or isinstance(given, bool):
        return 0
    seconds = given / 1000 if given >= _LAST_SECOND else given
    return int(seconds * 1000) if _FIRST_SECOND <= seconds < _LAST_SECOND else 0
