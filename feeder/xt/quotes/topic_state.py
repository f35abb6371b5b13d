"""TopicState: what has been published for one topic, by whatever native subscriptions.

The thread `xtquant-calls` makes it; xtquant's threads use it in their callbacks, under its lock.
"""

from __future__ import annotations

import threading

from feeder.xt.quotes.newest import Moment, Newest
from feeder.xt.quotes.splice import Splice
from qmt_bridge.wire.topics import Topic, TopicParts


class TopicState:
    """The newest records of the topic of `parts`. It is kept over sessions, as long as the topic is subscribed."""

    __slots__ = ("is_filled", "lock", "newest", "parts", "splice", "topic")

    def __init__(self, parts: TopicParts, topic: Topic | None = None) -> None:
        self.parts = parts
        self.topic = topic
        # Held from the check whether a record is the newest until it is handed over to the sink.
        self.lock = threading.Lock()
        self.newest = Newest(parts.behaviour.versions)
        # Whether its last record is an answer of the terminal: xtquant may still push the same record.
        self.is_filled = False
        # Set only for ticks that come, or have come, from the subscription of their whole market.
        self.splice: Splice[Moment] | None = None
