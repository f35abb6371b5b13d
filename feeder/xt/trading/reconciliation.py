"""Reconciliation: find by queries what xttrader did not push, by comparing the answers with what was published.

There is one for each connection. `Questions` decides when to ask. In the vendor's guide (xttrader.md 1483-1544) None
means that a query failed, and for lists also that nothing was found. So None is no answer: the query is repeated with
growing pauses as long as the connection lasts, and never means that a position is gone. An empty list is an answer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from feeder.xt.trading import intervals
from feeder.xt.trading.accounts import ACCOUNT_STATUS_OK, ACCOUNT_TYPES, Account, Accounts
from feeder.xt.trading.connection import Connection
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.guard import Guard
from feeder.xt.trading.holdings import Holdings
from feeder.xt.trading.publication import Publication
from feeder.xt.trading.published import Record
from feeder.xt.trading.queries import Questions
from feeder.xt.trading.records import AMBIGUOUS, Reader
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)

# The events that the terminal can list for the day, and the query that lists them.
QUERIES = {
    "order": "query_stock_orders_async",
    "trade": "query_stock_trades_async",
    "position": "query_stock_positions_async",
    "asset": "query_stock_asset_async",
}
# Events that show a change of an account's orders. Assets and positions do not: some brokers push them with each price.
_MOVES = frozenset(("order", "trade", "order_error", "cancel_error", "async_response", "async_cancel_response"))


class Reconciliation:
    """Asks for the day of each account of `connection` that is subscribed; `interval` is in seconds, 0 for once."""

    def __init__(
        self,
        connection: Connection,
        accounts: Accounts,
        publication: Publication,
        reader: Reader,
        failures: Failures,
        guard: Guard,
        make_account: Callable[[str, str], Any],
        interval: float,
    ) -> None:
        self._connection = connection
        self._accounts = accounts
        self._publication = publication
        self._reader = reader
        self._failures = failures
        self._guard = guard
        self._make_account = make_account
        self._interval = interval
        self.holdings = Holdings(accounts.all, publication.sold_out)
        # The questions of each account that is subscribed, and the threads that ask them.
        self.questions: dict[Account, Questions] = {}
        self._calling: dict[tuple[Account, str], list[threading.Thread]] = {}
        # The threads that ask for open orders, to find out whether the terminal answers at all.
        self._probing: dict[Account, threading.Thread] = {}
        # The questions that were answered, certainly or not, and those whose failure is logged already.
        self._answered: set[tuple[Account, str]] = set()
        self._warned: set[tuple[Account, str]] = set()
        # The questions that have no answer in time, although the terminal has answered them before.
        self._late: set[tuple[Account, str]] = set()
        # The newest status by account id and type.
        self._statuses: dict[tuple[object, object], object] = {}

    @property
    def joined(self) -> list[Account]:
        """Return the accounts that are subscribed."""
        return self._connection.joined

    # -- Asking

    def begin(self, account: Account) -> None:
        """Ask for the day of an account that is subscribed. The caller holds the guard."""
        self.questions[account] = Questions(
            QUERIES,
            time.monotonic(),
            self._interval,
            first=intervals.RETRY_FIRST,
            patience=intervals.ANSWER_SECONDS,
        )

    def start(self) -> None:
        """Start the thread that asks what is due."""
        threading.Thread(target=Reconciliation._run, args=(self,), name="xtquant-trade-ask", daemon=True).start()

    def _run(self) -> None:
        """Ask the questions that are due as long as the connection lasts, each on a thread of its own."""
        while not self._connection.is_over and not self._guard.closing:
            try:
                self._ask_due(time.monotonic())
                self._wait_for_question()
            except Exception:
                # For example, no thread can be started. Try again, or no question would be asked any more.
                self._failures.note("asking")
                self._guard.wait(lambda: self._connection.is_over, intervals.RETRY_LAST)

    def _ask_due(self, now: float) -> None:
        with self._guard:
            for account, questions in self.questions.items():
                for event in questions.due(now):
                    self._ask_question(account, event, now)

    def _wait_for_question(self) -> None:
        def next_at() -> float:
            return min((questions.next_at() for questions in self.questions.values()), default=math.inf)

        with self._guard:
            until = next_at()
            seconds = None if math.isinf(until) else max(0.0, until - time.monotonic())
            self._guard.wait(lambda: self._connection.is_over or next_at() < until, seconds)

    def _ask_question(self, account: Account, event: str, now: float) -> None:
        questions = self.questions[account]
        is_late = questions.is_unanswered(event)
        questions.ask(event, now)
        if is_late:
            self._warn(account, event, "not answered", now)
            if (account, event) in self._answered:
                self._late.add((account, event))
                self.assess(account)
        calling = self._calling.setdefault((account, event), [])
        calling[:] = [thread for thread in calling if thread.is_alive()]
        # A call that hangs may never return. If so many hang, the next call is made when one of them has returned.
        if len(calling) < intervals.LEFT_BEHIND:
            calling.append(self._connection.call(self._ask_all, account, event))

    def _ask_all(self, account: Account, event: str) -> None:
        try:
            self._ask(account, event, self._note_answer)
        except Exception as exc:
            logger.debug("cannot ask %s", QUERIES[event], exc_info=True)
            with self._guard:
                now = time.monotonic()
                self.questions[account].answer(event, now, is_certain=False)
                self._warn(account, event, f"raised {type(exc).__name__}", now)
                self._guard.notify()

    def _ask(self, account: Account, event: str, take: Callable[..., object], *options: object) -> None:
        # Not the blocking functions: only an answer on the thread of the pushes comes in order with them.
        ask = getattr(self._connection.trader, QUERIES[event])
        asked, count = time.perf_counter(), self._publication.count

        def answered(answer: object) -> None:
            # The call itself only sends the question: its time is that until the answer.
            self._connection.times.add(QUERIES[event], time.perf_counter() - asked)
            take(account, event, count, answer)

        ask(self._make_account(*account), answered, *options)

    def _warn(self, account: Account, event: str, how: str, now: float) -> None:
        """Log that a question has no certain answer: as a warning once after a while, until there is an answer."""
        is_warning = (
            (account, event) not in self._warned
            and how != AMBIGUOUS
            and self.questions[account].unsure_for(event, now) >= intervals.ANSWER_SECONDS
        )
        if is_warning:
            self._warned.add((account, event))
        level = logging.WARNING if is_warning else logging.DEBUG
        logger.log(level, "%s: %s %s; asking again", account, QUERIES[event], how)

    def is_silent(self) -> bool:
        """Ask for the open orders; return whether neither an answer nor any event comes in time.

        Open orders are few. Those that were missed are published.
        """
        connection = self._connection
        with self._guard:
            heard = connection.heard
            # If the orders of an account were never answered, a missing answer proves nothing.
            known = [account for account in connection.joined if (account, "order") in self._answered]
        for account in known:
            probing = self._probing.get(account)
            if probing is None or not probing.is_alive():
                self._probing[account] = connection.call(self._ask, account, "order", self._note_open, True)
        if known:
            self._guard.wait(lambda: connection.lost or connection.heard != heard, intervals.ANSWER_SECONDS)
        return bool(known) and not connection.lost and connection.heard == heard

    # -- Answers and events, on the thread of the pushes

    def _note_open(self, account: Account, event: str, asked: int, answer: Any) -> None:
        """Publish the news in the open orders, which are only some of the orders."""
        received_ns = clock.time_ns()
        self._connection.note_heard()
        records, _ = self._reader.read_answer(event, answer)
        if records:
            with self._guard:
                self._publication.publish_answer((*account, "open"), event, records, received_ns, asked)

    def _note_answer(self, account: Account, event: str, asked: int, answer: Any) -> None:
        """Publish the news in the answer to a query of all, and ask again if it is not certain."""
        received_ns = clock.time_ns()
        self._connection.note_heard()
        records, failure = self._reader.read_answer(event, answer)
        with self._guard:
            now = time.monotonic()
            is_certain = failure is None
            if records or is_certain:
                is_certain = (
                    self._publication.publish_answer(account, event, records, received_ns, asked) and is_certain
                )
            for record in records:
                self._note_worth(event, record.data)
            is_proof = event == "position" and self.holdings.note_answer(account, asked, records, failure is None)
            is_certain = is_certain and (is_proof or event != "position")
            self._answered.add((account, event))
            if (account, event) in self._late:
                self._late.discard((account, event))
                self.assess(account)
            self.questions[account].answer(event, now, is_certain)
            if is_proof:
                self._publish_gone(account, now)
            elif event == "position":
                self.holdings.forget_missing(account)
            if is_certain:
                self._warned.discard((account, event))
            elif failure is not None:
                self._warn(account, event, failure, now)
            self._guard.notify()

    def _publish_gone(self, account: Account, now: float) -> None:
        """Publish the positions that are missing in two answers."""
        statuses = [status for (id, _), status in self._statuses.items() if id == account.id]
        is_ready = not self._connection.is_over and all(each == ACCOUNT_STATUS_OK for each in statuses)
        gone, asked, ask_at = self.holdings.gone(account, now, is_ready)
        for record in gone:
            self._publication.publish("position", record, clock.time_ns(), asked)
        if ask_at is not None:
            self.questions[account].hasten(("position",), ask_at)

    def note_event(self, event: str, record: Record, received_ns: int) -> None:
        """Publish a push, and note what it means for questions and answers."""
        self._note_moved(event, record.data)
        self._publication.publish(event, record, received_ns)
        with self._guard:
            self._note_worth(event, record.data)
        if event == "account_status":
            self._note_status(record.data)

    def _note_moved(self, event: str, data: Mapping[str, object]) -> None:
        if event in _MOVES:
            with self._guard:
                for account, questions in self.questions.items():
                    if account.id == data.get("account_id"):
                        questions.moved(time.monotonic())

    def _note_worth(self, event: str, data: Mapping[str, object]) -> None:
        if event == "asset":
            self.holdings.note_worth(data)

    def _note_status(self, data: Mapping[str, object]) -> None:
        """Ask again when an account becomes ready: before that, the terminal may not have had the orders of the day."""
        account_id, status = data.get("account_id"), data.get("status")
        key = account_id, data.get("account_type")
        with self._guard:
            was_ready = self._statuses.get(key, ACCOUNT_STATUS_OK) == ACCOUNT_STATUS_OK
            self._statuses[key] = status
            for account in self._connection.joined:
                if account.id != account_id:
                    continue
                self.assess(account)
                if status == ACCOUNT_STATUS_OK and not was_ready:
                    self.questions[account].hasten(QUERIES, time.monotonic())
            self._guard.notify()

    def assess(self, account: Account) -> None:
        """Set the state of a subscribed account by its newest status and answers. The caller holds the guard."""
        if self._connection.is_over:
            return
        status = self._statuses.get((account.id, ACCOUNT_TYPES[account.type]), ACCOUNT_STATUS_OK)
        late = sorted(QUERIES[event] for each, event in self._late if each == account)
        self._accounts.assess(account, status, self._reader.names["status"], late)
