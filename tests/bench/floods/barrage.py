"""Hostile connections of one address: each sends the same bytes again and again, as fast as the server takes them.

One loop over a selector and no asyncio, so that the flood is not the limit. A connection that has ended is opened
again at once.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections import Counter
from typing import NamedTuple

from tests.bench.floods.verdict import Answers

READ_BYTES = 1 << 18
# The end of what was received, in which the close frame is looked for.
TAIL_BYTES = 256
CLOSE = 0x88
# Seconds for which connections are watched that the flood leaves open, if it has to see their end.
AFTERWARDS = 20.0
# Seconds between two frames of a connection that neither reads nor writes: without them it would not notice its end.
SIGN_EVERY = 1.0
SIGN = bytes((0x8A, 0x80)) + bytes(4)
_REFUSAL = re.compile(rb'"code":"([a-z_]+)","error"')


class Barrage(NamedTuple):
    """What each of some connections sends and reads."""

    # What each sends first, such as a handshake and a request; they take turns.
    first: tuple[bytes, ...]
    # What each sends again and again after that; nothing if it is empty.
    again: bytes = b""
    connections: int = 1
    reads: bool = True
    # Whether to wait at the end until the server has closed all.
    waits: bool = False

    def run(self, port: int, until: float) -> Answers:
        """Flood the server until a time (time.monotonic()); return its answers."""
        return _Attack(self, port).run(until)


class _Attack:
    def __init__(self, barrage: Barrage, port: int) -> None:
        self.barrage = barrage
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self.opened = 0
        self.alive: set[_Connection] = set()
        # Those that neither read nor write, and when they send a sign next.
        self.idle: set[_Connection] = set()
        self.sign_at = 0.0

    def run(self, until: float) -> Answers:
        for _ in range(self.barrage.connections):
            self._open()
            if time.monotonic() > until:
                break
        self._serve(until, reopen=True)
        if self.barrage.waits:
            self._serve(until + AFTERWARDS, reopen=False)
        for connection in list(self.alive):
            self.counts["left open"] += 1
            self._end(connection)
        return Answers(self.counts, self.longest)

    def _serve(self, until: float, *, reopen: bool) -> None:
        while self.alive and (now := time.monotonic()) < until:
            acted = [(key.data, events) for key, events in self.selector.select(min(0.1, until - now))]
            if self.idle and now > self.sign_at:
                self.sign_at = now + SIGN_EVERY
                acted += [(connection, selectors.EVENT_WRITE) for connection in self.idle]
            for connection, events in acted:
                if not connection.act(events):
                    self._end(connection)
                    if reopen:
                        self._open()

    def _open(self) -> None:
        first = self.barrage.first[self.opened % len(self.barrage.first)]
        self.opened += 1
        connection = _Connection(self, first)
        self.alive.add(connection)
        self.selector.register(connection.socket, connection.wanted(), connection)

    def _end(self, connection: _Connection) -> None:
        self.alive.remove(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        else:
            self.selector.unregister(connection.socket)
        connection.socket.close()
        self.longest = max(self.longest, time.monotonic() - connection.began)


class _Connection:
    def __init__(self, attack: _Attack, first: bytes) -> None:
        self.attack = attack
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", attack.port))
        self.began = time.monotonic()
        self.pending = memoryview(first)
        self.tail = b""
        self.status = b""

    def wanted(self) -> int:
        """Return for which events it waits."""
        reads = selectors.EVENT_READ if self.attack.barrage.reads else 0
        return reads | (selectors.EVENT_WRITE if self.pending else 0)

    def act(self, events: int) -> bool:
        """Write and read what is possible; return False once the connection has ended."""
        try:
            if events & selectors.EVENT_READ and not self._read():
                self.attack.counts[self._ending()] += 1
                return False
            if events & selectors.EVENT_WRITE:
                self._write()
        except BlockingIOError:
            pass
        except OSError as exc:
            self.attack.counts["reset" if isinstance(exc, ConnectionError) else str(exc)] += 1
            return False
        return True

    def _read(self) -> bool:
        data = self.socket.recv(READ_BYTES)
        self.status = self.status or data[:12]
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        self.attack.counts.update(found.decode() for found in _REFUSAL.findall(data))
        return bool(data)

    def _write(self) -> None:
        self.pending = self.pending[self.socket.send(self.pending or SIGN) :]
        self.pending = self.pending or memoryview(self.attack.barrage.again)
        if self.pending or self in self.attack.idle:
            return
        if self.attack.barrage.reads:
            self.attack.selector.modify(self.socket, self.wanted(), self)
        else:
            self.attack.selector.unregister(self.socket)
            self.attack.idle.add(self)

    def _ending(self) -> str:
        if self.status and self.status != b"HTTP/1.1 101":
            return self.status.decode("latin-1").replace("/1.1", "")
        for place, byte in enumerate(self.tail[:-3]):
            if byte == CLOSE and self.tail[place + 1] == len(self.tail) - place - 2:
                return str(int.from_bytes(self.tail[place + 2 : place + 4], "big"))
        return "no answer" if not self.status else "end without a close"
