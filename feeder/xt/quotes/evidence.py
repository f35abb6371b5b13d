"""Evidence: the terminal's own last ticks, which tell whether a silent subscription is silent rightly, or deaf.

A session is deaf if the terminal has newer data than it pushed; that needs no clock and no trading hours. Those of
futures, options and Hong Kong are not known: get_trading_period has the hours of a day, but xtquant's calendar is of SH
and SZ alone, without Hong Kong's holidays and the nights without a session. A terminal that gets nothing itself is
therefore noticed for stock markets only. Pure; one thread uses it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from feeder.xt.quotes.silence import MARKETS, SEVERAL, day_number

Name = TypeVar("Name", bound=Hashable)

# A silent subscription is deaf after so many looks at which the terminal had news of it. One or two may be the reset
# before a trading day, which is not pushed.
NEWS = 3
# As many times more, where news is of a single code out of several: xtquant may compute that one itself.
_ALONE = 4
# Looks for which news of a code counts.
_KEPT = 6
# Trading status of what is no derivative, in openInt (doc/xtdata.md 1575), that lets a tick be expected: continuous
# trading. The manuals do not agree on the others (halted is 17 or 20 here, 1 or 16 elsewhere), so none of them does.
_TRADING = 13
# An index of each exchange, which has a tick every few seconds while it trades: whether the terminal itself gets data.
INDICES = {"SH": "000001.SH", "SZ": "399001.SZ", "BJ": "899050.BJ"}


_TIMETAG = re.compile(r"\d{8} \d\d:\d\d:\d\d", re.ASCII)
_NONE: Mapping[str, Mapping[str, object]] = {}


class Evidence(Generic[Name]):
    """The terminal's last ticks of silent subscriptions, compared each time that it is asked for them."""

    def __init__(self) -> None:
        # Codes whose status lets no tick be expected, and those without a trade today.
        self._halted: set[str] = set()
        self._idle: set[str] = set()
        self._asked: frozenset[str] = frozenset()
        # Time, where there is one, and volume of the tick that newer ones are told from.
        self._last: dict[str, tuple[int | None, float]] = {}
        # Codes whose volume has grown at the terminal, with the looks for which that counts.
        self._moved: dict[str, int] = {}
        # Of each subscription the looks that showed news which it did not bring, and the codes of those.
        self._missed: dict[Name, tuple[int, set[str]]] = {}
        # The same of each silent stock market, and those of which there was enough of it.
        self._unpushed: dict[str, tuple[int, set[str]]] = {}
        self.missed: frozenset[str] = frozenset()
        # Whether the terminal has answered at all in this session.
        self._has_answered = False
        self._day = 0
        # Doubles with each subscription found deaf, so that what does not help is tried more and more rarely.
        self._news = NEWS

    def learn(
        self,
        now: int,
        asked: Collection[str],
        ticks: Mapping[str, Any],
        silent: Mapping[Name, Mapping[str, object]],
        markets: Mapping[str, Mapping[str, object]] = _NONE,
    ) -> list[Name]:
        """Compare the terminal's `ticks` of the codes `asked` with those of the last time; return what is deaf.

        `silent` are subscriptions that have brought ticks before but none since the last time, each with codes and the
        last record that it brought of each, or None. Of a deaf one the terminal had new trades at several looks, which
        it did not push. `markets` are stock markets of which nothing was pushed since the last time, with the codes
        that would have been, whether or not their subscriptions ever brought any: `missed` has the deaf ones of these.
        `now` is ms since 1970.
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
        """Note that the terminal was asked and did not answer, though it has answered before in this session.

        A session that neither pushes nor answers is deaf. One that never answered may be with a terminal that cannot.
        """
        if self._has_answered:
            self._unpushed = {
                market: (looks + 1, codes | expected.keys())
                for market, expected in markets.items()
                for looks, codes in [self._unpushed.get(market, (0, set()))]
            }
            self._judge(markets)

    def begin_anew(self, *, is_new_session: bool) -> None:
        """Forget what was not pushed: something was done about it, so that only what the terminal gets now tells."""
        self._unpushed = {}
        self.missed = frozenset()
        if is_new_session:
            self._has_answered = False

    def _judge(self, markets: Mapping[str, Mapping[str, object]]) -> None:
        # Without what doubles: the pauses of a silent market grow by themselves.
        self.missed = frozenset(
            market for market, seen in self._unpushed.items() if _is_enough(seen, markets[market], NEWS)
        )

    def active(self, codes: set[str]) -> set[str]:
        """Return those of `codes` that may be expected to tick.

        Where the index of a market moves at the terminal, only codes that move there too are: the others have nothing
        to say. Else status and volume have to tell. A few without a trade today may be suspended, or traded rarely.
        Where there are several, it is the market that says nothing.
        """
        quiet = {code for code in codes if INDICES.get(code.rpartition(".")[2]) in self._moved}
        # What was not asked for was heard.
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
    """Return the looks, this one included, that showed news which each of `silent` did not bring, and their codes."""
    seen = {}
    for name, brought in silent.items():
        looks, codes = before.get(name, (0, set()))
        # What has come after all, in a push that was served late, is not missed.
        news = {code for code in grown & brought.keys() if _volume(brought[code]) != last[code][1]}
        seen[name] = looks + bool(news), codes | news
    return seen


def _is_enough(seen: tuple[int, set[str]], brought: Mapping[str, object], news: int) -> bool:
    looks, codes = seen
    is_alone = len(codes) == 1 < len(brought) and codes.isdisjoint(INDICES.values())
    return looks >= news * (_ALONE if is_alone else 1)


def _is_trade(tick: tuple[int | None, float], before: tuple[int | None, float]) -> bool:
    """Return whether there was a trade, which is pushed for certain; of a newer time alone that is not known."""
    (time, volume), (last_time, last_volume) = tick, before
    if not volume:
        # The reset before a trading day has a newer time and is no trade.
        return False
    if time is None or last_time is None or time == last_time:
        # The clock of the record tells nothing.
        return volume > last_volume
    return time > last_time and volume != last_volume


def _time(tick: Mapping[Any, Any]) -> int | None:
    time = tick.get("time")
    if isinstance(time, int) and time > 0:
        return time
    text = tick.get("timetag")
    # Some terminals' get_full_tick has this alone: 20250331 14:52:15, of Shanghai.
    if not isinstance(text, str) or not _TIMETAG.fullmatch(text):
        return None
    try:
        return round(datetime.strptime(f"{text}+0800", "%Y%m%d %H:%M:%S%z").timestamp() * 1000)
    except ValueError:
        return None


def _volume(tick: object) -> float | None:
    volume = tick.get("volume") if isinstance(tick, Mapping) else None
    return None if isinstance(volume, bool) or not isinstance(volume, int | float) else volume
