"""The data service of token mode, through xtquant's real xtdatacenter over the stand-ins."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import datacenter
import native
import pytest

from feeder.source import FeedState
from feeder.xt.quotes import intervals
from feeder.xt.quotes.session import XtQuote
from feeder.xt.source import XtSource
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Unavailable
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.wire.topics import Topic, parse_topic, quote_topic
from tests.support.paths import FAKES, ROOT
from tests.support.ports import ANY_ADDRESSES, address_env
from tests.support.sink import Recording
from tests.support.waiting import SLOWNESS, wait_for

SECONDS = 30.0 * SLOWNESS
TOKEN = "7b1e-t0ken"
MOUTAI = quote_topic("600519.SH")


class Recorder(Recording):
    """A Sink that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Topic] = []
        self.accepted: list[Topic] = []
        self.states: list[tuple[FeedState, str | None]] = []

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        self.published.append(topic)

    def accept(self, topic: Topic) -> None:
        self.accepted.append(topic)

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self.states.append((state, reason))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(intervals, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(datacenter, "_settings", {})
    with native.installed() as terminal:
        # The first port that the service tries.
        terminal.address = "127.0.0.1:58609"
        # A process opens the service once, but this process opens it in every test.
        monkeypatch.setattr(importlib.import_module("xtquant.xtdatacenter"), "init_complete", False)
        monkeypatch.setattr(datacenter, "_port", 0)
        yield terminal


@pytest.fixture
def listened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Return the list of addresses and ports that the service tried to listen on."""
    calls: list[tuple[str, int, int]] = []
    listen = datacenter.listen
    monkeypatch.setattr(datacenter, "listen", lambda *args: (calls.append(args), listen(*args))[1])
    return calls


def settings(home: Path) -> Config:
    return Config(xt_token=TOKEN, xt_home=str(home / "center"), xt_servers=("10.0.0.1:55310", "10.0.0.2:55310"))


def test_with_a_token_quotes_come_from_a_service_of_this_machine(
    terminal: native.Terminal, listened: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    source, sink = XtQuote(settings(tmp_path)), Recorder()
    try:
        source.start(sink)
        source.subscribe(MOUTAI, parse_topic(MOUTAI))
        wait_for(lambda: MOUTAI in sink.accepted)
        terminal.push_quote("600519.SH", "tick", {"time": 1})
        wait_for(lambda: sink.published)
        assert sink.states == [("up", None)]
        assert source.address == "127.0.0.1:58609"
        assert listened == [("127.0.0.1", 58609, 58619)]
        [(given,)] = terminal.called("start_init_quote")
        assert isinstance(given, dict)
        assert given["token"] == TOKEN
        assert given["addresses"] == ["10.0.0.1:55310", "10.0.0.2:55310"]
        assert given["data_home_dir"] == str(tmp_path / "center")
        assert (tmp_path / "center").is_dir()
        assert {call.thread for call in terminal.calls if call.name != "rpc_init"} == {source._thread.ident}
    finally:
        source.close()


def test_without_a_token_there_is_no_service(terminal: native.Terminal, listened: list[tuple[str, int, int]]) -> None:
    source, sink = XtQuote(Config(xt_addr=terminal.address)), Recorder()
    try:
        source.start(sink)
        wait_for(lambda: sink.states)
        assert listened == terminal.called("start_init_quote") == []
    finally:
        source.close()


def test_the_default_folder_is_the_feeders_and_servers_are_free(terminal: native.Terminal, tmp_path: Path) -> None:
    source = XtQuote(Config(xt_token=TOKEN, data_dir=str(tmp_path)))
    try:
        source.start(Recorder())
        [(given,)] = terminal.called("start_init_quote")
        assert isinstance(given, dict)
        assert given["data_home_dir"] == str(tmp_path / "xtdata")
        assert "addresses" not in given
    finally:
        source.close()


def test_downloads_go_to_the_service_too(terminal: native.Terminal, tmp_path: Path) -> None:
    source = XtSource(settings(tmp_path))
    try:
        source.start(Recorder())
        assert (source._download._host, source._download._port) == ("127.0.0.1", 58609)
    finally:
        source.close()


def test_a_refused_token_ends_the_start_and_is_not_shown(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    source = XtQuote(settings(tmp_path))
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            # The first server is not reachable.
            refuse(monkeypatch, 1, server.getsockname()[1])
            with pytest.raises(ConfigError) as error:
                source.start(Recorder())
        assert type(error.value) is ConfigError
        assert error.value.setting == "xt_token"
        assert "行情连接初始化异常" in error.value.reason
        assert "token错误 ***" in error.value.reason
        assert f"the data service cannot be opened: {error.value.reason}" in caplog.messages
        assert all(record.levelno < logging.ERROR or TOKEN not in record.getMessage() for record in caplog.records)
        source._thread.join(SECONDS)
        assert not source._thread.is_alive()
        assert terminal.called("connect") == []
    finally:
        source.close()


def refuse(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Make the login fail at servers of this machine; no process listens on port 1."""
    logins = {
        str(port): {"loginparam": {"ip": "127.0.0.1", "port": port}, "errorcode": 1, "boerror": f"token错误 {TOKEN}"}
        for port in ports
    }
    monkeypatch.setattr(datacenter, "fetch_auth_markets", lambda: {"done": 0})
    monkeypatch.setattr(datacenter, "fetch_server_list_status", lambda: native.encode(logins))


def test_unreachable_servers_are_a_reason_to_start_again(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    refuse(monkeypatch, 1, 2)
    source = XtQuote(settings(tmp_path))
    try:
        with pytest.raises(Unavailable, match="xt_token: none of its servers can be reached: ConnectionError") as error:
            source.start(Recorder())
        assert TOKEN not in str(error.value)
        assert f"the data service cannot be opened: {error.value.reason}" in caplog.messages
    finally:
        source.close()


def test_unreachable_servers_of_an_old_sdk_are_one_too(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def init(start_local_service: bool) -> None:
        # Before 240613 every error is a plain Exception.
        raise Exception("行情连接初始化异常 SH 127.0.0.1:1 连接失败")

    monkeypatch.setattr("xtquant.xtdatacenter.init", init)
    source = XtQuote(settings(tmp_path))
    try:
        with pytest.raises(Unavailable, match="none of its servers can be reached: Exception: 行情连接初始化异常"):
            source.start(Recorder())
    finally:
        source.close()


def test_busy_ports_are_named_as_the_reason(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datacenter, "listen", lambda ip, first, last: (ip, 0))
    source = XtQuote(settings(tmp_path))
    try:
        with pytest.raises(ConfigError, match="OSError: 监听端口失败") as error:
            source.start(Recorder())
        assert type(error.value) is ConfigError
    finally:
        source.close()


def test_a_service_that_never_opens_ends_the_start(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(intervals, "CENTER_SECONDS", 0.05)
    opened = threading.Event()
    monkeypatch.setattr(datacenter, "get_status", lambda: {"init_done": opened.wait(SECONDS)})
    source, sink = XtQuote(settings(tmp_path)), Recorder()
    try:
        with pytest.raises(Unavailable, match=r"the data service has not opened in 0\.05 s"):
            source.start(sink)
    finally:
        opened.set()
        source._thread.join(SECONDS)
        source.close()
    # The service opened too late, so no start is completed.
    assert not source._thread.is_alive()
    assert terminal.called("connect") == []
    assert sink.states == []


def test_an_invalid_server_address_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        XtQuote(Config(xt_token=TOKEN, xt_servers=("10.0.0.1:55310", "10.0.0.2")))
    assert str(error.value) == "xt_servers: expected 'host:port', got '10.0.0.2'"


def test_a_token_is_never_shown() -> None:
    assert TOKEN not in repr(Config(xt_token=TOKEN))


@pytest.mark.parametrize(("reached", "exit_code"), [(True, 1), (False, TRY_AGAIN)])
def test_the_exit_code_tells_whether_to_retry_a_refused_token(tmp_path: Path, reached: bool, exit_code: int) -> None:
    code = f"""
        import datacenter
        from feeder.xt import center
        datacenter.fetch_auth_markets = lambda: {{"done": 0}}
        center._reaches_any = lambda servers: {reached}
        from qmt_bridge.cli import main
        main(["feeder", "--source", "xtquant"])
    """
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (FAKES, ROOT))),
        "PYTHONIOENCODING": "utf-8",
        "QMT_BRIDGE_XT_TOKEN": TOKEN,
        "QMT_BRIDGE_DATA_DIR": str(tmp_path),
        **address_env(ANY_ADDRESSES),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50 * SLOWNESS,
        check=False,
    )
    assert done.returncode == exit_code
    away = "" if reached else "none of its servers can be reached: "
    assert f"Error: xt_token: {away}ConnectionError: 行情连接初始化异常, 未获取到市场权限" in done.stderr
    assert "the data service cannot be opened" in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
