"""Server-sent events with a real feeder and a real server."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2
import pytest

from gateway import worker
from gateway.connections import handshake
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import FormulaSpec, formula_topic, l2_topic, quote_topic, whole_topic
from tests.gateway.http.conftest import add_key, client_of
from tests.support.contract import documented
from tests.support.rig import DEADLINE, Rig, metrics, readiness
from tests.support.waiting import until, wait_for

MAOTAI = "600519.SH"
PINGAN = "000001.SZ"
TICK = quote_topic(MAOTAI)
REALTIME = f"/sse/realtime?stocks={MAOTAI}"


class Event(NamedTuple):
    """One event as a browser dispatches it."""

    data: Any
    name: str
    id: str


class Events:
    """Reads events from an answer, by the rules of the HTML standard."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self._lines = response.aiter_lines()
        self._id = ""

    async def next(self) -> Event:
        async with asyncio.timeout(DEADLINE):
            data: list[str] = []
            name = "message"
            while line := await anext(self._lines):
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                match field:
                    case "":
                        self.comments.append(value)
                    case "data":
                        data.append(value)
                    case "event":
                        name = value
                    case "id":
                        self._id = value
            if not data:
                return await self.next()
            frame = documented(self.response.url.path, json.loads("\n".join(data)), invented=True)
            return Event(frame, name, self._id)

    async def data(self) -> Event:
        """Return the next event that is no notice."""
        while (event := await self.next()).name != "message":
            pass
        return event

    async def ended(self) -> None:
        async with asyncio.timeout(DEADLINE):
            async for _ in self._lines:
                pass


@asynccontextmanager
async def opened(pages: httpx2.AsyncClient, url: str, **headers: str) -> AsyncIterator[tuple[Events, dict[str, Any]]]:
    """Yield the events of a URL, and its ack."""
    async with pages.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = Events(response)
        ack = await events.next()
        assert ack.name == "notice"
        yield events, ack.data


