"""Splice: join the ticks of one code from the subscription of its market and from its own one into one stream.

During the switch both push the ticks, and each tick is published once. Pure: the time is an argument (seconds of any
monotonic clock), and callers hold a lock, because xtquant calls back on several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from qmt_bridge.wire.topics import Topic

# The type with which the caller notes the time at which a tick came.
When = TypeVar("When")

# How long both subscriptions push ticks, at least. A tick that a thread of xtquant still holds when the second one
# begins has arrived by the end of it. Stocks tick every three seconds.
OVERLAP = 5.0
# How many ticks one subscription may be ahead of the other.
_KEPT = 64


class Splice(Generic[When]):
    """Call `begin` once the single subscription is made, and `cut` when `is_ready`."""

    __slots__ = ("_begun", "_held", "_is_cut", "_is_proved", "_market_spoke", "_newest", "_sent", "_since", "topic")

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        # Ticks that the market pushed and the single subscription did not, so far.
        self._sent: deque[_Mark] = deque(maxlen=_KEPT)
        # Ticks that the single subscription pushed and the market did not, so far, with the time at which they came.
        self._held: deque[tuple[Any, When]] = deque(maxlen=_KEPT)
        # The newest time of a tick of the market: now, and when the switch began.
        self._newest = self._since = 0
        self._begun: float | None = None
        self._market_spoke = False
        # Whether both pushed the same tick, and it is newer than the beginning of the switch.
        self._is_proved = False
        self._is_cut = False

    def from_market(self, tick: Any) -> bool:
        """Return whether to publish a tick that the market pushed: always, until the cut."""
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
        """Return whether to publish a tick of the single subscription: after the cut, if the market did not push it."""
        mark = _mark(tick)
        if mark in self._sent:
            self._sent.remove(mark)
            self._prove(mark)
            return False
        if self._is_cut:
            return True
        # The market may still have to push an older tick, so this one has to wait.
        self._held.append((tick, when))
        return False

    def begin(self, now: float) -> None:
        """Note that the single subscription is made: it pushes every tick from now on."""
        self._begun = now
        self._since = self._newest
        self._market_spoke = self._is_proved = False

    def is_ready(self, now: float) -> bool:
        """Return whether the cut loses no tick.

        Both push their ticks in order. So if both have pushed the same tick, every earlier tick has come, and the
        single subscription pushes all later ones. If the market has pushed nothing since `begin`, no tick can be lost.
        If it has pushed ticks that the single subscription has not, the market continues to serve the topic.
        """
        if self._begun is None or now - self._begun < OVERLAP:
            return False
        return self._is_proved or not self._market_spoke

    def cut(self) -> list[tuple[Any, When]]:
        """Leave the market; return the ticks to publish now, with their times: those only the single one pushed."""
        self._is_cut = True
        held = list(self._held)
        self._held.clear()
        return held

    def _prove(self, mark: _Mark) -> None:
        # An older tick may be the snapshot with which a subscription begins.
        if mark[0] > self._since:
            self._is_proved = True


# Two ticks are the same if time and volume are equal. The time is not enough, because one millisecond may have two
# ticks. Other fields differ: for a whole market xtquant rounds the amount, and may leave out the number of transactions
# or levels of the depth.
_Mark = tuple[int, object]


def _mark(tick: Any) -> _Mark:
    if not isinstance(tick, Mapping):
        return 0, None
    time = tick.get("time")
    if isinstance(time, float) and time.is_integer():
        time = int(time)
    return time if isinstance(time, int) else 0, tick.get("volume")
