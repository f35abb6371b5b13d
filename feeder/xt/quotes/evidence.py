"""Evidence: compare the terminal's own last ticks with the pushes, to find subscriptions that are deaf.

A subscription or session is deaf if the terminal has newer data than it pushed. This check needs no clock and no
trading hours, and therefore works for every market. A terminal that receives no data itself is noticed for stock
markets only: the trading days of futures, options and Hong Kong are not known. get_trading_period has the hours of a
day, but xtquant's calendar covers only SH and SZ, without Hong Kong's holidays and without the nights that have no
session. Pure; one thread uses it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from feeder.xt.quotes.silence import MARKETS, SEVERAL, day_number

Name = TypeVar("Name", bound=Hashable)

# A silent subscription is deaf after this many checks at which the terminal had news of it. One or two may be the reset
# before a trading day, which the terminal does not push.
NEWS = 3
# `NEWS` is multiplied by this if only one code out of several has news: xtquant may compute that one itself.
_ALONE = 4
# The number of checks for which news of a code counts.
_KEPT = 6
# The only trading status at which ticks are expected: continuous trading. It is in the field openInt of everything that
# is no derivative (doc/xtdata.md 1575). The manuals disagree on the other values (halted is 17 or 20 in this one, 1 or
# 16 in others), so no tick is expected at any of them.
_TRADING = 13
# One index of each exchange. It ticks every few seconds in trading hours, so it shows whether the terminal gets data.
INDICES = {"SH": "000001.SH", "SZ": "399001.SZ", "BJ": "899050.BJ"}


_TIMETAG = re.compile(r"\d{8} \d\d:\d\d:\d\d", re.ASCII)
_NONE: Mapping[str, Mapping[str, object]] = {}


class Evidence(Generic[Name]):
    """The terminal's last ticks of silent subscriptions, compared with the earlier ones at each check."""

    def __init__(self) -> None:
        # Codes with a status at which no tick is expected, and codes without a trade today.
        self._halted: set[str] = set()
        self._idle: set[str] = set()
        self._asked: frozenset[str] = frozenset()
        # Time (if it has one) and volume of the tick with which the next one is compared.
        self._last: dict[str, tuple[int | None, float]] = {}
        # Codes whose volume has grown at the terminal, with the number of checks for which this still counts.
        self._moved: dict[str, int] = {}
        # For each subscription: the number of checks with news that it did not push, and the codes of that news.
        self._missed: dict[Name, tuple[int, set[str]]] = {}
        # The same for each silent stock market; `missed` has the markets with enough of it to be deaf.
        self._unpushed: dict[str, tuple[int, set[str]]] = {}
        self.missed: frozenset[str] = frozenset()
        # Whether the terminal has answered in this session.
        self._has_answered = False
        self._day = 0
        # Doubles each time that deaf subscriptions are found: a repair that does not help is repeated less often.
        self._news = NEWS

    def learn(
        self,
        now: int,
        asked: Collection[str],
        ticks: Mapping[str, Any],
        silent: Mapping[Name, Mapping[str, object]],
        markets: Mapping[str, Mapping[str, object]] = _NONE,
    ) -> list[Name]:
        """Compare the terminal's `ticks` of the codes `asked` with those of the last call; return what is deaf.

        `silent` are subscriptions that have pushed ticks before, but none since the last call. Each has its codes, with
        the last record that it pushed of each, or None. It is deaf if the terminal had new trades at several checks and
        did not push them. `markets` are stock markets of which nothing was pushed since the last call, with the codes
        that were expected, even if their subscriptions never pushed anything; `missed` has the deaf ones of them.
        `now` is in ms since 1970.
        """
        if day_number(now) != self._day:
            self._day, self._news = day_number(now), NEWS
        last: dict[str, tuple[int | None, float]] = {}
        grown = set()
        self._asked = frozenset(asked)
        self._halted, self._idle = set(), set()
        for code in asked:
            tick = ticks.get(code)
            if not isinstance(tick, Mapping):
                self._idle.add(code)
                continue
            volume = _volume(tick)
            if volume is not None:
                now_has = _time(tick), volume
                last[code] = before = self._last.get(code, now_has)
                if _is_trade(now_has, before):
                    last[code] = now_has
                    grown.add(code)
            self._note_status(code, tick)
        self._last = last
        self._moved = {code: left - 1 for code, left in self._moved.items() if left > 1} | dict.fromkeys(grown, _KEPT)
        self._has_answered = self._has_answered or bool(last)
        self._missed = _count(self._missed, silent, grown, last)
        deaf = [name for name, seen in self._missed.items() if _is_enough(seen, silent[name], self._news)]
        if deaf:
            self._news *= 2
            self._missed = {}
        self._unpushed = _count(self._unpushed, markets, grown, last)
        self._judge(markets)
        return deaf

    def learn_failure(self, markets: Mapping[str, Mapping[str, object]]) -> None:
        """Note that the terminal did not answer; this counts only if it has answered before in this session.

        A session that neither pushes nor answers is deaf. If it never answered, the terminal may not support the call.
        """
        if self._has_answered:
            self._unpushed = {
                market: (looks + 1, codes | expected.keys())
                for market, expected in markets.items()
                for looks, codes in [self._unpushed.get(market, (0, set()))]
            }
            self._judge(markets)

    def begin_anew(self, *, is_new_session: bool) -> None:
        """Forget what was not pushed: a repair was started, so only what the terminal receives from now on counts."""
        self._unpushed = {}
        self.missed = frozenset()
        if is_new_session:
            self._has_answered = False

    def _judge(self, markets: Mapping[str, Mapping[str, object]]) -> None:
        # `NEWS` and not `self._news`: the pauses between the repairs of a silent market already grow (see `Silence`).
        self.missed = frozenset(
            market for market, seen in self._unpushed.items() if _is_enough(seen, markets[market], NEWS)
        )

    def active(self, codes: set[str]) -> set[str]:
        """Return those of `codes` of which ticks are expected.

        If the index of a market moves at the terminal, these are the codes that move there too; others have no news.
        Otherwise status and volume decide. A few codes without a trade today may be suspended, or traded rarely. If
        there are several of them, the market itself is silent, and they are expected to tick.
        """
        quiet = {code for code in codes if INDICES.get(code.rpartition(".")[2]) in self._moved}
        # Codes that were not asked for did push data.
        quiet &= self._asked
        idle = codes & self._idle
        return codes - quiet - self._halted - (idle if len(idle) < SEVERAL else set()) | (codes & self._moved.keys())

    def _note_status(self, code: str, tick: Mapping[Any, Any]) -> None:
        status, time = tick.get("openInt"), _time(tick)
        if code.rpartition(".")[2] in MARKETS and status not in (None, _TRADING):
            self._halted.add(code)
        elif time is None or day_number(time) != self._day or tick.get("volume") == 0:
            self._idle.add(code)