async def denied(pages: httpx2.AsyncClient, url: str, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await pages.get(url, headers=headers)
    assert response.headers["content-type"] == "application/json", response.text
    return response.status_code, response.json()


def epoch_of(rig: Rig) -> int:
    return int(readiness(rig.servers[0].port)["epoch"])


def publish(rig: Rig, price: float, code: str = MAOTAI) -> None:
    rig.source.publish(quote_topic(code), {code: [{"lastPrice": price}]})


async def test_events_have_the_body_of_the_socket_and_a_position(rig: Rig, pages: httpx2.AsyncClient) -> None:
    async with opened(pages, REALTIME) as (events, ack):
        assert (ack["type"], ack["added"], ack["rejected"]) == ("subscribed", [MAOTAI], [])
        publish(rig, 1.5)
        event = await events.data()
        assert event.data == {MAOTAI: [{"lastPrice": 1.5}]}
        epoch, _, seq = event.id.partition(":")
        assert (int(epoch), seq) == (epoch_of(rig), "1")
        publish(rig, 2.5)
        assert (await events.data()).id == f"{epoch}:2"
    await rig.unwanted(TICK)


async def test_options_of_a_subscription_are_parameters(rig: Rig, pages: httpx2.AsyncClient) -> None:
    url = f"{REALTIME}&period=1m&fields=close&seq=true&snapshot=false"
    async with opened(pages, url) as (events, _):
        rig.source.publish(quote_topic(MAOTAI, "1m"), {MAOTAI: [{"time": 1, "close": 2.0, "open": 3.0}]})
        event = await events.data()
        assert (event.data["type"], event.data["seq"]) == ("data", 1)
        assert event.data["data"] == {MAOTAI: [{"close": 2.0}]}


async def test_client_resumes_with_the_id_of_its_last_event(rig: Rig, pages: httpx2.AsyncClient) -> None:
    url = f"/sse/realtime?stocks={MAOTAI},{PINGAN}"
    # Another client keeps the topics.
    async with opened(pages, url):
        async with opened(pages, url) as (events, _):
            publish(rig, 1.0)
            publish(rig, 2.0)
            publish(rig, 3.0, PINGAN)
            seen = [await events.data() for _ in range(3)]
        epoch = epoch_of(rig)
        assert [event.id for event in seen] == [f"{epoch}:1,0", f"{epoch}:2,0", f"{epoch}:2,1"]
        async with opened(pages, url, **{"Last-Event-ID": seen[-1].id}) as (events, ack):
            assert ack["recovered"] == {MAOTAI: True, PINGAN: True}
            publish(rig, 4.0)
            # Nothing that it had comes again.
            again = await events.data()
            assert (again.data, again.id) == ({MAOTAI: [{"lastPrice": 4.0}]}, f"{epoch}:3,1")
        async with opened(pages, f"{url}&lastEventId={epoch}:1,1") as (events, ack):
            assert ack["recovered"] == {MAOTAI: False, PINGAN: True}
            assert (await events.data()).data == {MAOTAI: [{"lastPrice": 4.0}]}


@pytest.mark.parametrize(
    "given", ["x", "1:2,3", "1:", "-1:2", "1:2,", f"{2**62 + 1}:1", f"{10**19}:1", f"{10**20 - 1}:1"]
)
async def test_id_of_another_url_is_refused(rig: Rig, pages: httpx2.AsyncClient, given: str) -> None:
    status, problem = await denied(pages, REALTIME, **{"Last-Event-ID": given})
    assert (status, problem["code"]) == (400, "bad_request")
    assert rig.source.wanted == []


async def test_browser_that_has_all_is_told_not_to_connect_again(rig: Rig, pages: httpx2.AsyncClient) -> None:
    response = await pages.get(REALTIME, headers={"Last-Event-ID": "end"})
    assert (response.status_code, response.content) == (204, b"")


async def test_snapshot_of_a_market_is_whole_before_the_client_is_there(rig: Rig, pages: httpx2.AsyncClient) -> None:
    topic = whole_topic("SH")
    snapshot = {f"{600000 + number}.SH": {"lastPrice": 1.0, "filler": "x" * 900} for number in range(200)}
    async with opened(pages, "/sse/whole_quote?codes=SH") as (first, _):
        rig.source.publish(topic, snapshot)
        await first.data()
        async with opened(pages, "/sse/whole_quote?codes=SH") as (events, _):
            codes: set[str] = set()
            while (event := await events.next()).name == "message":
                codes |= event.data.keys()
                assert event.id == ""
            assert codes == snapshot.keys()
            assert event.data["type"] == "snapshot_end"
            assert event.id.startswith(f"{epoch_of(rig)}:")
            before = int(event.id.partition(":")[2])
            rig.source.publish(topic, {MAOTAI: {"lastPrice": 2.0}})
            event = await events.data()
            assert (event.data, event.id.partition(":")[2]) == ({MAOTAI: {"lastPrice": 2.0}}, str(before + 1))


async def test_depth_and_formulas_are_served(rig: Rig, pages: httpx2.AsyncClient) -> None:
    async with opened(pages, f"/sse/l2_thousand?stocks={MAOTAI}&gear_num=1") as (events, _):
        rig.source.publish(l2_topic(MAOTAI, 20), {MAOTAI: [{"askPrice": [1.0, 2.0]}]})
        event = await events.data()
        assert event.data == {MAOTAI: [{"askPrice": [1.0]}]}
        assert event.id.endswith(":1")
    url = f"/sse/formula?formula_name=MA&stock_code={MAOTAI}&params=%7B%22N%22:5%7D"
    async with opened(pages, url) as (events, ack):
        assert (ack["action"], ack["seq_id"]) == ("subscribed", 1)
        topic = formula_topic(FormulaSpec("MA", MAOTAI, params={"N": 5}))
        rig.source.publish(topic, {"formula_name": "MA", "data": {}})
        event = await events.data()
        assert (event.data["type"], event.data["formula_name"]) == ("formula_update", "MA")
        assert event.id.endswith(":1")
    async with opened(pages, url, **{"Last-Event-ID": event.id}) as (_, ack):
        assert "recovered" in ack


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("/sse/realtime", 400, "stocks must be a non-empty list of codes"),
        ("/sse/realtime?codes=600519.SH", 400, "'codes' means nothing here"),
        (f"{REALTIME}&period=tik", 400, "did you mean tick"),
        (f"{REALTIME}&mode=fast", 400, "mode must be one of latest, all"),
        (f"{REALTIME}&snapshot=maybe", 400, "snapshot is true or false"),
        ("/sse/realtime?stocks=600519", 400, "did you mean '600519.SH'"),
        ("/sse/realtime?stocks=999999.SZ", 400, "unknown code '999999.SZ'"),
        ("/sse/realtime?stocks=600519,999999.SZ,600519", 400, "did you mean '600519.SH'"),
        ("/sse/l2_thousand?stocks=600519.SH&gear_num=1001", 400, "gear_num must be at most 1000"),
        ("/sse/formula?formula_name=MA", 400, "stock_code"),
        ("/sse/formula?formula_name=MA&stock_code=600519.SH&params=x", 400, "params is an object as JSON"),
    ],
)
async def test_wrong_parameter_is_named_in_words(pages: httpx2.AsyncClient, url: str, status: int, words: str) -> None:
    found, problem = await denied(pages, url)
    assert (found, words in problem["error"]) == (status, True), problem


