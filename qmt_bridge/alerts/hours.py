"""The hours that matter to alerts: trading days and hours, quiet hours, the time of the report. Pure; Shanghai time."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime

from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.shanghai import SHANGHAI

# From the opening auction on a feed should be there; the break is left out, in which no data comes.
_SESSIONS = ((9 * 60 + 15, 11 * 60 + 30), (13 * 60, 15 * 60))
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
_DAY = re.compile(r"20\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", re.ASCII)


def day_name(now: float) -> str:
    """Return the day at `now` (seconds since 1970) as YYYYMMDD."""
    return f"{_local(now):%Y%m%d}"


def clock_text(now: float) -> str:
    """Return the time of day at `now` with its date, as messages have it."""
    return f"{_local(now):%Y-%m-%d %H:%M:%S}"


def is_trading_day(now: float, holidays: Collection[str]) -> bool:
    """Return whether stocks trade on the day of `now`; `holidays` are weekdays without trading, as YYYYMMDD."""
    return _local(now).weekday() < 5 and day_name(now) not in holidays


def is_session(now: float) -> bool:
    """Return whether stocks trade at this time of a trading day, or an auction runs."""
    minute = minute_of(now)
    return any(begin <= minute < end for begin, end in _SESSIONS)


def minute_of(now: float) -> int:
    """Return the minutes since midnight at `now`."""
    local = _local(now)
    return local.hour * 60 + local.minute


def is_within(span: tuple[int, int] | None, now: float) -> bool:
    """Return whether `now` is within a span of minutes after midnight, which may go over midnight; None is no span."""
    if span is None:
        return False
    begin, end = span
    minute = minute_of(now)
    return begin <= minute < end if begin <= end else minute >= begin or minute < end


def read_time(text: str, setting: str) -> int | None:
    """Return the minutes after midnight that ``09:15`` is, None for an empty text; raise `ConfigError`."""
    if not text.strip():
        return None
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ConfigError(setting, f"expected a time such as 09:15, got {text[:40]!r}")
    return int(found[1]) * 60 + int(found[2])


def read_span(text: str, setting: str) -> tuple[int, int] | None:
    """Return begin and end of ``22:00-07:00`` in minutes after midnight, None without a text; raise `ConfigError`."""
    if not text.strip():
        return None
    begin, dash, end = text.partition("-")
    try:
        first, last = read_time(begin, setting), read_time(end, setting)
    except ConfigError:
        first = last = None
    if not dash or first is None or last is None or first == last:
        raise ConfigError(setting, f"expected hours such as 22:00-07:00, got {text[:40]!r}")
    return first, last


def read_days(days: Collection[str], setting: str) -> frozenset[str]:
    """Return days as YYYYMMDD, which may be written with dashes; raise `ConfigError`."""
    found = [day.replace("-", "") for day in days]
    for day, given in zip(found, days, strict=True):
        if not _DAY.fullmatch(day):
            raise ConfigError(setting, f"expected a day such as 20261001, got {given[:40]!r}")
    return frozenset(found)


def _local(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC).astimezone(SHANGHAI)
