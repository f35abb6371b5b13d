"""The pages of a forwarder: what a client that sends nothing costs others."""

from __future__ import annotations

import socket
import urllib.request
from contextlib import ExitStack

import pytest

from qmt_bridge.forward import health
from tests.support.waiting import wait_for


def numbers() -> health.Numbers:
    return health.Numbers("1", True, 0.5, 0.0, {}, {}, {})


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_connections_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    # None of them ends by itself meanwhile.
    monkeypatch.setattr(health._Handler, "timeout", 60.0)
    served = health.Health("127.0.0.1:0", numbers)
    try:
        with ExitStack() as opened:
            for _ in range(health.MOST_CONNECTIONS):
                opened.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            further = opened.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=10))
            # Those before it have taken all places, in the order in which they came.
            assert further.recv(1) == b""
        wait_for(lambda: ready(served.port), "a place")
    finally:
        served.close()
