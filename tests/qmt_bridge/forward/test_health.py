"""The pages of a forwarder: what a client that sends nothing costs others."""

from __future__ import annotations

import socket
import threading
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


def test_failure_to_answer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> health.Numbers:
        raise ZeroDivisionError

    served = health.Health("127.0.0.1:0", fail)
    try:
        assert not ready(served.port)
        wait_for(lambda: "ZeroDivisionError" in caplog.text, "the log")
    finally:
        served.close()


def test_client_that_leaves_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    asked, left = threading.Event(), threading.Event()

    def wait() -> health.Numbers:
        asked.set()
        left.wait(10)
        raise ConnectionResetError

    served = health.Health("127.0.0.1:0", wait)
    try:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            assert asked.wait(10)
        left.set()
        wait_for(lambda: served._server._places._value == health.MOST_CONNECTIONS, "the end of the request")
    finally:
        served.close()
    assert caplog.records == []
