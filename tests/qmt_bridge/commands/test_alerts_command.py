"""`qmt-bridge alerts` and `alerts test`, and alerts beside a feeder that its supervisor watches."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qmt_bridge import cli
from qmt_bridge.commands.alerts import FLAGS
from qmt_bridge.config import ALERTS, CREDENTIALS, env_name
from tests.support.hooks import Hooks, hooks, silent
from tests.support.supervised import supervised


@pytest.fixture
def hook() -> Iterator[Hooks]:
    with hooks() as server:
        yield server


def alerts(*arguments: str, **settings: str) -> Result:
    env = {env_name(f"alerts_{name}"): value for name, value in settings.items()}
    return CliRunner().invoke(cli.main, ["alerts", *arguments], env=env)


def test_a_test_message_reaches_each_target(hook: Hooks) -> None:
    ended = alerts(
        "test",
        wecom=f"{hook.url}/wecom?key=t0ken",
        dingtalk=f"{hook.url}/dingtalk?access_token=t0ken",
        dingtalk_secret="SECt0ken",
        feishu=f"{hook.url}/feishu/t0ken",
        feishu_secret="SECt0ken",
        webhook=f"{hook.url}/own/t0ken",
        name="desk",
    )
    assert ended.exit_code == 0, ended.output
    assert ended.output.splitlines() == [
        "wecom     sent: errcode 0",
        "dingtalk  sent: errcode 0",
        "feishu    sent: errcode 0",
        "webhook   sent: HTTP 200",
    ]
    bodies = [got.body for got in hook.got]
    assert "测试" in bodies[0]["text"]["content"]
    assert "来源：desk" in bodies[2]["content"]["text"]
    assert bodies[3]["event"] == "test"
    assert all("t0ken" not in str(body) for body in bodies)


def test_a_target_that_refuses_makes_the_test_fail(hook: Hooks) -> None:
    hook.answer = lambda got: (200, {}, b'{"errcode":310000,"errmsg":"sign not match"}')
    ended = alerts("test", "--alerts-language=en", dingtalk=f"{hook.url}/a?access_token=t0ken")
    assert ended.exit_code == 1
    assert ended.output == "dingtalk  NOT SENT: errcode 310000: sign not match\n"
    assert "this target receives alerts" in hook.got[0].body["text"]["content"]


def test_a_target_that_hangs_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmt_bridge.alerts.targets.webhook.TIMEOUT", 0.2)
    with silent() as url:
        ended = alerts("test", webhook=url)
    assert ended.exit_code == 1
    assert ended.output == "webhook   NOT SENT: no answer in time\n"


@pytest.mark.parametrize("command", [[], ["test"]])
def test_without_a_target_the_command_says_so(command: list[str]) -> None:
    ended = alerts(*command)
    assert ended.exit_code == 1
    assert "no target is given" in ended.output


def test_the_file_has_the_settings_in_a_section(tmp_path: Path, hook: Hooks) -> None:
    file = tmp_path / "qmt.toml"
    file.write_text(f'[alerts]\nwebhook = "{hook.url}"\nlanguage = "en"\n', encoding="utf-8")
    file.chmod(0o600)
    ended = CliRunner().invoke(cli.main, ["alerts", "test", "--config", str(file)])
    assert ended.exit_code == 0, ended.output
    assert hook.got[0].body["title"].startswith("[QMT Bridge TEST]")


def test_no_key_of_a_target_is_a_flag() -> None:
    assert set(ALERTS) - set(FLAGS) == set(ALERTS) & CREDENTIALS
    for command in ("up", "feeder", "alerts"):
        assert not {parameter.name for parameter in cli.main.commands[command].params} & set(ALERTS) & CREDENTIALS


@pytest.mark.parametrize("command", ["up", "feeder"])
def test_a_target_that_cannot_be_used_stops_the_start(command: str, tmp_path: Path) -> None:
    arguments = [command, f"--data-dir={tmp_path}", *(["--supervised"] if command == "feeder" else [])]
    ended = CliRunner().invoke(cli.main, arguments, env={"QMT_BRIDGE_ALERTS_WECOM": "t0ken"})
    assert ended.exit_code == 1
    assert "[alerts] wecom: expected a URL" in ended.output
    assert "t0ken" not in ended.output


def test_a_feeder_alone_refuses_flags_of_alerts(tmp_path: Path) -> None:
    ended = CliRunner().invoke(cli.main, ["feeder", f"--data-dir={tmp_path}", "--alerts-after=5"])
    assert ended.exit_code == 2
    assert "--alerts-after has no effect" in ended.output


@pytest.mark.skipif(sys.platform == "win32", reason="needs the signals of Unix")
def test_a_frozen_feeder_is_told_with_no_gateway(tmp_path: Path, hook: Hooks) -> None:
    env = {"QMT_BRIDGE_ALERTS_WEBHOOK": f"{hook.url}/t0ken"}
    flags = ["--source=sim", "--freeze-timeout=0", "--alerts-after=2", "--alerts-settle=0.5", "--alerts-morning="]
    flags += [f"--alerts-holidays={date.today() + timedelta(days=days)}" for days in (-1, 0, 1)]
    with supervised(tmp_path, *flags, "--alerts-ignore=disk", env=env) as running:
        running.wait_watched()
        running.wait_for(lambda: "alerts started: to webhook" in running.text, "the alerts")
        [feeder] = [child for child in running.children() if "feeder" in child.cmdline()]
        # A simulator keeps no hours.
        running.wait_for(lambda: "alerts watch the feeder, source sim" in running.text, "the first answer")
        os.kill(feeder.pid, signal.SIGSTOP)
        try:
            running.wait_for(lambda: hook.events("alert"), "the alert")
        finally:
            os.kill(feeder.pid, signal.SIGCONT)
        running.wait_for(lambda: hook.events("recovery"), "the recovery")
        # A machine that is too busy for an answer within five seconds may have brought others before.
        assert [(got.body["event"], got.body["rule"]) for got in hook.got[-2:]] == [
            ("alert", "feed"),
            ("recovery", "feed"),
        ]
        assert hook.got[0].body["title"] == "【QMT Bridge 告警】【模拟数据】行情中断"
        assert "t0ken" not in running.text
    assert "alerts did not stop in time" not in running.text
