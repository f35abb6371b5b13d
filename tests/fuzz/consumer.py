"""The good consumer of a feeder: it subscribes many streams over ZeroMQ, and checks every sequence number."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection as Pipe

import zmq

from qmt_bridge.wire.frames import Frame
from tests.support.seen import Good

CODES = tuple(f"{600000 + number}.SH" for number in range(400))
TOPICS = tuple(f"quote/{code}/tick/" for code in CODES)
# Seconds in which each stream has to have a message, at the beginning and at the end.
PATIENCE = 15.0
LOOK_MS = 100


def consume(address: str, pipe: Pipe) -> None:
    """Say when all streams have come, read until told to end, and send what was seen."""
    good = Good([], [], [], [])
    newest: dict[str, int] = {}
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        # What the machine is too busy for is no fault of the feeder.
        socket.rcvhwm = 0
        socket.connect(address)
        for topic in TOPICS:
            socket.subscribe(topic)
        _read_all(socket, newest, good)
        pipe.send("served")
        while not pipe.poll():
            _read(socket, newest, good)
        # A stream that has ended has no hole.
        _read_all(socket, newest, good)
    pipe.send(good)


def _read_all(socket: zmq.Socket[bytes], newest: dict[str, int], good: Good) -> None:
    """Read until each stream has had a message."""
    missing, until = set(TOPICS), time.monotonic() + PATIENCE
    while missing and time.monotonic() < until:
        missing -= _read(socket, newest, good)
    good.closes.extend((time.monotonic(), f"no message of {topic}") for topic in sorted(missing)[:3])


def _read(socket: zmq.Socket[bytes], newest: dict[str, int], good: Good) -> set[str]:
    """Take what is there; return the topics of which something was there."""
    seen: set[str] = set()
    if not socket.poll(LOOK_MS):
        return seen
    while socket.poll(0):
        frame = Frame.from_parts(socket.recv_multipart())
        now = time.monotonic()
        good.delays.append((now, (time.time_ns() - frame.published_ns) / 1e6))
        if frame.seq != newest.get(frame.topic, frame.seq - 1) + 1:
            good.gaps.append((now, f"{frame.topic}: {frame.seq} after {newest[frame.topic]}"))
        newest[frame.topic] = frame.seq
        seen.add(frame.topic)
    return seen
