"""Codes that the store has only within their market: read from it, then live out of it, by its positions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.markets.search import CODES_OF_CLIENT
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import whole_topic
from tests.support.events import events
from tests.support.morning import CODE, OPEN, TICK, Market, market_of
from tests.support.rig import Client
from tests.support.waiting import until

SH = whole_topic("SH")
OTHER = "600000.SH"


def tick(number: int, code: str = CODE) -> dict[str, Any]:
    """Return a batch with the tick that is number 1, 2, ... of the day, and one of a code that nobody asks for."""
    time = OPEN + 3000 * (number - 1)
    return {"688981.SH": {"time": time, "volume": -number}, code: {"time": time, "volume": number}}


class Exchange:
    """A market that somebody has subscribed since the open."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.number = 0

    def publish(self, count: int = 1, code: str = CODE) -> None:
        for _ in range(count):
            self.number += 1
            self.market.rig.source.publish(SH, tick(self.number, code))

    async def stored(self) -> None:
        await until(lambda: len(self.market.store.day.kept.get(SH, ())) == self.number, "the store")


@pytest.fixture
def market(config: Config) -> Iterator[Market]:
    with market_of(config) as market:
        yield market


@asynccontextmanager
async def exchange(market: Market) -> AsyncIterator[Exchange]:
    async with market.rig.connect("/ws/whole_quote") as other:
        await other.subscribed(codes=["SH"])
        yield Exchange(market)


async def volumes(client: Client, last: int, code: str = CODE) -> list[int]:
    got: list[int] = []
    while not got or got[-1] != last:
        frame = await client.receive()
        body = frame.get("data", frame)
        if code in body:
            assert list(body) == [code]
            got += [record["volume"] for record in body[code]]
    return got


async def test_code_is_read_out_of_its_market_and_goes_on_there(market: Market) -> None:
    async with exchange(market) as sh, market.rig.connect("/ws/realtime") as client:
        sh.publish(20)
        sh.publish(20, OTHER)
        sh.publish(5)
        await sh.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:06")
        assert ack["added"] == [CODE]
        assert ack["start"] == {CODE: {"from": "09:30:06.000", "complete": True, "market": "SH"}}
        sh.publish(5)
        sh.publish(3, OTHER)
        sh.publish(2)
        assert await volumes(client, 55) == [*range(3, 21), *range(41, 51), 54, 55]
        # Its own topic was not asked for.
        assert TICK not in market.rig.source.wanted


async def test_code_with_a_topic_of_its_own_is_read_from_that(market: Market) -> None:
    async with (
        exchange(market) as sh,
        market.rig.connect("/ws/realtime") as own,
        market.rig.connect("/ws/realtime") as client,
    ):
        await own.subscribed(stocks=[CODE])
        market.publish(5)
        sh.publish(5)
        await sh.stored()
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30")
        assert ack["start"] == {CODE: {"from": "09:30:00.000", "complete": True}}
        assert await volumes(client, 5) == [1, 2, 3, 4, 5]


async def test_market_is_taken_where_it_begins_earlier(market: Market) -> None:
    market.store.keeps = lambda frame: frame.topic != TICK or frame.seq > 3
    async with (
        exchange(market) as sh,
        market.rig.connect("/ws/realtime") as own,
        market.rig.connect("/ws/realtime") as client,
    ):
        await own.subscribed(stocks=[CODE])
        market.publish(5)
        sh.publish(5)
        await sh.stored()
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30")
        assert ack["start"][CODE]["market"] == "SH"
        assert await volumes(client, 5) == [1, 2, 3, 4, 5]


async def test_part_of_the_day_comes_out_of_the_market(market: Market) -> None:
    async with exchange(market) as sh, market.rig.connect("/ws/realtime") as client:
        sh.publish(20)
        await sh.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:06", end="09:30:15", id=5)
        assert ack["start"][CODE]["market"] == "SH"
        assert await volumes(client, 5) == [3, 4, 5]
        assert await client.receive() == {"type": "end", "id": 5}


