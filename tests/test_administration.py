"""Administration from the outside: two gateways with several workers each on one feeder, and commands that ask them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from qmt_bridge.config import env_name
from tests.support.ports import address_options, free_port, up_addresses
from tests.support.processes import DEADLINE
from tests.support.up import START, receive
from tests.support.waiting import SLOWNESS

# Up to eleven processes start at the same time.
pytestmark = pytest.mark.timeout(240)
KEY = "a-key-of-these-tests"
CODES = ("600519.SH", "000001.SZ")
# Of each gateway.
MANY, FEW = 4, 2


class Part:
    """One process of `qmt-bridge`, whose output is kept."""

    def __init__(self, *arguments: str) -> None:
        env = {**os.environ, env_name("api_key"): KEY}
        self.process = subprocess.Popen(
            [*START, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE)


class Site:
    """A feeder and two gateways."""

    def __init__(self, folder: Path, workers: int) -> None:
        # Of both gateways.
        self.workers = 2 * workers
        addresses = up_addresses()
        shared = [*address_options(addresses), f"--data-dir={folder}"]
        self.ports = [free_port(), free_port()]
        self.parts = [Part("feeder", "--source=sim", "--sim-interval=0.2", "--metrics-addr=", *shared)]
        self.parts += [Part("gateway", f"--workers={workers}", f"--port={port}", *shared) for port in self.ports]

    def command(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a command against the second gateway; return what it prints."""
        env = {**os.environ, env_name("api_key"): KEY}
        command = [*START, *arguments, f"--port={self.ports[1]}"]
        found = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", env=env, timeout=30 * SLOWNESS, check=False
        )
        assert found.returncode in codes, found.stdout + found.stderr
        return found.stdout

    def get(self, path: str) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[0]}{path}", headers={"X-API-Key": KEY})
        with opener.open(request, timeout=DEADLINE) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def sees(self, workers: int) -> bool:
        try:
            state = self.get("/api/state")
        except OSError:
            return False
        return bool(state["complete"]) and len(state["workers"]) == workers

    def state(self) -> dict[str, Any]:
        """Return an answer of all workers: on a busy machine one of them may not answer in time."""
        found: list[dict[str, Any]] = []
        wait_for(lambda: found.append(self.get("/api/state")) or len(found[-1]["workers"]) == self.workers)  # type: ignore[func-returns-value]
        return found[-1]

    def totals(self) -> tuple[int, int]:
        """Return how many clients and workers there are."""
        totals = self.get("/api/state")["totals"]
        return totals["clients"], totals["workers"]

    def workers_of(self, gateway: int) -> list[int]:
        """Return the process ids of the workers of a gateway."""
        workers = self.state()["workers"]
        parent = self.parts[gateway + 1].process.pid
        return [worker["pid"] for worker in workers if psutil.Process(worker["pid"]).ppid() == parent]

    def close(self) -> None:
        for part in reversed(self.parts):
            part.close()


def wait_for(holds: Callable[[], bool]) -> None:
    """Wait until all workers are as they should be, with fewer questions a second than a gateway answers."""
    deadline = time.monotonic() + 5 * DEADLINE
    while not holds():
        assert time.monotonic() < deadline, "waited too long for all workers to be known"
        time.sleep(0.2)


@contextmanager
def running(folder: Path, workers: int) -> Iterator[Site]:
    site = Site(folder, workers)
    try:
        wait_for(lambda: site.sees(site.workers))
        yield site
    finally:
        site.close()


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with running(tmp_path, request.param) as site:
        yield site


async def opened(site: Site, stack: AsyncExitStack, count: int) -> list[ClientConnection]:
    """Open clients at each gateway in turn, and let each subscribe."""
    clients = []
    for number in range(count):
        url = f"ws://127.0.0.1:{site.ports[number % 2]}/ws/realtime"
        client = await stack.enter_async_context(connect(url, proxy=None, close_timeout=0.1, max_queue=None))
        await client.send(json.dumps({"id": number, "stocks": [CODES[number % 2]]}))
        while (await receive(client)).get("type", "") != "subscribed":
            pass
        clients.append(client)
    return clients


