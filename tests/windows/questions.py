"""Ask xtquant's native modules, or the stand-ins for them, what they answer without a terminal.

`python questions.py [NAME...]` asks the questions of these names, or all, and writes a line of JSON for each:
``{"name": ..., "answer": ..., "seconds": ..., "kept": ...}``. `kept` is the longest time for which the call kept other
threads of Python waiting. A question can end the process: then its line lacks the answer.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# No program listens there.
CLOSED = "127.0.0.1:9"
# Trade clients that were started: one that is destroyed without `stop` ends the process.
KEPT: list[Any] = []
STEP = 0.01
# What native code passes to the callbacks of xttrader.
RECORDS = (
    "XtAsset XtOrder XtTrade XtPosition XtAccountStatus XtAccountInfo XtOrderError XtCancelError OrderStockResp "
    "CancelOrderStockResp SmtAppointmentResp BankTransferResp TransferResp OperateSmartAlgoTaskResp"
).split()


def module(name: str) -> Any:
    sys.modules["requests"] = None  # type: ignore[assignment]
    return importlib.import_module(f"xtquant.{name}")


def encoded(**fields: object) -> bytes:
    return bytes(module("xtbson").BSON.encode(fields))


def client() -> Any:
    """Return a client for quotes, as xtdatacenter.try_create_client makes it."""
    made = module("xtdatacenter").try_create_client()
    made.set_config_addr(CLOSED)
    return made


def bare_client() -> Any:
    return module("datacenter").IPythonApiClient()


def subscription(**fields: object) -> tuple[bytes, bytes, bytes, Callable[..., None]]:
    meta = encoded(stockCode="600000.SH", stocktype="", period="tick", metaid=3000, periodnum=0, **fields)
    return meta, encoded(startTime="", endTime="", count=0), encoded(needCallback=True), print


def shut_down() -> Any:
    ended = client()
    ended.shutdown()
    return ended


def trade_client(session: Any = 7, folder: Any = b"C:\\nothing") -> Any:
    return module("xtpythonclient").XtQuantAsyncClient(folder, "xtquant", session)


def started() -> Any:
    made = trade_client()
    made.init()
    made.start()
    KEPT.append(made)
    return made


def forget_started() -> None:
    started()
    KEPT.clear()


def account() -> Any:
    request = module("xtpythonclient").SubscribeReq()
    request.m_strAccountID = "1"
    request.m_nAccountType = 2
    return request


def answer_of(call: str, request: Any, binding: str) -> Any:
    """Return what a trade call returns, and what it is answered, within two seconds."""
    made, came, ready = started(), [], threading.Event()

    def take(*arguments: Any) -> None:
        came.append(arguments)
        ready.set()

    getattr(made, binding)(take)
    returned = getattr(made, call)(5, request)
    ready.wait(2.0)
    return returned, came


def trader() -> Any:
    folder = tempfile.mkdtemp()
    made = module("xttrader").XtQuantTrader(folder, 11)
    made.register_callback(module("xttrader").XtQuantTraderCallback())
    made.start()
    KEPT.append(made)
    return made


def query(kind: str) -> Any:
    request = getattr(module("xtpythonclient"), kind)()
    request.m_strAccountID = "1"
    return request


def fields(kind: str) -> dict[str, Any]:
    """Return the names of a record's fields and their first values."""
    made = getattr(module("xtpythonclient"), kind)()
    return {name: getattr(made, name) for name in dir(made) if not name.startswith("_")}


