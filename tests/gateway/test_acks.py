"""What acks say, and what comes before and after them, over a real feeder, uvicorn and WebSocket clients."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from websockets.typing import Subprotocol

from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.wire.topics import FormulaSpec, Topic, TopicParts, formula_topic, quote_topic, whole_topic
from tests.support.rig import Client, Rig, running_rig

SH = whole_topic("SH")
REFUSED = "999999.SZ"
CODES = [f"{600000 + number}.SH" for number in range(10_400)]


@pytest.fixture
def served(config: Config) -> Iterator[Rig]:
    """Return a rig with one kind of sender, whose source refuses a code and the market BJ."""
    with running_rig(msgspec.structs.replace(config, max_rate=100_000)) as rig:
        subscribe = rig.source.subscribe

        def refuse(topic: Topic, parts: TopicParts) -> None:
            if parts.name == "BJ":
                raise Refused("upstream_refused", "no such market here")
            subscribe(topic, parts)

        rig.source.subscribe = refuse  # type: ignore[method-assign]
        rig.serve()
        yield rig


async def answers(client: Client, *numbers: int) -> dict[int, dict[str, Any]]:
    """Return the answers to some requests."""
    found: dict[int, dict[str, Any]] = {}
    while not found.keys() >= set(numbers):
        frame = await client.receive()
        if "id" in frame:
            found[frame["id"]] = frame
    return found


def market(codes: list[str], size: int) -> Iterator[dict[str, Any]]:
    """Yield messages of a market."""
    for first in range(0, len(codes), 100):
        yield {code: {"n": 1, "pad": "x" * size} for code in codes[first : first + 100]}


async def seen(client: Client, codes: list[str]) -> None:
    """Wait for all of these codes."""
    missing = set(codes)
    while missing:
        missing -= (await client.receive()).keys()


async def test_code_that_is_refused_and_unsubscribed_at_once_is_answered(served: Rig) -> None:
    async with served.connect("/ws/realtime?ctl=1") as client:
        await client.receive()
        for number in range(0, 300, 2):
            code = f"{600000 + number}.SH"
            await client.send({"action": "subscribe", "id": number, "stocks": [REFUSED, code]})
            # The turns of the loop at which a request arrives between the refusal and the ack differ.
            for _ in range(random.randrange(6)):
                await client.send({"action": "ping"})
            await client.send({"action": "unsubscribe", "id": number + 1, "stocks": [REFUSED]})
            found = await answers(client, number, number + 1)
            assert found[number]["added"] == [code]
            rejected = [each["code"] for each in found[number]["rejected"]]
            # Refused before or after it was unsubscribed.
            assert (rejected, found[number + 1]["removed"]) in (([REFUSED], []), ([], [REFUSED]))


async def test_code_of_a_refused_market_is_served_by_itself(served: Rig) -> None:
    code = "430047.BJ"
    async with served.connect("/ws/whole_quote?ctl=1") as client:
        await client.receive()
        await client.send({"action": "subscribe", "id": 1, "codes": ["BJ", code, REFUSED]})
        ack = (await answers(client, 1))[1]
        assert (ack["added"], ack["active"]) == ([code], 1)
        assert sorted(each["code"] for each in ack["rejected"]) == [REFUSED, "BJ"]
        served.source.publish(whole_topic(code), {code: {"n": 1}})
        assert await client.receive() == {code: {"n": 1}}


async def test_rate_limit_does_not_hold_a_snapshot(served: Rig) -> None:
    codes = CODES[:2000]
    async with served.connect("/ws/whole_quote") as keeper, served.connect("/ws/whole_quote") as client:
        await keeper.subscribed(codes=["SH"])
        for body in market(codes, 400):
            served.source.publish(SH, body)
        await seen(keeper, codes)
        # Within the time that a test waits, only what passes at once arrives.
        await client.subscribed(codes=["SH"], max_rate_ms=3_600_000)
        await seen(client, codes)
        frame = await client.receive()
        assert (frame["type"], frame["count"]) == ("snapshot_end", 2000)
        # A code that was not in it is due, the others are not.
        served.source.publish(SH, {codes[0]: {"n": 2}, "688001.SH": {"n": 2}})
        assert await client.receive() == {"688001.SH": {"n": 2}}


async def test_snapshot_larger_than_the_outbox_does_not_close_mode_all(config: Config) -> None:
    with running_rig(msgspec.structs.replace(config, outbox_bytes=1_000_000)) as rig:
        rig.serve()
        async with rig.connect("/ws/whole_quote") as keeper, rig.connect("/ws/whole_quote") as client:
            await keeper.subscribed(codes=["SH"])
            for body in market(CODES, 500):
                rig.source.publish(SH, body)
            await seen(keeper, CODES)
            await client.subscribed(codes=["SH"], mode="all")
            await seen(client, CODES)
            assert (await client.receive())["count"] == len(CODES)


async def test_acks_and_list_show_periods_and_levels(served: Rig) -> None:
    async with served.connect("/ws/realtime") as client:
        assert "by_period" not in await client.subscribed(stocks=["600519.SH"])
        ack = await client.subscribed(stocks=["600519.SH", "000001.SZ"], period="1m")
        assert ack["by_period"] == {"1m": ["600519.SH", "000001.SZ"]}
        await client.send({"action": "list", "id": 2})
        assert await client.receive() == {
            "type": "subscriptions",
            "id": 2,
            "stocks": ["000001.SZ", "600519.SH"],
            "by_period": {"1m": ["000001.SZ", "600519.SH"], "tick": ["600519.SH"]},
        }
    async with served.connect("/ws/l2_thousand") as client:
        assert (await client.subscribed(stocks=["600519.SH"], gear_num=5))["by_gear_num"] == {"5": ["600519.SH"]}


async def test_unsubscribe_without_a_period_ends_every_one(served: Rig) -> None:
    async with served.connect("/ws/realtime") as client:
        for period in ("tick", "1m", "5m"):
            await client.subscribed(stocks=["600519.SH", "000001.SZ"], period=period)
        await client.send({"action": "unsubscribe", "id": 2, "stocks": ["000001.SZ"], "period": "1d"})
        [rejected] = (await client.receive())["rejected"]
        assert rejected == {
            "code": "000001.SZ",
            "error": "not_subscribed",
            "reason": "000001.SZ is not subscribed with period 1d, only with tick, 1m, 5m",
        }
        await client.send({"action": "unsubscribe", "id": 3, "stocks": ["600519.SH"]})
        ended = await client.receive()
        assert (ended["removed"], ended["active"]) == (["600519.SH"], 3)
        assert ended["by_period"] == {period: ["600519.SH"] for period in ("tick", "1m", "5m")}
        for period in ("tick", "1m", "5m"):
            await served.unwanted(quote_topic("600519.SH", period))
            assert quote_topic("000001.SZ", period) in served.source.wanted


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_formula_with_a_number_that_json_lacks_is_refused(served: Rig, number: float) -> None:
    request = {"action": "subscribe", "id": 1, "formula_name": "MA", "stock_code": "600519.SH", "params": {"N": number}}
    async with served.connect("/ws/formula?ctl=1", subprotocols=[Subprotocol("qmt.v1.msgpack")]) as client:
        await client.socket.recv()
        await client.socket.send(msgspec.msgpack.encode(request))
        payload = await client.socket.recv()
        assert isinstance(payload, bytes)
        answer = msgspec.msgpack.decode(payload)
        assert (answer["type"], answer["id"], answer["code"]) == ("error", 1, "bad_request")
    async with served.connect("/ws/formula?ctl=1") as client:
        await client.receive()
        await client.socket.send(json.dumps(request))
        assert (await client.receive())["code"] == "bad_json"


async def test_formula_that_is_ended_before_its_ack_is_answered(served: Rig) -> None:
    topic = formula_topic(FormulaSpec("MA", "600519.SH"))
    async with served.connect("/ws/formula?ctl=1") as client:
        await client.receive()
        await client.send({"id": 1, "action": "subscribe", "formula_name": "MA", "stock_code": "600519.SH"})
        await client.send({"id": 2, "action": "unsubscribe", "seq_id": 1})
        found = await answers(client, 1, 2)
        # The source may have answered first.
        assert found[1].get("action") == "subscribed" or found[1]["code"] == "not_subscribed"
        assert found[2]["action"] == "unsubscribed"
        await served.unwanted(topic)


async def test_formula_list_shows_what_is_not_the_default(served: Rig) -> None:
    spec = {"formula_name": "MA", "stock_code": "600519.SH", "period": "1m", "params": {"N": 5}}
    async with served.connect("/ws/formula?ctl=1") as client:
        await client.receive()
        await client.send({"id": 1, "action": "subscribe", **spec})
        await answers(client, 1)
        await client.send({"id": 2, "action": "list"})
        assert (await answers(client, 2))[2]["formulas"] == [{"seq_id": 1, **spec}]


@pytest.mark.parametrize("path", ["/ws/realtime", "/ws/whole_quote"])
async def test_random_conversation_over_sockets_is_answered(served: Rig, path: str) -> None:
    rng = random.Random(path)
    field = "codes" if path == "/ws/whole_quote" else "stocks"
    names = ["600519.SH", "000001.SZ", "600000.SH", REFUSED, *(["SH", "BJ", "430047.BJ"] if field == "codes" else [])]
    held: set[str] = set()
    async with served.connect(f"{path}?ctl=1") as client:
        await client.receive()
        asked = range(1, 201)
        for number in asked:
            action = rng.choice(("subscribe", "subscribe", "unsubscribe", "list"))
            named = {} if action == "list" else {field: rng.sample(names, rng.randint(1, 3))}
            await client.send({"action": action, "id": number, **named})
        found: dict[int, int] = {}
        while len(found) < len(asked):
            frame = await client.receive()
            number = frame.get("id", 0)
            found |= {number: found.get(number, 0) + 1} if number else {}
            held |= set(frame.get("added", ()))
            held -= {each["code"] for each in frame.get("rejected", ())} if "added" in frame else set()
            held -= {*frame.get("removed", ()), frame.get("symbol", "")}
        assert set(found.values()) == {1}
        await client.send({"action": "list", "id": 1000})
        assert set((await answers(client, 1000))[1000][field]) == held
