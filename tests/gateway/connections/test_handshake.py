"""Connections before they are WebSockets: half-open, oversized and idle ones (gateway/connections/handshake.py)."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.connections import descriptors, handshake, intake
from gateway.connections.handshake import Handshake
from gateway.connections.opening import HEAD_BYTES
from tests.support.raw import HEADERS, TEXT, Raw, frame, opened, raw_socket
from tests.support.rig import DEADLINE, Rig, Server, metrics
from tests.support.waiting import until


def test_uvicorn_protocol_has_the_attributes_that_we_use() -> None:
    source = inspect.getsource(H11Protocol)
    for attribute in ("self.cycle: ", "self.flow.pause_reading()", "def on_response_complete", "self.transport = "):
        assert attribute in source
    assert "self.transport.set_protocol(protocol)" in inspect.getsource(H11Protocol.handle_websocket_upgrade)


async def exchange(server: Server, *data: bytes) -> bytes:
    """Send `data` and return all that the server answers until it closes."""
    async with asyncio.timeout(DEADLINE), opened(server.port) as (reader, writer):
        writer.writelines(data)
        return await reader.read()


def upgrade(path: str = "/ws/realtime", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\n{HEADERS}{more}\r\n".encode()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (upgrade(more=f"X-Long: {'a' * 8192}\r\n"), b"431", b"a header has at most"),
        (upgrade(more="".join(f"X-{number}: a\r\n" for number in range(128))), b"431", b"at most 64 headers"),
        (upgrade(more="".join(f"X-{number}: a\r\n" for number in range(60))), b"431", b"at most 64 headers"),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"411",
            b"takes a body",
        ),
        (upgrade(more="Content-Length: 5\r\n") + b"abcde", b"400", b"has no body"),
        (upgrade(more="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", b"411", b"takes a body"),
        (upgrade(f"/ws/realtime?{'a' * 9000}"), b"414", b"a URL has at most"),
        (
            b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
            b"413",
            b"a body has at most",
        ),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 3_000_000, b"431", b"a header has at most"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400", b"wss://"),
        (b"hello\r\n\r\n", b"400", b"Invalid HTTP request"),
        (upgrade().replace(b"Version: 13", b"Version: 12"), b"426", b"Sec-WebSocket-Version"),
        (upgrade().replace(b"Sec-WebSocket-Version: 13\r\n", b""), b"400", b"Sec-WebSocket-Version"),
        (upgrade().replace(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n", b""), b"400", b"Sec-WebSocket-Key"),
        (upgrade().replace(b"GET", b"POST"), b"405", b"unsupported HTTP method"),
    ],
)
async def test_request_that_is_not_served_is_told_why(rig: Rig, data: bytes, status: bytes, words: bytes) -> None:
    answer = await exchange(rig.servers[0], data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status), answer
    assert words in body
    if rig.ws != "auto":
        assert b"Content-Security-Policy: default-src 'none'" in head
        assert b"X-Content-Type-Options: nosniff" in head


@pytest.mark.parametrize("path", ["/ws/realtime", "/nowhere"])
async def test_client_that_leaves_in_the_handshake_is_no_error(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # The app has set filters when it started.
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])
    if rig.ws == "auto":
        pytest.skip("uvicorn's own WebSocket class logs it, which the log's filter drops")
    server = rig.servers[0]
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            async with opened(server.port) as (_, writer):
                writer.write(upgrade(path))
        answer = await exchange(server, upgrade("/nowhere"))
        assert answer.startswith(b"HTTP/1.1 404")
        await until(lambda: not server._server.server_state.connections, "the end of all connections")
        await until(lambda: not server._server.server_state.tasks, "the end of all sessions")
    assert [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"] == []


async def test_handshake_of_another_version_is_told_ours(rig: Rig) -> None:
    answer = await exchange(rig.servers[0], upgrade().replace(b"Version: 13", b"Version: 8"))
    status, *headers = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert status == b"HTTP/1.1 426 Upgrade Required"
    assert {b"Sec-WebSocket-Version: 13", b"Upgrade: websocket"} <= set(headers)


async def test_connection_without_a_whole_request_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "REQUEST_TIMEOUT", 0.3)
    monkeypatch.setattr(handshake, "limited", Counter())
    server = rig.serve()
    silent = asyncio.create_task(exchange(server))
    begun = asyncio.create_task(exchange(server, upgrade()[:-2]))
    body = asyncio.create_task(
        exchange(server, b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc")
    )
    second = asyncio.create_task(exchange(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"))
    for task in (begun, body):
        assert (await task).startswith(b"HTTP/1.1 408")
    assert (await second).count(b"HTTP/1.1 ") == 2
    with contextlib.suppress(ConnectionResetError):
        assert await silent == b""
    await until(lambda: not server._server.server_state.connections, "the end of all connections")
    shown = await asyncio.to_thread(metrics, server.port)
    # Exported counts are those of all tests of this process.
    assert handshake.limited == {"handshakes": 4}
    assert shown['limited_total{limit="handshakes"}'] >= 4


async def test_byte_after_byte_does_not_gain_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "REQUEST_TIMEOUT", 0.3)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        for byte in upgrade() * 100:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)

    async with asyncio.timeout(DEADLINE), opened(rig.serve().port) as (reader, writer):
        trickling = asyncio.create_task(trickle(writer))
        try:
            assert b" 408 " in await reader.read()
            assert not trickling.done()
        finally:
            trickling.cancel()


async def test_good_clients_pass_many_half_open_connections(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "DROPPED_AT_ONCE", 10)
    server = rig.servers[0]
    async with AsyncExitStack() as connections, rig.connect("/ws/realtime") as client:
        for number in range(100):
            _, writer = await connections.enter_async_context(opened(server.port))
            writer.write(b"GET /ws/realtime HTTP/1.1\r\n" if number % 2 else b"")
        await client.subscribed(stocks=["600519.SH"])
        deadlines: handshake.Deadlines = server._server.server_state.deadlines  # type: ignore[attr-defined]
        await until(lambda: len(deadlines._ends) == 100, "the connections")
        waiting = [each for each in server._server.server_state.connections if isinstance(each, Handshake)]
        # uvicorn's part of the protocol, which takes 3 KB, is made with a whole request.
        assert [each.made for each in waiting] == [False] * 100
        for connection in deadlines._ends:
            deadlines._ends[connection] = 0.0
        # The next one plans the timer anew.
        assert deadlines._timer is not None
        deadlines._loop.call_soon_threadsafe(deadlines._expire)
        await until(lambda: not deadlines._ends, "the end of the connections")
        await client.send({"action": "ping", "id": 5})
        assert (await client.receive())["id"] == 5


async def test_stop_closes_connections_without_a_request(rig: Rig) -> None:
    server = rig.serve()
    async with asyncio.timeout(DEADLINE), opened(server.port) as (reader, writer):
        writer.write(upgrade()[:-2])
        await until(lambda: len(server._server.server_state.connections) == 1, "the connection")
        server.ask_to_stop()
        assert await reader.read() == b""


async def test_requests_in_one_segment_are_answered_in_order(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    monkeypatch.setattr(handshake, "PAGE_COST", 0.0)
    answer = await exchange(rig.servers[0], get * 1000 + last)
    assert answer.count(b"HTTP/1.1 200") == 1000
    assert answer.count(b"HTTP/1.1 404") == 1
    assert len(get) * 1000 > HEAD_BYTES


async def test_requests_beyond_the_share_of_a_connection_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "PAGE_COST", intake.BURST)
    monkeypatch.setattr(handshake, "SOCKET_SHARE", 1e-6)
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    server = rig.servers[0]._server.server_state
    async with opened(rig.servers[0].port) as (_, writer):
        writer.write(get * 20_000)
        # The second answer is the last one for hours.
        await until(
            lambda: any(isinstance(each, Handshake) and each.paused for each in list(server.connections)), "a pause"
        )
        async with rig.connect("/ws/realtime") as client:
            await client.send({"action": "ping", "id": 5})
            assert (await client.receive())["id"] == 5
        (waiting,) = (each for each in list(server.connections) if isinstance(each, Handshake))
        assert waiting.paused
        # No more is received meanwhile than the read that went beyond the limit, at most 256 KiB.
        assert HEAD_BYTES < len(waiting.opening) <= HEAD_BYTES + 256 * 1024


async def test_frames_behind_the_handshake_are_served(rig: Rig) -> None:
    if rig.ws == "auto":
        pytest.skip("uvicorn's own WebSocket class may parse them before the session has accepted")
    async with asyncio.timeout(DEADLINE), opened(rig.servers[0].port) as (reader, writer):
        writer.write(upgrade() + frame(TEXT, b'{"action":"ping","id":1}'))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        opcode, payload = await Raw(reader, writer).frame()
        assert (opcode, b'"id":1' in payload) == (TEXT, True)


async def test_oldest_connection_makes_room_if_descriptors_run_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = rig.servers[0]
    async with asyncio.timeout(DEADLINE), opened(server.port) as (waiting, kept):
        address = kept.get_extra_info("sockname")
        deadlines: handshake.Deadlines = server._server.server_state.deadlines  # type: ignore[attr-defined]
        await until(
            lambda: [each.transport.get_extra_info("peername") for each in list(deadlines._ends)] == [address],
            "the connection",
        )
        monkeypatch.setattr(descriptors.Descriptors, "scarce", lambda *_: True)
        with caplog.at_level(logging.WARNING):
            async with rig.connect("/ws/realtime") as client:
                await client.send({"action": "ping", "id": 5})
                assert (await client.receive())["id"] == 5
        with contextlib.suppress(ConnectionResetError):
            assert await waiting.read() == b""
    assert "1 connections refused: this process has hardly any file descriptor left" in caplog.text


async def test_one_address_takes_no_more_than_its_share(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors.Descriptors, "share", lambda _: 3)
    port = rig.servers[0].port
    async with asyncio.timeout(DEADLINE), AsyncExitStack() as stack:
        bare = [await stack.enter_async_context(opened(port, local_addr=("127.0.0.2", 0))) for _ in range(3)]
        # Another address has a share of its own, and who has sent a request does not count.
        other = await stack.enter_async_context(opened(port))
        for _ in range(5):
            await stack.enter_async_context(raw_socket(port))
        for _ in range(2):
            bare.append(await stack.enter_async_context(opened(port, local_addr=("127.0.0.2", 0))))
        for reader, _ in bare[:2]:
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        for reader, writer in (*bare[2:], other):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    deadlines: handshake.Deadlines = rig.servers[0]._server.server_state.deadlines  # type: ignore[attr-defined]
    await until(lambda: not deadlines._bare and not deadlines._addresses, "the end of all connections")
