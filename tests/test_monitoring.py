"""The files for Prometheus and Grafana: checked by promtool, if it is installed, and against the metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric

from feeder.metrics.exporter import Exporter
from feeder.publisher import Numbers
from gateway import metrics
from qmt_bridge.observation.delays import HOPS, Delays
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.messages import AccountState, PusherState
from qmt_bridge.wire.parts.report import AlertsStatus, Report, Reported, TargetCounts
from tests.support.paths import ROOT

RULES = ROOT / "deploy" / "prometheus" / "qmt-bridge.rules.yml"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "qmt-bridge.json"
# Of the rules themselves, and of Prometheus.
OTHERS = {"qmt_bridge:in_hours"}
_NAME = re.compile(r"\bqmt_bridge[\w:]*")
_SELECTOR = re.compile(r"\b(qmt_bridge\w*)\{([^}]*)\}")
_BY = re.compile(r"by \(([^)]*)\)")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def families() -> list[Metric]:
    """Return all metrics of a gateway and of a feeder."""
    numbers = Numbers(
        "xtquant",
        "250516.1.1",
        "up",
        None,
        (AccountState("******0365", "STOCK", "up"),),
        (PusherState("desk", "up"),),
        {"forbidden": 0},
        {"SH": 0.1},
        dict.fromkeys(("published", "unwanted", "failed_calls", "unencodable", "refused", "unkept"), 0),
        dict.fromkeys(
            (
                "topics",
                "upstream",
                "queued",
                "held_trades",
                "attending",
                "downloads",
                "call_age_seconds",
                "started_seconds",
            ),
            0.0,
        ),
        {"exchange_to_callback": Delays(), "callback_to_publish": Delays()},
        calls={"xtdata.subscribe_quote": Delays()},
        downloads_ended={"done": 0, "failed": 0},
        download_times=Delays(),
        store=Reported(Report(0, store=StoreStatus(time=0)), 0.0),
        alerts=Reported(
            Report(0, alerts=AlertsStatus("1", {"feed": 0}, [], [TargetCounts("webhook", 0, 0, 0, 0, False)])), 0.0
        ),
    )
    return [*metrics._registry.collect(), *Exporter(lambda: numbers, "1").collect()]


def exported() -> set[str]:
    """Return the names of the series of all metrics."""
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {family.name + end for family in families() for end in ends[family.type]}


def expressions() -> list[str]:
    """Return every expression of the dashboard and of the rules."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    of_panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = RULES.read_text(encoding="utf-8")
    of_rules = re.findall(r"^ +expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)", rules, re.MULTILINE)
    return [*of_panels, *("".join(each) for each in of_rules)]


def test_every_metric_of_dashboard_and_rules_exists() -> None:
    found = {name for expression in expressions() for name in _NAME.findall(expression)}
    assert len(expressions()) >= 55
    assert found - exported() - OTHERS == set()


def test_labels_in_expressions_are_those_of_the_metrics() -> None:
    labels = {
        name + end: set(sample.labels)
        for family in families()
        for name in (family.name,)
        for sample in family.samples
        for end in (sample.name.removeprefix(family.name),)
    }
    for expression in expressions():
        for name, selected in _SELECTOR.findall(expression):
            assert set(re.findall(r"(\w+)[=!~]+", selected)) <= labels.get(name, set()) | _known(name), expression
    hops = {hop for expression in expressions() for hop in re.findall(r'hop[!=]+"(\w+)"', expression)}
    assert hops <= set(HOPS)


def _known(name: str) -> set[str]:
    """Return the labels of a metric of the gateway, of which there are no samples before the first export."""
    found = next((each for each in vars(metrics).values() if getattr(each, "_name", None) == _stem(name)), None)
    return set(getattr(found, "_labelnames", ()))


def _stem(name: str) -> str:
    return re.sub(r"_(total|bucket|sum|count)$", "", name)


def test_dashboard_is_one_that_grafana_can_import() -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert (dashboard["uid"], dashboard["title"]) == ("qmt-bridge", "QMT Bridge")
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert dashboard["templating"]["list"][0]["name"] == "datasource"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    for panel in panels:
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])


