"""The two sides of a stream: its members, which receive frames, and the feeder, which it asks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
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


class Upstream(Protocol):
    """The connection to the feeder."""

    def subscribe(self, topic: Topic) -> None:
        """Subscribe the ZeroMQ topic or prefix."""

    def unsubscribe(self, topic: Topic) -> None:
        """Cancel the subscription."""

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        """Send a CatchUp for the events after `after`, or for last values; return its id, None without connection."""
