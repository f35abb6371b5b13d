"""The two sides of a stream: its members, which receive frames, and the feeder, which it asks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.playback import Playback
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.topics import Topic

Outcome = Literal["live", "pending", "unanswered", "refused"]


class Refusal(NamedTuple):
    """Why the feeder does not serve a topic; `epoch` is the feeder's.

    If a position has expired, `oldest` and `newest` are the limits of the positions that the journal accepts.
    """

    code: ErrorCode
    reason: str
    oldest: int = 0
    newest: int = 0
    epoch: int = 0


class StoreQuestion(NamedTuple):
    """What is asked of the store of the day: records from `start` on or `after` a position, up to `end`.

    `start` and `end` are as in `wire.moments`. The first answer may have about `room` bytes, each later one `chunk`.
    `playback` is the clock by which the answers are played; without one they are delivered as they are read.
    `code` is for a market: of its messages only what they have of this code.
    `complete`: what is lost on the way from the feeder later is read from the store too; without `start` and `after`
    nothing else is.
    """

    start: int | str | None = None
    after: Position | None = None
    end: int | str | None = None
    room: int = 1
    chunk: int = 1
    playback: Playback | None = None
    code: str | None = None
    complete: bool = False

    @property
    def begins_live(self) -> bool:
        """Return whether nothing is asked before a loss."""
        return self.start is None and self.after is None


class Gap(NamedTuple):
    """A part of a stream that a reader does not get: after one position (None: from its start on), before another.

    `reason` is one of the store's (`wire.history.Missing`), or "store_away", "store_behind", "unknown_position". The
    times are those of the records on both sides in ms since 1970, where they are known.
    """

    reason: str
    after: Position | None = None
    before: Position | None = None
    from_ms: int | None = None
    until_ms: int | None = None
    # Why the source's history is not there instead; None if it was not asked for.
    backfill: str | None = None


class Beginning(NamedTuple):
    """Where the records of a reader begin: from `from_ms` on they are complete, unless `gap` says what is missing.

    `source` is "history" if the first one was not received live, but comes from the source's history.
    """

    from_ms: int | None
    gap: Gap | None
    source: str | None = None


class Member(Protocol):
    """One client's subscription of one topic. No method may wait, join or leave: the stream is iterating over them."""

    def deliver(self, frame: Frame) -> None:
        """Take a frame."""

    def starts(self, epoch: int, seq: int) -> bool:
        """Take the position of the last value, or of the event before the next one; return whether to deliver a value.

        `settle` follows.
        """

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Take the outcome of joining or of a later question; before "refused" the member has been removed."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` with the time, later, once everything delivered so far has been sent."""

    def missed(self, count: int) -> None:
        """Take the number of messages that were lost on the way from the feeder and cannot be repaired."""

    def snapshot_ended(self, count: int) -> None:
        """Take the number of codes in a market's snapshot, after the last of its parts."""


class Reader(Member, Protocol):
    """A member that is read the store of the day before it meets the live stream."""

    def begins(self, beginning: Beginning) -> None:
        """Take where its records begin; `settle` follows."""

    def open(self, act: Callable[[float], None]) -> None:
        """Call `act` with the time, later, once it is the client's turn to have the store asked for the first chunk."""

    def read_on(self, act: Callable[[float], None]) -> None:
        """Call `act` with the time, later, once all was sent and it is the client's turn to be read the next chunk."""

    def play(self, at: float, act: Callable[[float], None]) -> None:
        """Call `act` with the time, later, once all was sent: at `at`, which may have passed, or soon after it."""

    def keep(self, size: int) -> None:
        """Take how many bytes of records wait until they are due."""

    def rest(self) -> None:
        """Take that the store is not asked for it now."""

    def gap(self, gap: Gap) -> None:
        """Take that a part is missing between what was delivered and what follows."""

    def met(self) -> None:
        """Take that it has met the live stream, or that the store has nothing more for it: its own terms hold."""

    def ended(self) -> None:
        """Take that all up to the end that it asked for was delivered; it has been removed."""


class Upstream(Protocol):
    """The connections to the feeder and to the store."""

    def subscribe(self, topic: Topic) -> None:
        """Subscribe the ZeroMQ topic or prefix."""

    def unsubscribe(self, topic: Topic) -> None:
        """Cancel the subscription."""

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        """Send a CatchUp for the events after `after`, or for last values; return its id, None without connection."""

    def ask_store(self, topics: list[Topic], question: StoreQuestion) -> int | None:
        """Ask the store; return the id of the question, None without connection."""