QUESTIONS: dict[str, Callable[[], object]] = {
    # Quotes: the client
    "rpc_init": lambda: module("datacenter").rpc_init(tempfile.mkdtemp()),
    "get_local_server_port": lambda: module("datacenter").get_local_server_port(),
    "new is_connected": lambda: bare_client().is_connected(),
    "init": lambda: bare_client().init(),
    "load_config": lambda: bare_client().load_config(
        str(Path(module("xtdata").__file__).with_name("xtdata.ini")), "client_xtdata"
    ),
    "load_config of no file": lambda: bare_client().load_config(b"none", b"client_xtdata"),
    "set_config_addr": lambda: bare_client().set_config_addr(CLOSED),
    "set_config_addr bytes": lambda: bare_client().set_config_addr(CLOSED.encode()),
    "set_config_addr int": lambda: bare_client().set_config_addr(3),
    "get_config_addr": lambda: client().get_config_addr(),
    "registerCommonControlCallback": lambda: client().registerCommonControlCallback("watchxtquantstatus", print),
    "connect": lambda: client().connect()[0] < 0,
    "connect twice": lambda: [client().connect()[0] < 0 for _ in range(2)],
    "is_connected": lambda: client().is_connected(),
    "shutdown": lambda: client().shutdown(),
    "shutdown twice": lambda: (made := client(), made.shutdown(), made.shutdown())[1:],
    "is_connected after shutdown": lambda: shut_down().is_connected(),
    "connect after shutdown": lambda: shut_down().connect()[0] < 0,
    # Quotes: calls without a connection
    "get_data_dir": lambda: client().get_data_dir(),
    "get_app_dir": lambda: client().get_app_dir(),
    "get_peer_addr": lambda: client().get_peer_addr(),
    "get_server_tag": lambda: client().get_server_tag(),
    "commonControl": lambda: client().commonControl("getapiversion", encoded()),
    "commonControl dict": lambda: client().commonControl("getapiversion", {}),
    "get_full_tick": lambda: client().get_full_tick(["600000.SH"]),
    "get_full_tick tuple": lambda: client().get_full_tick(("600000.SH",)),
    "get_full_tick str": lambda: client().get_full_tick("600000.SH"),
    "get_trading_dates_by_market": lambda: client().get_trading_dates_by_market("SH", "", "", -1),
    "get_holidays": lambda: client().get_holidays(),
    "read_local_data": lambda: client().read_local_data("none", "", "", -1),
    "subscribe_quote": lambda: client().subscribe_quote(*subscription()),
    "subscribe_quote without callback": lambda: client().subscribe_quote(*subscription()[:3], None),
    "subscribe_whole_quote": lambda: client().subscribe_whole_quote(["SH"], encoded(needCallback=True), print),
    "subscribe_whole_quote str": lambda: client().subscribe_whole_quote("SH", encoded(needCallback=True), print),
    "unsubscribe_quote": lambda: client().unsubscribe_quote(1),
    "unsubscribe_quote of a refusal": lambda: client().unsubscribe_quote(-1),
    "unsubscribe_quote str": lambda: client().unsubscribe_quote("1"),
    "get_all_subscribe_quote": lambda: client().get_all_subscribe_quote(),
    "subscribeFormula": lambda: client().subscribeFormula(
        "request", encoded(formulaname="MA", stockcode="600000.SH"), print
    ),
    "unsubscribeFormula": lambda: client().unsubscribeFormula("request"),
    "unsubscribeFormula int": lambda: client().unsubscribeFormula(3),
    "supply_history_data": lambda: client().supply_history_data("600000.SH", "1d", "", ""),
    "supply_history_data2": lambda: client().supply_history_data2(["600000.SH"], "1d", "", "", encoded(), print),
    "stop_supply_history_data2": lambda: client().stop_supply_history_data2(),
    # Trading
    **{f"fields of {name}": functools.partial(fields, name) for name in RECORDS},
    "XtQuantAsyncClient": lambda: type(trade_client()).__name__,
    "XtQuantAsyncClient text": lambda: type(trade_client(folder="C:\\nothing")).__name__,
    "XtQuantAsyncClient of 2**31": lambda: type(trade_client(2**31)).__name__,
    "XtQuantAsyncClient of 2**32": lambda: type(trade_client(2**32)).__name__,
    "XtQuantAsyncClient of -1": lambda: type(trade_client(-1)).__name__,
    "XtQuantAsyncClient of text": lambda: type(trade_client("7")).__name__,
    "nextSeq": lambda: (made := trade_client(), made.nextSeq(), made.nextSeq())[1:],
    "trade init": lambda: trade_client().init(),
    "trade start twice": lambda: started().start(),
    "trade client that is not stopped": lambda: forget_started(),
    "trade connect": lambda: started().connect(),
    "trade connect before start": lambda: trade_client().connect(),
    "setTimeout": lambda: trade_client().setTimeout(5),
    "trade stop": lambda: started().stop(),
    "trade stop twice": lambda: (made := started(), made.stop(), made.stop())[2],
    "unknown field": lambda: setattr(account(), "nonsense", 1),
    "field of another type": lambda: setattr(account(), "m_strAccountID", 1),
    "sequence of another type": lambda: started().subscribeWithSeq("5", account()),
    "subscribeWithSeq": lambda: answer_of("subscribeWithSeq", account(), "bindOnSubscribeRespCallback"),
    "unsubscribeWithSeq": lambda: answer_of(
        "unsubscribeWithSeq", query("UnsubscribeReq"), "bindOnUnsubscribeRespCallback"
    ),
    "queryStockOrdersWithSeq": lambda: answer_of(
        "queryStockOrdersWithSeq", query("QueryStockOrdersReq"), "bindOnQueryStockOrdersCallback"
    ),
    "queryStockTradesWithSeq": lambda: answer_of(
        "queryStockTradesWithSeq", query("QueryStockTradesReq"), "bindOnQueryStockTradesCallback"
    ),
    "queryStockPositionsWithSeq": lambda: answer_of(
        "queryStockPositionsWithSeq", query("QueryStockPositionsReq"), "bindOnQueryStockPositionsCallback"
    ),
    "queryStockAssetWithSeq": lambda: answer_of(
        "queryStockAssetWithSeq", query("QueryStockAssetReq"), "bindOnQueryStockAssetCallback"
    ),
    "trader connect": lambda: trader().connect(),
    "trader subscribe": lambda: trader().subscribe(module("xttype").StockAccount("1")),
    "trader query_stock_orders": lambda: trader().query_stock_orders(module("xttype").StockAccount("1")),
    "trader query_stock_asset": lambda: trader().query_stock_asset(module("xttype").StockAccount("1")),
    "trader stop": lambda: trader().stop(),
    # xtdata over all this
    "xtdata connect": lambda: module("xtdata").connect("127.0.0.1", 9),
    "xtdata get_full_tick": lambda: module("xtdata").get_full_tick(["600000.SH"]),
    "xtdata subscribe_quote": lambda: module("xtdata").subscribe_quote("600000.SH", callback=print),
    "xtdata download_history_data2": lambda: module("xtdata").download_history_data2(["600000.SH"], "1d"),
    "xtdata disconnect": lambda: module("xtdata").disconnect(),
    "xtdatacenter listen": lambda: module("xtdatacenter").listen("127.0.0.1", 58609),
    "xtdatacenter shutdown": lambda: module("xtdatacenter").shutdown(),
}


