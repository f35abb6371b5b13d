"""The day so far, then live, from the outside: real processes replay a recorded day to programs that join at random."""

from __future__ import annotations

import asyncio
import json
import random
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import aclosing
from enum import Enum, auto
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from qmt_bridge import QMTClient
from qmt_bridge.wire.moments import midnight, shown_moment
from tests.support.processes import DEADLINE
from tests.support.recorded import TICKS, recorded, rows_by_code
from tests.support.up import Up, running
from tests.support.waiting import until

# The recording has 75 minutes: they are played in 11 s, which begin so many seconds after the store has subscribed.
SPEED, DELAY = 400, 2
PROGRAMS = 24
NINE_THIRTY = 9 * 3_600_000 + 30 * 60_000
MINUTE = 60_000

Rows = dict[str, list[dict[str, Any]]]


class Kind(Enum):
    """How a program subscribes."""

    DOCUMENTED = auto()
    OPTED_IN = auto()
    LIBRARY = auto()


class Program:
    """Subscribes some codes with a `start` on one socket, and keeps what it receives until it has as much as the file.

    One that opts in gets an ack, and frames with their positions; one without has the documented frames alone; and some
    use the Python library.
    """

    def __init__(self, codes: list[str], start_ms: int, expected: Rows, kind: Kind) -> None:
        self._codes = codes
        self._start_ms = start_ms
        self._kind = kind
        self._expected: Rows = {}
        for code in codes:
            place = bisect_left(expected[code], start_ms, key=lambda row: int(row["time"]))
            self._expected[code] = expected[code][place:]
        self._received: Rows = {code: [] for code in codes}
        self._positions: dict[str, list[tuple[int, int]]] = {code: [] for code in codes}
        self._ack: dict[str, Any] = {}
        # What it was told beside data, its ack, and how the feed is.
        self._told: list[dict[str, Any]] = []

    async def run(self, up: Up) -> None:
        """Receive everything, and then what else is on its way."""
        start = shown_moment(self._start_ms)
        missing = sum(map(len, self._expected.values()))
        if self._kind is Kind.LIBRARY:
            library = QMTClient("127.0.0.1", up.port)
            async with aclosing(library.realtime(self._codes, start=start, complete=True)) as frames:
                while missing > 0:
                    missing -= self._take(await anext(frames))
            return
        request: dict[str, Any] = {"stocks": self._codes, "start": start, "mode": "all"}
        request |= {"id": 1, "seq": True} if self._kind is Kind.OPTED_IN else {}
        async with connect(up.url("/ws/realtime"), proxy=None, compression=None) as client:
            await client.send(json.dumps(request))
            while missing > 0:
                missing -= self._take(json.loads(await client.recv()))
            # A message that comes twice may be the last one.
            for frame in await rest(client):
                self._take(frame)

    def _take(self, frame: dict[str, Any]) -> int:
        """Return how many rows a frame has."""
        kind = frame.get("type")
        if kind == "subscribed":
            self._ack = frame
            return 0
        if kind not in (None, "data"):
            if kind not in ("feed", "heartbeat"):
                self._told.append(frame)
            return 0
        [(code, records)] = (frame["data"] if kind else frame).items()
        self._received[code] += records
        if kind:
            self._positions[code].append((frame["epoch"], frame["seq"]))
        return len(records)

    def faults(self) -> list[str]:
        """Return how what it has differs from the file, and what it was told that is not so."""
        return [fault for code in self._codes for fault in self._faults_of(code)] + [
            f"was told {frame}"
            for frame in self._told
            # A program that has not opted in is told in an error frame where its day begins.
            if frame.get("code") != "incomplete" or not self._begins_late(frame["symbol"], frame)
        ]

    def _faults_of(self, code: str) -> Iterator[str]:
        received, expected = self._received[code], self._expected[code]
        if received != expected:
            pairs = enumerate(zip(received, expected, strict=False))
            place = next((n for n, (a, b) in pairs if a != b), min(len(received), len(expected)))
            yield f"{code} has {len(received)} rows of {len(expected)}, others from row {place} on"
        if self._kind is not Kind.OPTED_IN or not received:
            return
        epoch, first = self._positions[code][0]
        if self._positions[code] != [(epoch, first + n) for n in range(len(received))]:
            yield f"{code} has positions that do not follow each other"
        begins = self._ack["start"][code]
        if begins != {"from": shown_moment(self._start_ms), "complete": True} and not self._begins_late(code, begins):
            yield f"{code} is acknowledged with {begins}"

    def _begins_late(self, code: str, said: dict[str, Any]) -> bool:
        """Return whether it is so that the day of a code begins after the start: with its first row, or with none."""
        first = self._expected[code][0]["time"]
        before = said.get("before", {"seq": 1, "time": first})
        return (
            said["reason"] == "store_began" and first > self._start_ms and (before["seq"], before["time"]) == (1, first)
        )


async def rest(client: ClientConnection) -> list[dict[str, Any]]:
    """Return the frames that come before the answer to a ping."""
    frames: list[dict[str, Any]] = []
    pong = asyncio.ensure_future(await client.ping())
    while True:
        reading = asyncio.ensure_future(client.recv())
        done, _ = await asyncio.wait((reading, pong), timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        if reading not in done:
            reading.cancel()
            assert pong in done, "no answer to a ping"
            return frames
        frames.append(json.loads(reading.result()))


class Watcher:
    """Follows all codes live, and knows the newest time of the replayed day."""

    def __init__(self) -> None:
        self.newest = 0

    async def run(self, up: Up, codes: list[str]) -> None:
        async with connect(up.url("/ws/realtime"), proxy=None, compression=None) as client:
            await client.send(json.dumps({"stocks": codes}))
            async for text in client:
                [[record, *_]] = json.loads(text).values()
                self.newest = max(self.newest, record["time"])


@recorded
async def test_programs_that_join_at_any_time_have_the_files_rows(tmp_path: Path) -> None:
    expected = rows_by_code()
    codes = tmp_path / "codes.txt"
    codes.write_text("\n".join(expected), encoding="utf-8")
    opens = min(rows[0]["time"] for rows in expected.values())
    closes = max(rows[-1]["time"] for rows in expected.values())
    nine_thirty = midnight(opens) + NINE_THIRTY
    chance = random.Random(16)
    # The first ones before the first row, the last ones shortly before the last row.
    joins = sorted(chance.randrange(opens - 2 * MINUTE, closes - MINUTE) for _ in range(PROGRAMS))
    programs = [
        Program(
            chance.sample(list(expected), chance.randint(1, 4)),
            # No program asks for what comes after it has joined.
            min(nine_thirty, chance.randrange(opens - MINUTE, max(opens, join))),
            expected,
            list(Kind)[number % len(Kind)],
        )
        for number, join in enumerate(joins)
    ]
    replay = ["--source=replay", f"--file={TICKS}", f"--speed={SPEED}", f"--delay={DELAY}"]
    with running(tmp_path, *replay, "--workers=2", f"--store={codes}") as up:
        watcher = Watcher()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watcher.run(up, list(expected)))
            served: list[asyncio.Task[None]] = []
            for join, program in zip(joins, programs, strict=True):
                await until(lambda join=join: join < opens or watcher.newest >= join, "the moment")
                served.append(tasks.create_task(program.run(up)))
            # The faults of those that are not served by then say more than that it took too long.
            await asyncio.wait(served, timeout=DEADLINE)
            for task in (watching, *served):
                task.cancel()
    assert {number: faults for number, program in enumerate(programs) if (faults := program.faults())} == {}
