"""The metrics of a store and of the alerts, from what they have reported to the feeder. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.parts.report import AlertsStatus, Part, Reported

STORE = "qmt_bridge_store_"
ALERTS = "qmt_bridge_alerts_"
_STORE_COUNTED = {
    "stored": "Messages that the store has taken.",
    "left_out": "Messages that arrived and were not stored.",
    "refused": "Questions that were malformed or too many.",
    "filled": "Topics whose day was completed from the history of the source.",
    "unfilled": "Topics for which that failed or was refused.",
    "syncs": "How often the store has brought to the disk what it had written.",
    "sync_seconds": "Seconds that this took.",
}
_STORE_GAUGES = {
    "topics": "Topics of which something is stored.",
    "waiting": "Messages that were taken and are not written yet.",
    "lag_seconds": "Seconds between the feeder and the store, of the newest message that the store has taken.",
    "bytes": "Bytes on the disk.",
    "free_bytes": "Bytes that the disk of the store has left.",
    "days": "Days that are stored.",
}
_TARGET_COUNTED = {
    "sent": "Messages that a target took.",
    "failed": "Messages that a target refused, or did not take for an hour.",
    "dropped": "Messages without room, because too many waited for a target.",
}


def of_store(reported: Reported | None) -> Iterator[Metric]:
    """Yield the metrics of the store that reports; none if there is none."""
    if reported is None or reported.report.store is None:
        return
    status = reported.report.store
    yield from _presence(STORE, "store", reported)
    yield GaugeMetricFamily(f"{STORE}writing", "1 while messages are stored.", value=status.failure is None)
    for name, text in _STORE_COUNTED.items():
        yield CounterMetricFamily(STORE + name, text, value=getattr(status, name))
    for name, value in _gauges(status).items():
        yield GaugeMetricFamily(STORE + name, _STORE_GAUGES[name], value=value)


def of_alerts(reported: Reported | None) -> Iterator[Metric]:
    """Yield the metrics of the alerts that report; none if there are none."""
    if reported is None or reported.report.alerts is None:
        return
    status = reported.report.alerts
    yield from _presence(ALERTS, "alerts", reported)
    opened = GaugeMetricFamily(f"{ALERTS}open", "Incidents that are open.", labels=["rule"])
    for rule, count in status.rules.items():
        opened.add_metric([rule], count)
    yield opened
    yield from _targets(status)


def _presence(prefix: str, part: Part, reported: Reported) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{prefix}up", f"1 while the {part} process reports to the feeder.", value=reported.up)
    yield GaugeMetricFamily(f"{prefix}report_age_seconds", "Seconds since its newest report.", value=reported.age)


def _gauges(status: StoreStatus) -> dict[str, float]:
    return {
        "topics": status.topics,
        "waiting": status.waiting,
        "lag_seconds": status.lag,
        "bytes": status.size,
        "free_bytes": status.free,
        "days": len(status.days),
    }


def _targets(status: AlertsStatus) -> Iterator[Metric]:
    for name, text in _TARGET_COUNTED.items():
        counted = CounterMetricFamily(ALERTS + name, text, labels=["target"])
        for target in status.targets:
            counted.add_metric([target.target], getattr(target, name))
        yield counted
    waiting = GaugeMetricFamily(f"{ALERTS}waiting", "Messages that wait for a target.", labels=["target"])
    failing = GaugeMetricFamily(f"{ALERTS}failing", "1 while a target does not take messages.", labels=["target"])
    for target in status.targets:
        waiting.add_metric([target.target], target.waiting)
        failing.add_metric([target.target], target.failing)
    yield waiting
    yield failing
