"""What clients send below the requests: frames with a price, worked off in slices.

Parsing a frame costs a worker some 5 us whatever is in it, so 256 KB of pings, which one read may return, would keep
the loop busy for 200 ms. A socket may spend a share of the loop's time. Beyond it, its data wait in a queue, from
which the worker takes a slice at a time; all sockets in the queue have one share together.
Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

# Seconds of the loop that one frame and one byte take.
FRAME_COST = 5e-6
BYTE_COST = 2e-9
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
# The part of the loop's time that all sockets get together which have spent their own.
QUEUE_SHARE = 0.1


class Meter:
    """What one socket may spend, and what it has spent."""

    __slots__ = ("_paid_at",)

    def __init__(self) -> None:
        # When all that was spent will be paid for by the passing of time.
        self._paid_at = 0.0

    def spend(self, cost: float, now: float) -> None:
        """Count `cost` seconds of the loop."""
        self._paid_at = max(self._paid_at, now) + cost / SOCKET_SHARE

    def debt(self, now: float) -> float:
        """Return how many seconds of the loop were spent beyond the share and the burst; 0 if none were."""
        return max(0.0, (self._paid_at - now) * SOCKET_SHARE - BURST)


class Source(Protocol):
    """A socket whose received data wait (writer.PreparedFrames)."""

    def in_debt(self, now: float) -> bool:
        """Return whether the socket has spent its share."""

    def work_off(self, now: float) -> float:
        """Parse what waits, for about `TURN` seconds; return the cost. Queue again if there is more."""


class Queue:
    """The sockets of one loop whose received data wait. Sockets within their share come first."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._within: deque[Source] = deque()
        self._over: deque[Source] = deque()
        # When sockets in debt may spend again.
        self._free_at = 0.0
        self._timer: asyncio.Handle | None = None

    def add(self, source: Source) -> None:
        """Let `source` work off what waits when it is its turn; it must not be in the queue."""
        now = self._loop.time()
        (self._over if source.in_debt(now) else self._within).append(source)
        self._plan(now)

    def _plan(self, now: float) -> None:
        if self._timer is not None and (not self._within or not isinstance(self._timer, asyncio.TimerHandle)):
            return
        if self._timer is not None:
            # A socket in debt is waited for, but one within its share has come.
            self._timer.cancel()
        if self._within or (self._over and self._free_at <= now):
            self._timer = self._loop.call_soon(self._run)
        elif self._over:
            self._timer = self._loop.call_at(self._free_at, self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._within:
            self._within.popleft().work_off(now)
        elif self._over:
            cost = self._over.popleft().work_off(now)
            self._free_at = max(self._free_at, now) + cost / QUEUE_SHARE
        if self._within or self._over:
            self._plan(now)
