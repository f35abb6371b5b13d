"""`/ws/whole_quote`: whole markets, and codes out of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from gateway.endpoints.codes import Asked, Codes
from gateway.endpoints.rejections import topics_of
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.codes import MARKETS
from qmt_bridge.wire.requests import (
    Options,
    WholeRequest,
    read_request,
)
from qmt_bridge.wire.topics import (
    Topic,
    whole_topic,
)


class WholeQuote(Codes):
    """`/ws/whole_quote`: whole markets and single codes; first the current snapshot, then the changes."""

    scope: ClassVar[Scope] = "market"
    field: ClassVar[str] = "codes"
    shape: ClassVar[type[Options]] = WholeRequest

    async def read(self, request: dict[str, Any]) -> Asked:
        asked = read_request(request, WholeRequest)
        return Asked(*await topics_of(asked.codes, whole_topic), asked)

    def needed(self) -> Iterable[Topic]:
        # The records of a code whose whole market is subscribed too would be sent twice.
        return [topic for topic in self.wanted if not self._within_market(topic)]

    def _within_market(self, topic: Topic) -> bool:
        name = self.wanted[topic]
        return name not in MARKETS and whole_topic(name.rpartition(".")[2]) in self.wanted
