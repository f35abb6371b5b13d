"""Another process that takes the feeder's addresses while it is away: it reaches no client of trade events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
import zmq

from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import Curve, load_curve, make_keys
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_ask, encode_reply
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, trade_topic
from tests.support.ports import free_port, tcp
from tests.support.rig import KEY, Client, Rig, readiness, running_rig
from tests.support.waiting import until, wait_for

TOPIC = trade_topic("1000000365")
FORGED = {"type": "trade", "seq": 2, "data": {"forged": True}}
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
    """Publishes forged fills and heartbeats at addresses, and answers every question with forged fills."""

    def __init__(self, publishes_at: list[str], answers_at: list[str], curve: Curve | None = None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.rounds = 0
        self._epoch = time.time_ns()
        self._publishers = [self._bind(zmq.XPUB, address, curve) for address in publishes_at]
        self._routers = [self._bind(zmq.ROUTER, address, curve) for address in answers_at]
        self._askers: set[bytes] = set()
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
            for publisher in self._publishers:
                publisher.send_multipart(status)
                publisher.send_multipart(fill)
            for router in self._routers:
                with suppress(zmq.Again):
                    while True:
                        name, payload = router.recv_multipart(zmq.NOBLOCK)
                        self._askers.add(name)
                        ask = decode_ask(payload)
                        for topic in ask.topics if isinstance(ask, CatchUp) else ():
                            body = encode({**STATUS, "epoch": self._epoch}) if topic == STATUS_TOPIC else None
                            state = TopicState(ask.id, topic, "live", None, None, self._epoch, 1, body)
                            router.send_multipart([name, encode_reply(state)])
                # Also what nobody has asked for, with the ids that questions have.
                for name in self._askers:
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


@pytest.fixture(params=["ipc", "own-keys"])
def owner(config: Config, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return a feeder and a gateway with what protects trade events on Unix, and on Windows."""
    if request.param == "own-keys":
        config = msgspec.structs.replace(config, trade_addr=tcp(free_port()), trade_ask_addr=tcp(free_port()))
    with running_rig(config, PreparedFrames) as rig:
        rig.serve()
        yield rig


async def follow(rig: Rig, client: Client) -> None:
    """Let the client receive an event before the feeder is away."""
    rig.source.trade("order", n=1)
    assert (await client.receive())["seq"] == 1
    rig.feeder.stop()


async def go_on(rig: Rig, client: Client) -> None:
    """Check that the next event that the client receives is the next one of its own feeder."""
    rig.start_feeder()
    await until(lambda: readiness(rig.servers[0].port).get("simulated") is True, "the feeder")
    rig.source.trade("order", n=2)
    event = await client.receive()
    assert (event["seq"], event["data"]) == (2, {"n": 2})


async def test_fills_of_a_foreign_feeder_are_not_delivered(owner: Rig) -> None:
    where = owner.config
    own = where.trade_addr.startswith("tcp:")
    async with owner.connect(f"/ws/trade?api_key={quote(KEY)}") as client:
        await follow(owner, client)
        with foreigner(
            [where.market_addr, *([where.trade_addr] if own else [])],
            [where.ask_addr, *([where.trade_ask_addr] if own else [])],
        ) as foreign:
            await until(lambda: readiness(owner.servers[0].port).get("source") == "xtquant", "the foreign heartbeat")
            done = foreign.rounds + 50
            await until(lambda: foreign.rounds > done, "many forged fills")
        await go_on(owner, client)


@pytest.mark.parametrize("owner", ["own-keys"], indirect=True)
async def test_a_foreign_curve_key_delivers_no_event(owner: Rig, tmp_path: Path) -> None:
    make_keys(tmp_path / "foreign")
    where, curve = owner.config, load_curve(str(tmp_path / "foreign"), "feeder")
    async with owner.connect(f"/ws/trade?api_key={quote(KEY)}") as client:
        await follow(owner, client)
        with foreigner([where.trade_addr], [where.trade_ask_addr], curve):
            links = ("trade_addr", "trade_ask_addr")
            port = owner.servers[0].port
            await until(
                lambda: all(readiness(port)["links"][name] == "feeder_key_wrong" for name in links), "the refusals"
            )
        await go_on(owner, client)
