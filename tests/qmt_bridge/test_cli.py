"""The command line: every setting is a flag, a bad one is named, keys are written, topics are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner
from websockets.sync.server import ServerConnection, serve

from qmt_bridge import cli
from qmt_bridge.commands import run as run_commands
from qmt_bridge.config import (
    ALERTS,
    CREDENTIALS,
    ENV_PREFIX,
    FORWARD,
    LOG,
    NAMES,
    STORE,
    WIRE,
    Config,
    choices,
    env_name,
    load_config,
    written,
)
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import quote_topic
from tests.support.ports import ANY_ADDRESSES, address_options, free_port, tcp
from tests.support.waiting import SLOWNESS

TICK = quote_topic("600519.SH")

# What a gateway for other machines needs to start.
OPENED = ("--open-market-data", "--behind-proxy", "127.0.0.1")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qmt_bridge.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=30 * SLOWNESS, check=False)


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
    flags = {parameter.name for parameter in run_commands.up.params}
    # The keys of the targets of alerts are no flags, and a forwarder is no part of it. The QR code is no setting.
    # A table is no flag either.
    no_flags = {*FORWARD, "sources"} | {name for name in CREDENTIALS if name in ALERTS}
    assert flags - {"qr"} == {*NAMES, "config_file"} - no_flags


def test_parts_share_the_wire_log_and_data_folder() -> None:
    feeder, gateway, store = (
        {parameter.name for parameter in command.params} - set(ALERTS)
        for command in (run_commands.feeder, run_commands.gateway, run_commands.store)
    )
    shared = {*WIRE, *LOG, "data_dir", "config_file", "until_eof"}
    assert feeder & gateway == {*shared, "freeze_timeout"}
    assert store == {*STORE, *shared}
    assert feeder | gateway | store == {*NAMES, "config_file", "until_eof", "supervised"} - {
        *ALERTS,
        *FORWARD,
        "sources",
    }


def test_store_has_topics_and_the_ticks_of_codes_in_files(tmp_path: Path) -> None:
    file = tmp_path / "codes.txt"
    file.write_text("000001.SZ\n600519.SH\n", encoding="utf-8")
    named = ["whole/SH/", str(file), "quote/600519.SH/tick/", "quote/600519.SH/1m/", "l2/000001.SZ/0/"]
    topics = ["whole/SH/", "quote/000001.SZ/tick/", "quote/600519.SH/tick/", "quote/600519.SH/1m/", "l2/000001.SZ/0/"]
    assert run_commands.stored_topics(named) == topics
    assert run_commands.stored_topics([]) == []


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("quote/", "'quote/' is no topic"),
        ("trade/1000000365/", "is no topic that can be stored"),
        ("status/feeder/", "is no topic that can be stored"),
        ("-", "'-' is no topic"),
        ("quote/600519/tick/", "600519"),
        ("quote/600519.SH/2m/", "unknown period"),
        ("whole/sh/", "sh"),
        ("no-such-file.txt", "cannot read no-such-file.txt"),
    ],
)
@pytest.mark.parametrize("command", ["store", "up"])
def test_wrong_topic_of_a_store_is_named(tmp_path: Path, command: str, named: str, said: str) -> None:
    result = CliRunner().invoke(cli.main, [command, "--store", named, "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "store: " in result.output
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--source", "Bloomberg"], "expected auto, xtquant, sim, replay, push, or the name of a source"),
        (["up", "--source", "bloomberg"], "there is no source bloomberg; there are xtquant, sim, replay"),
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


def test_a_variable_that_is_no_setting_is_a_hint_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_BRIDGE_MINI_QMT_PATH", "C:/qmt")
    # Nothing listens on this address without keys, so the feeder ends at once.
    result = run("feeder", "--source=sim", "--market-addr=tcp://0.0.0.0:0")
    assert result.returncode == 1
    assert "QMT_BRIDGE_MINI_QMT_PATH is no setting" in result.stderr
    assert "xt_userdata" in result.stderr
    assert "needs curve_dir" in result.stderr
    assert "C:/qmt" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--speed", "2"], "--speed has no effect: the source is auto, which is sim here"),
        (
            ["up", "--source", "sim", "--file", "x.csv"],
            "--file has no effect: the source is sim; this is for --source r",
        ),
        (["up", "--source", "auto", "--file", "x.csv"], "--file has no effect"),
        (["up", "--source", "xtquant", "--loop"], "--loop has no effect: the source is xtquant"),
        (["feeder", "--delay", "0"], "--delay has no effect"),
        (["feeder", "--source", "replay", "--sim-seed", "3"], "--sim-seed has no effect: the source is replay"),
        (["feeder", "--sim-hours", "exchange", "--xt-addr", "a:1"], "--xt-addr has no effect: the source is auto"),
        (["feeder", "--file", "x.csv", "--xt-token", "t"], "--xt-token has no effect: the source is replay"),
        (["feeder", "--source", "xtquant", "--xt-servers", "a:1"], "--xt-servers has no effect: it needs xt_token"),
        (["feeder", "--source", "xtquant", "--xt-home", "a"], "--xt-home has no effect: it needs xt_token"),
        (["feeder", "--source", "xtquant", "--xt-userdata", "a"], "--xt-userdata has no effect: it needs xt_accounts"),
        (["feeder", "--source", "xtquant", "--xt-token", "t", "--xt-addr", "a:1"], "--xt-addr has no effect: with xt_"),
        (["gateway", "--freeze-timeout", "3"], "--freeze-timeout has no effect: with one worker"),
        (["bench", "--selftest", "ws://127.0.0.1:9/ws/realtime"], "URL has no effect: --selftest"),
        (["bench", "--selftest", "--send", "{}"], "--send has no effect"),
        (["bench", "ws://127.0.0.1:9/ws/realtime", "--send", "{}", "--period", "1m"], "--period has no effect"),
        (["bench", "ws://127.0.0.1:9/ws/realtime", "--send", "{}", "--each", "3"], "--each has no effect"),
        (["tail", "ws://127.0.0.1:9/ws/realtime", "--send", "{}", "--period", "1m"], "--period has no effect"),
        (["tail", "ws://127.0.0.1:9/ws/realtime", "600519.SH", "--send", "{}"], "The codes have no effect"),
        (["tail", "ws://127.0.0.1:9/ws/l2_thousand", "600519.SH", "--period", "1m"], "--period has no effect"),
        (["tail", "ws://127.0.0.1:9/ws/realtime", "600519.SH", "--after", "5"], "--after has no effect"),
        (["tail", "ws://127.0.0.1:9/ws/trade", "--trade-addr", "tcp://127.0.0.1:9"], "--trade-addr has no effect"),
        (["tail", "ws://127.0.0.1:9/ws/trade", "600519.SH"], "The codes have no effect: /ws/trade has the events"),
        (["tail", "ws://127.0.0.1:9/ws/trade/", "--codes-file", "x"], "--codes-file has no effect: /ws/trade has"),
        (["bench", "ws://127.0.0.1:9/ws/whole_quote", "SH", "--period", "1m"], "--period has no effect: only"),
        (["tail", "quote/600519.SH/tick/", "--period", "1m"], "--period has no effect: it is for --codes-file"),
        (["tail", "quote/600519.SH/tick/", "--send", "{}"], "--send has no effect: it is for a URL"),
        (["tail", "trade/", "--api-key", "k"], "--api-key has no effect: it is for a URL"),
        (["record", "trade/", "--out", "x.tape", "--period", "1m"], "--period has no effect: it is for --codes-file"),
        (["journal", "list", "--file", "x", "--source", "sim"], "--source has no effect: --file is the journal"),
    ],
)
def test_a_flag_without_effect_is_an_error(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not what the stand-ins of the tests make of this machine.
    monkeypatch.setattr("feeder.xt.sdk.importable", lambda: False)
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


SECRET = "a-secret-of-20-chars"


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (["gateway", "--api-key", SECRET], "QMT_BRIDGE_API_KEY"),
        (["up", "--source", "xtquant", "--api-key", SECRET], "QMT_BRIDGE_API_KEY"),
        (["up", "--source", "replay", "--file", "x", "--api-key", SECRET], "QMT_BRIDGE_API_KEY"),
        (["up", "--source", "xtquant", "--xt-token", SECRET], "QMT_BRIDGE_XT_TOKEN"),
        (["feeder", "--source", "xtquant", "--xt-token", SECRET], "QMT_BRIDGE_XT_TOKEN"),
        (["doctor", "--api-key", SECRET], "QMT_BRIDGE_API_KEY"),
        (["doctor", "--xt-token", SECRET], "QMT_BRIDGE_XT_TOKEN"),
    ],
)
def test_a_credential_as_a_flag_is_refused(arguments: list[str], variable: str) -> None:
    result = CliRunner().invoke(cli.main, arguments)
    said = " ".join(result.output.split())
    assert result.exit_code == 2
    assert "would be visible to every user of this machine" in said
    assert variable in said
    assert SECRET not in said


@pytest.mark.parametrize("command", ["up", "gateway", "tail", "bench", "doctor"])
def test_help_says_who_can_read_a_credential(command: str) -> None:
    said = " ".join(CliRunner().invoke(cli.main, [command, "--help"]).output.split())
    assert "For the simulator: every user of the machine can read a flag; else QMT_BRIDGE_API_KEY or a file." in said


@pytest.mark.parametrize("api_key", ["k", "123456789012345", "密钥密钥"])
@pytest.mark.parametrize("command", [["up", "--source", "sim", "--port", "0"], ["gateway", "--port", "0"]])
def test_a_short_key_does_not_start(command: list[str], api_key: str) -> None:
    result = CliRunner().invoke(cli.main, command, env={"QMT_BRIDGE_API_KEY": api_key})
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert f"api_key: has {len(api_key)} characters, which can be guessed; a key has at least 16" in said
    assert f" {api_key} " not in said


def test_the_example_key_does_not_start_with_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(cli.main, ["up", "--source", "xtquant"], env={"QMT_BRIDGE_API_KEY": "your-secret-key"})
    assert result.exit_code == 1
    assert "has 15 characters" in result.output


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "inproc://x", f"ipc:///{'x' * 200}"])
def test_an_address_without_a_feeder_is_reported_in_one_sentence(address: str) -> None:
    result = CliRunner().invoke(cli.main, ["gateway", "--port=0", "--market-addr", address])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "market" in result.output
    assert result.output.count("\n") == 1


def test_flags_of_a_source_in_a_file_of_settings_harm_nothing(tmp_path: Path) -> None:
    """One file may serve several sources; only a flag says that somebody wants its effect now."""
    file = tmp_path / "settings.toml"
    file.write_text('speed = 2.0\nsim_seed = 3\nxt_addr = "a:1"\nxt_home = "h"\nsource = "sim"\n', encoding="utf-8")
    assert run_commands.load_feeder_settings(file, {"source": None, "file": None, "sim_seed": 4}).sim_seed == 4


@pytest.mark.parametrize("source", ["", 'source = "auto"', 'source = "replay"'])
def test_a_file_to_play_implies_the_replay(tmp_path: Path, source: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(source, encoding="utf-8")
    config = run_commands.load_feeder_settings(file, {"source": None, "file": "x.csv", "speed": 3.0})
    assert (config.source, config.file, config.speed) == ("replay", "x.csv", 3.0)


@pytest.mark.parametrize("name", ["market_addr", "trade_addr", "ask_addr"])
@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("5555", "; did you mean tcp://127.0.0.1:5555?"),
        ("127.0.0.1:5555", "; did you mean tcp://127.0.0.1:5555?"),
        ("localhost:5555", "; did you mean tcp://localhost:5555?"),
        ("tcp://127.0.0.1", ""),
        ("tcp://127.0.0.1:99999", ""),
        ("tcp://:5555", ""),
        ("http://127.0.0.1:5555", ""),
        ("tcp://127.0.0.1:5555/", ""),
        ("99999", ""),
        ("ipc://", ""),
        ("tcp://-:5555", ""),
    ],
)
def test_an_address_that_is_none_is_one_sentence(name: str, address: str, hint: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    for command in ("up", "feeder", "gateway"):
        result = CliRunner().invoke(cli.main, [command, flag, address])
        assert result.exit_code == 1
        expected = f"expected tcp://HOST:PORT, such as tcp://127.0.0.1:5555, got {address!r}{hint}"
        assert result.output == f"Error: {flag}: {expected}\n"


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:5555", "tcp://*:5555", "tcp://[::1]:5555", "tcp://eth0:*", "tcp://my-host.lan:1", "ipc:///tmp/x"],
)
def test_an_address_of_zeromq_is_taken(address: str) -> None:
    assert load_config(None, {}, {"market_addr": address}).market_addr == address


@pytest.mark.parametrize("name", [name for name in NAMES if choices(name)])
def test_a_value_that_is_none_of_a_few_names_them(tmp_path: Path, name: str) -> None:
    file = tmp_path / "settings.toml"
    line = f'{written(name)} = "neither"\n'
    file.write_text(line.replace("[alerts] ", "[alerts]\n"), encoding="utf-8")
    expected = f"expected one of {', '.join(choices(name))}, got 'neither'"
    for given in ({"file": file, "env": {}}, {"env": {env_name(name): "neither"}}):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            load_config(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gateway", "--curve-dir", "nokeys"], "curve_dir: cannot read the keys of the gateway"),
        (["gateway", "--workers", "2", "--curve-dir", "nokeys"], "curve_dir: cannot read the keys of the gateway"),
        (["up", "--curve-dir", "nokeys"], "curve_dir: cannot read the keys of the feeder"),
        (["feeder", "--source", "sim", "--curve-dir", "nokeys"], "curve_dir: cannot read the keys of the feeder"),
        (["up", "--port", "0", *OPENED, "--host", "192.0.2.1"], "host: cannot listen on 192.0.2.1"),
        (["gateway", *OPENED, "--host", "192.0.2.1"], "port: cannot listen on 192.0.2.1:8000"),
        (["gateway", *OPENED, "--host", "no such host"], "port: cannot listen on no such host:8000"),
        pytest.param(
            ["feeder", "--source", "xtquant", "--data-dir", "{folder}"],
            "source: xtquant cannot be imported",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows"),
        ),
        (["feeder", "--source", "sim", "--data-dir", "{file}"], "data_dir: "),
        (["feeder", "--source", "replay", "--data-dir", "{folder}"], "file: a replay needs the file to play"),
    ],
)
def test_what_cannot_be_used_ends_a_start_with_one_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    file = tmp_path / "file"
    file.touch()
    words = [word.format(folder=tmp_path / "data", file=file) for word in arguments]
    if words[0] == "feeder":
        words += address_options(ANY_ADDRESSES)
    # Without the stand-ins, which may be on the path of the tests, and without settings.
    env = {each: os.environ[each] for each in os.environ if each != "PYTHONPATH" and not each.startswith(ENV_PREFIX)}
    command = [sys.executable, "-m", "qmt_bridge.cli", *words]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30 * SLOWNESS, check=False, env=env)
    assert ended.returncode == 1
    assert f"Error: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr


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


def test_tail_needs_only_its_own_settings(market: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QMT_BRIDGE_PORT", "many")
    monkeypatch.setenv("QMT_BRIDGE_TRADING_ENABLED", "true")
    monkeypatch.setenv("QMT_BRIDGE_CONFIG", str(tmp_path / "gone.toml"))
    # Of the topic the last slash is missing too.
    result = run("tail", TICK[:-1], "-n", "1", f"--market-addr={market}", "--ask-addr=tcp://127.0.0.1:9")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["topic"] == TICK
    assert f"is taken as {TICK}" in result.stderr
    assert "gone.toml" in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp936", "utf-8"])
def test_tail_prints_utf_8_whatever_the_console_is(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    with websocket(["贵州茅台", '{"a":"平安"}']) as (url, _):
        assert run("tail", url, "600519.SH", "-n", "2").stdout.splitlines() == ["贵州茅台", '{"a":"平安"}']


def test_tail_of_a_url_sends_many_codes_in_several_requests(tmp_path: Path) -> None:
    codes = [f"{number:06}.SZ" for number in range(6000)]
    file = tmp_path / "codes.txt"
    file.write_text("\n".join(codes), encoding="utf-8")
    with websocket(["{}"], requests=3) as (url, asked):
        result = run("tail", url, "600519.SH", "--codes-file", str(file), "--period", "1m", "-n", "1")
    assert result.returncode == 0, result.stderr
    assert all(len(request) < 64 * 1024 for request in asked)
    requests = [json.loads(request) for request in asked]
    assert {request["period"] for request in requests} == {"1m"}
    assert [code for request in requests for code in request["stocks"]] == ["600519.SH", *codes][: 3 * 2000]


def test_tail_says_on_stderr_that_nothing_answers_and_that_it_comes() -> None:
    address = tcp(free_port())
    command = [sys.executable, "-m", "qmt_bridge.cli", "tail", "quote/", f"--market-addr={address}"]
    tail = subprocess.Popen(
        [*command, f"--ask-addr={address}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    try:
        assert f"nothing answers at {address}" in tail.stderr.readline()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # A feeder whose questions and market are one socket: enough to be connected to.
        publisher = context.socket(zmq.XPUB)
        publisher.bind(address)
        try:
            assert "is not the feeder's socket" in tail.stderr.readline()
        finally:
            publisher.close(linger=0)
            context.term()
    finally:
        tail.kill()
        assert tail.stdout.read() == ""
        tail.stdout.close()
        tail.stderr.close()
        tail.wait()


def test_tail_of_a_url_that_nobody_serves_is_one_line() -> None:
    result = run("tail", "ws://127.0.0.1:9/ws/realtime", "600519.SH")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


@contextmanager
def websocket(frames: list[str], requests: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Serve `frames` after so many requests; yield the URL and the requests."""
    asked: list[str] = []

    def answer(connection: ServerConnection) -> None:
        for _ in range(requests):
            asked.append(str(connection.recv()))
        for frame in frames:
            connection.send(frame)

    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws/realtime", asked
        finally:
            server.shutdown()
            thread.join()


