"""URLs that are not there, and plain HTTP on the URL of a WebSocket (gateway/app.py)."""

from __future__ import annotations

import http.client
import logging

import pytest
import websockets
from starlette.testclient import TestClient

from gateway.app import create_app
from gateway.endpoints.urls import ENDPOINTS
from qmt_bridge.config import Config
from tests.support.rig import DEADLINE, Rig


def ask(port: int, method: str, path: str) -> tuple[http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", [*ENDPOINTS, "/ws/realtime/", "/ws/realtime?stocks=600519.SH"])
def test_plain_http_on_a_socket_asks_for_an_upgrade(rig: Rig, method: str, path: str) -> None:
    response, body = ask(rig.servers[0].port, method, path)
    assert response.status == 426
    assert response.headers["Upgrade"] == "websocket"
    assert response.headers["Connection"] == "Upgrade"
    assert method == "HEAD" or f"{path.partition('?')[0]} is a WebSocket: connect with ws://" in body


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/ws/realtme", "did you mean /ws/realtime?"),
        ("/api/lst", "did you mean /api/last?"),
        ("/qqq", "the WebSockets are /ws/realtime, "),
        ("/" + "a" * 5000, "there is nothing at '/" + "a" * 59 + "';"),
        ("/%0d%0aX-Header:%20a", r"there is nothing at '/\r\nX-Header: a'"),
        ("/%e8%82%a1", "there is nothing at '/股'"),
    ],
)
async def test_unknown_path_is_not_found(rig: Rig, caplog: pytest.LogCaptureFixture, path: str, words: str) -> None:
    port = rig.servers[0].port
    response, body = ask(port, "GET", path)
    assert (response.status, words in body) == (404, True), body
    with caplog.at_level(logging.ERROR), pytest.raises(websockets.InvalidStatus) as raised:
        async with rig.connect(path):
            pass
    assert raised.value.response.status_code == 404
    assert words in raised.value.response.body.decode()
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", ["/healthz", "/", "/assets/app.js"])
async def test_page_is_no_socket(rig: Rig, path: str) -> None:
    with pytest.raises(websockets.InvalidStatus) as raised:
        async with rig.connect(path):
            pass
    assert raised.value.response.status_code == 404


def test_unknown_socket_is_closed_where_a_server_cannot_answer(config: Config) -> None:
    client = TestClient(create_app(config))
    # Starlette's test client offers denial responses.
    with pytest.raises(Exception, match=r"^$") as raised, client.websocket_connect("/ws/nowhere"):
        pass
    assert raised.value.status_code == 404  # type: ignore[attr-defined]
