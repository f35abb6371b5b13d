"""The time of the newest record of a message, by the kind of its topic. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.wire.frames import checked, read
from qmt_bridge.wire.topics import Kind

# In ms: before 1990 the exchanges were closed, and a record of tomorrow has a wrong clock. One wrong time would else
# hide all records behind it, since times are searched as if they never went back.
_EARLIEST = 631_152_000_000
_AHEAD = 86_400_000

_NS_PER_MS = 1_000_000


class _Timed(msgspec.Struct, frozen=True, gc=False):
    # A depth of the vendor's document has `timeTag`, and the source may have nothing, or another type.
    time: Any = None
    timeTag: Any = None


class _Values(msgspec.Struct, frozen=True):
    timelist: Any = None


class _Formula(msgspec.Struct, frozen=True):
    data: _Values = _Values()


_lists: msgspec.json.Decoder[dict[str, list[_Timed]]] = msgspec.json.Decoder(dict[str, list[_Timed]])
_ticks: msgspec.json.Decoder[dict[str, _Timed]] = msgspec.json.Decoder(dict[str, _Timed])
_formulas: msgspec.json.Decoder[_Formula] = msgspec.json.Decoder(_Formula)


def _of_lists(body: bytes) -> Sequence[Any]:
    return [record.time or record.timeTag for records in read(_lists, body).values() for record in records]


def _of_ticks(body: bytes) -> Sequence[Any]:
    return [record.time for record in read(_ticks, body).values()]


def _of_formula(body: bytes) -> Sequence[Any]:
    times = read(_formulas, body).data.timelist
    return times if isinstance(times, list) else ()


_TIMES: dict[Kind, Callable[[bytes], Sequence[Any]]] = {
    Kind.QUOTE: _of_lists,
    Kind.L2: _of_lists,
    Kind.WHOLE: _of_ticks,
    Kind.FORMULA: _of_formula,
}
# The kinds of topics that a store keeps.
STORED = frozenset(_TIMES)


def record_ms(kind: Kind, body: bytes, received_ns: int) -> int:
    """Return the time of the newest record of a message in ms since 1970; without a plausible one, when it came.

    Raise `WireError` for a body that is not JSON.
    """
    received_ms = received_ns // _NS_PER_MS
    try:
        times = _TIMES[kind](body)
    except WireError:
        # Another shape, as a document of the research edition may have.
        checked(body)
        return received_ms
    latest = received_ms + _AHEAD
    if len(times) == 1 and (times[0] is None or type(times[0]) is int):
        # The usual cases, which limit how many ticks a store can take.
        return times[0] if times[0] is not None and _EARLIEST <= times[0] <= latest else received_ms
    newest = max((time for time in times if type(time) in (int, float) and math.isfinite(time)), default=0)
    return int(newest) if _EARLIEST <= newest <= latest else received_ms
