"""The exception tree and the error codes; the close codes are in closes.py.

QMTBridgeError
├── ConfigError        a setting is unknown or malformed
│   └── Unavailable    ... or what it names is not there yet: starting again later may help
├── WireError          bytes from ZeroMQ that are not ours
│   └── WireVersionError   ... but those of a program with another version of the wire
├── BadRequest         a client asked for something that cannot be; becomes an error frame
│   └── BadCode        ... because of one malformed code; the other codes of the frame are served
├── Refused            a source cannot serve a topic
├── ServerError        (client) the gateway answered with an error frame
├── Disconnected       (client) the gateway closed the socket, for good
└── CallbackError      (client) the user's callback failed; carries the frame, chained to the cause
"""

from __future__ import annotations

from typing import Literal, get_args

ErrorCode = Literal[
    "bad_json",
    "bad_request",
    "unknown_action",
    "unknown_field",
    "unauthorized",
    "forbidden",
    "host_denied",
    "origin_denied",
    "unknown_symbol",
    "unsupported_period",
    "unsupported_sdk",
    "not_entitled",
    "symbol_limit",
    "connection_limit",
    "rate_limited",
    "not_subscribed",
    "slow_client",
    "upstream_unavailable",
    "upstream_refused",
    "resume_expired",
    "incomplete",
    "ended_by_admin",
    "internal",
]
ERROR_CODES: frozenset[str] = frozenset(get_args(ErrorCode))
# The same request may succeed later.
RETRYABLE: frozenset[ErrorCode] = frozenset(
    ("connection_limit", "rate_limited", "slow_client", "upstream_unavailable", "internal")
)


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


class WireVersionError(WireError):
    """A program speaks another version of the wire (docs/wire.md)."""

    def __init__(self, theirs: int, ours: int) -> None:
        older = "the feeder" if theirs < ours else "this program"
        super().__init__(
            f"the feeder speaks version {theirs} of the wire, and this program version {ours}: update {older}"
        )
        self.theirs = theirs


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
