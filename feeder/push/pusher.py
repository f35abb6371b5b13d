"""One pusher that is connected: what it serves, and what its messages do. On the thread "push"."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import msgspec

from feeder.push.connection import Connection
from feeder.push.entrance import Entrance
from feeder.push.message import BadLine, History, Record
from feeder.push.offer import Offer
from feeder.push.route import Route, encoded
from feeder.push.spoken import read_topic
from feeder.push.standing import Standing
from qmt_bridge.wire.source_history import HISTORY_BYTES
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

# Bytes of the topics that are remembered as they were spelled; more are read anew.
_ROUTE_BYTES = 16 * 1024 * 1024
_ROUTE_OVERHEAD = 500
# Bytes of the lines of a snapshot, and of all that a pusher has begun: that of a market has 3 MB.
SNAPSHOT_BYTES = 16 * 1024 * 1024
SNAPSHOTS_BYTES = 32 * 1024 * 1024
# Bytes of all histories of which a pusher has sent a part.
HISTORIES_BYTES = 32 * 1024 * 1024
_NS_PER_MS = 1_000_000
# Of a larger float in ms its ns would be infinite, or no 64 bits.
MOST_MS = 2**53
# What is a moment of this century in seconds, and of the years 1970 to 1973 in ms.
_SECONDS = range(10**9, 10**11)


class Parts(NamedTuple):
    """The parts so far of a snapshot that comes in several lines; the ticks are encoded."""

    size: int
    ticks: dict[str, msgspec.Raw]


class Asked:
    """A question for a history that the pusher has not answered."""

    __slots__ = ("bodies", "code", "from_ms", "size", "until")

    def __init__(self, code: str, from_ms: int, until: float) -> None:
        self.code = code
        self.from_ms = from_ms
        self.until = until
        # Encoded, so that they take no more memory than their text.
        self.bodies: list[msgspec.Raw] = []
        self.size = 0

    def add(self, part: History, size: int, others: int) -> bool:
        """Take a part of the answer of so many bytes, beside those of `others`; return whether it is the last one.

        Raise `BadLine`.
        """
        self.size += size
        if self.size > HISTORY_BYTES or others + size > HISTORIES_BYTES:
            raise BadLine("too_long", f"a history has at most {HISTORY_BYTES:,} bytes")
        self.bodies += (msgspec.Raw(encoded({self.code: [record]})) for record in part.data)
        return not part.more


class Pusher:
    """A pusher from its welcome to its end."""

    def __init__(
        self,
        connection: Connection,
        standing: Standing,
        offer: Offer,
        entrance: Entrance,
        wanted: Mapping[Topic, TopicParts],
        downloads: MutableMapping[Topic, str],
        *,
        has_history: bool,
    ) -> None:
        self.connection = connection
        self.standing = standing
        self.name = standing.name
        self.offer = offer
        self.has_history = has_history
        # By the number of the question.
        self.asked: dict[int, Asked] = {}
        self._entrance = entrance
        self._wanted = wanted
        self._downloads = downloads
        self._routes: dict[bytes, Route] = {}
        self._route_bytes = 0
        # Snapshots that have begun, and the topics whose snapshot has come.
        self._snapshots: dict[Topic, Parts] = {}
        self._begun: set[Topic] = set()

    def take(self, record: Record) -> bool:
        """Take a record; return False if it has to come again. Raise `BadLine`."""
        spelled = bytes(record.topic)
        route = self._routes.get(spelled) or self._route(spelled)
        now = self.connection.received_ns
        received_ns = now if record.time is None else _received(record.time, now)
        if route.topic not in self._wanted:
            return self._take_other(route, record, received_ns)
        body = route.body(record.data)
        if route.kind is Kind.WHOLE and (record.more or route.topic not in self._begun):
            taken = self._take_part(route, body, received_ns, more=record.more)
        else:
            taken = self._entrance.market(route, body, received_ns, self.standing)
        self.standing.records += taken
        return taken

    def forget(self, topic: Topic) -> None:
        """Note that a topic begins anew, or has ended."""
        self._snapshots.pop(topic, None)
        self._begun.discard(topic)

    def served(self, spelled: bytes) -> Route:
        """Return the route of a topic that the pusher names; raise `BadLine` for one that it does not serve."""
        return self._routes.get(spelled) or self._route(spelled)

    def _route(self, spelled: bytes) -> Route:
        topic, parts = read_topic(spelled)
        if not self.offer.serves(parts):
            raise BadLine("not_wanted", f"{self.name} does not serve this {parts.kind}")
        if self._route_bytes > _ROUTE_BYTES:
            self._routes.clear()
            self._route_bytes = 0
        self._route_bytes += 4 * len(spelled) + _ROUTE_OVERHEAD
        route = self._routes[spelled] = Route(topic, parts)
        return route

    def _take_other(self, route: Route, record: Record, received_ns: int) -> bool:
        """Take what needs no subscription; leave out a record whose unsubscribe is under way."""
        taken = True
        if route.kind is Kind.TRADE:
            at = received_ns // _NS_PER_MS, received_ns
            taken = self._entrance.trade(route.code, record.event, record.id, record.data, at)
        elif route.kind is Kind.DOWNLOAD and self._downloads.get(route.topic) == self.name:
            taken = self._entrance.market(route, route.body(record.data), received_ns, self.standing)
            if taken and "status" in record.data:
                # Its end.
                del self._downloads[route.topic]
        else:
            return True
        self.standing.records += taken
        return taken

    def _take_part(self, route: Route, ticks: dict[str, Any], received_ns: int, *, more: bool) -> bool:
        """Take a part of a snapshot, which is published as one: nobody gets the end of one that has not begun."""
        before = self._snapshots.get(route.topic, Parts(0, {}))
        size = before.size + self.connection.line_bytes
        others = sum(parts.size for parts in self._snapshots.values())
        if size > SNAPSHOT_BYTES or others + self.connection.line_bytes > SNAPSHOTS_BYTES:
            self._snapshots.pop(route.topic, None)
            raise BadLine("too_long", f"a snapshot has at most {SNAPSHOT_BYTES:,} bytes, and its parts are left out")
        # Into the same dictionary: a copy for each part would cost the square of their number.
        before.ticks.update({code: msgspec.Raw(encoded(tick)) for code, tick in ticks.items()})
        if more:
            self._snapshots[route.topic] = Parts(size, before.ticks)
            return True
        if not self._entrance.snapshot(route, before.ticks, received_ns):
            return False
        self._snapshots.pop(route.topic, None)
        self._begun.add(route.topic)
        return True


def _received(time: object, now: int) -> int:
    """Return when a record was received, in ns since 1970; raise `BadLine` for a time that is none."""
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < MOST_MS:
        raise BadLine("bad_request", "time: expected milliseconds since 1970")
    if _SECONDS.start <= time < _SECONDS.stop:
        # Taken as ms it would be a delay of half a century.
        raise BadLine("bad_request", "time: expected milliseconds since 1970, and these are seconds")
    # The clock of another machine may be ahead.
    return min(now, int(time * _NS_PER_MS))
