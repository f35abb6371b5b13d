"""The pages of administration over two workers with a real feeder: who may ask, what is answered, what is ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest

from gateway.admin import administration, surveys
from gateway.admin.clients import Clients
from gateway.admin.state import State
from gateway.admin.topics import Subscriptions
from qmt_bridge.config import Config
from qmt_bridge.keys.key import Key, make_key, sha256
from qmt_bridge.keys.key_file import change_keys
from qmt_bridge.wire.topics import FormulaSpec, formula_topic, l2_topic, quote_topic, whole_topic
from tests.gateway.http.conftest import client_of
from tests.support.rig import DEADLINE, KEY, Client, Rig, readiness
from tests.support.waiting import until

MAOTAI, PINGAN = "600519.SH", "000001.SZ"
TICK = quote_topic(MAOTAI)
ADMIN: dict[str, Any] = {"X-API-Key": KEY.encode()}
PAGES = ("/api/clients", "/api/subscriptions")


@pytest.fixture
def config(config: Config) -> Config:
    # Each key is known from the start: a gateway looks at their file once a second.
    config.data_path.mkdir(parents=True, exist_ok=True)
    change_keys(config.data_path, lambda keys: [*keys, Key(name="desk", sha256=sha256(DESK), scopes=("market",))])
    return config


DESK = make_key()


@pytest.fixture(autouse=True)
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each page ask anew."""
    monkeypatch.setattr(administration, "SHARED", 0.0)