def test_tail_of_a_url_prints_frames() -> None:
    with websocket([json.dumps({"n": number}) for number in range(3)]) as (url, asked):
        result = run("tail", url, "600519.SH", "--period", "1m", "-n", "2")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{"n": 0}, {"n": 1}]
    assert json.loads(asked[0]) == {"stocks": ["600519.SH"], "period": "1m"}


@pytest.mark.parametrize(
    ("key", "silent", "said"),
    [
        ("", None, "push     tcp://127.0.0.1:5560, programs of this user; connected: none yet"),
        ("a-key-of-the-pushers", 0.1, "push     tcp://127.0.0.1:5560, with push_key; connected: desk"),
    ],
)
def test_the_banner_says_where_pushers_connect(
    key: str, silent: float | None, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = Config(data_dir=str(tmp_path), push_key=key)
    pushers = [{"name": "desk", "silent": silent}]
    status = {"source": "xtquant+push", "simulated": False, "feed": "up", "pushers": pushers}
    run_commands._banner(config, status, {"feeder": 1, "gateway": 2}, False)
    printed = capsys.readouterr().out
    assert said in printed
    assert "a-key-of-the-pushers" not in printed


@pytest.mark.parametrize("is_open", [True, False])
def test_the_banner_names_open_trade_events(is_open: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = Config(api_key="0123456789abcdef", open_trade_addr=is_open, data_dir=str(tmp_path))
    status = {"source": "sim", "simulated": True, "feed": "up"}
    run_commands._banner(config, status, {"feeder": 1, "gateway": 2}, False)
    printed = capsys.readouterr().out
    assert ("every user of this machine gets trade events" in printed) == is_open
    assert ("tcp://127.0.0.1:5556" in printed) == (is_open or sys.platform == "win32")


def test_keygen_adds_a_client_with_roles(tmp_path: Path) -> None:
    folder = tmp_path / "curve"
    assert run("keygen", str(folder)).returncode == 0
    added = run("keygen", str(folder), "--name", "desk", "--roles", "trade,ask")
    assert added.returncode == 0, added.stderr
    assert added.stdout.splitlines()[0] == str(folder / "desk")
    assert 'roles = "trade,ask"' in (folder / "clients" / "desk.key").read_text(encoding="utf-8")
    for arguments, said in (
        (["--name", "desk", "--roles", "trade"], "is taken"),
        (["--name", "other", "--roles", "all"], "expected some of market,trade,ask,download"),
        (["--roles", "trade"], "it is for --name"),
    ):
        refused = run("keygen", str(folder), *arguments)
        assert refused.returncode != 0
        assert said in refused.stderr
