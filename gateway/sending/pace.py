"""A limit on the rate of a topic's frames, set by the client (option ``max_rate_ms``). Pure."""

from __future__ import annotations

from gateway.sending.merged import Merged
from qmt_bridge.wire.frames import BATCH_BYTES, Frame
from qmt_bridge.wire.topics import Versions


class Pace:
    """Every `interval` seconds, passes on what has arrived: the newest version of each thing, and every event."""

    __slots__ = ("_waiting", "due", "interval")

    def __init__(self, interval: float, versions: Versions) -> None:
        self.interval = interval
        # When the next frame may pass, in seconds.
        self.due = 0.0
        self._waiting = Merged(versions)

    @property
    def waits(self) -> bool:
        """Return whether something was kept for `take`."""
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Return whether more than one frame's size of irreplaceable records waits; they are then sent early.

        Otherwise an hour of trade prints would wait in memory for a client that asked for one frame an hour.
        """
        return self._waiting.kept > BATCH_BYTES

    def admits(self, frame: Frame, now: float) -> bool:
        """Return whether `frame` may be sent at once; otherwise it is kept for `take`."""
        if not self._waiting and now >= self.due:
            self.due = now + self.interval
            return True
        self._waiting.add(frame)
        return False

    def take(self, now: float) -> list[Frame]:
        """Return what was kept, in order."""
        waiting, self._waiting = self._waiting, Merged(self._waiting.versions)
        self.due = now + self.interval
        return list(waiting.batches())