def run(*arguments: str, cwd: Path | None = None) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_rules_and_settings() -> None:
    run("check", "rules", str(RULES))
    run("check", "config", str(CONFIG))


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    # A test of promtool begins at the epoch, a Thursday; 02:00 UTC is 10:00 in Shanghai.
    cases = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "10s",
        "tests": [
            {
                "interval": "10s",
                "input_series": [
                    {"series": 'qmt_bridge_feeder_journal_up{instance="f"}', "values": "1x6 0x12"},
                    {"series": 'qmt_bridge_feeder_state{instance="f",state="stale"}', "values": "1x2000"},
                    {"series": 'qmt_bridge_lost_total{instance="g"}', "values": "0x6 5x12"},
                    {"series": 'up{job="qmt-bridge-feeder",instance="f"}', "values": "1x18 0x12"},
                    {"series": 'qmt_bridge_alerts_up{instance="f"}', "values": "1x6 0x12"},
                    {"series": 'qmt_bridge_store_up{instance="f"}', "values": "1x60"},
                    {"series": 'qmt_bridge_store_writing{instance="f"}', "values": "1x6 0x12"},
                    {"series": 'qmt_bridge_alerts_failed_total{instance="f",target="mail"}', "values": "0x6 2x12"},
                    {"series": 'qmt_bridge_alerts_dropped_total{instance="f",target="mail"}', "values": "0x18"},
                    {"series": 'qmt_bridge_push_connected{instance="f",pusher="desk"}', "values": "1x715 0x12"},
                    {"series": 'qmt_bridge_push_refused_total{instance="f",pusher="desk"}', "values": "0x6 3x60"},
                ],
                "alert_rule_test": [
                    alert("1m", "QmtBridgeJournalNotWritten"),
                    alert("2m", "QmtBridgeJournalNotWritten", {"instance": "f", "severity": "critical"}),
                    alert("1m", "QmtBridgeFeederDown"),
                    alert(
                        "4m",
                        "QmtBridgeFeederDown",
                        {"instance": "f", "job": "qmt-bridge-feeder", "severity": "critical"},
                    ),
                    alert("1m", "QmtBridgeAlertsSilent"),
                    alert("2m", "QmtBridgeAlertsSilent", {"instance": "f", "severity": "critical"}),
                    alert("1m", "QmtBridgeStoreNotWriting"),
                    alert("2m", "QmtBridgeStoreNotWriting", {"instance": "f", "severity": "critical"}),
                    alert("1m", "QmtBridgeAlertsNotTaken"),
                    alert("2m", "QmtBridgeAlertsNotTaken", {"instance": "f", "target": "mail", "severity": "warning"}),
                    alert("1m", "QmtBridgePusherRefused"),
                    alert("2m", "QmtBridgePusherRefused", {"instance": "f", "pusher": "desk", "severity": "warning"}),
                    # It counts five minutes.
                    alert("9m", "QmtBridgePusherRefused"),
                    alert("119m", "QmtBridgePusherGone"),
                    alert("2h", "QmtBridgePusherGone", {"instance": "f", "pusher": "desk", "severity": "critical"}),
                    # 00:10 UTC is before the opening, 02:00 UTC is in the morning.
                    alert("10m", "QmtBridgeFeedStale"),
                    alert("2h", "QmtBridgeFeedStale", {"instance": "f", "severity": "critical"}),
                ],
            }
        ],
    }
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps(cases), encoding="utf-8")
    run("test", "rules", str(path))


def alert(at: str, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what is expected of an alert at a time."""
    expected = [] if labels is None else [{"exp_labels": labels, "exp_annotations": {"summary": SUMMARIES[name]}}]
    return {"eval_time": at, "alertname": name, "exp_alerts": expected}


SUMMARIES = {
    "QmtBridgeJournalNotWritten": (
        "Trade events are not written to the journal: they are in the memory of the feeder alone."
    ),
    "QmtBridgeFeederDown": "The feeder f does not answer.",
    "QmtBridgeAlertsSilent": "The alerts of f do not run any more: nothing else tells people in chat or by mail.",
    "QmtBridgeStoreNotWriting": "The store of f does not answer or cannot write: what comes now is not stored.",
    "QmtBridgeAlertsNotTaken": "2 alerts were not taken by mail.",
    "QmtBridgePusherRefused": "3 lines of the pusher desk were refused in five minutes: their data is missing.",
    "QmtBridgePusherGone": "The pusher desk is not connected to the feeder.",
    "QmtBridgeFeedStale": "The feeder f gets no quotes in trading hours.",
}
