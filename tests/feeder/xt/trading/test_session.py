"""XtTrade through xtquant's real Python layer, over the stand-ins for its native modules."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import math
import sqlite3
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import native
import pytest
import xtpythonclient
from xtpythonclient import (
    TradeSide,
    XtAccountStatus,
    XtAsset,
    XtCancelError,
    XtOrder,
    XtOrderError,
    XtPosition,
    XtTrade,
)

from feeder.publisher import Publisher
from feeder.sim.constants import NAMES
from feeder.source import Health, mask
from feeder.xt.trading import intervals, queries, session
from feeder.xt.trading.accounts import ACCOUNT_TYPES
from feeder.xt.trading.published import NAMED
from feeder.xt.trading.reconciliation import QUERIES, Reconciliation
from feeder.xt.trading.records import EVENTS, FIELDS, discover, enumerations
from qmt_bridge.config import Config, load_config
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import Kind, Topic
from tests.support.ports import ANY_ADDRESSES
from tests.support.sink import Recording, encoded
from tests.support.waiting import SLOWNESS, wait_for

SECONDS = 30.0 * SLOWNESS
STOCK, CREDIT = "1000000365", "2000000001"


class Recorder(Recording):
    """A sink that keeps trade events; its encoder knows no type of xtquant, so such a type fails."""

    def __init__(self, past: Iterator[tuple[int, TradeEvent]] | None = None) -> None:
        super().__init__()
        self.published: list[tuple[str, str, dict[str, Any], int]] = []
        self.past = list(past or ())
        self.asked_since: list[int] = []
        # The states of all accounts, one entry for each call of `set_accounts`.
        self.states: list[list[AccountState]] = []
        # Called in `publish_trade`.
        self.on_publish: Callable[[], object] = int

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        self.on_publish()
        self.note(self.published, (account, event, encoded(data), received_ns))

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        self.asked_since.append(since_ms)
        yield from self.past

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self.note(self.states, list(accounts))

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [data for _, event, data, _ in list(self.published) if event in types]

    def types(self) -> list[str]:
        return [event for _, event, _, _ in list(self.published)]

    def as_past(self) -> Iterator[tuple[int, TradeEvent]]:
        """Yield the published events as a journal would return them."""
        for seq, (_, event, data, received_ns) in enumerate(list(self.published), 1):
            yield received_ns // 1_000_000, TradeEvent(event, seq, dict(data))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(intervals, "RETRY_LAST", 0.05)
    monkeypatch.setattr(intervals, "CONFIRM_SECONDS", 0.01)
    with native.installed() as terminal:
        yield terminal
        assert terminal.escaped == []


@pytest.fixture
def trade_side(terminal: native.Terminal) -> TradeSide:
    return xtpythonclient.trade_side()


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def serve(trade_side: TradeSide, sink: Recorder, tmp_path: Path) -> Iterator[Callable[..., session.XtTrade]]:
    """Start an XtTrade for accounts; by default wait until it has connected and every query is answered."""
    started = []

    def start(*accounts: str, to: Recorder = sink, wait: bool = True, **settings: Any) -> session.XtTrade:
        accounts = accounts or (f"{STOCK}:STOCK",)
        source = session.XtTrade(Config(**{"xt_userdata": str(tmp_path), "xt_accounts": accounts, **settings}))
        started.append(source)
        source.start(to)
        if wait:
            to.until(lambda: len(to.of("connected")) >= len(accounts))
            settle()
        return source

    try:
        yield start
    finally:
        trade_side.close()
        for source in started:
            source.close()


NATIVE_QUERIES = [
    "queryStockOrdersWithSeq",
    "queryStockTradesWithSeq",
    "queryStockPositionsWithSeq",
    "queryStockAssetWithSeq",
]


def settle() -> None:
    """Wait until no call is running: every account is subscribed and every query is answered."""
    wait_for(is_settled, "the end of the calls")


def is_settled() -> bool:
    """Return whether no live session has a query that is running, or one that is due for the first or second time."""
    if any(thread.name == "xtquant-trade-call" for thread in threading.enumerate()):
        return False
    asking = [thread for thread in threading.enumerate() if thread.name == "xtquant-trade-ask"]
    for (asked,) in [thread._args for thread in asking if hasattr(thread, "_args")]:
        heard = all(questions.were_heard() for questions in list(asked.questions.values()))
        if not heard or asked.holdings.missing or len(asked.questions) < len(asked.joined):
            return False
    return True


def order(order_id: int = 1, status: int = 50, account: str = STOCK, **fields: Any) -> Any:
    return XtOrder(
        **{
            "account_type": 2,
            "account_id": account,
            "stock_code": "600519.SH",
            "order_id": order_id,
            "order_sysid": f"S{order_id}",
            "order_time": 1733120580,
            "order_type": 23,
            "order_volume": 200,
            "price_type": 11,
            "price": 1700.0,
            "order_status": status,
            **fields,
        }
    )


def fill(traded_id: str = "T1", order_id: int = 1, account: str = STOCK, **fields: Any) -> Any:
    return XtTrade(
        **{
            "account_type": 2,
            "account_id": account,
            "stock_code": "600519.SH",
            "order_id": order_id,
            "traded_id": traded_id,
            "traded_time": 1733120581,
            "traded_price": 1700.0,
            "traded_volume": 100,
            "traded_amount": 170000.0,
            "order_type": 23,
            **fields,
        }
    )


def position(volume: int = 100, account: str = STOCK, **fields: Any) -> Any:
    return XtPosition(
        **{"account_type": 2, "account_id": account, "stock_code": "600519.SH", "volume": volume, **fields}
    )


def asset(cash: float = 1000.0, account: str = STOCK, **fields: Any) -> Any:
    return XtAsset(account_type=2, account_id=account, cash=cash, **fields)


# -- Settings


def test_without_accounts_it_logs_that_and_opens_no_session(caplog: pytest.LogCaptureFixture, sink: Recorder) -> None:
    caplog.set_level(logging.INFO)
    source = session.XtTrade(Config(xt_userdata="C:\\QMT\\userdata_mini"))
    source.start(sink)
    source.close()
    assert [record.message for record in caplog.records] == [
        "no xt_accounts: market data is served, trade events are not"
    ]
    assert sink.published == []


def test_accounts_require_the_folder_of_the_terminal() -> None:
    with pytest.raises(ConfigError, match="xt_userdata: is empty") as caught:
        session.XtTrade(Config(xt_accounts=(f"{STOCK}:STOCK",)))
    assert caught.value.setting == "xt_userdata"


@pytest.mark.parametrize(
    ("account", "shown"),
    [
        pytest.param("1000000365", "'******0365'", id="no-type"),
        pytest.param("1000000365:", "'******0365:'", id="empty-type"),
        pytest.param("1000000365:SHARES", "'******0365:SHARES'", id="unknown-type"),
        pytest.param(":STOCK", "':STOCK'", id="no-account"),
        pytest.param("STOCK:1000000365", "'*TOCK:******0365'", id="the-other-way-round"),
    ],
)
def test_a_malformed_account_is_refused_without_showing_its_number(account: str, shown: str) -> None:
    with pytest.raises(ConfigError, match="expected account:TYPE, TYPE one of FUTURE, STOCK, CREDIT") as caught:
        session.XtTrade(Config(xt_userdata="x", xt_accounts=(f"{CREDIT}:CREDIT", account)))
    assert caught.value.setting == "xt_accounts"
    assert str(caught.value).endswith(f"got {shown}")


def test_account_numbers_from_the_environment_are_never_shown() -> None:
    config = load_config(None, {"QMT_BRIDGE_XT_ACCOUNTS": f"{STOCK}:STOCK, {CREDIT}:CREDIT"})
    assert config.xt_accounts == (f"{STOCK}:STOCK", f"{CREDIT}:CREDIT")
    assert "xt_accounts='***'" in repr(config)
    assert STOCK not in repr(config)
    assert "xt_accounts=()" in repr(Config())
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, {"xt_accounts": f"{STOCK}:STOCK"})
    assert STOCK not in str(caught.value)


def test_the_account_types_are_those_of_xtquant(terminal: native.Terminal) -> None:
    from xtquant import xtconstant

    assert {number: name for name, number in ACCOUNT_TYPES.items()} == xtconstant.ACCOUNT_TYPE_DICT


# -- The real Python layer


def test_every_callback_of_xttrader_has_an_event(terminal: native.Terminal) -> None:
    from xtquant import xttrader

    assert set(EVENTS) == {name for name in vars(xttrader.XtQuantTraderCallback) if name.startswith("on_")}
    assert len(set(EVENTS.values())) == len(EVENTS)
    assert set(FIELDS) == set(EVENTS.values()) - {"connected", "disconnected"}


def test_our_calls_fit_the_signatures_of_xttrader(terminal: native.Terminal) -> None:
    from xtquant import xttrader, xttype

    def bind(name: str, *args: object) -> dict[str, object]:
        return dict(inspect.signature(getattr(xttrader.XtQuantTrader, name)).bind(None, *args).arguments)

    assert bind("__init__", "folder", 1)["path"] == "folder"
    assert bind("__init__", "folder", 1)["session"] == 1
    assert bind("register_callback", "callback")["callback"] == "callback"
    for name in ("start", "connect", "stop"):
        assert list(bind(name)) == ["self"]
    assert bind("subscribe", "account")["account"] == "account"
    assert bind("query_stock_orders_async", "account", "callback", True)["cancelable_only"] is True
    for query in QUERIES.values():
        assert bind(query, "account", "callback") == {"self": None, "account": "account", "callback": "callback"}
    assert list(inspect.signature(xttype.StockAccount.__init__).parameters) == ["self", "account_id", "account_type"]
    # The attributes of xttrader that our code replaces or releases.
    assert {"executor", "resp_executor", "relaxed_resp_executor", "cbs", "loop", "async_client"} <= set(
        vars(make_trader(xttrader))
    )


def make_trader(xttrader: Any) -> Any:
    made: list[Any] = []

    def make() -> None:
        trader = type("Trader", (xttrader.XtQuantTrader,), {"__del__": lambda _: None})("folder", 1)
        trader.loop.close()
        made.append(trader)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def test_every_account_is_subscribed_with_its_own_type(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve(f"{STOCK}:STOCK", f"{CREDIT}:credit", "12345:FUTURE")
    requests = [args[0] for args in trade_side.called("subscribeWithSeq")]
    assert sorted((request.m_strAccountID, request.m_nAccountType) for request in requests) == [
        (STOCK, 2),
        ("12345", 1),
        (CREDIT, 3),
    ]
    asked = [args[0] for call in NATIVE_QUERIES for args in trade_side.called(call)]
    assert {(request.m_strAccountID, request.m_nAccountType) for request in asked} == {
        (STOCK, 2),
        ("12345", 1),
        (CREDIT, 3),
    }
    assert {(account, data["account_type_name"]) for account, _, data, _ in sink.published} == {
        (STOCK, "STOCK"),
        ("12345", "FUTURE"),
        (CREDIT, "CREDIT"),
    }


def test_the_session_is_built_off_the_main_thread_and_in_order(
    serve: Callable[..., Any], terminal: native.Terminal, tmp_path: Path
) -> None:
    serve()
    calls = [call for call in terminal.calls if call.name.startswith("trade_")]
    assert [call.name for call in calls[:5]] == [
        "trade_XtQuantAsyncClient",
        "trade_init",
        "trade_start",
        "trade_connect",
        "trade_subscribeWithSeq",
    ]
    assert calls[0].thread != threading.main_thread().ident
    assert calls[0].args[0] == str(tmp_path).encode("gb18030")


# -- Events


EVERY_PUSH = [
    (
        XtAccountStatus,
        "account_status",
        {"account_type": 3, "account_id": STOCK, "status": 5},
        {"account_type": "CREDIT", "status": "ACCOUNT_STATUS_CORRECTING"},
    ),
    (
        XtAsset,
        "asset",
        {"account_type": 2, "account_id": STOCK, "cash": 1.5, "frozen_cash": 2.5, "market_value": 3.5}
        | {"total_asset": 7.5, "fetch_balance": 1.25, "current_balance": 4.0},
        {"account_type": "STOCK"},
    ),
    (
        XtOrder,
        "order",
        {"account_type": 1, "account_id": STOCK, "stock_code": "IF2512.IF", "order_id": 2**31, "order_sysid": "S1"}
        | {"order_time": 1733120580, "order_type": 0, "order_volume": 2, "price_type": 24, "price": 4000.2}
        | {"traded_volume": 1, "traded_price": 4000.4, "order_status": 55, "status_msg": "部成"}
        | {"strategy_name": "网格", "order_remark": "r", "direction": 49, "offset_flag": 52, "secu_account": "A1"}
        | {"instrument_name": "沪深2512"},
        {"account_type": "FUTURE", "order_type": "FUTURE_OPEN_LONG", "price_type": "MARKET_CONVERT_5"}
        | {"order_status": "ORDER_PART_SUCC", "direction": "DIRECTION_FLAG_SHORT"}
        | {"offset_flag": "OFFSET_FLAG_ClOSEYESTERDAY"},
    ),
    (
        XtTrade,
        "trade",
        {"account_type": 2, "account_id": STOCK, "stock_code": "600519.SH", "order_type": 24, "traded_id": "T1"}
        | {"traded_time": 1733120581, "traded_price": 1700.1, "traded_volume": 100, "traded_amount": 170010.0}
        | {"order_id": 7, "order_sysid": "S7", "strategy_name": "s", "order_remark": "r", "direction": 0}
        | {"offset_flag": 49, "commission": 5.1, "secu_account": "A1", "instrument_name": "贵州茅台"},
        {"account_type": "STOCK", "order_type": "STOCK_SELL", "direction": None, "offset_flag": "OFFSET_FLAG_CLOSE"},
    ),
    (
        XtPosition,
        "position",
        {"account_type": 2, "account_id": STOCK, "stock_code": "600519.SH", "volume": 300, "can_use_volume": 200}
        | {"open_price": 1600.5, "market_value": 510000.0, "frozen_volume": 50, "on_road_volume": 25}
        | {"yesterday_volume": 250, "avg_price": 1650.5, "direction": 48, "last_price": 1700.0, "profit_rate": 0.03}
        | {"secu_account": "A1", "instrument_name": "贵州茅台", "float_profit": 15000.0, "position_profit": 1.0}
        | {"open_date": "20251124"},
        {"account_type": "STOCK", "direction": "DIRECTION_FLAG_LONG"},
    ),
    (
        XtOrderError,
        "order_error",
        {"account_type": 2, "account_id": STOCK, "order_id": 7, "error_id": -61, "error_msg": "可用资金不足"}
        | {"strategy_name": "s", "order_remark": "r", "seq": 12},
        {"account_type": "STOCK"},
    ),
    # The error of a cancel that another strategy requested: xttrader alone would keep it for ever.
    (
        XtCancelError,
        "cancel_error",
        {"account_type": 2, "account_id": STOCK, "order_id": 7, "market": 1, "order_sysid": "S7"}
        | {"error_id": -62, "error_msg": "已成交"},
        {"account_type": "STOCK", "market": "SZ"},
    ),
]


@pytest.mark.parametrize(("record", "event", "fields", "names"), EVERY_PUSH, ids=[row[1] for row in EVERY_PUSH])
def test_a_push_is_published_with_every_field_and_enumeration_name(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    record: type[xtpythonclient.Record],
    event: str,
    fields: dict[str, object],
    names: dict[str, object],
) -> None:
    serve()
    before = time.time_ns()
    trade_side.push(record(**fields))
    sink.until(lambda: sink.of(event))
    ((account, data, received_ns),) = [(a, d, at) for a, e, d, at in sink.published if e == event]
    assert account == STOCK
    assert data == {**fields, **{f"{field}_name": name for field, name in names.items()}}
    assert {name: type(value) for name, value in data.items()} == {
        **{name: type(value) for name, value in fields.items()},
        **{f"{field}_name": type(name) for field, name in names.items()},
    }
    assert list(fields) == list(FIELDS[event])
    assert before <= received_ns <= time.time_ns()


def ask_everything(trader: Any, account: Any) -> dict[str, int]:
    """Make xttrader's asynchronous requests, each with the event that answers it."""
    terms = ("600519.SH", 23, 100, 11, 1700.0, "strategy", "remark")
    algorithm = ("TWAP", "09:30:00", "15:00:00", {})
    return {
        "async_response": trader.order_stock_async(account, *terms),
        "async_cancel_response": trader.cancel_order_stock_async(account, 7),
        "smt_appointment_async_response": trader.smt_appointment_order_async(account, "600519.SH", 7, 100, 0.05),
        "bank_transfer_async_response": trader.bank_transfer_in_async(account, "1", "62", 10.0),
        "ctp_internal_transfer_async_response": trader.ctp_transfer_option_to_future_async("1", "2", 10.0),
        "smart_algo_order_async_response": trader.smart_algo_order_async(account, *terms, *algorithm),
        "operate_smart_task_async_response": trader.cancel_smart_algo_task_async(account, 77),
    }


