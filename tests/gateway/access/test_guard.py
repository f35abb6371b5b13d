"""What holds for every HTTP request: headers for browsers, CORS, and who sees the numbers."""

from __future__ import annotations

import http.client
import json
from urllib.parse import quote

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message

from gateway.access.guard import Guard
from gateway.access.peers import from_this_machine
from qmt_bridge.config import Config
from tests.support.rig import DEADLINE, KEY, Rig

PATHS = ("/healthz", "/readyz", "/metrics", "/ws/realtime", "/nowhere")
HERE = ("127.0.0.1", 8000)


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "http://localhost:1"}]
)
def test_every_answer_has_the_headers_for_browsers(rig: Rig, path: str, headers: dict[str, str]) -> None:
    _, found, _ = ask(rig.servers[0].port, path, **headers)
    assert found["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert found["X-Content-Type-Options"] == "nosniff"
    assert found["Referrer-Policy"] == "no-referrer"
    assert found["Vary"] == "Origin"


@pytest.mark.parametrize("path", PATHS)
def test_answer_names_an_allowed_origin_only(rig: Rig, path: str) -> None:
    server = rig.serve(origins=("https://desk.example",))
    usual = ask(server.port, path)
    assert "Access-Control-Allow-Origin" not in usual[1]
    for origin in ("https://desk.example", "http://localhost:3000", f"http://127.0.0.1:{server.port}"):
        status, found, _ = ask(server.port, path, Origin=origin)
        assert (status, found["Access-Control-Allow-Origin"]) == (usual[0], origin)
    for origin in ("https://evil.example", "null", "file://"):
        status, found, body = ask(server.port, path, Origin=origin)
        assert (status, found["Access-Control-Allow-Origin"]) == (403, None)
        assert "origins" in body


def test_preflight_follows_the_same_list(rig: Rig) -> None:
    port = rig.servers[0].port
    wanted = {"Access_Control_Request_Method": "GET", "Access_Control_Request_Headers": "authorization"}
    status, found, _ = ask(port, "/readyz", "OPTIONS", Origin="http://localhost:3000", **wanted)
    assert (status, found["Access-Control-Allow-Origin"]) == (204, "http://localhost:3000")
    assert "Authorization" in found["Access-Control-Allow-Headers"]
    assert "GET" in found["Access-Control-Allow-Methods"]
    status, found, _ = ask(port, "/readyz", "OPTIONS", Origin="https://evil.example", **wanted)
    assert (status, found["Access-Control-Allow-Headers"]) == (403, None)


@pytest.mark.parametrize("path", ["/readyz", "/api/last?codes=999999.SZ"])
@pytest.mark.parametrize(
    ("site", "mode", "dest", "status"),
    [
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "no-cors", "script", 403),
        ("cross-site", "navigate", "iframe", 403),
        # A link that is followed; a page of the gateway's own host; the address that a reader has typed.
        ("cross-site", "navigate", "document", 200),
        ("same-origin", "no-cors", "image", 200),
        ("none", "navigate", "document", 200),
    ],
)
def test_page_of_another_site_cannot_load_what_has_no_origin(
    rig: Rig, path: str, site: str, mode: str, dest: str, status: int
) -> None:
    told = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}
    assert ask(rig.servers[0].port, path, **told)[0] == status


def test_health_is_bare(rig: Rig) -> None:
    assert ask(rig.servers[0].port, "/healthz")[2] == '{"status":"ok"}'


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
@pytest.mark.parametrize(
    "through", [{"X_Forwarded_For": "203.0.113.7"}, {"Forwarded": "for=203.0.113.7"}, {"Via": "1.1 x"}]
)
def test_client_of_a_proxy_sees_the_numbers_with_a_key_only(rig: Rig, path: str, through: dict[str, str]) -> None:
    port = rig.servers[0].port
    status, found, body = ask(port, path, **through)
    if path == "/readyz":
        assert (status, json.loads(body)) == (200, {"ready": True})
    else:
        assert (status, found["WWW-Authenticate"], "qmt_bridge_" in body) == (401, "Bearer", False)
    status, found, body = ask(port, path, Authorization="Bearer wrong", **through)
    assert (status, found["WWW-Authenticate"], body) == (401, "Bearer", "unauthorized: the API key is wrong\n")
    status, _, body = ask(port, f"{path}?api_key={quote(KEY)}", **through)
    assert (status, "connections" in body) == (200, True)


@pytest.mark.parametrize(
    ("client", "reached", "headers", "here"),
    [
        (("127.0.0.1", 1), HERE, {}, True),
        (("::1", 1), ("::1", 8000), {}, True),
        (("::ffff:127.0.0.1", 1), ("::ffff:127.0.0.1", 8000), {}, True),
        (("192.168.1.5", 1), ("192.168.1.5", 8000), {}, True),
        (("192.168.1.6", 1), ("192.168.1.5", 8000), {}, False),
        (("127.0.0.1", 1), HERE, {"x-forwarded-for": "127.0.0.1"}, False),
        (("127.0.0.1", 1), HERE, {"x-real-ip": "203.0.113.7"}, False),
        (None, HERE, {}, False),
        (("testclient", 1), ("testserver", 80), {}, False),
    ],
)
def test_program_of_this_machine_is_told_from_others(
    client: tuple[str, int] | None, reached: tuple[str, int], headers: dict[str, str], here: bool
) -> None:
    assert from_this_machine(client, reached, headers) is here


@pytest.mark.parametrize(
    ("scheme", "certificate", "sent"),
    [("https", "cert.pem", True), ("http", "cert.pem", False), ("https", "", False), ("http", "", False)],
)
async def test_only_a_gateway_with_tls_asks_for_https(scheme: str, certificate: str, sent: bool) -> None:
    answers: list[Message] = []

    async def send(message: Message) -> None:
        answers.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "scheme": scheme, "server": HERE, "client": HERE}
    scope |= {"headers": [(b"host", b"127.0.0.1:8000")], "query_string": b""}
    config = Config(tls_cert=certificate)
    await Guard(PlainTextResponse("x"), lambda: config)(scope, receive, send)
    assert ((b"strict-transport-security", b"max-age=31536000") in answers[0]["headers"]) == sent