class Watch:
    """The longest time for which another thread of Python did not run."""

    def __init__(self) -> None:
        self.longest = 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        before = time.perf_counter()
        while True:
            time.sleep(STEP)
            now = time.perf_counter()
            self.longest = max(self.longest, now - before - STEP)
            before = now


def shown(value: object) -> object:
    """Return an answer in JSON; bytes as BSON, objects by the name of their class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bson": {key: shown(item) for key, item in module("xtbson").BSON(value).decode().items()}}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {str(key): shown(item) for key, item in value.items()}
    return {"object": type(value).__name__}


def main() -> None:
    """Answer the questions of the command line, or all."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    # What native code prints is no answer.
    os.dup2(2, 1)
    module("xtdata").enable_hello = False
    watch = Watch()
    for name in sys.argv[1:] or QUESTIONS:
        print(json.dumps({"name": name}), file=out, flush=True)
        watch.longest, began = 0.0, time.perf_counter()
        try:
            answer = shown(QUESTIONS[name]())
        except Exception as exc:
            answer = {"raised": type(exc).__name__}
        seconds = time.perf_counter() - began
        time.sleep(2 * STEP)
        line = {"name": name, "answer": answer, "seconds": round(seconds, 2), "kept": round(watch.longest, 2)}
        print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    # Without waiting for native threads.
    os._exit(0)


if __name__ == "__main__":
    main()
