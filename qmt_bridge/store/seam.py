"""Where a source's history meets messages that are stored: what of it belongs between them, each record once. Pure.

Real data has different records with equal code and time, and equal records that repeat, so records are compared by all
values that both have, and each is matched once. The history and the stream of a source differ: one lacks fields that
the other has, integers are floats, amounts are rounded, a depth has fewer levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames

# What the store adds to each record of a history.
MARK = {"source": "history"}

# Floats that were computed in two ways differ in their last digits.
_CLOSE = 1e-9
# To so many yuan an amount may be rounded on one side (measured: 1 in get_full_tick, 100 for a market).
_AMOUNT_STEPS = (1, 100)


class Message(NamedTuple):
    """A message: the newest time of its records in ms since 1970, and its body, an object of records by code.

    It is decoded where it is looked at: the records of a day take ten times the memory of their text.
    """

    ms: int
    body: bytes

    @property
    def records(self) -> Mapping[str, Any]:
        """Return its records by code."""
        records: Mapping[str, Any] = frames.decode(self.body)
        return records


class Joined(NamedTuple):
    """The part of a history between what is stored before and after it, and whether it meets them without a gap."""

    messages: list[Message]
    left: bool
    right: bool


def message_of(ms: int, body: bytes) -> Message:
    """Return a message; raise `WireError` for a body that has no records by code."""
    if not isinstance(frames.decode(body), dict):
        raise WireError("the body of a quote is no object")
    return Message(ms, body)


def marked(message: Message) -> bytes:
    """Return the body of a message with the mark in each of its records."""
    return frames.encode({code: _marked(value) for code, value in message.records.items()})


def same(one: Message, other: Message) -> bool:
    """Return whether two messages have the same records."""
    ones, others = one.records, other.records
    return ones.keys() == others.keys() and all(_same_value(value, others[code]) for code, value in ones.items())


def join(history: Sequence[Message], before: Sequence[Message], after: Sequence[Message]) -> Joined:
    """Return what of a history belongs between the last messages that are stored before it and the first behind it.

    All are in the order of the source. It needs of `before` those with the time of the last one, and of `after` those
    with the time of the first one. The history meets them if it has the last of `before` and the first of `after`.
    """
    kept = list(history)
    left = right = False
    if before:
        begin = before[-1].ms
        kept = [message for message in kept if message.ms >= begin]
        left = _has(kept, before[-1])
        for stored in before:
            place = next((n for n, each in enumerate(kept) if each.ms == stored.ms and same(each, stored)), None)
            if place is not None:
                del kept[place]
    if after:
        end = after[0].ms
        kept = [message for message in kept if message.ms <= end]
        right = _has(kept, after[0])
        # From behind: what repeats is live from its last time on.
        for stored in reversed(after):
            if stored.ms == end:
                _drop_last(kept, stored)
    return Joined(kept, left, right)


def up_to(history: Sequence[Message], last: Message) -> list[Message] | None:
    """Return a history up to the message `last`, behind which all is published; None if it does not have it."""
    places = range(len(history) - 1, -1, -1)
    place = next((n for n in places if history[n].ms == last.ms and same(history[n], last)), None)
    return None if place is None else list(history[: place + 1])


def _has(messages: Sequence[Message], stored: Message) -> bool:
    return any(each.ms == stored.ms and same(each, stored) for each in messages)


def _drop_last(messages: list[Message], stored: Message) -> None:
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].ms == stored.ms and same(messages[place], stored):
            del messages[place]
            return


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_record, one, other))
    return _same_record(one, other)


def _same_record(one: Any, other: Any) -> bool:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return bool(one == other)
    common = [name for name in one if one[name] is not None and other.get(name) is not None]
    # A time alone says nothing.
    return len(common) >= min(2, len(one), len(other)) and all(
        _same_field(name, one[name], other[name]) for name in common if name not in MARK
    )


def _same_field(name: str, one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        # One side may have fewer levels.
        return all(_same_number(a, b) for a, b in zip(one, other, strict=False))
    if name == "amount" and _is_number(one) and _is_number(other):
        return _same_number(one, other) or any(
            abs(one - other) <= step and (one % step == 0 or other % step == 0) for step in _AMOUNT_STEPS
        )
    return _same_number(one, other)


def _same_number(one: Any, other: Any) -> bool:
    if one == other or not (_is_number(one) and _is_number(other)):
        return bool(one == other)
    is_count = float(one).is_integer() and float(other).is_integer()
    return not is_count and math.isclose(one, other, rel_tol=_CLOSE)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _marked(value: Any) -> Any:
    if isinstance(value, list):
        return [_marked(record) for record in value]
    return value | MARK if isinstance(value, dict) else value
