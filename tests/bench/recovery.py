"""Loads after a fault: a feeder or a terminal that returns, and the journal.

Servers run on the servers' core and clients on the load's core, each in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq
from websockets.asyncio.client import connect

from feeder.app import Feeder
from qmt_bridge import sockets
from qmt_bridge.commands.load.crews import pin
from qmt_bridge.commands.load.histogram import Histogram
from qmt_bridge.config import Config, export_env
from qmt_bridge.wire.topics import ALL_TRADES, FormulaSpec, formula_topic, quote_topic, whole_topic
from tests.bench.publish import Publisher, connected
from tests.bench.servers import LOAD_CORES, ROOT, SERVER_CORES, Row, process
from tests.support.ports import free_port

KEY = "bench-0123456789"
CLIENTS = 200
RATE = 5000
BURST = 500
BURST_SECONDS = 8
EVENTS = 100_000
# Seconds after which a measurement fails.
PATIENCE = 30.0


def restarted(row: Row, settings: object) -> dict[str, float | None]:
    """Restart the feeder of a whole market, and wait for the first frame of every client."""
    return {"first_s": asyncio.run(_restarted())}


async def _restarted() -> float:
    firsts: dict[int, float] = {}
    complete = asyncio.Event()

    async def listen(number: int) -> None:
        request = {"stocks": [f"{600000 + number * 4 + i}.SH" for i in range(10)], "period": "tick"}
        async with connect(f"ws://127.0.0.1:{config.port}/ws/realtime", proxy=None, compression=None) as client:
            await client.send(json.dumps(request))
            async for _ in client:
                if number not in firsts:
                    firsts[number] = time.perf_counter()
                    if len(firsts) == CLIENTS:
                        complete.set()

    async def everyone() -> float:
        try:
            await asyncio.wait_for(complete.wait(), PATIENCE)
        except TimeoutError as exc:
            raise TimeoutError(f"only {len(firsts)} of {CLIENTS} clients have a frame") from exc
        return max(firsts.values())

    feeder, gateway = ([sys.executable, "-m", "qmt_bridge.cli", part] for part in ("feeder", "gateway"))
    with _config(source="sim", workers=2) as config:
        env = export_env(config)
        with process(gateway, env):
            connected(config.port).close()
            clients = [asyncio.create_task(listen(number)) for number in range(CLIENTS)]
            try:
                with process(feeder, env):
                    await everyone()
                # Frames of the previous process may still arrive.
                await asyncio.sleep(0.5)
                firsts.clear()
                complete.clear()
                began = time.perf_counter()
                with process(feeder, env):
                    return await everyone() - began
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)


def reconnected(row: Row, settings: object) -> dict[str, float | None]:
    """Stop and restart the stand-in of a terminal, once with lost and once with kept subscriptions."""
    found = []
    for keeps in (False, True):
        # The stand-ins replace xtquant in the whole process, so each run has its own process.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(_reconnected, keeps).result())
    return {"restored_s": max(found)}


def _reconnected(keeps: bool) -> float:
    """Return the seconds from the first connection to the restarted terminal until it has every subscription."""
    pin(SERVER_CORES)
    sys.path.insert(0, str(ROOT / "tests" / "fakes"))
    import native

    from feeder.xt.source import XtSource

    topics = [
        *(quote_topic(f"{600000 + i}.SH") for i in range(40)),
        *(whole_topic(market) for market in ("SH", "SZ", "BJ")),
        *(formula_topic(FormulaSpec("MA", f"{600000 + i}.SH")) for i in range(50)),
    ]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with native.installed() as terminal, _config() as config:
        terminal.auto_reconnect = terminal.keeps_subscriptions = keeps
        feeder = Feeder(config, XtSource(config))
        feeder.start()
        try:
            consumer = sockets.connect_subscriber(context, feeder.publisher.market_addr, None)
            for topic in topics:
                consumer.subscribe(topic.encode())
            _wait(lambda: len(terminal.subscriptions()) == len(topics))
            held = terminal.subscriptions()
            terminal.drop()
            _wait(lambda: not terminal.subscriptions())
            time.sleep(1.0)
            terminal.open()
            _wait(lambda: any(client.connected for client in terminal.clients))
            began = time.perf_counter()
            _wait(lambda: terminal.subscriptions() == held)
            return time.perf_counter() - began
        finally:
            context.destroy(linger=0)
            feeder.stop()


def bursts(row: Row, settings: object) -> dict[str, float | None]:
    """Send trade events in bursts through a feeder, which saves each before publishing; measure until received here."""
    count = RATE * BURST_SECONDS // BURST * BURST
    delays = Histogram()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with (
        _config() as config,
        Publisher("feeder", SERVER_CORES, config=config) as publisher,
        ThreadPoolExecutor() as pool,
    ):
        try:
            consumer = sockets.connect_subscriber(context, config.trade_addr, None)
            consumer.subscribe(ALL_TRADES.encode())
            # Send single events until the subscription is in force.
            while not consumer.poll(50):
                publisher.ask("orders", 1, RATE, 1)
            while consumer.poll(200):
                consumer.recv_multipart()
            sending = pool.submit(publisher.ask, "orders", count, RATE, BURST)
            while delays.total() < count and consumer.poll(2000):
                at, [_, body] = time.time_ns(), consumer.recv_multipart()
                delays.add((at - _sent.decode(body).data.sent) / 1e6)
            return {"rate": count / sending.result(), "lost": count - delays.total(), "p99": delays.percentile(0.99)}
        finally:
            context.destroy(linger=0)


def replayed(row: Row, settings: object) -> dict[str, float | None]:
    """Replay a journal to one WebSocket client, which reads every frame."""
    gateway = [sys.executable, "-m", "qmt_bridge.cli", "gateway"]
    with _config() as config, Publisher("feeder", LOAD_CORES, config=config) as publisher:
        publisher.ask("orders", EVENTS, 1e9, 1000)
        with process(gateway, export_env(config)):
            connected(config.port).close()
            return {"rate": asyncio.run(_replayed(config.port))}


async def _replayed(port: int) -> float:
    url = f"ws://127.0.0.1:{port}/ws/trade?api_key={KEY}&after=0"
    async with asyncio.timeout(PATIENCE), connect(url, proxy=None, compression=None) as client:
        # Measured from the first event on, because the worker has to connect to the feeder first.
        await client.recv(decode=False)
        began = time.perf_counter()
        for _ in range(EVENTS - 1):
            await client.recv(decode=False)
        return (EVENTS - 1) / (time.perf_counter() - began)


class _Told(msgspec.Struct):
    sent: int


class _Order(msgspec.Struct):
    data: _Told


_sent = msgspec.json.Decoder(_Order)


@contextmanager
def _config(**settings: Any) -> Iterator[Config]:
    """Yield settings with free addresses and a folder for the journal."""
    names = ("market_addr", "trade_addr", "ask_addr")
    addresses = {name: f"tcp://127.0.0.1:{free_port()}" for name in names}
    with tempfile.TemporaryDirectory(prefix="qmt-bridge-") as folder:
        own = {"data_dir": folder, "port": free_port(), "api_key": KEY, "log_level": "warning", "open_trade_addr": True}
        yield Config(**{**addresses, **own, **settings})


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited more than {PATIENCE:.0f} s")
        time.sleep(0.001)
