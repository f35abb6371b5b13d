"""Stand-in for xtquant.xtpythonclient: the classes that xttrader.py builds on. No answer comes by itself.

A pybind11 object takes no attribute that it does not have; a request here takes any.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import native

REQUESTS = (
    "BankTransferReq CancelOrderStockReq CtpInternalTransferReq OperateSmartAlgoTaskReq OrderStockReq "
    "QueryAccountInfosReq QueryAccountStatusReq QueryBankAmountReq QueryBankInfoReq QueryBankTransferStreamReq "
    "QueryComFundReq QueryComPositionReq QueryCreditAssureReq QueryCreditDetailReq QueryCreditSloCodeReq "
    "QueryCreditSubjectsReq QueryIPODataReq QueryNewPurchaseLimitReq QueryPositionStatisticsReq QuerySecuAccountReq "
    "QueryStkCompactsReq QueryStockAssetReq QueryStockOrdersReq QueryStockPositionsReq QueryStockTradesReq "
    "SmtAppointmentCancelReq SmtAppointmentOrderReq SmtCompactRenewalReq SmtCompactReturnReq SmtNegotiateOrderReq "
    "SmtQueryCompactReq SmtQueryOrderReq SmtQueryQuoterReq SubscribeReq TransferParam UnsubscribeReq"
).split()
BINDINGS = (
    "bindOnBankTransferRespCallback bindOnCancelErrorCallback bindOnCancelOrderStockRespCallback "
    "bindOnCtpInternalTransferRespCallback bindOnDisconnectedCallback bindOnExportDataRespCallback "
    "bindOnGetSmartAlgoParamRespCallback bindOnOperateSmartAlgoTaskRespCallback bindOnOrderErrorCallback "
    "bindOnOrderStockRespCallback bindOnQueryAccountInfosCallback bindOnQueryAccountStatusCallback "
    "bindOnQueryBankAmountRespCallback bindOnQueryBankInfoRespCallback bindOnQueryBankTransferStreamRespCallback "
    "bindOnQueryComFundRespCallback bindOnQueryCreditAssureRespCallback bindOnQueryCreditDetailRespCallback "
    "bindOnQueryCreditSloCodeRespCallback bindOnQueryCreditSubjectsRespCallback bindOnQueryIPODataCallback "
    "bindOnQueryNewPurchaseLimitCallback bindOnQueryPositionStatisticsRespCallback bindOnQuerySecuAccountRespCallback "
    "bindOnQuerySmartAlgoTaskRespCallback bindOnQueryStkCompactsRespCallback bindOnQueryStockAssetCallback "
    "bindOnQueryStockOrdersCallback bindOnQueryStockPositionsCallback bindOnQueryStockTradesCallback "
    "bindOnSmartOrderStockRespCallback bindOnSmtAppointmentRespCallback bindOnSmtQueryCompactRespCallback "
    "bindOnSmtQueryOrderRespCallback bindOnSmtQueryQuoterRespCallback bindOnStockAssetCallback "
    "bindOnStockOrderCallback bindOnStockPositionCallback bindOnStockTradeCallback bindOnSubscribeRespCallback "
    "bindOnSyncTransactionFromExternalRespCallback bindOnTransferRespCallback bindOnUnsubscribeRespCallback "
    "bindOnUpdateAccountStatusCallback"
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


class Request:
    """One request; every field is set by name."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)})"


for _name in REQUESTS:
    globals()[_name] = type(_name, (Request,), {})


class XtQuantAsyncClient:
    """One trade session: what xttrader.py bound is in `bound`, what it asked is in the terminal's calls."""

    def __init__(self, path: bytes, name: str, session: int) -> None:
        self.terminal = native.terminal()
        self.terminal.enter("XtQuantAsyncClient", path, name, session)
        self.bound: dict[str, Callable[..., object]] = {}
        self._sequence = itertools.count(1)
        for binding in BINDINGS:
            setattr(self, binding, functools.partial(self.bound.__setitem__, binding.removeprefix("bindOn")))
        for call in CALLS:
            setattr(self, call, functools.partial(self.terminal.enter, call))

    def init(self) -> None:
        self.terminal.enter("init")

    def start(self) -> None:
        self.terminal.enter("start")

    def stop(self) -> None:
        self.terminal.enter("stop")

    def connect(self) -> int:
        self.terminal.enter("connect")
        return 0 if self.terminal.is_open else -1

    def setTimeout(self, seconds: int) -> None:
        self.terminal.enter("setTimeout", seconds)

    def nextSeq(self) -> int:
        return next(self._sequence)
