"""`/ws/l2_thousand`: depth of single instruments."""

from __future__ import annotations

from typing import Any, ClassVar

from gateway.endpoints.codes import Asked, Codes
from gateway.endpoints.rejections import topics_of
from qmt_bridge.errors import BadRequest
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.requests import (
    L2Request,
    Options,
    read_request,
)
from qmt_bridge.wire.topics import (
    l2_topic,
)


class L2Thousand(Codes):
    """`/ws/l2_thousand`: depth of up to a thousand levels."""

    scope: ClassVar[Scope] = "l2"
    detail: ClassVar[str] = "gear_num"
    usual: ClassVar[str] = "0"
    shape: ClassVar[type[Options]] = L2Request

    async def read(self, request: dict[str, Any]) -> Asked:
        asked = read_request(request, L2Request)
        if asked.gear_num < 0:
            raise BadRequest("bad_request", f"gear_num must not be negative, got {asked.gear_num}")
        return Asked(*await topics_of(asked.stocks, lambda code: l2_topic(code, asked.gear_num)), asked)
