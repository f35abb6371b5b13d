"""The stand-ins have what xtquant's real Python layer asks of its native modules."""

from __future__ import annotations

import ast
import importlib.util
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import datacenter
import native
import pytest
import xtpythonclient

from feeder import xtsdk

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            xtsdk.load()
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
    assert sorted(called - set(dir(datacenter))) == []


def test_the_trade_client_has_everything_that_xttrader_uses(terminal: native.Terminal) -> None:
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
    xtdata = xtsdk.load()
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
    xtdata = xtsdk.load()
    xtdata.connect("127.0.0.1", 58610)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        xtdata.subscribe_whole_quote("SH")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        xtdata.unsubscribe_quote("1")


def test_one_call_while_the_terminal_is_closed_costs_the_client(terminal: native.Terminal) -> None:
    xtdata = xtsdk.load()
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
def test_a_client_left_alone_comes_back_by_itself(terminal: native.Terminal, kept: bool) -> None:
    terminal.keeps_subscriptions = kept
    xtdata = xtsdk.load()
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
    xtdata = xtsdk.load()
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


def test_the_data_service_listens_once_it_has_a_token(terminal: native.Terminal) -> None:
    from xtquant import xtdatacenter

    with pytest.raises(ConnectionError, match="未获取到市场权限"):
        xtdatacenter.init(False)
    xtdatacenter.set_token("token")
    try:
        xtdatacenter.init(False)
        assert xtdatacenter.listen("127.0.0.1", (58609, 58619)) == ("127.0.0.1", 58609)
        assert xtdatacenter.get_local_server_port() == 58609
    finally:
        xtdatacenter.shutdown()
        xtdatacenter.set_token("")
        datacenter.set_token("")
        xtdatacenter.init_complete = False
