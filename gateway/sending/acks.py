"""A window for a client that acknowledges data frames by their ``seq``: lag to its program, not to its library.

Pure. Pongs count until the first acknowledgement that names a known frame, so a client that names none changes nothing.
From then on only acknowledgements do; pings go on as the sign that the client is there. Frames are known from the first
acknowledgement on. What was written before may wait in the client's library, which answers pings at once: while
acknowledgements of it come, little more is written.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from gateway.sending.window import FIRST, KEEPALIVE, Window, Written

# Frames that may be unacknowledged, and the least size of one, by which the window's bytes keep below that.
MOST_MARKERS = 4096
_LEAST_BYTES = 64
# Seconds for which little is written after an acknowledgement of a frame that is older than those that are known.
_HOLD = 2.0


class AckWindow(Window):
    """Continues a window, and knows each data frame that is not acknowledged."""

    __slots__ = ("_adapted_at", "_began", "_held_until", "_markers", "_probed_at", "_unknown", "_wrote_at", "counts")

    def __init__(self, before: Window) -> None:
        """Take over what `before` has counted and measured."""
        for name in Window.__slots__:
            setattr(self, name, getattr(before, name))
        # Whether acknowledgements count, and no longer pongs.
        self.counts = False
        # The frames that are not acknowledged, in the order in which they were written, numbered by `seq`.
        self._markers: deque[Written] = deque()
        # Until the first of them is acknowledged: from where on frames are known, until when little is written, and the
        # newest `seq` that was not known.
        self._began = self._written
        self._held_until = -math.inf
        self._unknown = 0
        self._wrote_at = -math.inf
        # The position up to which the size has been adapted: once for each round trip.
        self._adapted_at = 0
        # When data was written first although the client was late, since its last acknowledgement.
        self._probed_at: float | None = None

    def mark(self, seqs: Sequence[int], frames: Sequence[bytes], now: float) -> None:
        """Note frames that are written next, each with its ``seq``, or 0 if it has none."""
        position, in_flight = self._written, self.in_flight
        for seq, frame in zip(seqs, frames, strict=True):
            position += len(frame)
            in_flight += len(frame)
            if seq:
                self._markers.append(Written(seq, now, position, in_flight))
        if not self.counts:
            while len(self._markers) > MOST_MARKERS:
                self._markers.popleft()
        elif now > self.late_at and self._probed_at is None and any(seqs):
            self._probed_at = now

    def processed(self, seq: int, now: float) -> bool:
        """Take an acknowledgement: of the first frame with that ``seq``, and all before it; return if there is one."""
        markers = self._markers
        if all(marker.number != seq for marker in markers):
            if not self.counts and self._unknown != seq and 0 < seq <= max((m.number for m in markers), default=0):
                self._unknown = seq
                self._held_until = now + _HOLD
                self._hold(now)
            return False
        while (marker := markers.popleft()).number != seq:
            pass
        self.counts = True
        self._acknowledged = marker.position if markers else self._written
        self._probed_at = None
        self.progress_at = now
        self._round_trip = now - marker.at
        self._measure(now)
        if self.allowed < math.inf and (marker.position > self._adapted_at or self._round_trip > self.allowed):
            self._adapt(marker)
            self._adapted_at = self._written
        self._open()
        return True

    def room(self, now: float) -> int:
        """Return how many bytes may be written; to a client that is late, one frame now and then.

        Acknowledgements may stop although all was processed: of two topics that have the same ``seq`` only one frame
        was acknowledged, or the client counts to ten. The answer to one more frame shows it.
        """
        if not self.counts:
            self.left = self.size - self.in_flight
            self._hold(now)
            return super().room(now)
        if now <= self.late_at:
            return super().room(now)
        pause = max(self.allowed, 2 * self._round_trip)
        return 1 if now - max(self._wrote_at, self.progress_at) >= pause else 0

    def lag(self, now: float) -> float:
        if not self.counts:
            return super().lag(now)
        # Nothing more is written while the client is late and nothing waits for it.
        until = min(now, self._wrote_at + 2 * self.allowed)
        waiting = until - self._markers[0].at if self._markers else 0.0
        return max(waiting, self._round_trip if self.in_flight else 0.0)

    def waits(self, now: float) -> float:
        if not self.counts:
            return super().waits(now)
        return 0.0 if self._probed_at is None else now - self._probed_at

    def silence(self, now: float) -> float:
        return now - self._pings[0].at if self._pings else 0.0

    def wrote(self, size: int, now: float) -> bytes:
        self._wrote_at = now
        if not self.counts:
            ping = super().wrote(size, now)
            self._hold(now)
            return ping
        self._written += size
        if not self._markers:
            # Notices only: they have no number, so nobody acknowledges them.
            self._acknowledged = self._written
        self._open()
        return b""

    def keep_alive(self, now: float) -> bytes:
        if not self.counts:
            return super().keep_alive(now)
        if self._pings or now - self._pinged_at < KEEPALIVE:
            return b""
        ping = self._ping(now)
        self._open()
        return ping

    def acknowledge(self, number: bytes, now: float) -> bool:
        if not self.counts:
            awaited = super().acknowledge(number, now)
            self._hold(now)
            return awaited
        return self._answered(number) is not None

    def _hold(self, now: float) -> None:
        """Let little be written while the client acknowledges what is older than the frames that are known."""
        if now < self._held_until and self.allowed < math.inf:
            self.left = min(self.left, FIRST + self._began - self._written)

    def _open(self) -> None:
        """Compute what may be written from now on."""
        self.late_at = self._markers[0].at + self.allowed if self._markers else math.inf
        if self.allowed < math.inf:
            self.left = min(self.size - self.in_flight, (MOST_MARKERS - len(self._markers)) * _LEAST_BYTES)