@pytest.mark.parametrize("site", [MANY], indirect=True)
async def test_every_client_of_two_gateways_is_shown_and_can_be_kicked(site: Site) -> None:
    async with AsyncExitStack() as stack:
        clients = await opened(site, stack, 24)
        for path in ("/api/clients", "/api/clients?limit=5"):
            seen: list[dict[str, Any]] = []
            page = await asyncio.to_thread(site.get, path)
            seen += page["clients"]
            while page["next"] is not None:
                joint = "&" if "?" in path else "?"
                page = await asyncio.to_thread(site.get, f"{path}{joint}after={page['next']}")
                seen += page["clients"]
            assert page["complete"]
            assert len({client["id"] for client in seen}) == len(seen) == page["total"] == 24
        assert len({client["gateway"] for client in seen}) == 2
        # An answer is shared for a second, so the first one may be older than the clients.
        await asyncio.to_thread(wait_for, lambda: site.totals() == (24, site.workers))
        topics = (await asyncio.to_thread(site.get, "/api/subscriptions?prefix=quote/"))["subscriptions"]
        assert [(each["name"], each["clients"]) for each in topics] == [("000001.SZ", 12), ("600519.SH", 12)]
        shown = await asyncio.to_thread(site.command, "clients")
        assert shown.splitlines()[-1] == "24 clients"
        assert all(client["id"] in shown for client in seen)
        await _commands(site, clients[0], len(clients))
        kicked = [seen[0]["id"], seen[-1]["id"]]
        for each in kicked:
            assert await asyncio.to_thread(site.command, "kick", each) == f"{each} is closed\n"

        async def closes() -> list[int | None]:
            return [client.close_code for client in clients if client.close_code is not None]

        async with asyncio.timeout(DEADLINE):
            readers = [asyncio.create_task(client.wait_closed()) for client in clients]
            done: set[asyncio.Task[None]] = set()
            while len(done) < 2:
                done, _ = await asyncio.wait(readers, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0)
            for reader in readers:
                reader.cancel()
        assert await closes() == [1008, 1008]
        assert (await asyncio.to_thread(site.get, "/api/clients"))["total"] == 22


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows cannot be stopped by a signal")
@pytest.mark.parametrize("site", [FEW], indirect=True)
async def test_frozen_worker_is_named_and_a_killed_one_forgotten(site: Site) -> None:
    frozen, *_ = await asyncio.to_thread(site.workers_of, 1)
    names = {worker["pid"]: worker["worker"] for worker in site.state()["workers"]}
    os.kill(frozen, signal.SIGSTOP)
    found = await asyncio.to_thread(site.get, "/api/clients")
    assert (found["complete"], found["missing"]) == (False, [names[frozen]])
    psutil.Process(frozen).kill()

    def replaced() -> bool:
        # Its gateway starts another one.
        return site.sees(site.workers) and frozen not in {each["pid"] for each in site.get("/api/state")["workers"]}

    await asyncio.to_thread(wait_for, replaced)


async def _commands(site: Site, client: ClientConnection, clients: int) -> None:
    state = await asyncio.to_thread(site.command, "state")
    assert "SIMULATED" in state.splitlines()[0]
    assert f"{clients} at {site.workers} workers" in state
    assert re.search(r"^publish to worker +[\d.]+ ms", state, re.MULTILINE)
    shown = json.loads(await asyncio.to_thread(site.command, "state", "--json"))
    assert len(shown["workers"]) == site.workers
    topics = await asyncio.to_thread(site.command, "subscriptions", "--prefix", "quote/")
    assert topics.splitlines()[0].split() == ["topic", "state", "age", "clients", "held", "by"]
    assert topics.splitlines()[-1] == "2 topics"
    assert "quote/600519.SH/tick/  live" in topics
    why = json.loads(await asyncio.to_thread(site.command, "why", "600519.SH", "--seconds=1", "--json", codes=(0, 1)))
    assert why["topic"] == "quote/600519.SH/tick/"
    ended = await asyncio.to_thread(site.command, "subscriptions", "--end", "quote/600519.SH/tick/")
    assert ended == f"quote/600519.SH/tick/ was ended for {clients // 2} clients\n"
    while (await receive(client)).get("code") != "ended_by_admin":
        pass
    refused = await asyncio.to_thread(site.command, "kick", "00000000-1", codes=(1,))
    assert refused == ""
