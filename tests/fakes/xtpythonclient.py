"""Stand-in for xtquant.xtpythonclient: the client that xttrader.py binds its callbacks to, and the native records.

A test drives the trade side of the terminal, `TradeSide`: push records, refuse an account, leave calls unanswered, drop
the sessions and accept new ones. The names of fields, requests and bindings are those in the cp311 binary. A record is
like one of pybind11: most fields have two names, there is no `__dict__`, types are checked, and text is decoded when it
is read. Text of a native record cannot be set; tests make records here, so it can.
"""

from __future__ import annotations

import _thread
import functools
import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import native

# Each request with its fields and their first values, as the natives of 250807.1.2 have them.
REQUESTS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("requests.json").read_text(encoding="utf-8"))
BINDINGS = (
    "bindOnBankTransferRespCallback bindOnCancelErrorCallback bindOnCancelOrderStockRespCallback "
    "bindOnCtpInternalTransferRespCallback bindOnDisconnectedCallback bindOnExportDataRespCallback "
    "bindOnGetSmartAlgoParamRespCallback bindOnOperateSmartAlgoTaskRespCallback bindOnOrderErrorCallback "
    "bindOnOrderStockRespCallback bindOnQueryAccountInfosCallback bindOnQueryAccountStatusCallback "
    "bindOnQueryBankAmountRespCallback bindOnQueryBankInfoRespCallback bindOnQueryBankTransferStreamRespCallback "
    "bindOnQueryComFundRespCallback bindOnQueryComPositionRespCallback bindOnQueryCreditAssureRespCallback "
    "bindOnQueryCreditDetailRespCallback bindOnQueryCreditSloCodeRespCallback bindOnQueryCreditSubjectsRespCallback "
    "bindOnQueryIPODataCallback bindOnQueryNewPurchaseLimitCallback bindOnQueryPositionStatisticsRespCallback "
    "bindOnQuerySecuAccountRespCallback bindOnQuerySmartAlgoTaskRespCallback bindOnQueryStkCompactsRespCallback "
    "bindOnQueryStockAssetCallback bindOnQueryStockOrdersCallback bindOnQueryStockPositionsCallback "
    "bindOnQueryStockTradesCallback bindOnSmartOrderStockRespCallback bindOnSmtAppointmentRespCallback "
    "bindOnSmtQueryCompactRespCallback bindOnSmtQueryOrderRespCallback bindOnSmtQueryQuoterRespCallback "
    "bindOnStockAssetCallback bindOnStockOrderCallback bindOnStockPositionCallback bindOnStockTradeCallback "
    "bindOnSubscribeRespCallback bindOnSyncTransactionFromExternalRespCallback bindOnTransferRespCallback "
    "bindOnUnsubscribeRespCallback bindOnUpdateAccountStatusCallback"
).split()
CALLS = (
    "bankTransferWithSeq cancelOrderStockWithSeq ctpInternalTransferWithSeq exportDataWithSeq "
    "getSmartAlgoParamWithSeq operateSmartAlgoTaskWithSeq orderStockWithSeq queryAccountInfosWithSeq "
    "queryAccountStatusWithSeq queryBankAmountWithSeq queryBankInfoWithSeq queryBankTransferStreamWithSeq "
    "queryComFundWithSeq queryComPositionWithSeq queryCreditAssureWithSeq queryCreditDetailWithSeq "
    "queryCreditSloCodeWithSeq queryCreditSubjectsWithSeq queryIPODataWithSeq queryNewPurchaseLimitWithSeq "
    "queryPositionStatisticsWithSeq querySecuAccountWithSeq querySmartAlgoTaskWithSeq queryStkCompactsWithSeq "
    "queryStockAssetWithSeq queryStockOrdersWithSeq queryStockPositionsWithSeq queryStockTradesWithSeq "
    "smartOrderStockWithSeq smtAppointmentCancelWithSeq smtAppointmentOrderWithSeq smtCompactRenewalWithSeq "
    "smtCompactReturnWithSeq smtNegotiateOrderWithSeq smtQueryCompactWithSeq smtQueryOrderWithSeq "
    "smtQueryQuoterWithSeq subscribeWithSeq syncTransactionFromExternalWithSeq transferWithSeq unsubscribeWithSeq"
).split()

