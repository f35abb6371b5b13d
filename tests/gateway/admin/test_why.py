"""`/api/why` with a delay at each hop of a real feeder, gateway and client: the right one is named."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from unittest import mock

import msgspec
import pytest
import zmq

from gateway.admin.verdict import HOPS, Why
from gateway.sending.flushes import Flushes
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic
from tests.support.pages import Pages
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import DEADLINE, KEY, Rig, running_rig

CODE = "600519.SH"
TICK = quote_topic(CODE)
# Longer than a busy machine holds one of the threads now and then. The worker needs many turns for an answer, each of
# which is delayed.
DELAY = 0.2
DELAY_OF_TURN = 0.05
TIMES = 4
PAUSE = 0.01


@contextmanager
def nothing(rig: Rig) -> Iterator[None]:
    yield


@contextmanager
def slow_worker(rig: Rig) -> Iterator[None]:
    """Delay what the worker writes."""
    flush = Flushes.flush

    def late(flushes: Flushes) -> None:
        if flushes._pending:
            time.sleep(DELAY_OF_TURN)
        flush(flushes)

    with mock.patch.object(Flushes, "flush", late):
        yield


class Delayed:
    """A proxy of the address of market data that passes each message on later, once it is told to."""

    def __init__(self, address: str) -> None:
        self.slow = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._feeder = self._context.socket(zmq.XSUB)
        self._feeder.connect(address)
        self._workers = self._context.socket(zmq.XPUB)
        self.address = f"tcp://127.0.0.1:{self._workers.bind_to_random_port('tcp://127.0.0.1')}"
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        waiting: list[tuple[float, list[bytes]]] = []
        while not self._ended:
            while waiting and waiting[0][0] <= time.monotonic():
                self._workers.send_multipart(waiting.pop(0)[1])
            if self._workers.poll(0):
                self._feeder.send_multipart(self._workers.recv_multipart())
            if self._feeder.poll(1):
                late = DELAY if self.slow else 0.0
                waiting.append((time.monotonic() + late, self._feeder.recv_multipart()))
        self._context.destroy(linger=0)

    def close(self) -> None:
        self._ended = True
        self._thread.join()


class SlowLine:
    """A TCP proxy whose bytes from the client arrive later, once it is told to."""

    def __init__(self) -> None:
        self.slow = False
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
            for source, sink, late in ((upstream_reader, writer, False), (reader, upstream_writer, True)):
                task = asyncio.create_task(self._pass(source, sink, late))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, late: bool) -> None:
        try:
            while data := await source.read(65536):
                if late and self.slow:
                    await asyncio.sleep(DELAY)
                sink.write(data)
        except ConnectionError:
            return
        finally:
            sink.close()


class Publishing:
    """Ticks every 10 ms that have been on their way before for so many seconds, and in the source's callback."""

    def __init__(self, rig: Rig) -> None:
        self.travelled = 0.0
        self.held = 0.0
        self._rig = rig
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(PAUSE):
            called = time.time() - self.held
            tick = {"time": int((called - self.travelled) * 1000), "lastPrice": 1.0}
            self._rig.source.sink.publish(TICK, {CODE: [tick]}, int(called * 1e9))

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class Field:
    """A feeder, a gateway behind a proxy, and a client behind another one."""

    def __init__(self, rig: Rig, wire: Delayed, line: SlowLine, publishing: Publishing) -> None:
        self.rig = rig
        self.wire = wire
        self.line = line
        self.publishing = publishing
        self.client = ""

    def delayed(self, hop: str) -> ExitStack:
        """Delay one hop until the end of the context."""
        stack = ExitStack()

        def switch(owner: object, name: str, value: object, before: object) -> None:
            setattr(owner, name, value)
            stack.callback(setattr, owner, name, before)

        match hop:
            case "exchange_to_callback":
                switch(self.publishing, "travelled", DELAY, 0.0)
            case "callback_to_publish":
                switch(self.publishing, "held", DELAY, 0.0)
            case "publish_to_worker":
                switch(self.wire, "slow", True, False)
            case "worker_to_socket":
                stack.enter_context(slow_worker(self.rig))
            case "socket_to_client":
                switch(self.line, "slow", True, False)
        return stack


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Field]:
    config = Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), grace=0.0)
    async with AsyncExitStack() as stack:
        rig = stack.enter_context(running_rig(config))
        wire = Delayed(rig.config.market_addr)
        stack.callback(wire.close)
        server = await asyncio.to_thread(rig.serve, market_addr=wire.address)
        line = SlowLine()
        port = await stack.enter_async_context(line.to(server.port))
        client = await stack.enter_async_context(rig.connect("/ws/realtime", host="127.0.0.1", port=port))
        await client.subscribed(stocks=[CODE])

        async def read() -> None:
            async for _ in client.socket:
                pass

        publishing = Publishing(rig)
        stack.callback(publishing.close)
        reading = asyncio.create_task(read())
        yield Field(rig, wire, line, publishing)
        reading.cancel()


async def ask(field: Field, **parameters: object) -> Why:
    async with Pages(f"http://127.0.0.1:{field.rig.servers[0].port}") as client:
        response = await client.get(
            "/api/why",
            params={"code": CODE, "seconds": 3, **parameters},
            headers={"X-API-Key": KEY.encode()},
        )
    assert response.status_code == 200, response.text
    return msgspec.convert(response.json(), Why)


async def until_why(field: Field, holds: Callable[[Why], bool]) -> Why:
    deadline = time.monotonic() + DEADLINE
    while True:
        found = await ask(field)
        if holds(found):
            return found
        assert time.monotonic() < deadline, found


@pytest.mark.parametrize("hop", HOPS)
async def test_the_delayed_hop_is_named_each_time(field: Field, hop: str) -> None:
    with field.delayed(hop):
        # Messages that were on their way are gone then, and the client has answered late.
        await until_why(field, lambda found: found.late == hop)
        named = [(await ask(field)).late for _ in range(TIMES)]
    assert named == [hop] * TIMES


async def test_without_a_delay_no_hop_is_named(field: Field) -> None:
    found = await until_why(field, lambda found: found.late is None and found.messages > 0)
    assert (found.lost, found.verdict) == (None, "nothing is late or lost")
    assert [each.hop for each in found.hops][:4] == list(HOPS[:4])


async def test_client_is_looked_at_alone(field: Field) -> None:
    found = await ask(field)
    assert found.client is not None
    assert (await ask(field, client=found.client)).client == found.client
    other = await ask(field, client=f"{found.client[:8]}-999999")
    assert (other.topic, other.verdict) == (None, "no client has subscribed it")


async def test_topic_may_be_named_whole(field: Field) -> None:
    assert (await ask(field, code=TICK)).topic == TICK
    assert (await ask(field, code="quote/600519.SH/1m/")).topic is None
