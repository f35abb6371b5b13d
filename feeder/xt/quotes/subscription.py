"""NativeSubscription: one subscription of xtdata's, how it is asked for, and the topics that it serves.

The thread `xtquant-calls` makes and changes it, xtquant's threads use it in their callbacks. It calls nothing.
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

# Periods that move while a market trades. How often xtquant pushes an unfinished bar is not documented: longer bars
# may be quiet for their whole length.
_LIVE_PERIODS = frozenset(("tick", "1m", "l2quote", "l2order", "l2transaction"))
# So many codes of a market's last push are compared in the place of all.
_SAMPLE = 5
# The key of a push without any record that can be read.
_UNREAD = ""


def market_of(parts: TopicParts) -> str:
    """Return the market of the code that `parts` are about, or the market itself."""
    name = formula_spec(parts).stock_code if parts.kind is Kind.FORMULA else parts.name
    return name.rpartition(".")[2]


def is_live(parts: TopicParts) -> bool:
    """Return whether `parts` move while their market trades."""
    return parts.kind is not Kind.FORMULA and (parts.kind is not Kind.QUOTE or parts.detail in _LIVE_PERIODS)


def is_tick(parts: TopicParts) -> bool:
    """Return whether `parts` are the ticks of one code."""
    return parts.detail == "tick" if parts.kind is Kind.QUOTE else parts.kind is Kind.WHOLE and "." in parts.name


class NativeSubscription:
    """The subscription to the parts of `state`; `topic` is theirs, None for a market that serves single ticks only."""

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
        # Ticks of single codes that come out of a market. Callbacks read it while the calling thread writes.
        self.singles: dict[str, TopicState] = {}
        # The last push of a market.
        self.pushed: Mapping[str, Any] = {}
        # Of a single subscription whose ticks came out of the market before.
        self.splice: Splice[Moment] | None = None
        # Whether it brought news: set by callbacks, cleared by the calling thread, which notes when it did so last
        # (ms since 1970), whether it ever did, and whether it has been quiet since the terminal was last asked.
        self.has_news = False
        self.news_at = 0
        self.had_news = False
        self.is_quiet = False
        # Whether it has brought more than the answer to the subscription, and the codes of that answer.
        self._is_begun = False
        self._first: set[str] = set()
        # What unsubscribes it, on the client that gave it and on no other.
        self.handle: Any = None
        # Cleared when it ends, while xtquant may still be calling back.
        self.live = True

    def note_push(self, records: Mapping[str, Any]) -> None:
        """Note a push of `records` by code, none of which is admitted yet; empty if it has none that can be read.

        Each push shows that the subscription works, whatever a record says of its own time or status. Only the answer
        to the subscription does not: xtquant may make it by itself, in one push or in several, of what was known
        before. So the first push counts that has a code for the second time, or a record other than the newest one of
        the topic.
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
        """Return whether it counts as one instrument's subscription (doc/xtdata.md 194: at most 50)."""
        return self.parts.kind in (Kind.QUOTE, Kind.L2)

    @property
    def is_market(self) -> bool:
        """Return whether it is a whole market's."""
        return self.parts.kind is Kind.WHOLE and self.parts.name == self.market

    @property
    def codes(self) -> list[str]:
        """Return the codes whose last ticks say whether it should have brought some; none if ticks say nothing."""
        if self.is_market:
            # What was pushed last trades, whatever the clocks in its records say.
            return [code for code, _ in nlargest(_SAMPLE, self.pushed.items(), key=lambda item: _time(item[1]))]
        if self.parts.kind is Kind.WHOLE or (self.parts.kind is Kind.QUOTE and self.parts.detail == "tick"):
            return [self.parts.name]
        return []

    def request(self) -> tuple[str, dict[str, Any]]:
        """Return the xtdata function that subscribes it, and its arguments without the callback."""
        name, detail = self.parts.name, self.parts.detail
        if self.spec is not None:
            # xtdata.subscribe_formula expects 'MODEL:PARAM', but reads 'barmode' without a prefix.
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
            return "subscribe_l2thousand", {"stock_code": name, "gear_num": int(detail) or None}
        return "subscribe_quote", {"stock_code": name, "period": detail, "count": 0}

    def __str__(self) -> str:
        function, arguments = self.request()
        return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


class Callback:
    """What xtquant calls for `subscription`; `deliver` gets its payloads, and `lose` the reason why there is none."""

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
        # xtdata decodes BSON before it calls us. What its decoder cannot read it drops, and prints whose callback that
        # was (xtdata.py 1161): there is no other report of it. Without standard output there is none.
        exc = sys.exception()
        if isinstance(exc, Exception):
            self._lose(self._subscription, exc)
        return str(self._subscription)


def _time(tick: Any) -> int:
    time = tick.get("time") if isinstance(tick, Mapping) else None
    return time if isinstance(time, int) else 0
