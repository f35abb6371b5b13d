"""Trade events of the terminal: every callback of xttrader, and by queries the events that were not pushed.

The thread `xtquant-trade` owns the connections: an XtQuantTrader can connect only once, so a lost connection needs a
new one. Calls into xtquant wait without a timeout, so each runs on a daemon thread that can be left behind. When calls
of `LEFT_BEHIND` connections hang, `hung` reports it, and the process is replaced. Callbacks read the data, hand it to
the sink and return. This code never places an order.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from feeder.source import Sink
from feeder.xt import sdk
from feeder.xt.call_times import CallTimes
from feeder.xt.calls import Calls
from feeder.xt.capabilities import Capabilities
from feeder.xt.trading import intervals
from feeder.xt.trading.accounts import Account, Accounts
from feeder.xt.trading.callbacks import Callbacks
from feeder.xt.trading.connection import Connection
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.guard import Guard
from feeder.xt.trading.publication import Publication
from feeder.xt.trading.reconciliation import Reconciliation
from feeder.xt.trading.records import Reader, enumerations
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused

logger = logging.getLogger(__name__)


class XtTrade:
    """Trade events of the accounts in `config.xt_accounts`, from the terminal whose folder is `config.xt_userdata`.

    Each event is published under the account that it names, else under the only account, else under ``*``. An event
    that was missed is published once, with ``"recovered": true``; so is a position that is gone. Events that the broker
    pushes again are not published again. With the journal this also holds over a restart of the feeder. The sink gets
    the state of each account.
    """

    def __init__(self, config: Config) -> None:
        """Raise `ConfigError` if an account is malformed, or the folder is not given."""
        self._guard = Guard()
        self._failures = Failures()
        self._accounts = Accounts(config.xt_accounts, self._guard)
        if self._accounts.all and not config.xt_userdata:
            raise ConfigError("xt_userdata", "is empty, and xt_accounts needs the terminal's folder userdata_mini")
        self._reader = Reader(self._failures)
        self._publication = Publication(self._accounts, self._reader, self._failures, self._guard)
        self._userdata = config.xt_userdata
        self._interval = config.xt_reconcile
        self._xttype: Any
        self._trader_class: Any
        self._callback_class: Any
        self._thread = threading.Thread(target=self._run, name="xtquant-trade", daemon=True)
        # Whether a connection was ever open.
        self._was_open = False
        # Connections that are over; `_count_hung` keeps those with calls that have not returned.
        self._left: list[Connection] = []
        # For how long all calls that are left behind hang. The thread that calls `hung` reads it without the lock.
        self._hang = config.xt_hang
        self.times = CallTimes("xttrader")
        self._hanging = Calls(self._hang)

    @property
    def failed(self) -> int:
        """Return how many events and fields could not be read or published, and calls failed."""
        return self._failures.count

    def start(self, sink: Sink) -> None:
        """Read the journal and begin to connect; raise what prevents it, such as ImportError. May be called again."""
        if not self._accounts.all:
            logger.info("no xt_accounts: market data is served, trade events are not")
            return
        self._accounts.sink = self._publication.sink = sink
        if not self._accounts.have_states:
            self._accounts.set_all("connecting", "starting")
        self._publication.restore()
        # First, because it imports xtquant without its side effects.
        sdk.load()
        Capabilities().require("trade events")
        from xtquant import xtconstant, xttrader, xttype

        self._xttype = xttype
        # The __del__ of XtQuantTrader sets the event loop of whichever thread collects it (xttrader.py 424), so drop
        # it.
        self._trader_class = type("Trader", (xttrader.XtQuantTrader,), {"__del__": lambda _: None})
        self._callback_class = xttrader.XtQuantTraderCallback
        self._reader.names = enumerations(xtconstant)
        self._thread.start()

    def note_no_start(self, sink: Sink, exc: Exception) -> None:
        """Report to the sink that `start` has failed, and why."""
        self._accounts.sink = self._publication.sink = sink
        reason = f"cannot be started: {type(exc).__name__}: {exc}"
        is_lacking = isinstance(exc, ImportError | Refused)
        self._accounts.set_all("refused" if is_lacking else "down", reason, fault=is_lacking)

    def hung(self) -> str | None:
        """Return why this process can make no more connections (see `Source`): too many calls do not return.

        They have to hang for another `config.xt_hang` seconds, and longer if no connection was ever open.
        """
        if self._guard.closing or self._thread.ident is None:
            return None
        if not self._thread.is_alive():
            return "the thread that owns the trade sessions has ended"
        return self._hanging.hung(time.monotonic())

    def close(self) -> None:
        """Stop within two seconds; a call that hangs in xtquant is left behind."""
        self._guard.close()
        if self._thread.is_alive():
            self._thread.join(intervals.JOIN_SECONDS)
            if self._thread.is_alive():
                logger.warning("the trade session does not stop; its threads are left behind")

    # -- The thread that owns the connections

    def _run(self) -> None:
        delay = intervals.RETRY_FIRST
        while self._may_open():
            began = time.monotonic()
            connection = Connection(self._guard, self._failures, self.times)
            try:
                reason = self._serve(connection)
            except Exception:
                logger.exception("trade session failed")
                reason = "internal error"
            self._end(connection)
            if self._guard.closing:
                return
            self._left.append(connection)
            self._accounts.warn(None, reason)
            self._accounts.set_all("down", reason, fault=not self._was_open and not Path(self._userdata).is_dir())
            if time.monotonic() - began > intervals.RETRY_LAST:
                delay = intervals.RETRY_FIRST
            self._guard.wait(lambda: False, delay)
            delay = min(2 * delay, intervals.RETRY_LAST)

    def _may_open(self) -> bool:
        """Wait while too many calls hang; return False once the source closes."""
        with self._guard:
            hung = self._count_hung()
        if hung >= intervals.LEFT_BEHIND:
            logger.error(
                "no trade events: calls into xtquant of %d sessions have not returned; waiting for one to return, "
                "which may take a restart of the terminal or of the feeder",
                hung,
            )
            self._accounts.set_all("down", f"calls into xtquant of {hung} sessions have not returned")
            never_open = self._hang and max(self._hang, intervals.NEVER_OPEN_SECONDS)
            self._hanging = Calls(self._hang if self._was_open else never_open)
            self._hanging.begin(f"a call into xtquant of each of {hung} trade sessions")
            self._guard.wait(lambda: self._count_hung() < intervals.LEFT_BEHIND)
            self._hanging.rest()
        return not self._guard.closing

    def _count_hung(self) -> int:
        self._left = [connection for connection in self._left if connection.calls]
        return len(self._left)

    def _serve(self, connection: Connection) -> str:
        """Connect, subscribe every account, and return why the connection is over."""
        reconciliation = self._reconcile(connection)
        callback = self._callbacks(connection, reconciliation).make(self._callback_class)
        connection.call(connection.open, self._trader_class, self._userdata, callback)
        self._guard.wait(lambda: connection.opened, intervals.OPEN_SECONDS)
        if not connection.opened:
            return f"no connection within {intervals.OPEN_SECONDS:g} s"
        if connection.failure is not None:
            return connection.failure
        self._was_open = True
        reconciliation.start()
        accounts = self._accounts.all
        for account in accounts:
            connection.call(self._join, connection, reconciliation, account)
        self._guard.wait(lambda: connection.lost or len(connection.joined) == len(accounts), intervals.ANSWER_SECONDS)
        if not connection.joined and not connection.lost:
            return f"no account could be subscribed within {intervals.ANSWER_SECONDS:g} s"
        self._note_waiting(connection)
        return self._watch(connection, reconciliation)

    def _reconcile(self, connection: Connection) -> Reconciliation:
        return Reconciliation(
            connection,
            self._accounts,
            self._publication,
            self._reader,
            self._failures,
            self._guard,
            self._xttype.StockAccount,
            self._interval,
        )

    def _callbacks(self, connection: Connection, reconciliation: Reconciliation) -> Callbacks:
        return Callbacks(connection, reconciliation, self._accounts, self._publication, self._reader, self._failures)

    def _note_waiting(self, connection: Connection) -> None:
        """Report the accounts that are not subscribed yet."""
        for account in self._accounts.all:
            if account not in connection.joined:
                self._accounts.warn(account, "not subscribed yet")
                with self._guard:
                    is_known = account in connection.joined or account in connection.refused
                    if not is_known and not connection.is_over:
                        self._accounts.set(account, "connecting", "not subscribed yet")

    def _watch(self, connection: Connection, reconciliation: Reconciliation) -> str:
        """Wait until xtquant reports the end of the connection or the terminal does not answer; return the reason."""
        while True:
            self._guard.wait(lambda: connection.lost, intervals.PROBE_SECONDS)
            if connection.lost or self._guard.closing:
                return "disconnected"
            if reconciliation.is_silent():
                return f"no answer and no event within {intervals.ANSWER_SECONDS:g} s"

    def _end(self, connection: Connection) -> None:
        with self._guard:
            if not self._guard.closing:
                connection.lose(self._publication.publish_loss)
            connection.ended = True
            self._guard.notify()
            # If it is not opened yet, `Connection.open` stops it when xtquant's call has returned.
            is_open = connection.opened
        if is_open:
            connection.call(connection.stop).join(intervals.STOP_SECONDS)

    # -- Threads of their own, which may never return from xtquant

    def _join(self, connection: Connection, reconciliation: Reconciliation, account: Account) -> None:
        """Try to subscribe an account until that succeeds, then ask for the events that were missed."""
        stock_account = self._xttype.StockAccount(account.id, account.type)
        delay = intervals.RETRY_FIRST
        while (refusal := connection.subscribe(stock_account)) is not None:
            self._accounts.warn(account, refusal)
            with self._guard:
                connection.refused.add(account)
                self._accounts.set(account, "refused", refusal)
            self._guard.wait(lambda: connection.is_over, delay)
            if connection.is_over or self._guard.closing:
                return
            delay = min(2 * delay, intervals.RETRY_LAST)
        with self._guard:
            if connection.is_over:
                return
            connection.joined.append(account)
            self._accounts.clear(account)
            reconciliation.begin(account)
            self._publication.publish_session("connected", account, time.time_ns())
            reconciliation.assess(account)
            self._guard.notify()
        logger.info("trade events come from %s", account)
