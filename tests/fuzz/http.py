"""Raw bytes on the HTTP port: requests that are broken in known and in random ways, from one random generator."""

from __future__ import annotations

import random
import selectors
import socket
import struct
import sys
import time
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple

from tests.fuzz.hostile import BINARY, CLOSE, PATHS, PING, TEXT, frame
from tests.support.load_processes import yield_cores

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
PATIENCE = 0.25
# Connections at a time. Those that wait for an answer that does not come are most of them.
CONNECTIONS = 600
# Addresses of this machine that they come from: the gateway serves some 350 requests a second of one.
ADDRESSES = 4
READ_BYTES = 65536
_RESET = struct.pack("ii", 1, 0)


class _Connection(NamedTuple):
    """One connection, and what is still to be done with it."""

    socket: socket.socket
    ends_at: float
    # How it goes on, from 0 to 1.
    how: float


class RawRequests:
    """Connections with a request each, and what may follow it; `statuses` counts the answers.

    One loop over a selector and no asyncio, so that the client is not the limit.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        self.port = port
        self.rng = rng
        self.statuses: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        # In the order of the time when they end, since all have the same patience.
        self._open: dict[int, _Connection] = {}
        # Linux has all of 127.0.0.0/8; elsewhere there is one address.
        self._sources = [f"127.0.0.{1 + number}" for number in range(ADDRESSES if sys.platform == "linux" else 1)]

    def run(self, requests: int, rate: float) -> None:
        """Send so many requests, at most `rate` a second; 0 is as many as possible."""
        began, sent = time.monotonic(), 0
        while sent < requests or self._open:
            now = time.monotonic()
            due = requests if not rate else min(requests, int((now - began) * rate) + 1)
            while sent < due and len(self._open) < CONNECTIONS:
                sent += 1
                self._begin(now)
            full = len(self._open) == CONNECTIONS or sent == requests
            first = next(iter(self._open.values()), None)
            for key, _ in self._selector.select(max(0.0, first.ends_at - now) if full and first else 0.002):
                self._answered(self._open[key.fd])
            now = time.monotonic()
            for connection in list(self._open.values()):
                if connection.ends_at > now:
                    break
                self._end(connection, "none")

    def _begin(self, now: float) -> None:
        rng, made = self.rng, socket.socket()
        with suppress(OSError, AttributeError):
            # Without it, each source address has to find a port that is free for every destination.
            made.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        how = rng.random()
        try:
            made.bind((rng.choice(self._sources), 0))
            made.settimeout(PATIENCE)
            made.connect(("127.0.0.1", self.port))
            made.setblocking(False)
            made.send(self._sent(how))
            if 0.1 <= how < 0.3:
                made.shutdown(socket.SHUT_WR)
        except OSError:
            made.close()
            self.statuses["dropped"] += 1
            return
        connection = _Connection(made, now + PATIENCE, how)
        if how < 0.1:
            self._close(connection, "left", reset=True)
            return
        self._open[made.fileno()] = connection
        self._selector.register(made, selectors.EVENT_READ)

    def _sent(self, how: float) -> bytes:
        rng = self.rng
        sent = self._garbage() if rng.random() < 0.05 else self._request()
        if rng.random() < 0.15:
            sent = sent[: rng.randrange(len(sent))]
        if rng.random() < 0.05:
            sent += self._request()
        return sent + self._frames() if how < 0.4 else sent

    def _answered(self, connection: _Connection) -> None:
        try:
            answer = connection.socket.recv(READ_BYTES)
            if connection.how > 0.3 and self.rng.random() < 0.5:
                connection.socket.send(self._frames())
        except OSError:
            self._end(connection, "dropped")
            return
        self._end(connection, _status(answer))

    def _end(self, connection: _Connection, status: str) -> None:
        del self._open[connection.socket.fileno()]
        self._selector.unregister(connection.socket)
        self._close(connection, status, reset=self.rng.random() < 0.5)

    def _close(self, connection: _Connection, status: str, *, reset: bool) -> None:
        if reset:
            with suppress(OSError):
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.socket.close()
        self.statuses[status] += 1

    def _request(self) -> bytes:
        rng = self.rng
        lines = [f"{rng.choice(METHODS)} {rng.choice(TARGETS)} {rng.choice(VERSIONS)}"]
        if rng.random() < 0.4:
            lines = [f"GET {rng.choice(PATHS)} HTTP/1.1"]
        headers = ["Host: localhost"] if rng.random() < 0.9 else []
        if rng.random() < 0.6:
            headers += ["Upgrade: websocket", "Connection: Upgrade"]
            headers += [f"Sec-WebSocket-Key: {b64encode(rng.randbytes(16)).decode()}"] if rng.random() < 0.9 else []
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


def send_requests(port: int, requests: int, rate: float, seed: int, pipe: Pipe) -> None:
    """Send raw requests; send how they were answered."""
    yield_cores()
    raw = RawRequests(port, random.Random(seed * 2000))
    raw.run(requests, rate)
    pipe.send(raw.statuses)


def _status(answer: bytes) -> str:
    """Return the status of an answer; "none" without one."""
    version, _, rest = answer.partition(b" ")
    if not answer:
        return "none"
    return rest[:3].decode("ascii", "replace") if version.startswith(b"HTTP/1.") else "no HTTP"
