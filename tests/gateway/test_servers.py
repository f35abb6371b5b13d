"""The app under common servers: uvicorn, gunicorn and hypercorn as processes, and Starlette's test client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
import pytest
from starlette.testclient import TestClient
from websockets.asyncio.client import connect

from gateway import server
from gateway.app import create_app
from qmt_bridge.config import Config, export_env
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.stop import Stop
from qmt_bridge.system import console
from qmt_bridge.wire.topics import quote_topic
from tests.support.pages import Pages
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.rig import DEADLINE, KEY, Client, Rig, readiness, running_rig
from tests.support.waiting import SLOWNESS, wait_for

TICK = quote_topic("600519.SH")

SERVERS = [
    pytest.param(["uvicorn", "gateway.app:app", "--port={port}", "--workers=2"], id="uvicorn-workers"),
    pytest.param(["uvicorn", "--factory", "gateway.app:create_app", "--port={port}"], id="uvicorn-factory"),
    pytest.param(["hypercorn", "gateway.app:app", "--bind=127.0.0.1:{port}"], id="hypercorn"),
    pytest.param(
        ["gunicorn", "gateway.app:app", "--bind=127.0.0.1:{port}", "--worker-class=asgi", "--graceful-timeout=1"],
        id="gunicorn",
        marks=pytest.mark.skipif(sys.platform == "win32", reason="gunicorn does not run on Windows"),
    ),
]


@contextmanager
def process(command: list[str], config: Config, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, **export_env(config)}
    with log.open("wb") as output:
        running = subprocess.Popen([sys.executable, "-m", *command], env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def ask_to_end(running: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        from tests.support.console import send_event

        send_event(running.pid, console.BREAK)
    else:
        running.terminate()


def answers(port: int) -> bool:
    try:
        return bool(readiness(port)["ready"])
    except OSError:
        return False


@pytest.mark.parametrize("command", SERVERS)
async def test_server_serves_sockets_checks_keys_and_logs_none(
    config: Config, tmp_path: Path, command: list[str]
) -> None:
    port = free_port()
    log = tmp_path / "server.log"
    with running_rig(config) as rig, process([part.format(port=port) for part in command], rig.config, log):
        wait_for(lambda: answers(port), f"the server: {log.read_text(encoding='utf-8')}")
        async with connect(f"ws://127.0.0.1:{port}/ws/realtime", proxy=None) as realtime:
            client = Client(realtime)
            await client.send({"stocks": ["600519.SH", "999999.SZ"]})
            assert (await client.receive())["symbol"] == "999999.SZ"
            await rig.wanted(TICK)
            rig.source.publish(TICK, {"600519.SH": [{"lastPrice": 1858.0}]})
            assert await client.receive() == {"600519.SH": [{"lastPrice": 1858.0}]}
        async with connect(f"ws://127.0.0.1:{port}/ws/trade?api_key=not-{'secret' * 2}", proxy=None) as trade:
            assert (await Client(trade).closed())[0] == 1008
        await rig.unwanted(TICK)
    logged = log.read_text(encoding="utf-8")
    assert "secretsecret" not in logged
    assert "Traceback" not in logged


@pytest.mark.parametrize("command", SERVERS)
async def test_server_serves_events_and_newest_records(config: Config, tmp_path: Path, command: list[str]) -> None:
    port = free_port()
    log = tmp_path / "server.log"
    with running_rig(config) as rig, process([part.format(port=port) for part in command], rig.config, log):
        wait_for(lambda: answers(port), f"the server: {log.read_text(encoding='utf-8')}")
        async with (
            Pages(f"http://127.0.0.1:{port}") as client,
            client.stream("GET", "/sse/realtime?stocks=600519.SH") as response,
        ):
            lines = response.aiter_lines()
            await rig.wanted(TICK)
            while await anext(lines) != "event: notice":
                pass
            rig.source.publish(TICK, {"600519.SH": [{"lastPrice": 1858.0}]})
            while await anext(lines) != 'data: {"600519.SH":[{"lastPrice":1858.0}]}':
                pass
            page = await client.get("/api/last?codes=600519.SH")
            assert page.json()["records"] == {"600519.SH": {"lastPrice": 1858.0}}
            assert (await client.get("/sse/realtime?stocks=600519")).status_code == 400
    logged = log.read_text(encoding="utf-8")
    assert "Traceback" not in logged
    assert "without completing" not in logged


def test_test_client_opens_sockets_without_a_feeder(config: Config) -> None:
    nowhere = "tcp://127.0.0.1:9"
    lonely = Config(api_key=KEY, market_addr=nowhere, ask_addr=nowhere, data_dir=config.data_dir)
    client = TestClient(create_app(lonely))
    with client.websocket_connect("/ws/realtime") as one, client.websocket_connect("/ws/whole_quote") as two:
        one.send_json({"action": "subscribe", "id": 1, "stocks": ["600519.SH"]})
        assert one.receive_json()["pending"] == ["600519.SH"]
        two.send_json({"action": "ping", "id": 2})
        assert two.receive_json()["type"] == "pong"
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503


def test_test_client_with_a_lifespan_serves_data(rig: Rig) -> None:
    with TestClient(create_app(rig.config)) as client, client.websocket_connect("/ws/realtime?ctl=1") as socket:
        wait_for(lambda: client.get("/readyz").status_code == 200, "readiness")
        socket.send_json({"action": "subscribe", "id": 1, "stocks": ["600519.SH"]})
        while socket.receive_json()["type"] != "subscribed":
            pass
        rig.source.publish(TICK, {"600519.SH": [{}]})
        assert socket.receive_json() == {"600519.SH": [{}]}


def test_bad_setting_stops_the_server_with_its_name(config: Config, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    env = {**os.environ, "QMT_BRIDGE_WORKERS": "many"}
    command = [sys.executable, "-m", "uvicorn", "gateway.app:app", f"--port={free_port()}"]
    with log.open("wb") as output:
        assert subprocess.run(
            command, env=env, stdout=output, stderr=subprocess.STDOUT, timeout=30 * SLOWNESS, check=False
        ).returncode
    assert "QMT_BRIDGE_WORKERS" in log.read_text(encoding="utf-8")


def with_input(command: list[str], env: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)


TOLD_TO_END = """
from gateway import server
from qmt_bridge import cli
server._Worker.terminate = server._Worker.ask_to_end
if __name__ == "__main__":
    cli.main()
