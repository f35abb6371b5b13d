"""The exception tree, the error codes, and the one table of WebSocket close codes.

QMTBridgeError
├── ConfigError        a setting is unknown or malformed
│   └── Unavailable    ... or what it names is not there yet: starting again later may help
├── WireError          bytes from ZeroMQ that are not ours
├── BadRequest         a client asked for something that cannot be; becomes an error frame
│   └── BadCode        ... because of one malformed code; the other codes of the frame are served
├── Refused            a source cannot serve a topic
├── ServerError        (client) the gateway answered with an error frame
├── Disconnected       (client) the gateway closed the socket, for good
└── CallbackError      (client) the user's callback failed; carries the frame, chained to the cause
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

ErrorCode = Literal[
    "bad_json",
    "bad_request",
    "unknown_action",
    "unknown_field",
    "unauthorized",
    "forbidden",
    "origin_denied",
    "unknown_symbol",
    "unsupported_period",
    "not_entitled",
    "symbol_limit",
    "connection_limit",
    "rate_limited",
    "not_subscribed",
    "slow_client",
    "upstream_unavailable",
    "upstream_refused",
    "resume_expired",
    "internal",
]
ERROR_CODES: frozenset[str] = frozenset(get_args(ErrorCode))
# The same request may succeed later.
RETRYABLE: frozenset[ErrorCode] = frozenset(
    ("connection_limit", "rate_limited", "slow_client", "upstream_unavailable", "internal")
)


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
        Close(1008, False, "key, origin, limits, or a bad first frame"),
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
ORIGIN_DENIED = Ending(1008, "origin_denied")
RATE_LIMITED = Ending(1008, "rate_limited")
OVERLOADED = Ending(1013, "rate_limited")
TOO_LARGE = Ending(1009, "bad_request")
INTERNAL = Ending(1011, "internal")
UPSTREAM_FAILED = Ending(1011, "upstream_refused")
UPSTREAM_AWAY = Ending(1013, "upstream_unavailable")
CONNECTION_LIMIT = Ending(1013, "connection_limit")
SLOW_CLIENT = Ending(1013, "slow_client")
# Never sent: there is no connection any more.
VANISHED = Ending(1006)
# No error frame goes to clients that are unauthorised, come from a foreign page, or do not read.
UNTOLD: frozenset[ErrorCode] = frozenset(("unauthorized", "origin_denied", "slow_client"))


def may_reconnect(code: int | None) -> bool:
    """Return whether a client should reconnect after this close code; None is a lost connection."""
    return code is None or code not in CLOSES or CLOSES[code].reconnect


class QMTBridgeError(Exception):
    """Base of every exception that this project raises on purpose."""


class ConfigError(QMTBridgeError):
    """A setting is unknown or malformed; `setting` is its name as the user wrote it."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
        self.setting = setting
        self.reason = reason


class Unavailable(ConfigError):
    """What a setting names does not answer, which may change: a supervisor starts a process that ends with it again."""


class WireError(QMTBridgeError):
    """A ZeroMQ message or topic is not one of ours."""


class BadRequest(QMTBridgeError):
    """A request that cannot be served; `code` is one of `ERROR_CODES`."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code: ErrorCode = code
        self.reason = reason


class BadCode(BadRequest):
    """One malformed instrument code, `symbol`."""

    def __init__(self, symbol: str, reason: str) -> None:
        super().__init__("unknown_symbol", reason)
        self.symbol = symbol


class Refused(QMTBridgeError):
    """The source cannot serve a topic; `reason` is why.

    With ``resume_expired``, positions from `oldest` to `newest` are accepted.
    """

    def __init__(self, code: ErrorCode, reason: str, *, oldest: int = 0, newest: int = 0) -> None:
        super().__init__(reason)
        self.code: ErrorCode = code
        self.reason = reason
        self.oldest = oldest
        self.newest = newest


class ServerError(QMTBridgeError):
    """The gateway answered with an error frame; `code` as in `ERROR_CODES`, `frame` as it came."""

    def __init__(self, code: str, error: str, frame: dict[str, object]) -> None:
        super().__init__(f"{code}: {error}")
        self.code = code
        self.error = error
        self.frame = frame


class Disconnected(QMTBridgeError):
    """The gateway closed the socket with a code that forbids to reconnect, or it cannot be reached."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed with {code}: {reason}" if code is not None else reason)
        self.code = code
        self.reason = reason


class CallbackError(QMTBridgeError):
    """The user's callback raised (see ``__cause__``) on `frame`."""

    def __init__(self, frame: object) -> None:
        super().__init__(f"callback failed on frame {str(frame)[:200]}")
        self.frame = frame
