"""One WebSocket of the load: it connects, subscribes, and counts frames by their sequence numbers."""

from __future__ import annotations

import base64
import os
import selectors
import socket
import ssl
import time
from typing import Any

import orjson

from qmt_bridge.commands.load.shared import Shared
from qmt_bridge.wire.frames import framed

# Seconds until all sockets must be open and all subscriptions acknowledged.
OPEN_TIMEOUT = 15.0


class Client:
    """One WebSocket: splits the received bytes into frames, counts them, and parses one in `sample`."""

    def __init__(self, crew: Shared, number: int) -> None:
        self.crew = crew
        self.number = number
        self.stalls = number >= crew.load.clients - crew.load.stalled
        # Whether its subscription is acknowledged or has failed; also true if the client waits for no ack.
        self.settled = False
        self.frames = 0
        self.bytes = 0
        self.gaps = 0
        self.repeated = 0
        self.unstamped = 0
        # By topic: the newest seq, and the newest seq when counting began.
        self.positions: dict[bytes, int] = {}
        self.begun: dict[bytes, int] = {}
        # Topics that have not yet shown their last sequence number.
        self.awaited: set[bytes] = set()
        self._socket: socket.socket | None = None
        # Whether the selector watches the socket.
        self._watched = False
        self._open = False
        self._epoch: bytes | None = None
        self._every = 1
        self._left = 1
        self._missing = 0
        # The first bytes of a frame that has not arrived completely.
        self._rest = b""

    # -- Called by the crew

    def connect(self) -> None:
        """Connect and ask for the WebSocket."""
        parts = self.crew.parts
        secure = parts.scheme == "wss"
        address = parts.hostname or "", parts.port or (443 if secure else 80)
        connected = socket.create_connection(address, OPEN_TIMEOUT)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            connected = self.crew.tls.wrap_socket(connected, server_hostname=parts.hostname)
        self._socket = connected
        lines = [
            f"GET {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in self.crew.load.headers),
        ]
        connected.sendall("\r\n".join([*lines, "", ""]).encode())
        connected.setblocking(False)
        self.crew.selector.register(connected, selectors.EVENT_READ, self)
        self._watched = True

    def begin(self) -> None:
        """Count from here on."""
        self.frames = self.bytes = self.gaps = self.repeated = self.unstamped = 0
        self.begun = self.positions.copy()
        self._every = self.crew.load.sample
        if self.stalls:
            self._ignore()

    def end(self) -> None:
        """Stop counting gaps; with a sample, find out from now on the last sequence number of each topic."""
        self._missing = self.gaps
        if self._every > 1:
            self.awaited = set(self.positions)
        self._every = self._left = 1

    def lost(self) -> int | None:
        """Return how many frames are missing; None where that cannot be known."""
        if self.crew.load.sample == 1:
            return self._missing
        if self.awaited or self.begun.keys() != self.positions.keys():
            return None
        came = self.frames - self.repeated
        return sum(self.positions.values()) - sum(self.begun.values()) - came

    def close(self) -> None:
        """Close the connection."""
        self._ignore()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ignore(self) -> None:
        if self._socket is not None and self._watched:
            self._watched = False
            self.crew.selector.unregister(self._socket)

    # -- Bytes from the socket

    def read(self) -> None:
        """Read once from the socket, and count the frames."""
        taken, kept = self._socket, len(self._rest)
        assert taken is not None
        if len(self.crew.buffer) < 2 * kept:
            self.crew.buffer = bytearray(4 * kept)
        buffer = self.crew.buffer
        buffer[:kept] = self._rest
        try:
            count = taken.recv_into(memoryview(buffer)[kept:])
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as exc:
            self.fail(f"connection lost: {exc}")
            return
        if not count:
            self.fail("connection lost")
            return
        self.bytes += count
        end = kept + count
        start = 0 if self._open else self._opened(bytes(buffer[:end]))
        if self._open:
            start = self.split(buffer, start, end)
        self._rest = bytes(buffer[start:end])
        if isinstance(taken, ssl.SSLSocket) and self._socket is not None and taken.pending():
            # Bytes that are decrypted already do not make the selector report the socket.
            self.read()

    def fail(self, what: str) -> None:
        """Count the error, and close the connection."""
        self.crew.measured.trouble[what] += 1
        self.settled = True
        self.close()

    def send(self, payload: bytes, opcode: int = 1) -> None:
        """Write one short frame. A client has to mask its frames; a mask of zeros changes no byte."""
        frame = framed(payload)
        head = frame[: len(frame) - len(payload)]
        assert self._socket is not None
        self._socket.sendall(bytes((0x80 | opcode, 0x80 | head[1])) + head[2:] + bytes(4) + payload)

    def joined(self) -> None:
        """Send the request, now that the WebSocket is open."""
        self.send(self.crew.load.request(self.number))
        self.settled = not self.crew.load.acked

    def _opened(self, seen: bytes) -> int:
        """Read the answer to the handshake; return its length in bytes, 0 if it is not complete yet."""
        head, found, _ = seen.partition(b"\r\n\r\n")
        if not found:
            return 0
        status = head.partition(b"\r\n")[0].decode(errors="replace")
        if " 101" in status:
            self._open = True
            self.joined()
        else:
            self.fail(f"handshake refused: {status}")
        return len(head) + 4

    # -- Frames

    def split(self, data: bytearray, start: int, end: int) -> int:
        """Count the complete frames of ``data[start:end]``, parse some, and return where the rest begins."""
        now, count, left = time.time_ns() / 1e6, 0, self._left
        while start + 2 <= end:
            size = data[start + 1]
            body = start + 2
            if size == 126:
                body = start + 4
                size = data[start + 2] << 8 | data[start + 3] if body <= end else end
            elif size == 127:
                body = start + 10
                size = int.from_bytes(data[start + 2 : body]) if body <= end else end
            stop = body + size
            if stop > end:
                break
            first = data[start]
            before, start = start, stop
            if first != 0x81 and first != 0x82:
                self._rare(first, bytes(data[body:stop]))
                continue
            count += 1
            left -= 1
            # Control messages of the gateway are shorter than 126 bytes, so short frames are always parsed.
            if left <= 0 or size < 126:
                left = self._every
                # Of the frames that one read returned, one in eight is timed.
                self._look(data, body, stop, now if count & 7 == 1 or left > 1 else 0.0)
            elif size > 125:
                # The next frames mostly have the same length: to compare the head takes half the time of parsing it.
                step = stop - before
                head = data[before:body]
                for _ in range(min(left - 1, (end - start) // step)):
                    if not data.startswith(head, start):
                        break
                    start += step
                    count += 1
                    left -= 1
        self._left = left
        self.frames += count
        return start

    def _rare(self, first: int, payload: bytes) -> None:
        if first == 0x89:
            self.send(payload, 10)
        elif first == 0x88:
            self.fail(f"closed by the server: {int.from_bytes(payload[:2])} {payload[2:].decode(errors='replace')}")
        elif first == 0x80:
            # The last frame of a message that was sent in several frames.
            self.frames += 1
            self.unstamped += 1

    def _look(self, data: bytearray, body: int, stop: int, now: float) -> None:
        """Parse the position of one frame; `now` is its arrival in ms, or 0 if it is not timed."""
        crew = self.crew
        found = crew.match(data, body, stop)
        if found is None:
            self._read_control(bytes(data[body:stop]))
            return
        epoch, seq, code = found.group("epoch", "seq", "code")
        topic = crew.topics[code]
        if epoch != self._epoch:
            if self._epoch is not None:
                # Messages that were lost while the feeder was away have no sequence number.
                crew.epochs.add(epoch)
                self.positions.clear()
            self._epoch = epoch
        position = int(seq)
        newest = self.positions.get(topic, position - 1)
        if position > newest:
            self.gaps += position - newest - 1
            self.positions[topic] = position
        else:
            self.repeated += 1
        self.awaited.discard(topic)
        if now and crew.measures and not self.stalls:
            came, published = found.group("time", "published")
            crew.timed.append((now, came, published))

    def _read_control(self, payload: bytes) -> None:
        """Read a control message, or a frame without a position."""
        measured = self.crew.measured
        if not payload.startswith(b'{"type":'):
            self.unstamped += 1
            # A server without positions sends no acks either.
            self.settled = True
            return
        self.frames -= 1
        said: dict[str, Any] = orjson.loads(payload)
        match said["type"]:
            case "subscribed":
                for rejection in said["rejected"]:
                    measured.rejected[f"{rejection['code']}: {rejection['error']}"] += 1
                self.settled = True
            case "skipped":
                measured.skipped += said["count"]
            case "error":
                measured.trouble[f"error {said.get('code')}: {said.get('error')}"] += 1
                self.settled = True