@pytest.fixture
async def both(rig: Rig) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of the first of two gateways, which know of each other."""
    rig.serve()
    async with client_of(rig.servers[0]) as client:
        await until_state(client, lambda found: len(found["workers"]) == 2)
        yield client


async def get(pages: httpx2.AsyncClient, path: str, **parameters: object) -> dict[str, Any]:
    response = await pages.get(path, params=parameters, headers=ADMIN)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def until_state(pages: httpx2.AsyncClient, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first state that `holds`."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = await get(pages, "/api/state")
        if holds(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.05)


async def delete(pages: httpx2.AsyncClient, path: str, status: int = 200) -> dict[str, Any]:
    response = await pages.delete(path, headers=ADMIN)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


def named(topic: str) -> str:
    return f"/api/subscriptions/{quote(topic, safe='')}"


async def opened(rig: Rig, stack: AsyncExitStack, count: int = 1, path: str = "/ws/realtime") -> list[list[Client]]:
    """Return clients of each gateway that have subscribed a code."""
    found = []
    for server in rig.servers:
        clients = [await stack.enter_async_context(rig.connect(path, server)) for _ in range(count)]
        for client in clients:
            await client.subscribed(stocks=[MAOTAI])
        found.append(clients)
    return found


@pytest.mark.parametrize("path", [*PAGES, "/api/clients/a3f09c1d-17", named(TICK)])
async def test_administration_needs_a_key_with_the_scope(pages: httpx2.AsyncClient, path: str) -> None:
    ask = pages.get if path in PAGES else pages.delete
    assert (await ask(path)).status_code == 401
    refused = await ask(path, headers={"X-API-Key": DESK})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await ask(path, headers={"X-API-Key": "wrong"})).status_code == 401


async def test_methods_are_those_of_the_page(pages: httpx2.AsyncClient) -> None:
    assert (await pages.delete("/api/clients", headers=ADMIN)).status_code == 405
    refused = await pages.get("/api/clients/a3f09c1d-17", headers=ADMIN)
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, OPTIONS")
    assert (await pages.options(named(TICK))).headers["allow"] == "DELETE, OPTIONS"


async def test_clients_of_both_workers_are_listed(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        await opened(rig, stack, 3)
        await stack.enter_async_context(rig.connect(f"/ws/trade?ctl=1&api_key={quote(KEY)}", rig.servers[1]))
        answer = msgspec.convert(await get(both, "/api/clients"), Clients)
        assert (answer.total, len(answer.clients), answer.next) == (7, 7, None)
        assert (answer.complete, answer.missing) == (True, [])
        assert len({client.id for client in answer.clients}) == 7
        assert [client.id for client in answer.clients] == sorted(
            (client.id for client in answer.clients), key=lambda id: (id[:8], int(id[9:]))
        )
        trader = next(client for client in answer.clients if client.endpoint == "/ws/trade")
        assert (trader.key, trader.address) == ("api_key", "127.0.0.1")
        reader = next(client for client in answer.clients if client.endpoint == "/ws/realtime")
        assert (reader.key, reader.subscriptions, reader.outbox_bytes, reader.slow) == (None, 1, 0, False)
        assert {client.worker for client in answer.clients} == {
            worker["worker"] for worker in (await get(both, "/api/state"))["workers"]
        }


async def test_clients_come_a_page_at_a_time(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        await opened(rig, stack, 3)
        everyone = [client["id"] for client in (await get(both, "/api/clients"))["clients"]]
        for limit in (1, 2, 3, 4, 5, 6):
            seen: list[str] = []
            after = ""
            while after is not None:
                page = await get(both, "/api/clients", limit=limit, after=after)
                assert 0 < len(page["clients"]) <= limit
                assert page["total"] == 6
                seen += [client["id"] for client in page["clients"]]
                after = page["next"]
            assert seen == everyone


async def test_clients_are_chosen_by_what_they_are(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        await opened(rig, stack)
        await stack.enter_async_context(rig.connect(f"/ws/trade?ctl=1&api_key={quote(KEY)}"))
        assert (await get(both, "/api/clients", endpoint="/ws/trade"))["total"] == 1
        assert (await get(both, "/api/clients", key="api_key"))["total"] == 1
        assert (await get(both, "/api/clients", address="127.0.0.2"))["total"] == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/clients?limit=0", "limit"),
        ("/api/clients?limit=2001", "limit"),
        ("/api/clients?after=17", "an id of a client is like"),
        ("/api/clients?adress=1", "did you mean address"),
        ("/api/subscriptions?client=17", "an id of a client is like"),
        ("/api/state?limit=3", "means nothing here"),
    ],
)
async def test_wrong_parameters_are_named(pages: httpx2.AsyncClient, path: str, words: str) -> None:
    refused = await pages.get(path, headers=ADMIN)
    assert refused.status_code == 400
    assert words in refused.json()["error"]


async def test_client_of_the_other_worker_is_kicked(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        [[near], [far]] = await opened(rig, stack)
        listed = (await get(both, "/api/clients"))["clients"]
        own = {worker["worker"] for worker in (await get(both, "/api/state"))["workers"]}
        assert len(own) == 2
        for client in listed:
            assert await delete(both, f"/api/clients/{client['id']}?reason=maintenance") == {
                "id": client["id"],
                "ended": True,
            }
        for socket in (near, far):
            assert await socket.closed() == (1008, "ended_by_admin: maintenance")
        await until(lambda: all(readiness(server.port)["connections"] == 0 for server in rig.servers))
        assert (await delete(both, f"/api/clients/{listed[0]['id']}", 404))["code"] == "bad_request"
        assert (await delete(both, f"/api/clients/{listed[1]['id']}", 404))["code"] == "bad_request"
    events = (await get(both, "/api/state"))["events"]
    assert sum("by an administrator" in event["text"] for event in events) >= 2


async def test_client_of_no_worker_is_not_found(both: httpx2.AsyncClient) -> None:
    assert "there is no client" in (await delete(both, "/api/clients/00000000-1", 404))["error"]
    assert (await delete(both, "/api/clients/someone", 400))["code"] == "bad_request"


async def test_subscriptions_say_who_has_what(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        clients = await opened(rig, stack)
        await clients[0][0].subscribed(stocks=[PINGAN], period="1m")
        rig.source.publish(TICK, {MAOTAI: [{"time": 1}]})
        for [client] in clients:
            assert (await client.receive())[MAOTAI] == [{"time": 1}]
        answer = msgspec.convert(await get(both, "/api/subscriptions"), Subscriptions)
        by_topic = {each.topic: each for each in answer.subscriptions}
        tick = by_topic[TICK]
        assert (tick.kind, tick.name, tick.detail, tick.state) == ("quote", MAOTAI, "tick", "live")
        assert (tick.clients, len(tick.client_ids), len(tick.workers), tick.seq) == (2, 2, 2, 1)
        assert tick.age is not None
        assert 0 <= tick.age < 20
        bar = by_topic[quote_topic(PINGAN, "1m")]
        assert (bar.clients, len(bar.workers), bar.age) == (1, 1, None)
        assert answer.complete
        listed = {client["id"] for client in (await get(both, "/api/clients"))["clients"]}
        assert set(tick.client_ids) == listed


async def test_subscriptions_of_one_client_are_listed(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        [_, [far]] = await opened(rig, stack)
        codes = [f"{number:06}.SZ" for number in range(7)]
        await far.subscribed(stocks=codes)
        for client in (await get(both, "/api/clients"))["clients"]:
            expected = 8 if client["subscriptions"] == 8 else 1
            seen: list[str] = []
            after: str | None = ""
            while after is not None:
                page = await get(both, "/api/subscriptions", client=client["id"], limit=3, after=after)
                assert page["total"] == expected
                assert all(each["state"] == "live" for each in page["subscriptions"])
                seen += [each["topic"] for each in page["subscriptions"]]
                after = page["next"]
            assert len(seen) == len(set(seen)) == expected


async def test_subscriptions_come_a_page_at_a_time(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        clients = await opened(rig, stack)
        for place, [client] in enumerate(clients):
            await client.subscribed(stocks=[f"{number:06}.SZ" for number in range(5 * place, 5 * place + 8)])
        everything = [each["topic"] for each in (await get(both, "/api/subscriptions"))["subscriptions"]]
        assert len([topic for topic in everything if topic.startswith("quote/")]) == 14
        for limit in (1, 4, 5):
            seen: list[str] = []
            after: str | None = ""
            while after is not None:
                page = await get(both, "/api/subscriptions", limit=limit, after=after)
                seen += [each["topic"] for each in page["subscriptions"]]
                after = page["next"]
            assert seen == everything
        assert (await get(both, "/api/subscriptions", prefix="quote/00000"))["total"] == 10


async def test_subscription_is_ended_for_all_and_may_be_made_again(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        clients = await opened(rig, stack)
        assert (await delete(both, named(TICK)))["ended"] == 2
        for [client] in clients:
            told = await client.receive()
            assert (told["type"], told["code"], told["symbol"]) == ("error", "ended_by_admin", MAOTAI)
        await rig.unwanted(TICK)
        assert (await delete(both, named(TICK), 404))["code"] == "bad_request"
        ack = await clients[1][0].subscribed(stocks=[MAOTAI])
        assert ack["added"] == [MAOTAI]
        await rig.wanted(TICK)


async def test_subscription_is_ended_for_one_client_alone(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        clients = await opened(rig, stack)
        listed = (await get(both, "/api/clients"))["clients"]
        assert (await delete(both, f"{named(TICK)}?client={listed[0]['id']}"))["ended"] == 1
        left = (await get(both, "/api/subscriptions", prefix=TICK))["subscriptions"][0]
        assert left["client_ids"] == [listed[1]["id"]]
        rig.source.publish(TICK, {MAOTAI: [{"time": 1}]})
        found = [await client.receive() for [client] in clients]
        assert sorted("code" in each for each in found) == [False, True]


@pytest.mark.parametrize(
    ("path", "request_", "topic"),
    [
        ("/ws/whole_quote", {"codes": ["SH"]}, whole_topic("SH")),
        ("/ws/l2_thousand", {"stocks": [MAOTAI], "gear_num": 5}, l2_topic(MAOTAI, 20)),
        (
            "/ws/formula",
            {"action": "subscribe", "formula_name": "均线", "stock_code": MAOTAI},
            formula_topic(FormulaSpec("均线", MAOTAI)),
        ),
    ],
)
async def test_every_kind_of_subscription_can_be_ended(
    rig: Rig, pages: httpx2.AsyncClient, path: str, request_: dict[str, Any], topic: str
) -> None:
    async with rig.connect(f"{path}?ctl=1") as client:
        assert (await client.receive())["type"] == "welcome"
        await client.send({"id": 1, **request_})
        ack = await client.receive()
        assert ack.get("type", ack.get("action")) == "subscribed"
        assert (await delete(pages, named(topic)))["ended"] == 1
        assert (await client.receive())["code"] == "ended_by_admin"
        await until(lambda: topic not in rig.source.wanted)


async def test_subscription_of_a_page_can_be_ended(rig: Rig, pages: httpx2.AsyncClient) -> None:
    first = asyncio.create_task(pages.get("/api/last", params={"codes": MAOTAI}))
    await rig.wanted(TICK)
    rig.source.publish(TICK, {MAOTAI: [{"time": 1}]})
    assert (await first).json()["records"][MAOTAI] == {"time": 1}
    [listed] = (await get(pages, "/api/subscriptions", prefix=TICK))["subscriptions"]
    assert (listed["clients"], listed["client_ids"]) == (1, [])
    assert (await delete(pages, named(TICK)))["ended"] == 1
    await rig.unwanted(TICK)
    missing = (await pages.get("/api/last", params={"codes": MAOTAI})).json()["missing"]
    assert missing[MAOTAI]["code"] == "ended_by_admin"


async def test_state_is_of_all_workers_and_the_feeder(rig: Rig, both: httpx2.AsyncClient) -> None:
    async with AsyncExitStack() as stack:
        clients = await opened(rig, stack, 2)
        for number in range(5):
            rig.source.publish(TICK, {MAOTAI: [{"time": number}]})
        for client in (*clients[0], *clients[1]):
            while (await client.receive()).get(MAOTAI, [{}])[0].get("time") != 4:
                pass

        def measured(found: dict[str, Any]) -> bool:
            rig.source.publish(TICK, {MAOTAI: [{"time": time.time_ns() // 1_000_000}]})
            return all(of["count"] for of in found["latency"].values())

        found = msgspec.convert(await until_state(both, measured), State)
    assert (found.full, found.complete, found.feed, found.source, found.simulated) == (True, True, "up", "hand", True)
    assert found.markets.keys() == {"SH"}
    assert isinstance(found.workers, list)
    assert [worker.clients for worker in found.workers] == [2, 2]
    assert not isinstance(found.totals, msgspec.UnsetType)
    assert (found.totals.workers, found.totals.clients, found.totals.topics) == (2, 4, 1)
    assert found.feeder
    assert found.feeder.published >= 6
    assert isinstance(found.events, list)
    assert {event.kind for event in found.events} >= {"feed"}


async def test_client_without_rights_sees_a_part_of_the_state(rig: Rig, pages: httpx2.AsyncClient) -> None:
    # A proxy stands for another machine.
    elsewhere = {"X-Forwarded-For": "192.168.1.20"}
    assert (await pages.get("/api/state", headers=elsewhere)).status_code == 401
    part = (await pages.get("/api/state", headers={**elsewhere, "X-API-Key": DESK})).json()
    assert (part["full"], part["feed"], part["simulated"]) == (False, "up", True)
    assert not part.keys() & {"workers", "totals", "events", "accounts", "feeder", "latency", "journal"}
    whole = (await pages.get("/api/state", headers={**elsewhere, **ADMIN})).json()
    assert whole["full"]
    assert len(whole["workers"]) == 1


async def test_capabilities_are_asked_of_the_source(rig: Rig, pages: httpx2.AsyncClient) -> None:
    rig.source.lacks = {"quotes": "", "formulas": "xtquant 1 has none; 2 has it"}
    found = await get(pages, "/api/capabilities")
    assert found["capabilities"] == [
        {"name": "quotes", "served": True, "lacks": None},
        {"name": "formulas", "served": False, "lacks": "xtquant 1 has none; 2 has it"},
    ]
    assert "quote" in found["kinds"]
    assert found["periods"][:2] == ["tick", "1m"]
    assert found["limits"] == {"max_topics": 6000, "max_rate": 50, "max_depths": 1000, "max_formulas": 1000}
    assert found["accounts"] == []
    rig.source.lacks = {"quotes": "gone"}
    assert (await get(pages, "/api/capabilities"))["capabilities"][0]["lacks"] == "gone"
    elsewhere = {"X-Forwarded-For": "192.168.1.20", "X-API-Key": DESK}
    assert (await pages.get("/api/capabilities", headers=elsewhere)).json()["accounts"] is None


async def test_source_that_fails_to_say_is_told(rig: Rig, pages: httpx2.AsyncClient) -> None:
    rig.source.lacks = None
    found = await get(pages, "/api/capabilities")
    assert found["capabilities"] == []
    assert found["failure"].startswith("source hand does not say it: ")


async def test_answer_without_a_feeder_is_about_the_own_worker(
    rig: Rig, both: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "TIMEOUT", 0.2)
    rig.feeder.stop()
    await until(lambda: readiness(rig.servers[0].port)["feed"] == "down")
    found = await get(both, "/api/state")
    assert (found["complete"], found["missing"], len(found["workers"]), found["feeder"]) == (False, ["feeder"], 1, None)
    assert (await get(both, "/api/clients"))["missing"] == ["feeder"]
    assert (await both.get("/api/capabilities", headers=ADMIN)).status_code == 503
    rig.start_feeder()
    await until_state(both, lambda found: found["complete"] and len(found["workers"]) == 2)


async def test_state_is_shared_for_a_moment(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rig.feeder.publisher._answers.roll._numbers
    monkeypatch.setattr(administration, "SHARED", 60.0)
    found = await asyncio.gather(*(get(pages, "/api/state") for _ in range(5)))
    assert rig.feeder.publisher._answers.roll._numbers == before + 1
    assert len({json.dumps(each["workers"]) for each in found}) == 1
    monkeypatch.setattr(administration, "SHARED", 0.0)
    await get(pages, "/api/state")
    assert rig.feeder.publisher._answers.roll._numbers == before + 2


async def test_documented_answers_have_the_fields_that_are_served(rig: Rig, pages: httpx2.AsyncClient) -> None:
    state = await get(pages, "/api/state")
    assert state.keys() == {field.encode_name for field in msgspec.structs.fields(State)}
    assert json.loads((await pages.get("/openapi.json")).content)["paths"].keys() >= {"/api/state", *PAGES}
