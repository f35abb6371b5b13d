"""The page `/api/ticks/CODE` with a real server, and a store that answers as the wire says."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import httpx2
import msgspec
import pytest

from gateway.costs import slices
from gateway.costs.turns import Turns
from gateway.http import ticks as page
from gateway.http.admission import Caller
from gateway.http.formats import rows
from gateway.http.ticks import CHUNK, HELD, HELD_BY_GZIP, End
from qmt_bridge.config import Config
from qmt_bridge.wire.history import Hole, TopicHistory
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.gateway.http.conftest import add_key, client_of
from tests.support.rig import Rig, readiness
from tests.support.shelf import EPOCH, OPEN_MS, Shelf
from tests.support.waiting import until, wait_for

MAOTAI = "600519.SH"
TICK = quote_topic(MAOTAI)
PATH = f"/api/ticks/{MAOTAI}"


@pytest.fixture
async def pages(rig: Rig, shelf: Shelf) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of a gateway that knows the store."""
    async with client_of(rig.serve(store_addr=shelf.address)) as client:
        yield client


async def lines(pages: httpx2.AsyncClient, path: str = PATH, **parameters: object) -> tuple[list[Any], End]:
    """Return the records of an answer, and its last line."""
    response = await pages.get(path, params=parameters or None)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    *records, last = response.text.splitlines()
    return [json.loads(record) for record in records], msgspec.json.decode(last, type=End)


def ticks(count: int, size: int = 0) -> list[dict[str, object]]:
    return [{"time": OPEN_MS + 3000 * number, "lastPrice": number, "filler": "x" * size} for number in range(count)]


