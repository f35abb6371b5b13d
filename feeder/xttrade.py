"""Trade events of the terminal: every callback of xttrader, and after each connection what was missed meanwhile.

The thread `xtquant-trade` owns the sessions: an XtQuantTrader connects once, so each loss takes a new one. Calls into
xtquant wait without a timeout, so each has a daemon thread that can be left behind, those of `LEFT_BEHIND` sessions at
most. Callbacks and answers come on one more thread a session, in their order: they read, hand over to the sink and
return. No order is ever placed here.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from feeder import normalize, xtsdk
from feeder.published import Key, Published
from feeder.source import Sink
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError

logger = logging.getLogger(__name__)

# Between two attempts to connect or to subscribe an account.
RETRY_FIRST = 1.0
RETRY_LAST = 30.0
# How long to wait for a new session, then for an account or a query, before it is said and something else is tried.
OPEN_SECONDS = 30.0
ANSWER_SECONDS = 30.0
# How often to ask whether the terminal still answers: xtquant may not tell that it was lost.
PROBE_SECONDS = 30.0
# Between the answers that have to agree that a position is gone: a terminal that has just logged in lists less.
CONFIRM_SECONDS = 10.0
# Sessions given up in a call that has not returned. Each costs threads and shared memory, and what hangs as often as
# this hangs again.
LEFT_BEHIND = 5
# Of the two seconds that `close` may take: to stop a session, and to wait for the thread.
STOP_SECONDS = 1.5
JOIN_SECONDS = 1.9
# How far back the journal is read at the start: the terminal goes on showing a day's orders over the longest holiday.
PAST_MS = 12 * 24 * 3600 * 1000

# Account of an event that names none while there are several accounts: it must not vanish.
UNKNOWN_ACCOUNT = "*"

# Callbacks of XtQuantTraderCallback (xttrader.py 24-133) and the events that they become. xttrader calls on_connected
# never: `connected` is published when an account is subscribed.
EVENTS = {
    "on_connected": "connected",
    "on_disconnected": "disconnected",
    "on_account_status": "account_status",
    "on_stock_asset": "asset",
    "on_stock_order": "order",
    "on_stock_trade": "trade",
    "on_stock_position": "position",
    "on_order_error": "order_error",
    "on_cancel_error": "cancel_error",
    "on_order_stock_async_response": "async_response",
    "on_cancel_order_stock_async_response": "async_cancel_response",
    "on_smt_appointment_async_response": "smt_appointment_async_response",
    "on_bank_transfer_async_response": "bank_transfer_async_response",
    "on_ctp_internal_transfer_async_response": "ctp_internal_transfer_async_response",
    "on_smart_algo_order_async_response": "smart_algo_order_async_response",
    "on_operate_smart_task_async_response": "operate_smart_task_async_response",
}

# What tells of the day: events, and the query that is answered with them.
QUERIES = {
    "order": "query_stock_orders_async",
    "trade": "query_stock_trades_async",
    "position": "query_stock_positions_async",
    "asset": "query_stock_asset_async",
}

# Fields in their published order (xttype.py, doc/xttrader.md); an object's further fields follow.
FIELDS = {
    event: tuple(fields.split())
    for event, fields in {
        "account_status": "account_type account_id status",
        "asset": "account_type account_id cash frozen_cash market_value total_asset fetch_balance current_balance",
        "order": "account_type account_id stock_code order_id order_sysid order_time order_type order_volume "
        "price_type price traded_volume traded_price order_status status_msg strategy_name order_remark direction "
        "offset_flag secu_account instrument_name",
        "trade": "account_type account_id stock_code order_type traded_id traded_time traded_price traded_volume "
        "traded_amount order_id order_sysid strategy_name order_remark direction offset_flag commission "
        "secu_account instrument_name",
        "position": "account_type account_id stock_code volume can_use_volume open_price market_value frozen_volume "
        "on_road_volume yesterday_volume avg_price direction last_price profit_rate secu_account instrument_name "
        "float_profit position_profit open_date",
        "order_error": "account_type account_id order_id error_id error_msg strategy_name order_remark seq",
        "cancel_error": "account_type account_id order_id market order_sysid error_id error_msg",
        "async_response": "account_type account_id order_id strategy_name order_remark error_msg seq",
        "async_cancel_response": "account_type account_id cancel_result order_id order_sysid seq error_msg",
        "smt_appointment_async_response": "seq success msg apply_id",
        "bank_transfer_async_response": "seq success msg",
        "ctp_internal_transfer_async_response": "seq success msg",
        "smart_algo_order_async_response": "account_id task_id strategy_name order_remark error_msg seq",
        "operate_smart_task_async_response": "seq success task_id operate_reason error_msg",
    }.items()
}

# xttype.py fills these in itself, and writes 2 (STOCK) for every account.
_WITHOUT_TYPE = frozenset(("async_response", "async_cancel_response", "smart_algo_order_async_response"))

# xtconstant.ACCOUNT_TYPE_DICT, which is not there before xtquant is.
ACCOUNT_TYPES = {
    "FUTURE": 1,
    "STOCK": 2,
    "CREDIT": 3,
    "FUTURE_OPTION": 5,
    "STOCK_OPTION": 6,
    "HUGANGTONG": 7,
    "INCOME_SWAP": 8,
    "NEW3BOARD": 10,
    "SHENGANGTONG": 11,
    "OFFSITEBANKING": 13,
    "OUTTER_FUTURE": 1001,
    "IB": 1002,
    "NS_TRUSTBANK": 15001,
    "INTERBANK": 15002,
    "BANK": 15003,
    "OTC": 15005,
}
ACCOUNT_STATUS_OK = 0


class Account(NamedTuple):
    """One account of the setting `xt_accounts`."""

    id: str
    type: str

    def __str__(self) -> str:
        return f"account {mask(self.id)} ({self.type})"


def mask(account: str) -> str:
    """Return an account number as a log may show it: its last four characters."""
    return "*" * (len(account) - 4) + account[-4:]


class _Pushes:
    """In the place of xttrader's executors: one daemon thread that takes pushes and answers in their order.

    A ThreadPoolExecutor puts an exception into a Future that nobody reads, and raises into native code when that
    pushes after the end.
    """

    def __init__(self, note_failure: Callable[[str], None]) -> None:
        self._note_failure = note_failure
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="xtquant-trade-push", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., object], *args: object) -> None:
        self._calls.put(partial(call, *args))

    def shutdown(self, wait: bool = True) -> None:
        self._calls.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                self._note_failure("push of xttrader")


class _Session:
    """One life of an XtQuantTrader. Guarded by the owner's lock."""

    def __init__(self, pushes: _Pushes) -> None:
        self.pushes = pushes
        self.trader: Any = None
        # `start` has returned, which `stop` needs.
        self.started = False
        # It is connected, or `failure` says why not.
        self.opened = False
        self.failure: str | None = None
        self.lost = False
        self.ended = False
        # Calls into xtquant, and what waits for them, that have not returned.
        self.calls = 0
        # Callbacks and answers so far, and who is asking for more.
        self.heard = 0
        self.asking: dict[Account, threading.Thread] = {}
        self.joined: list[Account] = []
        self.answered: set[tuple[Account, str]] = set()
        # The newest answer with an account's positions, if it could be read, and `Published.count` when it was asked.
        self.positions: dict[Account, tuple[int, list[dict[str, object]]]] = {}
        # The newest status by account id and type.
        self.statuses: dict[tuple[object, object], object] = {}

    @property
    def is_over(self) -> bool:
        return self.lost or self.ended


