"""Why a socket is closed: the one table of WebSocket close codes, and each reason with its code. Pure."""

from __future__ import annotations

from typing import NamedTuple

from qmt_bridge.errors import ErrorCode


class Close(NamedTuple):
    """One row of the close table: the WebSocket code and whether a client should reconnect by itself."""

    code: int
    reconnect: bool
    meaning: str


CLOSES: dict[int, Close] = {
    close.code: close
    for close in (
        Close(1000, False, "finished or asked for"),
        Close(1001, True, "the worker is going away"),
        Close(1003, False, "binary data was not negotiated"),
        Close(1006, True, "the connection was lost"),
        Close(1007, False, "the data cannot be decoded"),
        Close(1008, False, "key, host, origin, limits, a bad first frame, or an administrator"),
        Close(1009, False, "the request is too large"),
        Close(1011, True, "an internal error, or the upstream failed for good"),
        Close(1012, True, "the worker restarts"),
        Close(1013, True, "try again later: overload, or a slow consumer of a stream without loss"),
    )
}


class Ending(NamedTuple):
    """Why a gateway closes a socket: the close code, and the error code that begins the reason."""

    close_code: int
    code: ErrorCode | None = None


# Each reason to close a socket. The gateway takes close codes from here only.
FINISHED = Ending(1000)
NOT_TEXT = Ending(1003, "bad_request")
BAD_REQUEST = Ending(1008, "bad_request")
UNAUTHORIZED = Ending(1008, "unauthorized")
FORBIDDEN = Ending(1008, "forbidden")
HOST_DENIED = Ending(1008, "host_denied")
ORIGIN_DENIED = Ending(1008, "origin_denied")
RATE_LIMITED = Ending(1008, "rate_limited")
ENDED_BY_ADMIN = Ending(1008, "ended_by_admin")
OVERLOADED = Ending(1013, "rate_limited")
TOO_LARGE = Ending(1009, "bad_request")
INTERNAL = Ending(1011, "internal")
RESTARTING = Ending(1012)
UPSTREAM_FAILED = Ending(1011, "upstream_refused")
UPSTREAM_AWAY = Ending(1013, "upstream_unavailable")
CONNECTION_LIMIT = Ending(1013, "connection_limit")
SLOW_CLIENT = Ending(1013, "slow_client")
# Never sent: there is no connection any more.
VANISHED = Ending(1006)
# No error frame goes to clients that are unauthorised or lack a scope, come from a foreign page or by an unknown host,
# or do not read.
UNTOLD: frozenset[ErrorCode] = frozenset(("unauthorized", "forbidden", "host_denied", "origin_denied", "slow_client"))


def may_reconnect(code: int | None) -> bool:
    """Return whether a client should reconnect after this close code; None is a lost connection."""
    return code is None or code not in CLOSES or CLOSES[code].reconnect
