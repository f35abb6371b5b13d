"""The thread on which xttrader's pushes and answers come, in their order, with texts that can be read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from feeder.xt import normalize
from feeder.xt.trading.failures import Failures


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


def _is_plain(value: object) -> bool:
    """Return whether xttrader reads no field of a value: it is None, a number or a list of records."""
    return value is None or isinstance(value, int | float) or hasattr(type(value), "__len__")
