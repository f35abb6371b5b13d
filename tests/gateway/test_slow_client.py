"""A client that reads late, over a real gateway: it gets the newest value, and is told how many it has not got."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.sending.window import FIRST
from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic, whole_topic
from tests.support.raw import opened
from tests.support.rig import DEADLINE, Rig, metrics, readiness, running_rig
from tests.support.waiting import until

TICK = quote_topic("600519.SH")
PUBLISHED = 2000
PING, PONG = 9, 10


class RawClient:
    """A WebSocket client that reads and answers pings only when a test says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        async with asyncio.timeout(DEADLINE):
            first, size = await self._reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self._reader.readexactly(2), "big")
            return first & 0x0F, await self._reader.readexactly(size)

    async def text(self) -> bytes:
        """Return the next text; answer the pings before it."""
        while True:
            opcode, payload = await self.receive()
            if opcode == PING:
                self.send(PONG, payload)
            else:
                return payload

    async def receive_until(self, wanted: int) -> None:
        """Read until a frame with the opcode `wanted`."""
        while (await self.receive())[0] != wanted:
            pass

    def send(self, opcode: int, payload: bytes) -> None:
        # A mask of zeros leaves the payload as it is.
        self._writer.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)


@asynccontextmanager
async def connected(rig: Rig, path: str) -> AsyncIterator[RawClient]:
    key = b64encode(os.urandom(16)).decode()
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    async with opened(rig.servers[0].port) as (reader, writer):
        writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        yield RawClient(reader, writer)


@pytest.fixture
def rig(config: Config) -> AsyncIterator[Rig]:  # type: ignore[misc]
    with running_rig(config, PreparedFrames) as rig:
        rig.serve(lag_target=0.2)
        yield rig  # type: ignore[misc]


async def subscribed(client: RawClient) -> None:
    client.send(1, json.dumps({"action": "subscribe", "stocks": ["600519.SH"]}).encode())
    while b'"subscribed"' not in await client.text():
        pass


def publish(rig: Rig, *numbers: int) -> None:
    for number in numbers or range(PUBLISHED):
        rig.source.publish(TICK, {"600519.SH": [{"n": number, "pad": "x" * 400}]})


async def publish_and_wait(rig: Rig) -> None:
    """Publish, and wait until the worker has received all of it."""
    port = rig.servers[0].port
    # The counters are those of the process, in which earlier tests had workers.
    before = metrics(port)["frames_received_total"]
    publish(rig)
    await until(lambda: metrics(port)["frames_received_total"] - before >= PUBLISHED, "all messages at the worker")


async def test_client_that_reads_late_gets_the_newest_and_the_count(rig: Rig) -> None:
    async with connected(rig, "/ws/realtime?ctl=1") as client:
        await subscribed(client)
        await publish_and_wait(rig)
        port = rig.servers[0].port
        await until(lambda: metrics(port)["slow_clients"] == 1, "a client that counts as slow")
        assert metrics(port)["client_lag_seconds"] > 0
        assert readiness(port)["slow_clients"] == 1
        numbers: list[int] = []
        skipped = 0
        while not numbers or numbers[-1] < PUBLISHED - 1:
            frame = json.loads(await client.text())
            if frame.get("type") == "skipped":
                skipped += frame["count"]
            elif "type" not in frame:
                numbers.append(frame["600519.SH"][0]["n"])
        while len(numbers) + skipped < PUBLISHED:
            frame = json.loads(await client.text())
            assert frame["type"] == "skipped"
            skipped += frame["count"]
        assert len(numbers) + skipped == PUBLISHED
        await until(lambda: metrics(port)["slow_clients"] == 0, "a client that has read all")
        # In flight was what a new client may have, although kernel buffers would have taken all of it.
        assert numbers == sorted(set(numbers))
        assert len(numbers) * 400 < 2 * FIRST


