"""The page `/api/last` with a real feeder and a real server."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections import Counter
from typing import Any

import httpx2
import msgspec
import pytest

from gateway.costs import slices
from gateway.http import last, leases
from gateway.http.last import Last
from gateway.http.problems import Problem
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import l2_topic, quote_topic
from tests.gateway.http.conftest import add_key, client_of
from tests.support.rig import KEY, Rig, readiness, running_rig
from tests.support.waiting import wait_for

MAOTAI = "600519.SH"
PINGAN = "000001.SZ"
TICK = quote_topic(MAOTAI)


async def answer(pages: httpx2.AsyncClient, **parameters: object) -> Last:
    response = await pages.get("/api/last", params=parameters)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return msgspec.json.decode(response.content, type=Last, strict=True)


async def problem(pages: httpx2.AsyncClient, path: str, status: int, **options: object) -> Problem:
    response = await pages.get(path, **options)
    assert response.status_code == status, response.text
    return msgspec.json.decode(response.content, type=Problem)


def publish(rig: Rig, code: str = MAOTAI, price: float = 1416.05, **more: object) -> None:
    rig.source.publish(quote_topic(code), {code: [{"time": 1795904064954, "lastPrice": price, **more}]})


async def subscribed(rig: Rig, pages: httpx2.AsyncClient, code: str = MAOTAI, **more: object) -> None:
    """Have a code subscribed by a page, and one record of it published."""
    first = asyncio.create_task(answer(pages, codes=code))
    await rig.wanted(quote_topic(code))
    publish(rig, code, **more)
    assert (await first).records[code] is not None


async def test_newest_record_of_each_code_is_answered(rig: Rig, pages: httpx2.AsyncClient) -> None:
    await subscribed(rig, pages)
    await subscribed(rig, pages, PINGAN, price=10.64)
    found = await answer(pages, codes=f"{PINGAN},{MAOTAI}")
    assert list(found.records) == [PINGAN, MAOTAI]
    assert found.records[MAOTAI] == {"time": 1795904064954, "lastPrice": 1416.05}
    assert found.records[PINGAN]["lastPrice"] == 10.64
    assert (found.missing, found.feed) == ({}, "up")


async def test_last_of_several_records_in_a_message_is_answered(rig: Rig, pages: httpx2.AsyncClient) -> None:
    first = asyncio.create_task(answer(pages, codes=MAOTAI))
    await rig.wanted(TICK)
    rig.source.publish(TICK, {MAOTAI: [{"lastPrice": 1.0}, {"lastPrice": 2.0}]})
    assert (await first).records[MAOTAI] == {"lastPrice": 2.0}


async def test_code_without_a_record_is_null_with_a_reason(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last, "ANSWER_TIMEOUT", 0.2)
    found = await answer(pages, codes=f"{MAOTAI},600519,999999.SZ")
    assert found.records == {MAOTAI: None, "600519": None, "999999.SZ": None}
    assert {code: why.code for code, why in found.missing.items()} == {
        MAOTAI: "no_record",
        "600519": "unknown_symbol",
        "999999.SZ": "unknown_symbol",
    }
    assert "did you mean '600519.SH'" in found.missing["600519"].reason


async def test_page_that_asks_again_keeps_one_subscription(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    subscribe = rig.source.subscribe
    monkeypatch.setattr(rig.source, "subscribe", lambda topic, parts: (made.append(topic), subscribe(topic, parts)))
    monkeypatch.setattr(leases, "HELD", 1.5)
    await subscribed(rig, pages)
    loop = asyncio.get_running_loop()
    began = loop.time()
    while loop.time() < began + 4.0:
        # Longer than a lease without a request: each of them renews it.
        await asyncio.sleep(0.4)
        assert (await answer(pages, codes=MAOTAI)).records[MAOTAI] is not None
    assert made == [TICK]
    await rig.unwanted(TICK)


async def test_lease_of_another_client_is_not_ended(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await subscribed(rig, pages)
    monkeypatch.setattr(leases, "HELD", 0.0)
    keyed = await pages.get("/api/last", params={"codes": f"{MAOTAI},{PINGAN}"}, headers={"X-API-Key": "wrong"})
    assert keyed.status_code == 401
    assert quote_topic(PINGAN) not in rig.source.wanted
    response = await pages.get("/api/last", params={"codes": f"{MAOTAI},{PINGAN}", "api_key": KEY})
    assert response.json()["records"][MAOTAI] is not None
    await rig.unwanted(quote_topic(PINGAN))
    assert TICK in rig.source.wanted


async def test_only_the_asked_fields_are_answered(rig: Rig, pages: httpx2.AsyncClient) -> None:
    await subscribed(rig, pages, volume=307621, askPrice=[10.65, 10.66])
    found = await answer(pages, codes=MAOTAI, fields="volume,lastPrice")
    assert found.records[MAOTAI] == {"lastPrice": 1416.05, "volume": 307621}


async def test_csv_has_a_row_for_each_code(rig: Rig, pages: httpx2.AsyncClient) -> None:
    await subscribed(rig, pages, volume=5, askPrice=[10.65, None])
    response = await pages.get("/api/last", params={"codes": f"{MAOTAI},=1+1", "format": "csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(response.text)))
    why = rows[1].pop("missing")
    assert rows == [
        {
            "code": MAOTAI,
            "time": "1795904064954",
            "lastPrice": "1416.05",
            "volume": "5",
            "askPrice1": "10.65",
            "askPrice2": "",
            "missing": "",
        },
        # A spreadsheet would calculate it without the mark.
        {"code": "'=1+1", **dict.fromkeys(("time", "lastPrice", "volume", "askPrice1", "askPrice2"), "")},
    ]
    assert why.startswith("unknown_symbol: ")


async def test_depth_has_the_asked_levels_and_is_one_subscription(rig: Rig, pages: httpx2.AsyncClient) -> None:
    topic = l2_topic(MAOTAI, 20)
    first = asyncio.create_task(answer(pages, codes=MAOTAI, gear_num=2))
    await rig.wanted(topic)
    rig.source.publish(topic, {MAOTAI: [{"time": 1, "askPrice": [1.0, 2.0, 3.0]}]})
    assert (await first).records[MAOTAI] == {"time": 1, "askPrice": [1.0, 2.0]}
    assert (await answer(pages, codes=MAOTAI, gear_num=1)).records[MAOTAI] == {"time": 1, "askPrice": [1.0]}
    assert rig.source.wanted == [topic]


@pytest.mark.parametrize("format", ["json", "csv"])
async def test_records_of_many_codes_are_rendered_in_parts(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    await subscribed(rig, pages, MAOTAI)
    monkeypatch.setattr(last, "PART", 2)
    monkeypatch.setattr(slices, "SLICE", 0.0)
    turn, made = 0, Counter[int]()
    render = last._record

    def count() -> None:
        nonlocal turn
        turn += 1
        if not ended:
            asyncio.get_running_loop().call_soon(count)

    def counted(*arguments: Any) -> Any:
        if not turn:
            # On the loop of the server.
            count()
        made[turn] += 1
        return render(*arguments)

    ended = False
    monkeypatch.setattr(last, "_record", counted)
    monkeypatch.setattr(last, "ANSWER_TIMEOUT", 0.1)
    codes = [MAOTAI, *(f"{number:06}.SZ" for number in range(9))]
    response = await pages.get("/api/last", params={"codes": ",".join(codes), "format": format})
    ended = True
    assert response.status_code == 200
    assert all(code in response.text for code in codes)
    assert sum(made.values()) == 10
    # A turn of the loop counts as the end of one and the begin of the next.
    assert max(made.values()) <= 4


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "codes must be a non-empty list of codes"),
        ("codes=,", "codes must be a non-empty list of codes"),
        ("code=600519.SH", "'code' means nothing here; did you mean codes"),
        ("codes=600519.SH&feilds=open", "'feilds' means nothing here; did you mean fields"),
        ("codes=600519.SH&period=1min", "unknown period '1min'; did you mean 1m"),
        ("codes=600519.SH&format=xml", "format must be one of json, csv, not 'xml'"),
        ("codes=600519.SH&format=csv&format=json", "format is given twice"),
        ("codes=600519.SH&gear_num=five", "gear_num is a whole number, not 'five'"),
        ("codes=600519.SH&gear_num=-1", "gear_num must not be negative"),
        ("codes=600519.SH&gear_num=5&period=1m", "choose one"),
        ("codes=%ff", "not UTF-8"),
        (f"codes=600519.SH&fields={','.join(map(str, range(201)))}", "fields"),
        (f"codes=600519.SH&fields={'x' * 101}", "fields"),
    ],
)
async def test_wrong_parameter_is_named_in_words(pages: httpx2.AsyncClient, query: str, words: str) -> None:
    told = await problem(pages, f"/api/last?{query}", 400)
    assert words in told.error
    assert not told.retry


async def test_key_is_checked_with_its_scope(rig: Rig, config: Config, pages: httpx2.AsyncClient) -> None:
    told = await problem(pages, "/api/last?codes=600519.SH", 401, headers={"Authorization": "Bearer wrong"})
    assert (told.code, told.error) == ("unauthorized", "the API key is wrong")
    secret = add_key(config, "desk", "trade")
    server = rig.serve(require_key=True)
    async with client_of(server) as strict:
        for query, headers in ((f"&api_key={secret}", {}), ("", {"X-API-Key": secret})):
            told = await problem(strict, f"/api/last?codes=600519.SH{query}", 403, headers=headers)
            assert told.error == "the key desk has no scope market"
        response = await strict.get("/api/last", params={"codes": MAOTAI})
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert "no API key was given" in response.json()["error"]


async def test_level_2_needs_its_scope(rig: Rig, config: Config, pages: httpx2.AsyncClient) -> None:
    secret = add_key(config, "quotes", "market")
    async with client_of(rig.serve()) as client:
        for query in ("period=l2quote", "gear_num=5"):
            told = await problem(client, f"/api/last?codes={MAOTAI}&{query}&api_key={secret}", 403)
            assert told.error == "the key quotes has no scope l2"


async def test_address_with_wrong_keys_is_barred(pages: httpx2.AsyncClient) -> None:
    for _ in range(5):
        await problem(pages, f"/api/last?codes={MAOTAI}", 401, headers={"X-API-Key": "wrong"})
    response = await pages.get("/api/last", params={"codes": MAOTAI}, headers={"X-API-Key": "wrong"})
    assert response.status_code == 429
    assert 50 <= int(response.headers["Retry-After"]) <= 61
    assert "too many attempts" in response.json()["error"]


async def test_client_holds_no_more_topics_than_its_limit(rig: Rig) -> None:
    async with client_of(rig.serve(max_topics=2)) as client:
        told = await problem(client, "/api/last?codes=600519.SH,000001.SZ,000002.SZ", 429)
        assert told.error.startswith("a client holds at most 2 topics")
    assert rig.source.wanted == []


async def test_clients_without_a_key_share_what_is_scarce(config: Config) -> None:
    with running_rig(msgspec.structs.replace(config, max_depths=2, max_formulas=2)) as rig:
        async with client_of(rig.serve()) as client:
            told = await problem(client, f"/api/last?codes={MAOTAI},{PINGAN}&gear_num=5", 429)
            assert "clients without an API key hold at most 1 subscriptions of the kind l2" in told.error
            # Nothing of the refused request counts.
            task = asyncio.create_task(answer(client, codes=PINGAN, gear_num=5))
            await rig.wanted(l2_topic(PINGAN, 20))
            rig.source.publish(l2_topic(PINGAN, 20), {PINGAN: [{"time": 1}]})
            assert (await task).records[PINGAN] == {"time": 1}


async def test_requests_a_second_are_limited(rig: Rig) -> None:
    server = rig.serve(max_rate=1)

    async def status() -> int:
        # A connection of its own: the answers on one connection are paced.
        async with client_of(server) as client:
            return (await client.get("/api/last?codes=999999.SZ")).status_code

    statuses = Counter(await asyncio.gather(*(status() for _ in range(12))))
    assert statuses.keys() == {200, 429}
    assert statuses[200] >= 4


async def test_killed_feeder_is_told_and_its_values_stay(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last, "ANSWER_TIMEOUT", 0.2)
    await subscribed(rig, pages)
    rig.feeder.stop()
    wait_for(lambda: readiness(rig.servers[0].port)["feed"] == "down", "the feeder to be missed")
    found = await answer(pages, codes=f"{MAOTAI},{PINGAN}")
    assert found.feed == "down"
    assert found.records[MAOTAI] is not None
    assert found.missing[PINGAN].code == "upstream_unavailable"
    rig.start_feeder()
    await rig.wanted(TICK)
    publish(rig, price=1.5)
    for _ in range(100):
        found = await answer(pages, codes=MAOTAI)
        if found.records[MAOTAI]["lastPrice"] == 1.5 and found.feed == "up":
            break
    assert (found.records[MAOTAI]["lastPrice"], found.feed) == (1.5, "up")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_nothing_can_be_changed(pages: httpx2.AsyncClient, method: str) -> None:
    response = await pages.request(method, "/api/last?codes=600519.SH")
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD, OPTIONS"
    assert "takes GET" in response.json()["error"]


async def test_head_has_no_body_and_options_names_the_methods(rig: Rig, pages: httpx2.AsyncClient) -> None:
    await subscribed(rig, pages)
    head = await pages.head("/api/last", params={"codes": MAOTAI})
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "application/json")
    options = await pages.options("/api/last")
    assert (options.status_code, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_page_of_an_allowed_origin_may_read_the_answer(rig: Rig) -> None:
    async with client_of(rig.serve(origins=("https://desk.example",))) as client:
        for origin, status in (("https://desk.example", 200), ("https://evil.example", 403), ("null", 200)):
            response = await client.get("/api/last?codes=999999.SZ", headers={"Origin": origin})
            assert response.status_code == status, origin
            allowed = response.headers.get("Access-Control-Allow-Origin")
            assert allowed == (origin if status == 200 else None)
        # What a file may have of quotes it may not have of the other pages.
        assert (await client.get("/readyz", headers={"Origin": "null"})).status_code == 403
        asked = {"Origin": "https://desk.example", "Access-Control-Request-Method": "GET"}
        preflight = await client.options("/api/last?codes=999999.SZ", headers=asked)
        assert preflight.status_code == 204
        assert "X-API-Key" in preflight.headers["Access-Control-Allow-Headers"]
        assert "Last-Event-ID" in preflight.headers["Access-Control-Allow-Headers"]


async def test_unknown_host_is_refused(pages: httpx2.AsyncClient) -> None:
    response = await pages.get("/api/last?codes=600519.SH", headers={"Host": "rebound.example"})
    assert response.status_code == 421


async def test_key_of_a_header_may_be_utf_8(rig: Rig) -> None:
    async with client_of(rig.serve(require_key=True)) as client:
        response = await client.get("/api/last?codes=999999.SZ", headers={"X-API-Key": KEY.encode()})
        assert response.status_code == 200, json.dumps(response.json())
