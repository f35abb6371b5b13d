"""The MCP server with the official client: over standard input and output of the real command, with a real `up`."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters, stdio_client

from qmt_bridge import QMTClient
from qmt_bridge.cli import main
from qmt_bridge.mcp.answers import MOST_BYTES
from qmt_bridge.mcp.gateway import Gateway
from qmt_bridge.mcp.server import make_server
from qmt_bridge.mcp.tools import TOOLS
from qmt_bridge.wire.moments import shown_moment
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.processes import DEADLINE
from tests.support.up import START, Up, running

CODE = "600519.SH"
PAGE = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")


def made_key(folder: Path, scopes: str) -> str:
    named = ["key", "add", scopes.replace(",", "-"), f"--scopes={scopes}"]
    result = CliRunner().invoke(main, [*named, f"--data-dir={folder}", "--json"])
    assert result.exit_code == 0, result.output
    return str(json.loads(result.output)["key"])


class Service:
    """A running `up` and its keys, by their scopes."""

    def __init__(self, up: Up, keys: dict[str, str]) -> None:
        self.up = up
        self.keys = keys

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.up.port}"

    def client(self, scopes: str) -> Client:
        """Return an MCP client of a server in this process, which has the key with these scopes."""
        return Client(make_server(Gateway(self.url, "127.0.0.1", self.up.port, self.keys[scopes], False)))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("up")
    keys = {scopes: made_key(folder, scopes) for scopes in ("market,l2,trade", "market")}
    with running(folder, "--source=sim", "--sim-interval=0.2", "--sim-order-interval=0.1") as up:
        yield Service(up, keys)


def found(result: Any) -> dict[str, Any]:
    """Return the answer of a tool, which says in each case that the data is simulated."""
    (content,) = result.content
    assert not result.is_error, content.text
    assert len(content.text.encode()) <= MOST_BYTES
    answer = json.loads(content.text)
    assert isinstance(answer, dict)
    return answer


def told(result: Any) -> str:
    """Return the error that a tool answers with, which is one line."""
    (content,) = result.content
    assert result.is_error
    assert "\n" not in content.text
    return str(content.text)


def test_every_tool_and_argument_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*?)\| ", PAGE, re.MULTILINE)
    documented = {name: set(re.findall(r"`([a-z]+)`", arguments)) for name, arguments in rows}
    assert documented == {name: set(tool.takes.__struct_fields__) for name, tool in TOOLS.items()}


async def test_desktop_application_calls_every_tool(service: Service, tmp_path: Path) -> None:
    key = service.keys["market,l2,trade"]
    # As the page tells a user to set it.
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (settings,) = json.loads(block)["mcpServers"].values()
    command = [*START, *(service.url if word.startswith("http") else word for word in settings["args"])]
    assert service.url in command
    assert list(settings["env"]) == ["QMT_BRIDGE_API_KEY"]
    env = {**os.environ, "QMT_BRIDGE_API_KEY": key}
    server = StdioServerParameters(command=command[0], args=command[1:], env=env)
    answers: dict[str, dict[str, Any]] = {}
    with (tmp_path / "stderr").open("w+", encoding="utf-8") as printed:
        async with Client(stdio_client(server, errlog=printed)) as client:
            listed = (await client.list_tools()).tools
            assert [tool.name for tool in listed] == list(TOOLS)
            assert {tool.annotations.read_only_hint for tool in listed if tool.annotations} == {True}
            assert {tool.input_schema["type"] for tool in listed} == {"object"}
            for name, asked in {
                "state": {},
                "capabilities": {},
                "last_values": {"codes": [CODE, "000001.SZ"], "fields": ["lastPrice"]},
                "bars": {"code": CODE, "period": "1d"},
                "book": {"code": CODE, "levels": 7},
                "account_events": {"limit": 3},
            }.items():
                answers[name] = found(await client.call_tool(name, asked))
            assert set(answers) == set(TOOLS)
        printed.seek(0)
        assert key not in printed.read()
    assert {answer["simulated"] for answer in answers.values()} == {True}
    assert all(answer["notice"].startswith("SIMULATED DATA") for answer in answers.values())
    assert key not in json.dumps(answers)
    assert answers["state"]["store"]["up"]
    assert "1m" in answers["capabilities"]["periods"]
    assert set(answers["last_values"]["records"][CODE]) == {"lastPrice", "time", "time_shanghai"}
    (day,) = answers["bars"]["bars"]
    assert day["low"] <= day["close"] <= day["high"]
    assert len(answers["book"]["asks"]) == len(answers["book"]["bids"]) == 7
    assert answers["book"]["asks"][0]["price"] > answers["book"]["bids"][0]["price"]
    assert [event["data"]["account_id"][:6] for event in answers["account_events"]["events"]] == ["******"] * 3


async def test_missing_bars_are_made_of_stored_ticks(service: Service) -> None:
    reader = QMTClient("127.0.0.1", service.up.port, service.keys["market"])
    async with asyncio.timeout(DEADLINE), aclosing(reader.realtime([CODE])) as frames:
        async for _ in frames:
            records, _ = await reader.ticks(CODE, library="records")
            if len(records) >= 4:
                break
    # Behind its newest tick no bar has ended, so the store has none before this moment.
    end = shown_moment(records[-1]["time"])
    async with service.client("market") as client:
        answer = found(await client.call_tool("bars", {"code": CODE, "period": "30m", "end": end}))
    assert answer["bars"]
    assert {bar["computed"] for bar in answer["bars"]} == {True}
    assert answer["bars"][-1]["close"] == records[-2]["lastPrice"]
    assert [hole["reason"] for hole in answer["missing"]] == ["store_began"]


async def test_events_go_on_behind_a_position_and_by_type(service: Service) -> None:
    reader = QMTClient("127.0.0.1", service.up.port, service.keys["market,l2,trade"])
    async with service.client("market,l2,trade") as client:

        async def events(**asked: Any) -> dict[str, Any]:
            return found(await client.call_tool("account_events", asked))

        first = await events(after=0, limit=2)
        assert [event["seq"] for event in first["events"]] == [1, 2]
        second = await events(after=first["next_after"], limit=2)
        assert [event["seq"] for event in second["events"]] == [3, 4]

        async with asyncio.timeout(DEADLINE), aclosing(reader.trade_events(after=0)) as told_live:
            async for event in told_live:
                if event["type"] == "trade":
                    break
        (newest,) = (await events(types=["trade"], limit=1))["events"]
        assert newest["type"] == "trade"
        assert newest["data"]["traded_time_shanghai"].endswith("+08:00")
        both = await events(limit=1)
        assert both["left_out"] >= 4
        assert "choose one" in told(await client.call_tool("account_events", {"after": 1, "since": "09:30"}))
        assert "leave out `after`" in told(await client.call_tool("account_events", {"after": 10**9}))


async def test_key_without_the_scope_is_told_what_it_lacks(service: Service) -> None:
    async with service.client("market") as client:
        assert "no scope trade; `qmt-bridge key add`" in told(await client.call_tool("account_events", {}))
        assert "no scope l2; `qmt-bridge" in told(await client.call_tool("book", {"code": CODE, "levels": 6}))
        assert found(await client.call_tool("book", {"code": CODE}))["bids"]


@pytest.mark.parametrize(
    ("name", "asked", "error"),
    [
        pytest.param("bars", {"code": "600519"}, "did you mean '600519.SH'?", id="malformed-code"),
        pytest.param("book", {"code": "999999.SH"}, "not in the simulated market", id="unknown-code"),
        pytest.param("bars", {"code": CODE, "period": "tick"}, "input schema of bars", id="period"),
        pytest.param("bars", {"code": CODE, "start": "25:00"}, "start is a time of day", id="moment"),
        pytest.param("last_values", {"codes": [CODE] * 51}, "length <= 50", id="too-many-codes"),
        pytest.param("last_values", {"codes": CODE}, "Expected `array`", id="no-list"),
        pytest.param("last_values", {"code": [CODE]}, "input schema of last_values", id="unknown-argument"),
        pytest.param("order", {"code": CODE}, "there are last_values, bars", id="no-such-tool"),
    ],
)
async def test_wrong_question_is_told_in_a_sentence(
    service: Service, name: str, asked: dict[str, Any], error: str
) -> None:
    async with service.client("market") as client:
        assert error in told(await client.call_tool(name, asked))


async def test_unknown_code_leaves_the_others_their_values(service: Service) -> None:
    async with service.client("market") as client:
        answer = found(await client.call_tool("last_values", {"codes": [CODE, "999999.SH"]}))
    assert answer["records"][CODE]["lastPrice"] > 0
    assert answer["missing"]["999999.SH"]["code"] == "unknown_symbol"


@pytest.mark.parametrize("name", ["state", "account_events"])
async def test_gateway_that_is_away_is_named(name: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with Client(make_server(Gateway(url, "127.0.0.1", port, "k", False))) as client:
        error = told(await client.call_tool(name, {}))
    assert error.startswith(f"no gateway answers at {url}")
    assert "--url" in error


async def test_wrong_key_is_told_where_to_set_it(service: Service) -> None:
    async with Client(make_server(Gateway(service.url, "127.0.0.1", service.up.port, "wrong", False))) as client:
        error = told(await client.call_tool("account_events", {}))
    assert error.startswith("unauthorized: ")
    assert "QMT_BRIDGE_API_KEY" in error