# The two names of a field; the prefix of the second one is its type. A class may have a field under one of them alone.
NATIVE_NAMES = dict(
    pair.split("=")
    for pair in (
        "account_type=m_nAccountType account_id=m_strAccountID stock_code=m_strStockCode order_id=m_nOrderID "
        "order_sysid=m_strOrderSysID order_time=m_nOrderTime order_type=m_nOrderType order_volume=m_nOrderVolume "
        "price_type=m_nPriceType price=m_dPrice traded_volume=m_nTradedVolume traded_price=m_dTradedPrice "
        "order_status=m_nOrderStatus status_msg=m_strStatusMsg strategy_name=m_strStrategyName "
        "order_remark=m_strOrderRemark direction=m_nDirection offset_flag=m_nOffsetFlag secu_account=m_strSecuAccount "
        "instrument_name=m_strInstrumentName traded_id=m_strTradedID traded_time=m_nTradedTime "
        "traded_amount=m_dTradedAmount commission=m_dCommission cash=m_dCash frozen_cash=m_dFrozenCash "
        "market_value=m_dMarketValue total_asset=m_dTotalAsset fetch_balance=m_dFetchBalance "
        "current_balance=m_dCurrentBalance volume=m_nVolume can_use_volume=m_nCanUseVolume open_price=m_dOpenPrice "
        "frozen_volume=m_nFrozenVolume on_road_volume=m_nOnRoadVolume yesterday_volume=m_nYesterdayVolume "
        "avg_price=m_dAvgPrice last_price=m_dLastPrice profit_rate=m_dProfitRate float_profit=m_dFloatProfit "
        "position_profit=m_dPositionProfit open_date=m_strOpenDate error_id=m_nErrorID error_msg=m_strErrorMsg "
        "seq=m_nSeq market=m_nMarket cancel_result=m_nCancelResult status=m_nStatus success=m_bSuccess msg=m_strMsg "
        "task_id=m_nTaskId reason=m_strReason login_status=m_nStatus broker_id=m_strBrokerID "
        "broker_name=m_strBrokerName broker_type=m_nBrokerType platform_id=m_nPlatformID product_id=m_nProductID "
        "product_code=m_strProductCode product_name=m_strProductName"
    ).split()
)
_TYPES: dict[str, tuple[type, tuple[type, ...]]] = {
    "n": (int, (int,)),
    "d": (float, (int, float)),
    "str": (str, (str, bytes)),
    "b": (bool, (bool,)),
}
# First values that are not those of their type.
_UNKNOWN = dict.fromkeys(("m_nStatus", "m_nSeq", "m_nMarket", "m_nTaskId", "m_nProductID"), -1)


class _Field:
    """A field of a record, under either name."""

    def __init__(self, native_name: str) -> None:
        self.name = native_name
        prefix = re.fullmatch(r"m_([a-z]+)[A-Z]\w*", native_name)
        assert prefix, native_name
        self.type, self.accepted = _TYPES[prefix[1]]

    def __get__(self, record: Record | None, _: type) -> Any:
        if record is None:
            return self
        value = record._values[self.name]
        return value.decode("utf-8") if isinstance(value, bytes) else value

    def __set__(self, record: Record, value: Any) -> None:
        if not isinstance(value, self.accepted):
            raise TypeError(f"incompatible function arguments: expected {self.type.__name__}, got {value!r}")
        record._values[self.name] = value if isinstance(value, bytes) else self.type(value)


class Record:
    """A record that native code passes to a callback."""

    __slots__ = ("_values",)
    _names: tuple[str, ...] = ()

    def __init__(self, **fields: Any) -> None:
        self._values: dict[str, Any] = {}
        for name in self._names:
            descriptor = vars(type(self))[name]
            self._values[descriptor.name] = _UNKNOWN.get(descriptor.name, descriptor.type())
        for name, value in fields.items():
            setattr(self, name, value)


