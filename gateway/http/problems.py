"""What is not served: the body of an answer with an error, and its status. Pure (docs/http.md, "Errors")."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from qmt_bridge.errors import RETRYABLE, ErrorCode

# The status of each error code; of all others the request is at fault.
STATUS: Mapping[ErrorCode, HTTPStatus] = {
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "forbidden": HTTPStatus.FORBIDDEN,
    "origin_denied": HTTPStatus.FORBIDDEN,
    "not_entitled": HTTPStatus.FORBIDDEN,
    "host_denied": HTTPStatus.MISDIRECTED_REQUEST,
    "symbol_limit": HTTPStatus.TOO_MANY_REQUESTS,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "connection_limit": HTTPStatus.SERVICE_UNAVAILABLE,
    "slow_client": HTTPStatus.SERVICE_UNAVAILABLE,
    "upstream_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "upstream_refused": HTTPStatus.BAD_GATEWAY,
    "unsupported_sdk": HTTPStatus.BAD_GATEWAY,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
}
# Seconds after which a client may try again, where it may at all.
RETRY_AFTER = 1


class Problem(msgspec.Struct, frozen=True):
    """An error, in the fields of an error frame (docs/websocket.md, "Error codes")."""

    code: ErrorCode
    # One sentence for a person.
    error: str
    # Whether the same request may succeed later.
    retry: bool


class Denied(Exception):
    """A request is not served; `status` None is that of the error code."""

    def __init__(
        self, code: ErrorCode, error: str, status: HTTPStatus | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(f"{code}: {error}")
        self.problem = Problem(code, error, code in RETRYABLE)
        self.status = STATUS.get(code, HTTPStatus.BAD_REQUEST) if status is None else status
        self.headers = dict(headers or {})
        if self.status is HTTPStatus.UNAUTHORIZED:
            self.headers["WWW-Authenticate"] = "Bearer"
        if self.problem.retry:
            self.headers.setdefault("Retry-After", str(RETRY_AFTER))

    @property
    def body(self) -> bytes:
        """Return the body of the answer, JSON."""
        return msgspec.json.encode(self.problem) + b"\n"
