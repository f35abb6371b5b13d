"""A WebSocket client that writes the bytes that a test gives it, right or wrong."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.waiting import SLOWNESS

TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
DEADLINE = 30.0 * SLOWNESS
# Of the request, besides its first line.
HEADERS = (
    "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    """Return a frame of a client; `reserved` are the three reserved bits."""
    head = (0x80 if fin else 0) | reserved << 4 | opcode
    mask = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        header = bytes((head, mask | size))
    elif size < 65536:
        header = bytes((head, mask | 126)) + struct.pack("!H", size)
    else:
        header = bytes((head, mask | 127)) + struct.pack("!Q", size)
    # A mask of zeros leaves the payload as it is.
    return header + (bytes(4) if masked else b"") + payload


class Raw:
    """One connection after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame of the server."""
        async with asyncio.timeout(DEADLINE):
            head, size = await self.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return head & 0x0F, await self.reader.readexactly(size)

    async def frames(self) -> list[tuple[int, bytes]]:
        """Return all frames until the server closes, the close frame being the last if there is one."""
        found = []
        try:
            while True:
                found.append(await self.frame())
                if found[-1][0] == CLOSE:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        return found

    async def close_code(self) -> int | None:
        """Return the code with which the server closes; 1005 if it gives none, None without a close frame."""
        opcode, payload = (await self.frames() or [(0, b"")])[-1]
        if opcode != CLOSE:
            return None
        return int.from_bytes(payload[:2], "big") if payload else 1005


@asynccontextmanager
async def opened(port: int, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a TCP connection, with options of create_connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    try:
        yield reader, writer
    finally:
        # close() waits until all is written; a loop that ends before that leaves the socket open.
        writer.transport.abort()


@asynccontextmanager
async def raw_socket(port: int, path: str = "/ws/realtime", headers: str = "") -> AsyncIterator[Raw]:
    """Open a WebSocket."""
    async with opened(port) as (reader, writer):
        writer.write(f"GET {path} HTTP/1.1\r\n{HEADERS}{headers}\r\n".encode())
        async with asyncio.timeout(DEADLINE):
            answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101"), answer
        yield Raw(reader, writer)
