"""The command line: every setting is a flag, a bad one is named, keys are written, topics are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner

from qmt_bridge import cli
from qmt_bridge.config import NAMES
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import quote_topic

TICK = quote_topic("600519.SH")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qmt_bridge.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30, check=False)


@pytest.fixture
def market() -> Iterator[str]:
    """Return the address of an XPUB that publishes ticks 1, 2, 3, ... once somebody subscribes them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.linger = 0
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    done = threading.Event()

    def publish() -> None:
        while not done.is_set():
            if socket.poll(50) and socket.recv() == b"\1" + TICK.encode():
                for seq in range(1, 6):
                    body = encode({"600519.SH": [{"lastPrice": 1858.0, "n": seq}]})
                    socket.send_multipart(Frame(TICK, 7, seq, 1, 2, body).to_parts())
        socket.close()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        done.set()
        thread.join()
        context.term()


def test_every_setting_is_a_flag_of_up() -> None:
    flags = {parameter.name for parameter in cli.up.params}
    assert flags == {*NAMES, "config_file"}


def test_feeder_and_gateway_share_the_wire_and_the_log_only() -> None:
    flags = [{parameter.name for parameter in command.params} for command in (cli.feeder, cli.gateway)]
    assert flags[0] & flags[1] == {*cli.WIRE, *cli.LOG, "config_file", "until_eof"}
    assert flags[0] | flags[1] == {*NAMES, "config_file", "until_eof"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--source", "bloomberg"], "'bloomberg' is not one of"),
        (["up", "--workers", "0"], "--workers"),
        (["up", "--port", "99999"], "--port"),
        (["gateway", "--speed", "2"], "No such option"),
        (["feeder", "--config", "nowhere.toml"], "nowhere.toml"),
        (["tail"], "TOPIC"),
    ],
)
def test_bad_flag_is_named(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code in (1, 2)
    assert said in result.output


def test_bad_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_BRIDGE_PROT", "8000")
    result = CliRunner().invoke(cli.main, ["gateway"])
    assert result.exit_code == 1
    assert "QMT_BRIDGE_PROT: unknown setting" in result.output


def test_keygen_writes_keys_once(tmp_path: Path) -> None:
    folder = tmp_path / "curve"
    assert run("keygen", str(folder)).returncode == 0
    assert {path.name for path in folder.rglob("*key*")} == {
        "feeder.key",
        "feeder.key_secret",
        "gateway.key",
        "gateway.key_secret",
    }
    if os.name == "posix":
        assert (folder / "feeder.key_secret").stat().st_mode & 0o077 == 0
    again = run("keygen", str(folder))
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_tail_prints_what_a_topic_carries(market: str) -> None:
    result = run("tail", TICK, "-n", "3", f"--market-addr={market}", "--ask-addr=tcp://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert lines[0]["topic"] == TICK
    assert lines[0]["data"] == {"600519.SH": [{"lastPrice": 1858.0, "n": 1}]}


def test_tail_of_a_url_that_nobody_serves_is_one_line() -> None:
    result = run("tail", "ws://127.0.0.1:9/ws/realtime", "600519.SH")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_tail_of_a_url_prints_frames() -> None:
    from websockets.sync.server import serve

    asked: list[str] = []

    def answer(socket: object) -> None:
        asked.append(socket.recv())  # type: ignore[attr-defined]
        for number in range(3):
            socket.send(json.dumps({"n": number}))  # type: ignore[attr-defined]

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            result = run("tail", f"ws://127.0.0.1:{port}/ws/realtime", "600519.SH", "--period", "1m", "-n", "2")
        finally:
            server.shutdown()
            thread.join()
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{"n": 0}, {"n": 1}]
    assert json.loads(asked[0]) == {"stocks": ["600519.SH"], "period": "1m"}
