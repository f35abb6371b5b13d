"""Who has a port: the process is named, and a system that does not answer holds nothing up."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from qmt_bridge.process import holder
from tests.support.wine import not_under_wine


@not_under_wine("it takes a minute to tell who has a port, or fails")
def test_the_process_that_listens_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert f"(pid {os.getpid()}" in holder.holder(listening.getsockname()[1])


def test_a_free_port_has_no_holder() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert holder.holder(bound.getsockname()[1]) == ""


@pytest.mark.parametrize("code", ["import time; time.sleep(600)", "raise SystemExit(1)"])
def test_a_look_that_hangs_or_fails_names_no_process(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "_LIMIT", 0.5)
    monkeypatch.setattr(holder, "python", lambda *_: [sys.executable, "-c", code])
    assert holder.holder(1) == ""


def test_settings_and_their_secrets_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_BRIDGE_API_KEY", "secret")
    shown = "import os; print(sorted(name for name in os.environ if name.startswith('QMT_BRIDGE_')), end='')"
    monkeypatch.setattr(holder, "python", lambda *_: [sys.executable, "-c", shown])
    assert holder.holder(1) == "[]"
