"""TopicState: what one topic was given so far, whichever native subscriptions serve it.

The thread `xtquant-calls` makes it; xtquant's threads use it in their callbacks, under its lock.
"""

from __future__ import annotations

import threading

from feeder.xt.quotes.newest import Moment, Newest
from feeder.xt.quotes.splice import Splice
from qmt_bridge.wire.topics import Topic, TopicParts


class TopicState:
    """The newest records of the topic of `parts`. It is kept over sessions, as long as the topic is wanted."""

    __slots__ = ("is_filled", "lock", "newest", "parts", "splice", "topic")

    def __init__(self, parts: TopicParts, topic: Topic | None = None) -> None:
        self.parts = parts
        self.topic = topic
        # Held from the check whether a record is the newest until it is handed over to the sink.
        self.lock = threading.Lock()
        self.newest = Newest(parts.behaviour.versions)
        # Whether its last record was asked for: xtquant may still push the same one.
        self.is_filled = False
        # Only of a tick that is or was taken out of its whole market.
        self.splice: Splice[Moment] | None = None
