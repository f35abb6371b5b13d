"""Work: the queues of the thread `xtquant-calls`, and the order in which they are served.

Calls of the feeder come first. After at most `CALLS_IN_A_ROW` of them one piece of background work is done. Formulas
and other pieces alternate, so that many formulas delay no other topic. A piece makes about one native call, so that a
call of the feeder waits for one piece only.
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
    """Any thread may call `put`, only the thread of the calls the rest; `running` notes whether it works or waits."""

    def __init__(self, running: Calls) -> None:
        self._running = running
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # The first subscriptions of the session, then refused ones and those that are made again.
        self.pieces: deque[Callable[[], object]] = deque()
        # Formulas that wait to be subscribed; a dict keeps their order.
        self.formulas: dict[Topic, None] = {}
        # How many calls and pieces ended in an exception.
        self.failed = 0
        self._in_a_row = 0
        self._was_formula = False

    def put(self, call: Callable[[], object]) -> None:
        """Queue a call."""
        self._calls.put(call)

    def wake(self) -> None:
        """End a wait for calls."""
        self._calls.put(int)

    def forget(self) -> None:
        """Drop the background work of the session that has ended."""
        self.pieces.clear()
        self.formulas.clear()
        self._in_a_row = 0

    def do_call(self, timeout: float) -> bool:
        """Do the next call, and wait for it up to `timeout` seconds; return whether there was one."""
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
        """Do the next call, unless `CALLS_IN_A_ROW` were done and background work is next."""
        if self._in_a_row < intervals.CALLS_IN_A_ROW and self.do_call(timeout):
            self._in_a_row += 1
            return True
        self._in_a_row = 0
        return False

    def next_formula(self, has_others: bool) -> Topic | None:
        """Return the formula that is next; if there is other work, only at every second call."""
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
            # The call was about one topic. The session still serves all others, so it continues.
            self.failed += 1
            logger.exception("a call of the xtquant session failed")
