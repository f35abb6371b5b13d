"""The messages: every rule has words in both languages, with cause, time and installation."""

from __future__ import annotations

from datetime import datetime

import pytest

from qmt_bridge.alerts import texts
from qmt_bridge.alerts.rules import RULES, Finding, Observed, Rule
from qmt_bridge.alerts.texts import Language
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.messages import AccountState, FeedStatus, PusherState
from qmt_bridge.wire.shanghai import SHANGHAI

NOW = datetime(2026, 11, 30, 10, 21, 5, tzinfo=SHANGHAI).timestamp()
FACTS: dict[str, str | int] = {"state": "down", "reason": "terminal_hung", "count": 7, "free": 512, "least": 1024}
MIB = 1024 * 1024


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_words_for_each_event(rule: Rule, language: Language) -> None:
    finding = Finding(rule, "******0365 STOCK", "bad", FACTS)
    titles = [texts.title(language, event, finding, False) for event in ("alert", "repeat", "recovery")]
    assert len(set(titles)) == 3
    assert all("QMT Bridge" in title for title in titles)
    for event in ("alert", "repeat", "recovery"):
        body = texts.body(language, event, finding, NOW - 312, NOW, "desk")
        assert "desk" in body
        assert "2026-11-30 10:15:53" in body
        assert ("5 分 12 秒" if language == "zh" else "5 min 12 s") in body


def test_an_alert_reads_as_an_engineer_writes_it() -> None:
    finding = Finding("feed", "", "bad", FACTS)
    assert texts.title("zh", "alert", finding, False) == "【QMT Bridge 告警】行情中断"
    assert texts.body("zh", "alert", finding, NOW - 30, NOW, "desk").splitlines() == [
        "状态：断开（terminal_hung）",
        "开始：2026-11-30 10:20:35，已持续 30 秒",
        "来源：desk",
    ]
    assert texts.title("zh", "recovery", finding, True) == "【QMT Bridge 已恢复】【模拟数据】行情恢复"
    account = Finding("account", "******0365 STOCK", "bad", FACTS)
    assert (
        texts.title("en", "alert", account, True) == "[QMT Bridge ALERT] [SIMULATED] account ******0365 STOCK is down"
    )


def test_a_store_that_is_gone_is_not_called_a_feeder() -> None:
    finding = Finding("store", "", "bad", {"state": "gone", "reason": ""})
    assert texts.body("zh", "alert", finding, NOW, NOW, "desk").splitlines()[0] == "状态：进程无响应"
    assert texts.body("en", "alert", finding, NOW, NOW, "desk").splitlines()[0] == "state: it does not answer"


@pytest.mark.parametrize(
    ("state", "reason", "zh", "en"),
    [
        ("down", "pusher_gone", "状态：断开（推送程序 ctp 已断开）", "state: down (the pusher ctp is gone)"),
        (
            "connecting",
            "waiting for ctp",
            "状态：正在连接（等待推送程序 ctp）",
            "state: connecting (waiting for the pusher ctp)",
        ),
        ("stale", "slow", "状态：连接正常但没有数据（推送程序 ctp：slow）", "state: stale (pusher ctp: slow)"),
    ],
)
def test_an_alert_names_the_pusher_that_is_the_cause(state: str, reason: str, zh: str, en: str) -> None:
    finding = Finding("feed", "", "bad", {"state": state, "reason": reason, "pushers": "ctp"})
    assert texts.body("zh", "alert", finding, NOW, NOW, "desk").splitlines()[0] == zh
    assert texts.body("en", "alert", finding, NOW, NOW, "desk").splitlines()[0] == en


def test_the_report_has_a_line_for_each_pusher() -> None:
    pushers = (PusherState("ctp", "up"), PusherState("desk", "down", "pusher_gone"))
    status = FeedStatus("push", False, "down", 1, 0, reason="pusher_gone", pushers=pushers)
    _, body = texts.report("zh", observed()._replace(status=status), 0, 0, NOW, "desk")
    assert body.splitlines()[1:3] == ["✓ 推送程序 ctp：正常", "✗ 推送程序 desk：断开 pusher_gone"]


def test_a_long_reason_is_cut() -> None:
    for rule in ("feed", "journal"):
        finding = Finding(rule, "", "bad", {"state": "down", "reason": "x" * 5000})
        assert len(texts.body("zh", "alert", finding, NOW, NOW, "desk")) < 500


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 秒"), (59, "59 秒"), (60, "1 分"), (3661, "1 小时 1 分"), (90000, "1 天 1 小时"), (-5, "0 秒")],
)
def test_a_duration_has_two_units(seconds: float, shown: str) -> None:
    assert texts.duration("zh", seconds) == shown


def observed() -> Observed:
    accounts = (AccountState("******0365", "STOCK", "up"), AccountState("******0001", "CREDIT", "down", "no session"))
    status = FeedStatus("xtquant", False, "up", 1, 0, accounts=accounts)
    return Observed(
        trading_day=True,
        trading=True,
        status=status,
        status_age=0.1,
        store=StoreStatus(0, size=300 * MIB, days=("2026-11-30",), free=8000 * MIB),
        store_age=0.1,
        store_expected=True,
        gateway_age=1.0,
        gateway_expected=True,
        free=9000 * MIB,
    )


def test_the_report_says_what_works_and_what_does_not() -> None:
    title, body = texts.report("zh", observed(), 1024, 0, NOW, "desk")
    assert title == "【QMT Bridge 早报】1 项异常"
    assert body.splitlines() == [
        "✓ 行情：正常（xtquant）",
        "✓ 账号 ******0365 STOCK：正常",
        "✗ 账号 ******0001 CREDIT：断开 no session",
        "✓ 交易事件日志：正常写入",
        "✓ 当日存储：1 天，300 MiB",
        "✓ 网关：正常",
        "✓ 磁盘剩余：8000 MiB",
        "2026-11-30 10:21:05，来源：desk",
    ]


def test_the_report_counts_alerts_that_were_not_sent() -> None:
    title, body = texts.report("en", observed()._replace(free=100 * MIB, gateway_age=99.0), 1024, 3, NOW, "desk")
    assert title == "[QMT Bridge MORNING] 4 of 8 do not work"
    assert "✗ alerts since the last report: 3 were not sent" in body
    assert "✗ room on the disk: 100 MiB" in body
    assert "✗ gateway: does not answer" in body
    title, body = texts.report("en", Observed(True, True), 1024, 0, NOW, "desk")
    assert body.splitlines()[0] == "✗ market data: the feeder does not answer"


def test_a_report_of_a_service_that_works_says_so() -> None:
    well = observed()
    assert well.status is not None
    assert texts.report("zh", well._replace(status=FeedStatus("sim", True, "up", 1, 0)), 0, 0, NOW, "desk")[0] == (
        "【QMT Bridge 早报】【模拟数据】一切正常"
    )
