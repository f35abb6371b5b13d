"""Times at which a stream of stored records begins or ends, as clients write them. Pure.

A time of day of Shanghai (``09:30``, ``09:30:00``, ``09:30:00.500``) is one of the day of the newest record, so that a
replayed day of the past works like today. A date with a time (ISO 8601) and milliseconds since 1970 are absolute.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.shanghai import SHANGHAI, SHANGHAI_SECONDS

_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6}))?)?", re.ASCII)
_DAY_MS = 86_400_000
# Milliseconds from 1990-01-01, before the exchanges opened, to 2100-01-01: what is outside has another unit.
_FIRST_MS, _LAST_MS = 631_152_000_000, 4_102_444_800_000
_CHARACTERS = 40


class Moment(msgspec.Struct, frozen=True):
    """A time of a record: `ms` since 1970, or since midnight in Shanghai if it is a time `of_day`."""

    ms: int
    of_day: bool = False

    def on_day_of(self, time_ms: int) -> int:
        """Return the moment in ms since 1970; a time of day is one of the day in Shanghai that has `time_ms`."""
        return midnight(time_ms) + self.ms if self.of_day else self.ms


def midnight(time_ms: int) -> int:
    """Return when the day began in Shanghai to which `time_ms` belongs, in ms since 1970."""
    shift = SHANGHAI_SECONDS * 1000
    return (time_ms + shift) // _DAY_MS * _DAY_MS - shift


def read_moment(given: object, name: str) -> Moment:
    """Return the moment that a client has given as `name`; raise `BadRequest` if it is none."""
    if isinstance(given, int) and not isinstance(given, bool):
        return _absolute(given, name)
    if not isinstance(given, str):
        raise _not_one(name, "another type")
    text = given.strip()
    found = _TIME_OF_DAY.fullmatch(text)
    if found is None:
        return _iso(text, name)
    hours, minutes, seconds, fraction = (part or "0" for part in found.groups())
    if int(hours) > 23 or int(minutes) > 59 or int(seconds) > 59:
        raise _not_one(name, repr(text))
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return Moment(whole * 1000 + int(fraction.ljust(6, "0")) // 1000, of_day=True)


def shown_moment(ms: int) -> str:
    """Return a time in ms since 1970 as the time of day in Shanghai that `read_moment` reads: 09:30:00.000."""
    return datetime.fromtimestamp(ms / 1000, SHANGHAI).strftime("%H:%M:%S.") + f"{ms % 1000:03d}"


def _iso(text: str, name: str) -> Moment:
    if len(text) > _CHARACTERS:
        raise _not_one(name, f"{len(text)} characters")
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise _not_one(name, repr(text)) from None
    # Without an offset it is a time of Shanghai.
    when = when if when.tzinfo is not None else when.replace(tzinfo=SHANGHAI)
    try:
        return _absolute(round(when.timestamp() * 1000), name)
    except OverflowError:
        raise _not_one(name, repr(text)) from None


def _absolute(ms: int, name: str) -> Moment:
    if not _FIRST_MS <= ms < _LAST_MS:
        raise BadRequest("bad_request", f"{name} is in milliseconds since 1970, of the years 1990 to 2099")
    return Moment(ms)


def _not_one(name: str, given: str) -> BadRequest:
    return BadRequest(
        "bad_request",
        f'{name} is a time of day ("09:30:00"), a date with a time ("2026-11-27T09:30:00") or milliseconds since 1970, '
        f"not {given}",
    )
