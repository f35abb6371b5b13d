"""The checks of the settings, the Python version and the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmt_bridge.commands.doctor.findings import machine
from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.errors import ConfigError
from tests.support.doctor import assert_finding


@pytest.mark.parametrize(
    ("finding", "level", "said"),
    [
        pytest.param(machine.python((3, 11), 64, True), "ok", "3.11, 64-bit", id="python"),
        pytest.param(machine.python((3, 12), 64, True), "warn", "32 us a code, 160 ms", id="python-without-c-codec"),
        pytest.param(machine.python((3, 12), 64, False), "ok", "3.12", id="python-for-a-gateway"),
        pytest.param(machine.python((3, 11), 32, True), "fail", "xtquant is 64-bit only", id="python-32-bit"),
        pytest.param(machine.folder(Path("d"), None), "ok", "d can be written", id="folder"),
        pytest.param(machine.folder(Path("d"), "denied"), "fail", "d cannot be written: denied", id="folder-denied"),
        pytest.param(machine.disk(5 << 30), "ok", "5.0 GiB", id="disk"),
        pytest.param(machine.disk(1 << 29), "warn", "0.5 GiB", id="disk-little"),
        pytest.param(machine.disk(1 << 20), "fail", "0.0 GiB", id="disk-full"),
        pytest.param(machine.environment([]), "ok", "is a setting", id="environment"),
        pytest.param(machine.environment(["X is none"]), "warn", "X is none", id="environment-foreign"),
    ],
)
def test_a_check_has_the_level_and_text_of_its_facts(finding: Finding, level: str, said: str) -> None:
    assert_finding(finding, level, said)


def test_a_settings_error_becomes_a_line() -> None:
    assert machine.settings(ConfigError("port", "is bad")).said == "port: is bad"
