"""The URLs of market data over plain HTTP, and what all of them have in common: methods, and errors as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.contract import asyncapi, site
from gateway.http.admission import Host, identify
from gateway.http.events import EVENTS, events
from gateway.http.last import last
from gateway.http.openapi import PATH, openapi
from gateway.http.problems import Denied
from gateway.http.ticks import ticks
from qmt_bridge.errors import BadRequest

# Serves one request.
Serve = Callable[[Host, Scope, Receive, Send], Awaitable[None]]
METHODS = "GET, HEAD, OPTIONS"


def _answered(make: Callable[[Host, Scope], Awaitable[Response]]) -> Serve:
    async def serve(host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        await (await make(host, scope))(scope, receive, send)

    return serve


def _checked(serve: Serve) -> Serve:
    """Return `serve` behind a check of the method; what it raises becomes an answer."""

    async def checked(host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "OPTIONS":
                await Response(status_code=HTTPStatus.NO_CONTENT, headers={"Allow": METHODS})(scope, receive, send)
            elif scope["method"] not in ("GET", "HEAD"):
                told = f"{scope['path']} takes GET: nothing can be changed here"
                raise Denied("bad_request", told, HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": METHODS})
            else:
                await serve(host, scope, receive, send)
        except BadRequest as exc:
            await _refuse(Denied(exc.code, exc.reason), scope, receive, send)
        except Denied as denied:
            await _refuse(denied, scope, receive, send)

    return checked


async def _refuse(denied: Denied, scope: Scope, receive: Receive, send: Send) -> None:
    response = Response(denied.body, denied.status, denied.headers, media_type="application/json")
    await response(scope, receive, send)


async def _asyncapi(host: Host, scope: Scope) -> Response:
    identify(host.entry, scope, needs_key=False)
    return Response(asyncapi.encoded(), media_type="application/json")


async def _docs(host: Host, scope: Scope) -> Response:
    return site.page(scope)


_SERVED: dict[str, Serve] = {
    "/api/last": _answered(last),
    "/api/ticks/{code}": ticks,
    **dict.fromkeys(EVENTS, events),
    PATH: _answered(openapi),
    asyncapi.PATH: _answered(_asyncapi),
    **dict.fromkeys(site.FILES, _answered(_docs)),
}
PAGES: dict[str, Serve] = {path: _checked(serve) for path, serve in _SERVED.items()}
# A page that was opened from a file may use these, as it may the sockets of quotes; the session refuses it formulas.
TO_FILES = ("/api/", "/sse/")
