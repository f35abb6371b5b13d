"""How long a process has given no sign of life, as its watcher measures it. Pure: time is an argument.

A watcher that was itself stopped (SIGSTOP, a laptop that slept) has heard nothing because it did not listen. It looks
many times a second, so a long time between two of its looks is its own, and counting begins anew.
"""

from __future__ import annotations

# Seconds between two looks of the watcher. Its own work between them takes a second at most.
JUMP = 3.0
# For the first sign of life: importing takes seconds on a busy machine, a login of xtquant's data service two minutes.
START_LIMIT = 180.0


class Pulse:
    """The signs of life of one process. It counts as starting until the first one, and gets more time for that."""

    def __init__(self, limit: float, now: float, start_limit: float = START_LIMIT) -> None:
        """Take `limit` seconds without a sign for the end, `start_limit` before the first; with 0 nothing is judged."""
        self._limit = limit
        self._start_limit = start_limit
        self._looked = now
        self._heard = now
        # Whether there was a first sign of life.
        self.began = False

    def beat(self, now: float) -> None:
        """Note a sign of life."""
        self._heard = now
        self.began = True

    def silence(self, now: float) -> float:
        """Return the seconds since the last sign of life, or since the start. Call it many times a second."""
        if now - self._looked > JUMP:
            self._heard = now
        self._looked = now
        return max(0.0, now - self._heard)

    def frozen(self, now: float) -> bool:
        """Return whether the process has been silent for too long. Call it many times a second."""
        silence = self.silence(now)
        return self._limit > 0 and silence > (self._limit if self.began else max(self._limit, self._start_limit))
