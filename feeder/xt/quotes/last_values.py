"""LastValues: ask the terminal for the newest tick of topics that have no value yet.

After the close the terminal pushes nothing, so its newest tick is the only value. The thread `xtquant-calls` uses this.
"""

from __future__ import annotations

import heapq
import logging
import time
from itertools import count

from feeder.xt import normalize
from feeder.xt.quotes import intervals
from feeder.xt.quotes.callbacks import Callbacks, this_moment
from feeder.xt.quotes.client import QuoteClient
from feeder.xt.quotes.topic_table import TopicTable
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)


class LastValues:
    """The topics, ordered by the time (s, monotonic) at which the terminal is asked for them."""

    def __init__(self, table: TopicTable, client: QuoteClient, callbacks: Callbacks) -> None:
        self._table = table
        self._quote_client = client
        self._callbacks = callbacks
        # Time, a number that keeps the order of equal times, topic, and the pause before the next attempt.
        self.waiting: list[tuple[float, int, Topic, float]] = []
        self._numbers = count()

    def wait_for(self, topic: Topic, pause: float) -> None:
        """Ask the terminal for `topic` in `pause` seconds, if the topic has no value by then."""
        heapq.heappush(self.waiting, (time.monotonic() + pause, next(self._numbers), topic, pause))

    def is_due(self, now: float) -> bool:
        """Return whether it is time to ask the terminal."""
        return bool(self.waiting) and self.waiting[0][0] <= now

    def forget(self) -> None:
        """Note that the session has ended."""
        self.waiting.clear()

    def ask(self, now: float) -> None:
        """Ask the terminal, in one call, for the newest tick of some topics that have none."""
        asked = self._take_due(now)
        if not asked:
            return
        table = self._table
        # Take the time before the call: a tick that is pushed during the call is newer than the answer.
        moment = this_moment()
        try:
            ticks = self._quote_client.xtdata.get_full_tick(sorted({table.wanted[topic].name for topic in asked}))
            values = normalize.quote(ticks, lambda exc: logger.debug("a last tick cannot be read: %s", exc))
        except Exception as exc:
            logger.debug("the last ticks cannot be read: %s", exc)
            values = {}
        for topic, pause in asked.items():
            parts = table.wanted[topic]
            if parts.name in values:
                self._callbacks.begin_with(table.states[parts], parts.name, values[parts.name][-1], moment)
            else:
                self.wait_for(topic, min(2 * pause, intervals.FIRST_LAST))

    def _take_due(self, now: float) -> dict[Topic, float]:
        """Return the topics to ask for, each with its pause."""
        due: dict[Topic, float] = {}
        while self.is_due(now) and len(due) < intervals.FIRST_CODES:
            _, _, topic, pause = heapq.heappop(self.waiting)
            if topic in self._table.held and not self._table.has_value(topic):
                due[topic] = pause
        return due
