"""How long calls into xtquant take, by their names, for the metrics of the feeder."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from qmt_bridge.observation.delays import Delays

# Names are those of functions that this package calls, some thirty.
MOST_NAMES = 100


class CallTimes:
    """The times of the calls into one module of xtquant, `module`. Any thread may use it."""

    def __init__(self, module: str) -> None:
        self._module = module
        # Held for the count alone, never while a call runs.
        self._lock = threading.Lock()
        self._times: dict[str, Delays] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count a call that has ended, however it ended."""
        with self._lock:
            times = self._times.get(name)
            if times is None:
                if len(self._times) >= MOST_NAMES:
                    return
                times = self._times[name] = Delays()
            times.add(seconds, time.monotonic())

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time of what is done within."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def shown(self) -> Mapping[str, Delays]:
        """Return the times by ``module.name``."""
        return {f"{self._module}.{name}": times for name, times in self._times.copy().items()}
