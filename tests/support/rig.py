"""A real feeder and a real uvicorn with the app; a test controls the source."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import uvicorn
import websockets
from websockets.asyncio.client import ClientConnection, connect

from feeder.app import Feeder
from feeder.source import DownloadRequest, Health, Sink
from gateway.app import create_app
from gateway.connections.handshake import Handshake
from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.wire.topics import Kind, Topic, TopicParts
from tests.support.contract import documented
from tests.support.waiting import DEADLINE, until, wait_for

KEY = "k&y+密#1-of-the-rig"


class HandDriven:
    """A source that serves every code but 999999.SZ, and publishes what the test tells it to."""

    name = "hand"
    simulated = True
    lossless = False
    kinds = frozenset(Kind) - {Kind.STATUS}

    def __init__(self) -> None:
        self.wanted: list[Topic] = []
        self.downloads: list[DownloadRequest] = []
        self.condition = Health()
        # Questions for a history, and how they are answered; None: there is none.
        self.asked: list[tuple[int, Topic, int]] = []
        self.past: Callable[[int, Topic], object] | None = None
        # What it lacks for each capability; None: it fails to say so.
        self.lacks: dict[str, str] | None = {}

    def start(self, sink: Sink) -> None:
        self.sink = sink
        sink.set_state("up")

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        if "999999.SZ" in parts.name:
            raise Refused("unknown_symbol", "unknown code '999999.SZ'")
        self.wanted.append(topic)
        self.sink.accept(topic)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.wanted.remove(topic)

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        self.downloads.append(request)
        for number, code in enumerate(request.stocks, 1):
            total = len(request.stocks)
            progress = {"finished": number, "total": total, "stockcode": code, "message": ""}
            self.sink.publish(topic, progress, time.time_ns())
        if "600000.SH" in request.stocks:
            failed = {"600000.SH": "no data"}
            end = {"status": "error", "type": "error", "code": "upstream_refused", "error": "failed", "failed": failed}
            self.sink.publish(topic, end, time.time_ns())
        else:
            self.sink.publish(topic, {"status": "done"}, time.time_ns())

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        if self.past is None:
            raise Refused("upstream_refused", "a hand has no history")
        self.asked.append((number, topic, day_ms))
        self.past(number, topic)

    def health(self) -> Health:
        return self.condition

    def upstream(self) -> int:
        return len(self.wanted)

    def capabilities(self) -> dict[str, str]:
        assert self.lacks is not None
        return self.lacks

    def close(self) -> None:
        pass

    def publish(self, topic: Topic, body: object) -> None:
        self.sink.publish(topic, body, time.time_ns())

    def trade(self, event: str, **data: object) -> None:
        self.sink.publish_trade("1000000365", event, data, time.time_ns())


class Server:
    """uvicorn in a thread, with its own event loop, on a free port."""

    def __init__(self, config: Config, ws: Any) -> None:
        settings = uvicorn.Config(
            create_app(config),
            port=0,
            http=Handshake,
            ws=ws,
            loop="gateway.server:new_event_loop",
            lifespan="on",
            log_config=None,
            proxy_headers=False,
            ws_max_size=2 * 1024 * 1024,
            ws_per_message_deflate=config.deflate,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> None:
        self._thread.start()
        wait_for(lambda: self._server.started, "the server")
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    def ask_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.ask_to_stop()
        self._thread.join()


class Rig:
    """A feeder with its source, gateway servers, and WebSocket clients of them."""

    def __init__(self, config: Config, ws: Any = PreparedFrames) -> None:
        self.config = config
        self.ws = ws
        self.servers: list[Server] = []
        self.start_feeder()

    def start_feeder(self) -> None:
        self.source = HandDriven()
        self.feeder = Feeder(self.config, self.source)
        self.feeder.start()
        self.note_addresses()

    def note_addresses(self, **others: str) -> None:
        """Keep the ports that the system has chosen: a restarted feeder has to use the same ones."""
        publisher = self.feeder.publisher
        self.config = _with(
            self.config,
            market_addr=publisher.market_addr,
            trade_addr=publisher.trade_addr,
            ask_addr=publisher.ask_addr,
            trade_ask_addr=publisher.trade_ask_addr,
            **others,
        )

    def serve(self, **changes: object) -> Server:
        server = Server(_with(self.config, **changes), self.ws)
        server.start()
        self.servers.append(server)
        wait_for(lambda: readiness(server.port)["feed"] == "up", "the feeder to be seen")
        return server

    def close(self) -> None:
        # All stop at the same time, because each takes a tenth of a second or two.
        for server in self.servers:
            server.ask_to_stop()
        self.feeder.stop()
        for server in self.servers:
            server.stop()

    @asynccontextmanager
    async def connect(self, path: str, server: Server | None = None, **options: Any) -> AsyncIterator[Client]:
        port = (server or self.servers[0]).port
        # The name by which the client reaches the server.
        named = options.pop("named", None)
        if named is not None:
            options |= {"host": "127.0.0.1", "port": port}
        # websockets does not read while its queue is full: it would wait ten seconds for the answer to its close.
        options.setdefault("close_timeout", 0.2)
        async with connect(
            f"ws://{named or f'127.0.0.1:{port}'}{path}", max_size=None, proxy=None, **options
        ) as socket:
            yield Client(socket)

    def lose(self, topic: Topic, body: object) -> None:
        """Publish a message that reaches no subscriber, as with a full socket; the feeder keeps and counts it."""
        publisher = self.feeder.publisher
        transmit, lost = publisher._transmit, threading.Event()

        def drop(*_: object) -> None:
            publisher._transmit = transmit  # type: ignore[method-assign]
            lost.set()

        publisher._transmit = drop  # type: ignore[method-assign]
        self.source.publish(topic, body)
        assert lost.wait(DEADLINE)

    async def wanted(self, topic: Topic) -> None:
        await until(lambda: topic in self.source.wanted, f"a subscription of {topic}")

    async def unwanted(self, topic: Topic) -> None:
        await until(lambda: topic not in self.source.wanted, f"the end of the subscription of {topic}")


class Client:
    """A WebSocket client that speaks JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, request: object) -> None:
        await self.socket.send(json.dumps(request))

    async def receive(self) -> Any:
        """Return the next frame, which has to be a documented one; bodies are what the test publishes."""
        async with asyncio.timeout(DEADLINE):
            frame = json.loads(await self.socket.recv())
        assert self.socket.request is not None
        return documented(self.socket.request.path, frame, invented=True)

    async def subscribed(self, **request: Any) -> dict[str, Any]:
        """Subscribe and return the ack. After it every message is sent; before it the last value may be enough."""
        await self.send({"action": "subscribe", "id": 1, **request})
        ack: dict[str, Any] = await self.receive()
        while ack.get("type") == "heartbeat":
            # A busy machine may take longer than 15 s between two frames.
            ack = await self.receive()
        assert ack.get("type", ack.get("action")) == "subscribed", ack
        return ack

    async def closed(self) -> tuple[int | None, str]:
        """Return close code and reason; fail if the socket stays open."""
        async with asyncio.timeout(DEADLINE):
            try:
                while True:
                    await self.socket.recv()
            except websockets.ConnectionClosed:
                return self.socket.close_code, self.socket.close_reason or ""


def _with(config: Config, **changes: object) -> Config:
    return msgspec.structs.replace(config, **changes)


def readiness(port: int) -> dict[str, Any]:
    """Return the content of one worker's /readyz."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({}), _Any()).open(
        f"http://127.0.0.1:{port}/readyz", timeout=DEADLINE
    ) as response:
        shown: dict[str, Any] = json.load(response)
        return shown


def metrics(port: int) -> dict[str, float]:
    """Return the samples of /metrics."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as response:
        lines = response.read().decode().splitlines()
    samples = (line.removeprefix("qmt_bridge_").rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


class _Any(urllib.request.HTTPErrorProcessor):
    """Accepts an answer with status 503 like any other."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response


@contextmanager
def running_rig(config: Config, ws: Any = PreparedFrames) -> Iterator[Rig]:
    rig = Rig(config, ws)
    try:
        yield rig
    finally:
        rig.close()
