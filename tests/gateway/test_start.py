"""The day so far, then live: subscriptions with a `start`, over real sockets and with a small store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qmt_bridge.config import Config
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import Client, Rig, running_rig
from tests.support.store import StoreServer, store_of
from tests.support.waiting import until

CODE = "600519.SH"
TICK = quote_topic(CODE)
OPEN = midnight(1_764_300_000_000) + (9 * 3600 + 30 * 60) * 1000


def tick(number: int) -> dict[str, Any]:
    """Return the tick that is published as number 1, 2, ... of the day, one in three seconds."""
    return {CODE: [{"time": OPEN + 3000 * (number - 1), "lastPrice": 100.0, "volume": number}]}


class Market:
    """A rig with a store that follows what the source publishes."""

    def __init__(self, rig: Rig, store: StoreServer) -> None:
        self.rig = rig
        self.store = store
        self.number = 0

    @property
    def kept(self) -> list[int]:
        return [frame.data[CODE][0]["volume"] for frame in self.store.day.kept.get(TICK, [])]

    def publish(self, count: int = 1) -> None:
        for _ in range(count):
            self.number += 1
            self.rig.source.publish(TICK, tick(self.number))

    async def stored(self) -> None:
        """Wait until the store has all that was published."""
        await until(lambda: self.number in self.kept, "the store")


@pytest.fixture
def market(config: Config) -> Iterator[Market]:
    with running_rig(config) as rig, store_of(rig.config.market_addr) as store:
        rig.serve(store_addr=store.address)
        yield Market(rig, store)


async def volumes(client: Client, last: int) -> list[int]:
    """Return the numbers of the ticks up to `last`."""
    got: list[int] = []
    while not got or got[-1] != last:
        frame = await client.receive()
        body = frame.get("data", frame)
        if CODE in body:
            got.append(body[CODE][0]["volume"])
    return got


async def test_start_gives_the_day_so_far_and_then_live_ticks(market: Market) -> None:
    async with market.rig.connect("/ws/realtime") as other, market.rig.connect("/ws/realtime") as client:
        await other.subscribed(stocks=[CODE])
        market.publish(200)
        await market.stored()
        ack = await client.subscribed(stocks=[CODE], start="09:30:03")
        assert ack["start"] == {CODE: {"from": "09:30:03.000", "complete": True}}
        market.publish(50)
        assert await volumes(client, 250) == list(range(2, 251))
