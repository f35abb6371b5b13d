"""The stand-ins have every function and method that xtquant's real Python layer needs of its native modules."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datacenter
import native
import pytest
import xtpythonclient

from feeder.xt import sdk
from tests.support import natives
from tests.support.paths import FAKES, ROOT
from tests.support.waiting import wait_for

_spec = importlib.util.find_spec("xtquant")
assert _spec is not None
assert _spec.origin is not None
LAYER = Path(_spec.origin).parent

# The functions of xtdata.py that the feeder may call, and those that they call.
USED = {
    "connect",
    "reconnect",
    "disconnect",
    "get_client",
    "hello",
    "run",
    "_get_data_file_path",
    "_get_market_data_ex_tuple_period_ori",
    "get_hk_broker_dict",
    "get_full_tick",
    "get_market_data_ex_ori",
    "get_data_dir",
    "get_trading_calendar",
    "download_holiday_data",
    "get_current_connect_sub_info",
    "subscribe_quote2",
    "subscribe_l2thousand",
    "subscribe_l2thousand_queue",
    "subscribe_whole_quote",
    "unsubscribe_quote",
    "subscribe_formula",
    "bind_formula",
    "unsubscribe_formula",
    "download_history_data",
    "_download_history_data",
    "download_history_data2",
}


@pytest.fixture
def terminal() -> Iterator[native.Terminal]:
    with native.installed() as terminal:
        yield terminal


def test_a_client_has_every_method_that_xtdata_calls() -> None:
    functions = {
        node.name: node
        for node in ast.parse((LAYER / "xtdata.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert functions.keys() >= USED
    called = {
        node.attr
        for name in USED
        for node in ast.walk(functions[name])
        if isinstance(node, ast.Attribute)
        and re.fullmatch(r"(cl|client|__client|get_client\(\))", ast.unparse(node.value))
    }
    connecting = re.findall(r"\bcl\.(\w+)", (LAYER / "xtconn.py").read_text(encoding="utf-8-sig"))
    called |= {*connecting, *re.findall(r"\bcl\.(\w+)", (LAYER / "xtdatacenter.py").read_text(encoding="utf-8"))}
    assert {"subscribe_quote", "commonControl", "connect", "load_config"} < called
    assert sorted(called - set(dir(datacenter.IPythonApiClient))) == []


def test_the_module_has_every_function_that_xtdatacenter_calls() -> None:
    called = set(re.findall(r"__dc\.(\w+)", (LAYER / "xtdatacenter.py").read_text(encoding="utf-8")))
    assert {"rpc_init", "listen"} < called
    # The native module of 250807.1.2 lacks this one.
    assert sorted(called - set(dir(datacenter))) == ["shutdown"]


def test_the_trade_client_has_each_attribute_that_xttrader_uses(terminal: native.Terminal) -> None:
    source = (LAYER / "xttrader.py").read_text(encoding="utf-8")
    client = xtpythonclient.XtQuantAsyncClient(b"", "xtquant", 1)
    methods = set(re.findall(r"async_client\.(\w+)", source))
    assert {"connect", "nextSeq", "orderStockWithSeq"} < methods
    assert sorted(methods - set(dir(client))) == []
    classes = set(re.findall(r"_XTQC_\.(\w+)", source))
    assert {"OrderStockReq"} < classes
    assert sorted(classes - set(dir(xtpythonclient))) == []


def test_xttrader_can_be_imported(terminal: native.Terminal) -> None:
    from xtquant import xttrader

    assert xttrader.XtQuantTrader


def test_callbacks_run_on_threads_that_python_did_not_create(terminal: native.Terminal) -> None:
    xtdata = sdk.load()
    xtdata.connect("127.0.0.1", 58610)
    came = threading.Event()
    names: list[str] = []

    def note(payload: object) -> None:
        names.append(threading.current_thread().name)
        came.set()

    assert xtdata.subscribe_quote("600519.SH", "tick", callback=note) == 1
    terminal.push_quote("600519.SH", "tick", {"time": 1})
    assert came.wait(10)
    assert names[0].startswith("Dummy-")


def test_wrong_types_are_rejected_as_pybind11_does(terminal: native.Terminal) -> None:
    xtdata = sdk.load()
    xtdata.connect("127.0.0.1", 58610)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        xtdata.subscribe_whole_quote("SH")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        xtdata.unsubscribe_quote("1")


def test_a_call_to_a_closed_terminal_makes_the_client_unusable(terminal: native.Terminal) -> None:
    xtdata = sdk.load()
    client = xtdata.connect("127.0.0.1", 58610)
    assert xtdata.subscribe_quote("600519.SH", "tick", callback=print) == 1
    terminal.drop()
    calls = len(terminal.calls)
    with pytest.raises(Exception, match="无法连接xtquant服务"):
        xtdata.get_full_tick(["600519.SH"])
    assert [call.name for call in terminal.calls[calls:]] == [
        "shutdown",
        "init",
        "load_config",
        "set_config_addr",
        "connect",
    ]
    terminal.open()
    assert not client.is_connected()
    assert terminal.subscriptions() == []


@pytest.mark.parametrize("kept", [True, False])
def test_a_client_without_calls_reconnects_by_itself(terminal: native.Terminal, kept: bool) -> None:
    terminal.keeps_subscriptions = kept
    xtdata = sdk.load()
    client = xtdata.connect("127.0.0.1", 58610)
    xtdata.subscribe_quote("600519.SH", "tick", callback=print)
    terminal.drop()
    terminal.open()
    assert xtdata.get_client() is client
    assert terminal.subscriptions() == [("quote", "600519.SH", "tick")] * kept
    assert len(xtdata.get_current_connect_sub_info()) == kept


@pytest.mark.parametrize(
    ("download", "message"),
    [("ok", None), ("empty_error", None), ("error", "下载数据失败：600519.SH 无权限"), ("drop", "行情服务连接断开")],
)
def test_a_download_ends_as_the_real_layer_reports_it(
    terminal: native.Terminal, download: native.Download, message: str | None
) -> None:
    terminal.download = download
    xtdata = sdk.load()
    xtdata.connect("127.0.0.1", 58610)
    progress: list[native.Document] = []
    codes = ["600519.SH", "000001.SZ"]
    if message is None:
        result = xtdata.download_history_data2(codes, "1d", callback=progress.append)
        assert list(result) == (codes if download == "ok" else [])
        assert [event["finished"] for event in progress] == ([1, 2] if download == "ok" else [])
    else:
        with pytest.raises(Exception, match=message):
            xtdata.download_history_data2(codes, "1d", callback=progress.append)


def test_stand_ins_answer_as_the_natives_do_without_a_terminal() -> None:
    env = {"PYTHONPATH": os.pathsep.join(map(str, (FAKES, ROOT))), "FAKE_XT_DOWN": "1"}
    expected = natives.recorded()
    # It ends the process. A stand-in stays in the list of its terminal, so it is never destroyed.
    expected.pop("trade client that is not stopped")
    found = natives.ask(list(expected), env)
    assert {name: each["answer"] for name, each in found.items()} == expected


def test_the_data_service_listens_once_it_has_a_token(terminal: native.Terminal) -> None:
    from xtquant import xtdatacenter

    with pytest.raises(ConnectionError, match="未获取到市场权限"):
        xtdatacenter.init(False)
    xtdatacenter.set_token("token")
    try:
        xtdatacenter.init(False)
        assert xtdatacenter.listen("127.0.0.1", (58609, 58619)) == ("127.0.0.1", 58609)
        assert xtdatacenter.get_local_server_port() == 58609
        # The native module lacks the function.
        with pytest.raises(AttributeError):
            xtdatacenter.shutdown()
    finally:
        datacenter._port = 0
        xtdatacenter.set_token("")
        datacenter.set_token("")
        xtdatacenter.init_complete = False


@pytest.fixture
def trade_side(terminal: native.Terminal) -> xtpythonclient.TradeSide:
    return xtpythonclient.trade_side()


class Callback:
    """Record every callback of xttrader."""

    def __init__(self) -> None:
        self.came: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.came.append((name, args))


@pytest.fixture
def trader(trade_side: xtpythonclient.TradeSide) -> Iterator[Any]:
    """A connected XtQuantTrader with account 1 subscribed; built off the main thread."""
    from xtquant import xttrader, xttype

    made: list[Any] = []

    def make() -> None:
        # Its __del__ would set the main thread's event loop.
        trader = type("Trader", (xttrader.XtQuantTrader,), {"__del__": lambda _: None})("folder", 7)
        trader.register_callback(Callback())
        trader.start()
        made.append(trader)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (trader,) = made
    try:
        assert trader.connect() == 0
        assert trader.subscribe(xttype.StockAccount("1")) == 0
        yield trader
    finally:
        trade_side.close()
        trader.stop()
        trader.loop.close()


def test_every_trade_call_is_answered_at_its_bound_callback(trade_side: xtpythonclient.TradeSide, trader: Any) -> None:
    bound = trade_side.connected()[0].bound
    unheard = {call for call in xtpythonclient.CALLS if xtpythonclient._binding(call) not in bound}
    # xttrader never binds this callback, so query_com_position waits for ever.
    assert unheard == {"queryComPositionWithSeq"}
    assert f"bindOn{xtpythonclient._binding('queryComPositionWithSeq')}" in xtpythonclient.BINDINGS


def test_a_native_record_behaves_like_one_of_pybind11(terminal: native.Terminal) -> None:
    from xtquant import xttype

    order = xtpythonclient.XtOrder(order_id=7, price=1, status_msg="废单".encode("gbk"))
    assert not isinstance(order, xttype.XtOrder)
    with pytest.raises(TypeError):
        vars(order)
    assert {"order_id", "m_nOrderID"} <= set(dir(order))
    order.m_nOrderID = 8
    assert (order.order_id, order.price, type(order.price)) == (8, 1.0, float)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        order.order_id = "8"
    with pytest.raises(AttributeError):
        order.unknown = 1
    with pytest.raises(UnicodeDecodeError):
        _ = order.status_msg


@pytest.mark.parametrize("name", ["XtAsset", "XtOrder", "XtTrade", "XtPosition", "XtOrderError", "XtCancelError"])
def test_a_native_record_has_the_fields_of_xttype(terminal: native.Terminal, name: str) -> None:
    from xtquant import xttype

    fields = set(inspect.signature(getattr(xttype, name)).parameters) | {"account_type"}
    assert fields <= set(dir(getattr(xtpythonclient, name)()))


def test_xttrader_keeps_the_error_of_a_cancel_of_another_strategy(
    trade_side: xtpythonclient.TradeSide, trader: Any
) -> None:
    trade_side.push(xtpythonclient.XtCancelError(account_id="1", order_id=7), xtpythonclient.XtTrade(account_id="1"))
    wait_for(lambda: trader.callback.came)
    assert [name for name, _ in trader.callback.came] == ["on_stock_trade"]
    assert list(trader.queuing_cancel_errors_by_order_id) == [7]


def test_pushes_reach_subscribers_and_queries_return_the_newest(
    trade_side: xtpythonclient.TradeSide, trader: Any
) -> None:
    from xtquant import xttype

    trade_side.push(xtpythonclient.XtOrder(account_id="2", order_id=1))
    trade_side.push(xtpythonclient.XtOrder(account_id="1", order_id=1, order_status=50))
    trade_side.push(xtpythonclient.XtOrder(account_id="1", order_id=1, order_status=56))
    wait_for(lambda: len(trader.callback.came) == 2)
    assert [args[0].order_status for _, args in trader.callback.came] == [50, 56]
    account = xttype.StockAccount("1")
    assert [order.order_status for order in trader.query_stock_orders(account)] == [56]
    assert trader.query_stock_order(account, 2) is None
    assert trader.query_stock_asset(account) is None


def test_a_dropped_session_is_reported_once_and_frees_its_number(
    trade_side: xtpythonclient.TradeSide, trader: Any
) -> None:
    second = xtpythonclient.XtQuantAsyncClient(b"folder", "xtquant", 7)
    second.start()
    assert second.connect() == -1
    trade_side.drop()
    wait_for(lambda: trader.callback.came)
    assert trader.callback.came == [("on_disconnected", ())]
    assert second.connect() == 0


def test_closing_the_terminal_drops_its_trade_side(terminal: native.Terminal, trader: Any) -> None:
    terminal.drop()
    wait_for(lambda: trader.callback.came)
    assert trader.connect() == -1
    terminal.open()
    assert trader.connect() == 0


@pytest.mark.parametrize(("repush", "statuses"), [("nothing", []), ("newest", [56]), ("life", [50, 56])])
def test_a_subscription_may_push_the_events_of_the_day_again(
    trade_side: xtpythonclient.TradeSide, trader: Any, repush: Any, statuses: list[int]
) -> None:
    from xtquant import xttype

    trader.unsubscribe(xttype.StockAccount("1"))
    for status in (50, 56):
        trade_side.push(xtpythonclient.XtOrder(account_id="1", order_id=1, order_status=status))
    trade_side.repush = repush
    trader.subscribe(xttype.StockAccount("1"))
    trade_side.push(xtpythonclient.XtAsset(account_id="1"))
    wait_for(lambda: "on_stock_asset" in [name for name, _ in trader.callback.came])
    assert [args[0].order_status for name, args in trader.callback.came if name == "on_stock_order"] == statuses


def test_a_silent_call_is_answered_when_it_is_released(trade_side: xtpythonclient.TradeSide, trader: Any) -> None:
    from xtquant import xttype

    answers: list[Any] = []
    trade_side.silent = {"queryStockTradesWithSeq"}
    trader.query_stock_trades_async(xttype.StockAccount("1"), answers.append)
    trader.query_stock_orders_async(xttype.StockAccount("1"), lambda _: answers.append("orders"))
    wait_for(lambda: answers)
    assert answers == ["orders"]
    trade_side.release()
    wait_for(lambda: len(answers) == 2)
    assert answers[1] == []
