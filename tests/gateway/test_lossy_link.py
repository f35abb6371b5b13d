"""A link between feeder and gateway that is cut or held while the feeder publishes, with a store that has all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from qmt_bridge.config import Config
from tests.chaos.proxy import Proxy
from tests.support.morning import CODE, TICK, tick
from tests.support.rig import Client, Rig, metrics, running_rig
from tests.support.store_asker import asking, running_store
from tests.support.waiting import until

# More than wait for a consumer that does not read (`sockets.HIGH_WATER_MARK`), and less at a time than the store takes.
MANY = 10_000
BURST = 500
# Bytes, so that these are more than what the system holds too.
PAD = "x" * 1000


@pytest.fixture
def rig(config: Config) -> Iterator[Rig]:
    # The store has the topic subscribed, so that it is published while the gateway is away.
    with running_rig(config) as rig:
        free = msgspec.structs.replace(rig.config, store_addr="tcp://127.0.0.1:*")
        with running_store(free, [TICK]) as (_, rig.config):
            yield rig


class Link:
    """Publishes ticks, and leads the gateway to the feeder by a proxy."""

    def __init__(self, rig: Rig, proxy: Proxy) -> None:
        self.rig = rig
        self.proxy = proxy
        self.number = 0
        # The first tick that came.
        self.first = 0
        # What was lost before the test lost anything.
        self.lost_before = 0.0

    def publish_one(self) -> None:
        self.number += 1
        self.rig.source.publish(TICK, {CODE: [tick(self.number)[CODE][0] | {"pad": PAD}]})

    def shows_loss(self) -> bool:
        """Publish a tick, which is dropped while too many wait; return whether the gateway has seen a gap."""
        self.publish_one()
        return self.lost() > self.lost_before

    def lost(self) -> float:
        """Return how many messages the gateways of this process have missed."""
        return metrics(self.rig.servers[0].port)["lost_total"]

    async def publish(self, count: int) -> None:
        """Publish ticks, no more at a time than the store can take."""
        with asking(self.rig.config.store_addr) as asker:
            while count:
                for _ in range(min(count, BURST)):
                    self.publish_one()
                count -= min(count, BURST)
                await until(lambda: asker.ask(TICK).seq >= self.number, "the store")


@asynccontextmanager
async def linked(rig: Rig) -> AsyncIterator[tuple[Link, Client]]:
    """Yield a link, and a client of it that is to miss nothing."""
    proxy = Proxy(int(rig.config.market_addr.rpartition(":")[2]), narrow=True)
    await proxy.start()
    try:
        rig.serve(market_addr=f"tcp://127.0.0.1:{proxy.port}")
        async with rig.connect("/ws/realtime", max_queue=None) as client:
            await client.subscribed(stocks=[CODE], seq=True, complete=True)
            link = Link(rig, proxy)
            # The gateway's subscription takes its way through the proxy, and the store's does not.
            first = asyncio.ensure_future(client.receive())
            while not first.done():
                link.publish_one()
                await asyncio.sleep(0.02)
            link.lost_before = link.lost()
            link.first = (await first)["data"][CODE][0]["volume"]
            yield link, client
    finally:
        await proxy.stop()


async def numbers(client: Client, last: int) -> list[Any]:
    """Return the numbers of the ticks up to `last`, and the notices of losses."""
    got: list[Any] = []
    while not got or got[-1] != last:
        frame = await client.receive()
        if frame["type"] == "data":
            got.append(frame["data"][CODE][0]["volume"])
        elif frame["type"] in ("gap", "skipped"):
            got.append(frame)
    return got


async def test_messages_lost_with_a_connection_are_read_again(rig: Rig) -> None:
    async with linked(rig) as (link, client):
        await link.publish(100)
        got = await numbers(client, link.number)
        for _ in range(3):
            link.proxy.hold()
            link.proxy.cut()
            await link.publish(700)
            link.proxy.heal()
            await link.publish(100)
            got += await numbers(client, link.number)
    assert got == list(range(link.first + 1, link.number + 1))


async def test_messages_beyond_what_a_link_holds_are_read_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # The next message shows the loss.
    monkeypatch.setattr("gateway.hub.QUIET_SECONDS", 1e9)
    # To publish so many may take longer than a feeder may be silent, whose return would show the loss too.
    monkeypatch.setattr("gateway.feed.ABSENT_AFTER", 1e9)
    async with linked(rig) as (link, client):
        await link.publish(100)
        got = await numbers(client, link.number)
        link.proxy.hold()
        await link.publish(MANY)
        link.proxy.heal()
        await until(link.shows_loss, "a gap")
        await link.publish(100)
        got += await numbers(client, link.number)
    assert got == list(range(link.first + 1, link.number + 1))
