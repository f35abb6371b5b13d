"""Where a request comes from: the clients of trusted proxies, and what others say about themselves."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus

from gateway.access.peers import Proxies, from_elsewhere
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import KEY, Rig, Server

PROXY, CLIENT = "127.0.0.1", "203.0.113.7"
TRUSTED = ("127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48")


def resolved(peer: str, headers: list[tuple[str, str]], header: str = "x-forwarded-for", scheme: str = "ws") -> Any:
    scope: dict[str, Any] = {
        "client": (peer, 5),
        "scheme": scheme,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    Proxies(TRUSTED, header).resolve(scope)
    return scope["client"][0], scope["scheme"]


@pytest.mark.parametrize(
    ("told", "client"),
    [
        (["203.0.113.7"], CLIENT),
        ([" 203.0.113.7 "], CLIENT),
        (["203.0.113.7:4711"], CLIENT),
        (["::ffff:203.0.113.7"], CLIENT),
        (["[2001:db8::5]:80"], "2001:db8::5"),
        (["2001:DB8::5"], "2001:db8::5"),
        # What stands left of the right-most address that is not trusted came from the client.
        (["198.51.100.1, 203.0.113.7"], CLIENT),
        (["127.0.0.1, 203.0.113.7, 10.1.2.3"], CLIENT),
        (["198.51.100.1", "203.0.113.7"], CLIENT),
        (["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
        # An entry that is no address: the proxy that wrote it stands for its clients.
        (["unknown"], PROXY),
        (["203.0.113.7, unknown"], PROXY),
        (["203.0.113.7, _hidden, 10.0.0.9"], "10.0.0.9"),
        (["\n2026-01-01 forged line"], PROXY),
        (["fe80::1%forged"], PROXY),
        ([""], PROXY),
        ([], PROXY),
    ],
)
def test_the_right_most_untrusted_address_is_the_client(told: list[str], client: str) -> None:
    assert resolved(PROXY, [("x-forwarded-for", value) for value in told])[0] == client


@pytest.mark.parametrize(
    ("told", "client"),
    [
        ("for=203.0.113.7", CLIENT),
        ('For="203.0.113.7:4711";proto=https;by=10.0.0.1', CLIENT),
        ('for="[2001:db8::5]:80"', "2001:db8::5"),
        ("for=198.51.100.1, for=203.0.113.7;host=x, for=10.0.0.2", CLIENT),
        ("for=unknown", PROXY),
        ("for=203.0.113.7, proto=http", PROXY),
        ("x", PROXY),
    ],
)
def test_forwarded_names_the_client_where_it_is_the_header(told: str, client: str) -> None:
    assert resolved(PROXY, [("forwarded", told)], "forwarded")[0] == client


def test_other_headers_and_other_peers_are_ignored() -> None:
    assert resolved("198.51.100.9", [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https")]) == (
        "198.51.100.9",
        "ws",
    )
    assert resolved(PROXY, [("forwarded", f"for={CLIENT}")])[0] == PROXY
    assert resolved(PROXY, [("x-forwarded-for", CLIENT)], "forwarded")[0] == PROXY


def test_a_proxy_says_whether_its_client_uses_tls() -> None:
    forwarded = [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https")]
    assert resolved(PROXY, forwarded) == (CLIENT, "wss")
    assert resolved(PROXY, forwarded, scheme="http") == (CLIENT, "https")
    assert resolved(PROXY, [("forwarded", f"for={CLIENT};proto=https")], "forwarded") == (CLIENT, "wss")
    # TLS up to here does not end because a proxy before it had none.
    assert resolved(PROXY, [("x-forwarded-proto", "http")], scheme="wss")[1] == "wss"


def test_a_header_of_many_entries_is_read_in_part() -> None:
    told = ", ".join([CLIENT, *["10.0.0.1"] * 5000])
    assert resolved(PROXY, [("x-forwarded-for", told)])[0] == "10.0.0.1"


@pytest.mark.parametrize(
    ("client", "headers", "elsewhere"),
    [
        (("203.0.113.7", 1), {}, True),
        (("127.0.0.1", 1), {}, False),
        (("127.0.0.1", 1), {"x-forwarded-for": "127.0.0.1"}, True),
        (("192.0.2.1", 1), {}, False),
        (("testclient", 1), {}, False),
        (None, {}, False),
        (None, {"x-real-ip": "127.0.0.1"}, True),
    ],
)
def test_client_of_another_machine_is_told_from_local_ones(
    client: tuple[str, int] | None, headers: dict[str, str], elsewhere: bool
) -> None:
    assert from_elsewhere(client, ("192.0.2.1", 8000), headers) is elsewhere


async def test_market_data_needs_a_key_beyond_the_machine(rig: Rig) -> None:
    request = {"stocks": ["600519.SH"]}
    away = {"X-Forwarded-For": CLIENT}
    tick = quote_topic("600519.SH")
    async with rig.connect("/ws/realtime", additional_headers=away) as client:
        await client.send(request)
        code, reason = await client.closed()
    assert (code, "open_market_data" in reason) == (1008, True)
    opened = rig.serve(open_market_data=True)
    for server, query in ((rig.servers[0], f"?api_key={quote(KEY)}"), (opened, "")):
        async with rig.connect(f"/ws/realtime{query}", server, additional_headers=away) as client:
            await client.send(request)
            await rig.wanted(tick)
            rig.source.publish(tick, {"600519.SH": [{}]})
            assert await client.receive() == {"600519.SH": [{}]}
        await rig.unwanted(tick)
    async with rig.connect("/ws/trade", opened, additional_headers=away) as client:
        await client.send(request)
        assert (await client.closed())[0] == 1008


async def is_barred(rig: Rig, server: Server, **headers: str) -> bool:
    """Show a wrong key; return whether the attempt is refused before the handshake."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        async with rig.connect("/ws/realtime?api_key=wrong", server, additional_headers=named) as client:
            assert (await client.closed())[0] == 1008
    except InvalidStatus as refused:
        return refused.response.status_code == 429
    return False


async def test_wrong_keys_bar_the_client_and_not_its_proxy(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gateway")
    server = rig.serve(behind_proxy=(PROXY,), open_market_data=True)
    forged = {"X_Forwarded_For": f"198.51.100.1, {CLIENT}"}
    assert [await is_barred(rig, server, **forged) for _ in range(6)] == [False] * 5 + [True]
    assert not await is_barred(rig, server, X_Forwarded_For="203.0.113.8")
    assert not await is_barred(rig, server)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("gateway")]
    assert any(f"/ws/realtime from {CLIENT}" in line for line in told)
    assert not any("198.51.100.1" in line for line in told)


async def test_a_peer_that_is_not_trusted_cannot_change_its_address(rig: Rig) -> None:
    server = rig.serve(open_market_data=True)
    tries = [await is_barred(rig, server, X_Forwarded_For=f"203.0.113.{number}") for number in range(6)]
    assert tries == [False] * 5 + [True]
    assert await is_barred(rig, server)
