"""The check of the programs that push data to the feeder."""

from __future__ import annotations

import pytest

from qmt_bridge.commands.doctor.findings import feeder
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.commands.doctor.findings.pushers import address, pushers, serves_pushers
from qmt_bridge.wire.messages import FeedStatus, PusherState
from tests.support.doctor import assert_finding

WHERE = "tcp://127.0.0.1:5560"
ALL = "tcp://0.0.0.0:5560"
UP = PusherState("ctp", "up", since=1, kinds=("quote", "whole"), records=7, silent=0.1)
GONE = PusherState("desk", "down", "pusher_gone", 1, ("trade",))


def judge(*states: PusherState, where: str = WHERE, has_key: bool = False) -> Finding:
    return pushers(FeedStatus("push", False, "up", 1, 300_001, pushers=states), where, has_key=has_key)


@pytest.mark.parametrize(
    ("finding", "level", "said", "advice"),
    [
        pytest.param(
            judge(UP), "ok", "ctp: up, for 5 min, serves quote whole, has sent 7 records and 0 bad lines", "", id="up"
        ),
        pytest.param(
            judge(),
            "warn",
            "none has connected",
            f"start a program that pushes records; it connects to {WHERE}, without a key, as the user of the feeder",
            id="none",
        ),
        pytest.param(
            judge(UP, GONE, has_key=True),
            "fail",
            "desk: down (pusher_gone), for 5 min, serves trade",
            f"start the program again: desk; it connects to {WHERE}, with push_key",
            id="gone",
        ),
        pytest.param(judge(UP, GONE, where=""), "fail", "desk: down", "start the program again: desk", id="elsewhere"),
        pytest.param(
            judge(UP, PusherState("desk", "connecting", since=1)),
            "warn",
            "desk: connecting, for 5 min",
            f"start the program: desk; it connects to {WHERE}, without a key, as the user of the feeder",
            id="connecting",
        ),
        pytest.param(
            judge(PusherState("ctp", "down", "no login", silent=0.1)),
            "fail",
            "ctp: down (no login)",
            "see what the pusher itself logs",
            id="down-by-itself",
        ),
        pytest.param(
            judge(PusherState("ctp", "stale", "market_silent", silent=0.1)),
            "warn",
            "ctp: stale (market_silent)",
            "see what the pusher itself logs",
            id="stale",
        ),
        pytest.param(
            judge(PusherState("ctp", "up", silent=9.0)),
            "warn",
            "ctp: up, silent for 9 s",
            "see what the pusher itself logs",
            id="silent",
        ),
    ],
)
def test_pushers_are_judged_by_the_worst_of_them(finding: Finding, level: str, said: str, advice: str) -> None:
    assert_finding(finding, level, said)
    assert finding.advice == advice


def listens(error: str | None = None, where: str = WHERE, **changed: bool) -> Finding:
    facts = {"running": False, "has_key": False, "has_certificate": False}
    return address(where, error, **{**facts, **changed})


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(listens(), "ok", f"{WHERE} is free", id="free"),
        pytest.param(listens("taken", running=True), "ok", f"the running feeder has {WHERE}", id="running"),
        pytest.param(listens("taken"), "fail", f"cannot listen on {WHERE}: taken", id="taken"),
        pytest.param(listens(where=ALL, has_key=True), "fail", "from other machines", id="no-certificate"),
        pytest.param(listens(where=ALL, has_certificate=True), "fail", "from other machines", id="no-key"),
        pytest.param(listens(where=ALL, has_certificate=True, has_key=True), "ok", "is free", id="elsewhere"),
    ],
)
def test_address_of_pushers_is_free_or_has_a_cause(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)


def test_a_feed_of_pushers_that_is_down_names_their_line() -> None:
    for source, line in (("push", "`pushers`"), ("xtquant+push", "`pushers`"), ("xtquant", "`terminal`")):
        assert serves_pushers(source) == (line == "`pushers`")
        assert line in feeder.feeder(FeedStatus(source, False, "down", 1, 1), None, "", "auto").advice