@pytest.mark.parametrize(
    ("accounts", "nameless"), [((f"{CREDIT}:CREDIT",), CREDIT), ((f"{CREDIT}:CREDIT", f"{STOCK}:STOCK"), "*")]
)
def test_every_response_has_its_account_and_the_real_type(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, accounts: tuple[str, ...], nameless: str
) -> None:
    from xtquant import xttype

    trade_side.silent = {"orderStockWithSeq"}
    serve(*accounts)
    trader = find_trader(trade_side)
    seqs = ask_everything(trader, xttype.StockAccount(CREDIT, "CREDIT"))
    trade_side.release()
    sink.until(lambda: len(sink.of(*seqs)) == len(seqs))
    came = {event: (account, data) for account, event, data, _ in sink.published if event in seqs}
    credit = {"account_type": 3, "account_id": CREDIT, "account_type_name": "CREDIT"}
    about = {"strategy_name": "strategy", "order_remark": "remark", "error_msg": ""}
    expected = {
        "async_response": (CREDIT, {**credit, **about, "order_id": 1001}),
        "async_cancel_response": (
            CREDIT,
            {**credit, "cancel_result": 0, "order_id": 7, "order_sysid": "", "error_msg": ""},
        ),
        "smt_appointment_async_response": (nameless, {"success": True, "msg": "ok", "apply_id": "A1"}),
        "bank_transfer_async_response": (nameless, {"success": True, "msg": "ok"}),
        "ctp_internal_transfer_async_response": (nameless, {"success": True, "msg": "ok"}),
        "smart_algo_order_async_response": (CREDIT, {**credit, **about, "task_id": 77}),
        "operate_smart_task_async_response": (
            nameless,
            {"success": True, "task_id": 77, "operate_reason": "asked", "error_msg": ""},
        ),
    }
    assert came == {event: (account, {**data, "seq": seqs[event]}) for event, (account, data) in expected.items()}
    for event, (_, data) in came.items():
        assert [name for name in data if not name.endswith("_type_name") and name in FIELDS[event]] == list(
            FIELDS[event]
        )