"""


async def test_workers_that_are_told_to_end_close_their_sockets(config: Config, tmp_path: Path) -> None:
    """As on Windows, where no signal reaches one process alone."""
    port = free_port()
    log = tmp_path / "gateway.log"
    script = tmp_path / "told_to_end.py"
    script.write_text(TOLD_TO_END, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with running_rig(config) as rig, log.open("wb") as output:
        command = [sys.executable, str(script), "gateway", "--until-eof", f"--port={port}", "--workers=2"]
        with with_input(command, {**env, **export_env(rig.config)}, output) as gateway:
            try:
                wait_for(lambda: answers(port), "the gateway")
                async with connect(f"ws://127.0.0.1:{port}/ws/realtime", proxy=None) as socket:
                    await Client(socket).subscribed(stocks=["600519.SH"])
                    assert gateway.stdin is not None
                    gateway.stdin.close()
                    assert (await Client(socket).closed())[0] == 1012
                assert gateway.wait(DEADLINE) == 0
            finally:
                gateway.kill()
    said = log.read_text(encoding="utf-8", errors="replace")
    assert "killed" not in said
    assert "Traceback" not in said


async def test_gateway_stops_in_time_with_a_stalled_client(config: Config, tmp_path: Path) -> None:
    port = free_port()
    with running_rig(config) as rig:
        command = ["qmt_bridge.cli", "gateway", f"--port={port}"]
        with process(command, rig.config, tmp_path / "gateway.log") as gateway:
            wait_for(lambda: answers(port), "the gateway")
            async with (
                connect(f"ws://127.0.0.1:{port}/ws/realtime", proxy=None, close_timeout=0.1) as stalled,
                connect(f"ws://127.0.0.1:{port}/ws/realtime?ctl=1", proxy=None) as reader,
            ):
                await Client(stalled).subscribed(stocks=["600519.SH"])
                stalled.transport.pause_reading()
                for number in range(400):
                    rig.source.publish(TICK, {"600519.SH": [{"n": number, "padding": "x" * 50_000}]})
                wait_for(lambda: readiness(port)["frames_received"] == 400, "the frames")
                ask_to_end(gateway)
                assert (await Client(reader).closed())[0] == 1012
                gateway.wait(DEADLINE)
    assert gateway.returncode == 0


def test_one_of_two_simultaneous_gateways_gets_the_port() -> None:
    first = server._bind("127.0.0.1", 0)
    with first, pytest.raises(ConfigError, match=r"^port: cannot listen on 127\.0\.0\.1:\d+: .*in use"):
        server._bind(*first.getsockname()[:2]).close()


def test_required_key_that_is_not_set_prevents_the_start(config: Config) -> None:
    with pytest.raises(ConfigError, match="require_key: is set, but there is no api_key"):
        server.serve(msgspec.structs.replace(config, api_key="", require_key=True), Stop())
