"""A listener for pushers: takes one connection after the other, keeps their lines, and sends what the test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.support.waiting import wait_for

WELCOME = {"type": "welcome", "protocol": 1, "epoch": 1, "silence": 15}


class Listener:
    """Listens on a port of loopback; each `hello` is answered with `answer`, and with `demand`."""

    def __init__(self, port: int = 0, wrap: Callable[[socket.socket], socket.socket] | None = None) -> None:
        self.answer: dict[str, Any] = WELCOME
        self.demand: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.hellos = 0
        # While it is set, lines are read; the pusher's socket takes no more once the buffers are full.
        self.reads = threading.Event()
        self.reads.set()
        self._wrap = wrap
        self._ends = False
        self._connections: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", port))
        # Small, so that a listener that does not read is felt soon.
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self.reads.set()
        self._ends = True
        self.drop()
        # The thread waits for a connection: Windows shuts down no socket that listens.
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._server.close()

    def drop(self) -> None:
        """End the connections."""
        for each in self._connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def send(self, *lines: dict[str, Any]) -> None:
        self.send_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def send_bytes(self, data: bytes) -> None:
        self._connections[-1].sendall(data)

    def want(self, **topic: object) -> dict[str, Any]:
        """Subscribe a topic, once a pusher is there, and return it."""
        wait_for(lambda: self.hellos)
        self.send({"type": "subscribe", "topic": topic})
        return topic

    def find(self, condition: Callable[[dict[str, Any]], object], what: str = "a line") -> dict[str, Any]:
        """Return the first line that a condition holds for, when it is there."""
        wait_for(lambda: any(map(condition, self.lines)), lambda: f"{what} in {self.lines[-20:]}")
        return next(line for line in self.lines if condition(line))

    def of(self, topic: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the lines of a topic."""
        return [line for line in self.lines if line.get("topic") == topic]

    def first(self, topic: dict[str, Any]) -> dict[str, Any]:
        return self.find(lambda line: line.get("topic") == topic, str(topic))

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if "event" in line and (not kinds or line["event"] in kinds)]

    def _accept(self) -> None:
        while True:
            connection, _ = self._server.accept()
            if self._ends:
                connection.close()
                return
            try:
                with self._wrap(connection) if self._wrap else connection as taken:
                    self._connections.append(taken)
                    if not self._ends:
                        self._read(taken)
            except OSError:
                continue

    def _read(self, connection: socket.socket) -> None:
        for text in connection.makefile("rb"):
            self.reads.wait()
            if not text.endswith(b"\n"):
                # The pusher was killed while it wrote.
                return
            line = json.loads(text)
            self.lines.append(line)
            if line.get("type") == "hello":
                self.hellos += 1
                self.send(self.answer, *self.demand)
                if self.answer["type"] == "refused":
                    return
