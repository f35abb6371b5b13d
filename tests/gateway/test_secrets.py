"""What a whole run writes and answers, under each server and at each level: no key, no account number."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from qmt_bridge.config import Config, export_env
from tests.support.ports import free_port
from tests.support.rig import DEADLINE, Client, Rig, readiness, running_rig
from tests.support.waiting import until, wait_for

RIGHT, WRONG = "Right0Key1Of2This3Run4", "Wrong9Key8Of7This6Run5"
ACCOUNT = "1000000365"
OURS = ["--ws=gateway.writer:PreparedFrames", "--http=gateway.connections.handshake:Handshake"]
UVICORN = ["uvicorn", "gateway.app:app", "--port={port}"]
SERVERS = [
    pytest.param([*UVICORN, "--log-level=trace"], id="uvicorn-trace"),
    pytest.param([*UVICORN, "--log-level=debug", *OURS], id="uvicorn-debug-ours"),
    pytest.param([*UVICORN, "--log-level=info"], id="uvicorn-info"),
    pytest.param(
        ["hypercorn", "gateway.app:app", "--bind=127.0.0.1:{port}", "--log-level=debug", "--access-logfile=-"],
        id="hypercorn-debug",
    ),
    pytest.param(
        [
            *("gunicorn", "gateway.app:app", "--bind=127.0.0.1:{port}", "--worker-class=asgi"),
            *("--log-level=debug", "--access-logfile=-", "--graceful-timeout=1"),
        ],
        id="gunicorn-debug",
        marks=pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows"),
    ),
    pytest.param(["qmt_bridge.cli", "gateway", "--port={port}", "--log-level=debug"], id="gateway-debug"),
    pytest.param(["qmt_bridge.cli", "gateway", "--port={port}", "--workers=2", "--log-format=json"], id="workers-json"),
]


@contextmanager
def process(command: list[str], config: Config, log: Path) -> Iterator[None]:
    # What the command line says is said for these settings too, which the environment would have otherwise.
    env = {**os.environ, **export_env(config)}
    with log.open("wb") as output:
        running = subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            running.terminate()
            running.wait(DEADLINE)


def is_ready(port: int) -> bool:
    try:
        return bool(readiness(port)["ready"])
    except OSError:
        return False


def ways(key: str) -> list[tuple[str, dict[str, Any], bool]]:
    """Return the query, the options of `connect`, and whether the first frame has the key, for each way to show it."""
    return [
        ("", {"additional_headers": {"Authorization": f"Bearer {key}"}}, False),
        ("", {"additional_headers": {"X-API-Key": key}}, False),
        ("", {"subprotocols": [f"key.{key}"]}, False),
        (f"?api_key={key}", {}, False),
        (f"?%61pi_key={key}", {}, False),
        (f"?apikey={key}", {}, True),
        ("", {}, True),
    ]


async def present(port: int, key: str) -> list[str]:
    """Show a key in every way on a socket and on the pages; return all that was answered."""
    answered: list[str] = []
    for query, options, in_frame in ways(key):
        try:
            async with connect(f"ws://127.0.0.1:{port}/ws/trade{query}", proxy=None, **options) as socket:
                if in_frame:
                    await socket.send(json.dumps({"action": "auth", "key": key}))
                await socket.send(json.dumps({"action": "ping", "id": 1, "extra": 1}))
                answered.append(str(await Client(socket).receive()))
        except WebSocketException as exc:
            answered.append(str(exc))
    for path in ("/readyz", "/metrics", "/healthz", "/nowhere", "/ws/trade"):
        for query, headers in ((f"?api_key={key}", {}), ("", {"Authorization": f"Bearer {key}"})):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            connection.request("GET", path + query, headers=headers)
            response = connection.getresponse()
            answered.append(f"{response.headers}{response.read().decode()}")
            connection.close()
    return answered


async def first_event(rig: Rig, client: Client) -> dict[str, Any]:
    """Return the first trade event; one of before the subscription is not sent, and nothing tells when it is there."""
    received = asyncio.ensure_future(client.receive())
    while not received.done():
        rig.source.trade("order", account_id=ACCOUNT)
        await asyncio.wait((received,), timeout=0.2)
    return cast(dict[str, Any], received.result())


@pytest.mark.parametrize("command", SERVERS)
async def test_a_whole_run_shows_no_key_and_no_account(config: Config, tmp_path: Path, command: list[str]) -> None:
    port, log = free_port(), tmp_path / "server.log"
    config = msgspec.structs.replace(config, api_key=RIGHT, xt_token="token-of-the-data-service")
    with running_rig(config) as rig, process([part.format(port=port) for part in command], rig.config, log):
        wait_for(lambda: is_ready(port), lambda: f"the server: {log.read_text(encoding='utf-8')}")
        async with connect(f"ws://127.0.0.1:{port}/ws/trade?api_key={RIGHT}", proxy=None) as trade:
            # The events themselves have the number.
            assert (await first_event(rig, Client(trade)))["data"]["account_id"] == ACCOUNT
        answered = [*await present(port, RIGHT), *await present(port, WRONG)]
        await until(lambda: log.stat().st_size > 0, "a line of the log")
    logged = log.read_text(encoding="utf-8")
    for secret in (RIGHT, WRONG, ACCOUNT, config.xt_token):
        assert [line for line in logged.splitlines() if secret in line] == []
        assert [answer for answer in answered if secret in answer] == []
    assert "Traceback" not in logged
    assert "pong" in str(answered)
    assert "API key is wrong" in str(answered)
