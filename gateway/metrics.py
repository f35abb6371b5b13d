"""Prometheus' view of a worker's numbers, right over several workers.

The hot path counts in plain integers; once a second the worker's loop copies them here, because a write to
prometheus_client's shared files costs as much as a delivery does. ``PROMETHEUS_MULTIPROC_DIR``, which
`qmt-bridge gateway` sets, makes prometheus_client keep a file for each worker, which a scrape of any one adds up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from qmt_bridge.wire.messages import AccountState

if TYPE_CHECKING:
    from gateway.worker import Worker

MULTIPROC_ENV = "PROMETHEUS_MULTIPROC_DIR"
STATES = ("up", "down", "stale", "ended")

_registry = CollectorRegistry()


def _counter(name: str, text: str) -> Counter:
    return Counter(f"qmt_bridge_{name}", text, registry=_registry)


_FRAMES = _counter("frames_sent", "WebSocket frames sent to clients.")
_BYTES = _counter("bytes_sent", "Bytes of WebSocket frames sent to clients.")
_RECEIVED = _counter("frames_received", "Messages received from the feeder.")
_SKIPPED = _counter("skipped", "Frames and records that slow clients did not get, a newer one having come.")
_GAPS = _counter("gaps", "Sequence gaps seen on the way from the feeder.")
_LOST = _counter("lost", "Messages missing in those gaps.")
_MALFORMED = _counter("malformed", "Messages from the feeder's address that are not ours.")
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
_AGE = Gauge(
    "qmt_bridge_newest_tick_age_seconds",
    "Seconds since the newest market data was published; infinite before the first.",
    multiprocess_mode="livemin",
    registry=_registry,
)


class Exporter:
    """Copies one worker's numbers; counters go on from where they were at the last copy."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Take the URLs of which the connections are counted."""
        self._copied: dict[Counter, int] = {}
        # From the beginning: a series that is absent until the first connection looks like a gateway that is gone.
        self._paths = set(paths)
        self._accounts: set[tuple[str, str]] = set()

    def export(self, worker: Worker) -> None:
        """Copy the numbers as they are now."""
        hub = worker.feed.hub
        for counter, value in (
            (_FRAMES, worker.frames_sent),
            (_BYTES, worker.bytes_sent),
            (_RECEIVED, hub.received),
            (_SKIPPED, worker.skipped),
            (_GAPS, hub.gaps),
            (_LOST, hub.lost),
            (_MALFORMED, worker.feed.malformed),
        ):
            counter.inc(value - self._copied.get(counter, 0))
            self._copied[counter] = value
        connections = worker.connections
        self._paths |= connections.keys()
        for path in self._paths:
            _CONNECTIONS.labels(path).set(connections[path])
        _TOPICS.set(len(hub.streams))
        state = worker.feed_state()["feed"]
        _FEED_UP.set(state == "up")
        for known in STATES:
            _FEED_STATE.labels(known).set(state == known)
        status = worker.feed.status
        _JOURNAL_UP.set(status is not None and status.journal is None)
        self._export_accounts(() if status is None else status.accounts)
        age = worker.newest_age
        _AGE.set(math.inf if age is None else age)

    def _export_accounts(self, accounts: Sequence[AccountState]) -> None:
        up = {(account.account, account.type): True for account in accounts}
        for account in accounts:
            # Two numbers may look alike with a mask.
            up[account.account, account.type] &= account.state == "up"
        self._accounts |= up.keys()
        for labels in self._accounts:
            _ACCOUNT_UP.labels(*labels).set(up.get(labels, False))


def render() -> bytes:
    """Return the text format, over all workers where there are several."""
    if MULTIPROC_ENV in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(_registry)
