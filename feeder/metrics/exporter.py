"""The feeder's numbers for Prometheus, at an address of their own (setting `metrics_addr`).

A scrape reads plain integers of the publisher's thread from another one: each is whole, and they may be of different
moments. Nothing is written on the way of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from feeder.metrics.parts import of_alerts, of_store
from feeder.metrics.pushers import of_pushers
from feeder.publisher import Numbers
from qmt_bridge.observation.page_server import Page, PageServer
from qmt_bridge.wire.messages import Session

STATES = (*get_args(Session), "ended")
PREFIX = "qmt_bridge_feeder_"
COUNTED = {
    "published": "Messages sent on ZeroMQ.",
    "unwanted": "Messages of topics that were not subscribed any more.",
    "failed_calls": "Calls of the source that failed.",
    "unencodable": "Messages that could not be encoded, or only in part.",
    "refused": "Subscriptions and questions that were malformed, too long, or too many.",
    "unkept": "Last values that found no room.",
}
GAUGES = {
    "topics": "Topics that are wanted.",
    "upstream": "Subscriptions at the source.",
    "queued": "Calls of the source that wait for the publisher.",
    "held_trades": "Trade events that wait for the disk.",
    "attending": "Gateway workers that answer surveys.",
    "downloads": "Downloads that run, or wait at the source.",
    "call_age_seconds": "Seconds for which the call into xtquant runs; 0 while none does.",
    "started_seconds": "When the feeder started, seconds since 1970.",
}


class Exporter(Collector):
    """Makes the metrics of the numbers that `look` returns; None: the feeder has not started yet."""

    def __init__(self, look: Callable[[], Numbers | None], version: str) -> None:
        self._look = look
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Yield each metric as it is now."""
        numbers = self._look()
        if numbers is None:
            return
        for name, text in COUNTED.items():
            yield CounterMetricFamily(PREFIX + name, text, value=numbers.counted[name])
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=numbers.gauges[name])
        built = GaugeMetricFamily(
            f"{PREFIX}build_info", "1; the versions of this feeder.", labels=["version", "sdk", "source"]
        )
        built.add_metric([self._version, numbers.sdk, numbers.source], 1)
        yield built
        state = GaugeMetricFamily(f"{PREFIX}state", "1 for the state of the quotes.", labels=["state"])
        for each in STATES:
            state.add_metric([each], each == numbers.state)
        yield state
        yield GaugeMetricFamily(
            f"{PREFIX}journal_up", "1 while trade events are written to the journal.", value=numbers.journal is None
        )
        yield from self._accounts(numbers)
        age = GaugeMetricFamily(
            f"{PREFIX}newest_tick_age_seconds", "Seconds since the newest data of a market.", labels=["market"]
        )
        for market, seconds in numbers.markets.items():
            age.add_metric([market], seconds)
        yield age
        hops = HistogramMetricFamily(
            "qmt_bridge_hop_seconds", "Seconds that a message took for a hop, of a sample.", labels=["hop"]
        )
        for hop, delays in numbers.delays.items():
            hops.add_metric([hop], delays.buckets(), delays.total)
        yield hops
        yield from self._work(numbers)
        yield from of_pushers(numbers.pushers, numbers.pushers_refused)
        yield from of_store(numbers.store)
        yield from of_alerts(numbers.alerts)

    def _work(self, numbers: Numbers) -> Iterator[Metric]:
        calls = HistogramMetricFamily(
            f"{PREFIX}call_seconds", "Seconds that calls into xtquant took, by call.", labels=["call"]
        )
        for name, times in numbers.calls.items():
            calls.add_metric([name], times.buckets(), times.total)
        yield calls
        ended = CounterMetricFamily(f"{PREFIX}downloads_ended", "Downloads that have ended, by how.", labels=["how"])
        for how, count in numbers.downloads_ended.items():
            ended.add_metric([how], count)
        yield ended
        times = numbers.download_times
        yield HistogramMetricFamily(
            f"{PREFIX}download_seconds",
            "Seconds from the request for a download to its end.",
            times.buckets(),
            times.total,
        )

    def _accounts(self, numbers: Numbers) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            f"{PREFIX}account_up", "1 while the trade events of an account come.", labels=["account", "type"]
        )
        # Two account numbers may look the same once they are masked.
        found: dict[tuple[str, str], bool] = {}
        for account in numbers.accounts:
            key = (account.account, account.type)
            found[key] = found.get(key, True) and account.state == "up"
        for (number, kind), is_up in found.items():
            up.add_metric([number, kind], is_up)
        yield up


class Metrics:
    """The HTTP server of one feeder."""

    def __init__(self, address: str, exporter: Exporter) -> None:
        """Listen; raise `ConfigError` for an address that cannot be used."""
        self._registry = CollectorRegistry()
        self._registry.register(exporter)
        self._server = PageServer("metrics_addr", address, {"/metrics": self._page})
        self.port = self._server.port

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    def _page(self) -> Page:
        return Page(200, CONTENT_TYPE_LATEST, generate_latest(self._registry))
