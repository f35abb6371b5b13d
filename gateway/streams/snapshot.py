"""The end of a market's first snapshot, if the source pushes it as ordinary frames instead of an answer. Pure."""

from __future__ import annotations

from collections.abc import Collection

from gateway.streams.member import Member
from qmt_bridge.wire.positions import Position


class PushedSnapshot:
    """Waits until members have received, as frames, everything that the feeder had when it was asked.

    The feeder is asked some time after the first member joined; its answer says at which position the snapshot is
    complete, and how many codes it has.
    """

    __slots__ = ("_codes", "_end", "ask_at", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Member, None] = {}
        # When to ask the feeder, as time.monotonic().
        self.ask_at = 0.0
        self._end: Position | None = None
        self._codes = 0

    def expect(self, member: Member, ask_at: float) -> None:
        """Tell `member` of the end once it is known and reached."""
        if not self.waiting:
            self.ask_at = ask_at
        # An end that is known already may be of an older epoch.
        self._end = None
        self.waiting[member] = None

    def ends_at(self, position: Position, codes: int) -> None:
        """Take the position at which the snapshot is complete."""
        self._end, self._codes = position, codes

    def reached(self, position: Position, members: Collection[Member]) -> None:
        """Tell of the end, if `position` is past it, those of `members` (which are at `position`) that wait for it."""
        if self._end is None or position < self._end:
            return
        for member in [member for member in self.waiting if member in members]:
            del self.waiting[member]
            member.snapshot_ended(self._codes)
        if not self.waiting:
            self._end = None

    def is_due(self, now: float) -> bool:
        """Return whether to ask the feeder now where the snapshot is complete."""
        return bool(self.waiting) and self._end is None and now >= self.ask_at
