"""A hostile client: random frames and broken conversations over a raw connection, from one random generator."""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
from base64 import b64encode
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe

from tests.support.load_processes import yield_cores

PATHS = ("/ws/realtime", "/ws/whole_quote", "/ws/l2_thousand", "/ws/download_progress", "/ws/formula", "/ws/trade")
CODES = (
    "600519.SH",
    "000001.SZ",
    "999999.SZ",
    "SH",
    "SZ",
    "600519",
    "",
    "x" * 300,
    "茅台",
    7,
    None,
    -1.5,
    [],
    {},
    True,
)
ACTIONS = ("subscribe", "unsubscribe", "list", "ping", "auth", "ack", "", "drop", None, 3, [], {"a": 1})
FIELDS = (
    "action id stocks codes period gear_num fields max_rate_ms mode snapshot seq resume formula_name stock_code count "
    "dividend_type extend_param seq_id start_time end_time key extra"
).split()
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
# Seconds in which one connection ends, whatever it does.
LONGEST = 10.0
# Connections at a time.
CLIENTS = 8


class Hostile:
    """One hostile client after the other; `frames` counts what they sent."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self.port = port
        self.rng = rng
        self.frames = 0
        self.connections = 0
        self._writer: asyncio.StreamWriter

    async def run(self, frames: int) -> None:
        """Send at least so many frames over as many connections as that takes."""
        while self.frames < frames:
            try:
                async with asyncio.timeout(LONGEST):
                    await self._converse()
            except ConnectionRefusedError:
                # The gateway has ended.
                return
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                # The gateway has closed the connection, which is its right.
                continue

    async def _converse(self) -> None:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.connections += 1
        reading = asyncio.create_task(self._read(reader))
        try:
            self._writer.write(self._handshake())
            for _ in range(self.rng.choice((1, 10, 100, 1000))):
                self._send(self.rng.choice(self._kinds()))
                if self.rng.random() < 0.05:
                    await asyncio.sleep(0)
                    await self._writer.drain()
                if self._writer.is_closing():
                    break
            await self._writer.drain()
        finally:
            reading.cancel()
            if self.rng.random() < 0.5:
                self._writer.transport.abort()
            self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read all, slowly, or nothing."""
        size = self.rng.choice((65536, 65536, 100, 0))
        while size and await reader.read(size):
            if size == 100:
                await asyncio.sleep(0.01)

    def _handshake(self) -> bytes:
        rng = self.rng
        path = rng.choice((*PATHS, *PATHS, "/ws/nothing", "/", "/metrics"))
        path += rng.choice(("", "", "?ctl=1", "?after=-1", "?api_key=%00", "?after=9&epoch=x"))
        head = [f"GET {path} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
        head += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}"]
        if rng.random() < 0.3:
            head.append(f"Sec-WebSocket-Protocol: {rng.choice(('qmt.v1.json', 'qmt.v1.msgpack', 'x', 'key.a'))}")
        if rng.random() < 0.05:
            head[rng.randrange(len(head))] = rng.choice(("", "X" * 9000, "Content-Length: 10", "\x00: \x00"))
        return "\r\n".join((*head, "", "")).encode()

    def _kinds(self) -> tuple[Callable[[], bytes], ...]:
        return (self._request, self._request, self._request, self._mutated, self._noise, self._control, self._pieces)

    def _send(self, make: Callable[[], bytes]) -> None:
        self._writer.write(make())
        self.frames += 1

    def _request(self) -> bytes:
        rng = self.rng
        names = rng.sample(FIELDS, rng.randrange(1, 8))
        return frame(TEXT, json.dumps({name: self._value(name) for name in names}).encode())

    def _value(self, name: str) -> object:
        rng = self.rng
        match name:
            case "action":
                return rng.choice(ACTIONS)
            case "stocks" | "codes":
                return rng.choice(CODES) if rng.random() < 0.2 else [rng.choice(CODES) for _ in range(rng.randrange(9))]
            case "period":
                return rng.choice(("tick", "1m", "1d", "l2quote", "nothing", 5, None))
            case "resume":
                return rng.choice(({"seq": 1, "epoch": 1}, {"600519.SH": {"seq": 2, "epoch": 3}}, [], 1, {"seq": -1}))
            case _:
                odd = (0, -1, 1.5, 2**70, "x" * rng.randrange(50), None, True, [], {}, ["time"], float("nan"), "\ud800")
                return rng.choice(odd)

    def _mutated(self) -> bytes:
        content = bytearray(self._request())
        for _ in range(self.rng.randrange(1, 4)):
            content[self.rng.randrange(len(content))] = self.rng.randrange(256)
        return bytes(content)

    def _noise(self) -> bytes:
        return frame(
            self.rng.choice((TEXT, BINARY, 3, 11)), self.rng.randbytes(self.rng.choice((0, 1, 125, 126, 70000)))
        )

    def _control(self) -> bytes:
        code = struct.pack(">H", self.rng.choice((1000, 1001, 999, 1005, 4000, 65535)))
        return self.rng.choice(
            (
                frame(PING, b""),
                frame(PING, b"x" * 125),
                frame(PONG, b"\0\0\0\1"),
                frame(CLOSE, code),
                frame(CLOSE, b"x"),
            )
        )

    def _pieces(self) -> bytes:
        nested = b"[" * self.rng.choice((10, 1000, 30000))
        first = frame(TEXT, nested, final=False)
        return first + b"".join(frame(0, b"", final=False) for _ in range(self.rng.randrange(20))) + frame(0, b"1")


def send_frames(port: int, frames: int, seed: int, pipe: Pipe) -> None:
    """Run hostile WebSocket clients; send how many frames and connections there were."""
    yield_cores()
    hostile = [Hostile(port, random.Random(seed * 1000 + number)) for number in range(CLIENTS)]

    async def run() -> None:
        await asyncio.gather(*(each.run(frames // CLIENTS) for each in hostile))

    asyncio.run(run())
    pipe.send((sum(each.frames for each in hostile), sum(each.connections for each in hostile)))


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """Return a frame of a client, with a mask that leaves the payload as it is."""
    first, size = (0x80 if final else 0) | opcode, len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload
