"""A tree of three levels with keys: a feeder, two forwarders behind each other, a gateway; one forwarder is killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import psutil
import pytest

from qmt_bridge.config import FORWARDED, Config
from qmt_bridge.curve.key_folder import add_client, make_keys
from tests.support.forwarder import ALL_ROLES, below, forwarder_keys
from tests.support.morning import CODE, TICK, tick
from tests.support.ports import ANY_ADDRESSES, ANY_PORT, address_options, free_port, free_ports, tcp
from tests.support.processes import kill
from tests.support.rig import KEY, Client, Rig, metrics, running_rig
from tests.support.store_asker import running_store
from tests.support.up import START
from tests.support.waiting import DEADLINE, until, wait_for

# The pause between two ticks: a few hundred while a forwarder is away.
PAUSE = 0.005


class Forwarding:
    """A process of `qmt-bridge forward`, which can be killed and started again at the same addresses."""

    def __init__(self, config: Config, keys: Path) -> None:
        self.addresses = dict(zip(FORWARDED, map(tcp, free_ports(len(FORWARDED))), strict=True))
        self._health = free_port()
        names = ("market_addr", "trade_addr", "ask_addr", "store_addr", "curve_dir")
        options = {name: str(getattr(below(config, {}, keys), name)) for name in names} | self.addresses
        options["forward_health_addr"] = f"127.0.0.1:{self._health}"
        self._command = [*START, "forward", *address_options(options)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ready() -> bool:
            assert self.process.poll() is None, "the forwarder has ended"
            try:
                with opener.open(f"http://127.0.0.1:{self._health}/readyz", timeout=DEADLINE) as response:
                    return bool(json.load(response)["ready"])
            except (urllib.error.HTTPError, OSError):
                return False

        wait_for(ready, "the forwarder")

    def kill(self) -> None:
        kill(self.process.pid)
        self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE)

    @property
    def reached(self) -> dict[str, str]:
        """Return its addresses as its clients name them."""
        return {
            name.removeprefix("forward_").removesuffix("_addr"): address for name, address in self.addresses.items()
        }


class Tree:
    """The rig, whose gateway is behind both forwarders."""

    def __init__(self, rig: Rig, root: Forwarding, leaf: Forwarding) -> None:
        self.rig = rig
        self.root = root
        self.leaf = leaf
        self.number = 0

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish a tick and a trade event every some ms."""
        ended = threading.Event()

        def publish() -> None:
            while not ended.wait(PAUSE):
                self.number += 1
                self.rig.source.publish(TICK, tick(self.number))
                self.rig.source.trade("order", number=self.number)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    keys = tmp_path / "keys"
    make_keys(keys)
    of_root = forwarder_keys(keys, "root")
    of_leaf = forwarder_keys(of_root, "leaf")
    desk = add_client(of_leaf, "desk", ALL_ROLES)
    config = Config(
        **{**ANY_ADDRESSES, "trade_addr": ANY_PORT, "trade_ask_addr": "", "store_addr": ANY_PORT},
        api_key=KEY,
        data_dir=str(tmp_path / "data"),
        curve_dir=str(keys),
        lag_target=30.0,
    )
    with ExitStack() as closing:
        rig = closing.enter_context(running_rig(config))
        free = msgspec.structs.replace(rig.config, trade_ask_addr="", store_addr=ANY_PORT)
        _, beside = closing.enter_context(running_store(free, [TICK]))
        root = Forwarding(beside, of_root)
        closing.callback(root.close)
        leaf = Forwarding(below(beside, root.reached, of_root), of_leaf)
        closing.callback(leaf.close)
        for forwarding in (root, leaf):
            forwarding.wait_ready()
        behind = below(beside, leaf.reached, desk)
        names = ("market_addr", "trade_addr", "ask_addr", "trade_ask_addr", "store_addr", "curve_dir")
        rig.serve(**{name: getattr(behind, name) for name in names})
        yield Tree(rig, root, leaf)


def connections(address: str) -> int:
    """Return how many connections a port of this process has."""
    port = int(address.rpartition(":")[2])
    found = psutil.Process(os.getpid()).net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


class Reader:
    """What one client is sent: the numbers of its ticks or events, and what it is told between them."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.told: list[dict[str, Any]] = []
        # How far the position of each tick is ahead of its number.
        self.ahead: set[int] = set()

    @property
    def missing(self) -> int:
        return self.numbers[-1] - self.numbers[0] + 1 - len(self.numbers)

    async def read(self, client: Client) -> None:
        while True:
            frame = await client.receive()
            if frame.get("type") == "data":
                self.numbers.append(int(frame["data"][CODE][0]["volume"]))
                self.ahead.add(frame["seq"] - self.numbers[-1])
            elif frame.get("type") == "order":
                self.numbers.append(int(frame["data"]["number"]))
            elif frame.get("type") in ("gap", "skipped"):
                self.told.append(frame)


@contextmanager
def reading(client: Client) -> Iterator[Reader]:
    reader = Reader()
    task = asyncio.create_task(reader.read(client))
    try:
        yield reader
    finally:
        task.cancel()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", ["root", "leaf"])
async def test_killed_forwarder_is_survived(tree: Tree, killed: str) -> None:
    rig, victim = tree.rig, getattr(tree, killed)
    async with (
        rig.connect("/ws/realtime") as complete,
        rig.connect("/ws/realtime") as plain,
        rig.connect(f"/ws/trade?api_key={quote(KEY)}") as trades,
    ):
        await complete.subscribed(stocks=[CODE], seq=True, complete=True)
        await plain.subscribed(stocks=[CODE], seq=True)
        with reading(complete) as whole, reading(plain) as live, reading(trades) as events, tree.publishing():
            readers = (whole, live, events)
            await until(lambda: all(len(each.numbers) > 20 for each in readers), "the first messages")
            # The forwarder and the store, and not the gateway.
            assert connections(rig.config.market_addr) == 2
            await asyncio.to_thread(victim.kill)
            began = tree.number
            await until(lambda: tree.number > began + 50, "messages that are lost")
            victim.start()
            await until(lambda: all(each.numbers[-1] > began + 100 for each in readers), lambda: str(readers))
            assert connections(rig.config.market_addr) == 2
        for each in (whole, events):
            assert each.numbers == list(range(each.numbers[0], each.numbers[-1] + 1))
            assert each.told == []
        # The others see by the positions what they have missed.
        assert live.missing > 50
        assert len(live.ahead) == 1
        assert metrics(rig.servers[0].port)["lost_total"] >= live.missing


def test_forwarder_ends_in_order_and_names_a_taken_port(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    keys = forwarder_keys(tmp_path / "keys", "root")
    forwarding = Forwarding(Config(store_addr=tcp(free_port())), keys)
    try:
        taken = forwarding.addresses["forward_market_addr"]

        def said() -> str:
            done = subprocess.run(
                [*START, "forward", f"--curve-dir={keys}", f"--forward-market-addr={taken}"],
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=DEADLINE,
                check=False,
            )
            return done.stderr if done.returncode == 1 else ""

        found = ""

        def is_refused() -> bool:
            nonlocal found
            found = said() if psutil.Process(forwarding.process.pid).net_connections("tcp") else ""
            return bool(found)

        wait_for(is_refused, "the port to be taken")
        assert "forward_market_addr: cannot listen on" in found
        assert found.count("\n") == 1
    finally:
        forwarding.close()
    assert sys.platform == "win32" or forwarding.process.returncode == 0
