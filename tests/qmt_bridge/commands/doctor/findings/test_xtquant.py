"""The checks of xtquant, the terminal and the data service."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmt_bridge.commands.doctor.answers import Center, Sdk
from qmt_bridge.commands.doctor.findings import xtquant
from qmt_bridge.commands.doctor.findings.finding import Finding
from tests.support.doctor import assert_finding
from tests.support.paths import ROOT

SDK = Sdk("", xtquant.TESTED_XTQUANT, True)
OTHER, COPIED = Sdk("", "1", True), Sdk("", "", True)
FOREIGN, NONE = Sdk("", "1", False), Sdk()
OLD = Sdk("", "1", True, {"connection": "", "formulas": "no f", "trade events": "no t", "data service": "no d"})
CENTER = Center(host="127.0.0.1", ports=(58609, 58619), port=58609)


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(xtquant.xtquant(SDK, "auto", True, True), "ok", "the tested version", id="sdk"),
        pytest.param(xtquant.xtquant(OTHER, "auto", True, True), "warn", "1, but tested is", id="sdk-other"),
        pytest.param(xtquant.xtquant(COPIED, "auto", True, False), "warn", "unknown version", id="sdk-copied"),
        pytest.param(xtquant.xtquant(FOREIGN, "auto", True, True), "warn", "SIMULATED", id="sdk-not-native"),
        pytest.param(xtquant.xtquant(NONE, "auto", True, True), "warn", "not installed", id="sdk-missing"),
        pytest.param(xtquant.xtquant(FOREIGN, "auto", False, False), "ok", "SIMULATED", id="sdk-on-linux"),
        pytest.param(xtquant.xtquant(FOREIGN, "xtquant", False, True), "fail", "no native", id="sdk-needed"),
        pytest.param(xtquant.xtquant(Sdk("oh"), "xtquant", True, True), "fail", "cannot be used: oh", id="sdk-broken"),
        pytest.param(xtquant.xtquant(NONE, "sim", True, True), "ok", "source is sim", id="sdk-for-sim"),
        pytest.param(xtquant.xtquant(NONE, "replay", True, True), "ok", "is replay", id="sdk-for-replay"),
        pytest.param(xtquant.terminal("h:1", None, "", ""), "ok", "connects to h:1", id="terminal"),
        pytest.param(xtquant.terminal("h:1", "refused", "", ""), "fail", "h:1: refused", id="terminal-away"),
        pytest.param(xtquant.terminal("h:1", None, "no login", ""), "fail", "no login", id="terminal-not-ours"),
        pytest.param(xtquant.terminal("h:1", "refused", "", "a reason"), "ok", "not needed", id="terminal-not-needed"),
        pytest.param(xtquant.token("7b1e0c"), "ok", "is set", id="token"),
        pytest.param(xtquant.token('"7b1e0c"'), "warn", "quotes", id="token-quoted"),
        pytest.param(xtquant.token("7b1e0c "), "warn", "blanks", id="token-blank"),
        pytest.param(xtquant.token("7b1e0c\n"), "warn", "blanks", id="token-newline"),
        pytest.param(xtquant.center(CENTER), "ok", "port 58609 of 127.0.0.1 is free", id="center"),
        pytest.param(xtquant.center(Center("no module")), "fail", "imported: no module", id="center-missing"),
        pytest.param(xtquant.center(replace(CENTER, port=0)), "fail", "58609 to 58619 of 127.0.0.1", id="center-ports"),
        pytest.param(xtquant.servers(0, ""), "ok", "any", id="servers-any"),
        pytest.param(xtquant.servers(2, ""), "ok", "2 addresses", id="servers"),
        pytest.param(xtquant.servers(2, "got 'x'"), "fail", "xt_servers: got 'x'", id="servers-malformed"),
        pytest.param(xtquant.home(Path("d"), None, 5 << 30), "ok", "d can be written, 5.0 GiB", id="home"),
        pytest.param(xtquant.home(Path("d"), None, 3 << 30), "warn", "3.0 GiB free for market data", id="home-little"),
        pytest.param(xtquant.home(Path("d"), None, 1 << 20), "fail", "0.0 GiB", id="home-full"),
        pytest.param(
            xtquant.home(Path("d"), "denied", 5 << 30), "fail", "d cannot be written: denied", id="home-denied"
        ),
        pytest.param(xtquant.accounts(0, "", False, ""), "ok", "market data only", id="accounts-none"),
        pytest.param(xtquant.accounts(2, "C:/q", True, ""), "ok", "2, through C:/q", id="accounts"),
        pytest.param(xtquant.accounts(2, "C:/q", False, ""), "fail", "no folder: C:/q", id="accounts-no-folder"),
        pytest.param(xtquant.accounts(2, "", False, ""), "fail", "not set", id="accounts-no-userdata"),
        pytest.param(xtquant.accounts(2, "", False, "a reason"), "ok", "not needed", id="accounts-not-needed"),
        pytest.param(xtquant.calendar("20261231", "", "20261124", ""), "ok", "until 20261231", id="calendar"),
        pytest.param(xtquant.calendar("20261124", "", "20261124", ""), "ok", "20261124", id="calendar-last-day"),
        pytest.param(xtquant.calendar("20251231", "", "20260105", ""), "warn", "20260105", id="calendar-old"),
        pytest.param(xtquant.calendar("", "empty", "20260105", ""), "warn", "not checked: empty", id="calendar-none"),
        pytest.param(xtquant.calendar("", "", "20260105", "a reason"), "ok", "not needed", id="calendar-not-needed"),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)


@pytest.mark.parametrize(
    ("has_accounts", "has_token", "levels"),
    [(False, False, ["ok", "warn", "ok", "ok"]), (True, True, ["ok", "warn", "fail", "fail"])],
)
def test_each_capability_is_a_line_and_fails_if_it_is_needed(
    has_accounts: bool, has_token: bool, levels: list[str]
) -> None:
    findings = xtquant.capabilities(OLD, has_accounts, has_token)
    assert [finding.check for finding in findings] == [f"sdk: {name}" for name in OLD.lacks]
    assert [finding.level for finding in findings] == levels
    assert [finding.said.rpartition("; ")[2] for finding in findings] == ["xtquant has it", "no f", "no t", "no d"]


def test_linux_is_told_of_its_own_sdk() -> None:
    finding = xtquant.xtquant(NONE, "xtquant", False, False)
    assert finding.level == "fail"
    assert "xtquant for Linux (docs/xtquant.md, untried)" in finding.advice


def test_the_tested_version_is_the_pinned_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [item for item in project["dependencies"] if item.startswith("xtquant")]
    assert [pin.partition(";")[0].strip() for pin in pins] == [f"xtquant=={xtquant.TESTED_XTQUANT}"]
