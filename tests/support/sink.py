"""What recording sinks share: they are notified of what they are told, and wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


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
