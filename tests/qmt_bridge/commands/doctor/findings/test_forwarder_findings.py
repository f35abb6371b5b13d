"""The checks of a forwarder: its keys, its addresses, and what it tells about itself."""

from __future__ import annotations

import pytest

from qmt_bridge.commands.doctor.findings import forwarder
from qmt_bridge.commands.doctor.findings.finding import Finding
from tests.support.doctor import assert_finding

AT = "127.0.0.1:8002"
NAME = "forward_ask_addr"
FREE = "tcp://h:1"
TAKEN = "cannot listen on tcp://h:1: in use"
READY = {"ready": True, "heartbeat_age": 0.1, "links": {"market_addr": None}}
CUT_OFF = {"ready": False, "heartbeat_age": None, "links": {"market_addr": "absent", "ask_addr": None}}


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(forwarder.keys("k", "no file", 0), "fail", "does not start: no file", id="keys-missing"),
        pytest.param(forwarder.keys("", "", 0), "ok", "none: every program", id="no-keys"),
        pytest.param(forwarder.keys("k", "", 0), "warn", "admits no client", id="keys-of-none"),
        pytest.param(forwarder.keys("k", "", 2), "ok", "admits 2 clients", id="keys"),
        pytest.param(forwarder.listens(NAME, FREE, TAKEN, True, True), "ok", "running forwarder has", id="running"),
        pytest.param(forwarder.listens(NAME, FREE, None, False, True), "ok", "is free", id="free"),
        pytest.param(forwarder.listens(NAME, FREE, TAKEN, False, True), "fail", TAKEN, id="taken"),
        pytest.param(forwarder.listens(NAME, FREE, TAKEN, False, False), "warn", "may be a forwarder", id="not-asked"),
        pytest.param(forwarder.health("", None, None), "ok", "cannot be asked", id="no-health"),
        pytest.param(forwarder.health(AT, READY, None), "ok", "answers at 127.0.0.1:8002, and", id="ready"),
        pytest.param(
            forwarder.health(AT, CUT_OFF, None), "warn", "no connection to market_addr (absent)", id="cut-off"
        ),
        pytest.param(forwarder.health(AT, None, None), "ok", "none runs: 127.0.0.1:8002 is free", id="none"),
        pytest.param(forwarder.health(AT, None, "in use"), "fail", "another program than a forwarder", id="other"),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)