async def test_data_of_ours_is_no_reason_to_close(rig: Rig) -> None:
    async with connected(rig, "/ws/realtime?ctl=1") as slow, connected(rig, "/ws/realtime?ctl=1") as other:
        await subscribed(slow)
        await subscribed(other)
        publish(rig)
        number = -1
        while number < PUBLISHED - 1:
            frame = json.loads(await other.text())
            number = frame["600519.SH"][0]["n"] if "600519.SH" in frame else number
        pong = 0
        while not pong:
            opcode, payload = await slow.receive()
            if opcode == PING:
                slow.send(PONG, payload)
                pong += 1
        rig.source.publish(TICK, {"600519.SH": [{"n": "last"}]})
        while b'"last"' not in await slow.text():
            pass


async def test_client_that_answers_no_ping_is_dropped(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.serve(slow_timeout=0.5)
    rig.servers.reverse()
    with caplog.at_level(logging.INFO, "gateway.session"):
        async with connected(rig, "/ws/realtime?ctl=1") as client:
            await subscribed(client)
            publish(rig)
            await until(lambda: "1013 slow_client: nothing was read for" in caplog.text, "the end of the client")
    cut_off = 'cut_off_total{client="127.0.0.1"}'
    await until(lambda: metrics(rig.servers[0].port).get(cut_off, 0) >= 1, "a client that counts as cut off")


async def test_worst_client_is_aborted_when_all_outboxes_are_full(config: Config) -> None:
    with running_rig(config, PreparedFrames) as rig:
        port = rig.serve(lag_target=60.0, outbox_total_bytes=200_000).port
        async with connected(rig, "/ws/realtime?ctl=1") as silent, rig.connect("/ws/realtime") as reading:
            request = {"action": "subscribe", "stocks": ["600519.SH"], "mode": "all"}
            silent.send(1, json.dumps(request).encode())
            while b'"subscribed"' not in await silent.text():
                pass
            await reading.subscribed(stocks=["600519.SH"])
            for number in range(PUBLISHED):
                publish(rig, number)
                assert (await reading.receive())["600519.SH"][0]["n"] == number
            await until(lambda: metrics(port)['limited_total{limit="outbox_total_bytes"}'] >= 1, "the limit")
            await until(lambda: metrics(port)['connections{path="/ws/realtime"}'] == 1, "one client")
            await until(lambda: metrics(port)["waiting_bytes"] == 0, "nothing that waits")
            # Aborted: there is no close frame.
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await silent.receive_until(8)


def limited(port: int) -> float:
    return metrics(port).get('limited_total{limit="outbox_total_bytes"}', 0.0)


async def test_what_pacers_keep_counts_as_what_waits(config: Config) -> None:
    """An hour's pace keeps a record of each code of the market, and each client has its own."""
    market = whole_topic("SH")
    with running_rig(config, PreparedFrames) as rig:
        server = rig.serve(outbox_total_bytes=200_000)
        before = limited(server.port)
        async with rig.connect("/ws/whole_quote", server) as paced:
            await paced.send({"codes": ["SH"], "max_rate_ms": 3_600_000})
            await rig.wanted(market)
            records = {f"{600000 + number}.SH": {"text": "x" * 1000} for number in range(100)}
            # The first record of each code passes, and the newest one waits.
            rig.source.publish(market, records)
            while "600099.SH" not in await paced.receive():
                pass
            rig.source.publish(market, records)
            rig.source.publish(market, records)
            await until(lambda: 100_000 < metrics(server.port)["waiting_bytes"] < 120_000, "what waits")
            rig.source.publish(market, {f"{number:06}.SH": record for number, record in enumerate(records.values())})
            rig.source.publish(market, {f"{number:06}.SH": record for number, record in enumerate(records.values())})
            await until(lambda: limited(server.port) == before + 1, "the limit")
            await until(lambda: metrics(server.port)["waiting_bytes"] == 0, "nothing that waits")


class Program:
    """A program behind a library that reads without bound and answers pings at once, as a browser does."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._library = asyncio.ensure_future(self._read())
        self.numbers: list[int] = []
        self.skipped = 0

    async def _read(self) -> None:
        while True:
            self._queue.put_nowait(await self._client.text())

    def close(self) -> None:
        self._library.cancel()

    def ask(self, **request: object) -> None:
        self._client.send(1, json.dumps(request).encode())

    async def frame(self, kind: str) -> dict:
        """Return the next frame of this type."""
        while True:
            async with asyncio.timeout(DEADLINE):
                frame = json.loads(await self._queue.get())
            if frame["type"] == "skipped":
                self.skipped += frame["count"]
            if frame["type"] == kind:
                return frame

    async def process(self) -> dict:
        """Process the next data frame, and acknowledge it."""
        frame = await self.frame("data")
        self.numbers.append(frame["data"]["600519.SH"][0]["n"])
        self.ask(action="ack", seq=frame["seq"])
        return frame


@asynccontextmanager
async def program(rig: Rig) -> AsyncIterator[Program]:
    async with connected(rig, "/ws/realtime?ctl=1") as client:
        made = Program(client)
        try:
            made.ask(action="subscribe", stocks=["600519.SH"], seq=True)
            await made.frame("subscribed")
            yield made
        finally:
            made.close()


async def test_acks_measure_the_program_not_its_library(rig: Rig) -> None:
    port = rig.servers[0].port
    async with program(rig) as behind:
        for number in (-3, -2, -1):
            rig.source.publish(TICK, {"600519.SH": [{"n": number}]})
            await behind.process()
        behind.ask(action="ping", id=1)
        await behind.frame("pong")
        await publish_and_wait(rig)
        await until(lambda: metrics(port)["slow_clients"] == 1, "a client that counts as slow")
        while behind.numbers[-1] < PUBLISHED - 1:
            await behind.process()
        await until(lambda: metrics(port)["slow_clients"] == 0, "a client that has processed all")
        while len(behind.numbers) + behind.skipped < PUBLISHED + 3:
            await behind.frame("skipped")
        assert behind.numbers == sorted(behind.numbers)
        assert len(behind.numbers) + behind.skipped == PUBLISHED + 3
        assert behind.skipped > PUBLISHED / 2


@pytest.mark.parametrize("seq", [10**12, 0, -1])
async def test_acknowledgements_of_unknown_frames_change_nothing(rig: Rig, seq: int) -> None:
    async with program(rig) as client:
        for _ in range(3):
            client.ask(action="ack", seq=seq)
        for number in range(50):
            rig.source.publish(TICK, {"600519.SH": [{"n": number, "pad": "x" * 1000}]})
            await client.frame("data")
            client.ask(action="ack", seq=seq)
        client.ask(action="ping", id=1)
        await client.frame("pong")
        assert client.skipped == 0


async def test_a_frame_of_each_message_may_be_acknowledged(config: Config) -> None:
    with running_rig(config, PreparedFrames) as rig:
        rig.serve(max_rate=1)
        async with program(rig) as client:
            for number in range(100):
                rig.source.publish(TICK, {"600519.SH": [{"n": number}]})
                await client.process()
            client.ask(action="ping", id=1)
            await client.frame("pong")
            for _ in range(10):
                client.ask(action="ack", seq=10**12)
            assert (await client.frame("error"))["code"] == "rate_limited"


async def test_an_acknowledgement_names_a_number(rig: Rig) -> None:
    async with program(rig) as client:
        for wrong in ({}, {"seq": "7"}, {"seq": 1.5}, {"seq": None}):
            client.ask(action="ack", id=7, **wrong)
            error = await client.frame("error")
            assert (error["code"], error["id"]) == ("bad_request", 7)
        client.ask(action="ack", seq=1, sequence=2)
        assert (await client.frame("error"))["field"] == "sequence"
