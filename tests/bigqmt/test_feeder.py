"""The strategy of the full terminal, on CPython 3.6 in a stand-in, with a real feeder and a real gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import connect

from tests.support.ports import free_ports
from tests.support.processes import kill
from tests.support.programs import Running, programs
from tests.support.strategies import ACCOUNT, Terminal
from tests.support.up import Up, receive, running

PORT = free_ports(1)[0]


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    with programs() as start:
        yield start


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with running(tmp_path / "data", "--source=push", f"--push-addr=tcp://127.0.0.1:{PORT}") as up:
        yield up


def feeder_of(up: Up) -> int:
    """Return the process id of the feeder; `up` starts it anew."""
    (found,) = [each for each in psutil.Process(up.process.pid).children() if "feeder" in each.cmdline()]
    return found.pid


async def first(up: Up, path: str, request: dict[str, Any], count: int = 1) -> list[Any]:
    """Return the first frames after a request."""
    async with connect(up.url(path)) as client:
        await client.send(json.dumps(request))
        return [await receive(client) for _ in range(count)]


async def test_the_six_urls_have_data_or_the_refusal(up: Up, start: Callable[..., Running], tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, PORT, "--level2")
    terminal.tell("order", "fill", "fill")

    ticks = await first(up, "/ws/realtime", {"stocks": ["600519.SH"], "period": "tick"}, 3)
    bars = await first(up, "/ws/realtime", {"stocks": ["600519.SH"], "period": "60m"}, 1)
    prints = await first(up, "/ws/realtime", {"stocks": ["600519.SH"], "period": "l2transaction"}, 2)
    unknown = await first(up, "/ws/realtime", {"stocks": ["999999.SZ"], "period": "tick"})
    market = await first(up, "/ws/whole_quote", {"codes": ["SH"]}, 2)
    depth = await first(up, "/ws/l2_thousand", {"stocks": ["600519.SH"]})
    request = {"stocks": ["000001.SZ"], "period": "1d", "start_time": "", "end_time": ""}
    progress = await first(up, "/ws/download_progress", request, 2)
    formula = {"action": "subscribe", "formula_name": "MA", "stock_code": "000001.SZ", "period": "1d", "count": -1}
    values = await first(up, "/ws/formula", formula, 2)
    async with connect(up.trade_url + "&after=0") as client:
        events = [await receive(client) for _ in range(5)]

    assert [frame["600519.SH"][0]["openInt"] for frame in ticks] == [13, 13, 13]
    assert bars[0]["600519.SH"][0]["time"] % 60000 == 0
    assert prints[1]["600519.SH"][0]["tradeIndex"] > prints[0]["600519.SH"][0]["tradeIndex"]
    assert unknown[0]["code"] == "unknown_symbol"
    assert sorted(market[0]) == ["000001.SH", "600000.SH", "600519.SH", "601898.SH"]
    assert depth[0]["code"] == "unsupported_sdk"
    assert progress == [
        {"finished": 1, "total": 1, "stockcode": "000001.SZ", "message": ""},
        {"status": "done"},
    ]
    assert list(values[1]["data"]["outputs"]) == ["MA1"]
    assert {event["data"]["account_id"] for event in events} == {ACCOUNT}
    terminal.check()


async def test_each_event_comes_once_over_kills(up: Up, start: Callable[..., Running], tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, PORT)
    events: list[dict[str, Any]] = []

    def orders() -> list[tuple[str, int]]:
        return [(e["data"]["order_sysid"], e["data"]["order_status"]) for e in events if e["type"] == "order"]

    async with connect(up.url("/ws/realtime")) as quotes, connect(up.trade_url + "&after=0&ctl=1") as client:
        await quotes.send(json.dumps({"stocks": ["600519.SH"], "period": "tick"}))
        await receive(quotes)

        async def read() -> None:
            frame = await receive(client)
            if "seq" in frame and "data" in frame:
                events.append(frame)

        async def read_until(condition: Callable[[], object]) -> None:
            while not condition():
                await read()

        # The terminal is killed, as each morning; then the feeder; then both.
        for number, killed in enumerate([("terminal",), ("feeder",), ("terminal", "feeder")]):
            terminal.tell("order", "fill")
            await read_until(lambda: (str(7000 + number), 55) in orders())  # noqa: B023
            if "terminal" in killed:
                terminal.kill()
            if "feeder" in killed:
                kill(feeder_of(up))
            if "terminal" in killed:
                terminal.again()
            terminal.tell("fill")
            await read_until(lambda: (str(7000 + number), 56) in orders())  # noqa: B023
            await receive(quotes)
        await read_until(lambda: len([e for e in events if e["type"] == "trade"]) >= 6)

    fills = [e["data"]["traded_id"] for e in events if e["type"] == "trade"]
    assert sorted(fills) == [f"T{number}" for number in range(1, 7)]
    assert len(set(orders())) == len(orders()) == 9
    held = [e["data"]["volume"] for e in events if e["type"] == "position"]
    assert held == sorted(set(held))
    identities = [event["data"]["push_id"] for event in events]
    assert len(set(identities)) == len(identities)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    terminal.check()
