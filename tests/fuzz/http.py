"""Raw bytes on the HTTP port: requests that are broken in known and in random ways, from one random generator."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from base64 import b64encode
from collections import Counter

from tests.fuzz.hostile import BINARY, CLOSE, PATHS, PING, TEXT, frame

METHODS = ("GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "CONNECT", "PRI", "G\xffT")
VERSIONS = (*["HTTP/1.1"] * 6, "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 x")
TARGETS = (*PATHS, "/readyz", "/metrics", "/healthz", "/", "*", "http://localhost/healthz", "/%ff%fe", "/\xe8")
TARGETS += ("/ws/realtime?%ff", "/ws/realtime\xff", "/ws/trade?api_key=%00", "/" + "a" * 9000)
HEADERS = (
    "Content-Length: 5",
    "Content-Length: 0",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Content-Length: 1\r\nContent-Length: 2",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: identity, chunked",
    "Origin: null",
    "Origin: \xff\xfe",
    "Host: b",
    "Sec-WebSocket-Protocol: \xff",
    "Sec-WebSocket-Protocol: ,",
    "Sec-WebSocket-Protocol: qmt.v1.json",
    "Sec-WebSocket-Protocol: key.\xe5",
    "Sec-WebSocket-Extensions: \xff;;",
    'Sec-WebSocket-Extensions: permessage-deflate; x="',
    "Sec-WebSocket-Version: 13, 8",
    "Sec-WebSocket-Key: x",
    "Expect: 100-continue",
    "Authorization: Bearer \xff",
    "X-API-Key: \xe5\xaf\x86",
    "X: " + "a" * 9000,
    "X: " + "a" * 20000,
    "Connection: close",
    "Connection: Upgrade, close",
    "Upgrade: h2c",
    "Cookie: \x01",
    "X-Forwarded-For: \xff, ,",
    "X-Forwarded-Proto: \xff",
    "Forwarded: x",
    ": x",
    "X",
    "X : y",
    " X: y",
    "\x00",
)
BODIES = (b"", b"", b"abcde", b"0\r\n\r\n", b"\xff\xfe\xff")
# Seconds that an answer is waited for: most requests that are not whole get none before the gateway's own deadline.
PATIENCE = 0.1
# Seconds in which one connection ends, whatever it does.
LONGEST = 10.0


class RawRequests:
    """One connection after the other, each with a request and what may follow it; `statuses` counts the answers."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self.port = port
        self.rng = rng
        self.statuses: Counter[str] = Counter()

    async def run(self, requests: int) -> None:
        """Send so many requests."""
        for _ in range(requests):
            try:
                async with asyncio.timeout(LONGEST):
                    status = await self._converse()
            except (OSError, TimeoutError, RuntimeError):
                status = "dropped"
            self.statuses[status] += 1

    async def _converse(self) -> str:
        rng = self.rng
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            sent = self._garbage() if rng.random() < 0.05 else self._request()
            if rng.random() < 0.15:
                sent = sent[: rng.randrange(len(sent))]
            writer.write(sent)
            how = rng.random()
            if how < 0.4:
                writer.write(self._frames())
            if how < 0.1:
                writer.transport.abort()
                return "left"
            if how < 0.3:
                writer.write_eof()
            answer = b""
            try:
                async with asyncio.timeout(PATIENCE):
                    answer = await reader.read(65536)
            except TimeoutError:
                pass
            if how > 0.3 and rng.random() < 0.5:
                writer.write(self._frames())
            return _status(answer)
        finally:
            if rng.random() < 0.5:
                writer.transport.abort()
            writer.close()

    def _request(self) -> bytes:
        rng = self.rng
        lines = [f"{rng.choice(METHODS)} {rng.choice(TARGETS)} {rng.choice(VERSIONS)}"]
        if rng.random() < 0.4:
            lines = [f"GET {rng.choice(PATHS)} HTTP/1.1"]
        headers = ["Host: localhost"] if rng.random() < 0.9 else []
        if rng.random() < 0.6:
            headers += ["Upgrade: websocket", "Connection: Upgrade"]
            headers += [f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}"] if rng.random() < 0.9 else []
            headers += ["Sec-WebSocket-Version: 13"] if rng.random() < 0.9 else []
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            headers.insert(rng.randrange(len(headers) + 1), rng.choice(HEADERS))
        if rng.random() < 0.03:
            headers += [f"X-{number}: a" for number in range(rng.choice((60, 63, 70, 1000)))]
        if rng.random() < 0.2:
            rng.shuffle(headers)
        request = bytearray("\r\n".join((*lines, *headers, "", "")).encode("latin-1"))
        if rng.random() < 0.1:
            for _ in range(rng.randrange(1, 5)):
                request[rng.randrange(len(request))] = rng.randrange(256)
        return bytes(request) + rng.choice(BODIES)

    def _garbage(self) -> bytes:
        rng = self.rng
        return rng.choice((b"\x16\x03\x01", b"\r\n", b"", b"\0")) + rng.randbytes(rng.choice((1, 100, 70000)))

    def _frames(self) -> bytes:
        rng = self.rng
        kinds = (
            frame(TEXT, b"\xff\xfe"),
            frame(TEXT, b'{"stocks":["600519.SH"]}'),
            frame(TEXT, b"a", final=False),
            frame(TEXT, b"x" * 70000),
            frame(BINARY, b"\xc1"),
            frame(CLOSE, struct.pack(">H", 1000) + b"\xff\xfe"),
            frame(CLOSE, struct.pack(">H", 1000)),
            frame(CLOSE, b"x"),
            frame(CLOSE, b""),
            frame(PING, b"x" * 200),
            frame(3, b""),
            frame(0, b"x"),
            rng.randbytes(20),
        )
        return b"".join(rng.choice(kinds) for _ in range(rng.randrange(6)))


def _status(answer: bytes) -> str:
    """Return the status of an answer; "none" without one."""
    version, _, rest = answer.partition(b" ")
    if not answer:
        return "none"
    return rest[:3].decode("ascii", "replace") if version.startswith(b"HTTP/1.") else "no HTTP"
