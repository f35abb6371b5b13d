"""Callbacks: what a callback of xtquant does: convert the data, drop records that are not the newest, publish the rest.

xtquant calls back on several threads at the same time. A topic's lock is held from the check whether a record is the
newest until the sink has it. Nothing here calls xtdata.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from feeder.source import Sink
from feeder.xt import normalize
from feeder.xt.quotes.newest import Moment
from feeder.xt.quotes.subscription import NativeSubscription
from feeder.xt.quotes.topic_state import TopicState
from qmt_bridge.system import clock
from qmt_bridge.wire.topics import Kind

logger = logging.getLogger(__name__)


def this_moment() -> Moment:
    """Return the time at which a callback was entered."""
    # perf_counter is the monotonic clock that has a fine resolution on Windows too.
    return Moment(clock.time_ns(), time.perf_counter_ns())


class Callbacks:
    """Publishes pushes to `sink`.

    `failed` counts pushes that could not be published. `overtaken` counts records that were dropped because a newer one
    was already published.
    """

    def __init__(self) -> None:
        self.sink: Sink
        self.failed = 0
        self.overtaken = 0
        # The kinds of fault that are already in the log.
        self._faults: set[tuple[Kind, str, type[Exception]]] = set()
        self._counting = threading.Lock()

    def deliver(self, subscription: NativeSubscription, payload: object) -> None:
        """Publish a push. Raises nothing, because xtdata's wrapper prints an exception to stdout and drops it."""
        moment = this_moment()
        if not subscription.live:
            return
        try:
            self._publish(subscription, payload, moment)
        except Exception as exc:
            self.lose(subscription, exc)

    def lose(self, subscription: NativeSubscription, exc: Exception) -> None:
        """Count a push that cannot be read at all. It still shows that the subscription works."""
        subscription.note_push({})
        self._note_failure(subscription, exc)

    def _note_failure(self, subscription: NativeSubscription, exc: Exception) -> None:
        fault = (subscription.parts.kind, subscription.parts.detail, type(exc))
        with self._counting:
            self.failed += 1
            is_new = fault not in self._faults
            self._faults.add(fault)
        if is_new:
            logger.error("data of %s cannot be published", subscription, exc_info=exc)

    def _publish(self, subscription: NativeSubscription, payload: object, moment: Moment) -> None:
        unfit = partial(self._note_failure, subscription)
        if subscription.parts.kind is Kind.WHOLE:
            rows = 0
            for ticks in normalize.whole(payload, unfit):
                rows += 1
                subscription.note_push(ticks)
                self._publish_whole(subscription, ticks, moment)
            if not rows:
                subscription.note_push({})
        elif subscription.spec is None:
            quote = normalize.quote(payload, unfit)
            subscription.note_push({code: records[-1] for code, records in quote.items()})
            self._publish_quote(subscription, quote, moment)
        else:
            # The first push of a formula is not documented, so the first document does not count as news.
            subscription.note_push({})
            self._publish_values(subscription, normalize.document(payload), moment)

    def _publish_values(self, subscription: NativeSubscription, document: dict[str, Any], moment: Moment) -> None:
        state, spec, topic = subscription.state, subscription.spec, subscription.topic
        if spec is None or topic is None:
            return
        with state.lock:
            if self.admit(state, spec.stock_code, document, moment):
                body = {"formula_name": spec.formula_name, "stock_code": spec.stock_code, "data": document}
                self.sink.publish(topic, body, moment.received_ns)

    def _publish_whole(self, subscription: NativeSubscription, ticks: dict[str, Any], moment: Moment) -> None:
        state = subscription.state
        with state.lock:
            # If the topic is set later, it starts with the ticks in the state. If it is set already, it gets them here.
            fresh = self._admit_all(state, ticks, moment)
            subscription.pushed = ticks
            topic = subscription.topic
            if topic is not None and fresh:
                self.sink.publish_whole(topic, fresh, moment.received_ns)
        if subscription.singles:
            for code, tick in fresh.items():
                single = subscription.singles.get(code)
                if single is not None:
                    self._publish_from_market(single, code, tick, moment)

    def _publish_from_market(self, state: TopicState, code: str, tick: Any, moment: Moment) -> None:
        topic, splice = state.topic, state.splice
        if topic is None or splice is None:
            return
        with state.lock:
            if splice.from_market(tick) and self.admit(state, code, tick, moment):
                self.sink.publish(topic, {code: [tick]}, moment.received_ns)

    def _publish_quote(self, subscription: NativeSubscription, quote: Mapping[str, list[Any]], moment: Moment) -> None:
        state, splice, topic = subscription.state, subscription.splice, subscription.topic
        if topic is None:
            return
        fresh = {}
        with state.lock:
            for code, records in quote.items():
                kept = [
                    record
                    for record in records
                    if (splice is None or splice.from_single(record, moment))
                    and self.admit(state, code, record, moment)
                ]
                if kept:
                    fresh[code] = kept
            if fresh:
                self.sink.publish(topic, fresh, moment.received_ns)

    def admit(self, state: TopicState, code: str, record: Any, moment: Moment) -> bool:
        """Return whether `record` may be published: no newer version was published. The caller holds the lock."""
        if state.is_filled:
            state.is_filled = False
            if not state.newest.is_new(code, record):
                return False
        if state.newest.admit(code, record, moment):
            return True
        with self._counting:
            self.overtaken += 1
        return False

    def _admit_all(self, state: TopicState, ticks: dict[str, Any], moment: Moment) -> dict[str, Any]:
        """Return those of `ticks` that may be published (see `admit`)."""
        if state.is_filled:
            return {code: tick for code, tick in ticks.items() if self.admit(state, code, tick, moment)}
        fresh = state.newest.admit_all(ticks, moment)
        if len(fresh) < len(ticks):
            with self._counting:
                self.overtaken += len(ticks) - len(fresh)
        return fresh

    def begin_with(self, state: TopicState, code: str, tick: Any, moment: Moment) -> None:
        """Publish the newest tick of the feeder or the terminal, unless the topic already has it or a newer one."""
        topic, splice = state.topic, state.splice
        if topic is None:
            return
        with state.lock:
            if not state.newest.is_new(code, tick) or not state.newest.admit(code, tick, moment):
                return
            state.is_filled = True
            if state.parts.kind is Kind.WHOLE:
                self.sink.publish_whole(topic, {code: tick}, moment.received_ns)
                return
            if splice is not None:
                # Record it, or it is published a second time when the single subscription pushes it.
                splice.from_market(tick)
            self.sink.publish(topic, {code: [tick]}, moment.received_ns)
