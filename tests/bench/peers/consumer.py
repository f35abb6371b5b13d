"""A plain consumer of the feeder, as docs/zeromq.md shows it: python consumer.py ADDRESS ASK_ADDRESS TOPIC READER.

READER is json, orjson, msgspec, or subscribe (the function of this project). Each line on stdin is answered with how
many messages have been read, and the time in ns.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import orjson
import zmq

from qmt_bridge import subscribe
from qmt_bridge.wire.messages import Tick

count = 0


def answer() -> None:
    """Answer each line; the loop that reads messages does nothing for it."""
    for _ in sys.stdin:
        sys.stdout.write(f"{count} {time.monotonic_ns()}\n")
        sys.stdout.flush()


def reader(name: str, topic: str) -> Callable[[bytes], Any]:
    """Return the function that reads a body."""
    if name == "msgspec":
        record: Any = Tick if topic.startswith("whole/") else list[Tick]
        return msgspec.json.Decoder(dict[str, record]).decode
    return {"json": json.loads, "orjson": orjson.loads}[name]


def plain(address: str, topic: str, name: str) -> None:
    """Read with pyzmq."""
    global count
    read = reader(name, topic)
    socket = zmq.Context().socket(zmq.SUB)
    socket.connect(address)
    socket.subscribe(topic)
    while True:
        head, body = socket.recv_multipart()
        head[:-32].decode()
        read(body)
        count += 1


def subscribed(address: str, ask: str, topic: str) -> None:
    """Read with this project's function."""
    global count
    for frame in subscribe(topic, market_addr=address, ask_addr=ask, snapshot=False):
        # The body is decoded when it is first asked for.
        frame.data  # noqa: B018
        count += 1


def main() -> None:
    address, ask, topic, name = sys.argv[1:]
    threading.Thread(target=answer, daemon=True).start()
    if name == "subscribe":
        subscribed(address, ask, topic)
    else:
        plain(address, topic, name)


if __name__ == "__main__":
    main()
