"""What one member is read from the store of the day before it meets the live stream. Pure."""

from __future__ import annotations

from typing import NamedTuple

from gateway.streams.member import Gap, Outcome, Reader, StoreQuestion
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.positions import NOWHERE, Position

# Seconds without an answer, or without anything new in the answers, after which the client is told what is missing and
# goes live. A supervisor starts a store again within a second.
PATIENCE = 3.0
# Seconds until a store is asked again that does not have yet what the stream has passed on. A store writes ten times a
# second.
AGAIN = 0.1
# Seconds until a store is asked again that completes a day from the source's history.
FILLING_AGAIN = 0.25


class Reading:
    """How far a member has been read the store."""

    __slots__ = ("answered", "at_store", "fruitless_since", "is_behind", "outcome", "question", "reader", "target")

    def __init__(self, reader: Reader, question: StoreQuestion) -> None:
        self.reader = reader
        # What to ask next.
        self.question = question
        # Whether the store is asked, and not the feeder, whether it serves the topic.
        self.at_store = False
        # Whether the store has answered, so that the client knows where its records begin.
        self.answered = False
        # Whether the newest answer did not reach what the stream has passed on.
        self.is_behind = False
        # Since when the store has brought nothing new.
        self.fruitless_since = 0.0
        # The newest position at the feeder when it was asked: what the store has to reach.
        self.target = NOWHERE
        # What the feeder said of the topic.
        self.outcome: Outcome = "live"

    def has_reached(self, position: Position, newest: Position) -> bool:
        """Return whether a reader at `position` has all that was published up to `newest`, and up to `target`."""
        return all(not end.seq or position >= end for end in (newest, self.target))


class Owed(NamedTuple):
    """A gap of which a reader is told once its other side is known."""

    reader: Reader
    gap: Gap


def gap_of(hole: Hole) -> Gap:
    """Return the gap that a store tells of."""
    return Gap(hole.reason, hole.after, hole.before, hole.from_ms, hole.until_ms, hole.backfill)


def position_of(frame: Frame) -> Position:
    """Return the position of a frame."""
    return Position(frame.epoch, frame.seq)


def follows(position: Position, frame: Frame, *, across: bool) -> bool:
    """Return whether `frame` is the next one after `position`; `across`: or the first one of a newer epoch."""
    return position.is_followed_by(position_of(frame), across=across)
