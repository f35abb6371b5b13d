"""How a forwarder is, over plain HTTP: /readyz, /healthz, and /metrics for Prometheus (setting `forward_health_addr`).

A request reads plain numbers of the forwarder's thread from another one: each is whole, and they may be of different
moments.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qmt_bridge.errors import ConfigError
from qmt_bridge.forward.relay import Passed

logger = logging.getLogger(__name__)

PREFIX = "qmt_bridge_forward_"
# Seconds without a turn of the forwarder's thread after which it counts as frozen, as `freeze_timeout` is by default.
FROZEN_AFTER = 15.0
# Seconds that a client may take for its request.
REQUEST_SECONDS = 5.0
# Connections at a time, each of which has a thread; beyond, a further one is closed.
MOST_CONNECTIONS = 16


class Asked(NamedTuple):
    """What `Questions` counts."""

    asked: int
    answered: int
    refused: int
    dropped: int
    askers: int


class Numbers(NamedTuple):
    """How a forwarder is."""

    version: str
    ready: bool
    # Seconds since the newest heartbeat of the feeder, None before the first; and since the newest turn of the thread.
    heartbeat_age: float | None
    turn_age: float
    # Why there is no connection, by the settings of addresses; None where there is one.
    links: Mapping[str, str | None]
    # By "market" and "trade", and by "ask" and "store".
    relays: Mapping[str, Passed]
    questions: Mapping[str, Asked]


class _Exporter(Collector):
    """Makes the metrics of the numbers that `look` returns."""

    def __init__(self, look: Callable[[], Numbers]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Yield each metric as it is now."""
        numbers = self._look()
        built = GaugeMetricFamily(f"{PREFIX}build_info", "1; the version of this forwarder.", labels=["version"])
        built.add_metric([numbers.version], 1)
        yield built
        yield GaugeMetricFamily(f"{PREFIX}ready", "1 while the feeder's heartbeats come.", value=numbers.ready)
        if numbers.heartbeat_age is not None:
            text = "Seconds since the newest heartbeat of the feeder."
            yield GaugeMetricFamily(f"{PREFIX}heartbeat_age_seconds", text, value=numbers.heartbeat_age)
        up = GaugeMetricFamily(f"{PREFIX}link_up", "1 while there is a connection to the address.", labels=["link"])
        for name, trouble in numbers.links.items():
            up.add_metric([name], trouble is None)
        yield up
        for name, text, of_relay in (
            ("messages", "Messages that came from the feeder.", 0),
            ("bytes", "Bytes of these messages.", 1),
            ("demands", "Subscriptions and unsubscriptions that went up to the feeder.", 2),
        ):
            passed = CounterMetricFamily(PREFIX + name, text, labels=["socket"])
            for socket_name, numbers_of in numbers.relays.items():
                passed.add_metric([socket_name], numbers_of[of_relay])
            yield passed
        for name, text in (
            ("asked", "Questions that were passed on."),
            ("answered", "Answers that were passed on."),
            ("refused", "Questions that were refused here: the role of the key, or malformed."),
            ("dropped", "Questions and answers that nothing took."),
        ):
            counted = CounterMetricFamily(PREFIX + name, text, labels=["socket"])
            for socket_name, asked in numbers.questions.items():
                counted.add_metric([socket_name], getattr(asked, name))
            yield counted
        askers = GaugeMetricFamily(f"{PREFIX}askers", "Clients with a connection for questions.", labels=["socket"])
        for socket_name, asked in numbers.questions.items():
            askers.add_metric([socket_name], asked.askers)
        yield askers


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        numbers = server.look()
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._send(200, CONTENT_TYPE_LATEST, generate_latest(server.registry))
        elif path == "/readyz":
            shown = {"ready": numbers.ready, "heartbeat_age": numbers.heartbeat_age, "links": dict(numbers.links)}
            self._send(200 if numbers.ready else 503, "application/json", json.dumps(shown).encode())
        elif path == "/healthz":
            alive = numbers.turn_age < FROZEN_AFTER
            self._send(200 if alive else 503, "application/json", json.dumps({"alive": alive}).encode())
        else:
            self._send(404, "text/plain", b"/readyz, /healthz, /metrics\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: probes come every few seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, where: tuple[str, int], look: Callable[[], Numbers]) -> None:
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        self.look = look
        self.registry = CollectorRegistry()
        self.registry.register(_Exporter(look))
        self._places = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(where, _Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Return whether there is a place for one more connection, and take it."""
        return self._places.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a failure to answer; a client that leaves is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("a request to the health address was not answered")


class Health:
    """The HTTP server of one forwarder."""

    def __init__(self, address: str, look: Callable[[], Numbers]) -> None:
        """Listen; raise `ConfigError` for an address that cannot be used."""
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), look)
        except (OSError, ValueError, OverflowError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise ConfigError("forward_health_addr", f"cannot listen on {address}: {reason}") from exc
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