def _record(class_name: str, fields: str = "", alone: str = "") -> type[Record]:
    """Return a class of records; the fields `alone` have this one name."""
    names = tuple(fields.split())
    single = tuple(alone.split())
    members: dict[str, object] = {"__slots__": (), "_names": names + single}
    for name in names:
        members[name] = members[NATIVE_NAMES[name]] = _Field(NATIVE_NAMES[name])
    for name in single:
        members[name] = _Field(NATIVE_NAMES.get(name, name))
    return type(class_name, (Record,), members)


XtAsset = _record(
    "XtAsset",
    "account_type account_id cash frozen_cash market_value total_asset fetch_balance current_balance",
)
XtOrder = _record(
    "XtOrder",
    "account_type account_id stock_code order_id order_sysid order_time order_type order_volume price_type price "
    "traded_volume traded_price order_status status_msg strategy_name order_remark direction offset_flag",
    alone="secu_account instrument_name",
)
XtTrade = _record(
    "XtTrade",
    "account_type account_id stock_code order_type traded_id traded_time traded_price traded_volume traded_amount "
    "order_id order_sysid strategy_name order_remark direction offset_flag commission secu_account instrument_name",
)
XtPosition = _record(
    "XtPosition",
    "account_type account_id stock_code volume can_use_volume open_price market_value frozen_volume on_road_volume "
    "yesterday_volume avg_price direction float_profit",
    alone="last_price profit_rate secu_account instrument_name position_profit open_date",
)
XtAccountStatus = _record("XtAccountStatus", "account_type account_id status")
XtAccountInfo = _record(
    "XtAccountInfo",
    "account_type account_id broker_type broker_id broker_name login_status platform_id product_id product_code "
    "product_name",
)
XtOrderError = _record(
    "XtOrderError", "account_type account_id order_id error_id error_msg strategy_name order_remark seq"
)
XtCancelError = _record("XtCancelError", "account_type account_id order_id market order_sysid error_id error_msg")
OrderStockResp = _record(
    "OrderStockResp", "account_type account_id order_id strategy_name order_remark error_id error_msg"
)
CancelOrderStockResp = _record(
    "CancelOrderStockResp", "account_type account_id cancel_result order_id order_sysid error_id error_msg"
)
SmtAppointmentResp = _record("SmtAppointmentResp", alone="m_bSuccess m_strMsg m_strApplyID")
BankTransferResp = _record("BankTransferResp", alone="success error_msg account_id")
TransferResp = _record("TransferResp", alone="m_bSuccess m_strMsg m_strAccountID")
OperateSmartAlgoTaskResp = _record("OperateSmartAlgoTaskResp", alone="success task_id reason error_msg")

# The binding to which each type of record is pushed.
PUSHED = {
    XtOrder: "StockOrderCallback",
    XtTrade: "StockTradeCallback",
    XtPosition: "StockPositionCallback",
    XtAsset: "StockAssetCallback",
    XtAccountStatus: "UpdateAccountStatusCallback",
    XtOrderError: "OrderErrorCallback",
    XtCancelError: "CancelErrorCallback",
}
# The fields that identify a record: a query answers with the newest record of each identity.
_IDENTITY: dict[type[Record], tuple[str, ...]] = {
    XtOrder: ("account_id", "order_id"),
    XtTrade: ("account_id", "order_id", "traded_id"),
    XtPosition: ("account_id", "stock_code", "direction"),
    XtAsset: ("account_id", "account_type"),
}
_QUERIES: dict[str, type[Record]] = {
    "queryStockOrdersWithSeq": XtOrder,
    "queryStockTradesWithSeq": XtTrade,
    "queryStockPositionsWithSeq": XtPosition,
    "queryStockAssetWithSeq": XtAsset,
}


