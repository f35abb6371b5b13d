"""Connection: one XtQuantTrader, which can connect only once, with the threads of its calls and of its pushes.

Calls into xtquant wait without a timeout, so each runs on a daemon thread that can be left behind. Pushes and answers
come on one more thread, in their order.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from feeder.xt import normalize
from feeder.xt.trading.accounts import Account
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.guard import Guard

logger = logging.getLogger(__name__)


class Legible:
    """A native object whose texts can be read, whatever their encoding.

    xttrader builds its responses out of native objects (xttrader.py 240). Without this wrapper, a text that is not
    UTF-8 would raise there, and the whole event would be lost.
    """

    def __init__(self, source: object) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.source, name)
        except UnicodeDecodeError as exc:
            return normalize.text(exc.object)


class Pushes:
    """Replaces xttrader's executors: one daemon thread that runs pushes and answers in their order.

    A ThreadPoolExecutor would put an exception into a Future that is never read. It would also raise into native code
    if that pushes after the end.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="xtquant-trade-push", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[..., object], *args: object) -> None:
        """Queue a call (the method of an executor that xttrader uses)."""
        self._calls.put(partial(call, *(arg if _is_plain(arg) else Legible(arg) for arg in args)))

    def shutdown(self, wait: bool = True) -> None:
        """End the thread after the calls that are queued."""
        self._calls.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                self._failures.note("push of xttrader")


class Connection:
    """One XtQuantTrader from its construction to its end. The guard protects the attributes."""

    def __init__(self, guard: Guard, failures: Failures) -> None:
        self._guard = guard
        self._failures = failures
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
        trader.start()
        # Before `connect`, because pushes begin with it.
        trader.executor = trader.resp_executor = trader.relaxed_resp_executor = self.pushes
        self.started = True
        result = trader.connect()
        if result == 0:
            return None
        hint = "" if Path(userdata).is_dir() else ", and xt_userdata is not a folder"
        return f"connect returned {result!r}{hint}"

    def subscribe(self, stock_account: Any) -> str | None:
        """Subscribe an account; return None, or the reason why it was refused."""
        try:
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
                trader.stop()
        finally:
            self.pushes.shutdown(wait=False)
            if trader is not None:
                # xttrader never runs its event loop, and never closes it.
                trader.loop.close()


def _is_plain(value: object) -> bool:
    """Return whether xttrader reads no field of a value: it is None, a number or a list of records."""
    return value is None or isinstance(value, int | float) or hasattr(type(value), "__len__")


def _session_number() -> int:
    # A C int. Sessions with equal numbers would share one queue. The milliseconds differ between the sessions of one
    # process; the multiplier (of Knuth's hash) keeps processes with close ids far apart.
    return (time.time_ns() // 1_000_000 + os.getpid() * 2_654_435_761) % (2**31 - 1) + 1
