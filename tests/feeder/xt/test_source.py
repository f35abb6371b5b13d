"""XtSource over the stand-ins: quotes and downloads of one terminal together; last, through all real processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import native
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from feeder import app
from feeder.source import DownloadRequest, FeedState
from feeder.xt.download import XtDownload
from feeder.xt.quotes import intervals
from feeder.xt.quotes.session import XtQuote
from feeder.xt.source import XtSource
from feeder.xt.trading.session import XtTrade
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import Kind, Topic, download_topic, parse_topic, quote_topic
from tests.support.paths import FAKES, ROOT
from tests.support.ports import address_options, free_addresses
from tests.support.sink import Recording, encoded
from tests.support.waiting import SLOWNESS, wait_for

SECONDS = 30.0 * SLOWNESS

TICKS = quote_topic("600519.SH")
JOB = download_topic("job")
REQUEST = DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", "")


class Recorder(Recording):
    """A Sink that keeps what it is told."""

    seconds = SECONDS

    def __init__(self) -> None:
        super().__init__()
        self.bodies: dict[Topic, list[object]] = {}
        self.trades: list[tuple[str, str]] = []
        self.accepted: list[Topic] = []
        self.states: list[FeedState] = []
        self.accounts: list[list[AccountState]] = []

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        self.note(self.bodies.setdefault(topic, []), encoded(body))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        self.publish(topic, ticks, received_ns)

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        self.note(self.trades, (account, event))

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        return iter(())

    def accept(self, topic: Topic) -> None:
        self.note(self.accepted, topic)

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self.note(self.states, state)

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self.note(self.accounts, list(accounts))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    """Return the terminal of quotes; each download process has its own, whose switches are in the environment."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(intervals, "RETRY_LAST", 0.05)
    with native.installed() as terminal:
        yield terminal


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def source(terminal: native.Terminal) -> Iterator[XtSource]:
    source = XtSource(Config())
    try:
        yield source
    finally:
        terminal.gate.set()
        source.close()