async def test_code_that_is_not_served_is_told_beside_the_others(rig: Rig, pages: httpx2.AsyncClient) -> None:
    async with opened(pages, f"{REALTIME},600519,999999.SZ") as (events, ack):
        assert ack["added"] == [MAOTAI]
        assert {each["code"]: each["error"] for each in ack["rejected"]} == {
            "600519": "unknown_symbol",
            "999999.SZ": "unknown_symbol",
        }
        publish(rig, 1.0)
        assert (await events.data()).id.endswith(":1,0,0")


async def test_key_and_scope_are_those_of_the_socket(rig: Rig, config: Config, pages: httpx2.AsyncClient) -> None:
    secret = add_key(config, "quotes", "market")
    server = rig.serve(require_key=True)
    async with client_of(server) as strict:
        status, problem = await denied(strict, REALTIME)
        assert (status, problem["code"]) == (401, "unauthorized")
        # What takes no session asks for the key too.
        assert (await strict.head(REALTIME)).status_code == 401
        assert (await strict.get(REALTIME, headers={"Last-Event-ID": "end"})).status_code == 401
        assert (await strict.head(f"{REALTIME}&api_key={secret}")).status_code == 200
        status, problem = await denied(strict, f"{REALTIME}&api_key=wrong")
        assert (status, problem["error"]) == (401, "the API key is wrong")
        status, problem = await denied(strict, f"/sse/formula?formula_name=MA&stock_code={MAOTAI}&api_key={secret}")
        assert (status, problem["error"]) == (403, "the key quotes has no scope formula")
        status, problem = await denied(strict, f"{REALTIME}&period=l2quote&api_key={secret}")
        assert (status, problem["error"]) == (403, "the key quotes has no scope l2")
        async with opened(strict, f"{REALTIME}&api_key={secret}") as (_, ack):
            assert ack["added"] == [MAOTAI]


async def test_address_with_wrong_keys_is_barred(pages: httpx2.AsyncClient) -> None:
    for _ in range(5):
        assert (await denied(pages, f"{REALTIME}&api_key=wrong"))[0] == 401
    response = await pages.get(f"{REALTIME}&api_key=wrong")
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 50


async def test_stream_has_no_deadline_as_a_page_has(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "REQUEST_TIMEOUT", 0.2)
    async with opened(pages, REALTIME) as (events, _):
        # A connection without a request is given up after the same time, so it shows that the time is over.
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.servers[0].port)
        assert await reader.read() == b""
        writer.close()
        publish(rig, 1.0)
        assert (await events.data()).data == {MAOTAI: [{"lastPrice": 1.0}]}


