"""How long messages of market data take from the feeder to this worker, and from there to the sockets. Pure.

A message is timed at most every `SAMPLE_EVERY` seconds, because to time each would cost as much as to relay it.
"""

from __future__ import annotations

from collections import deque

from qmt_bridge.observation.delays import SAMPLE_EVERY, Delays

# Samples of some ten seconds: more wait only where nobody copies them to the metrics.
_KEPT = 1000


class Passage:
    """The samples of one worker; `now` is time.monotonic() or the like."""

    def __init__(self) -> None:
        self.publish_to_worker = Delays()
        self.worker_to_socket = Delays()
        # Seconds of each sample that is not in the metrics yet.
        self.untold: tuple[deque[float], deque[float]] = (deque(maxlen=_KEPT), deque(maxlen=_KEPT))
        # When a message is timed next.
        self.sample_at = 0.0
        # Whether one of this turn is being timed.
        self.sampled = False
        self._taken_at = 0.0

    def took(self, published_ns: int, time_ns: int, now: float) -> None:
        """Take that a message was received in a turn that began at `now`; 0: it was none of market data."""
        if not published_ns:
            return
        self.sample_at = now + SAMPLE_EVERY
        self.sampled = True
        self._taken_at = now
        delay = max(0.0, (time_ns - published_ns) / 1e9)
        self.publish_to_worker.add(delay, now)
        self.untold[0].append(delay)

    def written(self, now: float) -> None:
        """Take that the frames of the turn have been written, as far as the clients had room."""
        self.sampled = False
        delay = now - self._taken_at
        self.worker_to_socket.add(delay, now)
        self.untold[1].append(delay)
