"""What a stream is connected to: its members, which receive frames, and the feeder, which is asked. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.topics import Topic

Outcome = Literal["live", "pending", "unanswered", "refused"]


class Refusal(NamedTuple):
    """Why a topic is not served, from the feeder with the epoch `epoch`.

    For an expired position, `oldest` and `newest` are the sequence numbers that the journal would have accepted.
    """

    code: ErrorCode
    reason: str
    oldest: int = 0
    newest: int = 0
    epoch: int = 0


class Member(Protocol):
    """One client's subscription of one topic. No method may wait, join or leave: the stream iterates over members."""

    def deliver(self, frame: Frame) -> None:
        """Take a frame."""

    def starts(self, epoch: int, seq: int) -> bool:
        """Take the position of the last value, or of the event before the first one; return whether to deliver a value.

        `settle` follows.
        """

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Take the outcome of joining, and of every later question; after "refused" the member has been removed."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` with the time, later, once what was delivered has been taken."""

    def missed(self, count: int) -> None:
        """Take the number of messages that were lost on the way from the feeder and cannot be repaired."""

    def snapshot_ended(self, count: int) -> None:
        """Take the number of codes of a market's snapshot, which comes in pieces, after its last piece."""


class Upstream(Protocol):
    """The connection to the feeder."""

    def subscribe(self, topic: Topic) -> None:
        """Subscribe the ZeroMQ topic or prefix."""

    def unsubscribe(self, topic: Topic) -> None:
        """Take the subscription back."""

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        """Send a CatchUp and return its id, or None while the feeder is away; without `after` for the last values."""
