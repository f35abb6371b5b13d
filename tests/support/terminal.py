"""What tests over the stand-in terminal share: waiting until a condition holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: str = "the condition", seconds: float = 10.0) -> None:
    """Wait until `condition` holds, looking again each 10 ms; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class Recording:
    """The base of a recording sink, which notifies `changed`; `seconds` is the longest wait of `until`."""

    seconds = 10.0

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, looking again at each notification and each 20 ms."""
        deadline = time.monotonic() + self.seconds
        with self.changed:
            while not condition():
                assert time.monotonic() < deadline, f"never came: {vars(self)}"
                self.changed.wait(0.02)
