"""The base of sinks that record what they are told, so that a test can wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Recording:
    """A recording sink. Subclasses notify `changed` at each call; `until` waits for `seconds` at most."""

    seconds = 10.0

    def __init__(self) -> None:
        self.changed = threading.Condition()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds; check it at each notification and every 20 ms."""
        deadline = time.monotonic() + self.seconds
        with self.changed:
            while not condition():
                assert time.monotonic() < deadline, f"not before the deadline: {vars(self)}"
                self.changed.wait(0.02)
