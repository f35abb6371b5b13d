"""The position in a stream, and the position after which to read a journal of trade events.

Pure. An epoch is the number of one process of the feeder: nanoseconds since 1970 at its start. A sequence number counts
the messages of one topic from 1 within an epoch; of a journal it goes on counting over all epochs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum, auto
from typing import Annotated

import msgspec


class Step(Enum):
    """How a message relates to the position of its reader."""

    # The next one.
    NEXT = auto()
    # Received already, or of an epoch that a newer one has replaced.
    OLD = auto()
    # Later than the next one: messages between are missing.
    GAP = auto()
    # From another process of the feeder; what is missing is unknown.
    NEW_EPOCH = auto()


class Position(msgspec.Struct, frozen=True, order=True):
    """The epoch and the sequence number of the last message of a topic; a later one is greater.

    A client of ``quote/600519.SH/tick/`` at the position (1764300000000000000, 41) has missed nothing if the next frame
    has the same epoch and 42. 44 is a gap of two messages. After a change of the epoch the number of missed messages is
    unknown, because its numbers began at 1 again. A browser rounds a number of nineteen digits, so an epoch that a
    client names may be a float.
    """

    epoch: int | float
    seq: int

    def step(self, to: Position) -> Step:
        """Return how a message at `to` follows this position; an epoch of 0 here is any epoch."""
        if self.epoch and to.epoch != self.epoch:
            return Step.OLD if to.epoch < self.epoch else Step.NEW_EPOCH
        if to.seq <= self.seq:
            return Step.OLD
        return Step.NEXT if to.seq == self.seq + 1 else Step.GAP

    def is_followed_by(self, to: Position, *, across: bool) -> bool:
        """Return whether the message at `to` is the next one; `across`: or the first one of a newer epoch.

        The first message of an epoch also follows the position before any message.
        """
        if to.epoch == self.epoch:
            return to.seq == self.seq + 1
        return to.seq == 1 and to.epoch > self.epoch and (across or not self.epoch)


# The position before the first message.
NOWHERE = Position(0, 0)


def held_instead(
    at: Position, stored: Sequence[Position], behind_holes: Collection[Position | None], held: Sequence[Position]
) -> int | None:
    """Return after how many stored messages a held one is next, because the store has missed it; None if none is.

    A reader is `at` a position and holds what is published. A store that connects late to a new feeder does not have
    its first messages. `behind_holes` are the stored messages before which something is missing.
    """
    for number, position in enumerate(stored):
        is_missing = bool(at.epoch) and position in behind_holes
        if is_missing and any(at.is_followed_by(one, across=True) and one < position for one in held):
            return number
        at = position
    return None


class JournalPosition(msgspec.Struct, frozen=True):
    """The sequence number after which a journal is to be read, and an epoch whose journal has that number.

    After the event 8812 of the epoch 1764300000000000000 a journal is read from 8813 on, if it is the same journal: one
    of another data folder, or one that lost the event with a full disk, refuses the position. Without an epoch every
    journal that has the number takes it. `exact`: the event was received in that very epoch, so a journal from which
    it has vanished since refuses it too; what a client names is never exact, since it may have rounded the epoch.

    With a `start` (`wire.moments`) it is read from the first event at or after that moment, whatever `seq` is; with an
    `end` up to the first one at or after that, and nothing live follows.
    """

    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    epoch: int | float | None = None
    exact: bool = False
    start: int | str | None = None
    end: int | str | None = None
