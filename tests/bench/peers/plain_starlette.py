"""The usual program with Starlette: one task reads ZeroMQ and awaits `send_text` for one client after the other."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import zmq
import zmq.asyncio
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from qmt_bridge.config import load_config

subscribers: dict[str, set[WebSocket]] = defaultdict(set)


async def realtime(websocket: WebSocket) -> None:
    """Subscribe a client."""
    await websocket.accept()
    stocks = json.loads(await websocket.receive_text())["stocks"]
    for code in stocks:
        if not subscribers[code]:
            app.state.market.subscribe(f"quote/{code}/tick/")
        subscribers[code].add(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        for code in stocks:
            subscribers[code].discard(websocket)


async def broadcast() -> None:
    """Send every tick to the clients that subscribe its code."""
    while True:
        head, body = await app.state.market.recv_multipart()
        text = body.decode()
        for websocket in tuple(subscribers[head.split(b"/")[1].decode()]):
            try:
                await websocket.send_text(text)
            except (WebSocketDisconnect, RuntimeError):
                continue


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Keep the ZeroMQ socket, and the task that reads it, while the app runs."""
    context = zmq.asyncio.Context()
    app.state.market = context.socket(zmq.SUB)
    app.state.market.sndhwm = 0
    app.state.market.rcvhwm = 20_000
    app.state.market.connect(load_config().market_addr)
    task = asyncio.create_task(broadcast())
    yield
    task.cancel()
    context.destroy(linger=0)


app = Starlette(routes=[WebSocketRoute("/ws/realtime", realtime)], lifespan=lifespan)
