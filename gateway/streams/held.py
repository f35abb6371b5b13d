"""The frames that a stream holds for members that wait. Pure.

Their number has no bound of its own: a client may take minutes to read a morning from the store. What is dropped is the
oldest, and it is not lost: newer values replace it, and events and stored records are read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from qmt_bridge.wire.frames import Frame

# What one stream holds: some 250 batches of a market, which are published in 0.3 s at the highest rate.
STREAM_BYTES = 16 * 1024 * 1024
# What all streams of a worker hold, but each of them may always hold the newest few frames.
WORKER_BYTES = 64 * 1024 * 1024
FEWEST = 16
# For the memory that a frame takes besides its body.
OVERHEAD = 200


class HeldBytes:
    """Counts what all streams of a worker hold."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class Held:
    """The frames that have arrived since the first member began to wait, the oldest first."""

    __slots__ = ("_all", "_frames", "_size")

    def __init__(self, held: HeldBytes) -> None:
        """Count in `held`, which all streams share."""
        self._all = held
        self._frames: deque[Frame] | None = None
        self._size = 0

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames, the oldest first."""
        return iter(self._frames or ())

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._frames or ())

    def append(self, frame: Frame) -> None:
        """Hold a frame, and drop the oldest ones if there are too many bytes."""
        if self._frames is None:
            # An empty deque takes 624 bytes, and most streams hold nothing.
            self._frames = deque()
        self._frames.append(frame)
        self._count(len(frame.body) + OVERHEAD)
        while self._size > STREAM_BYTES or (self._all.size > WORKER_BYTES and len(self._frames) > FEWEST):
            self._count(-len(self._frames.popleft().body) - OVERHEAD)

    def clear(self) -> None:
        """Drop all."""
        self._frames = None
        self._count(-self._size)

    def _count(self, size: int) -> None:
        self._size += size
        self._all.size += size
