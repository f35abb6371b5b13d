"""What the terminal's own last ticks say about subscriptions that say nothing: right so, or deaf.

It needs no trading hours. Those of futures, options and Hong Kong are not known: get_trading_period has the hours of a
day, but xtquant's calendar is of SH and SZ alone, without Hong Kong's holidays and the nights without a session. A
terminal that gets nothing itself is therefore noticed for stock markets only. Pure; one thread uses it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, Generic, TypeVar

from feeder.silence import MARKETS, SEVERAL, day_number

Name = TypeVar("Name", bound=Hashable)

# Ticks after trades that the terminal has to have had of a subscription that said nothing. One or two may be the reset
# before a trading day, which is not pushed.
NEWS = 3
# Trading status of what is no derivative, in openInt (doc/xtdata.md 1575): halted for a while, halted until the close.
_HALTED = (17, 20)


class Evidence(Generic[Name]):
    """The terminal's last ticks of silent subscriptions, compared each time that it is asked for them."""

    def __init__(self) -> None:
        # Codes that are halted, and those without a trade today.
        self._halted: set[str] = set()
        self._idle: set[str] = set()
        # Time and volume of the tick that newer ones are told from.
        self._last: dict[str, tuple[int, object]] = {}
        self._missed: dict[Name, int] = {}
        self._day = 0
        # Doubles with each subscription found deaf, so that what does not help is tried more and more rarely.
        self._news = NEWS

    def learn(
        self, now: int, asked: Collection[str], ticks: Mapping[str, Any], silent: Mapping[Name, Collection[str]]
    ) -> list[Name]:
        """Compare the terminal's `ticks` of the codes `asked` with those of the last time; return who is deaf.

        `silent` are subscriptions, and codes of each, that have brought ticks before but none since the last time. Of
        who is deaf the terminal had new ticks several times over without pushing one. `now` is ms since 1970.
        """
        if day_number(now) != self._day:
            self._day, self._news = day_number(now), NEWS
        last: dict[str, tuple[int, object]] = {}
        news = set()
        self._halted, self._idle = set(), set()
        for code in asked:
            tick = ticks.get(code)
            time = tick.get("time") if isinstance(tick, Mapping) else None
            if not isinstance(tick, Mapping) or not isinstance(time, int):
                self._idle.add(code)
                continue
            volume = tick.get("volume")
            last[code] = before = self._last.get(code, (time, volume))
            # A trade, which is pushed for certain; of a newer time alone that is not known.
            if time > before[0] and volume != before[1]:
                last[code] = time, volume
                news.add(code)
            status = tick.get("openInt")
            if status in _HALTED and code.rpartition(".")[2] in MARKETS:
                self._halted.add(code)
            elif day_number(time) != self._day or volume == 0:
                self._idle.add(code)
        self._last = last
        self._missed = {
            name: self._missed.get(name, 0) + (not news.isdisjoint(codes)) for name, codes in silent.items()
        }
        deaf = [name for name, missed in self._missed.items() if missed >= self._news]
        if deaf:
            self._news *= 2
            self._missed = {}
        return deaf

    def active(self, codes: set[str]) -> set[str]:
        """Return those of `codes` that may be expected to tick.

        A few without a trade today may be suspended, or traded rarely. Where there are several, it is the market that
        says nothing.
        """
        idle = codes & self._idle
        return codes - self._halted - (idle if len(idle) < SEVERAL else set())
