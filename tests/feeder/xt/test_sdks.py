"""Each version of xtquant in the package index: its real Python layer over the stand-ins, under the whole source."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import native
import pytest
import xtpythonclient

from feeder.source import DownloadRequest, FeedState
from feeder.xt import center, sdk
from feeder.xt.capabilities import Capabilities
from feeder.xt.source import XtSource
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, ErrorCode, Refused
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import (
    FormulaSpec,
    Topic,
    download_topic,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    whole_topic,
)
from tests.sdks.wheels import LOCK, WHEELS, Wheel
from tests.support import sdks
from tests.support.paths import FAKES, ROOT
from tests.support.sink import Recording, encoded

CODE = "600519.SH"
ACCOUNT = "55550365"
TICKS, BARS, MARKET, DEPTH = quote_topic(CODE), quote_topic(CODE, "1m"), whole_topic("SH"), l2_topic(CODE)
FORMULA = formula_topic(FormulaSpec("MA", CODE, "1d"))
JOB = download_topic("job")
REQUEST = DownloadRequest((CODE,), "1d", "", "")
# What the versions of the index lack.
NO_EVENTS = {"connection events": "has connection events that cannot be used; 240613.1.0 has it"}
LACKS = {
    "240119.3": {
        **NO_EVENTS,
        "formulas": "has xtdata.subscribe_formula with other parameters; 240329.1.1 has it",
    },
    "240329.1.1": NO_EVENTS,
}


class Recorder(Recording):
    """A Sink that keeps what it is told."""

    seconds = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.bodies: dict[Topic, list[object]] = {}
        self.trades: list[tuple[str, str, object]] = []
        self.refused: dict[Topic, tuple[ErrorCode, str]] = {}
        self.accepted: list[Topic] = []
        self.states: list[tuple[FeedState, str | None]] = []
        self.accounts: list[list[AccountState]] = []

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        self.note(self.bodies.setdefault(topic, []), encoded(body))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        self.publish(topic, ticks, received_ns)

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        self.note(self.trades, (account, event, data.get("order_id")))

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        return iter(())

    def accept(self, topic: Topic) -> None:
        self.note(self.accepted, topic)

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        with self.changed:
            self.refused[topic] = code, reason
            self.changed.notify_all()

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self.note(self.states, (state, reason))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self.note(self.accounts, list(accounts))


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    with native.installed() as terminal:
        yield terminal


def test_every_wheel_has_a_hash_and_a_folder_of_its_own() -> None:
    lines = [line for line in LOCK.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [wheel.requirement.strip() for wheel in WHEELS] == lines
    assert len({wheel.folder for wheel in WHEELS}) == len({wheel.hash for wheel in WHEELS}) == len(lines) == 16


@pytest.mark.parametrize("wheel", sdks.EACH)
def test_each_sdk_serves_what_it_can_and_refuses_the_rest_by_name(
    wheel: Wheel, sink: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sdks.in_use(wheel, monkeypatch) as terminal:
        lacks = LACKS.get(wheel.version, {})
        found = Capabilities()
        assert found.version == wheel.version
        assert {name: lack for name, lack in found.table().items() if lack} == {
            name: f"xtquant {wheel.version} {lack}" for name, lack in lacks.items()
        }
        source = XtSource(Config(xt_accounts=(f"{ACCOUNT}:STOCK",), xt_userdata=str(tmp_path)))
        try:
            source.start(sink)
            serve_market_data(source, sink, terminal, every_level=None if wheel.version > "2505" else 0)
            serve_formulas(source, sink, terminal, lacks.get("formulas"))
            source.download(JOB, REQUEST)
            serve_trade_events(sink)
            lose_and_find_the_terminal(source, sink, terminal)
            sink.until(lambda: {"status": "done"} in sink.bodies.get(JOB, []))
        finally:
            terminal.gate.set()
            source.close()
        assert sink.refused == {}
        assert terminal.subscriptions() == []
        assert not any(client.connected for client in terminal.clients)
        assert terminal.escaped == []


def record(period: str) -> native.Document:
    # NaN is not equal to itself.
    return {name: value for name, value in native.record(CODE, period, 1).items() if name != "pe"}


def serve_market_data(source: XtSource, sink: Recorder, terminal: native.Terminal, every_level: int | None) -> None:
    terminal.market = {CODE: native.tick(CODE, 0)}
    for topic in (TICKS, BARS, MARKET, DEPTH):
        source.subscribe(topic, parse_topic(topic))
    sink.until(lambda: {TICKS, BARS, MARKET, DEPTH} <= set(sink.accepted))
    [depth] = [feed.region for feed in terminal.feeds() if feed.detail == "l2thousand"]
    assert depth["thousandGearNum"] is every_level
    for period in ("tick", "1m", "l2thousand"):
        terminal.push_quote(CODE, period, record(period))
    terminal.push_whole({CODE: native.tick(CODE, 1)})
    for topic, period in ((TICKS, "tick"), (BARS, "1m"), (DEPTH, "l2thousand")):
        expected = encoded({CODE: [record(period)]})
        sink.until(lambda topic=topic, expected=expected: expected in sink.bodies.get(topic, []))
    sink.until(lambda: len(sink.bodies.get(MARKET, [])) == 2)
    source.unsubscribe(MARKET, parse_topic(MARKET))
    sink.until(lambda: source.upstream() == 3)


def serve_formulas(source: XtSource, sink: Recorder, terminal: native.Terminal, lack: str | None) -> None:
    if lack is not None:
        with pytest.raises(Refused) as refused:
            source.subscribe(FORMULA, parse_topic(FORMULA))
        assert refused.value.code == "unsupported_sdk"
        assert refused.value.reason.endswith(lack)
        assert refused.value.reason.startswith("formulas cannot be served: xtquant ")
        return
    source.subscribe(FORMULA, parse_topic(FORMULA))
    sink.until(lambda: FORMULA in sink.accepted)
    terminal.push_formula("MA", CODE, native.formula(1))
    sink.until(lambda: bool(sink.bodies.get(FORMULA)))
    source.unsubscribe(FORMULA, parse_topic(FORMULA))
    sink.until(lambda: all(kind != "formula" for kind, _, _ in terminal.subscriptions()))


def serve_trade_events(sink: Recorder) -> None:
    sink.until(lambda: any(event == "connected" for _, event, _ in sink.trades))
    fill = {"account_id": ACCOUNT, "account_type": 2, "order_id": 7, "traded_id": "1", "stock_code": CODE}
    xtpythonclient.trade_side().push(xtpythonclient.XtTrade(**fill))
    sink.until(lambda: (ACCOUNT, "trade", 7) in sink.trades)


def lose_and_find_the_terminal(source: XtSource, sink: Recorder, terminal: native.Terminal) -> None:
    terminal.drop()
    sink.until(lambda: sink.states[-1] == ("down", "terminal_disconnected"))
    terminal.open()
    sink.until(lambda: sink.states[-1] == ("up", None) and source.upstream() == 3)


@pytest.mark.parametrize(
    ("missing", "topic", "named"),
    [
        (
            "subscribe_l2thousand",
            DEPTH,
            "depth cannot be served: xtquant .* has no xtdata.subscribe_l2thousand; 240119",
        ),
        ("subscribe_formula", FORMULA, "formulas cannot .* has no xtdata.subscribe_formula; 240329.1.1 has it"),
        ("subscribe_whole_quote", MARKET, "markets cannot .* has no xtdata.subscribe_whole_quote; 240119.3 has it"),
        (
            "get_hk_broker_dict",
            quote_topic("00700.HK", "brokerqueue2"),
            "broker names cannot .* has no xtdata.get_hk_broker_dict",
        ),
    ],
)
def test_what_an_sdk_lacks_is_refused_and_the_rest_is_served(
    terminal: native.Terminal,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    topic: Topic,
    named: str,
) -> None:
    monkeypatch.delattr(f"xtquant.xtdata.{missing}")
    source = XtSource(Config())
    try:
        source.start(sink)
        with pytest.raises(Refused, match=named) as refused:
            source.subscribe(topic, parse_topic(topic))
        assert refused.value.code == "unsupported_sdk"
        source.subscribe(TICKS, parse_topic(TICKS))
        sink.until(lambda: TICKS in sink.accepted)
    finally:
        source.close()


def test_an_sdk_without_what_can_be_missed_serves_quotes(
    terminal: native.Terminal, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "watch_xtquant_status",
        "download_history_data2",
        "get_full_tick",
        "get_holidays",
        "disconnect",
    ):
        monkeypatch.delattr(f"xtquant.xtdata.{name}")
    source = XtSource(Config())
    try:
        source.start(sink)
        source.subscribe(TICKS, parse_topic(TICKS))
        sink.until(lambda: TICKS in sink.accepted)
        terminal.push_quote(CODE, "tick", native.tick(CODE, 1))
        sink.until(lambda: bool(sink.bodies.get(TICKS)))
        with pytest.raises(Refused, match=r"downloads cannot be served: .* has no xtdata\.download_history_data2"):
            source.download(JOB, REQUEST)
    finally:
        source.close()
    assert terminal.subscriptions() == []
    monkeypatch.undo()


def test_an_sdk_that_cannot_connect_is_refused_and_the_feeder_starts(
    terminal: native.Terminal, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("xtquant.xtdata.reconnect")
    source = XtSource(Config())
    try:
        source.start(sink)
        [(state, reason)] = sink.states
        assert state == "refused"
        assert reason is not None
        assert reason.startswith("unsupported_sdk: xtquant ")
        assert source.hung() is None
        with pytest.raises(Refused, match=r"connection cannot be served: .* has no xtdata\.reconnect"):
            source.subscribe(TICKS, parse_topic(TICKS))
    finally:
        source.close()


def test_a_function_with_other_parameters_is_found(terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtquant.xtdata.get_full_tick", lambda: None)
    assert "has xtdata.get_full_tick with other parameters" in Capabilities().lack("last ticks")


def test_events_that_belong_to_no_connection_are_not_used(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("xtquant.xtconn.status_callback")
    assert Capabilities().lack("connection events").endswith("cannot be used; 240613.1.0 has it")


def test_a_token_needs_an_sdk_with_the_data_service(
    terminal: native.Terminal, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("xtquant.xtdatacenter.set_token")
    opened: list[object] = []
    monkeypatch.setattr(center, "open_center", opened.append)
    source = XtSource(Config(xt_token="0123456789abcdef"))
    with pytest.raises(ConfigError, match=r"has no xtdatacenter\.set_token"):
        source.start(sink)
    assert opened == []
    # The terminal puts the token back.
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('__version__ = "xtquant_250807"', "250807"),
        ('__verison__ = "240119.2"', "240119.2"),
        ('__version__ = "xtquant"', ""),
        ("", ""),
    ],
)
def test_an_sdk_copied_as_a_folder_says_its_version_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str
) -> None:
    package = tmp_path / "xtquant"
    package.mkdir()
    (package / "__init__.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "xtquant"]:
        monkeypatch.delitem(sys.modules, name)
    assert sdk.version() == version


def test_market_data_needs_no_trading_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "xtquant"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "datacenter.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "xtquant"]:
        monkeypatch.delitem(sys.modules, name)
    assert sdk.importable()
    assert not sdk.has_trading()
