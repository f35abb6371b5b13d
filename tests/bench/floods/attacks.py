"""The floods, each from one address without a key: what a gateway without bounds cannot stand (docs/websocket.md)."""

from __future__ import annotations

import json
import random
import time
import zlib
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple

from qmt_bridge.wire.frames import DEFLATE_WINDOW
from qmt_bridge.wire.requests import REQUEST_BYTES
from tests.bench.floods.barrage import Barrage
from tests.support.load_processes import yield_cores
from tests.support.raw import CLOSE, CONT, HEADERS, PING, TEXT, frame

# Frames that are sent with one system call.
MANY = 20_000
# Of the simulator.
CODES = [f"{600000 + number}.SH" for number in range(2000)] + [f"{number:06}.SZ" for number in range(1, 2001)]
MARKETS = ["SH", "SZ", "BJ"]
FIELDS = (
    "time lastPrice open high low lastClose amount volume pvolume stockStatus openInt transactionNum "
    "lastSettlementPrice settlementPrice askPrice bidPrice askVol bidVol"
).split()
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n"


class Flood(NamedTuple):
    """A flood, and the options of the gateway that it is sent to."""

    name: str
    barrage: Barrage
    options: tuple[str, ...] = ()
    half_open: bool = False
    # Whether every connection shows a wrong key, so that none may stay open.
    wrong_keys: bool = False


def opening(path: str = "/ws/realtime", headers: str = "") -> bytes:
    """Return the handshake of a WebSocket."""
    return f"GET {path} HTTP/1.1\r\n{HEADERS}{headers}\r\n".encode()


def request(**fields: Any) -> bytes:
    """Return a request as a frame."""
    return frame(TEXT, json.dumps(fields).encode())


def deflated(text: bytes) -> bytes:
    """Return a compressed message as a frame."""
    compressor = zlib.compressobj(wbits=-DEFLATE_WINDOW)
    small = compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(TEXT, small.removesuffix(b"\0\0\xff\xff"), reserved=4)


def permuted(number: int) -> list[str]:
    """Return the fields in an order of their own."""
    return random.Random(number).sample(FIELDS, len(FIELDS))


def wrong_codes() -> bytes:
    """Return a request of 64 KB with wrong codes only."""
    return request(action="subscribe", id=1, stocks=[f"X{number:05}" for number in range(REQUEST_BYTES // 10 - 20)])


FLOODS = (
    Flood("pings", Barrage((opening(),), frame(PING) * MANY)),
    Flood("pings_of_many", Barrage((opening(),), frame(PING) * MANY, connections=200)),
    Flood("pings_unread", Barrage((opening(),), frame(PING, bytes(125)) * MANY, reads=False)),
    Flood(
        "continuations",
        Barrage((opening() + frame(TEXT, b"{", fin=False),), frame(CONT, fin=False) * MANY),
    ),
    Flood(
        "inflated",
        Barrage((opening(headers=DEFLATE),), deflated(b" " * (2 << 20)) * 100),
        ("--deflate",),
    ),
    Flood(
        "inflated_in_bounds",
        Barrage((opening(headers=DEFLATE),), deflated(b'{"action":"list"}' + b" " * (REQUEST_BYTES - 20)) * 1000),
        ("--deflate",),
    ),
    Flood("wrong_codes", Barrage((opening(),), wrong_codes() * 8, reads=False)),
    Flood(
        "lists",
        Barrage(
            (opening() + request(action="subscribe", id=1, stocks=CODES),),
            request(action="list", id=2) * 1000,
            reads=False,
        ),
    ),
    Flood(
        "alternating",
        Barrage(
            (opening(),),
            request(action="subscribe", id=1, stocks=CODES) + request(action="unsubscribe", id=2, stocks=CODES),
        ),
    ),
    Flood(
        "gear_nums",
        Barrage((opening("/ws/l2_thousand") + b"".join(request(stocks=CODES[:1], gear_num=n) for n in range(150)),)),
    ),
    Flood(
        "half_open",
        Barrage(
            (b"", b"GET /ws/realtime HTTP/1.1\r\nHost: localhost\r\n", opening()[:-2]), connections=5000, waits=True
        ),
        half_open=True,
    ),
    Flood(
        "oversized",
        Barrage(
            (
                opening(headers=f"X: {'x' * 8300}\r\n"),
                opening(headers="X: x\r\n" * 128),
                opening(headers="Content-Length: 1000000\r\n") + bytes(100_000),
            ),
            connections=50,
        ),
    ),
    Flood(
        "views",
        Barrage(
            tuple(opening("/ws/whole_quote") + request(codes=MARKETS, fields=permuted(number)) for number in range(50)),
            connections=50,
        ),
    ),
    Flood(
        "markets",
        Barrage((opening("/ws/whole_quote") + request(codes=MARKETS),), connections=200, reads=False),
    ),
    Flood("requests", Barrage((opening(),), request(action="ping", id=1) * MANY)),
    Flood("nested", Barrage((opening(),), frame(TEXT, b'{"action":' + b"[" * 1000 + b"]" * 1000 + b"}") * 100)),
    Flood("arrivals", Barrage((opening() + frame(CLOSE, b"\x03\xe8"),), connections=50)),
    Flood(
        "wrong_keys",
        Barrage(
            tuple(
                opening(path, f"X-API-Key: qmtb_{number:040}\r\n")
                for number, path in enumerate(("/ws/trade", "/ws/realtime", "/ws/whole_quote"))
            ),
            connections=50,
            waits=True,
        ),
        wrong_keys=True,
    ),
    Flood("pages", Barrage((b"",), b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100, connections=50)),
)


def attack(name: str, port: int, seconds: float, pipe: Pipe) -> None:
    """Run a flood at the lowest priority, and send the server's answers; runs in a process of its own."""
    yield_cores()
    flood = next(each for each in FLOODS if each.name == name)
    pipe.send(flood.barrage.run(port, time.monotonic() + seconds))