class XtTrade:
    """Trade events of the accounts in `config.xt_accounts`, from the terminal whose folder is `config.xt_userdata`.

    Each event is published under the account that it names, else under the only account, else under ``*``. What was
    missed is published once, with ``"recovered": true``, also that a position is gone; what the broker pushes again is
    not published again. That outlives a restart of the feeder, by its journal.
    """

    def __init__(self, config: Config) -> None:
        """Raise `ConfigError` if an account is malformed, or the folder is not given."""
        self._accounts = tuple(dict.fromkeys(map(_parse_account, config.xt_accounts)))
        if self._accounts and not config.xt_userdata:
            raise ConfigError("xt_userdata", "is empty, and xt_accounts needs the terminal's folder userdata_mini")
        self._userdata = config.xt_userdata
        ids = [account.id for account in self._accounts]
        self._default = ids[0] if len(set(ids)) == 1 else UNKNOWN_ACCOUNT
        # One account may be subscribed twice, as STOCK and as HUGANGTONG; then its type is not known from its number.
        self._types = {id: ACCOUNT_TYPES[type] for id, type in self._accounts if ids.count(id) == 1}
        # Events and fields that could not be read or published.
        self.failed = 0
        self._sink: Sink
        self._xttype: Any
        self._trader_class: Any
        self._callback_class: Any
        self._names: dict[str, dict[int, str]] = {}
        self._thread = threading.Thread(target=self._run, name="xtquant-trade", daemon=True)
        # Guards all of the rest, and tells of its changes. Reentrant.
        self._changed = threading.Condition()
        self._closing = False
        self._published = Published()
        self._fields: dict[tuple[str, type], tuple[str, ...]] = {}
        self._unreadable: set[tuple[str, str]] = set()
        # What is already logged as not working; None is the session.
        self._told: set[Account | None] = set()
        # Sessions that are over, among them those with calls that have not returned.
        self._left: list[_Session] = []

    def start(self, sink: Sink) -> None:
        """Read the journal and begin to connect; raise ImportError where xtquant's native modules are not to be had."""
        if not self._accounts:
            logger.info("no xt_accounts: market data is served, trade events are not")
            return
        self._sink = sink
        # First, because it is how xtquant is imported without its side effects.
        xtsdk.load()
        from xtquant import xtconstant, xttrader, xttype

        self._xttype = xttype
        # Its own __del__ sets the event loop of the thread on which it happens to be collected (xttrader.py 424).
        self._trader_class = type("Trader", (xttrader.XtQuantTrader,), {"__del__": lambda _: None})
        self._callback_class = xttrader.XtQuantTraderCallback
        self._names = _names(xtconstant)
        for time_ms, event in sink.past_trades(time.time_ns() // 1_000_000 - PAST_MS):
            event.data.pop("recovered", None)
            self._published.admit(event.type, event.data, time_ms * 1_000_000)
        self._thread.start()

    def close(self) -> None:
        """Stop within two seconds; a call that hangs in xtquant is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)
            if self._thread.is_alive():
                logger.warning("the trade session does not stop; its threads are left behind")

    # -- The thread that owns the sessions

    def _run(self) -> None:
        delay = RETRY_FIRST
        while self._may_open():
            began = time.monotonic()
            session = _Session(_Pushes(self._note_failure))
            try:
                reason = self._live(session)
            except Exception:
                logger.exception("trade session failed")
                reason = "internal error"
            self._end(session)
            if self._closing:
                return
            self._left.append(session)
            self._tell(None, reason)
            if time.monotonic() - began > RETRY_LAST:
                delay = RETRY_FIRST
            self._wait(lambda: False, delay)
            delay = min(2 * delay, RETRY_LAST)

    def _may_open(self) -> bool:
        """Wait while too many calls hang; return whether there is to be a new session."""
        with self._changed:
            hung = self._count_hung()
        if hung >= LEFT_BEHIND:
            logger.error(
                "no trade events: calls into xtquant of %d sessions have not returned; waiting for one to return, "
                "which may take a restart of the terminal or of the feeder",
                hung,
            )
            self._wait(lambda: self._count_hung() < LEFT_BEHIND)
        return not self._closing

    def _count_hung(self) -> int:
        self._left = [session for session in self._left if session.calls]
        return len(self._left)

    def _live(self, session: _Session) -> str:
        """Connect, subscribe every account, and return why the session is over."""
        self._call(session, self._open)
        self._wait(lambda: session.opened, OPEN_SECONDS)
        if not session.opened:
            return f"no connection within {OPEN_SECONDS:g} s"
        if session.failure is not None:
            return session.failure
        for account in self._accounts:
            self._call(session, self._join, account)
        self._wait(lambda: session.lost or len(session.joined) == len(self._accounts), ANSWER_SECONDS)
        if not session.joined and not session.lost:
            return f"no account could be subscribed within {ANSWER_SECONDS:g} s"
        for account in self._accounts:
            if account not in session.joined:
                self._tell(account, "not subscribed yet")
        return self._watch(session)

    def _watch(self, session: _Session) -> str:
        """Return why the session is over, once it is: xtquant says so, or the terminal falls silent."""
        while True:
            self._wait(lambda: session.lost, PROBE_SECONDS)
            if session.lost or self._closing:
                return "disconnected"
            if self._is_silent(session):
                return f"no answer and no event within {ANSWER_SECONDS:g} s"

    def _is_silent(self, session: _Session) -> bool:
        """Ask, and return whether neither an answer nor anything else comes in time.

        It is for the open orders: they are few, and what was missed of them is published.
        """
        with self._changed:
            heard = session.heard
            # Of an account whose orders were never told silence proves nothing.
            known = [account for account in session.joined if (account, "order") in session.answered]
        for account in known:
            asking = session.asking.get(account)
            if asking is None or not asking.is_alive():
                session.asking[account] = self._call(session, self._ask, account, "order", self._recover, True)
        if known:
            self._wait(lambda: session.lost or session.heard != heard, ANSWER_SECONDS)
        return bool(known) and not session.lost and session.heard == heard

    def _end(self, session: _Session) -> None:
        with self._changed:
            if not self._closing:
                self._lose(session)
            session.ended = True
            self._changed.notify_all()
            # Else `_open` does it, once xtquant has returned.
            is_mine = session.opened
        if is_mine:
            self._call(session, self._stop).join(STOP_SECONDS)

    def _wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or condition(), seconds)

    def _tell(self, account: Account | None, reason: str) -> None:
        with self._changed:
            is_new = account not in self._told
            self._told.add(account)
        level = logging.WARNING if is_new else logging.DEBUG
        logger.log(level, "no trade events from %s: %s; trying again", account or "the terminal", reason)

    # -- Threads of their own, which xtquant may keep

    def _call(self, session: _Session, call: Callable[..., object], *args: object) -> threading.Thread:
        def run() -> None:
            try:
                call(session, *args)
            except Exception:
                self._note_failure(f"call of {call.__name__}")
            finally:
                with self._changed:
                    session.calls -= 1
                    self._changed.notify_all()

        with self._changed:
            session.calls += 1
        thread = threading.Thread(target=run, name="xtquant-trade-call", daemon=True)
        thread.start()
        return thread

    def _open(self, session: _Session) -> None:
        try:
            failure = self._connect(session)
        except Exception as exc:
            logger.debug("cannot open a trade session", exc_info=True)
            failure = f"{type(exc).__name__}: {exc}"
        with self._changed:
            session.opened, session.failure = True, failure
            self._changed.notify_all()
            is_mine = session.ended
        if is_mine:
            self._stop(session)

    def _connect(self, session: _Session) -> str | None:
        # Not on the main thread, whose event loop the constructor would replace (xttrader.py 150).
        session.trader = trader = self._trader_class(self._userdata, _session_id())
        callback = self._make_callback(session)
        trader.register_callback(callback)
        # xttrader delivers an error of a cancel that it did not ask for itself never (xttrader.py 330).
        trader.async_client.bindOnCancelErrorCallback(partial(session.pushes.submit, callback.on_cancel_error))
        trader.start()
        # Before `connect`, that is before there can be a push.
        trader.executor = trader.resp_executor = trader.relaxed_resp_executor = session.pushes
        session.started = True
        result = trader.connect()
        if result == 0:
            return None
        hint = "" if Path(self._userdata).is_dir() else ", and xt_userdata is not a folder"
        return f"connect returned {result!r}{hint}"

    def _join(self, session: _Session, account: Account) -> None:
        """Subscribe an account, however often it takes, and ask for what was missed."""
        stock_account = self._xttype.StockAccount(account.id, account.type)
        delay = RETRY_FIRST
        while (refusal := self._subscribe(session, stock_account)) is not None:
            self._tell(account, refusal)
            self._wait(lambda: session.is_over, delay)
            if session.is_over or self._closing:
                return
            delay = min(2 * delay, RETRY_LAST)
        with self._changed:
            if session.is_over:
                return
            session.joined.append(account)
            self._told -= {account, None}
            self._publish_session("connected", account, time.time_ns())
            self._changed.notify_all()
        logger.info("trade events come from %s", account)
        self._reconcile(session, account)

    def _subscribe(self, session: _Session, stock_account: Any) -> str | None:
        try:
            result = session.trader.subscribe(stock_account)
        except Exception as exc:
            logger.debug("cannot subscribe an account", exc_info=True)
            return f"subscribe raised {type(exc).__name__}"
        return None if result == 0 else f"subscribe returned {result!r}"

    def _reconcile(self, session: _Session, account: Account) -> None:
        """Publish what was missed of the day's orders, fills, positions and asset."""
        if not self._ask_until_answered(session, account, QUERIES):
            return
        _, gone = self._sold_out(session, account)
        if not gone:
            return
        self._wait(lambda: session.is_over, CONFIRM_SECONDS)
        if self._ask_until_answered(session, account, ("position",)):
            with self._changed:
                asked, still_gone = self._sold_out(session, account)
                for key in gone.keys() & still_gone.keys():
                    self._publish("position", still_gone[key], time.time_ns(), asked)

    def _ask_until_answered(self, session: _Session, account: Account, events: Iterable[str]) -> bool:
        """Make queries, again if need be, and each where it holds no other; return whether all were answered."""
        wanted = {(account, event) for event in events}
        patience = ANSWER_SECONDS
        with self._changed:
            session.answered -= wanted
        while (missing := wanted - session.answered) and not session.is_over and not self._closing:
            if patience > ANSWER_SECONDS:
                names = ", ".join(QUERIES[event] for _, event in sorted(missing))
                level = logging.DEBUG if patience > 2 * ANSWER_SECONDS else logging.WARNING
                logger.log(level, "%s: %s not answered; asking again", account, names)
            for _, event in missing:
                self._call(session, self._ask, account, event, self._note_answer)
            self._wait(lambda: session.is_over or session.answered >= wanted, patience)
            patience *= 2
        return not missing

    def _ask(
        self, session: _Session, account: Account, event: str, take: Callable[..., object], *options: object
    ) -> None:
        # Not the blocking ones: only an answer on the thread of the pushes has a place in their order.
        ask = getattr(session.trader, QUERIES[event])
        stock_account = self._xttype.StockAccount(account.id, account.type)
        ask(stock_account, partial(take, session, account, event, self._published.count), *options)

    def _sold_out(self, session: _Session, account: Account) -> tuple[int, dict[Key, dict[str, object]]]:
        """Return the positions that are gone by what was answered, and when that was asked."""
        with self._changed:
            # One number may be two accounts, whose positions might not be told apart by their type.
            sharing = [each for each in self._accounts if each.id == account.id]
            answers = [session.positions[each] for each in sharing if each in session.positions]
            statuses = [status for (id, _), status in session.statuses.items() if id == account.id]
            if session.is_over or len(answers) < len(sharing) or any(each != ACCOUNT_STATUS_OK for each in statuses):
                return 0, {}
            asked = min(asked for asked, _ in answers)
            return asked, self._published.sold_out(account.id, [data for _, told in answers for data in told], asked)

    def _stop(self, session: _Session) -> None:
        trader = session.trader
        if trader is not None:
            # Who waits for an answer waits without a timeout (xttrader.py 419); now there is none to come.
            for seq in list(trader.cbs):
                answer = trader.cbs.pop(seq, None)
                if answer is not None:
                    answer(None)
        try:
            if session.started:
                trader.stop()
        finally:
            session.pushes.shutdown(wait=False)
            if trader is not None:
                # xttrader never runs its event loop, and never closes it.
                trader.loop.close()

    # -- Callbacks, on the session's thread of pushes

    def _make_callback(self, session: _Session) -> Any:
        methods = {name: staticmethod(partial(self._receive, session, event)) for name, event in EVENTS.items()}
        return type("Callback", (self._callback_class,), methods)()

    def _receive(self, session: _Session, event: str, *objects: object) -> None:
        received_ns = time.time_ns()
        self._note_heard(session)
        try:
            if event == "disconnected":
                self._lose(session)
            elif not objects:
                for account in self._accounts:
                    self._publish_session(event, account, received_ns)
            # None is no response but the end of waiting for one.
            elif objects[0] is not None:
                data = self._read(event, objects[0])
                self._publish(event, data, received_ns)
                if event == "account_status":
                    self._note_status(session, data)
        except Exception:
            self._note_failure(event)

    def _recover(self, session: _Session, account: Account, event: str, asked: int, answer: Any) -> None:
        """Publish what is news in the answer to a query."""
        received_ns = time.time_ns()
        self._note_heard(session)
        objects: Iterable[object] = [answer] if event == "asset" else answer or ()
        told = []
        for item in objects:
            if item is not None:
                try:
                    told.append(self._read(event, item))
                    self._publish(event, told[-1], received_ns, asked)
                except Exception:
                    self._note_failure(event)
        if event == "position":
            with self._changed:
                session.positions.pop(account, None)
                # What cannot be read may be what seems to be gone.
                if answer is not None and len(told) == len(answer) and all(data.get("stock_code") for data in told):
                    session.positions[account] = asked, told

    def _note_answer(self, session: _Session, account: Account, event: str, asked: int, answer: Any) -> None:
        self._recover(session, account, event, asked, answer)
        with self._changed:
            session.answered.add((account, event))
            self._changed.notify_all()

    def _note_heard(self, session: _Session) -> None:
        with self._changed:
            session.heard += 1
            self._changed.notify_all()

    def _lose(self, session: _Session) -> None:
        received_ns = time.time_ns()
        with self._changed:
            if not session.lost:
                session.lost = True
                self._changed.notify_all()
                for account in session.joined:
                    self._publish_session("disconnected", account, received_ns)

    def _note_status(self, session: _Session, data: Mapping[str, object]) -> None:
        """Ask again when an account has become ready: before, the terminal may not have had its day."""
        account_id, status = data.get("account_id"), data.get("status")
        key = account_id, data.get("account_type")
        with self._changed:
            was_ready = session.statuses.get(key, ACCOUNT_STATUS_OK) == ACCOUNT_STATUS_OK
            session.statuses[key] = status
            joined = [account for account in session.joined if account.id == account_id]
        if status == ACCOUNT_STATUS_OK and not was_ready:
            for account in joined:
                self._call(session, self._reconcile, account)

    def _publish_session(self, event: str, account: Account, received_ns: int) -> None:
        data: dict[str, object] = {"account_type": ACCOUNT_TYPES[account.type], "account_id": account.id}
        self._publish(event, data, received_ns)

    def _publish(self, event: str, data: dict[str, object], received_ns: int, asked: int | None = None) -> None:
        account = data.get("account_id")
        if not isinstance(account, str) or not account:
            account = self._default
        if event in _WITHOUT_TYPE and account in self._types:
            data["account_type"] = self._types[account]
        for field, names in self._names.items():
            value = data.get(field)
            if isinstance(value, int):
                data[f"{field}_name"] = names.get(value)
        with self._changed:
            if self._published.admit(event, data, received_ns, asked):
                if asked is not None:
                    data["recovered"] = True
                self._sink.publish_trade(account, event, data, received_ns)

    def _read(self, event: str, source: object) -> dict[str, object]:
        """Copy every field at once: a native object lives as long as native code likes."""
        data: dict[str, object] = {}
        kind = (event, type(source))
        names = self._fields.get(kind)
        if names is None:
            names = self._fields[kind] = _discover(FIELDS[event], source)
        for name in names:
            try:
                data[name] = normalize.plain(getattr(source, name))
            except AttributeError:
                continue
            except Exception as exc:
                # Text that is not UTF-8, say. The other fields are worth having.
                data[name] = None
                with self._changed:
                    self.failed += 1
                    is_new = (event, name) not in self._unreadable
                    self._unreadable.add((event, name))
                if is_new:
                    logger.error("field %s of %s events cannot be read: %s", name, event, type(exc).__name__)
        return data

    def _note_failure(self, what: str) -> None:
        with self._changed:
            self.failed += 1
        logger.exception("%s failed", what)


def _parse_account(text: str) -> Account:
    id, colon, type = text.rpartition(":")
    account = Account(id.strip(), type.strip().upper())
    if not account.id or account.type not in ACCOUNT_TYPES:
        # An account number may stand on either side.
        shown = f"{mask(id)}{colon}{type if type.isalpha() and colon else mask(type)}"
        raise ConfigError(
            "xt_accounts", f"expected account:TYPE, TYPE one of {', '.join(ACCOUNT_TYPES)}; got {shown!r}"
        )
    return account


def _session_id() -> int:
    # A C int, of which two alike would share one queue: milliseconds tell the lives of a process apart, and the
    # multiplier (of Knuth's hash) takes processes far from each other whose numbers are close.
    return (time.time_ns() // 1_000_000 + os.getpid() * 2_654_435_761) % (2**31 - 1) + 1


def _discover(fields: tuple[str, ...], source: object) -> tuple[str, ...]:
    """Return `fields` and the further ones of `source`. Native objects have each twice: order_id and m_nOrderID."""
    names = dict.fromkeys(fields)
    attributes = dir(source)
    known = {_squash(name) for name in fields if name in attributes}
    # The names without m_ first, so that they are the ones kept.
    for name in sorted(attributes, key=lambda name: (name.startswith("m_"), name)):
        if name not in names and not name.startswith("_") and not callable(getattr(type(source), name, None)):
            squashed = _squash(name)
            if squashed not in known:
                known.add(squashed)
                names[name] = None
    return tuple(names)


def _squash(name: str) -> str:
    return re.sub(r"^m_[a-z]+(?=[A-Z])", "", name).replace("_", "").lower()


def _names(xtconstant: Any) -> dict[str, dict[int, str]]:
    """Return the names of the enumerations' values, by field; of several the first (STOCK_BUY, not CREDIT_BUY)."""
    constants = {name: value for name, value in vars(xtconstant).items() if type(value) is int}

    def named(pattern: str) -> dict[int, str]:
        names: dict[int, str] = {}
        for name, value in constants.items():
            if re.fullmatch(pattern, name):
                names.setdefault(value, name)
        return names

    return {
        "account_type": dict(xtconstant.ACCOUNT_TYPE_DICT),
        "order_type": named(r"(?!.*_ACCOUNT$)(FUTURE|STOCK|OPTION|COMPOSE|ETF|CREDIT)_\w+"),
        "price_type": named(r"LATEST_PRICE|FIX_PRICE|MARKET_(?!ENUM_)\w+|PRTP_\w+"),
        "direction": named(r"DIRECTION_FLAG_(LONG|SHORT)"),
        "offset_flag": named(r"OFFSET_FLAG_\w+"),
        "order_status": named(r"ORDER_\w+"),
        "status": named(r"ACCOUNT_STATUS\w+"),
        "market": {number: market for market, number in xtconstant.MARKET_STR_TO_ENUM_MAPPING.items()},
    }
