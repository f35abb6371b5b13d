"""Silence: whether a market has no data although it should trade, and what to do about it.

The machine's clock and xtquant's calendar only say that a market should trade. Both may be wrong: a clock an hour
off, a holiday that the calendar lacks. So they alone make a market stale, and no more. Subscribing or connecting again
needs evidence (see `feeder/xt/quotes/evidence.py`): the terminal has data that it did not push.
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

# The exchanges of stocks in mainland China. Their continuous trading, in ms after midnight: from 14:57 they collect
# orders for the closing price.
MARKETS = frozenset(("SH", "SZ", "BJ"))
_SESSIONS = ((9 * _HOUR + 30 * _MINUTE, 11 * _HOUR + 30 * _MINUTE), (13 * _HOUR, 14 * _HOUR + 57 * _MINUTE))
# A session's first snapshots take a moment to come.
_SETTLE = 10_000
# What one look at the clock may add: a machine that slept, or whose clock was set, received nothing and missed nothing.
_STEP = 5_000

# From how many codes on their common silence is the market's: one or a few may be suspended, or not be traded.
SEVERAL = 5
# How much longer fewer codes may say nothing.
_PATIENCE = 10
# The pause after an action, in limits; it doubles up to the longest.
_PAUSE = 2
_LONGEST = 30 * _MINUTE
# Looks at which a market has to be heard until what was done about it has helped. One or two may be
# xtquant's answer to the subscription, without data after it.
_HEARD = 3
# More than these, re-subscriptions and reconnections together, have never brought back what the first ones did not.
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
    """The silence of each subscribed market, counted while it trades; `limit` is in ms, and 0 turns all of it off."""

    def __init__(self, limit: int) -> None:
        # Markets without data for too long, until they have data again or are not subscribed any more.
        self.stale: frozenset[str] = frozenset()
        # Those of them of which the terminal has data that it did not push.
        self.deaf: frozenset[str] = frozenset()
        # Weekdays without trading, YYYYMMDD.
        self.holidays: frozenset[str] = frozenset()
        # Actions that today still has.
        self.left = ACTIONS_A_DAY
        self._limit = limit
        self._day = 0
        self._now = 0
        self._quiet: dict[str, int] = {}
        # Markets that were re-subscribed or reconnected, with the looks at which they have been heard since.
        self._tried: dict[str, int] = {}
        # Trading time since the last action, and how long it has to be before the next one.
        self._waited = 0
        self._pause = 0

    def check(self, now: int, wanted: Mapping[str, int], heard: Iterable[str], missed: Iterable[str]) -> Action:
        """Return what is to be done at `now`, ms since 1970; call it about once a second.

        `wanted` has the number of codes wanted of a market, for all of it `SEVERAL` or more. `heard` are the markets
        that had data since the last call, `missed` those of which the terminal has newer data than it pushed. Of other
        stale markets the terminal has nothing newer: then it is "stale" and no more is done, and so it is on a day that
        has no action left. "closed" is the end of a silence because nothing is expected until the next open.
        """
        if not self._limit:
            return "none"
        # Before the first look nothing was missed.
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
        """Return whether stocks trade at `now` and have for some seconds."""
        clock = (now + _OFFSET) % _DAY
        if not any(begin + _SETTLE <= clock < end for begin, end in _SESSIONS):
            return False
        return _date(now).weekday() < 5 and day_name(now) not in self.holidays

    def reset(self) -> None:
        """Begin anew: nothing could be heard, or had to be. The day's actions remain counted."""
        self.stale = self.deaf = frozenset()
        self._tried = {}
        self._quiet = {}

    def act(self) -> bool:
        """Take one of the day's actions; return whether there was one left."""
        if not self.left:
            return False
        self.left -= 1
        return True
