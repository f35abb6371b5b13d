"""What clients send below the requests: frames with a price, worked off in slices.

Parsing a frame costs a worker some 5 us whatever is in it, so 256 KB of pings, which one read may return, would keep
the loop busy for 200 ms. A socket may spend a share of the loop's time, and so may all sockets together. Beyond it,
data wait in a queue, from which the worker takes a slice at a time. Where little waits comes first, so a good client
does not wait for hundreds that send as much as they may. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from itertools import count
from typing import Protocol

# Seconds of the loop that one frame and one byte take.
FRAME_COST = 5e-6
BYTE_COST = 2e-9
# Seconds that the session takes for a message beyond its frames, also if it refuses the request.
MESSAGE_COST = 25e-6
# Bytes that are parsed at a time: at most 341 frames, 2 ms.
SLICE = 2048
# Seconds of the loop for one socket in one turn.
TURN = 0.001
# The part of the loop's time that one socket may spend without delay (2,000 frames a second) ...
SOCKET_SHARE = 0.01
# ... and the seconds of the loop that it may spend at once (4,000 frames).
BURST = 0.02
# Seconds of the loop that a socket owes when it is closed: 200,000 frames more than it may send.
FLOOD = 1.0
# The part of the loop's time that all sockets within their share may spend together, and what they may spend at once.
ALL_SHARE = 0.2
ALL_BURST = 0.02
# The part of the loop's time that all sockets get together which have spent their own.
QUEUE_SHARE = 0.1
# Seconds by which each waiting byte lets a socket wait longer than one that has come at the same time with none: 64 KB
# wait for all that is smaller and not 30 s younger.
BYTE_PATIENCE = 30.0 / 65536
# Bytes of one worker that may wait to be parsed. One read may return 64 KB, and a worker may have thousands of sockets.
WAITING_BYTES = 32 * 1024 * 1024


class Meter:
    """What may be spent, and what has been spent: a `share` of the loop's time, and a `burst` at once."""

    __slots__ = ("_paid_at",)
    share = SOCKET_SHARE
    burst = BURST

    def __init__(self) -> None:
        # When all that was spent will be paid for by the passing of time.
        self._paid_at = 0.0

    def spend(self, cost: float, now: float) -> None:
        """Count `cost` seconds of the loop."""
        self._paid_at = max(self._paid_at, now) + cost / self.share

    def debt(self, now: float) -> float:
        """Return how many seconds of the loop were spent beyond the share and the burst; 0 if none were."""
        return max(0.0, (self._paid_at - now) * self.share - self.burst)

    def free_at(self) -> float:
        """Return when more may be spent."""
        return self._paid_at - self.burst / self.share


class Within(Meter):
    """What all sockets may spend that are within their share."""

    __slots__ = ()
    share = ALL_SHARE
    burst = ALL_BURST


class Over(Meter):
    """What all sockets may spend that have spent theirs."""

    __slots__ = ()
    share = QUEUE_SHARE
    burst = 0.0


class Source(Protocol):
    """A socket whose received data wait (writer.PreparedFrames)."""

    # What it has spent.
    meter: Meter

    @property
    def waiting(self) -> int:
        """Return how many bytes wait."""

    def work_off(self, now: float) -> float:
        """Parse what waits, for about `TURN` seconds; return the cost. Queue again if there is more."""


class Queue:
    """The sockets of one loop whose received data wait. Sockets within their share come first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, within: type[Meter] = Within, over: type[Meter] = Over) -> None:
        # Bytes that wait for all sockets.
        self.waiting = 0
        self._loop = loop
        # By the time when they have come and by what waits; of two that are equal, the one that came first.
        self._within: list[tuple[float, int, Source]] = []
        self._over: deque[Source] = deque()
        self._numbers = count()
        self._spent_within = within()
        self._spent_over = over()
        self._timer: asyncio.Handle | None = None
        self._due = 0.0

    def add(self, source: Source) -> None:
        """Let `source` work off what waits when it is its turn; it must not be in the queue."""
        now = self._loop.time()
        if source.meter.debt(now) > 0:
            self._over.append(source)
        else:
            heapq.heappush(self._within, (now + source.waiting * BYTE_PATIENCE, next(self._numbers), source))
        self._plan(now)

    def passes(self, meter: Meter, now: float) -> bool:
        """Return whether a socket may spend at once, without a place in the queue."""
        return not self._within and meter.debt(now) <= 0 and self._spent_within.debt(now) <= 0

    def spend(self, cost: float, now: float) -> None:
        """Count what a socket has spent without a place in the queue."""
        self._spent_within.spend(cost, now)

    def _plan(self, now: float) -> None:
        due = self._spent_within.free_at() if self._within else self._spent_over.free_at()
        if self._within and self._over:
            due = min(due, self._spent_over.free_at())
        if self._timer is not None:
            if self._due <= max(due, now):
                return
            self._timer.cancel()
        self._due = max(due, now)
        self._timer = self._loop.call_soon(self._run) if due <= now else self._loop.call_at(due, self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._within and self._spent_within.free_at() <= now:
            _, _, source = heapq.heappop(self._within)
            self._spent_within.spend(source.work_off(now), now)
        elif self._over and self._spent_over.free_at() <= now:
            self._spent_over.spend(self._over.popleft().work_off(now), now)
        if self._within or self._over:
            self._plan(now)