def _count(
    before: Mapping[Name, tuple[int, set[str]]],
    silent: Mapping[Name, Mapping[str, object]],
    grown: set[str],
    last: Mapping[str, tuple[int | None, float]],
) -> dict[Name, tuple[int, set[str]]]:
    """Return for each in `silent` the number of checks, with this one, that had news it did not push; and the codes."""
    seen = {}
    for name, brought in silent.items():
        looks, codes = before.get(name, (0, set()))
        # A tick that was pushed, though its callback was late, is not missed.
        news = {code for code in grown & brought.keys() if _volume(brought[code]) != last[code][1]}
        seen[name] = looks + bool(news), codes | news
    return seen


def _is_enough(seen: tuple[int, set[str]], brought: Mapping[str, object], news: int) -> bool:
    looks, codes = seen
    is_alone = len(codes) == 1 < len(brought) and codes.isdisjoint(INDICES.values())
    return looks >= news * (_ALONE if is_alone else 1)


def _is_trade(tick: tuple[int | None, float], before: tuple[int | None, float]) -> bool:
    """Return whether there was a trade. A trade is always pushed; a tick with only a newer time may not be."""
    (time, volume), (last_time, last_volume) = tick, before
    if not volume:
        # The reset before a trading day has a newer time, but is no trade.
        return False
    if time is None or last_time is None or time == last_time:
        # The record's time cannot be used.
        return volume > last_volume
    return time > last_time and volume != last_volume


def _time(tick: Mapping[Any, Any]) -> int | None:
    time = tick.get("time")
    if isinstance(time, int) and time > 0:
        return time
    text = tick.get("timetag")
    # Some terminals' get_full_tick has only this time, in Shanghai: 20250331 14:52:15.
    if not isinstance(text, str) or not _TIMETAG.fullmatch(text):
        return None
    try:
        return round(datetime.strptime(f"{text}+0800", "%Y%m%d %H:%M:%S%z").timestamp() * 1000)
    except ValueError:
        return None


def _volume(tick: object) -> float | None:
    volume = tick.get("volume") if isinstance(tick, Mapping) else None
    return None if isinstance(volume, bool) or not isinstance(volume, int | float) else volume
