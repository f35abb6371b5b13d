"""The way of records into the feeder's inbox: directly, conflated while there is no room, or not yet.

On the thread "push". The inbox is one for all pushers. Quotes leave room for trade events, so that a pusher which is
too fast with quotes does not hold the events of another one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from feeder.push.conflation import Conflation
from feeder.push.identities import WINDOW_MS, Identities
from feeder.push.message import ID_CHARACTERS, BadLine
from feeder.push.route import Route, encoded
from feeder.push.snapshots import Unfinished
from feeder.push.standing import Standing
from feeder.source import Sink
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import TRADE_TYPES
from qmt_bridge.wire.topics import Kind, Topic

logger = logging.getLogger(__name__)

# Messages of the inbox up to which quotes go directly, and up to which trade events and records that may not be
# conflated go: some 40 and 80 ms of the publisher's time.
ROOM = 2000
EVENT_ROOM = 4000
# Messages that may be queued when this thread goes on after a stint, and the longest wait for that.
_LEFT = 16
_WAY_SECONDS = 0.005
# Records between two looks at the room.
_LOOK_EVERY = 50
# Conflated records that are published between two looks.
_FLUSHED = 100
# Seconds until a journal that could not be read is tried again.
_RETRY_SECONDS = 5.0
_NS_PER_MS = 1_000_000


class Entrance:
    """Takes records, and publishes each at most once."""

    def __init__(self, sink: Sink, on_waiting: Callable[[], None], window_ms: int = WINDOW_MS) -> None:
        """Publish to `sink`; `on_waiting` is called when something waits, and `flush` has to be called.

        `window_ms` is how long the identity of a trade event is kept.
        """
        self._sink = sink
        self._on_waiting = on_waiting
        self._waiting = Conflation()
        # What the pushers have begun.
        self.unfinished = Unfinished()
        self._window_ms = window_ms
        self._identities = Identities(window_ms)
        self._is_restored = False
        # When this began, by both clocks: an identity is kept by the steady one, so that a wrong date of the machine
        # forgets none.
        self._began_ms, self._began = clock.time_ns() // _NS_PER_MS, clock.monotonic()
        # Records that may be taken before the next look at the room.
        self._left = 0

    @property
    def has_waiting(self) -> bool:
        """Return whether conflated records wait for room."""
        return bool(self._waiting)

    def give_way(self) -> None:
        """Wait for a moment until the publisher's thread has published most of what is queued."""
        self._sink.wait_room(_LEFT, _WAY_SECONDS)

    def is_crowded(self) -> bool:
        """Return whether the inbox has no room for quotes."""
        return bool(self._waiting) or not self._sink.wait_room(ROOM, 0)

    def market(self, route: Route, body: dict[str, Any], received_ns: int, standing: Standing) -> bool:
        """Publish a record of market data, or let it wait; return False if it has to come again. Raise `BadLine`."""
        if self._left and not self._waiting.size:
            self._left -= 1
        elif route.may_wait:
            if self._waiting.size or not self._has_room():
                if not self._waiting.has_room(route.count(body)):
                    # A body that is larger than all that may wait goes directly, once nothing waits.
                    return False
                standing.conflated += self._waiting.put(route, body, received_ns)
                self._on_waiting()
                return True
        elif not self._has_room() and not self.has_event_room():
            return False
        if route.kind is Kind.WHOLE:
            self._sink.publish_whole(route.topic, _pieces(body), received_ns)
        else:
            self._sink.publish(route.topic, msgspec.Raw(encoded(body)), received_ns)
        return True

    def has_event_room(self) -> bool:
        """Return whether there is room for what may not be conflated."""
        return self._sink.wait_room(EVENT_ROOM, 0)

    def snapshot(self, route: Route, pieces: Mapping[str, msgspec.Raw], received_ns: int) -> None:
        """Publish a market as a whole, in the place of what waits of it."""
        self._waiting.drop((route.topic, code) for code in pieces)
        self._sink.publish_whole(route.topic, pieces, received_ns)

    def refuse(self, topic: Topic, reason: str) -> None:
        """Refuse a topic whose data cannot be taken."""
        self._sink.refuse(topic, "upstream_refused", reason)

    def leave_out(self, topic: Topic) -> None:
        """Leave out the progress of a download that waits, because its end is published."""
        self._waiting.drop((topic,))

    def flush(self) -> None:
        """Publish what waits, as far as there is room."""
        while self._waiting and self._sink.wait_room(ROOM, 0):
            for waited in self._waiting.take(_FLUSHED):
                if isinstance(waited.body, dict):
                    self._sink.publish_whole(waited.topic, waited.body, waited.received_ns)
                else:
                    self._sink.publish(waited.topic, waited.body, waited.received_ns)

    def trade(self, account: str, event: object, identity: object, data: Any, at: tuple[int, int]) -> bool:
        """Publish a trade event that is new; return False if it has to come again. Raise `BadLine`.

        `at` is its own time in ms since 1970, and when it was received in ns.
        """
        if not isinstance(identity, str) or not 1 <= len(identity) <= ID_CHARACTERS:
            raise BadLine("bad_request", f"id: a trade event has one of 1 to {ID_CHARACTERS} characters")
        if not isinstance(event, str) or event not in TRADE_TYPES:
            raise BadLine("bad_request", f"event: expected a type of /ws/trade, got {str(event)[:40]!r}")
        if type(data) is not dict:
            raise BadLine("bad_request", "data: expected an object")
        if data.setdefault("account_id", account) != account:
            raise BadLine("bad_request", "data: account_id is another one than that of the topic")
        time_ms, received_ns = at
        now_ms = clock.time_ns() // _NS_PER_MS
        if not self._is_restored or not self.has_event_room():
            return False
        if self._identities.is_late(time_ms, now_ms):
            raise BadLine("late", "the event is so old that it may have been published before")
        data["push_id"] = identity
        encoded(data)
        steady_ms = self._began_ms + int(1000 * (clock.monotonic() - self._began))
        if self._identities.note(account, identity, steady_ms):
            self._sink.publish_trade(account, event, data, received_ns)
        return True

    def restore(self, closing: threading.Event, done: Callable[[Identities], None]) -> None:
        """Read from the journal which events were published, on a thread of its own, and give them to `done`.

        Until then trade events wait. A journal that cannot be read is tried again: without it an event that is sent
        again could not be told from a new one.
        """
        while not closing.is_set():
            found = Identities(self._window_ms)
            try:
                now_ms = clock.time_ns() // _NS_PER_MS
                for time_ms, event in self._sink.past_trades(now_ms - self._window_ms):
                    account, identity = event.data.get("account_id"), event.data.get("push_id")
                    if isinstance(account, str) and isinstance(identity, str):
                        # An event of the future, written under a wrong date, would make all others older than they are.
                        found.restore(account, identity, min(time_ms, now_ms))
            except Exception:
                # sqlite3.Error or TimeoutError; the file of a journal may hold anything.
                logger.exception("trade events wait: the journal does not tell which were published; trying again")
                closing.wait(_RETRY_SECONDS)
                continue
            done(found)
            return

    def restored(self, found: Identities) -> None:
        """Note which events were published; trade events are taken from now on."""
        self._identities = found
        self._is_restored = True

    def _has_room(self) -> bool:
        if not self._sink.wait_room(ROOM, 0):
            return False
        self._left = _LOOK_EVERY - 1
        return True


def _pieces(ticks: Mapping[str, Any]) -> dict[str, msgspec.Raw]:
    return {code: msgspec.Raw(encoded(tick)) for code, tick in ticks.items()}
