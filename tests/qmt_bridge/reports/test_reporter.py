"""Reports as they run: a real store and real alerts tell a real feeder, which shows it in metrics and state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from feeder.app import Feeder
from feeder.metrics.exporter import Exporter
from qmt_bridge.alerts import watch
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import add_client, make_keys
from qmt_bridge.reports import reporter
from qmt_bridge.reports.reporter import Reporter
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.parts.report import Report
from qmt_bridge.wire.topics import quote_topic
from tests.qmt_bridge.alerts.test_app import running
from tests.support.hooks import hooks
from tests.support.ports import free_addresses, free_port, tcp
from tests.support.rig import HandDriven
from tests.support.store_asker import running_store
from tests.support.waiting import wait_for

TICK = quote_topic("600519.SH")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        **free_addresses(),
        store_addr=tcp(free_port()),
        data_dir=str(tmp_path / "data"),
        alerts_after=0.0,
        alerts_settle=0.0,
        alerts_morning="",
        alerts_ignore=("disk", "restarts"),
    )


def started(config: Config) -> Feeder:
    feeder = Feeder(config, HandDriven())
    feeder.start()
    return feeder


@pytest.fixture
def feeder(config: Config) -> Iterator[Feeder]:
    feeder = started(config)
    yield feeder
    feeder.stop()


def numbers(feeder: Feeder) -> dict[str, float]:
    """Return the samples of the feeder's page of metrics."""
    return {
        f"{sample.name}{''.join(f',{value}' for value in sample.labels.values())}": sample.value
        for family in Exporter(feeder.publisher.numbers, "1").collect()
        for sample in family.samples
    }


def told(feeder: Feeder) -> list[tuple[str, str]]:
    """Return the kinds and texts of what the alerts have told, the oldest first."""
    events: list[Any] = feeder.publisher.state()["events"]
    return [(event.kind, event.text) for event in reversed(events) if event.where == "alerts"]


def test_numbers_of_a_store_are_metrics_of_the_feeder(config: Config, feeder: Feeder) -> None:
    with running_store(config, [TICK]):
        wait_for(lambda: numbers(feeder).get("qmt_bridge_store_up") == 1, "the first report")
        wait_for(lambda: TICK in feeder.source.wanted, "the subscription")  # type: ignore[attr-defined]
        for number in range(5):
            feeder.source.publish(TICK, {"600519.SH": [{"time": number}]})  # type: ignore[attr-defined]
        wait_for(lambda: numbers(feeder)["qmt_bridge_store_stored_total"] == 5, "what was stored")
        wait_for(lambda: numbers(feeder)["qmt_bridge_store_syncs_total"] > 0, "what was brought to the disk")
        found = numbers(feeder)
        assert (found["qmt_bridge_store_writing"], found["qmt_bridge_store_topics"]) == (1, 1)
        assert 0 < found["qmt_bridge_store_lag_seconds"] < 20
        assert found["qmt_bridge_store_free_bytes"] > 0
        shown = feeder.publisher.state()["store"]
        assert (shown["up"], shown["stored"], shown["failure"]) == (True, 5, None)
    # It has said that it ends.
    wait_for(lambda: "qmt_bridge_store_up" not in numbers(feeder), "its end")
    assert feeder.publisher.state()["store"] is None


def test_alerts_and_recoveries_are_events_of_the_feeder(config: Config, feeder: Feeder) -> None:
    with hooks() as hook, running(msgspec.structs.replace(config, alerts_webhook=f"{hook.url}/hook")):
        wait_for(lambda: numbers(feeder).get("qmt_bridge_alerts_up") == 1, "the first report")
        feeder.source.sink.set_state("down", "injected")  # type: ignore[attr-defined]
        wait_for(lambda: numbers(feeder)["qmt_bridge_alerts_open,feed"] == 1, "the incident")
        wait_for(lambda: numbers(feeder)["qmt_bridge_alerts_sent_total,webhook"] == 1, "that it was sent")
        [opened] = feeder.publisher.state()["alerts"]["open"]
        assert (opened["rule"], opened["subject"]) == ("feed", "")
        feeder.source.sink.set_state("up")  # type: ignore[attr-defined]
        wait_for(lambda: len(told(feeder)) == 2, "the recovery")
        assert [kind for kind, _ in told(feeder)] == ["alert", "recovery"]
        assert "行情中断" in told(feeder)[0][1]
        assert [each["time"] for each in hook.events("alert")] == [
            event.time for event in feeder.publisher.state()["events"] if event.kind == "alert"
        ]
    wait_for(lambda: "qmt_bridge_alerts_up" not in numbers(feeder), "their end")
    # What has happened stays.
    assert len(told(feeder)) == 2


