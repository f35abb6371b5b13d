"""Guard: the one lock of the trade source. Every change under it wakes the threads that wait for a condition."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Guard:
    """Use it as a context manager; a thread may enter it repeatedly. `closing` is True once the source closes."""

    def __init__(self) -> None:
        self.closing = False
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        self._changed.acquire()

    def __exit__(self, *exc: object) -> None:
        self._changed.release()

    def notify(self) -> None:
        """Wake the threads that wait. The caller holds the lock."""
        self._changed.notify_all()

    def close(self) -> None:
        """Note that the source closes: every wait ends."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until `condition` holds, the source closes, or `seconds` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closing or condition(), seconds)
