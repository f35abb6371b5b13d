"""Splice: the ticks of one code, first out of its market and then out of a subscription of its own, as one stream.

For a while both bring them; each tick passes once, whichever brings it first. Pure: the time is an argument (seconds of
any monotonic clock), and callers hold a lock, since xtquant calls back on several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from qmt_bridge.wire.topics import Topic

# What callers note of the moment at which a tick came.
When = TypeVar("When")

# How long both bring ticks, at least: what one of xtquant's threads still carries when the other subscription begins
# has arrived by then. Stocks tick every three seconds.
OVERLAP = 5.0
# Ticks that one subscription may be ahead of the other.
_KEPT = 64


class Splice(Generic[When]):
    """Steps of a switch: `begin` once the single subscription is held, `cut` when `is_ready`."""

    __slots__ = ("_begun", "_held", "_is_cut", "_is_proved", "_market_spoke", "_newest", "_sent", "_since", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        # What the market brought and the single subscription did not.
        self._sent: deque[_Mark] = deque(maxlen=_KEPT)
        # What the single subscription brought and the market did not, with when it came.
        self._held: deque[tuple[Any, When]] = deque(maxlen=_KEPT)
        # The newest time that the market brought, and what that was when the switch began.
        self._newest = self._since = 0
        self._begun: float | None = None
        self._market_spoke = False
        # Whether both brought one tick that was made after the switch began.
        self._is_proved = False
        self._is_cut = False

    def from_market(self, tick: Any) -> bool:
        """Return whether to publish what the market brings: always, until the cut."""
        if self._is_cut:
            return False
        mark = _mark(tick)
        self._newest = max(self._newest, mark[0])
        self._market_spoke = True
        for position, (held, _) in enumerate(self._held):
            if _mark(held) == mark:
                del self._held[position]
                self._prove(mark)
                return True
        self._sent.append(mark)
        return True

    def from_single(self, tick: Any, when: When) -> bool:
        """Return whether to publish what the single subscription brings: after the cut, unless the market did."""
        mark = _mark(tick)
        if mark in self._sent:
            self._sent.remove(mark)
            self._prove(mark)
            return False
        if self._is_cut:
            return True
        # The market may be behind with an older one, so this has to wait for it.
        self._held.append((tick, when))
        return False

    def begin(self, now: float) -> None:
        """Note that the single subscription is held, which has brought every tick from here on."""
        self._begun = now
        self._since = self._newest
        self._market_spoke = self._is_proved = False

    def is_ready(self, now: float) -> bool:
        """Return whether the market can be left without a loss.

        Each brings its ticks in order, so what came before a tick that both brought has come, and what comes after it
        comes from the single subscription. A market without news has nothing to lose; one with news that the single
        subscription does not bring goes on serving.
        """
        if self._begun is None or now - self._begun < OVERLAP:
            return False
        return self._is_proved or not self._market_spoke

    def cut(self) -> list[tuple[Any, When]]:
        """Leave the market; return what to publish now, each with when it came: what only the single one brought."""
        self._is_cut = True
        held = list(self._held)
        self._held.clear()
        return held

    def _prove(self, mark: _Mark) -> None:
        # An older one may be the snapshot that a subscription begins with.
        if mark[0] > self._since:
            self._is_proved = True


# What makes two ticks the same one. The same millisecond may have two, and of a whole market xtquant rounds the amount
# and may leave out the number of transactions, or levels of the depth.
_Mark = tuple[int, object]


def _mark(tick: Any) -> _Mark:
    if not isinstance(tick, Mapping):
        return 0, None
    time = tick.get("time")
    if isinstance(time, float) and time.is_integer():
        time = int(time)
    return time if isinstance(time, int) else 0, tick.get("volume")
