"""Alerts as they run: a real feeder and store, a real HTTP server that takes webhooks, and injected incidents."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.app import Feeder
from qmt_bridge.alerts import app
from qmt_bridge.alerts.gateway import Fetch
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.stop import Stop
from qmt_bridge.wire.messages import AccountState, Session
from tests.support.hooks import Hooks, hooks, silent
from tests.support.ports import free_addresses, free_port, tcp
from tests.support.rig import HandDriven
from tests.support.store_asker import running_store
from tests.support.waiting import DEADLINE, wait_for

CLIENTS = 20
ROUNDS = 5


class Alerts:
    """The alerts on a thread, with a gateway whose page the test writes."""

    def __init__(self, config: Config) -> None:
        # What the gateway answers; None while it is away.
        self.page: tuple[int, bytes] | None = None
        self.stop = Stop()
        self.failure: Exception | None = None
        self._config = config
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        fetch: Fetch = lambda path, stop: self.page  # noqa: E731
        try:
            app.run(self._config, fetch, self.stop)
        except Exception as exc:
            self.failure = exc

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.stop.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure


@contextmanager
def running(config: Config) -> Iterator[Alerts]:
    alerts = Alerts(config)
    alerts.start()
    try:
        yield alerts
    finally:
        alerts.close()


@pytest.fixture
def hook() -> Iterator[Hooks]:
    with hooks() as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, hook: Hooks) -> Config:
    return Config(
        **free_addresses(),
        store_addr=tcp(free_port()),
        data_dir=str(tmp_path),
        alerts_webhook=f"{hook.url}/hook?key=t0ken",
        alerts_name="desk",
        alerts_after=0.0,
        alerts_settle=0.0,
        alerts_morning="",
        # The hours of the exchange would be those of the day on which the test runs; the feeder of the test keeps none.
        alerts_holidays=tuple(str(date.today() + timedelta(days=days)) for days in (-1, 0, 1)),
        # The disk of the machine of the test may be full.
        alerts_ignore=("disk",),
    )


class Fed:
    """A feeder whose session and accounts the test sets."""

    def __init__(self, config: Config) -> None:
        self.source = HandDriven()
        self._feeder = Feeder(config, self.source)
        self._feeder.start()

    def accounts(self, state: Session) -> None:
        states = [AccountState(f"******{number:04}", "STOCK", state, "injected") for number in range(CLIENTS)]
        self.source.sink.set_accounts(states)

    def stop(self) -> None:
        self._feeder.stop()


@pytest.fixture
def feed(config: Config) -> Iterator[Fed]:
    fed = Fed(config)
    yield fed
    fed.stop()


def subjects(bodies: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(body["rule"], body["subject"]) for body in bodies}


def test_a_hundred_incidents_are_a_hundred_alerts_and_recoveries(config: Config, feed: Fed, hook: Hooks) -> None:
    with running(config):
        for _ in range(ROUNDS):
            feed.accounts("down")
            wait_for(lambda: len(hook.events("alert")) == len(hook.events("recovery")) + CLIENTS, "the alerts")
            feed.accounts("up")
            wait_for(lambda: len(hook.events("alert")) == len(hook.events("recovery")), "the recoveries")
    alerts, recoveries = hook.events("alert"), hook.events("recovery")
    assert (len(hook.got), len(alerts), len(recoveries)) == (200, 100, 100)
    # Each incident has one of each, in this order, and no two have the same id.
    ids = [body["id"] for body in alerts]
    assert len(set(ids)) == 100
    assert sorted(ids) == sorted(body["id"] for body in recoveries)
    for subject in subjects(alerts):
        events = [got.body["event"] for got in hook.got if (got.body["rule"], got.body["subject"]) == subject]
        assert events == ["alert", "recovery"] * ROUNDS
    assert all(body["name"] == "desk" for body in alerts)


def test_a_target_that_hangs_delays_no_other(config: Config, feed: Fed, hook: Hooks) -> None:
    with silent() as url:
        config = msgspec.structs.replace(config, alerts_wecom=url, alerts_feishu=url)
        with running(config):
            feed.source.sink.set_state("down", "injected")
            wait_for(lambda: len(hook.events("alert")) == 1, "the alert")
            feed.source.sink.set_state("up")
            wait_for(lambda: len(hook.events("recovery")) == 1, "the recovery")
    assert subjects(hook.events("alert")) == {("feed", "")}


def test_a_target_that_fails_gets_the_alerts_later(config: Config, feed: Fed, hook: Hooks) -> None:
    hook.answer = lambda got: (503, {}, b"")
    with running(config):
        feed.source.sink.set_state("down", "injected")
        wait_for(lambda: hook.got, "the first attempt")
        hook.answer = lambda got: (200, {}, b"")
        feed.source.sink.set_state("up")
        wait_for(lambda: hook.events("recovery"), "the recovery")
    assert [got.body["event"] for got in hook.got[-2:]] == ["alert", "recovery"]


def test_a_feeder_that_is_gone_is_told_and_its_return(config: Config, hook: Hooks) -> None:
    fed = Fed(config)
    config = msgspec.structs.replace(config, alerts_ignore=("disk", "restarts"))
    with running(config):
        # Whether it is a trading hour is told by the source: this one keeps none.
        fed.accounts("down")
        wait_for(lambda: hook.events("alert"), "that the feeder is known")
        fed.stop()
        wait_for(lambda: ("feed", "") in subjects(hook.events("alert")), "the alert")
        again = Fed(config)
        wait_for(lambda: ("feed", "") in subjects(hook.events("recovery")), "the recovery")
        again.stop()
    [alert] = [body for body in hook.events("alert") if body["rule"] == "feed"]
    assert "feeder 进程无响应" in alert["text"] or "断开" in alert["text"]
    assert alert["simulated"] is True


def test_a_store_that_is_gone_is_told_and_its_return(config: Config, feed: Fed, hook: Hooks, tmp_path: Path) -> None:
    stored = msgspec.structs.replace(config, data_dir=str(tmp_path / "stored"))
    with running(config):
        with running_store(stored):
            wait_for(lambda: "store" in kept(tmp_path)["seen"], "that the store is known")
        wait_for(lambda: ("store", "") in subjects(hook.events("alert")), "the alert")
        with running_store(stored):
            wait_for(lambda: ("store", "") in subjects(hook.events("recovery")), "the recovery")
    assert subjects(hook.events("alert")) == {("store", "")}


def kept(folder: Path) -> dict[str, Any]:
    path = folder / "alerts.json"
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"seen": [], "open": []}
    return found


def page(lost: int, **cut: int) -> tuple[int, bytes]:
    lines = [f"# TYPE qmt_bridge_lost counter\nqmt_bridge_lost_total {lost}.0", "# TYPE qmt_bridge_cut_off counter"]
    lines += [f'qmt_bridge_cut_off_total{{client="{client}"}} {count}.0' for client, count in cut.items()]
    return 200, ("\n".join(lines) + "\n").encode()


def test_what_the_gateway_counts_is_told(
    config: Config, feed: Fed, hook: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmt_bridge.alerts.gateway.LOOK_SECONDS", 0.1)
    with running(config) as alerts:
        alerts.page = page(1000, desk=50)
        wait_for(lambda: "gateway" in kept(Path(config.data_dir))["seen"], "that the gateway is known")
        assert hook.got == []
        alerts.page = page(1100, desk=55)
        wait_for(lambda: len(hook.events("alert")) == 2, "the alerts")
    assert subjects(hook.events("alert")) == {("lost", ""), ("cut", "desk")}
    assert "100" in next(body["text"] for body in hook.events("alert") if body["rule"] == "lost")


def test_another_program_at_the_gateways_port_is_no_gateway(
    config: Config, feed: Fed, hook: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmt_bridge.alerts.gateway.LOOK_SECONDS", 0.05)
    with running(config) as alerts:
        for answer in ((200, b"\xff\xfe"), (200, b"up 1\n"), (200, b"<html>"), (401, b"")):
            alerts.page = answer
            feed.source.sink.set_state("down", "injected")
            wait_for(lambda: len(hook.events("alert")) > len(hook.events("recovery")), "an alert")
            feed.source.sink.set_state("up")
            wait_for(lambda: len(hook.events("alert")) == len(hook.events("recovery")), "its recovery")
    assert "gateway" not in kept(Path(config.data_dir))["seen"]
    assert subjects(hook.events("alert")) == {("feed", "")}


def test_an_open_incident_is_told_once_over_a_restart(config: Config, feed: Fed, hook: Hooks) -> None:
    feed.source.sink.set_state("down", "injected")
    with running(config):
        wait_for(lambda: hook.events("alert"), "the alert")
    assert [each["rule"] for each in kept(Path(config.data_dir))["open"]] == ["feed"]
    with running(config):
        feed.source.sink.set_state("up")
        wait_for(lambda: hook.events("recovery"), "the recovery")
    assert [got.body["event"] for got in hook.got] == ["alert", "recovery"]
    assert hook.got[0].body["id"] == hook.got[1].body["id"]


def test_a_damaged_file_is_no_reason_not_to_start(
    config: Config, feed: Fed, hook: Hooks, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(config.data_dir) / "alerts.json").write_bytes(b"{broken")
    with running(config):
        feed.source.sink.set_state("down", "injected")
        wait_for(lambda: hook.events("alert"), "the alert")
    assert "alerts.json cannot be read" in caplog.text


def test_the_log_has_the_titles_and_no_url(
    config: Config, feed: Fed, hook: Hooks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with running(config):
        feed.source.sink.set_state("down", "injected")
        wait_for(lambda: hook.events("alert"), "the alert")
    assert "行情中断" in caplog.text
    assert "t0ken" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alerts_webhook": ""}, "no target is given"),
        ({"alerts_wecom": "t0ken"}, r"\[alerts\] wecom: expected a URL"),
        ({"alerts_feishu_secret": "t0ken"}, r"\[alerts\] feishu_secret: needs feishu too"),
        ({"alerts_mail_server": "a.b:465"}, r"\[alerts\] mail_to: no address is given"),
        ({"alerts_mail_to": ("a@b.c",)}, r"\[alerts\] mail_server: expected host:port"),
        ({"alerts_quiet": "night"}, r"\[alerts\] quiet: expected hours"),
        ({"alerts_morning": "nine"}, r"\[alerts\] morning: expected a time"),
        ({"alerts_holidays": ("may",)}, r"\[alerts\] holidays: expected a day"),
        ({"alerts_ignore": ("disc",)}, r"\[alerts\] ignore: expected some of feed, .*got 'disc'"),
    ],
)
def test_settings_that_cannot_be_used_are_named(config: Config, changes: dict[str, Any], said: str) -> None:
    changed = msgspec.structs.replace(config, **changes)
    check: Callable[[], object] = lambda: app.run(changed, lambda path, stop: None, Stop())  # noqa: E731
    with pytest.raises(ConfigError, match=said) as caught:
        check()
    assert "t0ken" not in str(caught.value)
