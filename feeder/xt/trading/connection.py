"""Connection: one XtQuantTrader, which can connect only once, with the threads of its calls and of its pushes.

Calls into xtquant wait without a timeout, so each runs on a daemon thread that can be left behind. Pushes and answers
come on one more thread, in their order.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from feeder.xt.call_times import CallTimes
from feeder.xt.trading.accounts import Account
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.guard import Guard
from feeder.xt.trading.pushes import Pushes
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)


class Connection:
    """One XtQuantTrader from its construction to its end. The guard protects the attributes."""

    def __init__(self, guard: Guard, failures: Failures, times: CallTimes) -> None:
        self._guard = guard
        self._failures = failures
        self.times = times
        self.pushes = Pushes(failures)
        self.trader: Any = None
        # Whether xttrader's `start` has returned; before that, its `stop` raises.
        self.started = False
        # Whether the attempt to connect has ended; then `failure` says why there is no connection, or is None.
        self.opened = False
        self.failure: str | None = None
        # `lost`: the terminal disconnected, or the source closed the connection.
        self.lost = False
        self.ended = False
        # Calls into xtquant that have not returned.
        self.calls = 0
        # Callbacks and answers so far.
        self.heard = 0
        # The accounts that are subscribed, and those whose subscription was refused at least once.
        self.joined: list[Account] = []
        self.refused: set[Account] = set()

    @property
    def is_over(self) -> bool:
        """Return whether there will be no more events."""
        return self.lost or self.ended

    def call(self, call: Callable[..., object], *args: object) -> threading.Thread:
        """Run a call into xtquant on a thread of its own, and count it until it returns."""

        def run() -> None:
            try:
                call(*args)
            except Exception:
                self._failures.note(f"call of {call.__name__}")
            finally:
                with self._guard:
                    self.calls -= 1
                    self._guard.notify()

        with self._guard:
            self.calls += 1
        thread = threading.Thread(target=run, name="xtquant-trade-call", daemon=True)
        thread.start()
        return thread

    def note_heard(self) -> None:
        """Note that a callback or an answer came."""
        with self._guard:
            self.heard += 1
            self._guard.notify()

    def lose(self, publish_loss: Callable[[Account, int], None]) -> None:
        """Note that the connection is lost, and publish it, once, for each account that was subscribed."""
        received_ns = clock.time_ns()
        with self._guard:
            if not self.lost:
                self.lost = True
                self._guard.notify()
                for account in self.joined:
                    publish_loss(account, received_ns)

    def open(self, make_trader: Callable[[str, int], Any], userdata: str, callback: Any) -> None:
        """Connect, once; stop again if the source has ended this connection meanwhile."""
        try:
            failure = self._connect(make_trader, userdata, callback)
        except Exception as exc:
            logger.debug("cannot open a trade session", exc_info=True)
            failure = f"{type(exc).__name__}: {exc}"
        with self._guard:
            self.opened, self.failure = True, failure
            self._guard.notify()
            is_given_up = self.ended
        if is_given_up:
            self.stop()

    def _connect(self, make_trader: Callable[[str, int], Any], userdata: str, callback: Any) -> str | None:
        # This must not run on the main thread: the constructor replaces the thread's event loop (xttrader.py 150).
        self.trader = trader = make_trader(userdata, _session_number())
        trader.register_callback(callback)
        # xttrader itself delivers a cancel error only if this object requested the cancel (xttrader.py 330).
        trader.async_client.bindOnCancelErrorCallback(partial(self.pushes.submit, callback.on_cancel_error))
        with self.times.measure("start"):
            trader.start()
        # Before `connect`, because pushes begin with it.
        trader.executor = trader.resp_executor = trader.relaxed_resp_executor = self.pushes
        self.started = True
        with self.times.measure("connect"):
            result = trader.connect()
        if result == 0:
            return None
        hint = "" if Path(userdata).is_dir() else ", and xt_userdata is not a folder"
        return f"connect returned {result!r}{hint}"

    def subscribe(self, stock_account: Any) -> str | None:
        """Subscribe an account; return None, or the reason why it was refused."""
        try:
            with self.times.measure("subscribe"):
                result = self.trader.subscribe(stock_account)
        except Exception as exc:
            logger.debug("cannot subscribe an account", exc_info=True)
            return f"subscribe raised {type(exc).__name__}"
        return None if result == 0 else f"subscribe returned {result!r}"

    def stop(self) -> None:
        """Stop the XtQuantTrader and the thread of pushes."""
        trader = self.trader
        if trader is not None:
            # A call waits for its answer without a timeout (xttrader.py 419), and no more answers come: end the wait.
            for seq in list(trader.cbs):
                answer = trader.cbs.pop(seq, None)
                if answer is not None:
                    answer(None)
        try:
            if self.started:
                with self.times.measure("stop"):
                    trader.stop()
        finally:
            self.pushes.shutdown(wait=False)
            if trader is not None:
                # xttrader never runs its event loop, and never closes it.
                trader.loop.close()


def _session_number() -> int:
    # A C int. Sessions with equal numbers would share one queue. The milliseconds differ between the sessions of one
    # process; the multiplier (of Knuth's hash) keeps processes with close ids far apart.
    return (clock.time_ns() // 1_000_000 + os.getpid() * 2_654_435_761) % (2**31 - 1) + 1
