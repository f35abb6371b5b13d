"""What one member is read from the store of the day before it meets the live stream. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from gateway.streams.member import Gap, Outcome, Reader, StoreQuestion
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.playback import Playback
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

    __slots__ = (
        "answered", "at_store", "claimed", "fruitless_since", "gaps", "is_behind", "opened", "opening", "outcome",
        "pending", "question", "reached", "reader", "size", "target",
    )  # fmt: skip

    def __init__(self, reader: Reader, question: StoreQuestion) -> None:
        self.reader = reader
        # What to ask next.
        self.question = question
        # Whether the store is asked, and not the feeder, whether it serves the topic.
        self.at_store = False
        # Whether the store has answered, so that the client knows where its records begin.
        self.answered = False
        # Whether the first turn was asked for, and whether it is waited for or held.
        self.opened = False
        self.opening = False
        # The position that the client says it has; None once it was read what follows, or if it named none.
        self.claimed = question.after
        # Whether the newest answer did not reach what the stream has passed on.
        self.is_behind = False
        # Since when the store has brought nothing new.
        self.fruitless_since = 0.0
        # The newest position at the feeder when it was asked: what the store has to reach.
        self.target = NOWHERE
        # What the feeder said of the topic.
        self.outcome: Outcome = "live"
        # Of a chunk that is played: the records that are not due yet with their times, and the gaps between them.
        self.pending: deque[tuple[int, Frame]] = deque()
        self.gaps: Iterable[Gap] = ()
        # The bytes of these records, and where the store stands behind them.
        self.size = 0
        self.reached = NOWHERE

    @property
    def stays_behind(self) -> bool:
        """Return whether it is played too slowly to ever reach what is published."""
        playback = self.question.playback
        return playback is not None and not playback.gains

    def is_at_beginning(self) -> bool:
        """Return whether the client is where the feeder is, which has published nothing: no store can have anything."""
        claimed, target = self.claimed, self.target
        if claimed is None or claimed.seq or target.seq or not target.epoch:
            return False
        return self.outcome == "live" and float(claimed.epoch) == float(target.epoch)

    def is_claim_wrong(self) -> bool:
        """Return whether the client claims a position that the feeder, which is at `target`, has not reached.

        A browser has rounded the epoch. Without a sequence number the feeder does not know where the topic is.
        """
        claimed, target = self.claimed, self.target
        if claimed is None or not target.epoch:
            return False
        if float(claimed.epoch) == float(target.epoch):
            return 0 < target.seq < claimed.seq
        return claimed.epoch > target.epoch

    def has_reached(self, position: Position, newest: Position) -> bool:
        """Return whether a reader at `position` has all that was published up to `newest`, and up to `target`."""
        return all(not end.seq or position >= end for end in (newest, self.target))

    def load(self, records: Iterable[tuple[int, Frame]], gaps: Iterable[Gap], playback: Playback) -> None:
        """Take a chunk to play."""
        self.pending.extend(records)
        self.gaps = gaps
        playback.expects(self.reader, self.pending[0][0])
        self._keep(sum(len(frame.body) for _, frame in self.pending))

    def take_due(self, playback: Playback, now: float) -> list[Frame]:
        """Return the records that are due."""
        taken: list[Frame] = []
        while self.pending and playback.due(self.reader, now) <= now:
            taken.append(self.pending.popleft()[1])
            if self.pending:
                playback.expects(self.reader, self.pending[0][0])
            else:
                playback.leave(self.reader)
        self._keep(self.size - sum(len(frame.body) for frame in taken))
        return taken

    def drop(self) -> None:
        """Forget the records that are not due yet."""
        if self.pending and self.question.playback is not None:
            self.pending.clear()
            self.question.playback.leave(self.reader)
            self._keep(0)

    def _keep(self, size: int) -> None:
        self.size = size
        self.reader.keep(size)


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


def is_whole(position: Position, frames: Iterable[Frame]) -> bool:
    """Return whether each of `frames` is the next one, the first of them after `position`."""
    for frame in frames:
        if not follows(position, frame, across=False):
            return False
        position = position_of(frame)
    return True


def follows(position: Position, frame: Frame, *, across: bool) -> bool:
    """Return whether `frame` is the next one after `position`; `across`: or the first one of a newer epoch."""
    return position.is_followed_by(position_of(frame), across=across)
