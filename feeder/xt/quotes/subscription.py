"""NativeSubscription: one subscription of xtdata, the call that makes it, and the topics that it serves.

The thread `xtquant-calls` makes and changes it; xtquant's threads use it in their callbacks. It makes no call itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from heapq import nlargest
from typing import Any

from feeder.xt.quotes.newest import Moment
from feeder.xt.quotes.splice import Splice
from feeder.xt.quotes.topic_state import TopicState
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, formula_spec

# Periods that have data all the time while a market trades. How often xtquant pushes an unfinished bar is not
# documented, so longer bars may be quiet for their whole length.
_LIVE_PERIODS = frozenset(("tick", "1m", "l2quote", "l2order", "l2transaction"))
# So many codes of a market's last push are compared with the terminal, instead of all its codes.
_SAMPLE = 5
# Stands for the codes of a push in which no record can be read.
_UNREAD = ""


def market_of(parts: TopicParts) -> str:
    """Return the market of the code in `parts`, or the market that `parts` name."""
    name = formula_spec(parts).stock_code if parts.kind is Kind.FORMULA else parts.name
    return name.rpartition(".")[2]


def is_live(parts: TopicParts) -> bool:
    """Return whether `parts` have data all the time while their market trades."""
    return parts.kind is not Kind.FORMULA and (parts.kind is not Kind.QUOTE or parts.detail in _LIVE_PERIODS)


def is_tick(parts: TopicParts) -> bool:
    """Return whether `parts` are the ticks of one code."""
    return parts.detail == "tick" if parts.kind is Kind.QUOTE else parts.kind is Kind.WHOLE and "." in parts.name


class NativeSubscription:
    """The subscription to the parts of `state`; `topic` is None for a market that serves only ticks of single codes."""

    __slots__ = (
        "_first",
        "_is_begun",
        "had_news",
        "handle",
        "has_news",
        "is_quiet",
        "live",
        "market",
        "news_at",
        "parts",
        "pushed",
        "singles",
        "spec",
        "splice",
        "state",
        "topic",
    )

    def __init__(self, state: TopicState, topic: Topic | None = None) -> None:
        self.parts = parts = state.parts
        self.state = state
        self.topic = topic
        self.spec = formula_spec(parts) if parts.kind is Kind.FORMULA else None
        self.market = market_of(parts)
        # The codes whose ticks this market serves. Callbacks read this while the calling thread writes it.
        self.singles: dict[str, TopicState] = {}
        # The last push of a market.
        self.pushed: Mapping[str, Any] = {}
        # Set for a single subscription to which a topic returns from its market.
        self.splice: Splice[Moment] | None = None
        # Whether it has pushed news: callbacks set this, and the calling thread clears it.
        # The calling thread notes when news came last (ms since 1970), whether any ever came, and whether none has come
        # since the terminal was last asked.
        self.has_news = False
        self.news_at = 0
        self.had_news = False
        self.is_quiet = False
        # Whether it has pushed more than the answer to the subscription; until then, the codes of that answer.
        self._is_begun = False
        self._first: set[str] = set()
        # The number or text that unsubscribes it, valid only on the client that returned it.
        self.handle: Any = None
        # Cleared when it ends, because xtquant may still call back after that.
        self.live = True

    def note_push(self, records: Mapping[str, Any]) -> None:
        """Note a push of `records` by code, before they are admitted; `records` is empty if none can be read.

        Every push shows that the subscription works, whatever its records say of their time or status. The one
        exception is the answer to the subscription: xtquant may make it of old data, in one push or in several. So
        pushes count from the first one that has a code for the second time, or a record that differs from the newest
        one of the topic.
        """
        if not self._is_begun:
            newest, first = self.state.newest, self._first
            if not any(code in first or newest.is_new(code, record) for code, record in records.items()) and (
                records or _UNREAD not in first
            ):
                first.update(records or (_UNREAD,))
                return
            self._is_begun = True
            first.clear()
        self.has_news = True

    @property
    def is_single(self) -> bool:
        """Return whether it counts towards xtquant's limit of single instruments (doc/xtdata.md 194: at most 50)."""
        return self.parts.kind in (Kind.QUOTE, Kind.L2)

    @property
    def is_market(self) -> bool:
        """Return whether it is the subscription of a whole market."""
        return self.parts.kind is Kind.WHOLE and self.parts.name == self.market

    @property
    def codes(self) -> list[str]:
        """Return the codes whose last ticks show whether it should have pushed data; empty if ticks cannot show it."""
        if self.is_market:
            # A code in the newest push is being traded, even if the times in its records are wrong.
            return [code for code, _ in nlargest(_SAMPLE, self.pushed.items(), key=lambda item: _time(item[1]))]
        if self.parts.kind is Kind.WHOLE or (self.parts.kind is Kind.QUOTE and self.parts.detail == "tick"):
            return [self.parts.name]
        return []

    def request(self) -> tuple[str, dict[str, Any]]:
        """Return the name of the xtdata function that makes it, and its arguments without the callback."""
        name, detail = self.parts.name, self.parts.detail
        if self.spec is not None:
            # xtdata.subscribe_formula expects 'MODEL:PARAM', except for 'barmode', which has no prefix.
            model = self.spec.formula_name
            extend_param = {
                param if param == "barmode" or ":" in param else f"{model}:{param}": value
                for param, value in self.spec.params.items()
            }
            return "subscribe_formula", {
                "formula_name": model,
                "stock_code": self.spec.stock_code,
                "period": self.spec.period,
                "count": self.spec.count,
                "dividend_type": self.spec.dividend_type,
                "extend_param": extend_param,
            }
        if self.parts.kind is Kind.WHOLE:
            return "subscribe_whole_quote", {"code_list": [name]}
        if self.parts.kind is Kind.L2:
            # Without a number xtquant's own default, which is every level: None, in versions before 250516 it is 0.
            gears = {"gear_num": int(detail)} if int(detail) else {}
            return "subscribe_l2thousand", {"stock_code": name, **gears}
        return "subscribe_quote", {"stock_code": name, "period": detail, "count": 0}

    def __str__(self) -> str:
        function, arguments = self.request()
        return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


class Callback:
    """The callback of `subscription`: `deliver` gets its payloads, `lose` the reason why one cannot be decoded."""

    __slots__ = ("_deliver", "_lose", "_subscription")

    def __init__(
        self,
        subscription: NativeSubscription,
        deliver: Callable[[NativeSubscription, object], None],
        lose: Callable[[NativeSubscription, Exception], None],
    ) -> None:
        self._subscription = subscription
        self._deliver = deliver
        self._lose = lose

    def __call__(self, payload: object) -> None:
        self._deliver(self._subscription, payload)

    def __str__(self) -> str:
        # xtdata decodes BSON before it calls back. If that fails, it drops the push and prints the callback
        # (xtdata.py 1161), which calls this method. It reports this in no other way, and in none without a stdout.
        exc = sys.exception()
        if isinstance(exc, Exception):
            self._lose(self._subscription, exc)
        return str(self._subscription)


def _time(tick: Any) -> int:
    time = tick.get("time") if isinstance(tick, Mapping) else None
    return time if isinstance(time, int) else 0
