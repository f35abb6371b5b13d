"""What a store has put in front of an epoch from the source's history, and what it proves of completeness. Pure.

The messages of a history have no numbers of the feeder. They get an epoch of their own, which sorts before the one that
they precede and after every earlier one, and are numbered from 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from qmt_bridge.store.holes import Place, between
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.positions import Position

# By so many ns the epoch of a history is before the one that it precedes: no feeder starts within a millisecond after
# another one, and a browser, which rounds an epoch to 256 ns, still tells them apart.
EPOCH_STEP = 2**20


class Filled(msgspec.Struct, frozen=True):
    """A history in the epoch `epoch`, or that there was none; the store keeps it with the topic."""

    epoch: int
    # How many messages it has.
    count: int
    # Since when the source has left out nothing, in ms since 1970.
    from_ms: int
    # Whether it has the last message that is stored before it, so that nothing is missing between them.
    left: bool
    # Nothing is missing before the message of the next epoch with this number, or an earlier one; 0: that is not known.
    until: int

    @property
    def precedes(self) -> int:
        """Return the epoch in front of which it is."""
        return self.epoch + EPOCH_STEP


def opening(filled: Mapping[int, Filled], first: Position, before: Position | None, start_ms: int) -> bool:
    """Return whether nothing is missing between `start_ms` and `first`, the first message from then on.

    `before` is the one that is stored before it, which is of an earlier epoch if there is one.
    """
    found = filled.get(int(first.epoch))
    if found is not None:
        return first.seq == 1 and (found.from_ms <= start_ms or (before is not None and found.left))
    found = filled.get(int(first.epoch) - EPOCH_STEP)
    if found is None or found.count or first.seq > found.until:
        return False
    return found.from_ms <= start_ms or (before is not None and found.left)


def gaps(filled: Mapping[int, Filled], before: Place, after: Place) -> list[Hole]:
    """Return what is missing between two messages that follow each other in the store."""
    left, right = before.position, after.position
    if left.epoch == right.epoch:
        return between(before, after)
    ours, next_ours = filled.get(int(left.epoch)), filled.get(int(right.epoch))
    if next_ours is not None and right.seq == 1 and next_ours.left:
        return []
    if ours is not None and ours.precedes == right.epoch and left.seq == ours.count:
        if right.seq <= ours.until:
            return []
        return [Hole("gap", left, right, before.ms, after.ms)]
    empty = filled.get(int(right.epoch) - EPOCH_STEP)
    if empty is not None and not empty.count and empty.left and right.seq <= empty.until:
        return []
    return between(before, after)


def reached(filled: Mapping[int, Filled], position: Position) -> Position:
    """Return how far a reader is that has everything up to the last message of a history.

    What the feeder has published up to there is in the history too, under numbers of the feeder.
    """
    found = filled.get(int(position.epoch))
    if found is None or position.seq < found.count or not found.until:
        return position
    return Position(found.precedes, found.until - 1)