def test_hanging_trade_sessions_are_a_reason_to_restart(
    terminal: native.Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = XtSource(Config(xt_accounts=("55550365:STOCK",), xt_userdata=str(tmp_path)))
    assert source.hung() is None
    monkeypatch.setattr(XtTrade, "hung", lambda trade: "trade sessions hang")
    assert source.hung() == "trade sessions hang"


def test_the_sdk_and_the_call_that_hangs_are_named(terminal: native.Terminal, source: XtSource, sink: Recorder) -> None:
    source.start(sink)
    sink.until(lambda: sink.states == ["up"])
    assert source.health().sdk == importlib.metadata.version("xtquant")
    terminal.gate.clear()
    source.subscribe(TICKS, parse_topic(TICKS))
    wait_for(lambda: source.health().call == "subscribe_quote2")
    # The thread that looks for calls that hang counts the age.
    wait_for(lambda: source.hung() is None and source.health().call_age > 0)
    terminal.gate.set()
    wait_for(lambda: source.health().call is None)


def test_the_setting_selects_this_source(terminal: native.Terminal) -> None:
    for name in ("xtquant", "auto"):
        source = app.make_source(Config(source=name))
        assert isinstance(source, XtSource)
        assert (source.name, source.simulated, source.lossless) == ("xtquant", False, False)
        assert source.kinds == set(Kind) - {Kind.STATUS}


def test_quotes_and_downloads_are_served_together(terminal: native.Terminal, source: XtSource, sink: Recorder) -> None:
    source.start(sink)
    source.subscribe(TICKS, parse_topic(TICKS))
    source.download(JOB, REQUEST)
    sink.until(lambda: TICKS in sink.accepted)
    assert source.upstream() == 1
    terminal.push_quote("600519.SH", "tick", {"time": 1})
    sink.until(lambda: TICKS in sink.bodies and {"status": "done"} in sink.bodies.get(JOB, []))
    assert sink.bodies[TICKS] == [{"600519.SH": [{"time": 1}]}]
    assert sink.bodies[JOB][0] == {"finished": 1, "total": 2, "stockcode": "600519.SH", "message": ""}
    # No download was requested from the client of the quote session.
    assert terminal.called("supply_history_data2") == []
    source.unsubscribe(TICKS, parse_topic(TICKS))
    sink.until(lambda: source.upstream() == 0)
    source.close()
    assert sink.states == ["up"]


def test_a_quote_session_that_hangs_blocks_no_download(
    terminal: native.Terminal, source: XtSource, sink: Recorder
) -> None:
    terminal.gate.clear()
    source.start(sink)
    source.download(JOB, REQUEST)
    sink.until(lambda: {"status": "done"} in sink.bodies.get(JOB, []))
    assert sink.states == []


def test_a_download_that_hangs_blocks_no_quote(
    terminal: native.Terminal, source: XtSource, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_XT_DOWNLOAD", "stall")
    source.start(sink)
    source.download(JOB, REQUEST)
    sink.until(lambda: JOB in sink.bodies)
    source.subscribe(TICKS, parse_topic(TICKS))
    sink.until(lambda: TICKS in sink.accepted)
    source.close()
    assert sink.bodies[JOB][-1]["error"] == "the download was cancelled"  # type: ignore[index, call-overload]
    with pytest.raises(Refused, match="the feeder is stopping"):
        source.download(JOB, REQUEST)


def test_without_accounts_it_logs_that_there_are_no_trade_events(
    terminal: native.Terminal, source: XtSource, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "feeder.xt.source"):
        source.start(sink)
    assert "no accounts are set: market data only, no trade events" in caplog.messages


@pytest.fixture
def trading(terminal: native.Terminal, tmp_path: Path) -> Iterator[XtSource]:
    source = XtSource(Config(xt_accounts=("1000000365:STOCK",), xt_userdata=str(tmp_path)))
    try:
        yield source
    finally:
        source.close()


def test_with_accounts_there_is_a_trade_session_beside_the_quotes(
    terminal: native.Terminal, trading: XtSource, sink: Recorder
) -> None:
    trading.start(sink)
    trading.subscribe(TICKS, parse_topic(TICKS))
    sink.until(lambda: TICKS in sink.accepted and ("1000000365", "connected") in sink.trades)


def test_calls_into_quotes_and_trading_are_timed(trading: XtSource, sink: Recorder) -> None:
    trading.start(sink)
    trading.subscribe(TICKS, parse_topic(TICKS))
    wanted = {"xtdata.reconnect", "xtdata.subscribe_quote2", "xttrader.connect", "xttrader.query_stock_orders_async"}
    wait_for(lambda: trading.health().times.keys() >= wanted, "the calls")
    # A question is timed until its answer, and each call once.
    times = trading.health().times
    assert times["xttrader.connect"].buckets()[-1][1] == 1
    assert all(0.0 < each.total < SECONDS for each in times.values())


def test_a_trade_session_that_cannot_start_does_not_stop_the_quotes(
    terminal: native.Terminal,
    trading: XtSource,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: XtTrade, __: Recorder) -> None:
        tried.append(time.monotonic())
        raise OSError("no such queue of 1000000365")

    tried: list[float] = []
    monkeypatch.setattr("feeder.xt.source.RETRY_FIRST", 0.01)
    with monkeypatch.context() as broken:
        broken.setattr(XtTrade, "start", fail)
        trading.start(sink)
        trading.subscribe(TICKS, parse_topic(TICKS))
        sink.until(lambda: TICKS in sink.accepted)
        sink.until(lambda: len(tried) > 2)
        [[account]] = sink.accounts
        assert (account.account, account.type, account.state) == ("******0365", "STOCK", "down")
        assert account.reason == "cannot be started: OSError: no such queue of ******0365"
        assert not account.fault
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.getMessage() == "trade session cannot be started; market data only, trying again"
    assert error.exc_info is not None
    sink.until(lambda: sink.trades == [("1000000365", "connected")])
    sink.until(lambda: sink.accounts[-1][0].state == "up")


def test_close_ends_a_trade_start_that_always_fails(
    terminal: native.Terminal, trading: XtSource, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(XtTrade, "start", lambda *_: 1 / 0)
    trading.start(sink)
    trading.close()
    wait_for(lambda: not any(thread.name == "xtquant-trade-start" for thread in threading.enumerate()))


@pytest.mark.parametrize("readable", [0, 1])
def test_an_unreadable_journal_does_not_stop_the_trade_session(
    terminal: native.Terminal,
    trading: XtSource,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    readable: int,
) -> None:
    def past(_: int) -> Iterator[tuple[int, TradeEvent]]:
        yield from [(time.time_ns() // 1_000_000, TradeEvent("order", 1, {"order_id": 1}))] * readable
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(sink, "past_trades", past)
    trading.start(sink)
    sink.until(lambda: ("1000000365", "connected") in sink.trades)
    assert f"the trade journal cannot be read after {readable} events" in caplog.text
    sink.until(lambda: sink.accounts[-1][0].state == "up")


def test_a_part_that_cannot_be_closed_does_not_stop_the_others(
    terminal: native.Terminal,
    source: XtSource,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("boom")

    source.start(sink)
    sink.until(lambda: sink.states)
    with monkeypatch.context() as broken:
        broken.setattr(XtDownload, "close", fail)
        source.close()
    assert "XtDownload cannot be closed" in caplog.messages
    assert not any(client.is_connected() for client in terminal.clients)


def test_close_does_not_wait_for_a_part_that_hangs(
    terminal: native.Terminal,
    source: XtSource,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging = threading.Event()
    monkeypatch.setattr("feeder.xt.source.CLOSE_SECONDS", 0.2)
    source.start(sink)
    sink.until(lambda: sink.states)
    with monkeypatch.context() as broken:
        broken.setattr(XtQuote, "close", lambda _: hanging.wait(SECONDS))
        source.close()
    assert "XtQuote does not close; it is left behind" in caplog.messages
    hanging.set()
    wait_for(lambda: not any(thread.name.startswith("xtquant-download") for thread in threading.enumerate()))


def test_close_before_start_does_nothing(source: XtSource) -> None:
    source.close()


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of downloads of a running `qmt-bridge up` over the stand-ins."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_REFUSE", "300750.SZ")
    command = [sys.executable, "-m", "qmt_bridge.cli", "up", "--source=xtquant", "--port=0", f"--data-dir={tmp_path}"]
    command += address_options(free_addresses())
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    try:
        assert up.stdout is not None
        banner = "".join(iter(up.stdout.readline, "  stop     Ctrl-C\n"))
        found = re.search(r"ws://\S+?:\d+", banner)
        assert found is not None, banner
        yield f"{found[0]}/ws/download_progress"
    finally:
        up.terminate()
        up.communicate(timeout=SECONDS)


def test_a_download_through_feeder_and_gateway_ends_as_documented(url: str) -> None:
    frames, code = received(url, '{"stocks":["600519.SH"],"period":"1d"}')
    # Progress is conflated, so the end may have replaced it.
    assert frames[-1] == {"status": "done"}
    assert all(frame == {"finished": 1, "total": 1, "stockcode": "600519.SH", "message": ""} for frame in frames[:-1])
    assert code == 1000
    frames, code = received(url, '{"stocks":["600519.SH","300750.SZ"],"period":"1d"}')
    end = frames[-1]
    assert (end["status"], end["type"], end["code"]) == ("error", "error", "upstream_refused")
    assert end["failed"] == {"300750.SZ": "下载数据失败：300750.SZ 无权限"}
    assert code == 1011


def received(url: str, request: str) -> tuple[list[dict], int | None]:
    """Return the frames that arrive until the socket is closed, and the close code."""
    frames = []
    with connect(url, proxy=None) as client, contextlib.suppress(ConnectionClosedError):
        client.send(request)
        for frame in client:
            frames.append(json.loads(frame))
    return frames, client.close_code
