"""Watchdog: find subscriptions that push no data although they should, and say what to do about it.

A stock market is stale if it is silent while it should trade by the clock and xtquant's holidays. Only the terminal's
own last ticks show whether the session is deaf. If these do not move either, the watchdog waits and asks again. If they
move, the silent subscriptions are made again. A new session is made only if no other subscription has news, because a
new session interrupts the data of every client. The thread `xtquant-calls` runs this while there is a connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

from feeder.xt.quotes.evidence import INDICES, Evidence
from feeder.xt.quotes.silence import MARKETS, SEVERAL, Action, Silence, day_name
from feeder.xt.quotes.subscription import NativeSubscription, is_live, market_of
from qmt_bridge.wire.topics import Topic, TopicParts

logger = logging.getLogger(__name__)

_Subscriptions: TypeAlias = Collection[NativeSubscription]

# How many times the terminal is asked for its last ticks within the time that a market may be silent: often enough to
# replace a deaf connection before one of its markets counts as silent.
_ASKS = 6
# The largest number of codes in one such call.
_ASKED = 200
# For how long after its last push a stock market's subscription is still compared with the terminal outside trading
# hours, in multiples of `limit`: the clock may be wrong.
_LINGER = 4
_NEXT = {
    "renew": "subscribing these again",
    "resubscribe": "subscribing again",
    "reconnect": "connecting again",
    "stale": "waiting",
}


class Advice(NamedTuple):
    """What to do, and which subscriptions to make again. "renew" is "resubscribe" while no market is stale."""

    action: Action | Literal["renew"]
    subscriptions: tuple[NativeSubscription, ...] = ()


class Watchdog:
    """Watches the subscriptions of one `XtQuote`; `limit` is in seconds, 0 for never; `now` returns ms since 1970."""

    def __init__(self, xtdata: Any, limit: float, now: Callable[[], int], is_alive: Callable[[], bool]) -> None:
        self._xtdata = xtdata
        self._now = now
        self._is_alive = is_alive
        self._limit = round(limit * 1000)
        self._silence = Silence(self._limit)
        self._calendar_day = ""
        self._calendar_fault = ""
        self._evidence: Evidence[TopicParts] = Evidence()
        self._ask_pause = self._limit // _ASKS
        self._asked = 0
        # Markets, not only of stocks, that have pushed news since the terminal was last asked.
        self._heard: set[str] = set()
        self._ask_failed = False

    @property
    def stale(self) -> frozenset[str]:
        """Return the markets without data."""
        return self._silence.stale

    def trades_today(self) -> bool | None:
        """Return whether stocks trade today, by the terminal's holidays; None while they are not known. Any thread."""
        return self._silence.trades_on_day(self._now())

    def look(
        self,
        wanted: Mapping[Topic, TopicParts],
        held: Collection[Topic],
        subscriptions: Mapping[TopicParts, NativeSubscription],
    ) -> Advice:
        """Return what to do now, and log it; call this about once a second."""
        if not self._limit:
            return Advice("none")
        now = self._now()
        heard = _heard(subscriptions.values(), now)
        self._heard |= heard
        if not 0 <= now - self._asked < self._ask_pause:
            self._asked = now
            mute = tuple(subscriptions[parts] for parts in self._ask(now, wanted, held, subscriptions.values()))
            if mute:
                return self._mend(now, mute, subscriptions.values())
        codes = self._codes(wanted, held)
        if codes:
            self._learn_holidays(day_name(now))
        action = self._silence.check(now, codes, heard, self._evidence.missed - self._heard)
        if action == "recovered":
            logger.info("silence is over")
        elif action == "closed":
            logger.info("nothing trades any more, so silence is right")
        return self._advise(now, action, subscriptions.values())

    def _advise(self, now: int, action: Action, subscriptions: _Subscriptions) -> Advice:
        """Return what to do about the silence of markets, and log it."""
        if action not in ("resubscribe", "reconnect", "stale"):
            return Advice(action)
        deaf = self._silence.deaf
        if not deaf:
            logger.warning(
                "nothing came from %s while it should trade, and the terminal has nothing newer; waiting for it",
                ", ".join(sorted(self.stale)),
            )
            return Advice(action)
        silent = tuple(subscription for subscription in subscriptions if subscription.market in deaf)
        if action == "reconnect" and self._lives(now, subscriptions, silent):
            action = "resubscribe"
        self._warn(f"nothing came from {', '.join(sorted(deaf))} while it trades", action)
        self._evidence.begin_anew(is_new_session=action == "reconnect")
        return Advice(action, silent if action == "resubscribe" else ())

    def forget(self) -> None:
        """Start from the beginning: the connection was lost, and with it the knowledge of what was silent."""
        self._silence.reset()
        self._evidence.begin_anew(is_new_session=True)

    def _mend(self, now: int, deaf: tuple[NativeSubscription, ...], subscriptions: _Subscriptions) -> Advice:
        """Return what to do about subscriptions that are deaf, and log it."""
        what = f"the terminal has news that {', '.join(map(str, deaf))} did not bring"
        if not self._silence.act():
            # Log it only. Set no state: this is not the silence of a market, so nothing would end the state.
            self._warn(what, "stale")
            return Advice("none")
        advice = Advice("renew", deaf) if self._lives(now, subscriptions, deaf) else Advice("reconnect")
        self._evidence.begin_anew(is_new_session=advice.action == "reconnect")
        self._warn(what, advice.action)
        return advice

    def _lives(self, now: int, subscriptions: _Subscriptions, silent: _Subscriptions) -> bool:
        """Return whether other subscriptions have news: a new connection would interrupt them."""
        return any(
            each.had_news and 0 <= now - each.news_at < self._limit for each in subscriptions if each not in silent
        )

    def _warn(self, what: str, action: str) -> None:
        logger.warning("%s; %s; %d more tries today", what, _NEXT[action], self._silence.left)

    def _codes(self, wanted: Mapping[Topic, TopicParts], held: Collection[Topic]) -> dict[str, int]:
        """Return of how many codes of each stock market data is expected."""
        watched: dict[str, list[TopicParts]] = {}
        for topic, parts in wanted.items():
            market = market_of(parts) if is_live(parts) else ""
            # A refused subscription pushes nothing. It counts only in a stale market: it may have been held before.
            if market in MARKETS and (topic in held or market in self._silence.stale):
                watched.setdefault(market, []).append(parts)
        codes = {}
        for market, those in watched.items():
            names = {parts.name for parts in those}
            if market in names:
                codes[market] = SEVERAL
            elif active := self._evidence.active(names):
                # Minute bars may come only once a minute, so they are not counted.
                codes[market] = len(active & {parts.name for parts in those if parts.detail != "1m"})
        return codes

    def _ask(
        self,
        now: int,
        wanted: Mapping[Topic, TopicParts],
        held: Collection[Topic],
        subscriptions: _Subscriptions,
    ) -> list[TopicParts]:
        """Compare the quiet subscriptions with the terminal's own last ticks; return which of them are deaf."""
        trades = self._silence.is_open(now)
        quiet = [
            each
            for each in subscriptions
            if each.is_quiet
            and is_live(each.parts)
            and (trades or each.market not in MARKETS or 0 <= now - each.news_at < _LINGER * self._limit)
        ]
        for each in subscriptions:
            each.is_quiet = True
        silent = {
            each.parts: {code: each.state.newest.records.get(code) for code in codes}
            for each in quiet
            if each.had_news and (codes := each.codes)
        }
        stocks = [each.parts.name for each in quiet if each.market in MARKETS and not each.is_market]
        lost = [
            parts
            for topic, parts in wanted.items()
            if topic not in held and is_live(parts) and market_of(parts) in self.stale
        ]
        markets = _expected(quiet, lost, self._heard)
        self._heard = set()
        indices = [INDICES[market] for market in sorted({each.market for each in quiet} & MARKETS | markets.keys())]
        asked = list(dict.fromkeys(chain(indices, *silent.values(), stocks, *markets.values())))[:_ASKED]
        try:
            ticks = dict(self._xtdata.get_full_tick(asked)) if asked else {}
        except Exception as exc:
            if self._is_alive() and not self._ask_failed:
                self._ask_failed = True
                logger.warning("the terminal's last ticks cannot be read: %s: %s", type(exc).__name__, exc)
            if self._is_alive():
                self._evidence.learn_failure(markets)
            return []
        self._ask_failed = False
        return self._evidence.learn(now, asked, ticks, silent, markets)

    def _learn_holidays(self, today: str) -> None:
        """Ask xtquant for its calendar once a day; without one every weekday counts as a trading day."""
        if today == self._calendar_day:
            return
        fault = ""
        try:
            # These are the calls of xtdata.get_trading_calendar (xtdata.py 2159). That function compares holidays with
            # the midnights of this machine, and so finds none if the time zone is not Shanghai's.
            self._xtdata.download_holiday_data()
            holidays = frozenset(self._xtdata.get_holidays())
            if any(day.startswith(today[:4]) for day in holidays):
                self._silence.holidays = holidays
            else:
                fault = f"the terminal has no holidays of {today[:4]}"
        except Exception as exc:
            if not self._is_alive():
                return
            fault = f"{type(exc).__name__}: {exc}"
        self._calendar_day = today
        if fault and not self._calendar_fault:
            logger.warning("no trading calendar, so every weekday is taken for a trading day: %s", fault)
        self._calendar_fault = fault


def _heard(subscriptions: _Subscriptions, now: int) -> set[str]:
    """Return the markets that have pushed news since the last call."""
    markets = set()
    for each in subscriptions:
        if each.has_news:
            each.has_news, each.had_news, each.is_quiet, each.news_at = False, True, False, now
            markets.add(each.market)
    return markets


def _expected(
    quiet: _Subscriptions, lost: Collection[TopicParts], heard: Collection[str]
) -> dict[str, dict[str, object]]:
    """Return for each stock market that is not in `heard` the codes of which pushes are expected, with the last record.

    `lost` are the subscriptions that were refused when their silent market was subscribed again.
    """
    expected: dict[str, dict[str, object]] = {}
    for parts in lost:
        code = INDICES[parts.name] if parts.name in MARKETS else parts.name
        expected.setdefault(market_of(parts), {})[code] = None
    for each in quiet:
        if each.market in MARKETS and each.market not in heard:
            codes = [INDICES[each.market], *each.codes] if each.is_market else [each.parts.name]
            records = each.state.newest.records
            expected.setdefault(each.market, {}).update((code, records.get(code)) for code in codes)
    return expected