# ORDER_PART_CANCEL, _CANCELED, _SUCCEEDED, _JUNK: none of them can be cancelled.
_CLOSED = frozenset((53, 54, 56, 57))


class Request:
    """One request; its fields are set by name, and take values of their type alone."""

    def __init__(self) -> None:
        vars(self).update(REQUESTS[type(self).__name__])

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        wanted = type(vars(self)[name])
        if not isinstance(value, {str: (str, bytes), float: (int, float)}.get(wanted, wanted)):
            raise TypeError(f"incompatible function arguments: expected {wanted.__name__}, got {value!r}")
        vars(self)[name] = value.decode() if isinstance(value, bytes) else value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"


for _name in REQUESTS:
    globals()[_name] = type(_name, (Request,), {})


class XtQuantAsyncClient:
    """One trade session: `bound` has the callbacks of xttrader.py, and the trade side answers its requests."""

    def __init__(self, path: bytes, name: str, session: int) -> None:
        self.trade_side = trade_side()
        self.trade_side.enter("XtQuantAsyncClient", path, name, session)
        if not isinstance(path, bytes | str) or not isinstance(session, int) or session < 0:
            raise TypeError(f"incompatible constructor arguments: {path!r}, {session!r}")
        self.session = session
        self.started = False
        self.connected = self.was_connected = False
        # Subscribed accounts and their types.
        self.accounts: dict[str, int] = {}
        self.bound: dict[str, Callable[..., object]] = {}
        self._sequence = itertools.count(1)
        for binding in BINDINGS:
            setattr(self, binding, functools.partial(self.bound.__setitem__, binding.removeprefix("bindOn")))
        for call in CALLS:
            setattr(self, call, functools.partial(self.trade_side.ask, self, call))
        self.trade_side.clients.append(self)

    def init(self) -> None:
        self.trade_side.enter("init")

    def start(self) -> None:
        self.trade_side.enter("start")
        if self.started:
            self.trade_side.terminal.abort("a second start")
        self.started = True

    def stop(self) -> None:
        self.trade_side.enter("stop")
        self.connected = self.started = False

    def connect(self) -> int:
        self.trade_side.enter("connect", self.session)
        with self.trade_side.lock:
            in_use = any(client.connected and client.session == self.session for client in self.trade_side.clients)
            if not self.started or not self.trade_side.is_open or in_use:
                return -1
            self.connected = self.was_connected = True
        return 0

    def setTimeout(self, seconds: int) -> None:
        self.trade_side.enter("setTimeout", seconds)

    def nextSeq(self) -> int:
        return next(self._sequence)


