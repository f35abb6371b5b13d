"""Killed processes: a client with `complete` misses no message, or is told both sides of the gap."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import zmq
from websockets.asyncio.client import ClientConnection, connect

from qmt_bridge import Frame, QMTClient, quote_topic
from qmt_bridge.clients.stream import StreamState
from qmt_bridge.sockets import connect_subscriber
from tests.support.processes import kill, runs
from tests.support.up import Up, running
from tests.support.waiting import until

Place = tuple[int, int]


class Program:
    """Reads codes with `complete`, and notes each message that follows neither the one before nor a notice of a gap."""

    def __init__(self, codes: list[str]) -> None:
        self.places: dict[str, Place] = {}
        self.gaps: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self._codes = codes
        self._told: dict[str, dict[str, Any]] = {}

    async def run(self, client: ClientConnection) -> None:
        await client.send(json.dumps({"id": 1, "stocks": self._codes, "seq": True, "complete": True}))
        async for text in client:
            self._take(json.loads(text))

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "data":
                [code] = frame["data"]
                self._follow(code, (frame["epoch"], frame["seq"]))
            case "gap":
                self.gaps.append(frame)
                self._told[frame["code"]] = frame
            case "skipped" | "error":
                self.faults.append(str(frame))

    def _follow(self, code: str, place: Place) -> None:
        before, told = self.places.get(code), self._told.pop(code, None)
        self.places[code] = place
        if before is None:
            return
        if told is None:
            if place != (before[0], before[1] + 1):
                self.faults.append(f"{code}: {place} after {before}")
        elif (_place(told, "after"), _place(told, "before")) not in ((before, place), ((place[0], 0), place)):
            self.faults.append(f"{code}: {place} after {before}, told {told}")


def _place(gap: dict[str, Any], side: str) -> Place:
    return gap[side]["epoch"], gap[side]["seq"]


@contextmanager
def published(up: Up, *topics: str) -> Iterator[list[Frame]]:
    """Collect what the feeder publishes of topics."""
    got: list[Frame] = []
    stop = threading.Event()
    with zmq.Context() as context, connect_subscriber(context, up.market_addr, None) as consumer:
        consumer.rcvhwm = 0
        for topic in topics:
            consumer.subscribe(topic)

        def collect() -> None:
            while not stop.is_set():
                if consumer.poll(50):
                    got.append(Frame.from_parts(consumer.recv_multipart()))

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            yield got
        finally:
            stop.set()
            thread.join()


async def kill_part(up: Up, part: str) -> None:
    """Kill the process of a part of `up`, once it has been started again after the last time."""

    def found() -> list[int]:
        children = psutil.Process(up.process.pid).children()
        return [child.pid for child in children if runs(child.pid) and part in child.cmdline()]

    await until(found, "the process")
    kill(found()[-1])


async def test_killed_feeder_is_a_gap_with_both_sides_of_each_code(tmp_path: Path) -> None:
    codes = [f"{number:06}.SZ" for number in range(1, 30)]
    with running(tmp_path, "--source=sim", "--sim-interval=0.05") as up:
        async with connect(up.url("/ws/realtime"), proxy=None, compression=None) as client:
            program = Program(codes)
            reading = asyncio.ensure_future(program.run(client))
            for _ in range(2):
                at = dict(program.places)
                await until(lambda at=at: moved(program, codes, at), "messages of each code")
                epoch = max(place[0] for place in program.places.values())
                await kill_part(up, "feeder")
                await until(
                    lambda epoch=epoch: all(place[0] > epoch for place in program.places.values()),
                    "messages of the new feeder",
                )
            assert not reading.done()
            reading.cancel()
    assert program.faults == []
    reasons = [(gap["code"], gap["reason"]) for gap in program.gaps]
    assert all(reasons.count((code, "restart")) == 2 for code in program.places), reasons


def moved(program: Program, codes: list[str], at: dict[str, Place]) -> bool:
    """Return whether there are messages of most codes since then; the simulator does not have all of them."""
    return len([code for code in codes if program.places.get(code) != at.get(code)]) > 5


async def test_complete_client_misses_nothing_over_killed_workers(tmp_path: Path) -> None:
    code = "600519.SH"
    states: list[StreamState] = []
    got: list[dict[str, Any]] = []

    async def read(up: Up) -> None:
        client = QMTClient("127.0.0.1", up.port, on_state=states.append)
        async for frame in client.realtime([code], complete=True):
            got.extend(frame[code])

    with running(tmp_path, "--source=sim", "--sim-interval=0.05", "--workers=1") as up:
        topic = quote_topic(code)
        with published(up, topic) as frames:
            reading = asyncio.ensure_future(read(up))
            for _ in range(3):
                before = len(got)
                await until(lambda before=before: len(got) > before + 20, "ticks")
                await kill_part(up, "gateway")
            before = len(got)
            await until(lambda: len(got) > before + 20, "ticks")
            assert not reading.done()
            reading.cancel()
            await until(lambda: frames[-1].data[code][0]["time"] >= got[-1]["time"], "the messages")
    ticks = [record for frame in frames for record in frame.data[code]]
    first = ticks.index(got[0])
    assert got == ticks[first : first + len(got)]
    assert [state for state in states if state.state in ("gap", "skipped")] == []
    assert [state.state for state in states].count("disconnected") >= 3
