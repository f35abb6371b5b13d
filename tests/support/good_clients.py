"""The clients whose service an attack must not disturb: 50 that read ticks, and a new one each 0.2 s."""

from __future__ import annotations

import asyncio
import json
import time
from multiprocessing.connection import Connection as Pipe
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.seen import Good

CLIENTS = 50
CODES = tuple(f"{600000 + number}.SH" for number in range(40))
EACH = 8
CONNECT_EVERY = 0.2
# Seconds in which a new client has to have its first frame.
PATIENCE = 20.0


def watch(port: int, pipe: Pipe) -> None:
    """Say when all are served, then read until told to end, and send what was seen."""
    pipe.send(asyncio.run(_watch(f"ws://127.0.0.1:{port}/ws/realtime?ctl=1", pipe)))


async def _watch(url: str, pipe: Pipe) -> Good:
    good = Good([], [], [], [])
    served = [asyncio.Event() for _ in range(CLIENTS)]
    reading = [asyncio.create_task(_read(url, number, good, served[number])) for number in range(CLIENTS)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(each.wait() for each in served))
    pipe.send("served")
    arriving = asyncio.create_task(_arrive(url, good))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
    await ended.wait()
    for task in (arriving, *reading):
        task.cancel()
    await asyncio.gather(arriving, *reading, return_exceptions=True)
    return good


async def _read(url: str, number: int, good: Good, served: asyncio.Event) -> None:
    codes = [CODES[(number + 10 * place) % len(CODES)] for place in range(EACH)]
    newest: dict[str, int] = {}
    try:
        async with connect(url, proxy=None, compression=None, ping_interval=None) as socket:
            await socket.send(json.dumps({"action": "subscribe", "id": 1, "stocks": codes, "seq": True}))
            while True:
                _take(json.loads(await socket.recv()), newest, good, served)
    except (OSError, ConnectionClosed) as exc:
        good.closes.append((time.monotonic(), str(exc)))


def _take(frame: dict[str, Any], newest: dict[str, int], good: Good, served: asyncio.Event) -> None:
    now = time.monotonic()
    if frame["type"] == "subscribed":
        served.set()
    elif frame["type"] == "skipped":
        good.gaps.append((now, str(frame)))
    elif frame["type"] == "data":
        if frame["time"] is not None:
            good.delays.append((now, time.time() * 1000 - frame["time"]))
        for code in frame["data"]:
            if frame["seq"] != newest.get(code, frame["seq"] - 1) + 1:
                good.gaps.append((now, f"{code}: {frame['seq']} after {newest[code]}"))
            newest[code] = frame["seq"]


async def _arrive(url: str, good: Good) -> None:
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE), connect(url, proxy=None, compression=None) as socket:
                await socket.recv()
                good.connects.append((began, (time.monotonic() - began) * 1000))
        except (OSError, TimeoutError, ConnectionClosed):
            good.connects.append((began, float("inf")))
        await asyncio.sleep(CONNECT_EVERY)
