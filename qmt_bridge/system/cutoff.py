"""The end of a whole request: Python's own timeout is for each part that arrives, and a server can send such parts
for hours."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Cutoff:
    """Ends the connections that are made with it, or with its handlers of urllib, after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        # Copies of the descriptors: while one is open, the number belongs to no other file.
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Cutoff:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def handlers(self) -> list[urllib.request.BaseHandler]:
        """Return what opens http and https."""
        return [_Http(self._made), _Https(self._made)]

    def _made(self, kind: type[http.client.HTTPConnection]) -> Callable[..., http.client.HTTPConnection]:
        def make(*arguments: Any, **options: Any) -> http.client.HTTPConnection:
            made = kind(*arguments, **options)
            made._create_connection = self.connect  # type: ignore[attr-defined]
            return made

        return make

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:
        """Do as `socket.create_connection`, and end the connection when the time is over."""
        connected = socket.create_connection(*arguments, **options)
        with self._lock:
            if self.passed:
                connected.close()
                raise TimeoutError("the answer takes too long")
            self._connections.append(connected.dup())
        return connected

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._connections:
                # Also during the handshake of TLS, where the object of the connection is not there yet.
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


_Make = Callable[[type[http.client.HTTPConnection]], Callable[..., http.client.HTTPConnection]]


class _Http(urllib.request.HTTPHandler):
    def __init__(self, make: _Make) -> None:
        super().__init__()
        self._make = make

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._make(http.client.HTTPConnection), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, make: _Make) -> None:
        super().__init__()
        self._make = make

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._make(http.client.HTTPSConnection), req)
