"""What is missing between two stored messages of a topic, and before the first one. Pure."""

from __future__ import annotations

from typing import NamedTuple

from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.positions import Position


class Place(NamedTuple):
    """A position in a topic and the time of its record in ms since 1970; None if that is unknown."""

    position: Position
    ms: int | None = None


def between(before: Place, after: Place) -> list[Hole]:
    """Return what is missing between two messages that follow each other in the store."""
    (left, left_ms), (right, right_ms) = before, after
    if left.epoch == right.epoch:
        return [] if right.seq <= left.seq + 1 else [Hole("gap", left, right, left_ms, right_ms)]
    return [Hole("restart", left, right, left_ms, right_ms), *from_the_start(after, left_ms)]


def from_the_start(first: Place, from_ms: int | None = None) -> list[Hole]:
    """Return what is missing of an epoch before the first message that is stored of it."""
    position, ms = first
    if position.seq <= 1:
        return []
    return [Hole("gap", Position(position.epoch, 0), position, from_ms, ms)]
