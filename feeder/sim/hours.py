"""The simulated exchange's clock: trading days, sessions, when snapshots fall and which bar they belong to.

Pure. A trading day has a number, `day`. A moment in it is the trading time `elapsed` since the open, without the lunch
break. Snapshots fall after the open and not after the close. A bar has the snapshots after its start up to its end,
because a snapshot shows what happened before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Literal, NamedTuple

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
# Shanghai has had no summer time since 1991.
_OFFSET = 8 * HOUR
_EPOCH = date(1970, 1, 1)

# Bars within a day, by length; and bars of days.
MINUTE_BARS = {
    "1m": MINUTE,
    "5m": 5 * MINUTE,
    "15m": 15 * MINUTE,
    "30m": 30 * MINUTE,
    "60m": HOUR,
    "1h": HOUR,
}
DAY_BARS = ("1d", "1w", "1mon", "1q", "1hy", "1y")
_MONTHS = {"1mon": 1, "1q": 3, "1hy": 6, "1y": 12}


class DayBar(NamedTuple):
    """The days `first` to `last` of one bar; `time` is the midnight at which `last` begins, as xtquant labels it."""

    first: int
    last: int
    time: int


class Hours:
    """Trading hours and snapshot grid: `always` open around the clock, or as the exchange on weekdays.

    `interval` is the milliseconds between two snapshots of a code; `phase` of a code is from 1 to `interval`.
    """

    def __init__(self, mode: Literal["always", "exchange"], interval: int) -> None:
        self.interval = interval
        self.never_closes = mode == "always"
        # Milliseconds after midnight; all sessions are equally long.
        self._opens = (0,) if self.never_closes else (9 * HOUR + 30 * MINUTE, 13 * HOUR)
        self._session = DAY if self.never_closes else 2 * HOUR
        # Before the first session codes are quoted without prices.
        self._call = 0 if self.never_closes else 15 * MINUTE
        self._per_session = self._session // interval
        # Trading time of a day.
        self.total = self._session * len(self._opens)
        self.snapshots = self._per_session * len(self._opens)

    def first_day_from(self, calendar_day: int) -> int:
        """Return the first trading day on or after a calendar day, given in days since 1970."""
        if self.never_closes:
            return calendar_day
        # 1 January 1970 was a Thursday.
        week, weekday = divmod(calendar_day + 3, 7)
        return week * 5 + min(weekday, 5)

    def midnight(self, day: int) -> int:
        """Return when the calendar day of a trading day begins, in ms since 1970."""
        calendar_day = day if self.never_closes else day // 5 * 7 + day % 5 - 3
        return calendar_day * DAY - _OFFSET

    def locate(self, time: int) -> tuple[int, int]:
        """Return the newest trading day that has begun at midnight before `time`, and what of it has elapsed."""
        calendar_day = (time + _OFFSET) // DAY
        day = self.first_day_from(calendar_day + 1) - 1
        clock = time - self.midnight(day)
        elapsed = 0
        for begin in self._opens:
            elapsed += min(self._session, max(0, clock - begin))
        return day, elapsed

    def clock(self, day: int, elapsed: int) -> int:
        """Return the ms since 1970 at which `elapsed` (more than 0) is reached."""
        session = (elapsed - 1) // self._session
        return self.midnight(day) + self._opens[session] + elapsed - session * self._session

    def is_open(self, time: int) -> bool:
        """Return whether `time` is within a session."""
        clock = time - self.midnight(self.locate(time)[0])
        return any(begin <= clock < begin + self._session for begin in self._opens)

    def count(self, elapsed: int, phase: int) -> int:
        """Return how many snapshots of a code have fallen by `elapsed`."""
        session, rest = divmod(elapsed, self._session)
        within = (rest - phase) // self.interval + 1 if rest >= phase else 0
        return session * self._per_session + min(self._per_session, within)

    def elapsed(self, index: int, phase: int) -> int:
        """Return the trading time at which the snapshot `index` (from 0) of a code falls."""
        session, within = divmod(index, self._per_session)
        return session * self._session + phase + within * self.interval

    def gap(self, index: int, phase: int) -> int:
        """Return the trading time since the snapshot before `index`, or since the session began."""
        return self.interval if index % self._per_session else phase

    def call_snapshot(self, time: int, phase: int) -> int | None:
        """Return when the newest snapshot before the open fell, or None if there was none at `time`."""
        if not self._call:
            return None
        begin = self.midnight(self.locate(time)[0]) + self._opens[0] - self._call
        if not begin + phase <= time <= begin + self._call:
            return None
        return begin + phase + (time - begin - phase) // self.interval * self.interval

    def windows(self, after: int, until: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of `after` < t <= `until` in which snapshots fall, as ms since a session's begin."""
        first, last = (self.locate(moment)[0] for moment in (after, until))
        for day in range(first, last + 1):
            midnight = self.midnight(day)
            sessions = [(midnight + begin, self._per_session * self.interval) for begin in self._opens]
            if self._call:
                sessions.insert(0, (sessions[0][0] - self._call, self._call))
            for begin, length in sessions:
                low, high = max(0, after - begin), min(length, until - begin)
                if low < high:
                    yield low, high

    def minute_bar(self, period: str, elapsed: int) -> tuple[int, int]:
        """Return the trading times between which the bar lies that holds `elapsed`."""
        length = MINUTE_BARS[period]
        begin = (elapsed - 1) // length * length
        return begin, min(begin + length, self.total)

    def day_bar(self, period: str, day: int) -> DayBar:
        """Return which days make the bar that holds `day`."""
        if period == "1d":
            return DayBar(day, day, self.midnight(day))
        today = _EPOCH + timedelta(days=(self.midnight(day) + _OFFSET) // DAY)
        if period == "1w":
            begin = today - timedelta(days=today.weekday())
            end = begin + timedelta(days=7)
        else:
            months = _MONTHS[period]
            month = (today.month - 1) // months * months
            begin = date(today.year, month + 1, 1)
            end = date(today.year + (month + months) // 12, (month + months) % 12 + 1, 1)
        first, after = (self.first_day_from((moment - _EPOCH).days) for moment in (begin, end))
        return DayBar(first, after - 1, self.midnight(after - 1))
