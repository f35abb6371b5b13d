"""A gateway and its feeder, whose source publishes what the test tells it to."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from websockets.asyncio.server import ServerConnection, serve

from qmt_bridge.config import Config
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Rig, running_rig
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("data")
    with running_rig(Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(folder), grace=0.0)) as rig:
        rig.serve()
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    yield shared_rig
    # A test would take a subscription of the one before for its own, and publish before its own is there.
    wait_for(lambda: not shared_rig.source.wanted, "the end of all subscriptions")


@pytest.fixture
def unused_port() -> Iterator[int]:
    """Yield a port that nothing listens on, and that no one else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
async def scripted() -> AsyncIterator[int]:
    """Yield the port of a server that knows the documented layer only."""

    async def play(connection: ServerConnection) -> None:
        code = json.loads(await connection.recv())["stocks"][0]
        await connection.send(json.dumps({code: [{"time": 1, "lastPrice": 1}]}))
        await connection.wait_closed()

    async with serve(play, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
