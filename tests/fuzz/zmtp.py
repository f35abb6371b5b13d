"""Send hostile ZMTP to a feeder, and hostile messages of a feeder to a gateway and a consumer.

    python -m tests.fuzz.zmtp --frames 200000 --seed 1

Half of the frames goes to the three sockets of a feeder on the simulator, beside a good consumer. The other half comes
from a hostile feeder. The exit code is 1 after a traceback, the end of a process, a hole in the good consumer's stream,
or growing memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import click
import psutil
import zmq
from websockets.sync.client import ClientConnection, connect

from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import QMTBridgeError
from tests.fuzz.consumer import TOPICS, consume
from tests.fuzz.latency import compare
from tests.support.load_processes import started, yield_cores
from tests.support.ports import address_options, free_port, free_ports, tcp
from tests.support.seen import Good, within
from tests.support.up import START, Up
from tests.support.waiting import wait_for
from tests.support.zmtp import COMMAND, GREETING_BYTES, MORE, frame, greeting, ready

TICK = "quote/600519.SH/tick/"
TRADES = "trade/"
# Connections to the feeder at a time, and seconds that one may take.
CONNECTIONS = 12
LONGEST = 5.0
# An opening that is no handshake is not answered.
GREETING_SECONDS = 0.1
# A process may grow so much: buffers of the hostile connections, which are kept for the next ones.
GROWTH_MB = 64.0
# Seconds between two ticks of a code (hostile consumers that do not read have megabytes waiting at shorter ones), and
# seconds in which the good consumer is watched before hostile clients come.
INTERVAL = 3.0
REST = 5.0
LOG = Path(tempfile.gettempdir(), "qmt-bridge-fuzz-feeder.log")
STAMP = struct.Struct(">4Q")


def topic(rng: random.Random) -> bytes:
    """Return a topic, a part of one, or none at all."""
    names = ["600519.SH", "999999.SZ", "SH", "tick", "1m", "", "..", "x" * 300, "%00", "\n", "é"]
    kinds = ["quote", "trade", "status", "whole", "l2", "formula", "download", "x", ""]
    text = "/".join([rng.choice(kinds), *(rng.choice(names) for _ in range(rng.randrange(4))), ""])
    return rng.choice((text.encode(), TICK.encode(), rng.randbytes(rng.randrange(40)), b"/" * rng.randrange(600)))


def question(rng: random.Random) -> bytes:
    """Return a question of docs/wire.md, or something like it."""
    odd = [0, -1, 2**70, 1.5, None, True, "x", [], {}, "\ud800", [None], ["quote/600519.SH/tick/"] * 50]
    names = "ask id topics after epoch room stocks period start_time end_time incrementally v".split()
    asked: dict[str, object] = {name: rng.choice(odd) for name in rng.sample(names, rng.randrange(len(names)))}
    if rng.random() < 0.8:
        asked["ask"] = rng.choice(("catch_up", "start_download"))
    if rng.random() < 0.7:
        asked |= {"id": rng.randrange(2**40), "topics": [topic(rng).decode("latin-1") for _ in range(rng.randrange(5))]}
    body = bytearray(json.dumps(asked).encode())
    if rng.random() < 0.3:
        for _ in range(rng.randrange(1, 5)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    nested = b"[" * rng.choice((10, 2000, 50_000))
    return rng.choice((bytes(body), bytes(body), bytes(body), rng.randbytes(rng.randrange(100)), nested))


class HostileClient:
    """One raw connection after the other to one socket of a feeder; `frames` counts what they sent."""

    def __init__(self, port: int, kind: bytes, rng: random.Random) -> None:
        self.port = port
        self.kind = kind
        self.rng = rng
        self.frames = 0
        self.connections = 0

    async def run(self, frames: int) -> None:
        while self.frames < frames:
            try:
                async with asyncio.timeout(LONGEST):
                    await self._converse()
            except ConnectionRefusedError:
                # The feeder has ended.
                return
            except (OSError, TimeoutError):
                continue

    async def _converse(self) -> None:
        rng = self.rng
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.connections += 1
        greeted = asyncio.Event()
        reading = asyncio.create_task(self._read(reader, greeted))
        try:
            writer.write(self._opening())
            # Messages that come before libzmq's own READY has left end the connection, and none of them is read.
            if rng.random() < 0.95:
                with suppress(TimeoutError):
                    await asyncio.wait_for(greeted.wait(), GREETING_SECONDS)
            for _ in range(rng.choice((1, 10, 100, 1000))):
                writer.write(self._frame())
                self.frames += 1
                if writer.is_closing() or reading.done():
                    break
                if rng.random() < 0.05:
                    await writer.drain()
                    await asyncio.sleep(0)
            await writer.drain()
        finally:
            reading.cancel()
            if rng.random() < 0.5:
                writer.transport.abort()
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, greeted: asyncio.Event) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(GREETING_BYTES + 1)
            greeted.set()
            while await reader.read(self.rng.choice((65536, 100))):
                pass

    def _opening(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.1:
            odd = greeting(rng.randrange(256), rng.choice((b"NULL", b"PLAIN", b"CURVE", rng.randbytes(20))))
            return rng.choice((odd, odd[: rng.randrange(64)], rng.randbytes(64), b"GET / HTTP/1.1\r\n\r\n"))
        kind = self.kind if rng.random() < 0.9 else rng.choice((b"REQ", b"PUB", b"", b"x" * 300))
        return greeting() + ready(kind)

    def _frame(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.02:
            # What libzmq ends the connection for.
            return rng.choice(
                (
                    frame(0, b"x", rng.choice((2**63, 2**64 - 1, 2**31, 100_000_000))),
                    frame(COMMAND, rng.randbytes(rng.randrange(30))),
                    frame(COMMAND | MORE, b"\x04PING"),
                    frame(COMMAND, b"\x04PING\0\0" + rng.randbytes(rng.randrange(20))),
                    frame(rng.randrange(256), rng.randbytes(rng.randrange(300))),
                    rng.randbytes(rng.randrange(50)),
                )
            )
        if self.kind == b"SUB":
            return frame(rng.choice((0, 0, 0, MORE)), rng.choice((b"\0", b"\1", b"\1", b"", b"\2")) + topic(rng))
        parts = [rng.randbytes(rng.randrange(3)) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 20)))]
        parts.append(question(rng))
        return b"".join(frame(MORE, part) for part in parts[:-1]) + frame(0, parts[-1])


def send_frames(places: Sequence[tuple[int, bytes]], frames: int, seed: int, pipe: Pipe) -> None:
    """Send a quarter of the frames and say so, then the others when told to; send how many frames and connections."""
    yield_cores()
    clients = [HostileClient(*places[number % 3], random.Random(seed * 1000 + number)) for number in range(CONNECTIONS)]

    async def all_of(count: int) -> None:
        await asyncio.gather(*(each.run(each.frames + count // CONNECTIONS) for each in clients))

    asyncio.run(all_of(frames // 4))
    pipe.send("warm")
    pipe.recv()
    asyncio.run(all_of(frames - frames // 4))
    pipe.send((sum(each.frames for each in clients), sum(each.connections for each in clients)))


def megabytes(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def fuzz_feeder(folder: Path, frames: int, seed: int, percent: float | None) -> list[str]:
    """Send frames to the three sockets of a feeder; return what is wrong."""
    # A hostile program reaches the socket of trade events only if it is open.
    trade = free_port()
    up = Up(folder, "--source=sim", f"--sim-interval={INTERVAL}", f"--trade-addr={tcp(trade)}", "--open-trade-addr")
    try:
        up.wait_ready()
        pid = up.pid("feeder")
        places = [(up.ports[1], b"SUB"), (trade, b"SUB"), (up.ports[2], b"DEALER")]
        with started(consume, up.market_addr) as good:
            good.recv()
            rested = time.monotonic()
            time.sleep(REST)
            attacked = time.monotonic()
            with started(send_frames, places, frames, seed) as hostile:
                # Pools and caches are as large as they become before memory is compared.
                hostile.recv()
                before, began = megabytes(pid), time.monotonic()
                hostile.send("go")
                sent, opened = hostile.recv()
            grown, ended = megabytes(pid) - before, time.monotonic()
            good.send("end")
            seen: Good = good.recv()
        click.echo(
            f"feeder: {sent:,} ZMTP frames over {opened:,} connections, {ended - began:.0f} s, "
            f"grew {grown:.0f} MB; the good consumer got {len(seen.delays):,} ticks of {len(TOPICS)} streams, "
            f"{len(seen.gaps)} holes; {len(up.lines):,} lines of the log"
        )
        faults = [fault for _, fault in (*seen.gaps, *seen.closes)]
        at_rest, meanwhile = within(seen.delays, rested, attacked), within(seen.delays, attacked, ended)
        faults += compare("the good consumer", at_rest, meanwhile, percent)
        faults += [line for line in up.lines if "Traceback" in line]
        if not psutil.pid_exists(pid):
            faults.append(f"the feeder {pid} has ended")
        return faults + ([f"the feeder grew by {grown:.0f} MB"] if grown > GROWTH_MB else [])
    except psutil.NoSuchProcess:
        return [f"the feeder has ended; its log: {LOG}"]
    finally:
        up.close()
        LOG.write_text(up.text, encoding="utf-8")


class HostileFeeder:
    """Binds the three addresses of a feeder and sends anything but what docs/wire.md says, with some of that."""

    def __init__(self, ports: Sequence[int], rng: random.Random) -> None:
        self.rng = rng
        self.frames = 0
        self._seq = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._market, self._trade, self._ask = (self._context.socket(kind) for kind in (zmq.XPUB, zmq.XPUB, zmq.ROUTER))
        for socket, port in zip((self._market, self._trade, self._ask), ports, strict=True):
            socket.linger = 0
            socket.bind(tcp(port))

    def send(self, count: int) -> None:
        """Send `count` messages, and answer what was asked meanwhile."""
        for _ in range(count):
            self._market.send_multipart(self._message(TICK))
            self._trade.send_multipart(self._message(TRADES))
            self.frames += 2
            for socket in (self._market, self._trade):
                while socket.poll(0):
                    socket.recv_multipart()
            while self._ask.poll(0):
                peer, *asked = self._ask.recv_multipart()
                for _ in range(self.rng.randrange(4)):
                    self._ask.send_multipart([peer, *self._answer(asked[-1])])
                    self.frames += 1

    def _message(self, name: str) -> list[bytes]:
        rng = self.rng
        self._seq += rng.choice((1, 1, 1, 1, 0, -5, 100, 2**40, -(2**40)))
        numbers = [
            rng.choice((1, 1, 2, 2**64 - 1)),
            max(self._seq, 0) % 2**63,
            rng.choice((0, time.time_ns())),
            2**64 - 1,
        ]
        if rng.random() < 0.2:
            numbers = [rng.choice((0, 2**63, 2**64 - 1)) for _ in range(4)]
        head = rng.choice((name.encode(), name.encode(), name.encode(), topic(rng)))
        # Begins as the subscription does, so that it arrives.
        head = head if head.startswith(name.encode()) else name.encode() + head
        stamp = STAMP.pack(*numbers)
        if rng.random() < 0.1:
            stamp = stamp[: rng.randrange(len(stamp))]
        body = self._body()
        parts = [head + stamp, body]
        return rng.choice((parts, parts, parts, parts, [head, stamp, body], [head + stamp], [*parts, b"", b""]))

    def _body(self) -> bytes:
        rng = self.rng
        right = [
            {"lastPrice": 1.5, "time": 1},
            {"event": "trade", "seq": 5, "account": "1"},
            {"600519.SH": [{"time": 1}]},
        ]
        odd = [0, None, [], "x", {"seq": -1}, {"seq": 2**70}, {"event": 7, "data": []}, {"600519.SH": 7}, {"type": []}]
        body = json.dumps(rng.choice((*right, *odd))).encode()
        return rng.choice((body, body, body[: rng.randrange(len(body) + 1)], rng.randbytes(20), b"[" * 20_000, b""))

    def _answer(self, asked: bytes) -> list[bytes]:
        rng = self.rng
        odd = [0, -1, 1, 2**70, None, "x", [], {}, True]
        names = "topic epoch seq body refused reason after_seq more floor data code parts start gap".split()
        reply: dict[str, object] = {name: rng.choice(odd) for name in rng.sample(names, rng.randrange(len(names)))}
        reply["reply"] = rng.choice(("topic_state", "topic_state", "download_started", "x", 7))
        with suppress(ValueError, AttributeError):
            reply["id"] = json.loads(asked).get("id") if rng.random() < 0.8 else rng.choice(odd)
        if rng.random() < 0.7:
            reply |= {"topic": rng.choice((TICK, TRADES, "x")), "epoch": rng.randrange(3), "seq": rng.randrange(9)}
        body = json.dumps(reply).encode()
        return rng.choice(([body], [body], [body], [b"", body], [body[: rng.randrange(len(body))]], [], [body, body]))

    def close(self) -> None:
        self._context.destroy(linger=0)


def read_hostile(addresses: dict[str, str], stopped: threading.Event, faults: list[str]) -> None:
    """Read what a hostile feeder sends; only errors that docs/zeromq.md names may end a subscription."""
    while not stopped.is_set():
        try:
            notices: dict[str, Any] = {"on_notice": lambda notice: None}
            read = subscribe(TICK, TRADES, **addresses, **notices, open_trade_addr=True, timeout=0.5)
            for message in read:
                with suppress(QMTBridgeError):
                    _ = message.data
                if stopped.is_set():
                    break
        except QMTBridgeError:
            continue
        except Exception as exc:
            faults.append(f"the consumer failed: {exc!r}")
            return


def connection(url: str) -> ClientConnection:
    """Return a WebSocket that stays open until it is closed."""
    return connect(url, proxy=None, legacy=True)


def fuzz_readers(folder: Path, frames: int, seed: int) -> list[str]:
    """Send the messages of a hostile feeder to a gateway and to a consumer; return what is wrong."""
    ports, port = free_ports(3), free_port()
    addresses = dict(zip(("market_addr", "trade_addr", "ask_addr"), map(tcp, ports), strict=True))
    log = folder / "gateway.log"
    command = [*START, "gateway", f"--port={port}", f"--data-dir={folder}", "--open-trade-addr"]
    command += address_options(addresses)
    feeder = HostileFeeder(ports, random.Random(seed))
    stopped, faults = threading.Event(), list[str]()
    reader = threading.Thread(target=read_hostile, args=(addresses, stopped, faults))
    with log.open("wb") as output:
        gateway = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        reader.start()
        url = f"ws://127.0.0.1:{port}/ws/realtime"
        sockets: list[ClientConnection] = []

        def opened() -> bool:
            with suppress(OSError):
                sockets.append(connection(url))
            return bool(sockets)

        wait_for(opened, "the gateway")
        sockets[0].send(json.dumps({"action": "subscribe", "stocks": ["600519.SH"]}))
        before, began = 0.0, time.monotonic()
        while feeder.frames < frames and gateway.poll() is None and reader.is_alive():
            feeder.send(500)
            time.sleep(0)
            if not before and feeder.frames > frames // 4:
                before = megabytes(gateway.pid)
        grown = megabytes(gateway.pid) - before if gateway.poll() is None else 0.0
        # It still answers a new client.
        connection(url).close()
        for socket in sockets:
            socket.close()
        click.echo(
            f"readers: {feeder.frames:,} messages of a hostile feeder, {time.monotonic() - began:.0f} s, "
            f"gateway grew {grown:.0f} MB"
        )
        if grown > GROWTH_MB:
            faults.append(f"the gateway grew by {grown:.0f} MB")
        if gateway.poll() is not None:
            faults.append(f"the gateway ended with {gateway.returncode}")
    finally:
        stopped.set()
        gateway.terminate()
        gateway.wait(30)
        reader.join(30)
        feeder.close()
    text = log.read_text("utf-8", errors="replace")
    Path(tempfile.gettempdir(), "qmt-bridge-fuzz-gateway.log").write_text(text, encoding="utf-8")
    return faults + [line for line in text.splitlines() if "Traceback" in line]


def fuzz_wire(frames: int, seed: int, percent: float | None = None) -> list[str]:
    """Fuzz a feeder, then its readers, with half of the frames each; return what is wrong."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        return fuzz_feeder(Path(one), frames // 2, seed, percent) + fuzz_readers(
            Path(other), frames - frames // 2, seed
        )


@click.command()
@click.option("--frames", default=200_000, help="Frames and messages, half of them to a feeder.")
@click.option("--seed", default=1)
def main(frames: int, seed: int) -> None:
    """Fuzz the ZeroMQ side."""
    # The consumer tells each loss in a line.
    logging.disable(logging.WARNING)
    faults = fuzz_wire(frames, seed)
    for fault in faults[:50]:
        click.echo(fault, err=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
