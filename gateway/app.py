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
from gateway.access.guard import Guard
from gateway.access.peers import from_this_machine
from gateway.auth import presented_key
from gateway.connections.opening import BROWSER_HEADERS
from gateway.endpoints import ENDPOINTS
from gateway.session import Endpoint, Session
from gateway.worker import Worker, Workers
from qmt_bridge.closes import BAD_REQUEST
from qmt_bridge.config import Config, load_config
from qmt_bridge.log import tame_server_logs
from qmt_bridge.wire.hints import similar


def create_app(config: Config | None = None) -> Starlette:
    """Return the app; without `config` it reads the TOML file and the environment when it starts."""
    workers = Workers()

    @cache
    def settings() -> Config:
        # Every ASGI server may log the query string, which may hold a key.
        tame_server_logs()
        return config or load_config()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workers.use(settings()):
            yield

    def page(render: status.Page) -> Callable[[Request], object]:
        async def respond(request: Request) -> Response:
            async with workers.use(settings()) as worker:
                return render(worker, _may_see_all(request, worker))

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
    app = _App(settings, routes, lifespan)
    app.router.default = _nowhere
    return app


def _may_see_all(request: Request, worker: Worker) -> bool:
    """Return whether a client may see the numbers and states of the gateway, and not only whether it works."""
    if from_this_machine(request.scope.get("client"), request.scope.get("server"), request.headers):
        return True
    key = presented_key(request.headers, (), request.scope["query_string"])
    return key is not None and worker.keys.accepts(key)


class _App(Starlette):
    """Starlette with the guard around everything: its own middlewares are inside of what answers a failure."""

    def __init__(self, settings: Callable[[], Config], routes: list[BaseRoute], lifespan: Lifespan[Starlette]) -> None:
        super().__init__(routes=routes, lifespan=lifespan)
        self._settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        return Guard(super().build_middleware_stack(), self._settings)


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
    nearest = next(iter(similar(path.removesuffix("/"), ENDPOINTS)), None)
    hint = f"did you mean {nearest}?" if nearest else f"the WebSockets are {', '.join(ENDPOINTS)}"
    response = PlainTextResponse(f"there is nothing at {path[:_SHOWN]!r}; {hint}\n", HTTPStatus.NOT_FOUND)
    if scope["type"] == "http":
        await response(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        # The guard adds these to answers to plain HTTP.
        response.headers.update(BROWSER_HEADERS)
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await send({"type": "websocket.close", "code": BAD_REQUEST.close_code})


class _Socket:
    """One URL as a plain ASGI app: Starlette's WebSocket object would take 5 KB for each connection."""

    def __init__(self, workers: Workers, settings: Callable[[], Config], endpoint: type[Endpoint]) -> None:
        self._workers = workers
        self._settings = settings
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._workers.use(self._settings()) as worker:
            await Session(worker, scope, receive, send).run(self._endpoint)


# The import reads no settings; they are read when the app starts.
app = create_app()