async def test_formula_is_not_open_to_a_page_from_a_file(rig: Rig, pages: httpx2.AsyncClient) -> None:
    async with opened(pages, REALTIME, Origin="null") as (events, _):
        assert events.response.headers["Access-Control-Allow-Origin"] == "null"
    url = f"/sse/formula?formula_name=MA&stock_code={MAOTAI}"
    status, problem = await denied(pages, url, Origin="null")
    assert (status, problem["code"]) == (403, "origin_denied")


async def test_stream_takes_a_place_as_a_socket_does(rig: Rig) -> None:
    async with client_of(rig.serve(max_connections_per_address=1)) as client:
        async with opened(client, REALTIME):
            status, problem = await denied(client, REALTIME)
            assert (status, problem["code"]) == (503, "connection_limit")
        for _ in range(100):
            response = await client.head(REALTIME)
            if response.status_code == 200:
                break
        async with opened(client, REALTIME):
            pass


async def test_head_subscribes_nothing(rig: Rig, pages: httpx2.AsyncClient) -> None:
    response = await pages.head(REALTIME)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert rig.source.wanted == []


async def test_quiet_stream_has_heartbeats(
    rig: Rig, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT", 0.1)
    async with opened(pages, REALTIME) as (events, _):
        reading = asyncio.create_task(events.next())
        await until(lambda: events.comments == [" heartbeat"] or "heartbeat" in events.comments, "a heartbeat")
        publish(rig, 1.0)
        assert (await reading).data == {MAOTAI: [{"lastPrice": 1.0}]}


async def test_killed_feeder_is_told_and_the_stream_goes_on(rig: Rig, pages: httpx2.AsyncClient) -> None:
    async with opened(pages, REALTIME) as (events, _):
        publish(rig, 1.0)
        first = await events.data()
        rig.feeder.stop()
        while (event := await events.next()).data.get("state") != "down":
            pass
        assert (event.name, event.data["type"]) == ("notice", "feed")
        rig.start_feeder()
        await rig.wanted(TICK)
        publish(rig, 2.0)
        event = await events.data()
        assert event.data == {MAOTAI: [{"lastPrice": 2.0}]}
        # The newer feeder begins at 1 again, with its own epoch.
        assert event.id != first.id
        wait_for(lambda: event.id == f"{epoch_of(rig)}:1", "the epoch of the new feeder")


async def test_stream_ends_when_the_server_stops(rig: Rig, pages: httpx2.AsyncClient) -> None:
    async with opened(pages, REALTIME) as (events, _):
        rig.servers[0].ask_to_stop()
        assert (await events.next()).data == {"type": "closing", "reason": "server_restart"}
        await events.ended()


async def test_client_that_does_not_read_is_conflated_and_dropped(rig: Rig) -> None:
    server = rig.serve(slow_timeout=1.0)
    bulk = "x" * 20_000
    async with rig.connect("/ws/realtime", server) as other:
        await other.subscribed(stocks=[MAOTAI])
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", server.port))
            stalled.sendall(f"GET {REALTIME} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            await until(lambda: readiness(server.port)["connections"] == 2, "the stream")
            for number in range(1500):
                rig.source.publish(TICK, {MAOTAI: [{"number": number, "bulk": bulk}]})
                # A client that reads gets each of them.
                assert (await other.receive())[MAOTAI][0]["number"] == number
            # Of 30 MB the newest alone waits, and what was taken before.
            assert metrics(server.port)["waiting_bytes"] < 2 * 1024 * 1024
            await until(lambda: readiness(server.port)["connections"] == 1, "the stalled client to be dropped")
            assert readiness(server.port)["skipped"] > 0
            # The connection is dropped too: a close would wait for the client for ever.
            state = server._server.server_state
            await until(lambda: len(state.connections) == 1, "the end of the connection")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_prints_events_as_they_come(rig: Rig) -> None:
    url = f"http://127.0.0.1:{rig.servers[0].port}{REALTIME}"
    program = ("curl", "-sN", "--noproxy", "*", url)
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            await rig.wanted(TICK)
            await process.stdout.readuntil(b"event: notice\n")
            publish(rig, 1.5)
            await process.stdout.readuntil(b'data: {"600519.SH":[{"lastPrice":1.5}]}\n\n')
    finally:
        process.kill()
        await process.wait()
