"""Connections that a loop does not take itself (gateway/loop/acceptor.py)."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.loop import acceptor as acceptor_module
from gateway.loop.acceptor import Acceptor
from tests.support.authority import Authority
from tests.support.waiting import until


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def listening() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen(100)
    return bound


async def echoed(port: int, context: ssl.SSLContext | None = None) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"hello")
    said = await reader.readexactly(5)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return said


async def test_many_connections_are_served() -> None:
    with listening() as bound:
        taken = Acceptor(asyncio.get_running_loop(), Echo, bound)
        assert taken.sockets == (bound,)
        port = bound.getsockname()[1]
        assert set(await asyncio.gather(*(echoed(port) for _ in range(200)))) == {b"hello"}
        taken.close()
        await taken.wait_closed()


async def test_open_connections_stay_when_it_closes() -> None:
    with listening() as bound:
        taken = Acceptor(asyncio.get_running_loop(), Echo, bound)
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        taken.close()
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        writer.close()
        await writer.wait_closed()


async def test_connections_have_tls_and_a_bad_handshake_ends_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.cert, authority.key)
    failures: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, failed: failures.append(failed))
    with listening() as bound:
        port = bound.getsockname()[1]
        taken = Acceptor(loop, Echo, bound, context, 10.0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"no TLS at all\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
        assert await echoed(port, ssl.create_default_context(cafile=authority.ca)) == b"hello"
        taken.close()
    assert failures == []


def test_two_loops_share_one_listening_socket() -> None:
    """Each connection is served once, by whoever takes it first, as the workers of a gateway do."""
    served: list[str] = []
    stop = threading.Event()

    class Named(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            served.append(threading.current_thread().name)

    def serve(bound: socket.socket) -> None:
        async def run() -> None:
            taken = Acceptor(asyncio.get_running_loop(), Named, bound)
            await until(stop.is_set)
            taken.close()

        asyncio.run(run())

    async def connect(port: int) -> None:
        assert set(await asyncio.gather(*(echoed(port) for _ in range(100)))) == {b"hello"}

    with listening() as bound, bound.dup() as again:
        threads = [threading.Thread(target=serve, args=(each,)) for each in (bound, again)]
        for thread in threads:
            thread.start()
        try:
            asyncio.run(connect(bound.getsockname()[1]))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert len(served) == 100


async def test_it_waits_when_the_system_has_no_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(acceptor_module, "AGAIN", 0.05)

    class Full(socket.socket):
        attempts = 0

        def accept(self) -> Any:
            Full.attempts += 1
            if Full.attempts == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with listening() as plain, Full(fileno=plain.detach()) as bound, caplog.at_level(logging.ERROR):
        taken = Acceptor(asyncio.get_running_loop(), Echo, bound)
        assert await echoed(bound.getsockname()[1]) == b"hello"
        taken.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no connection can be taken for 0.05 s: [Errno 24] Too many open files"
    ]


async def test_a_client_that_resets_is_no_error() -> None:
    failures: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, failed: failures.append(failed))
    made: list[Echo] = []

    def make() -> Echo:
        made.append(Echo())
        return made[-1]

    with listening() as bound:
        taken = Acceptor(loop, make, bound)
        with socket.create_connection(bound.getsockname()) as client:
            await until(lambda: made and hasattr(made[0], "transport"))
            # A reset instead of an end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: made[0].transport.is_closing())
        taken.close()
    assert failures == []
