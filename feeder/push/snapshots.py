"""Snapshots of whole markets that come in several lines: their ticks until the last line is there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from feeder.push.route import encoded
from qmt_bridge.wire.topics import Topic

# Bytes of the lines of a snapshot: that of a market has 3 MB. Then those that a pusher has begun, and those of all
# pushers, with what each tick takes beside its line (measured, 150 to 200): a line may have 300,000 tiny ticks.
SNAPSHOT_BYTES = 16 * 1024 * 1024
SNAPSHOTS_BYTES = 32 * 1024 * 1024
ALL_BYTES = 64 * 1024 * 1024
_OVERHEAD = 200
TOO_LARGE = (
    f"a snapshot has at most {SNAPSHOT_BYTES:,} bytes, those that have not ended {SNAPSHOTS_BYTES:,} of a pusher and "
    f"{ALL_BYTES:,} of all pushers, where a tick counts {_OVERHEAD} more"
)


class Unfinished:
    """The bytes of the snapshots of all pushers that have not ended."""

    def __init__(self) -> None:
        self.size = 0


class Snapshots:
    """The snapshots of one pusher that have not ended, with encoded ticks; `unfinished` counts those of all pushers."""

    def __init__(self, unfinished: Unfinished) -> None:
        self._unfinished = unfinished
        self._ticks: dict[Topic, dict[str, msgspec.Raw]] = {}
        # Of the lines, and with what the ticks take beside them.
        self._lines: dict[Topic, int] = {}
        self._costs: dict[Topic, int] = {}
        self._cost = 0

    def add(self, topic: Topic, ticks: Mapping[str, Any], size: int) -> bool:
        """Add a part, a line of `size` bytes; return False, and forget all of it, if the snapshot is too large.

        Raise `BadLine` for a part that cannot be encoded; nothing of it is added.
        """
        cost = size + _OVERHEAD * len(ticks)
        lines = self._lines.get(topic, 0) + size
        # Before it is encoded: what finds no room takes none.
        if lines > SNAPSHOT_BYTES or self._cost + cost > SNAPSHOTS_BYTES or self._unfinished.size + cost > ALL_BYTES:
            self.drop(topic)
            return False
        pieces = {code: msgspec.Raw(encoded(tick)) for code, tick in ticks.items()}
        self._lines[topic] = lines
        self._costs[topic] = self._costs.get(topic, 0) + cost
        self._cost += cost
        self._unfinished.size += cost
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
        self._lines.pop(topic, None)
        cost = self._costs.pop(topic, 0)
        self._cost -= cost
        self._unfinished.size -= cost

    def clear(self) -> None:
        """Forget all snapshots, so that they count for no other pusher any more."""
        for topic in list(self._ticks):
            self.drop(topic)
