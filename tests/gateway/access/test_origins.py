"""Which pages may connect: by the origin alone, and with a real gateway."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed

from gateway.access.origins import origin_allowed, why_denied
from gateway.endpoints.urls import ENDPOINTS
from tests.support.rig import KEY, Rig

QUOTES = ("/ws/realtime", "/ws/whole_quote", "/ws/l2_thousand")


@pytest.mark.parametrize(
    ("origin", "allowed", "passes"),
    [
        (None, (), True),
        ("https://desk.example", ("*",), True),
        ("null", ("*",), True),
        ("https://desk.example", ("https://DESK.example/",), True),
        ("https://evil.example", ("https://desk.example",), False),
        ("https://desk.example.evil", ("https://desk.example",), False),
        ("https://desk.example", ("https://desk.example:443",), True),
        ("http://desk.example", (" http://desk.example:80/ ",), True),
        ("http://desk.example", ("http://desk.example:443",), False),
        ("https://desk.example:8443", ("https://desk.example",), False),
        ("null", ("https://desk.example",), False),
        ("file://", ("https://desk.example",), False),
    ],
)
def test_origin_is_compared_with_the_setting(origin: str | None, allowed: tuple[str, ...], passes: bool) -> None:
    assert origin_allowed(origin, "127.0.0.1:8000", allowed) is passes


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        # Of the same host, on any port.
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("ws://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://192.168.1.5", "192.168.1.5:8000"),
        ("http://192.168.1.5:3000/", "192.168.1.5"),
        ("https://192.168.1.5:443", "192.168.1.5"),
        ("http://[FE80::1]:3000", "[fe80::1]:8000"),
        ("http://[0:0:0:0:0:0:0:2]:3000", "[::2]:8000"),
        ("https://quotes.example", "Quotes.Example:8000"),
        ("http://trader-pc:3000", "trader-pc"),
        # Of a loopback name, whatever the host is.
        ("http://localhost:3000", "192.168.1.5:8000"),
        ("HTTP://LocalHost", "quotes.example"),
        ("http://127.0.0.1:5500", "localhost:8000"),
        ("http://127.9.9.9", "localhost"),
        ("http://[::1]:3000", "127.0.0.1:8000"),
        ("http://localhost.:3000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", None),
    ],
)
def test_page_of_the_same_host_or_a_loopback_name_is_allowed(origin: str, host: str | None) -> None:
    assert origin_allowed(origin, host, ())


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("", ""),
        ("", "127.0.0.1:8000"),
        ("http://", ""),
        ("https://evil.example", "127.0.0.1:8000"),
        ("http://evil.example:8000", "localhost:8000"),
        ("http://192.168.1.66", "192.168.1.5:8000"),
        ("http://localhost.evil.example", "localhost"),
        ("http://evil-localhost", "localhost"),
        ("http://127.0.0.1.evil.example", "127.0.0.1"),
        ("http://127.0.0.1:8000.evil.example", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000@evil.example", "127.0.0.1:8000"),
        ("http://evil.example/127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://evil.example#127.0.0.1", "evil.example#127.0.0.1"),
        ("http://127.0.0.1:x", "127.0.0.1:x"),
        ("http://127.0.0.1:99999", "127.0.0.1:99999"),
        ("http://[::1:8000", "[::1:8000"),
        ("http://[::1].evil.example", "127.0.0.1:8000"),
        ("http://evil.example[::1]", "127.0.0.1:8000"),
        ("http://２.2.2.2", "2.2.2.2"),
        ("file://127.0.0.1:8000", "127.0.0.1:8000"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("chrome-extension://localhost", "localhost"),
        ("http://0.0.0.0:8000", "127.0.0.1:8000"),
        ("Null", "127.0.0.1:8000"),
        ("http://localhost, https://evil.example", "localhost"),
    ],
)
def test_every_other_origin_is_foreign(origin: str, host: str | None) -> None:
    assert not origin_allowed(origin, host, ())


@pytest.mark.parametrize("origin", ["null", "file://", "NULL"])
def test_page_from_a_file_gets_what_files_may_have(origin: str) -> None:
    assert origin_allowed(origin, "localhost", (), to_files=True)
    assert not origin_allowed(origin, "localhost", ())


@pytest.mark.parametrize(("scheme", "own"), [("https", True), ("wss", True), ("http", False), ("ws", False)])
def test_page_without_tls_is_foreign_to_a_gateway_with_tls(scheme: str, own: bool) -> None:
    assert origin_allowed(f"{scheme}://quotes.example", "quotes.example:8443", (), secure=True) is own


@pytest.mark.parametrize("origin", ["https://" + "e" * 200 + ".example", "https://\u80a1\r\n\U0001f600" * 30, "null"])
def test_reason_fits_into_a_close_and_is_plain(origin: str) -> None:
    reason = f"origin_denied: {why_denied(origin)}"
    assert len(reason.encode()) <= 123
    assert reason.isascii()
    assert reason.isprintable()


async def refused(rig: Rig, path: str, **options: object) -> str | None:
    """Return why a page is refused on a URL, or None if it is served."""
    async with rig.connect(f"{path}?ctl=1&api_key={quote(KEY)}", **options) as client:
        try:
            return None if (await client.receive())["type"] == "welcome" else ""
        except ConnectionClosed:
            code, reason = await client.closed()
            return reason if code == 1008 else ""


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_pages_get_what_their_origin_allows(rig: Rig, path: str) -> None:
    for near in ("http://localhost:3000", "http://127.0.0.1:1", "http://[::1]:5173", None):
        assert await refused(rig, path, origin=near) is None
    for foreign in ("https://evil.example", "http://192.168.1.66:8000", "chrome-extension://abcdef"):
        reason = await refused(rig, path, origin=foreign)
        assert reason is not None
        assert reason.startswith("origin_denied: ")
        assert "origins" in reason
    for file in ("null", "file://"):
        assert (await refused(rig, path, origin=file) is None) == (path in QUOTES)


@pytest.mark.parametrize("path", QUOTES)
async def test_page_from_a_file_is_served_on_loopback_only(rig: Rig, path: str) -> None:
    assert await refused(rig, path, server=rig.serve(host="0.0.0.0"), origin="null")
    # By way of a proxy on this machine.
    server = rig.serve(hosts=("quotes.example",))
    assert await refused(rig, path, server=server, origin="null") is None
    for host in ("quotes.example", "192.168.1.100"):
        reason = await refused(rig, path, server=server, origin="null", named=f"{host}:{server.port}")
        assert reason
        assert reason.startswith("origin_denied")


async def test_script_of_the_guide_runs_in_a_page_from_a_file(rig: Rig) -> None:
    async with rig.connect("/ws/realtime", origin="null", user_agent_header="Mozilla/5.0") as client:
        await client.send({"stocks": ["000001.SZ", "600519.SH"], "period": "tick"})
        topic = "quote/600519.SH/tick/"
        await rig.wanted(topic)  # type: ignore[arg-type]
        rig.source.publish(topic, {"600519.SH": [{"lastPrice": 1.5}]})  # type: ignore[arg-type]
        assert json.dumps(await client.receive()) == '{"600519.SH": [{"lastPrice": 1.5}]}'
