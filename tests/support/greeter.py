"""A feeder whose source publishes two values of every topic at once, and consumers of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from feeder.app import Feeder
from feeder.source import DownloadRequest, Health, Sink
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import Refused
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Kind, Topic, TopicParts
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS


class Greeter:
    """A source that publishes two values of every topic at once and refuses one code."""

    name = "greeter"
    simulated = True
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.TRADE))
    lossless = False

    def __init__(self) -> None:
        self.sink: Sink
        self.subscribed = threading.Event()

    def start(self, sink: Sink) -> None:
        self.sink = sink
        sink.set_state("up")

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        if parts.name == "999999.SH":
            raise Refused("unknown_symbol", "no such code")
        for number in (1, 2):
            self.publish(topic, parts.name, number)
        self.subscribed.set()

    def publish(self, topic: Topic, code: str, number: int) -> None:
        self.sink.publish(topic, {code: {"number": number}}, 1)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        pass

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        raise Refused("upstream_refused", "no downloads")

    def health(self) -> Health:
        return Health()

    def upstream(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Addresses(msgspec.Struct):
    market_addr: str
    trade_addr: str
    ask_addr: str
    trade_ask_addr: str = ""
    # On Windows the keys of trade events are there.
    data_dir: str = ""

    def subscribe(self, *topics: str, timeout: float | None = SECONDS, **options: object) -> Iterator[Frame]:
        return subscribe(*topics, timeout=timeout, **(msgspec.structs.asdict(self) | options))  # type: ignore[arg-type]


def addresses(feeder: Feeder) -> Addresses:
    publisher = feeder.publisher
    return Addresses(
        publisher.market_addr,
        publisher.trade_addr,
        publisher.ask_addr,
        publisher.trade_ask_addr,
        str(publisher._config.data_path),
    )


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    taken = [next(frames) for _ in range(count)]
    frames.close()  # type: ignore[attr-defined]  # a generator
    return taken


def take_until_live(frames: Iterator[Frame], count: int) -> list[Frame]:
    """Take frames until `count` of them came live, and not from the journal."""
    taken = []
    deadline = time.monotonic() + SECONDS
    while count:
        taken.append(next(frames))
        count -= taken[-1].published_ns > 0
        assert time.monotonic() < deadline, "no live frames"
    frames.close()  # type: ignore[attr-defined]  # a generator
    return taken


@contextmanager
def trading(source: Greeter, *accounts: str) -> Iterator[None]:
    """Publish events of `accounts` in turn, as fast as the feeder takes them, during the block."""
    stop = threading.Event()

    def trade() -> None:
        number = 0
        while not stop.is_set():
            for account in accounts:
                source.sink.publish_trade(account, "order", {"order_id": number}, 1)
            number += 1
            source.sink.wait_room(100, 1.0)

    trader = threading.Thread(target=trade)
    trader.start()
    try:
        yield
    finally:
        stop.set()
        trader.join(SECONDS)


def trade_once(source: Greeter, count: int, account: str = "1") -> None:
    for number in range(count):
        source.sink.publish_trade(account, "order", {"order_id": number}, 1)
