"""How many bytes may be on their way to one client: a window that follows how fast the client reads.

Pure; `now` is in seconds of any clock. A ping goes out behind the data. Its pong says that the client's WebSocket
library has read everything before it, which the kernel cannot say: its buffers take megabytes of a client that reads
ten frames a second. As congestion control does, the window begins small, grows while pongs come back quickly, and
shrinks to what the client reads within the time that a pong may take.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import NamedTuple

# Bytes that a new client is sent before its first pong, and the bounds. What one frame takes always fits.
FIRST = 16 * 1024
SMALLEST = 1024
LARGEST = 16 * 1024 * 1024
# Seconds between two pings while data flows, to a client that answers late and to one that answers soon. A ping
# and its pong cost a worker some 35 us; a thousand clients that answer four times a second would take 14 % of a core.
OFTEN = 0.25
SELDOM = 1.0
# A ping is due with the n-th part of the window, whatever the time.
PING_PARTS = 4
# Seconds over which it is measured how fast the client reads; over less, a burst would look like a fast client.
MEASURED = 0.05
# A client that has answered so often within this part of the allowed delay answers soon.
SOON = 0.25
SOON_PONGS = 8
# Seconds in which the first pong of a client may come soon.
FIRST_SOON = 0.02
# Seconds without data after which a ping shows whether the client is still there.
KEEPALIVE = 20.0
# A pong may take this part of the lag that is allowed; the rest is for what waits in the outbox.
PONG_PART = 0.5


class Written(NamedTuple):
    """A place in what was written that the client can acknowledge: a ping, or a numbered frame (sending/acks.py)."""

    number: int
    at: float
    # Bytes written up to this place, and how many of them were on their way.
    position: int
    in_flight: int


class Window:
    """Counts what was written and what was read; tells when to write a ping, and how much more may be written."""

    __slots__ = (
        "_acknowledged",
        "_measured",
        "_number",
        "_ping_bytes",
        "_ping_due",
        "_pinged_at",
        "_pings",
        "_rate",
        "_round_trip",
        "_soon",
        "_unpinged",
        "_written",
        "allowed",
        "late_at",
        "left",
        "progress_at",
        "size",
    )

    def __init__(self, lag: float, now: float) -> None:
        """Allow `lag` seconds between write and read."""
        self.size = FIRST
        # When the newest pong came that had been waited for.
        self.progress_at = now
        # Seconds that a pong may take before the client counts as late.
        self.allowed = PONG_PART * lag
        # Bytes that may be written before `late_at`, when the pong that is waited for will be late.
        self.left = FIRST
        self.late_at = math.inf
        self._written = self._acknowledged = 0
        # Bytes behind the newest ping, and how many of them, or which time, make the next one due.
        self._unpinged = 0
        self._ping_bytes = FIRST // PING_PARTS
        self._ping_due = now
        self._pinged_at = now - KEEPALIVE
        self._number = 0
        # None while no pong is waited for: an empty deque takes 624 bytes.
        self._pings: deque[Written] | None = None
        self._round_trip = 0.0
        # Bytes a second, and when and at which position they were last measured.
        self._rate = 0.0
        self._measured = now, 0
        # How many pongs have come soon, one after the other.
        self._soon = 0

    @property
    def in_flight(self) -> int:
        """Return how many bytes were written that the client is not known to have read."""
        return self._written - self._acknowledged

    def is_quick(self, now: float) -> bool:
        """Return whether the client has answered soon, and the pong that is waited for may still come soon.

        A client that has not answered yet counts for a moment only: others wait for it, and it may never read.
        """
        if not self._pings:
            return self._soon > 0 or not self._acknowledged
        if self._soon or not self._acknowledged:
            return now - self._pings[0].at <= (SOON * self.allowed if self._soon else FIRST_SOON)
        return False

    def room(self, now: float) -> int:
        """Return how many bytes may be written. Whatever it is, one frame may be while nothing is in flight."""
        return max(0, self.left) if now <= self.late_at else 0

    def lift(self) -> None:
        """Let everything be written from now on: the server stops and waits for no pong."""
        self.allowed = self.late_at = math.inf
        self.size = self.left = sys.maxsize

    def lag(self, now: float) -> float:
        """Return how many seconds passed between write and read, of what was read last or is waited for."""
        waiting = now - self._pings[0].at if self._pings else 0.0
        return max(waiting, self._round_trip if self.in_flight else 0.0)

    def waits(self, now: float) -> float:
        """Return for how many seconds a pong has been waited for without any progress."""
        return now - max(self._pings[0].at, self.progress_at) if self._pings else 0.0

    def silence(self, now: float) -> float:
        """Return for how many seconds a pong has been waited for: the client may be gone."""
        return self.waits(now)

    def wrote(self, size: int, now: float) -> bytes:
        """Count bytes of data; return the ping to write behind them, or nothing."""
        if self.left == self.size and now - self.progress_at > 2 * MEASURED:
            # A pause says nothing of how fast the client reads.
            self._measured = now, self._written
        self._written += size
        self.left -= size
        self._unpinged += size
        if self._unpinged < self._ping_bytes and now < self._ping_due:
            return b""
        return self._ping(now)

    def keep_alive(self, now: float) -> bytes:
        """Return the ping that is due although no data is written, or nothing.

        The window may have shrunk below what is in flight behind the newest ping. Without another one no pong would
        come any more.
        """
        if not self._pings and (now - self._pinged_at >= KEEPALIVE or not self.room(now)):
            return self._ping(now)
        return b""

    def probe(self, now: float) -> bytes:
        """Return a ping that measures now how soon the client answers; nothing while a pong is waited for."""
        return b"" if self._pings else self._ping(now)

    @property
    def round_trip(self) -> float:
        """Return the seconds that the newest pong took, which came at `progress_at`."""
        return self._round_trip

    def acknowledge(self, number: bytes, now: float) -> bool:
        """Take the payload of a pong; return whether it was waited for.

        A pong also answers all earlier pings (RFC 6455, 5.5.3).
        """
        ping = self._answered(number)
        if ping is None:
            return False
        pings = self._pings
        self.late_at = pings[0].at + self.allowed if pings else math.inf
        self._acknowledged = ping.position
        self.progress_at = now
        self._round_trip = now - ping.at
        self._measure(now)
        if self.allowed < math.inf:
            self._adapt(ping)
        self.left = self.size - self.in_flight
        self._ping_bytes = self.size // PING_PARTS
        if not pings:
            self._ping_due = self._pinged_at + (SELDOM if self._soon >= SOON_PONGS else OFTEN)
        return True

    @property
    def _span(self) -> float:
        """Return for how many seconds of data the window has to be large enough.

        A ping goes out with each quarter of it. To a client that answers soon, time alone shall make pings due.
        """
        return PING_PARTS * SELDOM if self._soon >= SOON_PONGS else self.allowed

    def _answered(self, number: bytes) -> Written | None:
        """Forget the pings that a pong answers; return the newest of them."""
        pings = self._pings
        wanted = int.from_bytes(number, "big") if len(number) == _NUMBER_BYTES else 0
        if not pings or not pings[0].number <= wanted <= pings[-1].number:
            return None
        while (ping := pings.popleft()).number != wanted:
            pass
        if not pings:
            self._pings = None
        return ping

    def _adapt(self, ping: Written) -> None:
        late = self._round_trip / self.allowed
        self._soon = self._soon + 1 if late < SOON else 0
        if late > 1:
            # What was in flight has been read in this time; so much less is read in the time that is allowed.
            self.size = max(SMALLEST, min(self.size, int(ping.in_flight / late)))
        elif late < 0.5:
            is_small = late < SOON and 2 * ping.in_flight >= self.size
            needed = sys.maxsize if is_small else int(self._rate * self._span)
            self.size = max(self.size, min(LARGEST, 2 * self.size, needed))
        elif 2 * ping.in_flight >= self.size:
            self.size = min(LARGEST, self.size + self.size // 8)

    def _measure(self, now: float) -> None:
        """Measure how many bytes a second the client reads, or is sent if it could read more."""
        at, position = self._measured
        if now - at >= MEASURED:
            self._rate = (self._acknowledged - position) / (now - at)
            self._measured = now, self._acknowledged

    def _ping(self, now: float) -> bytes:
        self._number += 1
        self._unpinged = 0
        self._pinged_at = now
        if self._pings is None:
            self._pings = deque()
            self.late_at = now + self.allowed
            # While a pong is waited for, only bytes make the next ping due.
            self._ping_due = math.inf
        self._pings.append(Written(self._number, now, self._written, self.in_flight))
        return _HEADER + self._number.to_bytes(_NUMBER_BYTES, "big")


_NUMBER_BYTES = 4
# A ping of a server: not masked (RFC 6455, 5.2).
_HEADER = bytes((0x89, _NUMBER_BYTES))