class TradeSide:
    """The trade side of one `native.Terminal`; safe to drive from any thread."""

    def __init__(self, terminal: native.Terminal) -> None:
        self.terminal = terminal
        self.accepts_sessions = True
        # Accounts whose subscription is answered with -1, which means refused.
        self.refused: set[str] = set()
        # Names of native calls, and accounts, that get no answer before `release`.
        self.silent: set[str] = set()
        # Native calls that do not return while the gate is closed.
        self.stuck: set[str] = set()
        self.gate = threading.Event()
        # Whether a lost connection calls the callback.
        self.tells_disconnect = True
        # What is pushed to a client that subscribes an account: nothing; the newest state of each order and every fill;
        # or every state of each order.
        self.repush: Literal["nothing", "newest", "life"] = "nothing"
        # Functions that replace the answers below; their arguments are the sequence number and those of the call.
        self.answers: dict[str, Callable[..., object]] = {}

        self.clients: list[XtQuantAsyncClient] = []
        # The newest record of each order, fill, position and asset; and all records of the day in their order.
        self.newest: dict[tuple[object, ...], Record] = {}
        self.life: list[Record] = []
        self.withheld: list[Callable[[], None]] = []
        # The lock of the terminal: the terminal holds it while it drops this side, and this side while it dispatches.
        self.lock = terminal.lock
        self._orders = itertools.count(1001)
        self._closed = threading.Event()

    @property
    def is_open(self) -> bool:
        return self.accepts_sessions and self.terminal.is_open

    # what a test reads

    def called(self, name: str) -> list[tuple[object, ...]]:
        """Return the arguments of every call of `name`."""
        return self.terminal.called(f"trade_{name}")

    def connected(self) -> list[XtQuantAsyncClient]:
        """Return the live sessions."""
        with self.lock:
            return [client for client in self.clients if client.connected]

    # what a test triggers

    def push(self, *records: Record, told: bool = True) -> None:
        """Record events at the broker; if `told`, push them to each connected client that subscribed the account."""
        with self.lock:
            for record in records:
                if type(record) in _IDENTITY:
                    self.newest[_key(record)] = record
                    self.life.append(record)
                for client in self.connected() if told else ():
                    account: Any = getattr(record, "account_id", "")
                    if account in client.accounts or type(record) is XtAccountStatus:
                        self.deliver(client, PUSHED[type(record)], record)

    def drop(self) -> None:
        """Lose every session."""
        with self.lock:
            for client in self.connected():
                client.connected = False
                client.accounts.clear()
                if self.tells_disconnect:
                    self.deliver(client, "DisconnectedCallback")

    def release(self) -> None:
        """Send the withheld answers, with the records of the time of the query."""
        with self.lock:
            withheld, self.withheld = self.withheld, []
            self.silent.clear()
            for answer in withheld:
                answer()

    def play(self, interval: float) -> None:
        """Invent an order and its fill for each subscribed account every `interval` seconds, until the end."""

        def run() -> None:
            while not self._closed.wait(interval):
                for account, kind in {item for client in self.connected() for item in client.accounts.items()}:
                    number, now = next(self._orders), int(time.time())
                    terms: dict[str, Any] = {"account_id": account, "account_type": kind, "stock_code": "600519.SH"}
                    terms |= {"order_id": number, "order_type": 23, "traded_price": 1700.0, "traded_volume": 100}
                    self.push(
                        XtOrder(**terms, order_status=56, order_volume=100, price=1700.0, order_time=now),
                        XtTrade(**terms, traded_id=f"T{number}", traded_amount=170000.0, traded_time=now),
                    )

        _thread.start_new_thread(run, ())

    def close(self) -> None:
        """Release the calls that hang, and stop inventing events."""
        self._closed.set()
        self.gate.set()

    # native side

    def enter(self, name: str, *args: object) -> None:
        """Record a call, and block it if its name is to hang."""
        self.terminal.enter(f"trade_{name}", *args)
        if name in self.stuck:
            self.gate.wait(30)

    def ask(self, client: XtQuantAsyncClient, call: str, seq: int, *args: Any) -> int:
        """Answer a call, on a native thread; return its number."""
        self.enter(call, *args)
        if not isinstance(seq, int):
            raise TypeError(f"incompatible function arguments: expected int, got {type(seq).__name__}")
        with self.lock:
            if not client.connected and not client.was_connected:
                # Without a first connection each is answered at once, by a failure or with nothing.
                nothing = -1 if call in ("subscribeWithSeq", "unsubscribeWithSeq") else []
                self.deliver(client, _binding(call), seq, nothing)
                return seq
            if not client.connected:
                return seq
            answer = self.answers[call](*args) if call in self.answers else self._answer(client, call, *args)
            deliver = functools.partial(self.deliver, client, _binding(call), seq, answer)
            if self.silent & {call, _account(args)}:
                self.withheld.append(deliver)
            else:
                deliver()
            if call == "subscribeWithSeq" and answer == 0 and self.repush != "nothing":
                again = self.life if self.repush == "life" else list(self.newest.values())
                for record in again:
                    if getattr(record, "account_id", "") == args[0].m_strAccountID:
                        self.deliver(client, PUSHED[type(record)], record)
        return seq

    def deliver(self, client: XtQuantAsyncClient, binding: str, *args: Any) -> None:
        """Call the bound callback, if there is one, on a native thread."""
        callback = client.bound.get(binding)
        if callback is None:
            return
        if args:
            self.terminal.dispatch(functools.partial(callback, *args[:-1]), args[-1], bson=False)
        else:
            self.terminal.dispatch(lambda _: callback(), {}, bson=False)

    def _answer(self, client: XtQuantAsyncClient, call: str, *args: Any) -> object:
        account = _account(args)
        match call:
            case "subscribeWithSeq":
                if account in self.refused:
                    return -1
                client.accounts[account] = args[0].m_nAccountType
                return 0
            case "unsubscribeWithSeq":
                client.accounts.pop(account, None)
                return 0
            case "orderStockWithSeq":
                remark, strategy = args[0].m_strOrderRemark, args[0].m_strStrategyName
                return OrderStockResp(
                    account_id=account, order_id=next(self._orders), order_remark=remark, strategy_name=strategy
                )
            case "cancelOrderStockWithSeq":
                order_id, sysid = getattr(args[0], "m_nOrderID", 0), getattr(args[0], "m_strOrderSysID", "")
                return CancelOrderStockResp(account_id=account, order_id=order_id, order_sysid=sysid)
            case "bankTransferWithSeq" | "ctpInternalTransferWithSeq":
                return BankTransferResp(success=True, error_msg="ok")
            case "transferWithSeq":
                return TransferResp(m_bSuccess=True, m_strMsg="ok")
            case "operateSmartAlgoTaskWithSeq":
                return OperateSmartAlgoTaskResp(success=True, task_id=args[0].m_nTaskId, reason="asked")
            case "smartOrderStockWithSeq":
                order = native.decode(args[0])
                fields = {name: order[name] for name in ("account_id", "strategy_name", "order_remark")}
                return json.dumps({**fields, "task_id": 77, "error_msg": ""})
            case "getSmartAlgoParamWithSeq" | "querySmartAlgoTaskWithSeq":
                return json.dumps({"datas": {}})
            case "exportDataWithSeq" | "syncTransactionFromExternalWithSeq":
                return json.dumps({"msg": "ok"})
            case "queryComFundWithSeq":
                return [None]
            case "queryAccountInfosWithSeq":
                return [XtAccountInfo(account_id=id, account_type=kind) for id, kind in client.accounts.items()]
            case "queryAccountStatusWithSeq":
                return [XtAccountStatus(account_id=id, account_type=kind) for id, kind in client.accounts.items()]
        if call in _QUERIES:
            kind, order_id = _QUERIES[call], getattr(args[0], "m_nOrderID", 0)
            wants_open = getattr(args[0], "m_bCanCancel", False)
            return [
                record
                for record in self.newest.values()
                if type(record) is kind
                and getattr(record, "account_id", "") == account
                and order_id in (0, getattr(record, "order_id", None))
                and not (wants_open and getattr(record, "order_status", None) in _CLOSED)
            ]
        return SmtAppointmentResp(m_bSuccess=True, m_strMsg="ok", m_strApplyID="A1") if _binding(call) == _SMT else []


_SMT = "SmtAppointmentRespCallback"


def trade_side() -> TradeSide:
    """Return the trade side of the terminal that clients made from now on belong to."""
    terminal = native.terminal()
    if terminal.trade_side is None:
        terminal.trade_side = TradeSide(terminal)
    return terminal.trade_side


def _account(args: tuple[Any, ...]) -> str:
    account: str = getattr(args[0], "m_strAccountID", "") if args else ""
    return account


def _binding(call: str) -> str:
    if re.match("smt(?!Query)", call):
        return _SMT
    name = call[0].upper() + call.removesuffix("WithSeq")[1:]
    return next(
        (f"{name}{end}" for end in ("RespCallback", "Callback") if f"bindOn{name}{end}" in BINDINGS), f"{name}?"
    )


def _key(record: Record) -> tuple[object, ...]:
    return (type(record), *(getattr(record, name) for name in _IDENTITY[type(record)]))
