"""`qmt-bridge tail` of trade events after a position, from ZeroMQ and from a WebSocket."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import msgspec
import pytest
from websockets.sync.server import ServerConnection, serve

from feeder.app import Feeder
from qmt_bridge.commands import tail
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import ALL_TRADES
from tests.support.greeter import Greeter, addresses, take, trade_once
from tests.support.morning import CODE, TICK, demand, market_of
from tests.support.ports import ANY_ADDRESSES


def test_events_after_a_position_are_printed_from_the_wire(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path))
    source = Greeter()
    feeder = Feeder(config, source)
    feeder.start()
    try:
        where = addresses(feeder)
        trade_once(source, 5)
        take(where.subscribe(ALL_TRADES, after=0), 5)
        here = msgspec.structs.replace(config, **msgspec.structs.asdict(where))
        tail.from_wire([ALL_TRADES], here, 3, 2)
    finally:
        feeder.stop()
    assert [json.loads(line)["data"]["seq"] for line in capsys.readouterr().out.splitlines()] == [3, 4, 5]


@pytest.mark.parametrize(
    ("query", "after", "expected"),
    [
        ("", 2, "/ws/trade?after=2"),
        ("?api_key=k", 2, "/ws/trade?api_key=k&after=2"),
        ("?api_key=k", None, "/ws/trade?api_key=k"),
    ],
)
def test_a_position_goes_into_the_url(
    capsys: pytest.CaptureFixture[str], query: str, after: int | None, expected: str
) -> None:
    asked: list[str] = []

    def answer(socket: ServerConnection) -> None:
        assert socket.request is not None
        asked.append(socket.request.path)
        socket.send("{}")

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            tail.from_url(f"ws://127.0.0.1:{port}/ws/trade{query}", [], "tick", None, "", 1, after)
        finally:
            server.shutdown()
            thread.join()
    assert asked == [expected]
    assert capsys.readouterr().out == "{}\n"


def test_stored_messages_are_printed_first_from_the_wire(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with market_of(Config(**ANY_ADDRESSES, data_dir=str(tmp_path))) as market, demand(market):
        market.publish(5)
        market.wait_stored()
        here = msgspec.structs.replace(market.rig.config, store_addr=market.store.address)
        tail.from_wire([TICK], here, 3, None, "09:30:06", 1000)
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == [3, 4, 5]


def test_start_of_trade_events_goes_into_the_url(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def answer(socket: ServerConnection) -> None:
        assert socket.request is not None
        asked.append(socket.request.path)
        socket.send("{}")

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            tail.from_url(f"ws://127.0.0.1:{port}/ws/trade", [], "tick", None, "", 1, None, start="09:30:00")
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/ws/trade?start=09%3A30%3A00"]


def test_start_goes_into_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[object] = []

    def answer(socket: ServerConnection) -> None:
        asked.append(json.loads(socket.recv()))
        socket.send("{}")

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            url = f"ws://127.0.0.1:{port}/ws/realtime"
            tail.from_url(url, [CODE], "tick", None, "", 1, None, start="09:30:00", speed=10)
        finally:
            server.shutdown()
            thread.join()
    assert asked == [{"stocks": [CODE], "period": "tick", "start": "09:30:00", "speed": 10}]
