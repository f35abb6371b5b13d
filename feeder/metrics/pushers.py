"""The metrics of the programs that push data to the source (docs/push.md). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qmt_bridge.wire.messages import PusherState

PREFIX = "qmt_bridge_push_"
_COUNTED = {
    "records": "Records that a pusher sent.",
    "refused": "Lines of a pusher that could not be used.",
    "conflated": "Records of a pusher that were left out, because a newer one came before there was room.",
}


def of_pushers(pushers: Sequence[PusherState], refused: Mapping[str, int]) -> Iterator[Metric]:
    """Yield the metrics of the pushers by their names, and of the connections that were refused by their codes.

    None of a source without pushers.
    """
    if refused:
        text = "Connections that were refused before they were a pusher's, by the code."
        counted = CounterMetricFamily(f"{PREFIX}connections_refused", text, labels=["code"])
        for code, count in refused.items():
            counted.add_metric([code], count)
        yield counted
    if not pushers:
        return
    connected = GaugeMetricFamily(f"{PREFIX}connected", "1 while a pusher is connected.", labels=["pusher"])
    up = GaugeMetricFamily(f"{PREFIX}up", "1 while the state of a pusher is up.", labels=["pusher"])
    for pusher in pushers:
        connected.add_metric([pusher.name], pusher.silent is not None)
        up.add_metric([pusher.name], pusher.state == "up")
    yield connected
    yield up
    for name, text in _COUNTED.items():
        counted = CounterMetricFamily(PREFIX + name, text, labels=["pusher"])
        for pusher in pushers:
            counted.add_metric([pusher.name], getattr(pusher, name))
        yield counted
