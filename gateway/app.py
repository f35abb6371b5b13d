"""The ASGI app: the whole URL map on one screen, and the lifespan that holds the worker.

uvicorn gateway.app:app --workers 4
uvicorn --factory gateway.app:create_app
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from gateway import status
from gateway.endpoints import ENDPOINTS
from gateway.session import Endpoint, Session
from gateway.worker import Worker, Workers
from qmt_bridge.config import Config, load_config
from qmt_bridge.log import redact_server_logs

app: Starlette


def create_app(config: Config | None = None) -> Starlette:
    """Return the app; without `config` the settings come from the TOML file and the environment."""
    settings = config or load_config()
    workers = Workers()
    # Whatever server runs this app may log the query string that holds a key.
    redact_server_logs()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with workers.use(settings):
            yield

    def page(render: Callable[[Worker], Response]) -> Callable[[Request], object]:
        async def respond(_: Request) -> Response:
            async with workers.use(settings) as worker:
                return render(worker)

        return respond

    def socket(endpoint: type[Endpoint]) -> _Socket:
        return _Socket(workers, settings, endpoint)

    routes: list[BaseRoute] = [WebSocketRoute(path, socket(endpoint)) for path, endpoint in ENDPOINTS.items()]
    routes += [
        Route("/healthz", page(status.health)),
        Route("/readyz", page(status.readiness)),
        Route("/metrics", page(status.prometheus)),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class _Socket:
    """A URL as a bare ASGI app: Starlette's WebSocket object would cost 5 KB a connection."""

    def __init__(self, workers: Workers, config: Config, endpoint: type[Endpoint]) -> None:
        self._workers = workers
        self._config = config
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._workers.use(self._config) as worker:
            await Session(worker, scope, receive, send).run(self._endpoint)


def __getattr__(name: str) -> Starlette:
    # Made when a server asks for it, so that importing this module reads no settings.
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = create_app()
    return globals()["app"]  # type: ignore[no-any-return]
