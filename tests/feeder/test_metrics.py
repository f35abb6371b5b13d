"""The feeder's metrics: over a real feeder and HTTP, and what an address that is taken costs."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from feeder import app
from feeder.app import Feeder
from feeder.metrics.exporter import COUNTED, GAUGES, PREFIX, Exporter, Metrics
from feeder.source import DownloadRequest, Health
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.observation.delays import BUCKETS, Delays
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import AccountState, PusherState
from qmt_bridge.wire.requests import StartDownload
from qmt_bridge.wire.topics import quote_topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import HandDriven
from tests.support.waiting import wait_for

TICK = quote_topic("600519.SH")


@pytest.fixture
def feeder(tmp_path) -> Iterator[Feeder]:
    feeder = Feeder(Config(**ANY_ADDRESSES, data_dir=str(tmp_path)), HandDriven())
    feeder.start()
    yield feeder
    feeder.stop()


@pytest.fixture
def metrics(feeder: Feeder) -> Iterator[Metrics]:
    metrics = Metrics("127.0.0.1:0", Exporter(feeder.publisher.numbers, "1.2.3"))
    yield metrics
    metrics.close()


def scrape(metrics: Metrics) -> dict[str, float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{metrics.port}/metrics", timeout=20) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        f"{sample.name}{{{','.join(f'{name}={value}' for name, value in sorted(sample.labels.items()))}}}": sample.value
        for family in families
        for sample in family.samples
    }


def test_numbers_of_the_feeder_are_exported(feeder: Feeder, metrics: Metrics) -> None:
    source = feeder.source
    assert isinstance(source, HandDriven)
    source.condition = Health("250516.1.1", "subscribe_quote", 2.5)
    account = AccountState("******0365", "STOCK", "up")
    source.sink.set_accounts([account])
    before = scrape(metrics)
    assert before.keys() >= {f"{PREFIX}{name}_total{{}}" for name in COUNTED} | {
        f"{PREFIX}{name}{{}}" for name in GAUGES
    }
    assert before[f"{PREFIX}build_info{{sdk=250516.1.1,source=hand,version=1.2.3}}"] == 1
    wait_for(lambda: scrape(metrics).get(f"{PREFIX}account_up{{account=******0365,type=STOCK}}") == 1)
    found = scrape(metrics)
    assert (found[f"{PREFIX}state{{state=up}}"], found[f"{PREFIX}state{{state=down}}"]) == (1, 0)
    assert (found[f"{PREFIX}journal_up{{}}"], found[f"{PREFIX}call_age_seconds{{}}"]) == (1, 2.5)


def test_pushers_are_counted_by_their_names(feeder: Feeder, metrics: Metrics) -> None:
    source = feeder.source
    assert isinstance(source, HandDriven)
    assert not any("push_" in name for name in scrape(metrics))
    here = PusherState("desk", "stale", records=9, refused=2, conflated=1, silent=0.5)
    source.condition = Health(pushers_refused={"taken": 0, "forbidden": 3})
    found = {name: value for name, value in scrape(metrics).items() if "push_" in name}
    refused = "qmt_bridge_push_connections_refused_total"
    assert found == {f"{refused}{{code=taken}}": 0, f"{refused}{{code=forbidden}}": 3}
    source.condition = Health(pushers=[here, PusherState("ctp", "down")])
    found = {name: value for name, value in scrape(metrics).items() if "push_" in name}
    assert found == {
        "qmt_bridge_push_connected{pusher=desk}": 1,
        "qmt_bridge_push_connected{pusher=ctp}": 0,
        "qmt_bridge_push_up{pusher=desk}": 0,
        "qmt_bridge_push_up{pusher=ctp}": 0,
        "qmt_bridge_push_records_total{pusher=desk}": 9,
        "qmt_bridge_push_records_total{pusher=ctp}": 0,
        "qmt_bridge_push_refused_total{pusher=desk}": 2,
        "qmt_bridge_push_refused_total{pusher=ctp}": 0,
        "qmt_bridge_push_conflated_total{pusher=desk}": 1,
        "qmt_bridge_push_conflated_total{pusher=ctp}": 0,
    }


def test_calls_into_the_sdk_are_a_histogram(feeder: Feeder, metrics: Metrics) -> None:
    source = feeder.source
    assert isinstance(source, HandDriven)
    times = Delays()
    times.add(0.03, 0.0)
    source.condition = Health(times={"xtdata.subscribe_quote": times})
    found = scrape(metrics)
    name = f"{PREFIX}call_seconds"
    assert found[f"{name}_bucket{{call=xtdata.subscribe_quote,le=0.025}}"] == 0
    assert found[f"{name}_bucket{{call=xtdata.subscribe_quote,le=0.05}}"] == 1
    assert found[f"{name}_sum{{call=xtdata.subscribe_quote}}"] == pytest.approx(0.03)


def test_downloads_are_counted_by_how_they_end(feeder: Feeder, metrics: Metrics) -> None:
    before = scrape(metrics)
    assert (before[f"{PREFIX}downloads{{}}"], before[f"{PREFIX}downloads_ended_total{{how=failed}}"]) == (0, 0)
    registry, source = feeder.publisher._registry, feeder.source
    assert isinstance(source, HandDriven)
    now = clock.monotonic()
    for number, code in enumerate(("000001.SZ", "600000.SH", "600519.SH")):
        topic, _ = registry.start_download(StartDownload(1, [code], "1d", "", ""), b"one", now - 3.0)
        # Of the last one there is progress, and no end.
        if number < 2:
            source.download(topic, DownloadRequest((code,), "1d", "", ""))
    wait_for(lambda: scrape(metrics)[f"{PREFIX}downloads{{}}"] == 1)
    found = scrape(metrics)
    assert found[f"{PREFIX}downloads_ended_total{{how=done}}"] == 1
    assert found[f"{PREFIX}downloads_ended_total{{how=failed}}"] == 1
    assert (found[f"{PREFIX}download_seconds_count{{}}"], found[f"{PREFIX}download_seconds_sum{{}}"] >= 6.0) == (
        2,
        True,
    )


def test_delays_are_a_histogram_of_prometheus(feeder: Feeder, metrics: Metrics) -> None:
    feeder.publisher._registry.want(TICK)
    now = time.time_ns()
    feeder.source.sink.publish(TICK, {"600519.SH": [{"time": now // 1_000_000 - 30}]}, now - 7_000_000)
    name = "qmt_bridge_hop_seconds"
    wait_for(lambda: scrape(metrics).get(f"{name}_count{{hop=callback_to_publish}}") == 1)
    found = scrape(metrics)
    assert found[f"{name}_bucket{{hop=callback_to_publish,le=0.005}}"] == 0
    assert found[f"{name}_bucket{{hop=callback_to_publish,le=+Inf}}"] == 1
    assert found[f"{name}_sum{{hop=callback_to_publish}}"] >= 0.007
    assert found[f"{name}_bucket{{hop=exchange_to_callback,le=0.01}}"] == 0
    assert found[f"{name}_bucket{{hop=exchange_to_callback,le=0.025}}"] == 1
    assert found[f"{PREFIX}newest_tick_age_seconds{{market=SH}}"] < 20
    assert len([key for key in found if key.startswith(f"{name}_bucket{{hop=callback")]) == len(BUCKETS) + 1


def test_feeder_without_its_address_goes_on(feeder: Feeder, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=re.escape(f"metrics_addr: cannot listen on {address}")):
            Metrics(address, Exporter(feeder.publisher.numbers, ""))
        assert app._serve_metrics(address, feeder.publisher) is None
        assert "this feeder has no metrics of its own" in caplog.text
    assert app._serve_metrics("", feeder.publisher) is None


def test_feeder_that_has_not_started_has_no_numbers(tmp_path) -> None:
    feeder = Feeder(Config(**ANY_ADDRESSES, data_dir=str(tmp_path)), HandDriven())
    assert feeder.publisher.numbers() is None
    assert list(Exporter(feeder.publisher.numbers, "").collect()) == []
