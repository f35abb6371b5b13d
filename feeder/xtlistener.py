"""Listener: whether what is subscribed says nothing although it should, and what to do about it.

Silence of a stock market goes by the clock and xtquant's holidays, that of a subscription, in any market, by the
terminal's own last ticks. The thread `xtquant-calls` runs it, while the connection is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

from feeder.evidence import Evidence
from feeder.silence import MARKETS, SEVERAL, Action, Silence, day_name
from feeder.xtfeed import Feed, is_live, market_of
from qmt_bridge.wire.topics import Topic, TopicParts

logger = logging.getLogger(__name__)

# The terminal is asked for last ticks this many times within the time that a market may say nothing, so that a deaf
# connection is made anew before a market of it counts as silent, ...
_ASKS = 6
# ... and for so many codes at most.
_ASKED = 200
_NEXT = {"resubscribe": "subscribing again", "reconnect": "connecting again", "stale": "waiting"}


class Listener:
    """Listens to the feeds of one `XtQuote`; `limit` is in seconds, 0 for never, and `now` tells ms since 1970."""

    def __init__(self, xtdata: Any, limit: float, now: Callable[[], int], is_alive: Callable[[], bool]) -> None:
        self._xtdata = xtdata
        self._now = now
        self._is_alive = is_alive
        self._silence = Silence(round(limit * 1000))
        self._calendar_day = ""
        self._calendar_fault = ""
        self._evidence: Evidence[TopicParts] = Evidence()
        self._ask_pause = round(limit * 1000 / _ASKS)
        self._asked = 0
        self._ask_failed = False

    @property
    def stale(self) -> frozenset[str]:
        """Return the markets that say nothing."""
        return self._silence.stale

    def listen(
        self, wanted: Mapping[Topic, TopicParts], held: Collection[Topic], feeds: Mapping[TopicParts, Feed]
    ) -> Action:
        """Return what is to be done now, and log it; call it about once a second."""
        if not self._ask_pause:
            return "none"
        heard = _heard(feeds.values())
        now = self._now()
        if not 0 <= now - self._asked < self._ask_pause:
            self._asked = now
            deaf = self._ask(now, feeds.values())
            if deaf:
                action: Action = "reconnect" if self._silence.act() else "stale"
                silent = ", ".join(str(feeds[parts]) for parts in deaf)
                self._warn(f"the terminal has news that {silent} did not bring", action)
                # Without a try left nothing is done: this is no silence that could be over.
                return "reconnect" if action == "reconnect" else "none"
        codes = self._codes(wanted, held)
        if codes:
            self._learn_holidays(day_name(now))
        action = self._silence.check(now, codes, heard)
        if action == "recovered":
            logger.info("silence is over")
        elif action == "closed":
            logger.info("nothing trades any more, so silence is right")
        elif action != "none":
            self._warn(f"nothing came from {', '.join(sorted(self.stale))} while it trades", action)
        return action

    def forget(self) -> None:
        """Begin anew: the connection was lost, so what was silent before is not known any more."""
        self._silence.reset()

    def _warn(self, what: str, action: Action) -> None:
        logger.warning("%s; %s; %d more tries today", what, _NEXT[action], self._silence.left)

    def _codes(self, wanted: Mapping[Topic, TopicParts], held: Collection[Topic]) -> dict[str, int]:
        """Return how many codes of each stock market should be heard."""
        watched: dict[str, list[TopicParts]] = {}
        for topic, parts in wanted.items():
            market = market_of(parts) if is_live(parts) else ""
            # What was refused is silent by right, unless it was held before the market fell silent.
            if market in MARKETS and (topic in held or market in self._silence.stale):
                watched.setdefault(market, []).append(parts)
        codes = {}
        for market, those in watched.items():
            names = {parts.name for parts in those}
            if market in names:
                codes[market] = SEVERAL
            elif active := self._evidence.active(names):
                # Minute bars may come but once a minute, so they count for none.
                codes[market] = len(active & {parts.name for parts in those if parts.detail != "1m"})
        return codes

    def _ask(self, now: int, feeds: Collection[Feed]) -> list[TopicParts]:
        """Compare what is quiet with the terminal's own last ticks; return who is deaf."""
        trades = self._silence.is_open(now)
        quiet = [
            feed for feed in feeds if feed.is_quiet and is_live(feed.parts) and (trades or feed.market not in MARKETS)
        ]
        for feed in feeds:
            feed.is_quiet = True
        silent = {feed.parts: codes for feed in quiet if feed.spoke and (codes := feed.codes)}
        stocks = [feed.parts.name for feed in quiet if feed.market in MARKETS and not feed.is_market]
        asked = list(dict.fromkeys(chain(*silent.values(), stocks)))[:_ASKED]
        try:
            ticks = dict(self._xtdata.get_full_tick(asked)) if asked else {}
        except Exception as exc:
            if self._is_alive() and not self._ask_failed:
                self._ask_failed = True
                logger.warning("the terminal's last ticks cannot be had: %s: %s", type(exc).__name__, exc)
            return []
        self._ask_failed = False
        return self._evidence.learn(now, asked, ticks, silent)

    def _learn_holidays(self, today: str) -> None:
        """Ask xtquant for its calendar once a day; without one every weekday is taken for a trading day."""
        if today == self._calendar_day:
            return
        fault = ""
        try:
            # What xtdata.get_trading_calendar does (xtdata.py 2159), which compares holidays with this machine's
            # midnights and so finds none where the clock is not Shanghai's.
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


def _heard(feeds: Collection[Feed]) -> set[str]:
    """Return the markets that brought news since the last call."""
    markets = set()
    for feed in feeds:
        if feed.heard:
            feed.heard, feed.spoke, feed.is_quiet = False, True, False
            markets.add(feed.market)
    return markets
