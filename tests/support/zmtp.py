"""Bytes of ZMTP 3.0, right or wrong, and a connection that writes them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.waiting import SLOWNESS

MORE, LONG, COMMAND = 1, 2, 4
GREETING_BYTES = 64
SECONDS = 30.0 * SLOWNESS


def frame(flags: int, body: bytes, size: int | None = None) -> bytes:
    """Return a frame; `size` is what it says of itself, if that is not the truth."""
    told = len(body) if size is None else size
    if told > 255 or flags & LONG:
        return bytes([flags | LONG]) + struct.pack(">Q", told % 2**64) + body
    return bytes([flags, told]) + body


def greeting(version: int = 3, mechanism: bytes = b"NULL") -> bytes:
    return b"\xff" + b"\0" * 8 + b"\x7f" + bytes([version, 0]) + mechanism.ljust(20, b"\0") + b"\0" * 32


def ready(kind: bytes) -> bytes:
    return frame(COMMAND, b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind)


@contextmanager
def raw_peer(address: str, kind: bytes) -> Iterator[socket.socket]:
    """Connect to a tcp address as a socket of type `kind`, after whose handshake anything may be sent."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), SECONDS) as peer, peer.makefile("rb") as stream:
        peer.sendall(greeting() + ready(kind))
        # libzmq ends a connection that sends messages before its own READY has left.
        assert len(stream.read(GREETING_BYTES)) == GREETING_BYTES
        _, size = stream.read(2)
        stream.read(size)
        yield peer
