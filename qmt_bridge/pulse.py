"""How long a process has given no sign of life, as far as the one that watches it can tell. Pure: time is an argument.

A watcher that was itself stopped (SIGSTOP, a laptop that slept) has heard nothing because it did not listen. It looks
many times a second, so a long time between two of its looks is its own, and counting begins anew.
"""

from __future__ import annotations

# Seconds between two looks of the watcher. Its own work between them takes a second at most.
JUMP = 3.0


class Pulse:
    """The signs of life of one process. Before the first one it is starting, which may take long, and is not judged."""

    def __init__(self, limit: float, now: float) -> None:
        """Take `limit` seconds without a sign for the end; with 0 nothing is ever judged."""
        self._limit = limit
        self._looked = now
        self._heard: float | None = None

    @property
    def began(self) -> bool:
        """Return whether there was a first sign of life."""
        return self._heard is not None

    def beat(self, now: float) -> None:
        """Note a sign of life."""
        self._heard = now

    def silence(self, now: float) -> float:
        """Return the seconds since the last sign of life; 0 before the first one."""
        if self._heard is not None and now - self._looked > JUMP:
            self._heard = now
        self._looked = now
        return 0.0 if self._heard is None else max(0.0, now - self._heard)

    def frozen(self, now: float) -> bool:
        """Return whether the process has been silent for too long. To be asked many times a second."""
        silence = self.silence(now)
        return self._limit > 0 and silence > self._limit
