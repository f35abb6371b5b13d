"""Trade events of the terminal: every callback of xttrader, and what was missed, after each connection and ever after.

The thread `xtquant-trade` owns the sessions: an XtQuantTrader connects once, so each loss takes a new one. Calls into
xtquant wait without a timeout, so each has a daemon thread that can be left behind, those of `LEFT_BEHIND` sessions at
most; when as many hang, `hung` says so, and the process is replaced. Callbacks and answers come on one more thread a
session, in their order: they read, hand over to the sink and return. No order is ever placed here.

What was missed is found by queries (`Questions` says when). The vendor's guide (xttrader.md 1483-1544): None is a query
that failed, and for lists also one that found nothing. So None answers nothing: it is asked again, ever more slowly, as
long as the session lives, and is never taken to say that a position is gone. An empty list is an answer.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from feeder.source import Sink, mask
from feeder.xt import normalize, sdk
from feeder.xt.calls import Calls
from feeder.xt.trading.published import Key, News, Published, Record
from feeder.xt.trading.queries import Questions
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.messages import AccountState

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
# How long to wait for one of them in a process in which no session was ever open, if `xt_hang` is not longer: the next
# process may hang as well, and each costs every client its quotes.
NEVER_OPEN_SECONDS = 600.0
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
# Of an account that is served: ready, and after the close (xttrader.md 456-465) ...
_SERVED = frozenset((ACCOUNT_STATUS_OK, 6))
# ... and of one that is about to be: waiting for its login, logging in, initialised, corrected.
_COMING = frozenset((1, 2, 4, 5))
# How an answer is told that may be one: an account without orders is no failure.
_AMBIGUOUS = "returned None"
# Events that say that an account's orders move. Some brokers push assets and positions with each price.
_MOVES = frozenset(("order", "trade", "order_error", "cancel_error", "async_response", "async_cancel_response"))


class Account(NamedTuple):
    """One account of the setting `xt_accounts`."""

    id: str
    type: str

    def __str__(self) -> str:
        return f"account {mask(self.id)} ({self.type})"


class _Legible:
    """A native object whose texts can be read, whatever their encoding: xttrader itself reads some of them.

    It builds its responses out of them (xttrader.py 240), and loses the whole event where one is not UTF-8.
    """

    def __init__(self, source: object) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.source, name)
        except UnicodeDecodeError as exc:
            return normalize.text(exc.object)


def _is_plain(value: object) -> bool:
    """Return whether xttrader uses a value as it is, a number or a list of records, and reads no field of it."""
    return value is None or isinstance(value, int | float) or hasattr(type(value), "__len__")


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
        self._calls.put(partial(call, *(arg if _is_plain(arg) else _Legible(arg) for arg in args)))

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
        # Accounts whose subscription was refused at least once.
        self.refused: set[Account] = set()
        # Of each account that is joined, and the calls that ask them.
        self.questions: dict[Account, Questions] = {}
        self.calling: dict[tuple[Account, str], list[threading.Thread]] = {}
        # Questions that were answered in whatever way, and those whose failure is logged already.
        self.answered: set[tuple[Account, str]] = set()
        self.told: set[tuple[Account, str]] = set()
        # The newest answer with an account's positions, if it could be read, and `Published.count` when it was asked.
        self.positions: dict[Account, tuple[int, list[dict[str, object]]]] = {}
        # What an account's positions are worth by its asset, by account id and type.
        self.worth: dict[tuple[object, object], object] = {}
        # Positions that the last answers agree to lack, and since when, by account id.
        self.missing: dict[str, tuple[float, frozenset[Key]]] = {}
        # The newest status by account id and type.
        self.statuses: dict[tuple[object, object], object] = {}

    @property
    def is_over(self) -> bool:
        return self.lost or self.ended


class XtTrade:
    """Trade events of the accounts in `config.xt_accounts`, from the terminal whose folder is `config.xt_userdata`.

    Each event is published under the account that it names, else under the only account, else under ``*``. What was
    missed is published once, with ``"recovered": true``, also that a position is gone; what the broker pushes again is
    not published again. That outlives a restart of the feeder, by its journal. How each account is served is told to
    the sink.
    """

    def __init__(self, config: Config) -> None:
        """Raise `ConfigError` if an account is malformed, or the folder is not given."""
        self._accounts = tuple(dict.fromkeys(map(_parse_account, config.xt_accounts)))
        if self._accounts and not config.xt_userdata:
            raise ConfigError("xt_userdata", "is empty, and xt_accounts needs the terminal's folder userdata_mini")
        self._userdata = config.xt_userdata
        self._interval = config.xt_reconcile
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
        self._is_restored = False
        self._states: dict[Account, AccountState] = {}
        # Whether a session was ever opened.
        self._was_open = False
        self._fields: dict[tuple[str, type], tuple[str, ...]] = {}
        self._unreadable: set[tuple[str, str]] = set()
        # What is already logged as not working; None is the session.
        self._told: set[Account | None] = set()
        # Sessions that are over, among them those with calls that have not returned.
        self._left: list[_Session] = []
        # How long all that are left behind hang; read without the lock, by the thread that asks `hung`.
        self._hang = config.xt_hang
        self._hanging = Calls(self._hang)

    def start(self, sink: Sink) -> None:
        """Read the journal and begin to connect; raise what prevents it, such as ImportError. It may be tried again."""
        if not self._accounts:
            logger.info("no xt_accounts: market data is served, trade events are not")
            return
        self._sink = sink
        if not self._states:
            self._set_states("waiting", "starting")
        self._restore(sink)
        # First, because it is how xtquant is imported without its side effects.
        sdk.load()
        from xtquant import xtconstant, xttrader, xttype

        self._xttype = xttype
        # Its own __del__ sets the event loop of the thread on which it happens to be collected (xttrader.py 424).
        self._trader_class = type("Trader", (xttrader.XtQuantTrader,), {"__del__": lambda _: None})
        self._callback_class = xttrader.XtQuantTraderCallback
        self._names = _names(xtconstant)
        self._thread.start()

    def note_no_start(self, sink: Sink, exc: Exception) -> None:
        """Tell that `start` has failed, and why."""
        self._sink = sink
        reason = f"cannot be started: {type(exc).__name__}: {exc}"
        self._set_states("down", reason, fault=isinstance(exc, ImportError))

    def _restore(self, sink: Sink) -> None:
        """Remember what was published before; a journal that cannot be read costs that, and no more."""
        if self._is_restored:
            return
        self._is_restored = True
        restored = 0
        try:
            for time_ms, event in sink.past_trades(time.time_ns() // 1_000_000 - PAST_MS):
                self._published.restore(event.type, event.data, time_ms * 1_000_000)
                restored += 1
        except Exception:
            logger.exception(
                "the trade journal cannot be read after %d events: what the terminal tells of the day is published "
                "again, marked as recovered",
                restored,
            )

    def hung(self) -> str | None:
        """Return why there can be no session in this process any more (see `Source`): too many calls do not return.

        For that they have to hang for `config.xt_hang` seconds more, and longer if no session was ever open.
        """
        if self._closing or self._thread.ident is None:
            return None
        if not self._thread.is_alive():
            return "the thread that owns the trade sessions has ended"
        return self._hanging.hung(time.monotonic())

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
            self._set_states("down", reason, fault=not self._was_open and not Path(self._userdata).is_dir())
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
            self._set_states("down", f"calls into xtquant of {hung} sessions have not returned")
            self._hanging = Calls(self._hang if self._was_open else self._hang and max(self._hang, NEVER_OPEN_SECONDS))
            self._hanging.begin(f"a call into xtquant of each of {hung} trade sessions")
            self._wait(lambda: self._count_hung() < LEFT_BEHIND)
            self._hanging.rest()
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
        self._was_open = True
        threading.Thread(target=self._ask_questions, args=(session,), name="xtquant-trade-ask", daemon=True).start()
        for account in self._accounts:
            self._call(session, self._join, account)
        self._wait(lambda: session.lost or len(session.joined) == len(self._accounts), ANSWER_SECONDS)
        if not session.joined and not session.lost:
            return f"no account could be subscribed within {ANSWER_SECONDS:g} s"
        for account in self._accounts:
            if account not in session.joined:
                self._tell(account, "not subscribed yet")
                with self._changed:
                    if account not in session.joined and account not in session.refused and not session.is_over:
                        self._set_state(account, "waiting", "not subscribed yet")
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
                session.asking[account] = self._call(session, self._ask, account, "order", self._note_open, True)
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
            with self._changed:
                session.refused.add(account)
                self._set_state(account, "down", refusal)
            self._wait(lambda: session.is_over, delay)
            if session.is_over or self._closing:
                return
            delay = min(2 * delay, RETRY_LAST)
        with self._changed:
            if session.is_over:
                return
            session.joined.append(account)
            self._told -= {account, None}
            session.questions[account] = Questions(
                QUERIES, time.monotonic(), self._interval, first=RETRY_FIRST, patience=ANSWER_SECONDS
            )
            self._publish_session("connected", account, time.time_ns())
            self._assess(session, account)
            self._changed.notify_all()
        logger.info("trade events come from %s", account)

    def _subscribe(self, session: _Session, stock_account: Any) -> str | None:
        try:
            result = session.trader.subscribe(stock_account)
        except Exception as exc:
            logger.debug("cannot subscribe an account", exc_info=True)
            return f"subscribe raised {type(exc).__name__}"
        return None if result == 0 else f"subscribe returned {result!r}"

    def _ask_questions(self, session: _Session) -> None:
        """Ask what is due for as long as the session lives, each on a thread of its own; calls nothing itself."""
        while not session.is_over and not self._closing:
            try:
                with self._changed:
                    now = time.monotonic()
                    for account, questions in session.questions.items():
                        for event in questions.due(now):
                            self._ask_question(session, account, event, now)
                self._wait_for_question(session)
            except Exception:
                # No thread to be had, say. It may be better later, and without this nothing is asked any more.
                self._note_failure("asking")
                self._wait(lambda: session.is_over, RETRY_LAST)

    def _wait_for_question(self, session: _Session) -> None:
        def next_at() -> float:
            return min((questions.next_at() for questions in session.questions.values()), default=math.inf)

        with self._changed:
            until = next_at()
            seconds = None if math.isinf(until) else max(0.0, until - time.monotonic())
            self._wait(lambda: session.is_over or next_at() < until, seconds)

    def _ask_question(self, session: _Session, account: Account, event: str, now: float) -> None:
        questions = session.questions[account]
        is_late = questions.is_unanswered(event)
        questions.ask(event, now)
        if is_late:
            self._tell_failure(session, account, event, "not answered", now)
        calling = session.calling.setdefault((account, event), [])
        calling[:] = [thread for thread in calling if thread.is_alive()]
        # One that does not return may never do so; it is asked again as soon as one has.
        if len(calling) < LEFT_BEHIND:
            calling.append(self._call(session, self._ask_all, account, event))

    def _ask_all(self, session: _Session, account: Account, event: str) -> None:
        try:
            self._ask(session, account, event, self._note_answer)
        except Exception as exc:
            logger.debug("cannot ask %s", QUERIES[event], exc_info=True)
            with self._changed:
                now = time.monotonic()
                session.questions[account].answer(event, now, is_certain=False)
                self._tell_failure(session, account, event, f"raised {type(exc).__name__}", now)
                self._changed.notify_all()

    def _tell_failure(self, session: _Session, account: Account, event: str, how: str, now: float) -> None:
        """Log a question that has had no certain answer for a while: loudly once, until there is one."""
        is_loud = (
            (account, event) not in session.told
            and how != _AMBIGUOUS
            and session.questions[account].unsure_for(event, now) >= ANSWER_SECONDS
        )
        if is_loud:
            session.told.add((account, event))
        level = logging.WARNING if is_loud else logging.DEBUG
        logger.log(level, "%s: %s %s; asking again", account, QUERIES[event], how)

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

    def _is_contradicted(self, session: _Session, account: Account) -> bool:
        """Return whether an account of which no position is listed has some by its asset: then it is not ready."""
        answers = [told for each, (_, told) in session.positions.items() if each.id == account.id]
        worth = [worth for (id, _), worth in session.worth.items() if id == account.id]
        return not any(answers) and any(isinstance(each, int | float) and each > 0 for each in worth)

    def _note_positions(self, session: _Session, account: Account, now: float) -> None:
        """Publish the positions that two answers agree to lack."""
        missing = session.missing.pop(account.id, None)
        asked, gone = self._sold_out(session, account)
        confirmed: set[Key] = set()
        since = now
        if missing is not None and now - missing[0] < CONFIRM_SECONDS:
            since = missing[0]
            gone = {key: data for key, data in gone.items() if key in missing[1]}
        elif missing is not None:
            confirmed = gone.keys() & missing[1]
        for key in confirmed:
            self._publish("position", Record(gone[key]), time.time_ns(), asked)
        if unsure := gone.keys() - confirmed:
            session.missing[account.id] = since, frozenset(unsure)
            session.questions[account].hasten(("position",), since + CONFIRM_SECONDS)

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
                record = self._read(event, objects[0])
                self._note_moved(session, event, record.data)
                self._publish(event, record, received_ns)
                self._note_worth(session, event, record.data)
                if event == "account_status":
                    self._note_status(session, record.data)
        except Exception:
            self._note_failure(event)

    def _note_open(self, session: _Session, account: Account, event: str, asked: int, answer: Any) -> None:
        """Publish what is news of the open orders, which are only some."""
        received_ns = time.time_ns()
        self._note_heard(session)
        records, _ = self._read_answer(event, answer)
        if records:
            with self._changed:
                self._publish_answer((*account, "open"), event, records, received_ns, asked)

    def _note_answer(self, session: _Session, account: Account, event: str, asked: int, answer: Any) -> None:
        """Publish what is news in the answer to a query of all, and ask again if it is not certain."""
        received_ns = time.time_ns()
        self._note_heard(session)
        records, failure = self._read_answer(event, answer)
        with self._changed:
            now = time.monotonic()
            is_certain = failure is None
            if records or is_certain:
                is_certain = self._publish_answer(account, event, records, received_ns, asked) and is_certain
            for record in records:
                self._note_worth(session, event, record.data)
            is_proof = False
            if event == "position":
                session.positions.pop(account, None)
                # What cannot be read may be what seems to be gone.
                if failure is None and all(_is_code(record.data.get("stock_code")) for record in records):
                    session.positions[account] = asked, [record.data for record in records]
                    is_proof = not self._is_contradicted(session, account)
                is_certain = is_certain and is_proof
            session.answered.add((account, event))
            session.questions[account].answer(event, now, is_certain)
            if is_proof:
                self._note_positions(session, account, now)
            elif event == "position":
                session.missing.pop(account.id, None)
            if is_certain:
                session.told.discard((account, event))
            elif failure is not None:
                self._tell_failure(session, account, event, failure, now)
            self._changed.notify_all()

    def _read_answer(self, event: str, answer: Any) -> tuple[list[Record], str | None]:
        """Return what can be read of an answer, and why it does not tell all."""
        if event == "asset":
            answer = None if answer is None else [answer]
        if answer is None:
            return [], "failed" if event == "asset" else _AMBIGUOUS
        if isinstance(answer, str | bytes | Mapping) or not hasattr(type(answer), "__len__"):
            return [], f"returned {type(answer).__name__}"
        items = list(answer)
        records = []
        for item in items:
            try:
                if item is not None:
                    record = self._read(event, item)
                    if not _is_record(event, record.data):
                        raise TypeError(f"{type(item).__name__} has no field of the kind {event}")
                    records.append(record)
            except Exception:
                self._note_failure(event)
        return records, None if len(records) == len(items) else "cannot be read in part"

    def _publish_answer(self, account: Key, event: str, records: list[Record], received_ns: int, asked: int) -> bool:
        """Publish what is news, and return whether the answer was not overtaken and everything is published."""
        for record in records:
            self._complete(event, record.data)
        news, is_overtaken = self._published.answered(account, event, records, received_ns, asked)
        is_done = not is_overtaken
        for each in news:
            try:
                self._send(each, received_ns, is_recovered=True)
            except Exception:
                is_done = False
                self._note_failure(event)
        return is_done

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
                    self._set_state(account, "down", "disconnected")

    def _note_status(self, session: _Session, data: Mapping[str, object]) -> None:
        """Ask again when an account has become ready: before, the terminal may not have had its day."""
        account_id, status = data.get("account_id"), data.get("status")
        key = account_id, data.get("account_type")
        with self._changed:
            was_ready = session.statuses.get(key, ACCOUNT_STATUS_OK) == ACCOUNT_STATUS_OK
            session.statuses[key] = status
            joined = [account for account in session.joined if account.id == account_id]
            for account in joined:
                self._assess(session, account)
                if status == ACCOUNT_STATUS_OK and not was_ready:
                    session.questions[account].hasten(QUERIES, time.monotonic())
            self._changed.notify_all()

    def _note_moved(self, session: _Session, event: str, data: Mapping[str, object]) -> None:
        if event in _MOVES:
            with self._changed:
                for account, questions in session.questions.items():
                    if account.id == data.get("account_id"):
                        questions.moved(time.monotonic())

    def _note_worth(self, session: _Session, event: str, data: Mapping[str, object]) -> None:
        if event == "asset":
            with self._changed:
                session.worth[(data.get("account_id"), data.get("account_type"))] = data.get("market_value")

    def _assess(self, session: _Session, account: Account) -> None:
        """Tell how an account is served that is subscribed: it is as its newest status says."""
        status = session.statuses.get((account.id, ACCOUNT_TYPES[account.type]), ACCOUNT_STATUS_OK)
        reason = None
        if status != ACCOUNT_STATUS_OK:
            reason = self._names["status"].get(status, f"status {status}") if isinstance(status, int) else "no status"
        self._set_state(account, "up" if status in _SERVED else "waiting" if status in _COMING else "down", reason)

    def _set_states(self, state: Literal["up", "down", "waiting"], reason: str, fault: bool = False) -> None:
        for account in self._accounts:
            self._set_state(account, state, reason, fault)

    def _set_state(
        self, account: Account, state: Literal["up", "down", "waiting"], reason: str | None, fault: bool = False
    ) -> None:
        if reason is not None:
            for id, _ in self._accounts:
                reason = reason.replace(id, mask(id))
        with self._changed:
            old = self._states.get(account)
            if old is not None and (old.state, old.reason, old.fault) == (state, reason, fault):
                return
            since = time.time_ns() // 1_000_000 if old is None or old.state != state else old.since
            self._states[account] = AccountState(mask(account.id), account.type, state, reason, since, fault)
            if len(self._states) == len(self._accounts):
                self._sink.set_accounts([self._states[each] for each in self._accounts])

    def _publish_session(self, event: str, account: Account, received_ns: int) -> None:
        data: dict[str, object] = {"account_type": ACCOUNT_TYPES[account.type], "account_id": account.id}
        self._publish(event, Record(data), received_ns)

    def _publish(self, event: str, record: Record, received_ns: int, asked: int | None = None) -> None:
        self._complete(event, record.data)
        with self._changed:
            news = self._published.judge(event, record, received_ns, asked)
            if news is not None:
                self._send(news, received_ns, is_recovered=asked is not None)

    def _send(self, news: News, received_ns: int, is_recovered: bool) -> None:
        data = news.record.data
        if is_recovered:
            data["recovered"] = True
        self._sink.publish_trade(self._account_of(data), news.event, data, received_ns)
        self._published.remember(news)

    def _account_of(self, data: Mapping[str, object]) -> str:
        account = data.get("account_id")
        return account if isinstance(account, str) and account else self._default

    def _complete(self, event: str, data: dict[str, object]) -> None:
        """Add what xttrader does not say: the type of a response's account, and the names of enumerations' values."""
        account = self._account_of(data)
        if event in _WITHOUT_TYPE and account in self._types:
            data["account_type"] = self._types[account]
        for field, names in self._names.items():
            value = data.get(field)
            if isinstance(value, int):
                data[f"{field}_name"] = names.get(value)

    def _read(self, event: str, source: object) -> Record:
        """Copy every field at once: a native object lives as long as native code likes."""
        if isinstance(source, _Legible):
            source = source.source
        data: dict[str, object] = {}
        unread = b""
        kind = (event, type(source))
        names = self._fields.get(kind)
        if names is None:
            names = self._fields[kind] = _discover(FIELDS[event], source)
        for name in names:
            try:
                value = getattr(source, name)
                data[name] = normalize.text(value) if isinstance(value, bytes | str) else normalize.plain(value)
            except AttributeError:
                continue
            except UnicodeDecodeError as exc:
                # pybind11 decodes when a field is read. Brokers write GBK.
                data[name] = read = normalize.text(exc.object)
                if read.encode("gb18030", "replace") != (written := exc.object.partition(b"\0")[0]):
                    # Cut, or partly replaced: two that differ stay two, also if what is read of them is the same.
                    unread += written + b"\0"
                if normalize.REPLACEMENT in read:
                    self._note_unreadable(event, name, "has bytes of no known encoding, replaced by U+FFFD")
            except Exception as exc:
                # The other fields are worth having.
                data[name] = None
                self._note_unreadable(event, name, f"cannot be read: {type(exc).__name__}")
        return Record(data, unread)

    def _note_unreadable(self, event: str, name: str, how: str) -> None:
        with self._changed:
            self.failed += 1
            is_new = (event, name) not in self._unreadable
            self._unreadable.add((event, name))
        if is_new:
            logger.error("field %s of %s events %s", name, event, how)

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


def _is_code(code: object) -> bool:
    return isinstance(code, str) and bool(code) and code.isascii()


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


def _is_record(event: str, data: Mapping[str, object]) -> bool:
    """Return whether what was read has a field of its kind beyond the account: a number or a text has none."""
    return not {_squash(name) for name in FIELDS[event][2:]}.isdisjoint(map(_squash, data))


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
