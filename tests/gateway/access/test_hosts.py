"""By which hosts the gateway is reached: by the header alone, and with a real gateway."""

from __future__ import annotations

import asyncio
import http.client

import pytest

from gateway.access.hosts import host_allowed, is_near, why_unknown
from gateway.endpoints.urls import ENDPOINTS
from tests.support.raw import opened
from tests.support.rig import DEADLINE, Rig

HERE = ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("host", "names", "passes"),
    [
        (None, (), True),
        ("localhost", (), True),
        ("LOCALHOST:8000", (), True),
        ("localhost.:8000", (), True),
        ("127.0.0.1:8000", (), True),
        ("[::1]:8000", (), True),
        # A literal address depends on no name server.
        ("192.168.1.100:8000", (), True),
        ("[fe80::1]", (), True),
        ("quotes.example", ("0.0.0.0", "quotes.example"), True),
        ("Quotes.Example.:443", ("quotes.example",), True),
        ("quotes.example", ("https://QUOTES.example:443",), True),
        ("trader-pc:8000", ("trader-pc",), True),
        ("", (), False),
        ("evil.example", (), False),
        ("evil.example:8000", ("quotes.example",), False),
        ("quotes.example.evil", ("quotes.example",), False),
        ("localhost.evil.example", (), False),
        ("127.0.0.1.evil.example", (), False),
        ("127.0.0.1.nip.io", (), False),
        ("127.1", (), False),
        ("2130706433", (), False),
        ("localhost@evil.example", (), False),
        ("evil.example#@localhost", (), False),
        ("localhost:x", (), False),
        ("localhost\n", (), False),
        ("[::1", (), False),
        ("[::1].evil.example", (), False),
        ("[::1].evil.example:8000", (), False),
        ("１２７.0.0.1", (), False),
    ],
)
def test_host_is_known(host: str | None, names: tuple[str, ...], passes: bool) -> None:
    assert host_allowed(host, names, HERE) is passes


def test_host_that_the_server_names_itself_is_known() -> None:
    # Starlette's test client.
    assert host_allowed("testserver", ("127.0.0.1",), ("testserver", 80))
    assert not host_allowed("testserver", ("127.0.0.1",), HERE)
    assert not host_allowed("testserver", ("127.0.0.1",), None)


@pytest.mark.parametrize(
    ("host", "bound", "reached", "near"),
    [
        ("localhost:8000", "127.0.0.1", HERE, True),
        ("[::1]:8000", "::1", ("::1", 8000), True),
        (None, "localhost", HERE, True),
        ("localhost", "0.0.0.0", HERE, False),
        ("localhost", "192.168.1.5", HERE, False),
        ("localhost", "127.0.0.1", ("192.168.1.5", 8000), False),
        ("quotes.example", "127.0.0.1", HERE, False),
        ("192.168.1.5", "127.0.0.1", HERE, False),
        ("localhost", "127.0.0.1", ("/run/gateway.sock", None), False),
        ("localhost", "127.0.0.1", None, False),
    ],
)
def test_connection_by_loopback_to_loopback_is_near(
    host: str | None, bound: str, reached: tuple[str, int | None] | None, near: bool
) -> None:
    assert is_near(host, bound, reached) is near


@pytest.mark.parametrize("host", ["e" * 300, "\u80a1\n" * 100])
def test_reason_fits_into_a_close_and_is_plain(host: str) -> None:
    reason = f"host_denied: {why_unknown(host)}"
    assert len(reason.encode()) <= 123
    assert reason.isascii()
    assert reason.isprintable()


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_socket_for_an_unknown_host_is_closed_with_1008(rig: Rig, path: str) -> None:
    port = rig.servers[0].port
    # A page whose name was changed to lead to this address after it was loaded.
    for origin in (f"http://evil.example:{port}", None):
        async with rig.connect(f"{path}?ctl=1", named=f"evil.example:{port}", origin=origin) as client:
            code, reason = await client.closed()
            assert (code, reason.partition(":")[0]) == (1008, "host_denied")
            assert "hosts" in reason


async def test_host_of_the_settings_is_served(rig: Rig) -> None:
    server = rig.serve(hosts=("quotes.example",))
    for origin in ("https://quotes.example", None):
        async with rig.connect("/ws/realtime?ctl=1", server, named="quotes.example:443", origin=origin) as client:
            assert (await client.receive())["type"] == "welcome"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/ws/realtime", "/nowhere"])
def test_page_for_an_unknown_host_is_not_served(rig: Rig, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", rig.servers[0].port, timeout=DEADLINE)
    connection.request("GET", path, headers={"Host": "evil.example"})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 421
    assert "hosts" in body
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_old_client_without_a_host_is_served(rig: Rig) -> None:
    async with asyncio.timeout(DEADLINE), opened(rig.servers[0].port) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
