"""The option `complete`: what is lost after a client has met the live stream is read from the store, or told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gateway.streams import reading
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic, whole_topic
from tests.support.morning import CODE, TICK, Market, market_of, tick
from tests.support.rig import Client
from tests.support.waiting import until

SH = whole_topic("SH")
OTHER = "000001.SZ"


@pytest.fixture
def market(config: Config) -> Iterator[Market]:
    with market_of(config) as market:
        yield market


async def received(client: Client, last: int) -> list[int | dict[str, Any]]:
    """Return the numbers of the ticks up to `last`, and the notices between them."""
    got: list[Any] = []
    while not got or got[-1] != last:
        frame = await client.receive()
        if frame.get("type") == "data":
            record = frame["data"][CODE]
            got.append((record[0] if isinstance(record, list) else record)["volume"])
        elif frame["type"] in ("gap", "skipped", "error"):
            got.append(frame)
    return got


async def joined(client: Client, **request: Any) -> None:
    await client.subscribed(stocks=[CODE], seq=True, complete=True, **request)


@pytest.mark.parametrize("request_", [{}, {"start": "09:30"}], ids=["last-value", "start"])
async def test_lost_message_is_read_from_the_store(market: Market, request_: dict[str, Any]) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(5)
        await market.stored()
        await joined(client, **request_)
        first = 1 if request_ else 5
        assert await received(client, 5) == list(range(first, 6))
        market.publish(2)
        assert await received(client, 7) == [6, 7]
        await market.stored()
        market.lose(3)
        market.publish(2)
        assert await received(client, 12) == [8, 9, 10, 11, 12]
        # And it is live again.
        market.publish(2)
        assert await received(client, 14) == [13, 14]


async def test_lost_message_is_told_to_others_as_before(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime?ctl=1") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(2)
        await market.stored()
        await client.receive()
        await client.subscribed(stocks=[CODE], seq=True, start="09:30")
        assert await received(client, 2) == [1, 2]
        market.publish(2)
        assert await received(client, 4) == [3, 4]
        await market.stored()
        market.lose()
        market.publish()
        got = await received(client, 6)
        assert got[-1] == 6
        assert 5 not in got


async def test_message_that_the_store_lost_too_is_a_gap_with_both_sides(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        await joined(client)
        market.publish(3)
        await market.stored()
        await received(client, 3)
        market.store.keeps = lambda frame: False
        market.lose(2)
        market.store.keeps = lambda frame: True
        market.publish(2)
        *_, gap, six, seven = await received(client, 7)
        assert (six, seven) == (6, 7)
        assert isinstance(gap, dict)
        assert (gap["type"], gap["code"], gap["reason"]) == ("gap", CODE, "gap")
        assert (gap["after"]["seq"], gap["before"]["seq"]) == (3, 6)


async def test_loss_while_the_store_is_away_is_a_gap_with_both_sides(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE", 0.5)
    monkeypatch.setattr("gateway.streams.stored.PATIENCE", 0.5)
    async with market.rig.connect("/ws/realtime") as client:
        await joined(client)
        market.publish(3)
        await market.stored()
        await received(client, 3)
        market.store.answers = lambda ask: False
        market.lose(2)
        market.publish(2)
        gap, six, seven = await received(client, 7)
        assert (six, seven) == (6, 7)
        assert isinstance(gap, dict)
        assert (gap["type"], gap["reason"]) == ("gap", "store_away")
        assert (gap["after"]["seq"], gap["before"]["seq"]) == (3, 6)
        market.publish()
        assert await received(client, 8) == [8]


async def test_loss_that_no_later_message_shows_is_found(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.hub.QUIET_SECONDS", 0.5)
    async with market.rig.connect("/ws/realtime") as client:
        await joined(client)
        market.publish(3)
        await market.stored()
        await received(client, 3)
        market.lose(2)
        assert await received(client, 5) == [4, 5]


async def test_market_that_lost_a_batch_gets_it_and_no_snapshot(market: Market) -> None:
    def body(number: int) -> dict[str, Any]:
        return {CODE: tick(number)[CODE][0]}

    async with market.rig.connect("/ws/whole_quote") as client:
        await client.subscribed(codes=["SH"], seq=True, complete=True)
        for number in (1, 2):
            market.rig.source.publish(SH, body(number))
        await until(lambda: len(market.store.day.kept.get(SH, ())) == 2, "the store")
        await received(client, 2)
        for number in (3, 4):
            market.lose_one(SH, body(number))
        market.rig.source.publish(SH, body(5))
        assert await received(client, 5) == [3, 4, 5]


async def test_restart_of_the_feeder_is_told_and_nothing_is_left_out(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[OTHER])
        await joined(client)
        market.publish(3)
        await market.stored()
        await received(client, 3)
        epoch = market.rig.feeder.publisher._epoch
        market.rig.feeder.stop()
        market.rig.start_feeder()
        await market.rig.wanted(TICK)
        await market.rig.wanted(quote_topic(OTHER))
        # Until gateway and store are connected.
        await until(lambda: market.reaches_store(OTHER), "the store")
        while OTHER not in await other.receive():
            pass
        market.publish(3)
        await market.stored()
        gap, *rest = await received(client, 6)
        assert rest == [4, 5, 6]
        assert isinstance(gap, dict)
        assert (gap["type"], gap["reason"]) == ("gap", "restart")
        assert (gap["after"]["epoch"], gap["after"]["seq"], gap["before"]["seq"]) == (epoch, 3, 1)
        assert gap["before"]["epoch"] > epoch


async def test_documented_client_is_told_of_a_gap_by_an_error(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        await client.send({"stocks": [CODE], "complete": True, "seq": True})
        market.publish(3)
        await market.stored()
        await received(client, 3)
        market.store.keeps = lambda frame: False
        market.lose()
        market.store.keeps = lambda frame: True
        market.publish()
        told, five = await received(client, 5)
        assert five == 5
        assert isinstance(told, dict)
        assert (told["type"], told["code"], told["reason"]) == ("error", "incomplete", "gap")


async def test_all_codes_of_a_client_are_read_again(market: Market) -> None:
    codes = [f"{number:06}.SZ" for number in range(1, 101)]
    topics = [quote_topic(code) for code in codes]
    async with market.rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=codes, complete=True)
        for number in (1, 2, 3):
            for topic, code in zip(topics, codes, strict=True):
                body = {code: tick(number)[CODE]}
                if number == 2:
                    market.lose_one(topic, body)
                else:
                    market.rig.source.publish(topic, body)
            await until(lambda n=number: all(len(market.store.day.kept.get(of, ())) == n for of in topics), "the store")
        got: dict[str, list[int]] = {}
        for _ in range(3 * len(codes)):
            [(code, [record])] = (await client.receive()).items()
            got.setdefault(code, []).append(record["volume"])
        assert got == {code: [1, 2, 3] for code in codes}


async def test_complete_and_a_rate_contradict_each_other(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as client:
        await client.send({"id": 1, "stocks": [CODE], "complete": True, "max_rate_ms": 100})
        error = await client.receive()
        assert (error["code"], "choose one" in error["error"]) == ("bad_request", True)
