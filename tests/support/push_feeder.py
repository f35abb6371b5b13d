"""A feeder with the source `push`, the pushers of a test, and a consumer of what is published."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from feeder.app import Feeder
from feeder.push.source import PushSource
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.wire import frames
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_reply, encode_ask
from qmt_bridge.wire.topics import STATUS_TOPIC
from tests.support.ports import ANY_ADDRESSES, ANY_PORT
from tests.support.pusher import KEY, Pusher
from tests.support.rig import DEADLINE, Rig

QUOTE = "quote/600519.SH/tick/"


def config_in(folder: Path, **changes: Any) -> Config:
    """Return the settings of a feeder on free ports whose pushers need `KEY`."""
    settings: dict[str, Any] = {
        **ANY_ADDRESSES,
        "source": "push",
        "push_addr": ANY_PORT,
        "push_key": KEY,
        "data_dir": str(folder),
    }
    # Elsewhere a folder protects trade events, and on Windows keys, which the consumers here do not have.
    settings["open_trade_addr"] = sys.platform == "win32"
    return Config(**{**settings, **changes})


class Consumer:
    """A SUB of the feeder's market data and trade events, and a DEALER for questions."""

    def __init__(self, feeder: Feeder, *topics: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        publisher = feeder.publisher
        self.market = sockets.connect_subscriber(self._context, publisher.market_addr, None)
        self.statuses: list[dict[str, Any]] = []
        self.bodies: list[tuple[str, Any]] = []
        self.frames: list[frames.Frame] = []
        self._asks = sockets.connect_dealer(self._context, publisher.ask_addr, None)
        self._number = 0
        self._trades: list[zmq.Socket[bytes]] = []
        self.want(STATUS_TOPIC, *topics)

    def want(self, *topics: str) -> None:
        """Subscribe topics."""
        for topic in topics:
            self.market.subscribe(topic)

    def leave(self, topic: str) -> None:
        """End the subscription of a topic."""
        self.market.unsubscribe(topic)

    def listen_to_trades(self, feeder: Feeder) -> zmq.Socket[bytes]:
        """Return a SUB of trade events."""
        found = sockets.connect_subscriber(self._context, feeder.publisher.trade_addr, None)
        found.subscribe("trade/")
        self._trades.append(found)
        return found

    def read(self) -> bool:
        """Read a message, if one comes within 50 ms."""
        if not self.market.poll(50):
            return False
        frame = frames.Frame.from_parts(self.market.recv_multipart())
        if frame.topic == STATUS_TOPIC:
            self.statuses.append(frame.data)
        else:
            self.frames.append(frame)
            self.bodies.append((frame.topic, frame.data))
        return True

    def frame(self) -> frames.Frame:
        """Return the next message with its stamp."""
        self.until(lambda: self.frames, "a frame")
        return self.frames.pop(0)

    def until(self, condition: Any, what: str = "a message") -> None:
        """Read until a condition holds."""
        until = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < until, f"waited too long for {what}: {self.bodies[-3:]}"
            self.read()

    def body(self) -> tuple[str, Any]:
        """Return the next message."""
        self.until(lambda: self.bodies, "a body")
        return self.bodies.pop(0)

    def status(self, **fields: Any) -> dict[str, Any]:
        """Return the next heartbeat with these fields; earlier ones are forgotten."""

        def is_there() -> bool:
            while self.statuses:
                if all(self.statuses[0][name] == value for name, value in fields.items()):
                    return True
                self.statuses.pop(0)
            return False

        self.until(is_there, f"a heartbeat with {fields}")
        return self.statuses.pop(0)

    def state_of(self, topic: str) -> TopicState:
        """Return the feeder's answer about a topic."""
        self._number += 1
        self._asks.send(encode_ask(CatchUp(self._number, [topic])))
        assert self._asks.poll(int(DEADLINE * 1000))
        answer = decode_reply(self._asks.recv())
        assert isinstance(answer, TopicState)
        return answer

    def close(self) -> None:
        """Close the sockets."""
        self._context.destroy(linger=0)


class Pushed:
    """A feeder with pushers, and what a test connects to it."""

    def __init__(self, feeder: Feeder, push: PushSource) -> None:
        self.push = push
        self.feeder = feeder
        self._closing: list[Pusher | Consumer] = []

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.push.address.removeprefix("tcp://").rpartition(":")
        return host, int(port)

    def connect(self, receive_bytes: int | None = None) -> Pusher:
        """Return a pusher that has said nothing yet, perhaps with a small buffer for what it is sent."""
        made = socket.socket()
        if receive_bytes is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.settimeout(DEADLINE)
        made.connect(self.address)
        pusher = Pusher(made)
        self._closing.append(pusher)
        return pusher

    def pusher(self, *, receive_bytes: int | None = None, **fields: Any) -> Pusher:
        """Return a pusher that is welcome."""
        pusher = self.connect(receive_bytes)
        pusher.join(**fields)
        return pusher

    def consumer(self, *topics: str) -> Consumer:
        consumer = Consumer(self.feeder, *topics)
        self._closing.append(consumer)
        return consumer

    def close(self) -> None:
        """Close what was connected."""
        for each in self._closing:
            each.close()


class Desk(Pushed):
    """A feeder whose source is `push`."""

    def __init__(self, config: Config) -> None:
        push = PushSource(config)
        super().__init__(Feeder(config, push), push)

    def start(self) -> None:
        self.feeder.start()

    def close(self) -> None:
        super().close()
        self.feeder.stop()


@contextmanager
def desk(folder: Path, **changes: Any) -> Iterator[Desk]:
    """Run a feeder whose source is `push`."""
    found = Desk(config_in(folder, **changes))
    found.start()
    try:
        yield found
    finally:
        found.close()


class PushRig(Rig):
    """A feeder with the source `push`, and gateways."""

    push: PushSource

    def start_feeder(self) -> None:
        self.push = PushSource(self.config)
        self.feeder = Feeder(self.config, self.push)
        self.feeder.start()
        self.note_addresses(push_addr=self.push.address)


def names(pushers: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the states of the pushers of a heartbeat by their names."""
    return {each["name"]: each["state"] for each in pushers}
