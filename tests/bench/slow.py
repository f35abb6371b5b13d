"""A client that processes a tenth of what comes: how old is what it gets, is it closed, is it told what it missed?

    python -m tests.bench.slow --seconds 60

A real feeder and gateway in a process of their own publish frames of 0.45 KB of ten codes at three rates. The clients:
`raw` reads the socket as fast as it processes; `callback` is QMTClient with a callback that awaits, `blocking` one
that does not; `acks` is a program behind a library that reads without bound, and acknowledges what it has processed;
`browser` is Chromium with a busy main thread, if it is installed. Ages count from ten seconds on, in seconds between
the feeder and the program.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import json
import multiprocessing
import multiprocessing.connection
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import click
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from qmt_bridge import QMTClient, StreamState
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import Rig
from tests.support.waiting import until

CODES = [f"{600000 + number}.SH" for number in range(10)]
RATES = (100, 1000, 10_000)
PAD = "x" * 330
SETTLED = 10.0
# Seconds after the last frame in which a client is told what it missed.
QUIET = 5.0
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


class Tally:
    """What one client got."""

    def __init__(self, seconds: float) -> None:
        self.began = time.monotonic()
        self.ends = self.began + seconds
        self.ages: list[float] = []
        self.got = self.skipped = self.closes = 0
        self.first: int | None = None
        self.last = 0
        self.lagging = 0

    @property
    def missed(self) -> int:
        return self.last - (self.first or 0) + 1 - self.got

    @property
    def over(self) -> bool:
        """Return whether the stream has ended, and the client was told what it missed (or has had time for that)."""
        late = time.monotonic() - self.ends
        return late >= QUIET or (late >= 0.2 and self.missed <= self.skipped)

    def take(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self.got += 1
            self.first = record["n"] if self.first is None else min(self.first, record["n"])
            self.last = max(self.last, record["n"])
            if time.monotonic() - self.began > SETTLED:
                self.ages.append(time.time() - record["at"])

    def line(self, name: str, rate: int) -> str:
        ages = sorted(self.ages) or [float("nan")]
        processed = self.got / (self.ends - self.began)
        return (
            f"| {name} | {rate * 0.45:,.0f} KB/s | {processed:.0f} | {ages[len(ages) // 2]:.2f} | {ages[-1]:.2f} "
            f"| {self.closes} | {self.missed} | {self.skipped} | {self.lagging} |"
        )


def serve(rate: int, seconds: float, pipe: multiprocessing.connection.Connection) -> None:
    """Publish until the pipe says to end; runs in a process of its own."""
    free = "tcp://127.0.0.1:*"
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Config(market_addr=free, ask_addr=free, data_dir=folder))
        pipe.send(rig.serve().port)
        began, published = time.monotonic(), 0
        while not pipe.poll(0.002):
            due = int(min(seconds, time.monotonic() - began) * rate)
            for number in range(published, due):
                code = CODES[number % len(CODES)]
                rig.source.publish(quote_topic(code), {code: [{"n": number, "at": time.time(), "pad": PAD}]})
            published = due
        rig.close()


class RawSocket:
    """A WebSocket that takes from the kernel one frame at a time, so that a pong means that the program has read."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=QUIET)
        self._socket.sendall(
            b"GET /ws/realtime?ctl=1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
        )
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._exactly(1)

    def _exactly(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            piece = self._socket.recv(size - len(taken))
            if not piece:
                raise ConnectionError
            taken += piece
        return taken

    def send(self, opcode: int, payload: bytes) -> None:
        size = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
        # A mask of zeros leaves the payload as it is.
        self._socket.sendall(bytes((0x80 | opcode,)) + size + bytes(4) + payload)

    def receive(self) -> dict[str, Any]:
        while True:
            opcode, size = self._exactly(2)
            payload = self._exactly(int.from_bytes(self._exactly(2), "big") if size == 126 else size)
            if opcode & 15 == 9:
                self.send(10, payload)
            elif opcode & 15 == 8:
                raise ConnectionError
            else:
                frame: dict[str, Any] = json.loads(payload)
                return frame


async def raw(port: int, tally: Tally, pause: float) -> None:
    await asyncio.to_thread(_read_raw, port, tally, pause)


def _read_raw(port: int, tally: Tally, pause: float) -> None:
    while not tally.over:
        with suppress(ConnectionError):
            client = RawSocket(port)
            client.send(1, json.dumps({"stocks": CODES}).encode())
            due = time.monotonic()
            while not tally.over:
                frame = client.receive()
                if "type" not in frame:
                    for records in frame.values():
                        tally.take(records)
                    due = max(time.monotonic(), due + pause)
                    time.sleep(max(0.0, due - time.monotonic()))
                elif frame["type"] == "skipped":
                    tally.skipped += frame["count"]
            return
        tally.closes += 1


async def acks(port: int, tally: Tally, pause: float) -> None:
    uri = f"ws://127.0.0.1:{port}/ws/realtime?ctl=1"
    while not tally.over:
        with suppress(ConnectionClosed):
            async with connect(uri, proxy=None, compression=None, max_queue=None, ping_interval=None) as socket:
                await socket.send(json.dumps({"stocks": CODES, "seq": True}))
                while not tally.over:
                    frame = json.loads(await socket.recv())
                    if frame["type"] == "data":
                        for records in frame["data"].values():
                            tally.take(records)
                        await asyncio.sleep(pause)
                        await socket.send(json.dumps({"action": "ack", "seq": frame["seq"]}))
                    elif frame["type"] == "skipped":
                        tally.skipped += frame["count"]
        tally.closes += not tally.over


async def _client(port: int, tally: Tally, body: Callable[[], Any]) -> None:
    def on_state(state: StreamState) -> None:
        tally.skipped += state.count if state.state == "skipped" else 0
        tally.closes += state.state == "disconnected"
        tally.lagging += state.state == "lagging"

    frames = QMTClient("127.0.0.1", port, on_state=on_state).realtime(CODES)
    async for frame in frames:
        for records in frame.values():
            tally.take(records)
        if tally.over:
            break
        if (waiting := body()) is not None:
            await waiting
    await frames.aclose()


async def callback(port: int, tally: Tally, pause: float) -> None:
    await _client(port, tally, lambda: asyncio.sleep(pause))


async def blocking(port: int, tally: Tally, pause: float) -> None:
    await _client(port, tally, lambda: time.sleep(pause))


PAGE = """<script>
const got = [], told = {skipped: 0, closes: 0};
function open() {
    const ws = new WebSocket("ws://127.0.0.1:PORT/ws/realtime?ctl=1");
    ws.onopen = () => ws.send(JSON.stringify({stocks: CODES, seq: true}));
    ws.onclose = () => { told.closes += 1; open(); };
    ws.onmessage = (event) => {
        const frame = JSON.parse(event.data);
        if (frame.type === "skipped") told.skipped += frame.count;
        if (frame.type !== "data") return;
        for (const records of Object.values(frame.data))
            for (const {n, at} of records) got.push([n, at, Date.now() / 1000]);
        const until = performance.now() + PAUSE;
        while (performance.now() < until);
        ws.send(JSON.stringify({action: "ack", seq: frame.seq}));
    };
}
open();
</script>"""


async def browser(port: int, tally: Tally, pause: float) -> None:
    """Let a page process, and take its notes through Chromium's debugging protocol."""
    program = next(filter(None, map(shutil.which, CHROMIUM)))
    page = PAGE.replace("PORT", str(port)).replace("CODES", json.dumps(CODES)).replace("PAUSE", str(1000 * pause))
    async with _chromium(program, page) as debug:
        await asyncio.sleep(max(0.0, tally.ends + QUIET / 2 - time.monotonic()))
        question = {"expression": "JSON.stringify([got, told])", "returnByValue": True}
        await debug.send(json.dumps({"id": 1, "method": "Runtime.evaluate", "params": question}))
        while (answer := json.loads(await debug.recv())).get("id") != 1:
            pass
    got, told = json.loads(answer["result"]["result"]["value"])
    tally.skipped, tally.closes = told["skipped"], told["closes"]
    began = time.time() - (time.monotonic() - tally.began)
    tally.take({"n": number, "at": at} for number, at, _ in got)
    tally.ages = [taken - at for _, at, taken in got if taken - began > SETTLED]


@asynccontextmanager
async def _chromium(program: str, page: str) -> AsyncIterator[Any]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        # A page that has no address of its own would need the user's permission to reach this machine.
        flags += " --disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets"
        process = await asyncio.create_subprocess_exec(
            program, *flags.split(), "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
            f"--user-data-dir={folder}", "data:text/html;base64," + base64.b64encode(page.encode()).decode(),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ports = Path(folder) / "DevToolsActivePort"
            await until(lambda: ports.exists() and ports.read_text().strip(), "Chromium")
            address = await _debugger(int(ports.read_text().split()[0]))
            async with connect(address, proxy=None, max_size=None, ping_interval=None) as debug:
                yield debug
        finally:
            process.terminate()
            await process.wait()


async def _debugger(port: int) -> str:
    while True:
        for each in await asyncio.to_thread(_pages, port):
            if each.get("type") == "page":
                return str(each["webSocketDebuggerUrl"])


def _pages(port: int) -> list[dict[str, Any]]:
    # By the length in its header: Chromium's server does not close the connection after an answer.
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=QUIET)
    server.request("GET", "/json/list")
    pages: list[dict[str, Any]] = json.loads(server.getresponse().read() or b"[]")
    server.close()
    return pages


CLIENTS = {each.__name__: each for each in (raw, callback, blocking, acks, browser)}


async def bounded(client: Coroutine[Any, Any, None], seconds: float) -> None:
    """Run a client until it has been told all, or for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await client


def run(name: str, rate: int, seconds: float) -> str:
    """Return one client's line."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(rate, seconds, theirs))
    process.start()
    try:
        port = ours.recv()
        tally = Tally(seconds)
        asyncio.run(bounded(CLIENTS[name](port, tally, 10 / rate), seconds + QUIET))
        return tally.line(name, rate)
    finally:
        ours.send("end")
        process.join(15)
        process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients that process a tenth of what comes.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="frames a second")
    given = parser.parse_args()
    click.echo(
        "| client | stream | processed/s | age p50, s | age max, s | closes | missed | told as skipped | lagging |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for name in given.clients.split(","):
        if name == "browser" and not any(map(shutil.which, CHROMIUM)):
            click.echo("| browser | left out: no Chromium on this machine |")
            continue
        for rate in map(int, given.rates.split(",")):
            click.echo(run(name, rate, given.seconds))


if __name__ == "__main__":
    main()
