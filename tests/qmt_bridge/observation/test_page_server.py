"""The pages of a process: what clients that send nothing, or little, cost others."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from qmt_bridge.observation import page_server
from qmt_bridge.observation.page_server import Page, PageServer
from tests.support.waiting import wait_for


@pytest.fixture
def port() -> Iterator[int]:
    served = PageServer("metrics_addr", "127.0.0.1:0", {"/ready": lambda: Page(200, "text/plain", b"yes")})
    yield served.port
    served.close()


def answer(port: int, path: str = "/ready") -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
        body: bytes = found.read()
        return body


def ready(port: int) -> bool:
    try:
        return answer(port) == b"yes"
    except OSError:
        return False


def test_a_path_without_a_page_is_told_which_there_are(port: int) -> None:
    assert answer(port, "/ready?since=1") == b"yes"
    with pytest.raises(urllib.error.HTTPError) as told:
        answer(port, "/")
    assert (told.value.code, told.value.read()) == (404, b"/ready\n")


def test_connections_at_a_time_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # None of them ends by itself meanwhile.
    monkeypatch.setattr(page_server, "REQUEST_SECONDS", 60.0)
    with ExitStack() as opened:
        for _ in range(page_server.MOST_CONNECTIONS):
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        further = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        # Those before it have taken all places, in the order in which they came.
        assert further.recv(1) == b""
    wait_for(lambda: ready(port), "a place")


def test_a_request_that_comes_by_bytes_gives_its_place_back(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "REQUEST_SECONDS", 0.3)

    def is_over(slow: socket.socket) -> bool:
        try:
            slow.sendall(b"G")
            return slow.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    with socket.create_connection(("127.0.0.1", port), timeout=0.05) as slow:
        wait_for(lambda: is_over(slow), "the end of the connection")
    assert ready(port)


@pytest.mark.parametrize(("error", "is_logged"), [(ZeroDivisionError, True), (ConnectionResetError, False)])
def test_a_failure_to_answer_is_logged(
    error: type[Exception], is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Page:
        raise error

    served = PageServer("metrics_addr", "127.0.0.1:0", {"/ready": fail})
    try:
        assert not ready(served.port)
        # The place is given back after the error was handled.
        wait_for(lambda: served._server._places._value == page_server.MOST_CONNECTIONS, "the end of the request")
    finally:
        served.close()
    assert (error.__name__ in caplog.text) == is_logged
