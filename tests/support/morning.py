"""A rig with a store that has followed its feeder since the open, for tests of what begins in the past."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from qmt_bridge.config import Config
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import Rig, running_rig
from tests.support.store import StoreServer, store_of
from tests.support.waiting import until, wait_for

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

    def wait_stored(self) -> None:
        """Wait until the store has all that was published."""
        wait_for(lambda: self.number in self.kept, "the store")

    async def stored(self) -> None:
        """Wait until the store has all that was published."""
        await until(lambda: self.number in self.kept, "the store")


@contextmanager
def demand(market: Market) -> Iterator[None]:
    """Let a consumer subscribe the topic: without one the feeder publishes nothing."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.connect(market.rig.config.market_addr)
    socket.subscribe(TICK)
    try:
        wait_for(lambda: TICK in market.rig.source.wanted, "the demand")
        yield
    finally:
        socket.close(linger=0)
        context.term()


@contextmanager
def market_of(config: Config) -> Iterator[Market]:
    with running_rig(config) as rig, store_of(rig.config.market_addr) as store:
        rig.serve(store_addr=store.address)
        yield Market(rig, store)
