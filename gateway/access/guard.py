"""What holds for every HTTP request before its page is made: known host, allowed origin, headers for browsers.

A WebSocket is checked by its session: a browser shows the reason of a close, but nothing of an answer to the handshake.
For both, the client of a trusted proxy takes the place of the proxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access.browser_headers import BROWSER_HEADERS, TLS_HEADERS
from gateway.access.hosts import host_allowed, is_near, why_unknown
from gateway.access.origins import origin_allowed, why_denied
from gateway.access.peers import Proxies
from qmt_bridge.config import Config

_HEADERS = [(name.lower().encode(), value.encode()) for name, value in BROWSER_HEADERS.items()]
_TLS_HEADERS = [(name.lower().encode(), value.encode()) for name, value in TLS_HEADERS.items()]
_OF_PAGES = frozenset((b"cache-control", b"content-security-policy"))
# Seconds for which a browser remembers the answer to a preflight.
_REMEMBER = "600"
# What a script may read of an answer; without being named here only the body and some headers of the browser's own.
_EXPOSED = b"ETag, Retry-After"


class Guard:
    """An ASGI app around another one."""

    def __init__(self, app: ASGIApp, settings: Callable[[], Config], to_files: tuple[str, ...] = ()) -> None:
        """Guard `app`; a page that was opened from a file may use what begins with one of the paths `to_files`."""
        self._app = app
        self._settings = settings
        self._to_files = to_files
        # Made at the first request: the settings are read when the app starts, after this object was made.
        self._proxies: Proxies | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Let a request pass; a WebSocket passes without a frame of ours, which each open socket would keep."""
        if scope["type"] != "lifespan":
            self._trusted().resolve(scope)
        if scope["type"] == "http":
            return self._answer(scope, receive, send)
        return self._app(scope, receive, send)

    def _trusted(self) -> Proxies:
        if self._proxies is None:
            config = self._settings()
            self._proxies = Proxies(config.behind_proxy, config.proxy_header)
        return self._proxies

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        added = list(_HEADERS)
        if scope["scheme"] == "https" and self._settings().tls_cert:
            added += _TLS_HEADERS

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                # A page may say itself how long its answer may be kept, and what a browser may load for it.
                names = {name for name, _ in own if name in _OF_PAGES}
                message = {**message, "headers": [*own, *(each for each in added if each[0] not in names)]}
            await send(message)

        answer = _refusal(scope, headers, self._settings(), to_files=scope["path"].startswith(self._to_files))
        if answer is None and (origin := headers.get("origin")) is not None:
            added.append((b"access-control-allow-origin", origin.encode("latin-1")))
            added.append((b"access-control-expose-headers", _EXPOSED))
            answer = _preflight(scope, headers)
        await (self._app if answer is None else answer)(scope, receive, guarded)


def _refusal(scope: Scope, headers: dict[str, str], config: Config, *, to_files: bool) -> Response | None:
    host, origin = headers.get("host"), headers.get("origin")
    if not host_allowed(host, (config.host, *config.hosts), scope.get("server")):
        return PlainTextResponse(f"host_denied: {why_unknown(str(host))}\n", HTTPStatus.MISDIRECTED_REQUEST)
    if _is_embedded(headers):
        return PlainTextResponse("origin_denied: a page of another site cannot load this\n", HTTPStatus.FORBIDDEN)
    to_files = to_files and is_near(host, config.host, scope.get("server"))
    if not origin_allowed(origin, host, config.origins, secure=scope["scheme"] == "https", to_files=to_files):
        return PlainTextResponse(f"origin_denied: {why_denied(str(origin))}\n", HTTPStatus.FORBIDDEN)
    return None


def _is_embedded(headers: dict[str, str]) -> bool:
    """Return whether a page of another site loads this as an image, script or frame.

    Browsers then send no ``Origin``. The page could read nothing of the answer, but name a wrong key or thousands of
    codes for its reader. A link that is followed may be.
    """
    if "origin" in headers or headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    return (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document")


def _preflight(scope: Scope, headers: dict[str, str]) -> Response | None:
    """Return the answer to a browser that asks whether a page may send a request; None for any other request."""
    if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
        return None
    allowed = {
        "Access-Control-Allow-Methods": "GET, HEAD",
        "Access-Control-Allow-Headers": "Authorization, X-API-Key, Last-Event-ID, If-None-Match",
        "Access-Control-Max-Age": _REMEMBER,
    }
    if headers.get("access-control-request-private-network") == "true":
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=HTTPStatus.NO_CONTENT, headers=allowed)
