"""Snapshots of whole markets that come in several lines: their ticks until the last line is there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from feeder.push.route import encoded
from qmt_bridge.wire.topics import Topic

# Bytes of the lines of a snapshot, and of all that a pusher has begun: that of a market has 3 MB.
SNAPSHOT_BYTES = 16 * 1024 * 1024
SNAPSHOTS_BYTES = 32 * 1024 * 1024
TOO_LARGE = f"a snapshot has at most {SNAPSHOT_BYTES:,} bytes, and those that have not ended {SNAPSHOTS_BYTES:,}"


class Snapshots:
    """The snapshots of one pusher that have not ended, with encoded ticks."""

    def __init__(self) -> None:
        self._ticks: dict[Topic, dict[str, msgspec.Raw]] = {}
        self._sizes: dict[Topic, int] = {}
        self._size = 0

    def add(self, topic: Topic, ticks: Mapping[str, Any], size: int) -> bool:
        """Add a part, a line of `size` bytes; return False, and forget all of it, if the snapshot is too large.

        Raise `BadLine` for a part that cannot be encoded; nothing of it is added.
        """
        pieces = {code: msgspec.Raw(encoded(tick)) for code, tick in ticks.items()}
        self._size += size
        self._sizes[topic] = self._sizes.get(topic, 0) + size
        if self._sizes[topic] > SNAPSHOT_BYTES or self._size > SNAPSHOTS_BYTES:
            self.drop(topic)
            return False
        # In place: a copy for each part would cost the square of their number.
        self._ticks.setdefault(topic, {}).update(pieces)
        return True

    def take(self, topic: Topic) -> Mapping[str, msgspec.Raw]:
        """Return the ticks of all parts, and forget them."""
        found = self._ticks.get(topic, {})
        self.drop(topic)
        return found

    def drop(self, topic: Topic) -> None:
        """Forget a snapshot."""
        self._ticks.pop(topic, None)
        self._size -= self._sizes.pop(topic, 0)
