"""Facts from the store of the day: its status, or why it does not tell one."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.handshakes import PATIENCE_SECONDS, Links, Trouble
from qmt_bridge.system import clock
from qmt_bridge.wire.history import StoreStatus, decode_history, decode_status
from qmt_bridge.wire.requests import CatchUp, encode_ask
from qmt_bridge.wire.topics import STORE_TOPIC

# Longer than PATIENCE_SECONDS, after which an address without an answer is told.
SILENT_SECONDS = PATIENCE_SECONDS + 0.6
LOOK_MS = 50
# What is said of an address where something answers, and what to do.
_REFUSALS = {
    Trouble.KEY_REFUSED: "the store at {where} refuses this key: copy gateway.key into the folder clients/ of its "
    "curve_dir",
    Trouble.FEEDER_KEY: "the store at {where} has another key than the feeder.key in curve_dir here, or none at all: "
    "give the store the feeder.key_secret of the feeder, and this machine its feeder.key",
    Trouble.CURVE_MISSING: "the store at {where} expects CURVE keys: set curve_dir to a folder with feeder.key and "
    "gateway.key_secret",
    Trouble.CURVE_UNEXPECTED: "the store at {where} does not encrypt: give it a curve_dir, or leave it out here",
    Trouble.NO_FEEDER: "what answers at {where} is no store, or it hangs: find the program that uses that port, set "
    "--store-addr, or see the log of the store",
}


class Asked(NamedTuple):
    """What the store tells about itself; without a status nothing answers, unless there is a text."""

    status: StoreStatus | None = None
    # Why it cannot be asked at all, such as missing keys.
    unasked: str = ""
    # Why there is no answer although something listens there, and after ": " what to do.
    refused: str = ""


def ask_store(config: Config) -> Asked:
    """Return what the store at `store_addr` tells about itself; wait for some seconds."""
    links = Links()
    try:
        where = _where(config)
        with (
            zmq.Context() as context,
            sockets.connect_dealer(context, where.address, where.curve, links, where.name) as socket,
        ):
            try:
                found = _ask(socket, links)
            finally:
                links.close()
    except ConfigError as exc:
        return Asked(unasked=str(exc))
    if isinstance(found, StoreStatus):
        return Asked(found)
    return Asked() if found is Trouble.ABSENT else Asked(refused=_REFUSALS[found].format(where=config.store_addr))


def _where(config: Config) -> Endpoint:
    try:
        return endpoint.store_endpoint(config, "gateway")
    except ConfigError:
        # A feeder's machine need not have the keys of a gateway; a store admits its own key, which is the feeder's.
        with contextlib.suppress(ConfigError):
            return endpoint.supervised_store(config)
        raise


def _ask(socket: zmq.Socket[bytes], links: Links) -> StoreStatus | Trouble:
    is_sent = False
    until = clock.monotonic() + SILENT_SECONDS
    while clock.monotonic() < until:
        if not is_sent:
            with contextlib.suppress(zmq.Again):
                socket.send(encode_ask(CatchUp(0, [STORE_TOPIC])), zmq.NOBLOCK)
                is_sent = True
        if socket.poll(LOOK_MS):
            return _read(socket.recv_multipart()[-1])
        links.look(clock.monotonic())
        for trouble in links.troubles(clock.monotonic()).values():
            if trouble is not None:
                return trouble
    return Trouble.NO_FEEDER if is_sent else Trouble.ABSENT


def _read(answer: bytes) -> StoreStatus | Trouble:
    try:
        frames = decode_history(answer).frames
        return decode_status(bytes(frames[0].body)) if frames else Trouble.NO_FEEDER
    except WireError:
        # A feeder, for instance, whose address was given as that of the store.
        return Trouble.NO_FEEDER
