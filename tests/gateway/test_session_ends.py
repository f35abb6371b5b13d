"""How sessions end: once, for the first reason, and without a frame to a client that has not shown its key."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from websockets import ConnectionClosed

from gateway.costs.budget import Budget
from gateway.costs.slices import Slices
from gateway.costs.turns import Turns
from gateway.counters import SentByPath
from gateway.keys.entry import Entry
from gateway.sending.flushes import Flushes
from gateway.sending.pool import Pool
from gateway.session import Ended, Session
from gateway.session_state import State
from qmt_bridge.closes import BAD_REQUEST, FINISHED, INTERNAL, SLOW_CLIENT
from qmt_bridge.config import Config
from qmt_bridge.keys.key import Scope
from tests.support.rig import KEY, Rig
from tests.support.waiting import SLOWNESS, until

DEADLINE = 30.0 * SLOWNESS


class Server:
    """The ASGI side of one socket: what the test says the client sends, and what the session sends."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received.put_nowait({"type": "websocket.connect"})
        self.sent: list[dict[str, Any]] = []
        # Whether the client reads.
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            await self.reads.wait()
        self.sent.append(message)

    @property
    def close(self) -> tuple[int, str] | None:
        return next(((m["code"], m["reason"]) for m in self.sent if m["type"] == "websocket.close"), None)

    @property
    def frames(self) -> list[str]:
        return [message["text"] for message in self.sent if message["type"] == "websocket.send"]


class Endpoint:
    """Ends its session, or fails, as a request says."""

    always_key: ClassVar[bool] = False
    scope: ClassVar[Scope] = "market"
    opts_in: ClassVar[frozenset[str]] = frozenset()
    parameters: ClassVar[tuple[str, ...]] = ()
    first_request_timeout: ClassVar[float | None] = None
    to_files: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        self.session = session

    async def handle(self, request: dict[str, Any]) -> None:
        if "end" in request:
            self.session.end(Ended(BAD_REQUEST, "the first reason"))
        if "raise" in request:
            raise Ended(INTERNAL, "the second reason")
        if "fail" in request:
            raise LookupError


class Private(Endpoint):
    always_key: ClassVar[bool] = True


def made(server: Server, query: bytes = b"") -> Session:
    config = Config(api_key=KEY, data_dir="nowhere")
    host: Any = SimpleNamespace(
        config=config,
        entry=Entry(config),
        sent=SentByPath(),
        flushes=Flushes(),
        pool=Pool(2**30, lambda: None),
        budget=Budget(1e6, 1000, 0.0),
        limited=Counter(),
        slices=Slices(),
        turns=Turns(),
        opening_turns=Turns(),
        sessions={},
        welcome=lambda: {"type": "welcome"},
        note=lambda kind, text: None,
    )
    scope: Any = {"path": "/ws/x", "query_string": query, "headers": [], "scheme": "ws"}
    return Session(host, scope, server.received.get, server.send)


async def finished(running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE):
        await running


def text(request: str) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": request}


async def test_second_end_does_not_disturb_the_close() -> None:
    server = Server()
    session = made(server)
    server.reads.clear()
    running = asyncio.create_task(session.run(Endpoint))
    await until(lambda: session._state is State.OPEN)
    session.end(Ended(FINISHED, "done"))
    await until(lambda: session._state is State.CLOSING)
    for _ in range(3):
        session.end(Ended(SLOW_CLIENT, "too late"))
        await asyncio.sleep(0)
    server.reads.set()
    await finished(running)
    assert server.close == (1000, "done")
    assert session.host.sessions == {}


@pytest.mark.parametrize(
    ("request_", "close"),
    [
        ('{"end": 1}', (1008, "bad_request: the first reason")),
        ('{"end": 1, "raise": 1}', (1008, "bad_request: the first reason")),
        ('{"end": 1, "fail": 1}', (1008, "bad_request: the first reason")),
        ('{"raise": 1}', (1011, "internal: the second reason")),
        ('{"fail": 1}', (1011, "internal: internal error")),
    ],
)
async def test_first_reason_in_a_request_closes_the_socket(request_: str, close: tuple[int, str]) -> None:
    server = Server()
    session = made(server)
    server.received.put_nowait(text(request_))
    server.received.put_nowait(text(request_))
    await finished(asyncio.create_task(session.run(Endpoint)))
    assert server.close == close
    assert len(server.frames) == 1
    assert session._state is State.ABORTED


async def test_server_that_stops_does_not_wait_for_a_close() -> None:
    server = Server()
    session = made(server)
    server.reads.clear()
    running = asyncio.create_task(session.run(Endpoint))
    await until(lambda: session._state is State.OPEN)
    session.end(Ended(FINISHED, "done"))
    await until(lambda: session._state is State.CLOSING and not session.sender.gone)
    await asyncio.sleep(0)
    running.cancel()
    await finished(running)
    assert session._state is State.ABORTED


@pytest.mark.parametrize(
    "first",
    [
        pytest.param({"type": "websocket.receive", "bytes": b"x"}, id="binary"),
        pytest.param({"type": "websocket.receive", "text": "x" * 70_000}, id="too-large"),
        pytest.param(text('{"action": "auth", "key": "wrong"}'), id="wrong-key"),
    ],
)
async def test_client_without_its_key_is_told_nothing(first: dict[str, Any]) -> None:
    server = Server()
    session = made(server, b"ctl=1")
    running = asyncio.create_task(session.run(Private))
    await until(lambda: session.opted_in)
    for notice in ("heartbeat", "feed"):
        session.tell({"type": notice})
    session.tell_closing()
    server.received.put_nowait(first)
    await finished(running)
    assert server.close is not None
    assert server.frames == []


async def test_notice_of_the_feeder_reaches_only_clients_with_a_key(rig: Rig) -> None:
    async with rig.connect("/ws/trade?ctl=1") as stranger, rig.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["type"] == "welcome"
        rig.source.sink.set_state("down", "gone")
        assert (await client.receive())["type"] == "feed"
        await stranger.send({"action": "auth", "key": "wrong"})
        frames = []
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionClosed):
                while True:
                    frames.append(await stranger.socket.recv())
        assert frames == []
        assert stranger.socket.close_code == 1008
