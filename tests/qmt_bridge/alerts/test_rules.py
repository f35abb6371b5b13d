"""The rules: what of the observed state is well, bad, or cannot be judged."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qmt_bridge.alerts.rules import ABSENT, GATEWAY_ABSENT, RULES, Finding, Limits, Observed, blind, judge
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.messages import AccountState, FeedStatus, PusherState

LIMITS = Limits(lost=100, cut=5, disk_mb=1024)
MIB = 1024 * 1024


def status(state: Any = "up", **more: Any) -> FeedStatus:
    return FeedStatus(**{"source": "xtquant", "simulated": False, "state": state, "epoch": 1, "time": 0, **more})


def seen(**more: Any) -> Observed:
    """Return what is observed while all is well in trading hours."""
    well = {
        "trading_day": True,
        "trading": True,
        "status": status(),
        "status_age": 0.5,
        "store": StoreStatus(0, free=9000 * MIB),
        "store_age": 0.5,
        "store_expected": True,
        "gateway_age": 1.0,
        "gateway_expected": True,
        "lost": 0,
        "cut": {},
        "free": 9000 * MIB,
    }
    return Observed(**{**well, **more})


def verdicts(observed: Observed, limits: Limits = LIMITS) -> dict[tuple[str, str], str]:
    return {(each.rule, each.subject): each.verdict for each in judge(observed, limits)}


def found(observed: Observed, rule: str) -> list[Finding]:
    return [each for each in judge(observed, LIMITS) if each.rule == rule]


def test_a_service_that_works_is_well() -> None:
    assert set(verdicts(seen()).values()) == {"well"}
    assert {rule for rule, _ in verdicts(seen())} == set(RULES) - {"account", "cut"}


@pytest.mark.parametrize("state", ["down", "stale", "connecting", "refused"])
def test_a_feed_that_is_not_up_is_bad_in_trading_hours(state: str) -> None:
    [finding] = found(seen(status=status(state, reason="terminal_hung")), "feed")
    assert (finding.verdict, finding.facts) == ("bad", {"state": state, "reason": "terminal_hung"})
    [finding] = found(seen(status=status(state), trading=False), "feed")
    assert finding.verdict == "unknown"


def test_a_feed_that_is_up_is_well_at_any_hour() -> None:
    assert verdicts(seen(trading=False))["feed", ""] == "well"


def test_a_part_that_could_not_answer_yet_is_not_judged() -> None:
    observed = seen(status=None, status_age=1.0, store=None, store_age=1.0)
    assert verdicts(observed)["feed", ""] == "unknown"
    assert verdicts(observed)["store", ""] == "unknown"


@pytest.mark.parametrize(("age", "verdict"), [(ABSENT, "well"), (ABSENT + 0.1, "bad"), (math.inf, "bad")])
def test_a_feeder_that_does_not_answer_is_bad(age: float, verdict: str) -> None:
    assert verdicts(seen(status_age=age))["feed", ""] == verdict


def test_a_simulator_and_a_replay_keep_no_trading_hours() -> None:
    for source in ("sim", "replay"):
        absent = seen(status=status(source=source), status_age=math.inf, trading=False)
        assert verdicts(absent)["feed", ""] == "bad"
    assert verdicts(seen(status=status("ended", source="replay")))["feed", ""] == "well"


def test_only_invented_data_of_another_source_keeps_no_hours() -> None:
    for simulated, verdict in ((False, "unknown"), (True, "bad")):
        absent = seen(status=status(source="demo", simulated=simulated), status_age=math.inf, trading=False)
        assert verdicts(absent)["feed", ""] == verdict


def test_pushers_of_real_data_keep_trading_hours() -> None:
    for source in ("push", "xtquant+push"):
        assert verdicts(seen(status=status("down", source=source), trading=False))["feed", ""] == "unknown"
    invented = status("down", source="push", simulated=True)
    assert verdicts(seen(status=invented, trading=False))["feed", ""] == "bad"


def test_the_pushers_that_are_as_bad_as_the_feed_are_named() -> None:
    pushers = (PusherState("a", "up"), PusherState("b", "down"), PusherState("c", "stale"), PusherState("d", "down"))
    pushers += (PusherState("e", "down", "bye"),)
    [finding] = found(seen(status=status("down", reason="pusher_gone", source="push", pushers=pushers)), "feed")
    assert finding.facts == {"state": "down", "reason": "pusher_gone", "pushers": "b, d"}


def account(state: Any, number: str = "******0365", **more: Any) -> AccountState:
    return AccountState(number, "STOCK", state, **more)


def test_each_account_is_judged_by_its_own_state() -> None:
    accounts = (account("up", "***1"), account("down", "***2", reason="no session"))
    observed = seen(status=status(accounts=accounts))
    assert verdicts(observed)["account", "***1 STOCK"] == "well"
    assert verdicts(observed)["account", "***2 STOCK"] == "bad"
    assert verdicts(observed._replace(trading=False))["account", "***2 STOCK"] == "unknown"


def test_accounts_of_a_terminal_that_is_away_are_no_second_incident() -> None:
    observed = seen(status=status("down", accounts=(account("down"),)))
    assert verdicts(observed)["account", "******0365 STOCK"] == "unknown"
    stale = seen(status=status("stale", accounts=(account("down"),)))
    assert verdicts(stale)["account", "******0365 STOCK"] == "bad"


def test_the_worse_of_two_accounts_with_one_mask_counts() -> None:
    for accounts in ((account("up"), account("down")), (account("down"), account("up"))):
        [*_, last] = found(seen(status=status(accounts=accounts)), "account")
        assert last.verdict == "bad"
        assert len(found(seen(status=status(accounts=accounts)), "account")) == 1


def test_accounts_and_journal_of_an_absent_feeder_are_unknown() -> None:
    observed = seen(status=status(accounts=(account("up"),), journal="disk full"), status_age=10.0)
    assert found(observed, "account") == []
    assert "account" in blind(observed)
    assert verdicts(observed)["journal", ""] == "unknown"
    assert blind(seen()) == frozenset()


def test_a_journal_that_cannot_be_written_is_bad_at_any_hour() -> None:
    [finding] = found(seen(status=status(journal="disk full"), trading=False), "journal")
    assert (finding.verdict, finding.facts) == ("bad", {"reason": "disk full"})


def test_a_store_is_bad_if_it_fails_or_is_gone() -> None:
    assert verdicts(seen(store_age=ABSENT + 1))["store", ""] == "bad"
    assert verdicts(seen(store=StoreStatus(0, failure="disk full")))["store", ""] == "bad"
    assert ("store", "") not in verdicts(seen(store=None, store_expected=False))
    assert verdicts(seen(store=None, store_age=ABSENT + 1))["store", ""] == "bad"


def test_a_gateway_is_missed_only_after_it_was_seen() -> None:
    assert verdicts(seen(gateway_age=GATEWAY_ABSENT + 1))["gateway", ""] == "bad"
    assert ("gateway", "") not in verdicts(seen(gateway_age=math.inf, gateway_expected=False))


@pytest.mark.parametrize(
    ("free", "of_store", "verdict"),
    [
        (1023, 9000, "bad"),
        (9000, 1023, "bad"),
        (1024, 9000, "unknown"),
        (1127, 9000, "well"),
        (9000, 9000, "well"),
    ],
)
def test_the_disk_with_the_least_room_counts(free: int, of_store: int, verdict: str) -> None:
    observed = seen(free=free * MIB, store=StoreStatus(0, free=of_store * MIB))
    assert verdicts(observed)["disk", ""] == verdict


def test_a_disk_that_is_not_known_is_not_judged() -> None:
    assert verdicts(seen(free=None, store=None, store_expected=False))["disk", ""] == "unknown"
    assert ("disk", "") not in verdicts(seen(free=0), LIMITS._replace(disk_mb=0))


@pytest.mark.parametrize(
    ("count", "verdict"), [(0, "well"), (50, "well"), (51, "unknown"), (99, "unknown"), (100, "bad")]
)
def test_lost_messages_are_bad_from_the_limit_on(count: int, verdict: str) -> None:
    assert verdicts(seen(lost=count))["lost", ""] == verdict


def test_lost_messages_are_unknown_without_a_gateway() -> None:
    assert verdicts(seen(lost=None, cut=None))["lost", ""] == "unknown"
    assert "cut" in blind(seen(lost=None, cut=None))
    assert ("lost", "") not in verdicts(seen(lost=500), LIMITS._replace(lost=0))


def test_each_client_that_is_cut_off_often_is_bad() -> None:
    observed = seen(cut={"desk": 5, "10.0.0.5": 2, "a": 3})
    assert [(each.subject, each.verdict) for each in found(observed, "cut")] == [
        ("desk", "bad"),
        ("10.0.0.5", "well"),
        ("a", "unknown"),
    ]
    assert [each for each in judge(observed, LIMITS._replace(cut=0)) if each.rule == "cut"] == []


def test_a_feeder_that_starts_again_and_again_is_bad() -> None:
    assert [verdicts(seen(restarts=count))["restarts", ""] for count in range(4)] == ["well", "well", "unknown", "bad"]


def test_ignored_rules_find_nothing() -> None:
    ignoring = LIMITS._replace(ignored=frozenset(("gateway", "disk")))
    assert {rule for rule, _ in verdicts(seen(), ignoring)}.isdisjoint({"gateway", "disk"})
