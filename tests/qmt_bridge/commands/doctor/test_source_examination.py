"""The command `qmt-bridge doctor` where the source is of another package, with real packages in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.demo_feed import install
from tests.support.doctor import Machine, levels
from tests.support.paths import ROOT


def with_package(machine: Machine, folder: Path, text: str | None = None) -> Machine:
    install(folder / "site", text)
    machine.env |= {"PYTHONPATH": os.pathsep.join(map(str, (folder / "site", ROOT))), "QMT_BRIDGE_SOURCE": "demo"}
    return machine


def test_a_source_of_another_package_is_made(machine: Machine, tmp_path: Path) -> None:
    code, findings = with_package(machine, tmp_path).run()
    assert code == 0, findings
    assert findings["source"].said == "demo of the package demo-feed 1.0 can be made"
    assert findings["xtquant"].said == "not needed: source is demo"
    assert findings["terminal"].said == "not needed: the source is not xtquant"


@pytest.mark.parametrize(
    ("text", "setting", "said"),
    [
        ("import os\nos._exit(5)", "", "the process that asks ended with exit code 5"),
        (None, "x", "[sources.demo] interval: expected `float`, got `str`"),
    ],
)
def test_a_source_that_cannot_be_made_fails(
    machine: Machine, tmp_path: Path, text: str | None, setting: str, said: str
) -> None:
    machine = with_package(machine, tmp_path, text)
    machine.env |= {"QMT_BRIDGE_SOURCES_DEMO_INTERVAL": setting} if setting else {}
    code, findings = machine.run()
    assert code == 1
    assert levels(findings, "fail") == ["source"]
    assert findings["source"].said.startswith(said)
