"""Keys against a real gateway: six URLs, pages, revocation, accounts, back-off and room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets import ConnectionClosed, InvalidStatus

from gateway.connections.handshake import Handshake
from gateway.endpoints.urls import ENDPOINTS
from gateway.keys import attempts
from qmt_bridge.config import Config
from qmt_bridge.keys.key import EXAMPLE_KEY, SCOPES, Key, make_key, sha256
from qmt_bridge.keys.key_file import change_keys, keys_path, read_used
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Rig, Server, metrics, running_rig
from tests.support.waiting import SLOWNESS, until

DEADLINE = 30.0 * SLOWNESS
SCOPE_OF = {
    "/ws/realtime": "market",
    "/ws/whole_quote": "market",
    "/ws/l2_thousand": "l2",
    "/ws/formula": "formula",
    "/ws/download_progress": "download",
    "/ws/trade": "trade",
}
REQUEST = {"stocks": ["600519.SH"]}
# A proxy of this machine sends this for a client of another one.
AFAR = {"X-Forwarded-For": "203.0.113.7"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    config = Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), grace=0.0, lag_target=30.0)
    with running_rig(config) as rig:
        rig.serve()
        yield rig


def add(rig: Rig, name: str = "desk", scopes: tuple[str, ...] = SCOPES, **fields: Any) -> str:
    """Add a key and return it; a gateway that started before may need a second to know it."""
    secret = make_key()
    key = Key(name=name, sha256=sha256(secret), scopes=scopes, **fields)  # type: ignore[arg-type]
    change_keys(rig.config.data_path, lambda keys: [*keys, key])
    return secret


def revoke(rig: Rig, name: str = "desk") -> None:
    change_keys(rig.config.data_path, lambda keys: [key for key in keys if key.name != name])


def url(path: str, secret: str, rest: str = "&ctl=1") -> str:
    return f"{path}?api_key={secret}{rest}"


async def page(server: Server, path: str, **headers: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)

    def get() -> tuple[int, str]:
        try:
            with opener.open(request, timeout=DEADLINE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    return await asyncio.to_thread(get)


def test_each_url_has_a_scope() -> None:
    assert {path: endpoint.scope for path, endpoint in ENDPOINTS.items()} == SCOPE_OF


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("require_key", [False, True])
async def test_key_without_the_scope_is_closed_and_the_scope_is_named(rig: Rig, path: str, require_key: bool) -> None:
    scope = SCOPE_OF[path]
    lacking = add(rig, "lacking", tuple(other for other in SCOPES if other != scope))
    having = add(rig, "having", (scope,))
    server = rig.serve(require_key=require_key)
    async with rig.connect(url(path, lacking), server) as client:
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert await client.closed() == (1008, f"forbidden: the key lacking has no scope {scope}")
    async with rig.connect(url(path, having), server) as client:
        assert (await client.receive())["type"] == "welcome"


async def test_level_2_records_need_their_scope_on_the_quote_url_too(rig: Rig) -> None:
    market, both = add(rig, "market", ("market",)), add(rig, "both", ("market", "l2"))
    server = rig.serve()
    async with rig.connect(url("/ws/realtime", market), server) as client:
        await client.receive()
        await client.send({**REQUEST, "period": "l2transaction"})
        code, reason = await client.closed()
        assert (code, reason) == (1008, "forbidden: the key market has no scope l2")
    async with rig.connect(url("/ws/realtime", both), server) as client:
        await client.receive()
        await client.subscribed(**REQUEST, period="l2transaction")


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_revoked_key_ends_its_sockets_on_every_worker(rig: Rig, path: str) -> None:
    secret = add(rig)
    servers = [rig.serve(), rig.serve(require_key=True)]
    async with rig.connect(url(path, secret), servers[0]) as a, rig.connect(url(path, secret), servers[1]) as b:
        for client in (a, b):
            assert (await client.receive())["type"] == "welcome"
        revoke(rig)
        for client in (a, b):
            assert await client.closed() == (1008, "unauthorized: the key desk was revoked")
    for server in servers:
        async with rig.connect(url(path, secret), server) as client:
            assert await client.closed() == (1008, "unauthorized: the API key is wrong")


async def test_rotated_key_ends_sockets_and_a_new_key_is_taken(rig: Rig) -> None:
    secret = add(rig)
    server = rig.serve()
    async with rig.connect(url("/ws/trade", secret), server) as client:
        await client.receive()
        revoke(rig)
        new = add(rig)
        assert (await client.closed())[0] == 1008
    async with rig.connect(url("/ws/trade", new), server) as client:
        assert (await client.receive())["type"] == "welcome"


async def test_expired_key_ends_its_sockets_and_opens_none(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = add(rig, expires=2_000_000_000)
    server = rig.serve()
    async with rig.connect(url("/ws/realtime", secret), server) as client:
        await client.receive()
        monkeypatch.setattr("gateway.worker.time.time", lambda: 2_000_000_000.0)
        assert await client.closed() == (1008, "unauthorized: the key desk has expired")
    async with rig.connect(url("/ws/realtime", secret), server) as client:
        assert (await client.closed())[0] == 1008


async def test_nothing_that_waits_is_sent_after_a_revocation(rig: Rig) -> None:
    secret = add(rig)
    server = rig.serve()
    async with rig.connect(url("/ws/trade", secret), server) as client:
        await client.receive()
        while (await client.receive()).get("type") != "subscribed":
            pass
        revoke(rig)
        await client.closed()
    before = metrics(server.port)["frames_sent_total"]
    rig.source.trade("order", account_id="1000000365")
    await until(lambda: metrics(server.port)["frames_received_total"] > 0, "the event")
    assert metrics(server.port)["frames_sent_total"] == before


async def test_revoked_key_is_not_sent_what_its_client_had_to_read_first(rig: Rig) -> None:
    secret = add(rig)
    server = rig.serve()
    async with rig.connect(url("/ws/trade", secret), server, close_timeout=0.1) as client:
        while (await client.receive()).get("type") != "subscribed":
            pass
        client.socket.transport.pause_reading()
        for number in range(200):
            rig.source.trade("order", account_id="1000000365", order_id=number, order_remark="x" * 1000)
        await until(lambda: metrics(server.port)["waiting_bytes"] > 100_000, "events that wait")
        before = metrics(server.port)["frames_sent_total"]
        revoke(rig)
        await until(lambda: metrics(server.port)['connections{path="/ws/trade"}'] == 0, "the end of the socket")
        assert metrics(server.port)["frames_sent_total"] == before


async def test_damaged_file_leaves_the_keys_as_they_were(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    secret = add(rig)
    server = rig.serve()
    keys_path(rig.config.data_path).write_text("{", encoding="utf-8")
    await until(lambda: "the keys stay as they were" in caplog.text, "the line in the log")
    async with rig.connect(url("/ws/trade", secret), server) as client:
        assert (await client.receive())["type"] == "welcome"


async def test_gateway_without_a_setting_serves_keys_that_are_made_later(rig: Rig) -> None:
    server = rig.serve(api_key="")
    async with rig.connect("/ws/trade?api_key=anything", server) as client:
        assert "no API key is configured" in (await client.closed())[1]
    secret = add(rig)

    async with asyncio.timeout(DEADLINE):
        while True:
            async with rig.connect(url("/ws/trade", secret), server) as client:
                try:
                    assert (await client.receive())["type"] == "welcome"
                    break
                except ConnectionClosed:
                    # The worker looks at the file once a second.
                    await asyncio.sleep(0.2)


# Accounts


async def test_key_sees_only_its_accounts_live_and_replayed(rig: Rig) -> None:
    secret = add(rig, accounts=("A1",))
    server = rig.serve()

    def trade(account: str, number: int) -> None:
        rig.source.sink.publish_trade(account, "order", {"account_id": account, "order_id": number}, 1)

    for number, account in enumerate(("A1", "B2", "A1", "B2"), 1):
        trade(account, number)
    async with rig.connect(url("/ws/trade", secret, "&ctl=1&after=0"), server) as client:
        welcome = await client.receive()
        assert welcome["accounts"] == ["**"]
        seen = [await client.receive() for _ in range(3)]
        ack, *events = seen
        assert (ack["type"], [event["seq"] for event in events]) == ("subscribed", [1, 3])
        for number, account in enumerate(("B2", "A1", "B2", "A1"), 5):
            trade(account, number)
        live = [await client.receive() for _ in range(2)]
        assert [event["seq"] for event in live] == [6, 8]
        await client.send({"resume": {"seq": 1}, "id": 9})
        again = [await client.receive() for _ in range(4)]
        assert [event.get("seq") for event in again if event["type"] == "order"] == [3, 6, 8]
        assert {event["data"]["account_id"] for event in (*events, *live) if "data" in event} == {"A1"}
    async with rig.connect(url("/ws/trade", KEY_QUOTED, "&after=0"), server) as client:
        assert [(await client.receive())["seq"] for _ in range(8)] == list(range(1, 9))


async def test_event_without_an_account_is_kept_from_a_restricted_key(rig: Rig) -> None:
    secret = add(rig, accounts=("A1",))
    server = rig.serve()
    rig.source.sink.publish_trade("A1", "order", {"order_id": 1}, 1)
    rig.source.sink.publish_trade("A1", "order", {"order_id": 2, "account_id": "A1"}, 1)
    async with rig.connect(url("/ws/trade", secret, "&after=0"), server) as client:
        assert (await client.receive())["seq"] == 2


KEY_QUOTED = urllib.parse.quote(KEY)


# Limits


async def test_limits_of_a_key_hold_on_its_sockets(rig: Rig) -> None:
    secret = add(rig, connections=1, codes=1, rate=7)
    server = rig.serve()
    async with rig.connect(url("/ws/realtime", secret), server) as client:
        assert (await client.receive())["limits"] == {"max_topics": 1, "max_rate": 7}
        ack = await client.subscribed(stocks=["600519.SH", "000001.SZ"])
        assert [each["error"] for each in ack["rejected"]] == ["symbol_limit"]
        async with rig.connect(url("/ws/realtime", secret), server) as second:
            assert (await second.closed())[1].startswith("connection_limit: this worker serves at most 1 sockets of")
    async with rig.connect(url("/ws/realtime", KEY_QUOTED), server) as client:
        assert (await client.receive())["limits"]["max_topics"] == rig.config.max_topics


async def test_refusal_names_the_rate_of_the_key(rig: Rig) -> None:
    secret = add(rig, rate=1)
    async with rig.connect(url("/ws/realtime", secret), rig.serve()) as client:
        await client.receive()
        for number in range(5):
            await client.send({"action": "ping", "id": number})
        told = [await client.receive() for _ in range(5)]
        assert [each["type"] for each in told] == ["pong"] * 4 + ["error"]
        assert told[-1]["error"] == "more than 1 requests a second"


async def test_time_of_last_use_is_noted(rig: Rig) -> None:
    secret = add(rig)
    server = rig.serve()
    async with rig.connect(url("/ws/realtime", secret), server):
        await until(lambda: sha256(secret) in read_used(rig.config.data_path), "the note")


# The same rule everywhere


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_a_wrong_key_is_refused_where_none_is_needed_too(rig: Rig, path: str) -> None:
    async with rig.connect(url(path, make_key())) as client:
        assert await client.closed() == (1008, "unauthorized: the API key is wrong")


async def test_key_in_a_later_frame_is_taken_if_it_is_valid(rig: Rig) -> None:
    secret = add(rig, "desk", ("market",))
    server = rig.serve(max_connections=1)
    async with rig.connect("/ws/realtime?ctl=1", server) as client:
        await client.receive()
        for key in ("not-the-right-one", secret, 7):
            await client.send({"action": "auth", "key": key})
            assert (await client.receive())["type"] == "authenticated"
        # It has its place by its key now, and loses it with the key.
        revoke(rig)
        assert await client.closed() == (1008, "unauthorized: the key desk was revoked")


async def test_pages_check_a_key_and_are_short_for_other_machines(rig: Rig) -> None:
    market, admin = add(rig, "market", ("market",)), add(rig, "admin", ("admin",))
    server = rig.serve()
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await page(server, path))[0] == 200
        assert await page(server, path, **{"X-API-Key": "wrong"}) == (401, "unauthorized: the API key is wrong\n")
    without, with_market, with_admin = AFAR, {**AFAR, "X-API-Key": market}, {**AFAR, "X-API-Key": admin}
    for headers in (without, with_market):
        assert await page(server, "/healthz", **headers) == (200, '{"status":"ok"}')
        assert await page(server, "/readyz", **headers) == (200, '{"ready":true}')
    assert (await page(server, "/metrics", **without))[0] == 401
    assert await page(server, "/metrics", **with_market) == (403, "forbidden: the key market has no scope admin\n")
    assert "qmt_bridge_topics" in (await page(server, "/metrics", **with_admin))[1]
    assert "accounts" in (await page(server, "/readyz", **with_admin))[1]


async def test_example_key_opens_the_simulator_only(rig: Rig) -> None:
    server = rig.serve(api_key=EXAMPLE_KEY)
    async with rig.connect(url("/ws/trade", EXAMPLE_KEY), server) as client:
        assert (await client.receive())["type"] == "welcome"
        rig.source.simulated = False
        rig.source.sink.set_state("down", "another source")
        rig.source.sink.set_state("up")
        assert (await client.closed())[1] == "unauthorized: this key is an example, and opens the simulator only"


# Wrong keys again and again


async def test_wrong_keys_are_refused_before_the_handshake(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = rig.servers[0]
    for _ in range(attempts.ATTEMPTS):
        async with rig.connect(url("/ws/trade", make_key()), server) as client:
            assert (await client.closed())[0] == 1008
    for target in (url("/ws/trade", make_key()), "/ws/trade", url("/ws/realtime", make_key())):
        with pytest.raises(InvalidStatus) as refused:
            async with rig.connect(target, server):
                pass
        assert refused.value.response.status_code == 429
        assert 0 < int(refused.value.response.headers["Retry-After"]) <= attempts.BACK_OFF
        assert refused.value.response.headers["X-Content-Type-Options"] == "nosniff"
    assert (await page(server, "/readyz", **{"X-API-Key": "wrong"}))[0] == 429
    # Who has the key, or needs none and shows none, is served.
    async with rig.connect(url("/ws/trade", KEY_QUOTED), server) as client:
        assert (await client.receive())["type"] == "welcome"
    async with rig.connect("/ws/realtime?ctl=1", server) as client:
        assert (await client.receive())["type"] == "welcome"
    assert metrics(server.port)["wrong_keys_total"] >= attempts.ATTEMPTS + 3
    await until(lambda: "with a wrong API key" in caplog.text, "the line in the log")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert len([line for line in caplog.messages if "wrong" in line]) == 1


async def test_a_barred_handshake_does_not_reach_the_app(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, served = add(rig), list[bytes]()
    server = rig.serve()
    for _ in range(attempts.ATTEMPTS):
        async with rig.connect(url("/ws/trade", make_key()), server) as client:
            assert (await client.closed())[0] == 1008
    serve = Handshake._serve
    monkeypatch.setattr(Handshake, "_serve", lambda self, request: (served.append(request), serve(self, request)))

    async def tried(key: str) -> list[bytes]:
        """Show a key in each way that there is; return the requests that the app was given."""
        served.clear()
        headers = {"X-API-Key": key}, {"Authorization": f"Bearer {key}"}
        for target, options in (
            (url("/ws/trade", key), {}),
            *(("/ws/realtime", {"additional_headers": each}) for each in headers),
            ("/ws/trade", {"subprotocols": [f"key.{key}"]}),
        ):
            with contextlib.suppress(InvalidStatus):
                async with rig.connect(target, server, **options):
                    pass
        return served

    assert await tried(make_key()) == []
    assert len(await tried(desk)) == 4


async def test_page_of_another_site_cannot_bar_an_address(rig: Rig) -> None:
    server = rig.servers[0]
    before = metrics(server.port)["wrong_keys_total"]
    for _ in range(attempts.ATTEMPTS):
        async with rig.connect(url("/ws/trade", make_key()), server, origin="https://evil.example") as client:
            assert (await client.closed())[1].startswith("origin_denied: ")
        assert (await page(server, "/readyz", Origin="https://evil.example", **{"X-API-Key": "wrong"}))[0] == 403
    assert metrics(server.port)["wrong_keys_total"] == before
    async with rig.connect("/ws/trade", server) as client:
        await client.send({"action": "auth", "key": KEY})
        assert (await client.receive())["type"] == "authenticated"


# Room


async def test_sockets_without_a_key_do_not_keep_out_the_owner(rig: Rig) -> None:
    server = rig.serve(max_connections=3)
    async with rig.connect("/ws/realtime?ctl=1", server) as a, rig.connect("/ws/realtime?ctl=1", server) as b:
        for client in (a, b):
            assert (await client.receive())["type"] == "welcome"
        async with rig.connect("/ws/realtime?ctl=1", server) as third:
            assert (await third.closed())[0] == 1013
        async with (
            rig.connect(url("/ws/trade", KEY_QUOTED), server) as first,
            rig.connect(url("/ws/trade", KEY_QUOTED), server) as second,
        ):
            for client in (first, second):
                assert (await client.receive())["type"] == "welcome"
            assert await b.closed() == (1013, "connection_limit: a socket with a key takes this place")
            await a.send({"action": "ping"})
            assert (await a.receive())["type"] == "pong"


async def test_sockets_that_have_not_shown_a_key_do_not_take_its_place(rig: Rig) -> None:
    server = rig.serve(max_connections=2)
    silent = socket.create_connection(("127.0.0.1", server.port))
    silent.sendall(
        b"GET /ws/trade HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with silent:
        await until(lambda: metrics(server.port)['connections{path="/ws/trade"}'] == 1, "the silent socket")
        async with rig.connect("/ws/trade", server) as client:
            assert (await client.closed())[0] == 1013
        async with rig.connect(url("/ws/trade", KEY_QUOTED), server) as client:
            assert (await client.receive())["type"] == "welcome"
