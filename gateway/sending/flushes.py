"""What the senders of one worker write at the end of a turn of the loop, and for which of them the next turn waits.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from qmt_bridge.system import clock


class Flushing(Protocol):
    """A sender, as far as its worker's turns concern it."""

    @property
    def presses(self) -> bool:
        """Return whether the client takes more soon: nothing may be written, and its answers have come soon."""

    def flush_safely(self) -> None:
        """Write what waits; an exception ends this session only."""


class AnswerClock:
    """The time in which this worker could take the answers of its clients.

    A worker that hands on messages for a second takes a pong that much later, which is not the client's delay: what a
    turn takes beyond `TURN` does not count. After each turn all pongs are taken that have come.
    """

    TURN = 0.02

    def __init__(self) -> None:
        # Seconds at the newest look.
        self.now = clock.monotonic()
        self._excluded = 0.0

    def look(self) -> float:
        """Return the seconds, as they are at this moment."""
        self.now = clock.monotonic() - self._excluded
        return self.now

    def exclude(self, turn: float) -> None:
        """Do not count a turn of so many seconds."""
        self._excluded += max(0.0, turn - self.TURN)
        self.look()


class Flushes:
    """The senders of one worker that have frames to write at the end of this turn of the loop."""

    def __init__(self) -> None:
        # The clock by which clients' answers are timed.
        self.clock = AnswerClock()
        # Whether a client that answers soon has reached its window in this turn.
        self.pressed = False
        # Those that may have to answer before they take more. What is taken for them before that goes through their
        # outboxes, which costs ten times as much.
        self._pressing: set[Flushing] = set()
        self._pending: list[Flushing] = []
        self._planned = False

    def plan(self, sender: Flushing) -> None:
        """Let `sender` write after the callback that the loop is running now."""
        self._pending.append(sender)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def press(self, sender: Flushing) -> None:
        """Note that a client takes more as soon as it has answered."""
        self.pressed = True
        self._pressing.add(sender)

    def waits(self) -> bool:
        """Return whether a client that answers soon has to answer before it takes more."""
        while self._pressing:
            if next(iter(self._pressing)).presses:
                return True
            self._pressing.pop()
        return False

    def end_turn(self, seconds: float) -> None:
        """Note that a turn of the loop has ended, which took so long."""
        self.pressed = False
        self.clock.exclude(seconds)

    def flush(self) -> None:
        """Let all planned senders write; the feed calls this without waiting for the next turn of the loop."""
        self._planned = False
        self.clock.look()
        pending, self._pending = self._pending, []
        for sender in pending:
            sender.flush_safely()
