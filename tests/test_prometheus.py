"""A real Prometheus with the files of deploy/ scrapes a running service, and an alert reaches a webhook and is over."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.hooks import Hooks, hooks
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.processes import DEADLINE
from tests.support.up import Up, running, wait_for

FOLDER = ROOT / "deploy" / "prometheus"
PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)"),
    pytest.mark.skipif(sys.platform == "win32", reason="kills processes by a signal"),
    # Six processes start at the same time.
    pytest.mark.timeout(240),
]


class Prometheus:
    """A running Prometheus, asked by its HTTP API."""

    def __init__(self, folder: Path, gateway: int, feeder: int) -> None:
        self.port = free_port()
        self.log = folder / "prometheus.log"
        settings = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
        # The files as they are, but for the addresses, and a pace at which a test need not wait.
        for old, new in (("127.0.0.1:8000", gateway), ("127.0.0.1:8001", feeder)):
            assert settings.count(old) == 1
            settings = settings.replace(old, f"127.0.0.1:{new}")
        settings, count = re.subn(r"_interval: 10s\n", "_interval: 1s\n", settings)
        assert count == 2
        (folder / "prometheus.yml").write_text(settings, encoding="utf-8")
        shutil.copy(FOLDER / "qmt-bridge.rules.yml", folder)
        assert PROMETHEUS is not None
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    PROMETHEUS,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **query: str) -> Any:
        """Return the data of an answer; None while there is none."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(url, timeout=DEADLINE) as response:
                return json.load(response)["data"]
        except OSError:
            assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
            return None

    def values(self, query: str) -> dict[str, float]:
        """Return the values of a query by the job of each series."""
        data = self.get("query", query=query) or {"result": []}
        return {series["metric"].get("job", ""): float(series["value"][1]) for series in data["result"]}

    def alerts(self) -> dict[str, str]:
        """Return the state of each alert that is pending or firing."""
        data = self.get("alerts") or {"alerts": []}
        return {alert["labels"]["alertname"]: alert["state"] for alert in data["alerts"]}

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextmanager
def scraping(folder: Path, gateway: int, feeder: int) -> Iterator[Prometheus]:
    folder.mkdir()
    prometheus = Prometheus(folder, gateway, feeder)
    try:
        yield prometheus
    finally:
        prometheus.close()


@pytest.fixture
def hook() -> Iterator[Hooks]:
    with hooks() as server:
        yield server


JOBS = {"qmt-bridge-gateway": 1.0, "qmt-bridge-feeder": 1.0}


def test_prometheus_scrapes_and_alerts_reach_a_webhook(
    tmp_path: Path, hook: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The URL of a hook may hold a key, so no flag takes it.
    monkeypatch.setenv("QMT_BRIDGE_ALERTS_WEBHOOK", f"{hook.url}/hook")
    at = free_port()
    told = (
        "--alerts-after=0.2",
        "--alerts-settle=0.2",
        "--alerts-morning=",
        *(f"--alerts-ignore={rule}" for rule in ("disk", "restarts", "gateway")),
    )
    with (
        running(tmp_path / "data", "--source=sim", "--freeze-timeout=5", f"--metrics-addr=127.0.0.1:{at}", *told) as up,
        scraping(tmp_path / "prometheus", up.port, at) as prometheus,
    ):
        wait_for(lambda: prometheus.values("up") == JOBS, "both targets", up)
        wait_for(lambda: prometheus.values("qmt_bridge_alerts_up and qmt_bridge_store_up") != {}, "the parts", up)
        assert set(prometheus.values("qmt_bridge_alerts_up == 1")) == {"qmt-bridge-feeder"}
        assert set(prometheus.values("qmt_bridge_feed_up == 1")) == {"qmt-bridge-gateway"}
        rules = {rule["name"]: rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]}
        named = re.findall(r"- (?:alert|record): (\S+)", (FOLDER / "qmt-bridge.rules.yml").read_text(encoding="utf-8"))
        assert sorted(rules) == sorted(named)
        wait_for(lambda: not unhealthy(prometheus), "the evaluation of each rule", up)
        # It answers no more, until its supervisor kills and replaces it.
        os.kill(up.pid("feeder"), signal.SIGSTOP)
        wait_for(lambda: prometheus.values("up").get("qmt-bridge-feeder") == 0.0, "that the feeder is missed", up)
        wait_for(lambda: prometheus.alerts().get("QmtBridgeFeederDown") == "pending", "the rule", up)
        wait_for(lambda: hook.events("alert"), "the alert", up)
        wait_for(lambda: hook.events("recovery"), "the recovery", up)
        assert [got.body["event"] for got in hook.got] == ["alert", "recovery"]
        assert {got.body["rule"] for got in hook.got} == {"feed"}
        # The new feeder is told by the alerts what has happened.
        wait_for(lambda: {"alert", "recovery"} <= kinds(up), "the events", up)
        sent = {"qmt-bridge-feeder": 2.0}
        wait_for(lambda: prometheus.values("qmt_bridge_alerts_sent_total{target='webhook'}") == sent, "the count", up)
        wait_for(lambda: prometheus.values("up") == JOBS, "both targets again", up)


def unhealthy(prometheus: Prometheus) -> list[str]:
    """Return the rules that have not been evaluated, or cannot be."""
    groups = prometheus.get("rules")["groups"]
    return [rule["name"] for group in groups for rule in group["rules"] if rule["health"] != "ok"]


def kinds(up: Up) -> set[str]:
    """Return the kinds of what the page shows as having happened lately."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{up.port}/api/state", timeout=DEADLINE) as response:
            return {event["kind"] for event in json.load(response)["events"]}
    except OSError:
        return set()
