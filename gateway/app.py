"""The ASGI app: the map of all URLs, and the lifespan that starts and stops the worker.

uvicorn gateway.app:app --workers 4
uvicorn --factory gateway.app:create_app
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send
from starlette.websockets import WebSocket

from gateway import status
from gateway.access.browser_headers import BROWSER_HEADERS
from gateway.access.guard import Guard
from gateway.access.peers import from_this_machine
from gateway.endpoints.urls import ENDPOINTS
from gateway.http.admission import identify
from gateway.http.pages import PAGES, TO_FILES, Serve
from gateway.http.problems import Denied
from gateway.keys.attempts import why_barred
from gateway.keys.entry import headers_of
from gateway.page.site import ROUTES as PAGE
from gateway.session import Endpoint, Session
from gateway.worker import Worker, Workers
from qmt_bridge import log
from qmt_bridge.closes import BAD_REQUEST
from qmt_bridge.config import Config, hidden, load_config
from qmt_bridge.keys.key import check_length
from qmt_bridge.wire.hints import similar


def create_app(config: Config | None = None) -> Starlette:
    """Return the app; without `config` it reads the TOML file and the environment when it starts."""
    workers = Workers()

    @cache
    def settings() -> Config:
        # Every ASGI server may log a query string or a header, which may hold a key.
        log.protect()
        loaded = load_config() if config is None else config
        log.hide(hidden(loaded))
        if config is None:
            check_length(loaded.api_key, simulated=True)
        return loaded

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workers.use(settings()):
            yield

    def page(render: status.Page) -> Callable[[Request], object]:
        async def respond(request: Request) -> Response:
            async with workers.use(settings()) as worker:
                return _page(worker, request.scope, render)

        return respond

    def socket(endpoint: type[Endpoint]) -> _Socket:
        return _Socket(workers, settings, endpoint)

    pages = {"/healthz": status.health, "/readyz": status.readiness, "/metrics": status.prometheus}
    # Each URL is also served with a slash at its end, because a WebSocket client does not follow a redirect.
    routes: list[BaseRoute] = [
        WebSocketRoute(path + end, socket(endpoint)) for path, endpoint in ENDPOINTS.items() for end in ("", "/")
    ]
    routes += [Route(path + end, page(render)) for path, render in pages.items() for end in ("", "/")]
    routes += [Route(path + end, _upgrade_required, methods=_METHODS) for path in ENDPOINTS for end in ("", "/")]
    routes += [
        Route(path + end, _Market(workers, settings, serve)) for path, serve in PAGES.items() for end in ("", "/")
    ]
    routes += PAGE
    app = _App(settings, routes, lifespan)
    app.router.default = _nowhere
    return app


class _App(Starlette):
    """Starlette with the guard around everything: its own middlewares are inside of what answers a failure."""

    def __init__(self, settings: Callable[[], Config], routes: list[BaseRoute], lifespan: Lifespan[Starlette]) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        self._settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack(), self._settings, TO_FILES)


# A WebSocket URL answers each of them.
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Characters of an unknown path that an answer shows.
_SHOWN = 60


async def _upgrade_required(request: Request) -> Response:
    """Answer plain HTTP on the URL of a WebSocket."""
    sentence = (
        f"{request.url.path} is a WebSocket: connect with ws:// (wss:// through a proxy with TLS). If you did, a proxy "
        "on the way has removed the header Upgrade.\n"
    )
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return PlainTextResponse(sentence, HTTPStatus.UPGRADE_REQUIRED, headers)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer on a path that does not exist, to plain HTTP and to WebSockets."""
    path: str = scope["path"]
    nearest = next(iter(similar(path.removesuffix("/"), (*ENDPOINTS, *PAGES))), None)
    hint = f"did you mean {nearest}?" if nearest else f"the WebSockets are {', '.join(ENDPOINTS)}"
    response = PlainTextResponse(f"there is nothing at {path[:_SHOWN]!r}; {hint}\n", HTTPStatus.NOT_FOUND)
    if scope["type"] == "http":
        await response(scope, receive, send)
    else:
        await _deny(response, scope, receive, send)


def _page(worker: Worker, scope: Scope, render: status.Page) -> Response:
    """Return a page for the client that asks; a key that it shows is checked on every page."""
    try:
        key = identify(worker.entry, scope, needs_key=False).key
    except Denied as denied:
        # These pages are for people and load balancers, and answer in plain text.
        told = denied.problem.error if denied.problem.retry else f"{denied.problem.code}: {denied.problem.error}"
        return PlainTextResponse(f"{told}\n", denied.status, denied.headers)
    near = from_this_machine(scope.get("client"), scope.get("server"), headers_of(scope))
    return render(worker, status.Viewer(near, key))


def _too_many(seconds: int) -> Response:
    return PlainTextResponse(f"{why_barred(seconds)}\n", HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": str(seconds)})


async def _deny(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket before its handshake."""
    if "websocket.http.response" in scope.get("extensions", {}):
        # The guard adds these to answers to plain HTTP.
        response.headers.update(BROWSER_HEADERS)
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await send({"type": "websocket.close", "code": BAD_REQUEST.close_code})


class _Market:
    """One URL of market data over plain HTTP."""

    def __init__(self, workers: Workers, settings: Callable[[], Config], serve: Serve) -> None:
        self._workers = workers
        self._settings = settings
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._workers.use(self._settings()) as worker:
            await self._serve(worker, scope, receive, send)


class _Socket:
    """One URL as a plain ASGI app: Starlette's WebSocket object would take 5 KB for each connection."""

    def __init__(self, workers: Workers, settings: Callable[[], Config], endpoint: type[Endpoint]) -> None:
        self._workers = workers
        self._settings = settings
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._workers.use(self._settings()) as worker:
            needs_key = worker.entry.needs_key(scope, always=self._endpoint.always_key)
            if seconds := worker.entry.barred(scope, needs_key=needs_key):
                await _deny(_too_many(seconds), scope, receive, send)
                return
            await Session(worker, scope, receive, send).run(self._endpoint)


# The import reads no settings; they are read when the app starts.
app = create_app()
