"""A store that does not have a morning completes it from the file of a replay: real processes, real clients."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import connect

import qmt_bridge
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import quote_topic
from tests.support.ports import UP, tcp
from tests.support.processes import DEADLINE
from tests.support.recorded import TICKS, recorded, rows_by_code
from tests.support.up import Up, running
from tests.support.waiting import until

# Real processes, and a machine that may be busy.
pytestmark = pytest.mark.timeout(180)
# The recording has 75 minutes: they are played in 11 s.
SPEED, DELAY = 400, 1
NINE_THIRTY = 9 * 3_600_000 + 30 * 60_000
# A client that nothing demands until then joins at 09:50 of the recording.
JOINS = NINE_THIRTY + 20 * 60_000

Rows = list[dict[str, Any]]


def unmarked(rows: Rows) -> Rows:
    return [{name: value for name, value in row.items() if name != "source"} for row in rows]


def marks(rows: Rows) -> list[str]:
    return [row.get("source", "live") for row in rows]


class Day:
    """A replay, and the file's rows from 09:30 on, of codes that nobody has subscribed until 09:50."""

    def __init__(self, up: Up, rows: dict[str, Rows], first: str) -> None:
        self.up = up
        self.codes = sorted(code for code in rows if code != first)
        self.midnight = midnight(rows[first][0]["time"])
        self._rows = rows

    def expected(self, code: str) -> Rows:
        return [row for row in self._rows[code] if row["time"] >= self.midnight + NINE_THIRTY]

    async def read(self, code: str, **options: Any) -> tuple[dict[str, Any], Rows, list[tuple[int, int]]]:
        """Subscribe a code from 09:30 on; return the ack, and the rows with their positions up to the file's last."""
        rows: Rows = []
        places: list[tuple[int, int]] = []
        ack: dict[str, Any] = {}
        request = {"stocks": [code], "start": "09:30", "id": 1, "seq": True, "mode": "all", **options}
        async with connect(self.up.url("/ws/realtime"), proxy=None, compression=None) as client:
            await client.send(json.dumps(request))
            async with asyncio.timeout(3 * DEADLINE):
                while len(rows) < len(self.expected(code)):
                    frame = json.loads(await client.recv())
                    if frame["type"] == "data":
                        rows += frame["data"][code]
                        places += [(frame["epoch"], frame["seq"])] * len(frame["data"][code])
                    elif frame["type"] == "subscribed":
                        ack = frame["start"][code]
                    else:
                        assert frame["type"] in ("feed", "heartbeat"), frame
        return ack, rows, places


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[Day]:
    """Play the recording to a consumer of one code, until 09:50."""
    rows = rows_by_code()
    first = max(rows, key=lambda code: len(rows[code]))
    replay = ["--source=replay", f"--file={TICKS}", f"--speed={SPEED}", f"--delay={DELAY}", "--workers=1"]
    with running(folder, *replay) as up:
        day = Day(up, rows, first)
        newest = 0

        async def watch() -> None:
            nonlocal newest
            async with connect(up.url("/ws/realtime"), proxy=None, compression=None) as client:
                await client.send(json.dumps({"stocks": [first]}))
                async for text in client:
                    newest = json.loads(text)[first][0]["time"]

        watching = asyncio.create_task(watch())
        try:
            await until(lambda: newest >= day.midnight + JOINS, "09:50")
            yield day
        finally:
            watching.cancel()


@recorded
async def test_clients_that_join_late_have_the_files_morning(tmp_path: Path) -> None:
    async with playing(tmp_path) as day:
        # Two of a code at once.
        codes = [day.codes[0], day.codes[0], day.codes[1]]
        found = await asyncio.gather(*map(day.read, codes))
        for code, (ack, rows, places) in zip(codes, found, strict=True):
            assert ack == {"from": "09:30:00.000", "complete": True, "source": "history"}
            assert unmarked(rows) == day.expected(code)
            count = marks(rows).count("history")
            assert 0 < count < len(rows)
            assert marks(rows) == ["history"] * count + ["live"] * (len(rows) - count)
            assert places == sorted(set(places))
        # All of it once more, from the store alone, and over HTTP.
        _, again, _ = await day.read(codes[0])
        assert again == found[0][1]
        url = f"http://127.0.0.1:{day.up.port}/api/ticks/{codes[0]}?start=09:30"
        lines = (await asyncio.to_thread(fetch, url)).splitlines()
        *records, end = map(msgspec.json.decode, lines)
        assert (records, end["complete"]) == (again, True)


@recorded
async def test_question_over_http_is_answered_from_the_history(tmp_path: Path) -> None:
    async with playing(tmp_path) as day:
        code = day.codes[5]
        url = f"http://127.0.0.1:{day.up.port}/api/ticks/{code}?start=09:30&end=09:45"
        *records, end = map(msgspec.json.decode, (await asyncio.to_thread(fetch, url)).splitlines())
        ends = day.midnight + NINE_THIRTY + 15 * 60_000
        assert unmarked(records) == [row for row in day.expected(code) if row["time"] < ends]
        assert (set(marks(records)), end["complete"], end["missing"]) == ({"history"}, True, [])


@recorded
async def test_zeromq_consumer_that_joins_late_has_the_morning(tmp_path: Path) -> None:
    async with playing(tmp_path) as day:
        code = day.codes[7]
        where = dict(zip(UP, map(tcp, day.up.ports[1:]), strict=True))
        addresses = {name: where[name] for name in ("market_addr", "ask_addr", "store_addr")}
        gaps: list[object] = []

        def consume() -> Rows:
            rows: Rows = []
            stream = qmt_bridge.subscribe(
                quote_topic(code), **addresses, start="09:30", on_gap=lambda *gap: gaps.append(gap), timeout=DEADLINE
            )
            for frame in stream:
                rows += frame.data[code]
                if len(rows) == len(day.expected(code)):
                    return rows
            return rows

        rows = await asyncio.wait_for(asyncio.to_thread(consume), 3 * DEADLINE)
        assert unmarked(rows) == day.expected(code)
        assert "history" in marks(rows)
        assert gaps == []


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        content: bytes = answer.read()
    return content
