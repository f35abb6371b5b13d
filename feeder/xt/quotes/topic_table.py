"""TopicTable: the wanted topics, the state of each of them, and the native subscription that serves it.

Only the thread `xtquant-calls` writes it. Wanted topics are kept over sessions, also those that were refused.
"""

from __future__ import annotations

from feeder.xt.quotes.subscription import NativeSubscription
from feeder.xt.quotes.topic_state import TopicState
from qmt_bridge.wire.topics import Topic, TopicParts


class TopicTable:
    """The tables, each keyed by the topic or by its parts."""

    def __init__(self) -> None:
        self.wanted: dict[Topic, TopicParts] = {}
        self.states: dict[TopicParts, TopicState] = {}
        # The subscription that serves each topic: its own, or that of its whole market.
        self.held: dict[Topic, NativeSubscription] = {}
        # Every native subscription by its parts, except those that `Returns` has begun.
        self.native: dict[TopicParts, NativeSubscription] = {}

    def state(self, parts: TopicParts, topic: Topic | None = None) -> TopicState:
        """Return the state of `parts`; make it if there is none. If `topic` is given, data is published under it."""
        state = self.states.get(parts)
        if state is None:
            state = self.states[parts] = TopicState(parts, topic)
        elif topic is not None:
            state.topic = topic
        return state

    def has_value(self, topic: Topic) -> bool:
        """Return whether a wanted topic has a newest record."""
        return bool(self.states[self.wanted[topic]].newest.records)

    def end_session(self) -> None:
        """Forget every subscription: their connection is gone."""
        for subscription in self.native.values():
            subscription.live = False
        self.native.clear()
        self.held.clear()