def test_feeder_that_was_gone_is_told_that_it_was(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", watch.__name__)
    first = started(config)
    with hooks() as hook, running(msgspec.structs.replace(config, alerts_webhook=f"{hook.url}/hook")):
        # Before that they do not know its source, and the end of a source with trading hours is no news at night. They
        # may report before the feeder has answered them.
        wait_for(lambda: "alerts watch the feeder, source" in caplog.text, "that the feeder is known")
        first.stop()
        wait_for(lambda: hook.events("alert"), "the alert")
        second = started(config)
        wait_for(lambda: [kind for kind, _ in told(second)] == ["alert", "recovery"], "both")
    second.stop()


def test_silent_part_is_shown_in_state_and_metrics(
    config: Config, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feeder.reports.SILENT_SECONDS", -1.0)
    monkeypatch.setattr("qmt_bridge.wire.parts.report.SILENT_SECONDS", -1.0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    telling = Reporter(context, config)

    def reports() -> bool:
        telling.send(Report(0, store=StoreStatus(time=0)), 0.0)
        return "qmt_bridge_store_up" in numbers(feeder)

    wait_for(reports, "the report")
    assert numbers(feeder)["qmt_bridge_store_up"] == 0
    assert feeder.publisher.state()["store"]["up"] is False
    telling.close(None)
    context.term()


@pytest.mark.parametrize("role", ["ask", "admin"])
def test_client_key_needs_the_role_of_an_administrator(
    config: Config, tmp_path: Path, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", reporter.__name__)
    keys = tmp_path / "keys"
    make_keys(keys)
    own = add_client(keys, "watcher", frozenset((role,)))
    config = msgspec.structs.replace(config, curve_dir=str(keys), trade_addr=tcp(free_port()), trade_ask_addr="")
    feeder = started(config)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    telling = Reporter(context, msgspec.structs.replace(config, curve_dir=str(own)))

    def decided() -> bool:
        telling.send(Report(0, store=StoreStatus(time=0)), 0.0)
        return "lacks the role" in caplog.text or "qmt_bridge_store_up" in numbers(feeder)

    wait_for(decided, "an answer")
    assert ("qmt_bridge_store_up" in numbers(feeder)) is (role == "admin")
    assert caplog.text.count("the feeder is not told how this process is") == (0 if role == "admin" else 1)
    telling.close(None)
    context.term()
    feeder.stop()


def test_parts_of_the_feeders_machine_report_with_its_keys(config: Config, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(keys)
    # As where no gateway runs: there is no key of a client.
    (keys / "gateway.key_secret").unlink()
    config = msgspec.structs.replace(config, curve_dir=str(keys), trade_addr=tcp(free_port()), trade_ask_addr="")
    feeder = started(config)
    with hooks() as hook, running(msgspec.structs.replace(config, alerts_webhook=f"{hook.url}/hook")):
        wait_for(lambda: numbers(feeder).get("qmt_bridge_alerts_up") == 1, "the first report")
    feeder.stop()


def test_reporter_waits_for_a_feeder_that_has_never_started(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", reporter.__name__)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    telling = Reporter(context, config)
    for now in (0.0, 1.0, reporter.STARTS_SECONDS - 1.0):
        telling.send(Report(0, store=StoreStatus(time=0)), now)
    # It may start at the same time.
    assert "the feeder is not told" not in caplog.text
    feeder = started(config)

    def reports() -> bool:
        telling.send(Report(0, store=StoreStatus(time=0)), 0.0)
        return "qmt_bridge_store_up" in numbers(feeder)

    wait_for(reports, "the report")
    assert caplog.text.count("the feeder is not told") <= 1
    telling.close(Report(0, store=StoreStatus(time=0), leaves=True))
    wait_for(lambda: "qmt_bridge_store_up" not in numbers(feeder), "its end")
    context.term()
    feeder.stop()
