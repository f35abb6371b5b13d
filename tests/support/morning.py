"""A rig with a store that has followed its feeder since the open, for tests of what begins in the past."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from qmt_bridge.config import Config
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.support.rig import DEADLINE, Rig, running_rig
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

    def lose(self, count: int = 1) -> None:
        """Publish ticks that reach the store and not the gateway."""
        for _ in range(count):
            self.number += 1
            self.lose_one(TICK, tick(self.number))

    def lose_one(self, topic: Topic, body: object) -> None:
        """Publish a message that reaches the store and not the gateway; the store has all that came before it."""
        publisher, lost = self.rig.feeder.publisher, threading.Event()
        transmit = publisher._transmit

        def drop(_: object, topic: Topic, seq: int, received_ns: int, body: bytes) -> None:
            publisher._transmit = transmit  # type: ignore[method-assign]
            frame = Frame(topic, publisher._epoch, seq, received_ns, received_ns, body)
            if self.store.keeps(frame):
                self.store.day.keep(frame)
            lost.set()

        publisher._transmit = drop  # type: ignore[method-assign]
        self.rig.source.publish(topic, body)
        assert lost.wait(DEADLINE)

    def reaches_store(self, code: str) -> bool:
        """Publish a message of another code that is subscribed; return whether the store has received one."""
        self.rig.source.publish(quote_topic(code), {code: tick(1)[CODE]})
        return quote_topic(code) in self.store.day.kept

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
