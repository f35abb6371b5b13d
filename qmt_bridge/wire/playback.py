"""The pace at which stored records are played: when each of them is due, by its own time. Pure.

What is played together has one clock, as in a replay of a recording. The clock shows a time of records: that of the
earliest first record when it is started, then `speed` times as fast as time passes. Who cannot be served at this pace
is not hurried after it: the clock is set back to the earliest record that is late, so everything that follows is as
much later.
"""

from __future__ import annotations

import math

from qmt_bridge.errors import BadRequest

# Between them a pause over a holiday is played in less time than timers can wait, and a day in 14 s.
LEAST_SPEED = 0.01
MOST_SPEED = 1000.0
# By so many seconds a record may be late before the clock is set back. Timers and the turns of a loop take some ms.
SLACK_SECONDS = 0.25


def due(at: float, first: float, speed: float) -> float:
    """Return the seconds from the start after which a moment (ms) is due; one before the first is due at once."""
    return max(0.0, (at - first) / 1000 / speed) if speed else 0.0


def check_speed(speed: float) -> float:
    """Return a speed that a client has given; raise `BadRequest` if nothing can be played at it."""
    if speed and not (math.isfinite(speed) and LEAST_SPEED <= speed <= MOST_SPEED):
        raise BadRequest(
            "bad_request",
            f"speed is from {LEAST_SPEED:g} to {MOST_SPEED:g} times the pace of the records, or 0 for as fast as they "
            f"are read, not {speed:g}",
        )
    return speed


class Playback:
    """The clock of all topics that are played together; times are seconds of any monotonic clock."""

    __slots__ = ("_began", "_first_ms", "_heads", "first_ms", "speed")

    def __init__(self, speed: float) -> None:
        self.speed = speed
        # The time of the first record of all; None while none is known.
        self.first_ms: int | None = None
        # When the clock was started, or set back, and what it showed then.
        self._began: float | None = None
        self._first_ms = 0
        # The time of the next record of each player that has one.
        self._heads: dict[object, int] = {}

    @property
    def is_started(self) -> bool:
        """Return whether the clock was started."""
        return self._began is not None

    @property
    def gains(self) -> bool:
        """Return whether it comes nearer to what is published now."""
        return self.speed > 1

    def expects(self, player: object, ms: int) -> None:
        """Take the time of the next record of a player, in ms since 1970."""
        self._heads[player] = ms
        if self._began is None:
            self.first_ms = ms if self.first_ms is None else min(ms, self.first_ms)

    def due(self, player: object, now: float) -> float:
        """Return when the next record of a player is due; the first such question starts the clock."""
        if self._began is None:
            self._set(now)
        at = self._due(player)
        if now - at > SLACK_SECONDS:
            self._set(now)
            at = self._due(player)
        return at

    def leave(self, player: object) -> None:
        """Take that a player has no next record now."""
        self._heads.pop(player, None)

    def _set(self, now: float) -> None:
        self._began, self._first_ms = now, min(self._heads.values())

    def _due(self, player: object) -> float:
        assert self._began is not None
        return self._began + due(self._heads[player], self._first_ms, self.speed)
