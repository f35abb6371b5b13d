"""`/ws/realtime`: quotes of single instruments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.endpoints.codes import Asked, Codes, detail_of
from gateway.endpoints.rejections import topics_of
from gateway.markets.search import CODES_OF_CLIENT, found_in_markets
from gateway.markets.subscription import MarketSubscription
from gateway.streams.member import StoreQuestion
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.requests import (
    Options,
    QuoteRequest,
    read_request,
)
from qmt_bridge.wire.topics import (
    Topic,
    check_period,
    quote_topic,
)


class Realtime(Codes):
    """`/ws/realtime`: ticks, bars and level-2 records of single instruments, as subscribe_quote delivers them."""

    scope: ClassVar[Scope] = "market"
    detail: ClassVar[str] = "period"
    usual: ClassVar[str] = "tick"
    shape: ClassVar[type[Options]] = QuoteRequest

    async def read(self, request: dict[str, Any]) -> Asked:
        asked = read_request(request, QuoteRequest)
        period = check_period(asked.period)
        if period.startswith("l2"):
            self.session.require("l2")
        return Asked(*await topics_of(asked.stocks, lambda code: quote_topic(code, period)), asked)

    async def elsewhere(self, questions: Mapping[Topic, StoreQuestion]) -> dict[Topic, StoreQuestion]:
        # An id of an event has positions alone, and could not say that they are those of a market.
        if not questions or self.session.path.startswith("/sse/") or detail_of(next(iter(questions))) != "tick":
            return {}
        others = [of for of in (*self._held.values(), *self._parts) if of.topic not in questions]
        used = sum(isinstance(of, MarketSubscription) for of in others)
        return await found_in_markets(self.session.host.feed.store, questions, CODES_OF_CLIENT - used)
