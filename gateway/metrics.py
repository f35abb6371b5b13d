"""A worker's numbers for Prometheus, correct with several workers too.

The hot path counts in plain integers, and the worker's loop copies them here once a second, because a write to
prometheus_client's shared files costs as much as a delivery. `qmt-bridge gateway` sets ``PROMETHEUS_MULTIPROC_DIR``, so
prometheus_client keeps one file for each worker. A scrape reaches any one worker, which adds up the files of all.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.counters import BY_ENDPOINT, COUNTED, LIMITS, Counts, Numbers
from gateway.passage import Passage
from qmt_bridge import __version__
from qmt_bridge.observation.delays import BUCKETS
from qmt_bridge.wire.messages import AccountState, FeedStatus, Session

MULTIPROC_ENV = "PROMETHEUS_MULTIPROC_DIR"
SESSION_STATES = get_args(Session)
STATES = (*SESSION_STATES, "ended")
# A worker that starts makes its files in two steps, between which they are empty and cannot be read.
_READS = 10
_READ_AGAIN = 0.001

_registry = CollectorRegistry()


_COUNTERS = {name: Counter(f"qmt_bridge_{name}", text, registry=_registry) for name, text in COUNTED.items()}
_CONNECTIONS = Gauge(
    "qmt_bridge_connections", "Open WebSockets.", ["path"], multiprocess_mode="livesum", registry=_registry
)
_TOPICS = Gauge(
    "qmt_bridge_topics", "Topics subscribed at the feeder.", multiprocess_mode="livesum", registry=_registry
)
_FEED_UP = Gauge(
    "qmt_bridge_feed_up", "1 while every worker has a feed that is up.", multiprocess_mode="livemin", registry=_registry
)
_FEED_STATE = Gauge(
    "qmt_bridge_feed_state",
    "Workers that see the feed in this state.",
    ["state"],
    multiprocess_mode="livesum",
    registry=_registry,
)
_JOURNAL_UP = Gauge(
    "qmt_bridge_journal_up",
    "1 while every worker has a feeder that can write its trade journal.",
    multiprocess_mode="livemin",
    registry=_registry,
)
_ACCOUNT_UP = Gauge(
    "qmt_bridge_account_up",
    "1 while every worker has a feeder that gets the trade events of this account; its number is masked.",
    ["account", "type"],
    multiprocess_mode="livemin",
    registry=_registry,
)
_ACCOUNT_STATE = Gauge(
    "qmt_bridge_account_state",
    "Workers that see the trade session of this account in this state; its number is masked.",
    ["account", "type", "state"],
    multiprocess_mode="livesum",
    registry=_registry,
)
_CALL_AGE = Gauge(
    "qmt_bridge_call_age_seconds",
    "Seconds for which the feeder's call into xtquant runs; 0 while none does.",
    multiprocess_mode="livemax",
    registry=_registry,
)
_SLOW = Gauge(
    "qmt_bridge_slow_clients",
    "Clients that are behind, so that data waits for them in the gateway.",
    multiprocess_mode="livesum",
    registry=_registry,
)
_WAITING = Gauge(
    "qmt_bridge_waiting_bytes",
    "Bytes that wait for clients in the gateway; a frame for several clients counts for each of them.",
    multiprocess_mode="livesum",
    registry=_registry,
)
_LIMITED = Counter(
    "qmt_bridge_limited", "How often a client reached a limit on what it may cost.", ["limit"], registry=_registry
)
_LAG = Gauge(
    "qmt_bridge_client_lag_seconds",
    "Seconds between write and read for the client that is most behind.",
    multiprocess_mode="livemax",
    registry=_registry,
)
_AGE = Gauge(
    "qmt_bridge_newest_tick_age_seconds",
    "Seconds since the newest market data was published; infinite before the first.",
    multiprocess_mode="livemin",
    registry=_registry,
)
# Of a sample of the messages; the feeder has those of the hops before (feeder/metrics.py).
_HOPS = Histogram(
    "qmt_bridge_hop_seconds",
    "Seconds that a message took for a hop, of a sample.",
    ["hop"],
    buckets=BUCKETS,
    registry=_registry,
)
_ENDPOINTS = {
    name: Counter(f"qmt_bridge_endpoint_{name}", text, ["path"], registry=_registry)
    for name, text in BY_ENDPOINT.items()
}
_BUILD = Gauge(
    "qmt_bridge_build_info",
    "1; the version of the gateway.",
    ["version"],
    multiprocess_mode="livemax",
    registry=_registry,
)


class Exporter:
    """Copies one worker's numbers; to the counters it adds the difference from the last copy."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Count the connections of the URLs `paths`."""
        self._copied = Counts(*[0] * len(Counts._fields))
        # Exported from the start: a series that is absent until the first connection would look like a stopped gateway.
        self._paths = set(paths)
        self._accounts: set[tuple[str, str]] = set()
        self._limited: dict[str, int] = dict.fromkeys(LIMITS, 0)
        for limit in LIMITS:
            _LIMITED.labels(limit)
        self._of_path: dict[tuple[str, str], int] = {}
        _BUILD.labels(__version__).set(1)

    def export(self, numbers: Numbers, state: str, status: FeedStatus | None, passage: Passage) -> None:
        """Copy the numbers, and the state of the feed, as they are now."""
        for hop, delays in zip(("publish_to_worker", "worker_to_socket"), passage.untold, strict=True):
            histogram = _HOPS.labels(hop)
            while delays:
                histogram.observe(delays.popleft())
        for path, sent in numbers.by_path.items():
            for name, counter in _ENDPOINTS.items():
                value = getattr(sent, name)
                counter.labels(path).inc(value - self._of_path.get((path, name), 0))
                self._of_path[path, name] = value
        for name, counter in _COUNTERS.items():
            counter.inc(getattr(numbers.counts, name) - getattr(self._copied, name))
        self._copied = numbers.counts
        self._paths |= numbers.connections.keys()
        for path in self._paths:
            _CONNECTIONS.labels(path).set(numbers.connections.get(path, 0))
        _TOPICS.set(numbers.topics)
        _FEED_UP.set(state == "up")
        for known in STATES:
            _FEED_STATE.labels(known).set(state == known)
        _JOURNAL_UP.set(status is not None and status.journal is None)
        self._export_accounts(() if status is None else status.accounts)
        _CALL_AGE.set(0.0 if status is None else status.call_age)
        _SLOW.set(numbers.slow_clients)
        _WAITING.set(numbers.waiting_bytes)
        for limit, count in numbers.limited.items():
            _LIMITED.labels(limit).inc(count - self._limited[limit])
            self._limited[limit] = count
        _LAG.set(numbers.client_lag)
        age = numbers.newest_tick_age
        _AGE.set(math.inf if age is None else age)

    def _export_accounts(self, accounts: Sequence[AccountState]) -> None:
        # Two account numbers may look the same once they are masked.
        states: dict[tuple[str, str], set[str]] = {}
        for account in accounts:
            states.setdefault((account.account, account.type), set()).add(account.state)
        self._accounts |= states.keys()
        for labels in self._accounts:
            found = states.get(labels, set())
            _ACCOUNT_UP.labels(*labels).set(found == {"up"})
            for state in SESSION_STATES:
                _ACCOUNT_STATE.labels(*labels, state).set(state in found)


def render() -> bytes:
    """Return the text format of Prometheus, with the sums over all workers if there are several."""
    if MULTIPROC_ENV in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        for _ in range(_READS - 1):
            with suppress(struct.error):
                return generate_latest(registry)
            time.sleep(_READ_AGAIN)
        return generate_latest(registry)
    return generate_latest(_registry)
