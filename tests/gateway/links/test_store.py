"""The worker's one link to the store, for sockets and pages, with a real server and a store that answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.http import ticks as page
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic
from tests.gateway.http.conftest import client_of
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import DEADLINE, KEY, Rig, running_rig
from tests.support.shelf import OPEN_MS, Shelf

CODE = "600519.SH"
TICK = quote_topic(CODE)
PATH = f"/api/ticks/{CODE}"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running_rig(Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(tmp_path), grace=0.0)) as rig:
        yield rig


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.close()


def numbers(response: httpx2.Response) -> list[int]:
    return [json.loads(line)["volume"] for line in response.text.splitlines()[:-1]]


async def test_sockets_and_pages_have_one_connection_to_the_store(rig: Rig, shelf: Shelf) -> None:
    shelf.put(TICK, *({"time": OPEN_MS + 3000 * number, "volume": number} for number in range(20)))
    server = rig.serve(store_addr=shelf.address)
    async with rig.connect("/ws/realtime", server) as socket, client_of(server) as client:

        async def read() -> list[int]:
            await socket.send({"stocks": [CODE], "start": "09:30", "end": "15:00"})
            return [(await socket.receive())[CODE][0]["volume"] for _ in range(20)]

        read_by_socket, answer = await asyncio.gather(read(), client.get(PATH))
        assert read_by_socket == numbers(answer) == list(range(20))
    assert len(shelf.askers) == 1


async def test_answer_that_no_page_waits_for_any_more_is_ignored(
    rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(TICK, {"time": OPEN_MS, "volume": 1})
    server = rig.serve(store_addr=shelf.address)
    monkeypatch.setattr(page, "ANSWER_TIMEOUT", 0.3)
    late = threading.Event()
    shelf.willing = lambda ask: late.wait(DEADLINE)
    async with client_of(server) as client:
        assert (await client.get(PATH)).status_code == 503
        monkeypatch.setattr(page, "ANSWER_TIMEOUT", 5.0)
        late.set()
        assert numbers(await client.get(PATH)) == [1]