def find_trader(trade_side: TradeSide) -> Any:
    """Return the XtQuantTrader of the live session."""
    from xtquant import xttrader

    (client,) = trade_side.connected()
    for candidate in gc.get_objects():
        # Compare types: isinstance would read the class of a weak proxy, whose object may no longer exist.
        if issubclass(type(candidate), xttrader.XtQuantTrader) and candidate.async_client is client:
            return candidate
    raise AssertionError("there is no session")


def test_a_response_of_a_two_type_account_keeps_its_xttype_value(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    from xtquant import xttype

    serve(f"{STOCK}:STOCK", f"{STOCK}:HUGANGTONG")
    assert sorted(data["account_type_name"] for data in sink.of("connected")) == ["HUGANGTONG", "STOCK"]
    trader = find_trader(trade_side)
    trader.cancel_order_stock_async(xttype.StockAccount(STOCK, "HUGANGTONG"), 7)
    trader.bank_transfer_in_async(xttype.StockAccount(STOCK), "1", "62", 10.0)
    sink.until(lambda: sink.of("async_cancel_response") and sink.of("bank_transfer_async_response"))
    assert sink.of("async_cancel_response")[0]["account_type"] == 2
    # Both types have the same number, so it counts as the only account.
    assert {account for account, _, _, _ in sink.published} == {STOCK}


def test_enumeration_names_are_those_of_the_simulator(terminal: native.Terminal) -> None:
    from xtquant import xtconstant

    names = enumerations(xtconstant)
    assert set(NAMES) <= set(names)
    for field, values in NAMES.items():
        assert {value: names[field][value] for value in values} == values
    assert names["order_type"][1] == "FUTURE_CLOSE_LONG_HISTORY"
    assert names["order_type"][27] == "CREDIT_FIN_BUY"
    assert names["order_type"][48] == "STOCK_OPTION_BUY_OPEN"
    assert 70 not in names["price_type"]
    assert names["status"][-1] == "ACCOUNT_STATUS_INVALID"


def test_nan_and_numbers_are_published_unchanged(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    trade_side.push(order(order_id=2**40, price=math.nan, traded_price=math.inf, order_status=99))
    sink.until(lambda: sink.of("order"))
    (data,) = sink.of("order")
    assert math.isnan(data["price"])
    assert data["traded_price"] == math.inf
    assert data["order_id"] == 2**40
    assert data["order_status_name"] is None


def test_an_unknown_field_is_published_too(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A later version of the terminal may add fields: one with both names, and one with only the native name.
    monkeypatch.setitem(xtpythonclient.NATIVE_NAMES, "stock_code1", "m_strStockCode1")
    monkeypatch.setitem(xtpythonclient.NATIVE_NAMES, "order_sys", "m_strOrderSys")
    newer = xtpythonclient._record("XtOrder", "account_id order_id order_sysid stock_code1")
    monkeypatch.setattr(newer, "m_dNewFee", xtpythonclient._Field("m_dNewFee"), raising=False)
    monkeypatch.setattr(newer, "cancel", lambda self: None, raising=False)
    monkeypatch.setitem(xtpythonclient.PUSHED, newer, "StockOrderCallback")
    record = newer(account_id=STOCK, order_id=1, order_sysid="S1", stock_code1="600519.SH")
    record.m_dNewFee = 0.5
    serve()
    trade_side.push(record)
    sink.until(lambda: sink.of("order"))
    assert sink.of("order") == [
        {
            "account_id": STOCK,
            "order_id": 1,
            "order_sysid": "S1",
            "stock_code1": "600519.SH",
            "m_dNewFee": 0.5,
        }
    ]


def test_a_field_with_only_a_native_name_keeps_that_name() -> None:
    source = types.SimpleNamespace(order_id=1, m_nOrderID=1, m_nSeq=2, _hidden=3)
    assert discover(("seq", "order_id"), source) == ("seq", "order_id", "m_nSeq")


def test_an_unreadable_field_is_left_out_alone(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = serve()
    records = order(1), order(2), fill()
    broken = property(lambda _: 1 / 0)
    monkeypatch.setattr(XtOrder, "status_msg", broken)
    monkeypatch.setattr(XtOrder, "m_strStatusMsg", broken)
    trade_side.push(*records)
    sink.until(lambda: sink.of("trade"))
    assert [(data["order_id"], data["status_msg"]) for data in sink.of("order")] == [(1, None), (2, None)]
    assert source.failed == 2
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "field status_msg of order events cannot be read: ZeroDivisionError"
    ]


def test_a_failing_callback_is_logged_counted_and_blocks_nothing(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    source = serve()
    failures = iter([RuntimeError("no room")])

    def fail_once() -> None:
        for failure in failures:
            raise failure

    sink.on_publish = fail_once
    trade_side.push(fill("T1"), fill("T2"))
    sink.until(lambda: sink.of("trade"))
    assert [data["traded_id"] for data in sink.of("trade")] == ["T2"]
    assert source.failed == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.message == "trade failed"
    assert record.exc_info is not None
    assert "no room" in str(record.exc_info[1])


def test_a_failure_in_xttrader_before_the_callback_is_counted(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    from xtquant import xttype

    source = serve()
    trade_side.answers["smartOrderStockWithSeq"] = lambda *_: "not JSON"
    ask_everything(find_trader(trade_side), xttype.StockAccount(STOCK))
    trade_side.push(fill())
    sink.until(lambda: sink.of("trade"))
    assert source.failed == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert "JSONDecodeError" in str(record.exc_info[0])


def test_callbacks_come_from_native_threads_and_stay_in_order(
    serve: Callable[..., Any], terminal: native.Terminal, trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    for number in range(300):
        trade_side.push(order(number), fill(f"T{number}", number))
    sink.until(lambda: len(sink.of("trade")) == 300)
    assert [event for _, event, _, _ in sink.published][1:] == ["order", "trade"] * 300
    assert [data["order_id"] for data in sink.of("order", "trade")] == [n for n in range(300) for _ in range(2)]


def test_account_numbers_and_fills_are_not_in_the_log(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trade_side.refused = {CREDIT}
    source = serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT", wait=False)
    sink.until(lambda: len(trade_side.called("subscribeWithSeq")) > 3)
    trade_side.push(order(), fill(), XtCancelError(account_id=STOCK))
    sink.until(lambda: sink.of("cancel_error"))
    trade_side.refused = set()
    trade_side.drop()
    sink.until(lambda: len(sink.of("connected")) >= 3)
    settle()
    source.close()
    assert STOCK not in caplog.text
    assert CREDIT not in caplog.text
    assert "account ******0365 (STOCK)" in caplog.text
    for secret in ("600519", "1700", "T1"):
        assert secret not in caplog.text


# -- Sessions


def test_connected_is_published_once_the_account_is_subscribed(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    trade_side.refused = {CREDIT}
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT", wait=False)
    sink.until(
        lambda: len([args for args in trade_side.called("subscribeWithSeq") if args[0].m_strAccountID == CREDIT]) > 3
    )
    assert [account for account, event, _, _ in sink.published if event == "connected"] == [STOCK]
    trade_side.push(fill(), fill(account=CREDIT))
    sink.until(lambda: sink.of("trade"))
    trade_side.refused = set()
    sink.until(lambda: len(sink.of("connected")) == 2)
    # The session was the same throughout, and the refused account was logged once.
    assert len(trade_side.clients) == 1
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "no trade events from account ******0001 (CREDIT): subscribe returned -1; trying again"
    ]
    sink.until(lambda: len(sink.of("trade")) == 2)
    assert [data.get("recovered") for data in sink.of("trade")] == [None, True]


def test_an_absent_terminal_is_retried_and_logged_once(
    serve: Callable[..., Any],
    terminal: native.Terminal,
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    terminal.is_open = False
    serve(wait=False)
    sink.until(lambda: len(trade_side.called("connect")) > 3)
    terminal.open()
    sink.until(lambda: sink.of("connected"))
    sessions = [args[0] for args in trade_side.called("connect")]
    assert len(set(sessions)) == len(sessions)
    assert all(0 < session < 2**31 for session in sessions)  # type: ignore[operator]
    sink.until(lambda: len(trade_side.called("stop")) == len(sessions) - 1)
    settle()
    assert [record.message for record in caplog.records if record.name.startswith("feeder.xt.trading")] == [
        "no trade events from the terminal: connect returned -1; trying again",
        "trade events come from account ******0365 (STOCK)",
    ]


def test_a_missing_folder_is_reported(
    trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    trade_side.accepts_sessions = False
    config = Config(xt_userdata=str(tmp_path / "gone"), xt_accounts=(f"{STOCK}:STOCK",))
    source = session.XtTrade(config)
    source.start(sink)
    try:
        sink.until(lambda: len(trade_side.called("connect")) > 1)
    finally:
        source.close()
    assert "connect returned -1, and xt_userdata is not a folder" in caplog.text


def test_a_failure_to_build_a_session_is_tried_again(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def fail_twice(self: Any) -> None:
        made.append(self)
        if len(made) < 3:
            raise RuntimeError("shared memory")

    monkeypatch.setattr(xtpythonclient.XtQuantAsyncClient, "init", fail_twice)
    serve()
    assert len(made) == 3


def test_an_account_refused_for_too_long_gets_a_new_session(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.05)
    trade_side.refused = {STOCK}
    serve(wait=False)
    sink.until(lambda: len(trade_side.clients) > 2)
    trade_side.refused = set()
    sink.until(lambda: sink.of("connected"))
    assert len(trade_side.connected()) == 1
    # No loss is published, because the account was never connected.
    assert sink.of("disconnected") == []


def test_a_lost_session_is_replaced_by_one_with_a_new_number(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT")
    first = trade_side.connected()[0]
    trade_side.drop()
    sink.until(lambda: len(sink.of("connected")) == 4)
    (second,) = trade_side.connected()
    assert second is not first
    assert second.session != first.session
    assert not first.started
    assert sorted(second.accounts) == [STOCK, CREDIT]
    assert [event for event in sink.types() if event.endswith("connected")] == [
        "connected",
        "connected",
        "disconnected",
        "disconnected",
        "connected",
        "connected",
    ]
    assert {account for account, event, _, _ in sink.published if event == "disconnected"} == {STOCK, CREDIT}
    trade_side.push(fill())
    sink.until(lambda: sink.of("trade"))


def test_a_terminal_that_was_closed_for_a_while_is_reconnected(
    serve: Callable[..., Any], terminal: native.Terminal, trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    terminal.drop()
    sink.until(lambda: len(trade_side.called("connect")) > 3)
    assert sink.types().count("disconnected") == 1
    terminal.open()
    sink.until(lambda: sink.types().count("connected") == 2)


def test_a_subscription_answered_after_the_loss_is_ignored(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.silent = {STOCK}
    serve(wait=False)
    sink.until(lambda: trade_side.withheld)
    trade_side.accepts_sessions = False
    with trade_side.lock:
        trade_side.drop()
        trade_side.release()
    sink.until(lambda: len(trade_side.called("connect")) > 1)
    assert sink.types() == []
    trade_side.accepts_sessions = True
    sink.until(lambda: sink.types() == ["connected"])


def test_each_lost_session_is_logged_once(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    serve()
    for number in (2, 3):
        trade_side.accepts_sessions = False
        trade_side.drop()
        tried = len(trade_side.called("connect"))
        sink.until(lambda tried=tried: len(trade_side.called("connect")) > tried + 1)
        trade_side.accepts_sessions = True
        sink.until(lambda number=number: sink.types().count("connected") == number)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["no trade events from the terminal: disconnected; trying again"] * 2


def test_a_request_unanswered_at_the_end_has_no_event(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    from xtquant import xttype

    source = serve()
    trade_side.silent = {"orderStockWithSeq"}
    find_trader(trade_side).order_stock_async(xttype.StockAccount(STOCK), "600519.SH", 23, 100, 11, 1700.0)
    trade_side.drop()
    sink.until(lambda: sink.types().count("connected") == 2)
    settle()
    assert sink.of("async_response") == []
    assert source.failed == 0


# -- Missed events


def test_the_first_start_publishes_the_day_as_recovered(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.push(order(1, 49), order(1, 56), order(2, 57), fill(), position(), asset())
    serve()
    recovered = [(event, data["recovered"]) for _, event, data, _ in sink.published if event != "connected"]
    assert sorted(recovered) == [("asset", True), ("order", True), ("order", True), ("position", True), ("trade", True)]
    assert sorted(data["order_status"] for data in sink.of("order")) == [56, 57]
    assert sink.types()[0] == "connected"


def test_missed_events_are_published_once_and_marked(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    trade_side.push(order(1, 50), fill("T1"), position(100), asset(1000.0))
    sink.until(lambda: sink.of("asset"))
    trade_side.accepts_sessions = False
    trade_side.drop()
    sink.until(lambda: sink.of("disconnected"))
    trade_side.push(order(1, 56, traded_volume=200), fill("T2"), position(300), asset(1000.0))
    seen = len(sink.published)
    trade_side.accepts_sessions = True
    sink.until(lambda: len(sink.of("connected")) == 2)
    settle()
    missed = [(event, data) for _, event, data, _ in sink.published[seen:] if event != "connected"]
    assert {(event, data["recovered"]) for event, data in missed} == {
        ("order", True),
        ("trade", True),
        ("position", True),
    }
    assert len(missed) == 3
    by_event = dict(missed)
    assert by_event["order"]["order_status_name"] == "ORDER_SUCCEEDED"
    assert by_event["trade"]["traded_id"] == "T2"
    assert by_event["position"]["volume"] == 300
    # They are never published again, however often the session is lost.
    seen = len(sink.published)
    for number in (3, 4):
        trade_side.drop()
        sink.until(lambda number=number: len(sink.of("connected")) == number)
        settle()
    assert set(sink.types()[seen:]) == {"disconnected", "connected"}


@pytest.mark.parametrize("repush", ["newest", "life"])
def test_events_repeated_after_a_reconnect_are_published_once(
    serve: Callable[..., Any], terminal: native.Terminal, trade_side: TradeSide, sink: Recorder, repush: Any
) -> None:
    serve()
    trade_side.repush = repush
    for status in (48, 49, 50, 55, 56):
        trade_side.push(order(1, status, traded_volume=100 * (status == 55) + 200 * (status == 56)))
    trade_side.push(fill("T1"), fill("T2"), order(2, 50))
    sink.until(lambda: len(sink.of("order", "trade")) == 8)
    trade_side.accepts_sessions = False
    trade_side.drop()
    sink.until(lambda: sink.of("disconnected"))
    trade_side.push(order(2, 56, traded_volume=200), fill("T3", 2))
    trade_side.accepts_sessions = True
    for number in (2, 3):
        sink.until(lambda number=number: len(sink.of("connected")) == number)
        settle()
        sink.until(lambda: len(sink.of("order", "trade")) >= 10)
        trade_side.drop()
    sink.until(lambda: len(sink.of("connected")) == 4)
    settle()
    trade_side.push(fill("T4", 2))
    sink.until(lambda: "T4" in [data["traded_id"] for data in sink.of("trade")])
    assert [(data["order_id"], data["order_status"]) for data in sink.of("order")] == [
        *((1, status) for status in (48, 49, 50, 55, 56)),
        (2, 50),
        (2, 56),
    ]
    assert [data["traded_id"] for data in sink.of("trade")] == ["T1", "T2", "T3", "T4"]


def test_a_restarted_feeder_repeats_no_event_of_its_journal(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.push(order(1, 50), fill("T1"), position(100, profit_rate=math.nan), asset())
    serve().close()
    trade_side.push(order(1, 56, traded_volume=200), fill("T2"))
    restarted = Recorder(sink.as_past())
    before = time.time_ns() // 1_000_000
    serve(to=restarted)
    assert restarted.asked_since[0] == pytest.approx(before - intervals.PAST_MS, abs=10_000 * SLOWNESS)
    assert sorted(restarted.types()) == ["connected", "order", "trade"]
    assert restarted.of("trade")[0]["traded_id"] == "T2"
    assert restarted.of("order")[0]["order_status"] == 56


def test_the_journal_is_used_by_the_next_feeder(trade_side: TradeSide, sink: Recorder, tmp_path: Path) -> None:
    trade_side.push(order(1, 56), fill("T1"), fill("T2"), position(), asset())
    counts = []
    for more in range(3):
        if more == 2:
            trade_side.push(fill("T3"))
        source = TradesOnly(
            Config(
                xt_userdata=str(tmp_path),
                xt_accounts=(f"{STOCK}:STOCK",),
                data_dir=str(tmp_path),
                **ANY_ADDRESSES,
            )
        )
        publisher = Publisher(source.config, source)
        publisher.start()
        try:
            sink.until(lambda more=more: len(trade_side.called("queryStockAssetWithSeq")) > more)
            settle()
        finally:
            source.close()
            publisher.stop()
        with contextlib.closing(sqlite3.connect(tmp_path / "journal-xtquant.sqlite3")) as database:
            counts.append(database.execute("SELECT count(*) FROM event").fetchone()[0])
    # First run: connected and five events. Second: connected. Third: connected and the new fill.
    assert counts == [6, 7, 9]


class TradesOnly:
    """A source that serves only trade events."""

    name = "xtquant"
    simulated = False
    kinds: frozenset[Kind] = frozenset()
    lossless = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self.trade = session.XtTrade(config)
        self.start = self.trade.start
        self.close = self.trade.close

    def subscribe(self, topic: Topic, parts: object) -> None: ...
    def unsubscribe(self, topic: Topic, parts: object) -> None: ...
    def download(self, topic: Topic, request: object) -> None: ...
    def health(self) -> Health:
        return Health()

    def upstream(self) -> int:
        return 0


def test_an_answer_older_than_a_push_is_not_published(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.push(order(1, 50), position(100), order(2, 50))
    trade_side.silent = {"queryStockOrdersWithSeq", "queryStockPositionsWithSeq"}
    serve(wait=False)
    sink.until(lambda: len(trade_side.withheld) == 2)
    trade_side.push(order(1, 56, traded_volume=200), position(300))
    sink.until(lambda: sink.of("position"))
    trade_side.release()
    sink.until(lambda: len(sink.of("order")) == 2)
    assert [(data["order_id"], data["order_status"], data.get("recovered")) for data in sink.of("order")] == [
        (1, 56, None),
        (2, 50, True),
    ]
    assert [data["volume"] for data in sink.of("position")] == [300]


def test_an_account_that_becomes_ready_is_queried_again(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    # An empty list is a certain answer: without the new status the next query would come minutes later.
    trade_side.answers["queryStockTradesWithSeq"] = lambda *_: []
    trade_side.push(fill())
    serve()
    trade_side.push(XtAccountStatus(account_type=2, account_id=STOCK, status=0))
    sink.until(lambda: len(sink.of("account_status")) == 1)
    settle()
    assert len(trade_side.called("queryStockTradesWithSeq")) == 1
    trade_side.push(XtAccountStatus(account_type=2, account_id=STOCK, status=5))
    del trade_side.answers["queryStockTradesWithSeq"]
    trade_side.push(XtAccountStatus(account_type=2, account_id=STOCK, status=0))
    sink.until(lambda: sink.of("trade"))
    assert sink.of("trade")[0]["recovered"] is True


# -- Invalid answers


def fail(*_: object) -> object:
    raise RuntimeError("shared memory")


NO_ANSWERS: list[Callable[..., object]] = [lambda *_: None, fail, lambda *_: -1, lambda *_: "", lambda *_: [None]]


@pytest.mark.parametrize("no_answer", NO_ANSWERS, ids=["none", "raised", "number", "text", "partly"])
@pytest.mark.parametrize(("event", "call"), [*zip(QUERIES, NATIVE_QUERIES, strict=True)])
def test_an_invalid_answer_is_queried_again_until_it_is_valid(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
    call: str,
    no_answer: Callable[..., object],
) -> None:
    # For an asset xttrader itself treats a number as a list, fails, and calls no callback.
    if (event, no_answer) == ("asset", NO_ANSWERS[2]):
        monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.5)
    trade_side.push(order(), fill(), position(), asset())
    trade_side.answers[call] = no_answer
    serve(wait=False, xt_reconcile=0.0)
    sink.until(lambda: len(sink.of(*QUERIES)) == 3)
    sink.until(lambda: len(trade_side.called(call)) > 2)
    assert sink.of(event) == []
    del trade_side.answers[call]
    sink.until(lambda: sink.of(event))
    assert sink.of(event)[0]["recovered"] is True
    settle()
    # After a valid answer neither this query nor the others are sent again.
    assert len(sink.of(*QUERIES)) == 4
    asked = [len(trade_side.called(each)) for each in NATIVE_QUERIES]
    assert [number for each, number in zip(NATIVE_QUERIES, asked, strict=True) if each != call] == [1, 1, 1]


def test_the_readable_part_of_an_answer_is_published(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.answers["queryStockTradesWithSeq"] = lambda *_: [fill("T1"), None, fill("T2")]
    serve(wait=False)
    sink.until(lambda: len(trade_side.called("queryStockTradesWithSeq")) > 3)
    assert [data["traded_id"] for data in sink.of("trade")] == ["T1", "T2"]


@pytest.mark.parametrize(
    "item", [-1, "", b"", {}, [None], object(), XtAccountStatus(account_id=STOCK)], ids=lambda item: type(item).__name__
)
@pytest.mark.parametrize(("event", "call"), [*zip(QUERIES, NATIVE_QUERIES, strict=True)])
def test_a_list_without_records_is_not_a_valid_answer(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, event: str, call: str, item: object
) -> None:
    trade_side.push(order(), fill(), position(), asset())
    trade_side.answers[call] = lambda *_: [item]
    serve(wait=False, xt_reconcile=0.0)
    sink.until(lambda: len(sink.of(*QUERIES)) == 3)
    sink.until(lambda: len(trade_side.called(call)) > 2)
    assert sink.of(event) == []
    del trade_side.answers[call]
    sink.until(lambda: sink.of(event))


def test_a_missing_asset_is_logged_once_and_an_empty_list_is_not(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.05)
    for call in NATIVE_QUERIES:
        trade_side.answers[call] = lambda *_: None
    serve(wait=False)
    said = "account ******0365 (STOCK): query_stock_asset_async failed; asking again"
    sink.until(lambda: said in caplog.messages)
    seen = len(trade_side.called("queryStockAssetWithSeq"))
    sink.until(lambda: len(trade_side.called("queryStockAssetWithSeq")) > seen + 1)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [said]


def test_calls_that_hang_are_bounded_and_queries_continue(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(intervals, "LEFT_BEHIND", 2)
    trade_side.stuck = {"queryStockTradesWithSeq"}
    trade_side.push(fill())
    serve(wait=False, xt_reconcile=0.02)
    asked = len(trade_side.called("queryStockOrdersWithSeq"))
    sink.until(lambda: len(trade_side.called("queryStockTradesWithSeq")) == 2)
    sink.until(lambda: len(trade_side.called("queryStockOrdersWithSeq")) > asked + 20)
    assert len(trade_side.called("queryStockTradesWithSeq")) == 2
    trade_side.stuck = set()
    trade_side.gate.set()
    sink.until(lambda: sink.of("trade"))
    asked = len(trade_side.called("queryStockTradesWithSeq"))
    sink.until(lambda: len(trade_side.called("queryStockTradesWithSeq")) > asked)


# -- Events that the terminal does not push although the session is up


@pytest.fixture
def fast_reconciliation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "QUIET_SECONDS", 0.0)


@pytest.mark.usefixtures("fast_reconciliation")
def test_an_event_that_was_not_pushed_is_published_and_marked(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.push(position(100), position(200, stock_code="000001.SZ"), told=False)
    serve(xt_reconcile=0.02)
    sink.until(lambda: len(sink.of("position")) == 2)
    trade_side.push(order(1, 56), fill("T1"), position(300), asset(7.0), told=False)
    remove_positions(trade_side, "000001.SZ")
    sink.until(lambda: len(sink.of("order", "trade", "position", "asset")) == 7)
    assert {data["recovered"] for data in sink.of("order", "trade", "position", "asset")} == {True}
    volumes = [(data["stock_code"], data["volume"]) for data in sink.of("position")]
    assert sorted(volumes[2:]) == [("000001.SZ", 0), ("600519.SH", 300)]
    # It is published once, however often it is queried.
    asked = len(trade_side.called("queryStockTradesWithSeq"))
    sink.until(lambda: len(trade_side.called("queryStockTradesWithSeq")) > asked + 5)
    assert len(sink.of("order", "trade", "position", "asset")) == 7
    assert len(trade_side.clients) == 1
    assert sink.of("disconnected") == []


def test_an_account_is_reconciled_only_while_its_orders_are_quiet(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "QUIET_SECONDS", SECONDS)
    trade_side.push(asset(), told=False)
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT", xt_reconcile=0.05)
    trade_side.push(order(account=CREDIT), asset(2.0))
    sink.until(lambda: sink.of("order"))

    def asked(account: str) -> int:
        return len([args for args in trade_side.called("queryStockTradesWithSeq") if args[0].m_strAccountID == account])

    before = asked(CREDIT), asked(STOCK)
    # An asset is pushed with every price, so it does not mean that the orders move.
    sink.until(lambda: asked(STOCK) > before[1] + 5)
    assert asked(CREDIT) <= before[0] + 1


@pytest.mark.usefixtures("fast_reconciliation")
def test_an_event_that_failed_to_publish_is_published_later(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(xt_reconcile=0.02)
    failures = iter([RuntimeError("no room"), RuntimeError("no room")])

    def fail_twice() -> None:
        for failure in failures:
            raise failure

    sink.on_publish = fail_twice
    trade_side.push(fill("T1"))
    sink.until(lambda: sink.of("trade"))
    assert sink.of("trade")[0]["recovered"] is True


def test_an_answer_that_failed_to_publish_is_queried_again(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.push(fill("T1"))
    # The first event says that the account is connected.
    calls = iter([None, RuntimeError("no room")])

    def fail_second() -> None:
        failure = next(calls, None)
        if failure is not None:
            raise failure

    sink.on_publish = fail_second
    serve(wait=False, xt_reconcile=0.0)
    sink.until(lambda: sink.of("trade"))
    assert sink.of("trade")[0]["recovered"] is True


def test_missing_positions_are_kept_while_the_asset_has_value(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    trade_side.push(position(100), asset(market_value=170000.0))
    sink.until(lambda: sink.of("asset"))
    asked = len(trade_side.called("queryStockPositionsWithSeq"))

    def log_in_again() -> None:
        trade_side.answers["queryStockPositionsWithSeq"] = lambda *_: []

    assert lose_and_return(trade_side, sink, log_in_again) == []
    sink.until(lambda: len(trade_side.called("queryStockPositionsWithSeq")) > asked + 3)
    assert [data["volume"] for data in sink.of("position")] == [100]
    trade_side.push(asset(170000.0))
    sink.until(lambda: len(sink.of("position")) == 2)
    assert sink.of("position")[1]["volume"] == 0


# -- Which records count as the same event


@pytest.mark.parametrize("repush", ["nothing", "newest", "life"])
@pytest.mark.parametrize(
    "records",
    [
        pytest.param(
            [order(0, 57, order_sysid="", stock_code=code) for code in ("600519.SH", "000001.SZ")], id="orders-0"
        ),
        pytest.param([order(-1, 57, order_sysid="", status_msg=why) for why in ("资金不足", "价格错误")], id="reasons"),
        pytest.param(
            [order(0, 57, order_sysid="", status_msg=why.encode("gbk")) for why in ("资金不足", "价格错误")], id="gbk"
        ),
        pytest.param(
            [order(0, 57, order_sysid="", status_msg=why) for why in (b"\xff\xb7", b"\xff\xb8")], id="unreadable"
        ),
        pytest.param([order(0, 57, order_sysid="", status_msg=why) for why in (b"\xb7", b"\xb8")], id="cut"),
        pytest.param([fill("T1", order_type=kind) for kind in (23, 24)], id="self-trade"),
        pytest.param([fill("T1", traded_volume=volume) for volume in (100, 200)], id="one-number"),
        pytest.param([fill("", traded_volume=volume) for volume in (100, 200)], id="no-number"),
        pytest.param([order(), order(order_remark="later")], id="a-later-field"),
    ],
)
def test_each_record_that_differs_is_published_once(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, records: list[Any], repush: Any
) -> None:
    events = "order", "trade"
    trade_side.repush = repush
    source = serve()
    trade_side.push(*records)
    sink.until(lambda: len(sink.of(*events)) == len(records))
    for _ in range(2):
        assert lose_and_return(trade_side, sink, lambda: None) == []
    # A restarted feeder does not publish them either.
    source.close()
    restarted = Recorder(sink.as_past())
    serve(to=restarted)
    trade_side.push(XtCancelError(account_id=STOCK))
    restarted.until(lambda: restarted.of("cancel_error"))
    settle()
    assert restarted.of(*events) == []


def test_records_that_share_their_identity_are_all_recovered(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    listed = [fill("T1", traded_volume=100), fill("T1", traded_volume=200), fill(""), fill("")]
    trade_side.answers["queryStockTradesWithSeq"] = lambda *_: listed
    trade_side.answers["queryStockOrdersWithSeq"] = lambda *_: [order(0, 57, status_msg=why) for why in "ab"]
    serve()
    assert [data["traded_volume"] for data in sink.of("trade")] == [100, 200, 100, 100]
    assert [data["status_msg"] for data in sink.of("order")] == ["a", "b"]
    assert lose_and_return(trade_side, sink, lambda: None) == []


def test_an_order_overtaken_by_a_push_is_queried_again(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.push(order(1, 50), told=False)
    trade_side.silent = {"queryStockOrdersWithSeq"}
    serve(wait=False)
    sink.until(lambda: trade_side.withheld)
    trade_side.push(order(1, 56))
    # This push is lost while the older answer is still on its way.
    trade_side.push(order(1, 56, order_remark="later"), told=False)
    sink.until(lambda: sink.of("order"))
    trade_side.release()
    sink.until(lambda: len(sink.of("order")) == 2)
    assert [(data["order_status"], data["order_remark"]) for data in sink.of("order")] == [(56, ""), (56, "later")]


# -- Text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("废单".encode(), "废单"),
        ("废单".encode("gbk"), "废单"),
        ("可用资金不足".encode("gbk")[:-1], "可用资金不"),
        ("可用资金不足".encode()[:-1], "可用资金不"),
        ("废单".encode("gbk") + b"\xff", "废单\ufffd"),
    ],
)
def test_every_text_of_the_terminal_is_decoded(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    written: bytes,
    read: str,
) -> None:
    from xtquant import xttype

    source = serve()
    # xttrader itself reads the text of a response before it calls the callback.
    trade_side.answers["orderStockWithSeq"] = lambda *_: xtpythonclient.OrderStockResp(
        account_id=STOCK, error_msg=written
    )
    trade_side.answers["bankTransferWithSeq"] = lambda *_: xtpythonclient.BankTransferResp(error_msg=written)
    trader = find_trader(trade_side)
    trader.order_stock_async(xttype.StockAccount(STOCK), "600519.SH", 23, 100, 11, 1700.0)
    trader.bank_transfer_in_async(xttype.StockAccount(STOCK), "1", "62", 10.0)
    trade_side.push(order(status_msg=written), XtOrderError(account_id=STOCK, error_msg=written))
    trade_side.push(XtCancelError(account_id=STOCK, error_msg=written))
    sink.until(lambda: sink.of("cancel_error"))
    sink.until(lambda: sink.of("bank_transfer_async_response") and sink.of("async_response"))
    for event, field in (
        ("order", "status_msg"),
        ("order_error", "error_msg"),
        ("cancel_error", "error_msg"),
        ("async_response", "error_msg"),
        ("bank_transfer_async_response", "msg"),
    ):
        assert [data[field] for data in sink.of(event)] == [read], event
    assert source.failed == (3 if "\ufffd" in read else 0)


# -- The state of an account


def test_an_account_is_first_connecting_and_then_up(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    before = time.time_ns() // 1_000_000
    serve()
    assert [(state.account, state.type, state.state, state.reason, state.fault) for (state,) in sink.states] == [
        ("******0365", "STOCK", "connecting", "starting", False),
        ("******0365", "STOCK", "up", None, False),
    ]
    assert before <= sink.states[0][0].since <= sink.states[1][0].since <= time.time_ns() // 1_000_000


def test_a_wrong_folder_is_a_fault_until_a_session_opens(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, tmp_path: Path
) -> None:
    trade_side.accepts_sessions = False
    folder = tmp_path / "gone"
    serve(wait=False, xt_userdata=str(folder))
    sink.until(lambda: sink.states and sink.states[-1][0].state == "down")
    (state,) = sink.states[-1]
    assert (state.reason, state.fault) == ("connect returned -1, and xt_userdata is not a folder", True)
    seen = len(trade_side.clients)
    sink.until(lambda: len(trade_side.clients) > seen + 1)
    assert [each.since for (each,) in sink.states[-1:]] == [state.since]
    folder.mkdir()
    # An attempt that started before the folder was made may still report it.
    sink.until(lambda: sink.states[-1][0].reason == "connect returned -1")
    assert sink.states[-1][0].fault is False
    trade_side.accepts_sessions = True
    sink.until(lambda: sink.states[-1][0].state == "up")
    folder.rmdir()
    trade_side.accepts_sessions = False
    trade_side.drop()
    sink.until(lambda: "not a folder" in str(sink.states[-1][0].reason))
    assert (sink.states[-1][0].state, sink.states[-1][0].fault) == ("down", False)


def test_each_account_has_a_state_of_its_own(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Later the reason names the accounts that are not subscribed.
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.1)
    trade_side.refused = {CREDIT}
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT", wait=False)

    def states() -> list[tuple[str, str | None]]:
        return [(each.state, each.reason) for each in sink.states[-1]] if sink.states else []

    sink.until(lambda: states() == [("up", None), ("refused", "subscribe returned -1")])
    # The state does not change while the account is refused.
    tried, told = len(trade_side.called("subscribeWithSeq")), len(sink.states)
    sink.until(lambda: len(trade_side.called("subscribeWithSeq")) > tried + 5)
    assert len(sink.states) == told
    trade_side.accepts_sessions = False
    trade_side.drop()
    sink.until(lambda: [state for state, _ in states()] == ["down", "down"])
    trade_side.accepts_sessions = True
    trade_side.refused = set()
    sink.until(lambda: states() == [("up", None), ("up", None)])


def test_a_loss_is_reported_while_the_old_session_still_stops(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "STOP_SECONDS", 3 * SECONDS)
    trade_side.stuck = {"stop"}
    serve()
    trade_side.drop()
    sink.until(lambda: (sink.states[-1][0].state, sink.states[-1][0].reason) == ("down", "disconnected"))


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (0, "up", None),
        (6, "up", "ACCOUNT_STATUS_CLOSED"),
        (1, "connecting", "ACCOUNT_STATUS_WAITING_LOGIN"),
        (3, "refused", "ACCOUNT_STATUS_FAIL"),
        (99, "refused", "status 99"),
    ],
)
def test_the_state_of_an_account_follows_its_status(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, status: int, state: str, reason: str | None
) -> None:
    serve()
    trade_side.push(XtAccountStatus(account_type=2, account_id=STOCK, status=5))
    sink.until(lambda: sink.states[-1][0].state == "connecting")
    trade_side.push(XtAccountStatus(account_type=2, account_id=STOCK, status=status))
    sink.until(lambda: (sink.states[-1][0].state, sink.states[-1][0].reason) == (state, reason))


def test_an_account_is_stale_while_a_query_has_no_answer(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(intervals, "PROBE_SECONDS", 30.0)
    serve(xt_reconcile=0.05)
    sink.until(lambda: len(trade_side.called("queryStockTradesWithSeq")) > 1)
    trade_side.silent = {"queryStockTradesWithSeq"}
    sink.until(lambda: sink.states[-1][0].state == "stale")
    assert sink.states[-1][0].reason == "no answer to query_stock_trades_async"
    trade_side.silent = set()
    trade_side.release()
    sink.until(lambda: sink.states[-1][0].state == "up")


def test_no_account_number_is_in_a_reason(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, tmp_path: Path
) -> None:
    source = session.XtTrade(Config(xt_userdata=str(tmp_path), xt_accounts=(f"{STOCK}:STOCK",)))
    source.note_no_start(sink, ImportError(f"no module for {STOCK}"))  # type: ignore[arg-type]
    (state,) = sink.states[-1]
    assert (state.state, state.fault) == ("refused", True)
    assert state.reason == "cannot be started: ImportError: no module for ******0365"


@pytest.mark.parametrize(("account", "shown"), [("1000000365", "******0365"), ("12345", "*2345"), ("1234", "****")])
def test_a_masked_account_number_is_never_complete(account: str, shown: str) -> None:
    assert mask(account) == shown


def test_added_enumeration_names_are_listed_as_added(terminal: native.Terminal) -> None:
    from xtquant import xtconstant

    assert set(NAMED) == set(enumerations(xtconstant))


# -- Calls that never end


@pytest.mark.parametrize("how", ["silent", "stuck"])
@pytest.mark.parametrize("call", NATIVE_QUERIES)
def test_a_query_that_is_never_answered_blocks_nothing_else(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    how: str,
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.05)
    setattr(trade_side, how, {call})
    trade_side.push(order(), fill(), position(), asset())
    source = serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT", wait=False)
    sink.until(lambda: len(sink.of("connected")) == 2)
    sink.until(lambda: len(sink.of("order", "trade", "position", "asset")) == 3)
    trade_side.push(fill("T2"), fill("T3", account=CREDIT))
    sink.until(lambda: {"T2", "T3"} <= {data["traded_id"] for data in sink.of("trade")})
    sink.until(lambda: len(trade_side.called(call)) > 3)
    trade_side.drop()
    sink.until(lambda: len(sink.of("connected")) == 4)
    # One late answer is enough.
    setattr(trade_side, how, set())
    sink.until(lambda: len(sink.of("order", "trade", "position", "asset")) == 6)
    said = [record.message for record in caplog.records if "not answered" in record.message]
    assert said
    assert all(record.count("query_") == 1 for record in said)
    start_close(source)


def test_a_subscription_never_answered_blocks_no_other_account(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.05)
    trade_side.silent = {STOCK}
    trade_side.push(fill(), fill("T2", account=CREDIT))
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT", wait=False)
    sink.until(lambda: sink.of("trade"))
    trade_side.push(fill("T3", account=CREDIT))
    sink.until(lambda: len(sink.of("trade")) == 2)
    sink.until(lambda: "account ******0365 (STOCK): not subscribed yet; trying again" in caplog.text)
    sink.until(lambda: [each.reason for each in sink.states[-1]] == ["not subscribed yet", None])
    assert sink.states[-1][0].state == "connecting"
    assert {account for account, _, _, _ in sink.published} == {CREDIT}
    trade_side.release()
    sink.until(lambda: len(sink.of("connected")) == 2 and len(sink.of("trade")) == 3)
    assert len(trade_side.clients) == 1


def start_close(source: session.XtTrade) -> None:
    """Close without waiting for a call that hangs: the stand-in holds it for three times as long as this waits."""
    closing = threading.Thread(target=source.close, daemon=True)
    closing.start()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert not source._thread.is_alive()


@pytest.mark.parametrize("call", ["init", "start", "connect", "subscribeWithSeq", "stop"])
def test_close_returns_while_a_call_hangs(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, call: str
) -> None:
    trade_side.stuck = {call}
    source = serve(wait=False)
    if call == "stop":
        sink.until(lambda: sink.of("connected"))
    else:
        sink.until(lambda: trade_side.called(call))
    # The end of the process must not wait for these threads either.
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("xtquant-trade"))
    start_close(source)

    def hanging() -> int:
        return [thread.name for thread in threading.enumerate()].count("xtquant-trade-call")

    sink.until(lambda: hanging() == 1)
    trade_side.gate.set()
    settle()


def test_a_connection_that_hangs_is_replaced_by_a_new_session(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "OPEN_SECONDS", 0.05)
    trade_side.stuck = {"connect"}
    serve(wait=False)
    sink.until(lambda: len(trade_side.called("connect")) > 1)
    trade_side.stuck = set()
    sink.until(lambda: sink.of("connected"))
    # The abandoned sessions are stopped when their call returns.
    trade_side.gate.set()
    sink.until(
        lambda: len(trade_side.connected()) == 1 and len(trade_side.called("stop")) == len(trade_side.clients) - 1
    )
    assert sink.types().count("connected") == 1


@pytest.mark.parametrize("call", ["connect", "stop"])
def test_the_number_of_hanging_sessions_is_bounded(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    caplog.set_level(logging.INFO)
    if call == "connect":
        monkeypatch.setattr(intervals, "OPEN_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "STOP_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "LEFT_BEHIND", 3)
    trade_side.stuck = {call}
    serve(wait=False)
    said = "no trade events: calls into xtquant of 3 sessions have not returned"
    for number in range(1, 4 if call == "stop" else 1):
        sink.until(lambda number=number: len(sink.of("connected")) == number)
        trade_side.drop()
    sink.until(lambda: said in caplog.text)
    assert len(trade_side.clients) == 3

    def running() -> Counter[str]:
        return Counter(thread.name for thread in threading.enumerate() if thread.name.startswith("xtquant-trade"))

    # The query threads of the last session end with it.
    sink.until(lambda: running() == {"xtquant-trade": 1, "xtquant-trade-call": 3, "xtquant-trade-push": 3})
    # A connection would succeed now, but none is tried until one of the calls has returned.
    trade_side.stuck = set()
    connected = len(sink.of("connected"))
    was_free: list[bool] = []
    sink.on_publish = lambda: was_free.append(trade_side.gate.is_set())
    trade_side.gate.set()
    sink.until(lambda: len(sink.of("connected")) == connected + 1)
    settle()
    assert was_free
    assert all(was_free)
    assert len(trade_side.clients) == 4
    assert len(trade_side.connected()) == 1
    assert [record.message for record in caplog.records if said in record.message] == [
        f"{said}; waiting for one to return, which may take a restart of the terminal or of the feeder"
    ]


@pytest.mark.parametrize("call", ["connect", "stop"])
def test_a_process_whose_sessions_all_hang_has_to_be_restarted(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    if call == "connect":
        monkeypatch.setattr(intervals, "OPEN_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "NEVER_OPEN_SECONDS", 0.0)
    monkeypatch.setattr(intervals, "STOP_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "LEFT_BEHIND", 2)
    trade_side.stuck = {call}
    source = serve(wait=False, xt_hang=0.2)
    for number in range(1, 3 if call == "stop" else 1):
        sink.until(lambda number=number: len(sink.of("connected")) == number)
        assert source.hung() is None
        trade_side.drop()
    said: list[str] = []
    sink.until(lambda: said.append(source.hung() or "") or said[-1])
    assert said[-1] == "a call into xtquant of each of 2 trade sessions has not returned for 0 s"
    # The reason is cleared when one of the calls returns after all.
    trade_side.stuck = set()
    connected = len(sink.of("connected"))
    trade_side.gate.set()
    sink.until(lambda: len(sink.of("connected")) == connected + 1)
    assert source.hung() is None


@pytest.mark.parametrize(
    ("was_open", "limit", "seconds"), [(True, 60.0, 60), (False, 60.0, 600), (False, 900.0, 900), (True, 0.0, None)]
)
def test_hanging_sessions_that_never_opened_end_the_process_later(
    serve: Callable[..., Any],
    trade_side: TradeSide,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    was_open: bool,
    limit: float,
    seconds: int | None,
) -> None:
    monkeypatch.setattr(intervals, "OPEN_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "STOP_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "LEFT_BEHIND", 1)
    trade_side.stuck = {"stop" if was_open else "connect"}
    source = serve(wait=was_open, xt_hang=limit)
    trade_side.drop()
    sink.until(lambda: sink.states and "have not returned" in (sink.states[-1][0].reason or ""))
    sink.until(lambda: source._hanging._doing)
    # Each check adds at most one second.
    looks = [source._hanging.hung(float(look)) for look in range(1000)]
    assert next((number for number, said in enumerate(looks) if said), None) == seconds


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_trade_thread_is_reported(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: session.XtTrade) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(session.XtTrade, "_may_open", fail)
    source = serve(wait=False)
    source._thread.join(SECONDS)
    assert source.hung() == "the thread that owns the trade sessions has ended"
    source.close()
    assert source.hung() is None


# -- A terminal that does not answer


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", 0.05)


@pytest.mark.usefixtures("short_silence")
@pytest.mark.parametrize("how", ["lost", "silent", "stuck"])
def test_a_loss_without_a_callback_is_noticed(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    serve()
    trade_side.push(order(1, 50))
    sink.until(lambda: sink.of("order"))
    if how == "lost":
        trade_side.tells_disconnect = False
        trade_side.drop()
    else:
        setattr(trade_side, how, {"queryStockOrdersWithSeq"})
    sink.until(lambda: sink.of("disconnected"))
    trade_side.push(order(1, 56, traded_volume=200), fill())
    setattr(trade_side, "silent" if how == "lost" else how, set())
    sink.until(lambda: len(sink.of("connected")) == 2 and len(sink.of("order", "trade")) == 3)
    assert "no trade events from the terminal: no answer and no event within 0.05 s; trying again" in caplog.messages
    assert [data["order_status"] for data in sink.of("order")] == [50, 56]


@pytest.mark.usefixtures("short_silence")
def test_a_session_whose_queries_are_answered_is_kept(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT")
    asked = len(trade_side.called("queryStockOrdersWithSeq"))
    # The next session sends the queries that the closed one left.
    trade_side.push(order(7, 50), order(8, 56), told=False)
    sink.until(lambda: len(trade_side.called("queryStockOrdersWithSeq")) >= asked + 6)
    assert {args[0].m_bCanCancel for args in trade_side.called("queryStockOrdersWithSeq")[asked:]} == {True}
    assert {args[0].m_strAccountID for args in trade_side.called("queryStockOrdersWithSeq")[asked:]} == {STOCK, CREDIT}
    sink.until(lambda: sink.of("order"))
    assert [(data["order_id"], data["recovered"]) for data in sink.of("order")] == [(7, True)]
    assert sink.of("disconnected") == []
    assert len(trade_side.clients) == 1


@pytest.mark.usefixtures("short_silence")
def test_one_silent_account_does_not_end_the_session_of_another(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT")
    trade_side.silent = {CREDIT}
    asked = len(trade_side.called("queryStockOrdersWithSeq"))
    sink.until(lambda: len(trade_side.called("queryStockOrdersWithSeq")) >= asked + 6)
    assert len(trade_side.clients) == 1
    # If both accounts are silent, the terminal itself is lost.
    trade_side.silent = {STOCK, CREDIT}
    sink.until(lambda: len(sink.of("disconnected")) == 2)


@pytest.mark.usefixtures("short_silence")
def test_pushes_keep_the_session_while_a_query_hangs(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "ANSWER_SECONDS", SECONDS)
    # Otherwise it would be queried again and again.
    trade_side.push(asset())
    serve()
    asked = len(trade_side.called("queryStockOrdersWithSeq"))
    trade_side.stuck = {"queryStockOrdersWithSeq"}
    sink.until(lambda: len(trade_side.called("queryStockOrdersWithSeq")) > asked)
    probes = 0

    original = Reconciliation.is_silent

    def is_silent(reconciliation: Reconciliation) -> bool:
        nonlocal probes
        probes += 1
        return original(reconciliation)

    monkeypatch.setattr(Reconciliation, "is_silent", is_silent)
    number = 0

    def push() -> bool:
        nonlocal number
        number += 1
        trade_side.push(fill(f"T{number}"))
        return probes > 3

    sink.until(push)
    hanging = [thread for thread in threading.enumerate() if thread.name == "xtquant-trade-call"]
    assert len(hanging) == 1
    assert len(trade_side.clients) == 1


@pytest.mark.usefixtures("short_silence")
def test_a_query_that_was_never_answered_is_no_sign_of_a_loss(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    trade_side.silent = {"queryStockOrdersWithSeq"}
    serve(wait=False)
    sink.until(lambda: len(trade_side.called("queryStockOrdersWithSeq")) > 3)
    assert len(trade_side.clients) == 1
    assert sink.of("disconnected") == []


# -- Positions that were sold out


def lose_and_return(
    trade_side: TradeSide, sink: Recorder, happening: Callable[[], object]
) -> list[tuple[str, dict[str, Any]]]:
    """Lose the session, call `happening`, and return the events published after the reconnect."""
    sessions = len(sink.of("connected"))
    trade_side.accepts_sessions = False
    trade_side.drop()
    sink.until(lambda: sink.of("disconnected"))
    settle()
    happening()
    seen = len(sink.published)
    trade_side.accepts_sessions = True
    sink.until(lambda: len(sink.of("connected")) > sessions)
    settle()
    return [(event, data) for _, event, data, _ in sink.published[seen:] if event not in ("connected", "disconnected")]


def test_a_position_sold_during_a_loss_is_published_once_as_zero(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    last = {"can_use_volume": 60, "frozen_volume": 40, "market_value": 170000.0, "avg_price": 1650.5, "direction": 48}
    trade_side.push(position(100, **last), position(50, stock_code="000001.SZ"))
    sink.until(lambda: len(sink.of("position")) == 2)
    [(event, data)] = lose_and_return(trade_side, sink, lambda: remove_positions(trade_side, "600519.SH"))
    before = sink.of("position")[0]
    assert event == "position"
    assert data == before | {"volume": 0, "can_use_volume": 0, "frozen_volume": 0, "market_value": 0.0} | {
        "recovered": True
    }
    assert data["avg_price"] == 1650.5
    assert data["direction_name"] == "DIRECTION_FLAG_LONG"
    assert lose_and_return(trade_side, sink, lambda: None) == []
    # After it is bought again, it is published as a position again.
    trade_side.push(position(100))
    sink.until(lambda: len(sink.of("position")) == 4)
    assert [
        data["volume"]
        for _, data in lose_and_return(trade_side, sink, lambda: remove_positions(trade_side, "600519.SH"))
    ] == [0]


def remove_positions(trade_side: TradeSide, *codes: str) -> None:
    """Remove positions from the broker's list."""
    with trade_side.lock:
        for key, record in list(trade_side.newest.items()):
            if type(record) is XtPosition and record.stock_code in codes:
                del trade_side.newest[key]


def test_a_position_pushed_as_zero_is_not_published_again(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    serve()
    trade_side.push(position(100))
    sink.until(lambda: sink.of("position"))
    [(event, data)] = lose_and_return(trade_side, sink, lambda: trade_side.push(position(0)))
    assert (event, data["volume"], data["recovered"]) == ("position", 0, True)
    assert lose_and_return(trade_side, sink, lambda: remove_positions(trade_side, "600519.SH")) == []


def test_a_restarted_feeder_publishes_positions_sold_meanwhile(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    source = serve()
    trade_side.push(position(100))
    sink.until(lambda: sink.of("position"))
    source.close()
    remove_positions(trade_side, "600519.SH")
    restarted = Recorder(sink.as_past())
    serve(to=restarted)
    assert [(data["volume"], data["recovered"]) for data in restarted.of("position")] == [(0, True)]
    assert restarted.of("position")[0]["stock_code"] == "600519.SH"


@pytest.mark.parametrize(
    "why", ["no answer", "no second answer", "unreadable", "listed again", "not ready", "pushed", "lost"]
)
def test_a_position_is_not_called_sold_without_proof(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder, why: str
) -> None:
    source = serve()
    trade_side.push(position(100))
    sink.until(lambda: sink.of("position"))
    answers: list[Callable[[], object]] = []

    def answer(*_: object) -> object:
        return answers.pop(0)() if len(answers) > 1 else answers[0]()

    def push_again() -> list[object]:
        trade_side.push(position(300))
        return []

    def lose() -> list[object]:
        trade_side.drop()
        answers[:] = [lambda: [position(100)]]
        return []

    def not_ready() -> list[object]:
        trade_side.push(XtAccountStatus(account_type=2, account_id=STOCK, status=4))
        return []

    answers += {
        "no answer": [lambda: None],
        "no second answer": [list, lambda: None],
        "unreadable": [lambda: [position(200, stock_code="废单".encode("gbk"))]],
        "listed again": [list, lambda: [position(100)]],
        "not ready": [not_ready, list],
        "pushed": [list, push_again],
        "lost": [list, lose],
    }[why]
    seen = len(trade_side.called("queryStockPositionsWithSeq"))

    def begin() -> None:
        trade_side.answers["queryStockPositionsWithSeq"] = answer

    lose_and_return(trade_side, sink, begin)
    sink.until(lambda: len(trade_side.called("queryStockPositionsWithSeq")) > seen)
    settle()
    sink.until(lambda: len(trade_side.connected()) == 1)
    settle()
    told = {"unreadable": [100, 200], "pushed": [100, 300]}.get(why, [100])
    assert [data["volume"] for data in sink.of("position")] == told
    assert source.failed == 0


def test_a_two_type_account_sold_a_position_only_if_both_lack_it(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    # Here the terminal gives the type STOCK for both.
    trade_side.answers["queryStockPositionsWithSeq"] = lambda request: [
        position(100, stock_code="600519.SH" if request.m_nAccountType == 2 else "00700.HK")
    ]
    serve(f"{STOCK}:STOCK", f"{STOCK}:HUGANGTONG")
    assert sorted(data["stock_code"] for data in sink.of("position")) == ["00700.HK", "600519.SH"]
    assert lose_and_return(trade_side, sink, lambda: None) == []
    trade_side.answers["queryStockPositionsWithSeq"] = lambda request: (
        [position(100)] if request.m_nAccountType == 2 else []
    )
    assert [(data["stock_code"], data["volume"]) for _, data in lose_and_return(trade_side, sink, lambda: None)] == [
        ("00700.HK", 0)
    ]


def test_close_stops_the_session_and_every_thread(
    serve: Callable[..., Any], trade_side: TradeSide, sink: Recorder
) -> None:
    source = serve(f"{STOCK}:STOCK", f"{CREDIT}:CREDIT")
    (client,) = trade_side.connected()
    source.close()
    assert not client.started
    wait_for(lambda: not any(thread.name.startswith("xtquant-trade") for thread in threading.enumerate()))
    # Native code may push later: this raises no exception, and nothing is published.
    seen = len(sink.published)
    done = threading.Event()
    trade_side.deliver(client, "StockTradeCallback", fill())
    trade_side.terminal.dispatch(lambda _: done.set(), {}, bson=False)
    assert done.wait(SECONDS)
    assert len(sink.published) == seen
    assert sink.of("disconnected") == []


def test_a_session_collected_on_the_main_thread_leaks_nothing(serve: Callable[..., Any], trade_side: TradeSide) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        source = serve()
        trader = weakref.ref(find_trader(trade_side))
        source.close()
        settle()
        trade_side.clients.clear()
        # The native thread keeps a reference to its last callback.
        done = threading.Event()
        trade_side.terminal.dispatch(lambda _: done.set(), {}, bson=False)
        assert done.wait(SECONDS)
        # An event loop that is still open warns here, and xttrader's own __del__ would set another one.
        gc.collect()
        assert trader() is None
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