async def test_records_of_a_day_are_lines_and_the_last_says_so(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    stored = ticks(5)
    shelf.put(TICK, *stored)
    records, end = await lines(pages)
    assert records == stored
    assert end == End("end", 5, True, "09:30:00.000", Position(EPOCH, 5), [])


async def test_start_and_end_bound_the_records(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(10))
    records, end = await lines(pages, start="09:30:06", end="09:30:15")
    assert [record["lastPrice"] for record in records] == [2, 3, 4]
    assert (end.records, end.first) == (3, "09:30:06.000")
    records, _ = await lines(pages, start=OPEN_MS + 27_000)
    assert [record["lastPrice"] for record in records] == [9]
    records, _ = await lines(pages, f"{PATH}?start=2026-11-27T09:30:24+08:00")
    assert [record["lastPrice"] for record in records] == [8, 9]


async def test_long_day_is_asked_for_in_chunks(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(1000, size=1000))
    records, end = await lines(pages, end="15:00")
    assert [record["lastPrice"] for record in records] == list(range(1000))
    assert end.complete
    assert len(shelf.asked) >= 1000 * 1000 // CHUNK
    # The last question is whether something follows the end.
    *chunks, behind = shelf.asked
    assert all(ask.room == CHUNK for ask in chunks)
    # A time of day is that of one day for all chunks.
    assert {ask.end for ask in chunks[1:]} == {behind.start} == {OPEN_MS + 5 * 3600 * 1000 + 30 * 60 * 1000}


async def test_what_is_missing_is_told_in_the_last_line(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(2))
    shelf.holes[TICK] = [Hole("store_began", None, Position(EPOCH, 1), None, OPEN_MS)]
    _, end = await lines(pages)
    assert not end.complete
    assert [(gap.reason, gap.before, gap.until_ms) for gap in end.missing] == [
        ("store_began", Position(EPOCH, 1), OPEN_MS)
    ]
    records, end = await lines(pages, "/api/ticks/000001.SZ")
    assert (records, end.complete, end.position, end.missing[0].reason) == ([], False, None, "not_stored")


async def test_only_the_newest_state_of_a_bar_is_a_record(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    bars = [{"time": time, "close": close} for time, close in ((1, 1.0), (1, 1.5), (2, 2.0), (3, 3.0), (3, 3.5))]
    shelf.put(quote_topic(MAOTAI, "1m"), *bars)
    records, end = await lines(pages, period="1m")
    assert records == [{"time": 1, "close": 1.5}, {"time": 2, "close": 2.0}, {"time": 3, "close": 3.5}]
    assert end.records == 3
    records, _ = await lines(pages, period="1m", fields="close")
    assert records == [{"close": 1.5}, {"close": 2.0}, {"close": 3.5}]


async def test_only_the_asked_fields_are_answered(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(2))
    records, _ = await lines(pages, fields="lastPrice")
    assert records == [{"lastPrice": 0}, {"lastPrice": 1}]


async def test_csv_has_known_columns_and_loses_no_field(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    first = {"time": 1, "lastPrice": 10.5, "askPrice": [10.6, 10.7]}
    shelf.put(TICK, first, {"time": 2, "lastPrice": None, "news": "停牌", "askPrice": [1, 2, 3, 4, 5, 6]})
    response = await pages.get(PATH, params={"format": "csv"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    text, _, last = response.text.removesuffix("\r\n").rpartition("\r\n")
    end = msgspec.json.decode(last.removeprefix("# "), type=End)
    assert end.records == 2
    rows = list(csv.DictReader(io.StringIO(text)))
    assert (rows[0]["time"], rows[0]["lastPrice"], rows[0]["askPrice2"], rows[0]["other"]) == ("1", "10.5", "10.7", "")
    assert {"volume", "bidVol5"} <= rows[0].keys()
    assert rows[1]["lastPrice"] == ""
    known = 5 if "askPrice5" in rows[1] else 2
    left = json.loads(rows[1]["other"])
    assert left == {"news": "停牌"} | {f"askPrice{level}": str(level) for level in range(known + 1, 7)}
    response = await pages.get(PATH, params={"format": "csv", "fields": "lastPrice,time"})
    assert response.text.startswith("lastPrice,time,other\r\n10.5,1,\r\n")


async def test_answer_is_compressed_for_who_asks(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(2000, size=200))
    plain = await pages.get(PATH, headers={"Accept-Encoding": "gzip;q=0"})
    packed = await pages.get(PATH, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == plain.text
    assert packed.num_bytes_downloaded < plain.num_bytes_downloaded / 4


async def test_unchanged_answer_is_not_sent_again(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(3))
    first = await pages.get(PATH)
    assert first.headers["cache-control"] == "private, no-cache"
    tag = first.headers["etag"]
    again = await pages.get(PATH, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await pages.get(PATH, params={"format": "csv"}, headers={"If-None-Match": tag})).status_code == 200
    shelf.put(TICK, {"lastPrice": 9})
    assert (await pages.get(PATH, headers={"If-None-Match": tag})).status_code == 200


async def test_closed_part_of_the_past_is_sent_once(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(1000, size=1000))
    first = await pages.get(PATH, params={"start": "09:31", "end": "10:00"})
    assert len(shelf.asked) > 3
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    asked = len(shelf.asked)
    for parameters in ({"start": "09:31", "end": "10:00"}, {"start": "09:31:00", "end": OPEN_MS + 1800_000}):
        again = await pages.get(PATH, params=parameters, headers={"If-None-Match": f'"other", {tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    # Only the first chunk is read.
    assert len(shelf.asked) == asked + 2


@pytest.mark.parametrize(
    ("end", "change"),
    [
        pytest.param("10:00", {"format": "csv"}, id="other-form"),
        pytest.param("10:00", {"fields": "time"}, id="other-fields"),
        pytest.param("10:00", {"start": "09:32"}, id="other-start"),
        pytest.param("10:00", {"end": "10:01"}, id="other-end"),
        # No record follows it yet.
        pytest.param("14:00", {}, id="open"),
        pytest.param(None, {}, id="without-end"),
    ],
)
async def test_other_or_open_part_of_the_day_is_sent_again(
    shelf: Shelf, pages: httpx2.AsyncClient, end: str | None, change: dict[str, str]
) -> None:
    shelf.put(TICK, *ticks(1000, size=1000))
    asked = {"start": "09:31"} | ({"end": end} if end else {})
    tag = (await pages.get(PATH, params=asked)).headers.get("etag", "")
    again = await pages.get(PATH, params=asked | change, headers={"If-None-Match": tag})
    assert again.status_code == 200
    assert again.headers.get("etag", "none") != tag


async def test_part_of_the_past_with_a_hole_is_sent_again(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    """A store may get later what it lacks now."""
    shelf.put(TICK, *ticks(1000, size=1000))
    shelf.holes[TICK] = [Hole("store_began", None, Position(EPOCH, 1), None, OPEN_MS)]
    tag = (await pages.get(PATH, params={"end": "10:00"})).headers["etag"]
    assert (await pages.get(PATH, params={"end": "10:00"}, headers={"If-None-Match": tag})).status_code == 200


async def test_answer_that_was_cut_off_is_sent_again(rig: Rig, shelf: Shelf) -> None:
    shelf.put(TICK, *ticks(1000, size=4000))
    server = rig.serve(store_addr=shelf.address)
    async with client_of(server) as client:
        async with client.stream("GET", PATH, params={"end": "10:00"}) as response:
            tag = response.headers["etag"]
        again = await client.get(PATH, params={"end": "10:00"}, headers={"If-None-Match": tag})
        assert again.status_code == 200


async def test_pages_of_one_client_ask_in_turns() -> None:
    answers: list[asyncio.Future[TopicHistory]] = []

    class Store:
        async def ask(self, topic: Topic, **question: object) -> TopicHistory:
            answers.append(asyncio.get_running_loop().create_future())
            return await answers[-1]

    host: Any = SimpleNamespace(opening_turns=Turns(2), store=Store())
    readings = [page._Reading(host, Caller("127.0.0.1"), TICK, page.TicksQuery()) for _ in range(3)]
    begun = [asyncio.create_task(reading.begin()) for reading in readings]
    await until(lambda: len(answers) == 2, "two questions")
    begun[0].cancel()
    await until(lambda: len(answers) == 3, "the third question")
    for answer in answers[1:]:
        answer.set_result(TopicHistory(1, TICK))
    assert [(await each).id for each in begun[1:]] == [1, 1]


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("/api/ticks/600519", "unknown_symbol", "did you mean '600519.SH'"),
        (f"{PATH}?start=half+past+nine", "bad_request", "start is a time of day"),
        (f"{PATH}?end=1", "bad_request", "end is in milliseconds since 1970"),
        (f"{PATH}?period=tik", "unsupported_period", "did you mean tick"),
        (f"{PATH}?format=xlsx", "bad_request", "format must be one of ndjson, csv, parquet"),
        (f"{PATH}?from=09:30", "bad_request", "'from' means nothing here"),
    ],
)
async def test_wrong_parameter_is_named_in_words(
    shelf: Shelf, pages: httpx2.AsyncClient, url: str, code: str, words: str
) -> None:
    response = await pages.get(url)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert words in response.json()["error"]
    assert shelf.asked == []


async def test_key_needs_the_scope(config: Config, rig: Rig, shelf: Shelf) -> None:
    secret = add_key(config, "formulas", "formula")
    async with client_of(rig.serve(store_addr=shelf.address, require_key=True)) as client:
        assert (await client.get(PATH)).status_code == 401
        assert (await client.get(PATH, headers={"X-API-Key": secret})).status_code == 403
    assert shelf.asked == []


async def test_store_that_is_away_is_told(rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "ANSWER_TIMEOUT", 0.3)
    shelf.willing = lambda ask: False
    async with client_of(rig.serve(store_addr=shelf.address)) as client:
        response = await client.get(PATH)
        assert response.status_code == 503
        assert response.headers["Retry-After"]
        assert "the store of the day does not answer" in response.json()["error"]


async def test_store_that_goes_away_ends_the_answer_in_words(
    shelf: Shelf, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(TICK, *ticks(1000, size=1000))
    shelf.willing = lambda ask: len(shelf.asked) <= 3
    monkeypatch.setattr(page, "ANSWER_TIMEOUT", 1.0)
    records, end = await lines(pages)
    assert 0 < len(records) < 1000
    assert not end.complete
    # What is missing follows the last record, where another request can go on.
    assert [(gap.reason, gap.after) for gap in end.missing] == [("store_away", Position(EPOCH, len(records)))]
    assert end.position == Position(EPOCH, len(records))


async def test_refusal_of_the_store_is_passed_on(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.refusals[TICK] = "the store cannot read it"
    response = await pages.get(PATH)
    assert (response.status_code, response.json()["error"]) == (500, "the store cannot read it")
    # In the middle of an answer it is told at its end.
    del shelf.refusals[TICK]
    shelf.put(TICK, *ticks(1000, size=1000))
    shelf.willing = lambda ask: bool(shelf.refusals.setdefault(TICK, "it is broken")) if ask.after else True
    _, end = await lines(pages)
    assert [gap.reason for gap in end.missing] == ["it is broken"]


async def test_head_has_no_body_and_nothing_can_be_changed(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(3))
    response = await pages.head(PATH)
    assert (response.status_code, response.content) == (200, b"")
    assert (await pages.post(PATH)).status_code == 405


async def test_client_that_stops_reading_is_dropped(rig: Rig, shelf: Shelf) -> None:
    shelf.put(TICK, *ticks(4000, size=4000))
    server = rig.serve(store_addr=shelf.address, slow_timeout=0.5, max_connections_per_address=1)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", server.port))
        stalled.sendall(f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await until(lambda: len(shelf.asked) >= 2, "the answer to begin")

        async def free() -> bool:
            async with client_of(server) as client:
                return (await client.head(PATH)).status_code == 200

        assert not await free()
        for _ in range(200):
            if await free():
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the place of the stalled client was not given back")
        # The system holds some of it; the rest was never asked for.
        assert sum(ask.after is not None for ask in shelf.asked) < 100


async def test_client_that_leaves_ends_the_questions(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *ticks(20_000, size=1000))
    async with pages.stream("GET", PATH) as response:
        await anext(response.aiter_lines())
    count = -1
    while count != len(shelf.asked):
        count = len(shelf.asked)
        await asyncio.sleep(0.2)
    assert count < 20_000 * 1000 // CHUNK
    wait_for(lambda: readiness(int(pages.base_url.port or 0))["ready"])


@pytest.mark.parametrize(
    ("header", "most"),
    [("", 2 * HELD + 1), ("Accept-Encoding: gzip\r\n", 2 * (HELD + HELD_BY_GZIP) + 1)],
    ids=["plain", "gzip"],
)
async def test_answers_that_hold_too_much_together_are_dropped(rig: Rig, shelf: Shelf, header: str, most: int) -> None:
    # Nothing that a compressor makes much smaller, so that the client has to read.
    noise = random.Random(1)
    shelf.put(TICK, *({"time": OPEN_MS + number, "filler": noise.randbytes(2000).hex()} for number in range(4000)))
    server = rig.serve(store_addr=shelf.address, outbox_total_bytes=most, max_connections_per_address=3)
    with ExitStack() as held:
        for _ in range(3):
            stalled = held.enter_context(socket.socket())
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", server.port))
            stalled.sendall(f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode())
        await until(lambda: len(shelf.asked) >= 6, "the answers to begin")
        async with client_of(server) as client:
            for _ in range(200):
                if (await client.head(PATH)).status_code == 200:
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("no place was given back")


async def test_many_answers_at_once_are_made_one_after_the_other(
    shelf: Shelf, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(TICK, *ticks(100, size=1000))
    monkeypatch.setattr(slices, "SLICE", 0.0)
    turn, made = 0, Counter[int]()
    add = rows._Ndjson.add

    def count() -> None:
        nonlocal turn
        turn += 1
        if not ended:
            asyncio.get_running_loop().call_soon(count)

    def counted(self: rows._Ndjson, chunk: TopicHistory) -> bytes:
        if not turn:
            # On the loop of the server.
            count()
        made[turn] += 1
        return add(self, chunk)

    ended = False
    monkeypatch.setattr(rows._Ndjson, "add", counted)
    answers = await asyncio.gather(*(pages.get(PATH) for _ in range(30)))
    ended = True
    assert {answer.status_code for answer in answers} == {200}
    # A turn of the loop counts as the end of one and the begin of the next.
    assert max(made.values()) <= 2
