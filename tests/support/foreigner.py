"""Another process in the place of the feeder: it publishes forged fills, and answers questions with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import zmq

from qmt_bridge.curve.key_folder import Curve
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_ask, encode_reply
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, quote_topic, trade_topic
from tests.support.waiting import wait_for

TOPIC = trade_topic("1000000365")
QUOTE = quote_topic("600519.SH", "tick")
FORGED = {"type": "trade", "seq": 2, "data": {"forged": True}}
FORGED_QUOTE = {"600519.SH": [{"lastPrice": 0.01}]}
STATUS = {
    "source": "xtquant",
    "simulated": False,
    "state": "up",
    "time": 1,
    "topics": 0,
    "upstream": 0,
    "published": 1,
    "version": "",
    "reason": None,
    "since": 1,
    "data_lost": False,
    "trade_seq": 2,
    "journal": None,
    "journal_note": None,
    "accounts": [],
    "refused": 0,
    "unkept": 0,
    "instance": "",
    "wire": 2,
}


class Foreigner:
    """Publishes forged fills, quotes and heartbeats at addresses, and answers every question with forged fills."""

    def __init__(self, publishes_at: list[str], answers_at: list[str], curve: Curve | None = None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.rounds = 0
        self._epoch = time.time_ns()
        self._publishers = [self._bind(zmq.XPUB, address, curve) for address in publishes_at]
        self._routers = [self._bind(zmq.ROUTER, address, curve) for address in answers_at]
        self.askers: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _bind(self, kind: int, address: str, curve: Curve | None) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        if curve is not None:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_server = curve.public, curve.secret, True
        # The feeder's socket may take a moment to be gone.
        wait_for(lambda: self._is_bound(socket, address), address)
        return socket

    @staticmethod
    def _is_bound(socket: zmq.Socket[bytes], address: str) -> bool:
        with suppress(zmq.ZMQError):
            socket.bind(address)
            return True
        return False

    def _run(self) -> None:
        status = Frame(STATUS_TOPIC, self._epoch, 1, 1, 1, encode({**STATUS, "epoch": self._epoch})).to_parts()
        fill = Frame(TOPIC, self._epoch, 2, 1, 1, encode(FORGED)).to_parts()
        while not self._stop.wait(0.01):
            quote = Frame(QUOTE, self._epoch, self.rounds + 2, 1, 1, encode(FORGED_QUOTE)).to_parts()
            for publisher in self._publishers:
                publisher.send_multipart(status)
                publisher.send_multipart(fill)
                publisher.send_multipart(quote)
            for router in self._routers:
                with suppress(zmq.Again):
                    while True:
                        name, payload = router.recv_multipart(zmq.NOBLOCK)
                        self.askers.add(name)
                        ask = decode_ask(payload)
                        for topic in ask.topics if isinstance(ask, CatchUp) else ():
                            body = encode({**STATUS, "epoch": self._epoch}) if topic == STATUS_TOPIC else None
                            state = TopicState(ask.id, topic, "live", None, None, self._epoch, 1, body)
                            router.send_multipart([name, encode_reply(state)])
                # Also what nobody has asked for, with the ids that questions have.
                for name in self.askers:
                    for number in range(5):
                        forged = TopicState(
                            number, ALL_TRADES, "live", None, None, self._epoch, 2, encode([FORGED]), False
                        )
                        router.send_multipart([name, encode_reply(forged)])
            self.rounds += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.context.destroy(linger=0)


@contextmanager
def foreigner(publishes_at: list[str], answers_at: list[str], curve: Curve | None = None) -> Iterator[Foreigner]:
    found = Foreigner(publishes_at, answers_at, curve)
    try:
        yield found
    finally:
        found.close()
