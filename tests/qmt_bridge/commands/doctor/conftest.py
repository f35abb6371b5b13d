"""Machines on which `qmt-bridge doctor` runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doctor import TOKEN, Machine, listener
from tests.support.paths import FAKES, ROOT
from tests.support.ports import free_ports


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, QMT_BRIDGE_SOURCE="sim")


@pytest.fixture
def terminal() -> Iterator[str]:
    """Return the address of a listening terminal; the probe process uses the stand-in for xtquant."""
    with listener() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def trading_machine(tmp_path: Path, terminal: str) -> Machine:
    env = {"PYTHONPATH": os.pathsep.join(map(str, (FAKES, ROOT))), "QMT_BRIDGE_XT_ADDR": terminal}
    env |= {"FAKE_XT_ADDR": terminal, "FAKE_XT_TICK_MS": "1000", "FAKE_XT_CODES": "000001.SH", "FAKE_XT_CHATTER": "1"}
    return Machine(tmp_path, **env, FAKE_XT_HOLIDAYS="20260101,20261001")


@pytest.fixture
def token_machine(trading_machine: Machine) -> Machine:
    """Return a machine with a token, and nothing at the terminal's address."""
    trading_machine.env |= {"QMT_BRIDGE_XT_TOKEN": TOKEN, "QMT_BRIDGE_XT_ADDR": f"127.0.0.1:{free_ports(1)[0]}"}
    return trading_machine
