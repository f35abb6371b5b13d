"""How a forwarder is, over plain HTTP: /readyz, /healthz, and /metrics for Prometheus (setting `forward_health_addr`).

A request reads plain numbers of the forwarder's thread from another one: each is whole, and they may be of different
moments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qmt_bridge.forward.relay import Passed
from qmt_bridge.observation.page_server import Page, PageServer

PREFIX = "qmt_bridge_forward_"
# Seconds without a turn of the forwarder's thread after which it counts as frozen, as `freeze_timeout` is by default.
FROZEN_AFTER = 15.0


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


class Health:
    """The pages of one forwarder."""

    def __init__(self, address: str, look: Callable[[], Numbers]) -> None:
        """Listen; raise `ConfigError` for an address that cannot be used."""
        self._look = look
        self._registry = CollectorRegistry()
        self._registry.register(_Exporter(look))
        pages = {"/readyz": self._readyz, "/healthz": self._healthz, "/metrics": self._metrics}
        self._server = PageServer("forward_health_addr", address, pages)
        self.port = self._server.port

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    def _readyz(self) -> Page:
        numbers = self._look()
        shown = {"ready": numbers.ready, "heartbeat_age": numbers.heartbeat_age, "links": dict(numbers.links)}
        return Page(200 if numbers.ready else 503, "application/json", json.dumps(shown).encode())

    def _healthz(self) -> Page:
        alive = self._look().turn_age < FROZEN_AFTER
        return Page(200 if alive else 503, "application/json", json.dumps({"alive": alive}).encode())

    def _metrics(self) -> Page:
        return Page(200, CONTENT_TYPE_LATEST, generate_latest(self._registry))
