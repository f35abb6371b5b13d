"""The checks of the feeder that answers, and of the clock."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmt_bridge.commands.doctor.findings import feeder
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.wire.messages import AccountState, FeedStatus
from tests.support.doctor import assert_finding

UP = FeedStatus("xtquant", False, "up", 1, 1, topics=3, version="1.0")


def served(*states: str) -> FeedStatus:
    """Return a status with one account in each state."""
    accounts = []
    for state in states:
        reason = None if state == "up" else "why"
        accounts.append(AccountState("******0365", "STOCK", state, reason))  # type: ignore[arg-type]
    return replace(UP, accounts=tuple(accounts))


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(feeder.clock([9000, 300], "", ""), "ok", "0.3 s after", id="clock"),
        pytest.param(feeder.clock([-1500, 300], "", ""), "warn", "1.5 s behind", id="clock-behind"),
        pytest.param(feeder.clock([7000, 5100], "", ""), "warn", "5.1 s old: this clock is ahead", id="clock-ahead"),
        pytest.param(feeder.clock([7_200_000], "", ""), "warn", "not checked: the newest tick is 2.0 h", id="closed"),
        pytest.param(feeder.clock([], "none", ""), "warn", "not checked", id="clock-not-checked"),
        pytest.param(feeder.clock([], "", "a reason"), "ok", "not needed", id="clock-not-needed"),
        pytest.param(feeder.parts(UP), "ok", "neither a store nor alerts", id="parts-none"),
        pytest.param(feeder.parts(replace(UP, parts={"store": "up"})), "ok", "feeder: store", id="parts"),
        pytest.param(
            feeder.parts(replace(UP, parts={"store": "up", "alerts": "silent"})),
            "warn",
            "5 s: alerts",
            id="parts-silent",
        ),
        pytest.param(feeder.feeder(None, None, "1.0", "auto"), "ok", "none runs", id="feeder-none"),
        pytest.param(feeder.feeder(None, "no key", "1.0", "auto"), "warn", "not checked: no key", id="feeder-unheard"),
        pytest.param(feeder.feeder(UP, None, "1.0", "auto"), "ok", "source xtquant, state up, 3 topics", id="feeder"),
        pytest.param(feeder.feeder(UP, None, "2.0", "auto"), "warn", "1.0, but installed is 2.0", id="feeder-old"),
        pytest.param(feeder.feeder(None, None, "1", "auto", "no: do"), "fail", "no", id="feeder-refuses"),
        pytest.param(feeder.feeder(UP, None, "1.0", "sim"), "warn", "but the setting is sim", id="feeder-other"),
        pytest.param(
            feeder.feeder(replace(UP, sdk="250807.1.2", since=1, time=300_001), None, "1.0", "auto"),
            "ok",
            "state up for 5 min, 3 topics, version 1.0, xtquant 250807.1.2",
            id="feeder-sdk",
        ),
        pytest.param(
            feeder.feeder(replace(UP, call="get_full_tick", call_age=31.0), None, "1.0", "auto"),
            "warn",
            "get_full_tick has not returned for 31 s",
            id="feeder-call",
        ),
        pytest.param(
            feeder.feeder(replace(UP, state="connecting"), None, "1.0", "auto"), "warn", "connecting", id="feeder-new"
        ),
        pytest.param(
            feeder.feeder(replace(UP, state="refused", reason="unsupported_sdk"), None, "1.0", "auto"),
            "fail",
            "state refused (unsupported_sdk)",
            id="feeder-sdk-refused",
        ),
        pytest.param(feeder.journal(replace(UP, trade_seq=7)), "ok", "newest trade event is 7", id="journal"),
        pytest.param(feeder.journal(replace(UP, journal="disk is full")), "fail", "disk is full", id="journal-full"),
        pytest.param(feeder.trade(UP), "ok", "no accounts", id="trade-none"),
        pytest.param(feeder.trade(served("up")), "ok", "******0365 (STOCK) is up", id="trade-up"),
        pytest.param(feeder.trade(served("up", "connecting")), "warn", "is connecting: why", id="trade-waiting"),
        pytest.param(feeder.trade(served("connecting", "down")), "fail", "is down: why", id="trade-down"),
        pytest.param(feeder.journal(replace(UP, journal_note="set aside")), "warn", "set aside", id="journal-aside"),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)


@pytest.mark.parametrize(
    ("state", "reason", "level"),
    [("down", "terminal_unreachable", "fail"), ("stale", None, "warn"), ("ended", None, "warn")],
)
def test_a_feeder_that_is_not_up_is_named_with_its_reason(state: str, reason: str | None, level: str) -> None:
    status = FeedStatus("sim", True, state, 1, 1, reason=reason, version="1.0")  # type: ignore[arg-type]
    finding = feeder.feeder(status, None, "1.0", "auto")
    assert finding.level == level
    assert f"SIMULATED data, state {state}{f' ({reason})' if reason else ''}" in finding.said


@pytest.mark.parametrize("state", ["connecting", "down"])
@pytest.mark.parametrize(
    ("source", "advice"),
    [("xtquant+push", "terminal"), ("push", "the line `pushers`"), ("demo", "see the feeder's log")],
)
def test_the_advice_about_accounts_is_that_of_the_source(state: str, source: str, advice: str) -> None:
    assert advice in feeder.trade(replace(served(state), source=source)).advice
