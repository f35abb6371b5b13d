"""Silence: find the markets that have no data although they should trade, and say what to do about it.

The machine's clock and xtquant's calendar say when a market should trade. Both may be wrong: the clock an hour off, a
holiday missing in the calendar. So these two can only make a market stale. Subscribing or connecting again needs
evidence (see `feeder/xt/quotes/evidence.py`): the terminal has data that it did not push.
Pure: the time is an argument and nothing is logged. One thread uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Literal

Action = Literal["none", "stale", "resubscribe", "reconnect", "recovered", "closed"]

_MINUTE = 60_000
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
# Shanghai has had no summer time since 1991.
_OFFSET = 8 * _HOUR
_EPOCH = date(1970, 1, 1)

# The stock exchanges of mainland China, and the hours of their continuous trading in ms after midnight. From 14:57 on
# is the closing auction.
MARKETS = frozenset(("SH", "SZ", "BJ"))
_SESSIONS = ((9 * _HOUR + 30 * _MINUTE, 11 * _HOUR + 30 * _MINUTE), (13 * _HOUR, 14 * _HOUR + 57 * _MINUTE))
# The first snapshots of a session come a moment after it opens.
_SETTLE = 10_000
# The most that one check adds to a silence. If more time has passed, the machine slept or its clock was set: it
# received nothing in that time, and this is no silence of the market.
_STEP = 5_000

# If this many codes of a market are silent, the market is. One or a few codes may be suspended, or not be traded.
SEVERAL = 5
# If there are fewer codes, the limit is multiplied by this.
_PATIENCE = 10
# The pause after an action, in multiples of the limit. It doubles with each action, up to the longest pause.
_PAUSE = 2
_LONGEST = 30 * _MINUTE
# At this many checks a market must have data until an action counts as successful. One or two may be xtquant's answer
# to the new subscription, with no data after it.
_HEARD = 3
# The largest number of re-subscriptions and reconnections a day. If the first ones did not help, more never have.
ACTIONS_A_DAY = 12


def day_name(now: int) -> str:
    """Return the day in Shanghai at `now`, YYYYMMDD."""
    return f"{_date(now):%Y%m%d}"


def day_number(now: int) -> int:
    """Return the day in Shanghai at `now`, in days since 1970."""
    return (now + _OFFSET) // _DAY


def _date(now: int) -> date:
    return _EPOCH + timedelta(days=day_number(now))


class Silence:
    """The silence of each subscribed market, counted in trading hours; `limit` is in ms, and 0 turns the check off."""

    def __init__(self, limit: int) -> None:
        # Markets without data for too long, until they have data again or are no longer subscribed.
        self.stale: frozenset[str] = frozenset()
        # The stale markets of which the terminal has data that it did not push.
        self.deaf: frozenset[str] = frozenset()
        # Weekdays without trading, YYYYMMDD.
        self.holidays: frozenset[str] = frozenset()
        # How many actions are left for today.
        self.left = ACTIONS_A_DAY
        self._limit = limit
        self._day = 0
        self._now = 0
        self._quiet: dict[str, int] = {}
        # Markets that were re-subscribed or reconnected, with the number of checks at which they have had data since.
        self._tried: dict[str, int] = {}
        # Trading time since the last action, and the trading time that must pass before the next one.
        self._waited = 0
        self._pause = 0

    def check(self, now: int, wanted: Mapping[str, int], heard: Iterable[str], missed: Iterable[str]) -> Action:
        """Return what to do at `now` (ms since 1970); call this about once a second.

        `wanted` has the number of subscribed codes of each market; `SEVERAL` or more stands for the whole market.
        `heard` are the markets that had data since the last call, `missed` those of which the terminal has newer data
        than it pushed. If the terminal has nothing newer of a stale market, or no action is left for today, the result
        is "stale", which asks for no action. "closed" ends a silence because no data is expected until the next open.
        """
        if not self._limit:
            return "none"
        # The time before the first call does not count.
        step = min(max(now - self._now, 0), _STEP) if self._now else 0
        self._now = now
        day = day_number(now)
        if day != self._day:
            self._day, self.left = day, ACTIONS_A_DAY
        before = self.stale
        if not self.is_open(now):
            self.reset()
            return "closed" if before else "none"
        heard = frozenset(heard)
        self._quiet = {market: self._quiet.get(market, 0) + step for market in MARKETS & wanted.keys() - heard}
        self.stale = frozenset(
            market
            for market, quiet in self._quiet.items()
            if market in before or quiet >= self._limit * (1 if wanted[market] >= SEVERAL else _PATIENCE)
        )
        self._tried = {
            market: looks + (market in heard)
            for market, looks in self._tried.items()
            if market in wanted and looks + (market in heard) < _HEARD
        }
        self._waited += step
        self.deaf = self.stale.intersection(missed)
        if not self.stale:
            return "recovered" if before else "none"
        if self.deaf - self._tried.keys():
            if not self._tried:
                self._pause = _PAUSE * self._limit
            self._tried |= dict.fromkeys(self.deaf - self._tried.keys(), 0)
            self._waited = 0
            return "resubscribe" if self.act() else "stale"
        if self.deaf and self._waited >= self._pause and self.act():
            self._waited = 0
            self._tried = dict.fromkeys(self._tried, 0)
            self._pause = min(2 * self._pause, max(_LONGEST, self._pause))
            return "reconnect"
        return "stale" if self.stale - before else "none"

    def is_open(self, now: int) -> bool:
        """Return whether stocks trade at `now`, and the session has been open for some seconds."""
        clock = (now + _OFFSET) % _DAY
        if not any(begin + _SETTLE <= clock < end for begin, end in _SESSIONS):
            return False
        return _date(now).weekday() < 5 and day_name(now) not in self.holidays

    def trades_on_day(self, now: int) -> bool | None:
        """Return whether stocks trade on the day of `now`; None if the holidays of its year are not known."""
        day = day_name(now)
        if not any(holiday.startswith(day[:4]) for holiday in self.holidays):
            return None
        return _date(now).weekday() < 5 and day not in self.holidays

    def reset(self) -> None:
        """Forget all silences: no data could be received, or none was expected. The count of actions stays."""
        self.stale = self.deaf = frozenset()
        self._tried = {}
        self._quiet = {}

    def act(self) -> bool:
        """Use one of the day's actions; return False if none is left."""
        if not self.left:
            return False
        self.left -= 1
        return True
