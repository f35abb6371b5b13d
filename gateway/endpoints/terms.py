"""The options of a request as the terms of its subscriptions. Pure."""

from __future__ import annotations

from gateway.subscription import Terms
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.requests import (
    Options,
)


def terms_of(options: Options) -> Terms:
    if options.mode == "all" and options.max_rate_ms:
        raise BadRequest("bad_request", 'mode "all" keeps every frame and max_rate_ms does not; choose one')
    if options.complete and options.max_rate_ms:
        raise BadRequest("bad_request", "complete leaves nothing out and max_rate_ms does; choose one")
    keeps_all = options.mode == "all" or options.complete
    interval = options.max_rate_ms / 1000
    return Terms(tuple(options.fields), options.seq, interval, keeps_all, options.snapshot, options.complete)
