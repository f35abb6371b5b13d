"""A WebSocket server that sends frames with numbers and times, as a gateway does with the option `seq`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import orjson
from websockets import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from qmt_bridge.wire.frames import encode

CODES = ("600519.SH", "000001.SZ", "300750.SZ")


def stamped(code: str, seq: int, epoch: int = 7, data: str = "x" * 200) -> bytes:
    now = time.time_ns() / 1e6
    head = {"type": "data", "epoch": epoch, "seq": seq, "time": now - 2.0, "published": now - 1.0}
    return encode({**head, "data": {code: [{"data": data}]}})


@contextmanager
def served(handler: Callable[[ServerConnection, list[str]], None]) -> Iterator[str]:
    """Serve `/ws/realtime` with a handler that is given the subscribed codes; yield the URL."""

    def handle(socket: ServerConnection) -> None:
        try:
            handler(socket, orjson.loads(socket.recv())["stocks"])
        except ConnectionClosed:
            return

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws/realtime"
        finally:
            server.shutdown()
            thread.join()


def acknowledge(socket: ServerConnection, codes: Sequence[str], rejected: Sequence[dict[str, str]] = ()) -> None:
    socket.send(encode({"type": "subscribed", "id": 1, "added": codes, "rejected": rejected}).decode())


def stream(socket: ServerConnection, codes: Sequence[str], leave_out: Callable[[int], bool]) -> None:
    """Send frames of all codes until the client disconnects."""
    pause = threading.Event()
    seq = 0
    while True:
        seq += 1
        for code in codes:
            if not leave_out(seq):
                socket.send(stamped(code, seq).decode())
        pause.wait(0.001)


def every_tenth_lost(socket: ServerConnection, codes: list[str]) -> None:
    acknowledge(socket, codes)
    stream(socket, codes, lambda seq: seq % 10 == 0)