async def test_position_in_a_market_goes_on_there(market: Market) -> None:
    async with exchange(market) as sh, market.rig.connect("/ws/realtime") as client:
        sh.publish(4)
        sh.publish(2, OTHER)
        sh.publish(4)
        await sh.stored()
        await client.subscribed(stocks=[CODE], start="09:30", seq=True)
        frame = await client.receive()
        assert (frame["type"], frame["seq"], frame["market"]) == ("data", 1, "SH")
        async with market.rig.connect("/ws/realtime") as again:
            at = {"epoch": frame["epoch"], "seq": 3, "market": frame["market"]}
            ack = await again.subscribed(stocks=[CODE], start=at)
            assert ack["start"][CODE]["market"] == "SH"
            assert "ignored" not in ack
            sh.publish()
            assert await volumes(again, 11) == [4, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"start": {"epoch": 1, "seq": 1, "market": "SZ"}}, "600519.SH is of the market SH"),
        ({"start": {"epoch": 1, "seq": 1, "market": "SH"}, "period": "1m"}, "only ticks of a code"),
    ],
)
async def test_position_in_a_market_is_one_of_the_codes_ticks(market: Market, asked: dict[str, Any], told: str) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        await client.send({"id": 1, "stocks": [CODE], **asked})
        error = await client.receive()
        assert error["code"] == "bad_request"
        assert told in error["error"]


async def test_gap_of_the_market_is_told_for_the_code(market: Market) -> None:
    market.store.keeps = lambda frame: frame.seq not in (5, 6)
    async with exchange(market) as sh, market.rig.connect("/ws/realtime") as client:
        sh.publish(10)
        await until(lambda: len(market.store.day.kept.get(SH, ())) == 8, "the store")
        await client.subscribed(stocks=[CODE], start="09:30", seq=True)
        got = [await client.receive() for _ in range(9)]
        assert [frame["seq"] for frame in got if frame["type"] == "data"] == [1, 2, 3, 4, 7, 8, 9, 10]
        assert (got[4]["type"], got[4]["code"], got[4]["reason"]) == ("gap", CODE, "gap")
        assert (got[4]["after"]["seq"], got[4]["before"]["seq"]) == (4, 7)


async def test_codes_of_a_market_are_played_in_one_time(market: Market) -> None:
    async with exchange(market) as sh, market.rig.connect("/ws/realtime") as client:
        for number in range(10):
            sh.publish(1, CODE if number % 2 else OTHER)
        await sh.stored()
        ack = await client.subscribed(stocks=[CODE, OTHER], start="09:30", speed=100)
        assert ack["play"] == {"speed": 100.0, "from": "09:30:00.000", "meets_live": True}
        got = [next(iter((await client.receive()).items())) for _ in range(10)]
        assert [(code, record["volume"]) for code, [record] in got] == [
            (CODE if number % 2 else OTHER, number + 1) for number in range(10)
        ]


async def test_more_codes_than_a_socket_may_read_are_not_stored(market: Market) -> None:
    codes = [f"6000{number:02}.SH" for number in range(CODES_OF_CLIENT + 3)]
    async with exchange(market) as sh, market.rig.connect("/ws/realtime") as client:
        for code in codes:
            sh.publish(1, code)
        await sh.stored()
        ack = await client.subscribed(stocks=codes, start="09:30")
        told = list(ack["start"].values())
        assert [entry.get("market") for entry in told] == ["SH"] * CODES_OF_CLIENT + [None] * 3
        assert {entry["reason"] for entry in told[CODES_OF_CLIENT:]} == {"not_stored"}


async def test_unsubscribed_code_gives_back_the_market(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        async with exchange(market) as sh:
            sh.publish(3)
            await sh.stored()
            await client.subscribed(stocks=[CODE], start="09:30")
            assert await volumes(client, 3) == [1, 2, 3]
        await client.send({"action": "list", "id": 2})
        assert (await client.receive())["stocks"] == [CODE]
        assert SH in market.rig.source.wanted
        await client.send({"action": "unsubscribe", "stocks": [CODE], "id": 3})
        assert (await client.receive())["removed"] == [CODE]
        await market.rig.unwanted(SH)


async def test_events_are_not_read_out_of_a_market(market: Market) -> None:
    async with exchange(market) as sh:
        sh.publish(3)
        await sh.stored()
        [ack] = await events(market.rig, f"/sse/realtime?stocks={CODE}&start=09:30", 1)
        assert ack["start"] == {CODE: {"from": None, "complete": False, "reason": "not_stored"}}
