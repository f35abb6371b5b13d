"""Some pages of a process over plain HTTP, such as /metrics: each request in a thread, and a bound of them.

It has no key, and a client that sends nothing must cost the process nothing: the feeder owns the one session.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from qmt_bridge.errors import ConfigError
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)

# Seconds that a client may take for its request and its answer together.
REQUEST_SECONDS = 5.0
# Connections at a time, each of which has a thread; beyond, a further one is closed.
MOST_CONNECTIONS = 16


class Page(NamedTuple):
    """An answer: its status, the type of its content, and the content."""

    status: int
    kind: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]
"""What makes the answer of each path; called in any thread."""


class PageServer:
    """The HTTP server of one process, at the address of a setting; port 0 takes a free one."""

    def __init__(self, setting: str, address: str, pages: Pages) -> None:
        """Listen; raise `ConfigError` for an address that cannot be used."""
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), pages)
        except (OSError, ValueError, OverflowError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise ConfigError(setting, f"cannot listen on {address}: {reason}") from exc
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="pages", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, where: tuple[str, int], pages: Pages) -> None:
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        self.pages = pages
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        # Until when each connection may last.
        self._until: dict[socket.socket, float] = {}
        super().__init__(where, _Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Return whether there is a place for one more connection, and take it."""
        return self._places.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection; give its place back if the system has no further thread."""
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, and give its place back."""
        self._until[request] = clock.monotonic() + REQUEST_SECONDS
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._until[request]
            self._places.release()

    def service_actions(self) -> None:
        """End connections that last too long; the loop that accepts calls it."""
        now = clock.monotonic()
        for request in [request for request, until in list(self._until.items()) if until <= now]:
            # It may have ended meanwhile.
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a failure to make an answer; a client that leaves is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("a request is not answered")


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        page = server.pages.get(self.path.partition("?")[0])
        status, kind, body = page() if page is not None else _nothing(server.pages)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: it is asked every few seconds."""


def _nothing(pages: Pages) -> Page:
    return Page(404, "text/plain", f"{', '.join(pages)}\n".encode())
