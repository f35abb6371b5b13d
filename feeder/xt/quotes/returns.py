"""Returns: move topics from the subscription of their whole market back to single subscriptions, while there is room.

1. Subscribe the single code; both subscriptions then push its ticks. 2. Once neither lacks a tick of the other, publish
only those of the single subscription. 3. Unsubscribe the market if it serves nothing else.
The thread `xtquant-calls` uses it.
"""

from __future__ import annotations

import logging
import time

from feeder.source import Sink
from feeder.xt.quotes import intervals
from feeder.xt.quotes.callbacks import Callbacks
from feeder.xt.quotes.client import QuoteClient
from feeder.xt.quotes.subscription import NativeSubscription
from feeder.xt.quotes.subscriptions import Subscriptions
from feeder.xt.quotes.topic_state import TopicState
from feeder.xt.quotes.topic_table import TopicTable
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)


class Returns:
    """Moves topics of `subscriptions`, the oldest first."""

    def __init__(
        self, table: TopicTable, subscriptions: Subscriptions, client: QuoteClient, callbacks: Callbacks, sink: Sink
    ) -> None:
        self._table = table
        self._subscriptions = subscriptions
        self._quote_client = client
        self._callbacks = callbacks
        self._sink = sink

    def step(self, now: float) -> bool:
        """Do what can be done now, with at most one new subscription; return whether to call this again at once."""
        self._finish(now)
        holder = self._subscriptions
        if holder.singles >= holder.single_limit or now - holder.room_since < intervals.RETURN_SECONDS:
            return False
        shared = {
            single.topic: single
            for subscription in self._table.native.values()
            for single in subscription.singles.values()
        }
        for topic in self._table.wanted:
            state = shared.get(topic)
            if state is None or state.splice is None or topic in holder.returning or topic in holder.stuck:
                continue
            return self._quote_client.is_alive() and self._begin(topic, state, now)
        return False

    def _begin(self, topic: Topic, state: TopicState, now: float) -> bool:
        """Subscribe the ticks of a topic in addition to its market; return whether that succeeded."""
        holder = self._subscriptions
        subscription = NativeSubscription(state, topic)
        splice = subscription.splice = state.splice
        refusal = holder.begin(subscription)
        if refusal or splice is None:
            if self._quote_client.is_alive():
                holder.stuck.add(topic)
                logger.warning("%s is still served by the subscription of its whole market: %s", topic, refusal)
            # The limit of the terminal may be lower than ours, so wait before the next attempt.
            holder.room_since = now
            return False
        # Not `now`: the call may have taken some time.
        splice.begin(time.monotonic())
        holder.returning[topic] = subscription
        return True

    def _finish(self, now: float) -> None:
        """Move the topics whose own subscription has caught up with that of the market."""
        holder = self._subscriptions
        for topic, subscription in list(holder.returning.items()):
            splice = subscription.splice
            if splice is None or not splice.is_ready(now):
                continue
            code = subscription.parts.name
            with subscription.state.lock:
                for tick, moment in splice.cut():
                    if self._callbacks.admit(subscription.state, code, tick, moment):
                        self._sink.publish(topic, {code: [tick]}, moment.received_ns)
            del holder.returning[topic]
            market, self._table.held[topic] = self._table.held[topic], subscription
            holder.release(market, topic, subscription.parts)
