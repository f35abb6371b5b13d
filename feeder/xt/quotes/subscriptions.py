"""Subscriptions: choose the native subscription that serves each topic. The thread `xtquant-calls` uses it.

A topic usually has its own subscription. Beyond the limit of single subscriptions, the ticks of a code are taken from
the subscription of its whole market; they return to a subscription of their own when there is room (see `Returns`).
"""

from __future__ import annotations

import time
from functools import partial

from feeder.source import Sink
from feeder.xt.quotes import intervals
from feeder.xt.quotes.callbacks import Callbacks, this_moment
from feeder.xt.quotes.client import QuoteClient
from feeder.xt.quotes.last_values import LastValues
from feeder.xt.quotes.splice import Splice
from feeder.xt.quotes.subscription import NativeSubscription, is_tick, market_of
from feeder.xt.quotes.topic_state import TopicState
from feeder.xt.quotes.topic_table import TopicTable
from feeder.xt.quotes.work import Work
from qmt_bridge.system import clock
from qmt_bridge.wire.topics import Kind, Topic, TopicParts


class Subscriptions:
    """Subscribes and unsubscribes; `name` is the name of the source, for errors."""

    def __init__(
        self,
        name: str,
        single_limit: int,
        table: TopicTable,
        client: QuoteClient,
        callbacks: Callbacks,
        values: LastValues,
        work: Work,
        sink: Sink,
    ) -> None:
        self._name = name
        self.single_limit = single_limit
        self._table = table
        self._quote_client = client
        self._callbacks = callbacks
        self._values = values
        self._work = work
        self._sink = sink
        # How many single subscriptions and formulas there are.
        self.singles = 0
        self._formulas = 0
        # Single subscriptions to topics that their market still serves (see `Returns`).
        self.returning: dict[Topic, NativeSubscription] = {}
        # Since when there has been room for more (s, monotonic), and the topics whose own subscription was refused.
        self.room_since = 0.0
        self.stuck: set[Topic] = set()

    def forget(self) -> None:
        """Forget every subscription: the session has ended."""
        self._table.end_session()
        self.returning.clear()
        self.stuck.clear()
        self._formulas = 0
        self.singles = 0

    # -- What is wanted

    def want(self, topic: Topic, parts: TopicParts) -> None:
        """Subscribe a topic now, or as soon as there is a connection; a formula is queued."""
        self._table.wanted[topic] = parts
        if parts.kind is Kind.FORMULA:
            self._work.formulas[topic] = None
        elif self._quote_client.is_alive():
            self._subscribe(topic, parts)

    def leave(self, topic: Topic) -> None:
        """Unsubscribe a topic."""
        table = self._table
        parts = table.wanted.pop(topic, None)
        self.stuck.discard(topic)
        self._work.formulas.pop(topic, None)
        returning = self.returning.pop(topic, None)
        if returning is not None:
            self.end(returning)
        subscription = table.held.pop(topic, None)
        if parts is not None:
            if subscription is not None:
                self.release(subscription, topic, parts)
            if parts not in table.native:
                table.states.pop(parts, None)

    def release(self, subscription: NativeSubscription, topic: Topic, parts: TopicParts) -> None:
        """Remove `topic` from `subscription`, and end the subscription if it serves nothing else."""
        if subscription.topic == topic:
            subscription.topic = None
        else:
            del subscription.singles[parts.name]
        if subscription.topic is None and not subscription.singles:
            self.end(subscription)
            if subscription.is_market:
                self._table.states.pop(subscription.parts, None)

    def subscribe_wanted(self) -> None:
        """Queue the topics that no subscription serves, the oldest first, as background work."""
        table = self._table
        self._work.pieces.extend(
            partial(self.subscribe_again, topic) for topic in table.wanted if topic not in table.held
        )

    def subscribe_again(self, topic: Topic) -> None:
        """Subscribe a topic, unless it was unsubscribed meanwhile."""
        parts = self._table.wanted.get(topic)
        if parts is not None:
            self._subscribe(topic, parts)

    def renew(self, subscription: NativeSubscription) -> None:
        """End a subscription of any kind, and subscribe the topics that it served again."""
        table = self._table
        if table.native.get(subscription.parts) is not subscription:
            return
        topics = [topic for topic, held in table.held.items() if held is subscription]
        for topic, returning in list(self.returning.items()):
            if returning is subscription or topic in topics:
                # The market serves the topic, or will serve it again.
                del self.returning[topic]
                self.end(returning)
        if table.native.get(subscription.parts) is subscription:
            self.end(subscription)
        for topic in topics:
            del table.held[topic]
        for topic in topics:
            if not self._quote_client.is_alive():
                return
            self._subscribe(topic, table.wanted[topic])

    # -- What is held

    def _subscribe(self, topic: Topic, parts: TopicParts) -> None:
        try:
            self._hold(topic, parts)
        except Exception as exc:
            # Only this call fails. The topic is tried again later, with those that were refused.
            self._sink.refuse(topic, "internal", f"source {self._name} failed: {exc}")
            raise

    def _hold(self, topic: Topic, parts: TopicParts) -> None:
        if topic in self._table.held:
            return
        if parts.kind is Kind.FORMULA and self._formulas >= intervals.MAX_FORMULAS:
            # The topic is tried again later, with those that were refused.
            self._sink.refuse(topic, "symbol_limit", f"{self._formulas} formulas are subscribed, which is the limit")
            return
        state = self._table.state(parts, topic)
        subscription = self._find(topic, state)
        if subscription.parts not in self._table.native:
            refusal = self.begin(subscription)
            if refusal:
                if self._quote_client.is_alive():
                    self._sink.refuse(topic, "upstream_refused", refusal)
                return
        elif subscription.parts == parts:
            # The market already serves ticks of single codes, so its snapshot came before and is published here.
            with state.lock:
                if state.newest.records:
                    self._sink.publish_whole(topic, state.newest.records, clock.time_ns())
                subscription.topic = topic
        if subscription.state is not state:
            newest = subscription.state.newest.records.get(parts.name)
            if newest is not None:
                self._callbacks.begin_with(state, parts.name, newest, this_moment())
        self._table.held[topic] = subscription
        self._sink.accept(topic)
        if not state.newest.records and is_tick(parts):
            self._values.wait_for(topic, intervals.FIRST_SECONDS)

    def _find(self, topic: Topic, state: TopicState) -> NativeSubscription:
        """Return the subscription that is to serve a topic, new or existing: beyond the limit that of its market."""
        parts, native = state.parts, self._table.native
        if parts.kind is not Kind.QUOTE or parts.detail != "tick" or self.singles < self.single_limit:
            return native.get(parts) or NativeSubscription(state, topic)
        market = TopicParts(Kind.WHOLE, market_of(parts), "")
        subscription = native.get(market) or NativeSubscription(self._table.state(market))
        state.splice = Splice(topic)
        subscription.singles[parts.name] = state
        return subscription

    def begin(self, subscription: NativeSubscription) -> str:
        """Subscribe; return an empty text, or the reason why the terminal refused it."""
        refusal = self._quote_client.subscribe(subscription, self._callbacks.deliver, self._callbacks.lose)
        if not refusal:
            self._table.native[subscription.parts] = subscription
            self.singles += subscription.is_single
            self._formulas += subscription.spec is not None
        return refusal

    def end(self, subscription: NativeSubscription) -> None:
        """Unsubscribe a subscription."""
        del self._table.native[subscription.parts]
        self._formulas -= subscription.spec is not None
        if subscription.is_single:
            self.singles -= 1
            if self.singles == self.single_limit - 1:
                self.room_since = time.monotonic()
        self._quote_client.unsubscribe(subscription)

    def give_back(self) -> None:
        """Unsubscribe as many as possible in the time that `close` has."""
        until = time.monotonic() + intervals.LEAVE_SECONDS
        for subscription in self._table.native.values():
            subscription.live = False
        for subscription in self._table.native.values():
            if time.monotonic() > until or not self._quote_client.is_alive():
                break
            self._quote_client.unsubscribe(subscription)
