"""Send random frames, broken conversations and raw requests to a gateway, and watch whether good clients notice.

    python -m tests.fuzz --frames 1000000 --requests 500000 --seed 1

It starts `qmt-bridge up` on the simulator. The exit code is 1 if the log has a traceback, a good client lost a message
or its connection, or sessions are left after all hostile clients have gone. Hostile files are read first
(tests/fuzz/files.py), and a reader that does anything but read or refuse is a fault too.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import psutil
import websockets
from websockets.asyncio.client import connect

from tests.fuzz.files import fuzz_files
from tests.fuzz.hostile import CODES, Hostile
from tests.fuzz.http import RawRequests
from tests.fuzz.zmtp import fuzz_wire
from tests.support.rig import metrics
from tests.support.up import Up

GOOD = 20
HOSTILE = 8
# Clients that send raw requests; most wait for an answer that does not come.
RAW = 40
# Seconds for sessions to end after the last hostile client has gone.
SETTLE_SECONDS = 30.0
STREAMS = [code for code in CODES if isinstance(code, str)][:2]


class Good:
    """A client that subscribes two streams and checks that no message of them is missing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.frames = 0
        self.faults: list[str] = []
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled."""
        last: dict[str, int] = {}
        try:
            async with connect(f"{self.url}?ctl=1", proxy=None) as socket:
                await socket.send(json.dumps({"action": "subscribe", "id": 1, "stocks": STREAMS, "seq": True}))
                async for text in socket:
                    self._check(json.loads(text), last)
        except websockets.ConnectionClosed as exc:
            self.faults.append(f"closed: {exc}")

    def _check(self, frame: dict[str, object], last: dict[str, int]) -> None:
        if frame.get("type") == "subscribed":
            self.ready.set()
        if frame.get("type") == "skipped":
            self.faults.append(f"skipped: {frame}")
        data, seq = frame.get("data"), frame.get("seq")
        if frame.get("type") == "data" and isinstance(data, dict) and isinstance(seq, int):
            self.frames += 1
            for code in data:
                if seq != last.get(code, seq - 1) + 1:
                    self.faults.append(f"{code}: {seq} after {last[code]}")
                last[code] = seq


async def fuzz(up: Up, frames: int, requests: int, seed: int) -> list[str]:
    """Run good and hostile clients; return what is wrong."""
    good = [Good(up.url("/ws/realtime")) for _ in range(GOOD)]
    tasks = [asyncio.create_task(each.run()) for each in good]
    async with asyncio.timeout(SETTLE_SECONDS):
        await asyncio.gather(*(each.ready.wait() for each in good))
    pid = up.pid("gateway")
    before = psutil.Process(pid).memory_info().rss
    began = time.monotonic()
    hostile = [Hostile(up.port, random.Random(seed * 1000 + number)) for number in range(HOSTILE)]
    raw = [RawRequests(up.port, random.Random(seed * 2000 + number)) for number in range(RAW)]
    await asyncio.gather(
        *(each.run(frames // HOSTILE) for each in hostile), *(each.run(-(-requests // RAW)) for each in raw)
    )
    sent, opened = sum(each.frames for each in hostile), sum(each.connections for each in hostile)
    seconds = time.monotonic() - began
    faults = [fault for each in good for fault in each.faults]
    if not psutil.pid_exists(pid):
        return [*faults, f"the worker {pid} has ended; its log: {tempfile.gettempdir()}/qmt-bridge-fuzz.log"]
    left = await _left(up.port)
    grown = (psutil.Process(pid).memory_info().rss - before) / 2**20
    for task in tasks:
        task.cancel()
    click.echo(
        f"{sent:,} frames over {opened:,} connections in {seconds:.0f} s, seed {seed}; worker grew {grown:.0f} MB"
    )
    statuses = sum((each.statuses for each in raw), Counter())
    told = ", ".join(f"{status}: {count:,}" for status, count in statuses.most_common())
    click.echo(f"{statuses.total():,} raw requests ({told})")
    if statuses["500"]:
        faults.append(f"{statuses['500']} requests were answered with 500")
    if statuses["no HTTP"]:
        faults.append(f"{statuses['no HTTP']} answers are no HTTP")
    click.echo(f"{GOOD} good clients got {sum(each.frames for each in good):,} frames")
    if left:
        faults.append(f"{left:.0f} sessions are left")
    tracebacks = [line for line in up.lines if "Traceback" in line]
    click.echo(f"{len(tracebacks)} tracebacks in {len(up.lines):,} lines of the log")
    faults += tracebacks
    return faults


async def _left(port: int) -> float:
    """Return how many sessions there are beside the good clients' once the others have had time to end."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        samples = await asyncio.to_thread(metrics, port)
        left = sum(value for name, value in samples.items() if name.startswith("connections{")) - GOOD
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(1.0)


@click.command()
@click.option("--frames", default=100_000, help="Frames that hostile clients send.")
@click.option("--requests", default=20_000, help="Raw requests, each on a connection of its own.")
@click.option("--wire-frames", default=200_000, help="ZeroMQ frames and messages, to a feeder and from a hostile one.")
@click.option("--files", default=10.0, help="Seconds for hostile files, which are read before.")
@click.option("--seed", default=1)
def main(frames: int, requests: int, wire_frames: int, files: float, seed: int) -> None:
    """Fuzz the readers of files, a gateway of one worker, and the ZeroMQ side."""
    file_faults = fuzz_files(seed, files) if files else []
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder), "--source=sim")
        try:
            up.wait_ready()
            faults = asyncio.run(fuzz(up, frames, requests, seed))
        finally:
            up.close()
            Path(tempfile.gettempdir(), "qmt-bridge-fuzz.log").write_text(up.text, encoding="utf-8")
    faults += file_faults + fuzz_wire(wire_frames, seed)
    for fault in faults[:50]:
        click.echo(fault, err=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
