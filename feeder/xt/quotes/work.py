"""Work: what the thread `xtquant-calls` is to do, in which order.

Calls of the feeder go first, `CALLS_IN_A_ROW` at most, and then one piece of background work has its turn: a formula
to subscribe, or another piece, in turns, so that many formulas delay no other topic. Each piece is about one native
call, so that a call of the feeder waits for one piece only.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable

from feeder.xt.calls import Calls
from feeder.xt.quotes import intervals
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)


class Work:
    """`put` is for any thread, the rest for the one that calls; `running` notes whether it works or waits."""

    def __init__(self, running: Calls) -> None:
        self._running = running
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # The first subscriptions of the session, then refused ones, and subscriptions made anew.
        self.pieces: deque[Callable[[], object]] = deque()
        # Formulas that are to be subscribed; a dict keeps the order.
        self.formulas: dict[Topic, None] = {}
        # How many calls and pieces ended in an exception.
        self.failed = 0
        self._in_a_row = 0
        self._was_formula = False

    def put(self, call: Callable[[], object]) -> None:
        """Queue a call."""
        self._calls.put(call)

    def wake(self) -> None:
        """Let a wait for calls end."""
        self._calls.put(int)

    def forget(self) -> None:
        """Drop the background work of the session that has ended."""
        self.pieces.clear()
        self.formulas.clear()
        self._in_a_row = 0

    def do_call(self, timeout: float) -> bool:
        """Do the call that waits, or comes within `timeout` seconds; return whether there was one."""
        self._running.rest()
        try:
            call = self._calls.get(timeout=timeout)
        except queue.Empty:
            return False
        finally:
            self._running.begin("own work")
        self.do(call)
        return True

    def do_calls_first(self, timeout: float) -> bool:
        """Do the next call, unless so many were done in a row that background work has its turn."""
        if self._in_a_row < intervals.CALLS_IN_A_ROW and self.do_call(timeout):
            self._in_a_row += 1
            return True
        self._in_a_row = 0
        return False

    def next_formula(self, has_others: bool) -> Topic | None:
        """Return the formula whose turn it is; every other turn is of other work, if there is any."""
        if not self.formulas or (self._was_formula and has_others):
            self._was_formula = False
            return None
        self._was_formula = True
        topic = next(iter(self.formulas))
        del self.formulas[topic]
        return topic

    def do(self, call: Callable[[], object]) -> None:
        """Do a call, or a piece of background work."""
        try:
            call()
        except Exception:
            # It was about one topic; the session serves all others, and the next call may be about another.
            self.failed += 1
            logger.exception("a call of the xtquant session failed")
