"""One pusher that is connected: what it serves, and what its messages do. On the thread "push"."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import msgspec

from feeder.push.connection import Connection
from feeder.push.entrance import Entrance
from feeder.push.message import BadLine, History, Record
from feeder.push.offer import Offer
from feeder.push.route import Route, encoded
from feeder.push.snapshots import TOO_LARGE, Snapshots
from feeder.push.spoken import read_topic
from feeder.push.standing import Standing
from qmt_bridge.wire.source_history import HISTORY_BYTES
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

# Bytes of the topics that are remembered as they were spelled; more are read anew.
_ROUTE_BYTES = 16 * 1024 * 1024
_ROUTE_OVERHEAD = 500
# Bytes of all histories of which a pusher has sent a part.
HISTORIES_BYTES = 32 * 1024 * 1024
_NS_PER_MS = 1_000_000
# Of a larger float in ms its ns would be infinite, or no 64 bits.
MOST_MS = 2**53
# What is a moment of this century in seconds, and of the years 1970 to 1973 in ms.
_SECONDS = range(10**9, 10**11)


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

    def add(self, part: History, others: int) -> bool:
        """Take a part of the answer, beside `others` bytes of other ones; return whether it is the last part.

        Raise `BadLine` for one that is too large: its bodies count, since a line may have many small records.
        """
        for record in part.data:
            body = encoded({self.code: [record]})
            self.size += len(body)
            if self.size > HISTORY_BYTES or self.size + others > HISTORIES_BYTES:
                raise BadLine(
                    "too_long",
                    f"a history has at most {HISTORY_BYTES:,} bytes, and all that have begun {HISTORIES_BYTES:,}",
                )
            self.bodies.append(msgspec.Raw(body))
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
        # Snapshots that have not ended; topics whose snapshot has come, and those whose snapshot was too large.
        self._snapshots = Snapshots(entrance.unfinished)
        self._begun: set[Topic] = set()
        self._too_large: set[Topic] = set()

    def take(self, record: Record) -> bool:
        """Take a record; return False if it has to come again. Raise `BadLine`."""
        spelled = bytes(record.topic)
        route = self._routes.get(spelled) or self._route(spelled)
        now = self.connection.received_ns
        received_ns = now if record.time is None else _received(record.time, now)
        if route.topic not in self._wanted:
            return self._take_other(route, record, received_ns)
        if route.kind is Kind.WHOLE and (record.more or route.topic not in self._begun):
            taken = self._take_part(route, record, received_ns)
        else:
            taken = self._entrance.market(route, route.body(record.data), received_ns, self.standing)
        self.standing.records += taken
        return taken

    def forget(self, topic: Topic) -> None:
        """Note that a topic begins anew, or has ended."""
        self._snapshots.drop(topic)
        self._begun.discard(topic)
        self._too_large.discard(topic)

    def close(self) -> None:
        """Forget what has not ended."""
        self._snapshots.clear()

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

    def _take_part(self, route: Route, record: Record, received_ns: int) -> bool:
        """Take a part of a snapshot, which is published as one: what lacks its begin would look like a whole market."""
        topic = route.topic
        if topic in self._too_large:
            return True
        # Before the part is read, which is as large as a line may be and would be read at each attempt.
        if not record.more and not self._entrance.has_event_room():
            return False
        if not self._snapshots.add(topic, route.body(record.data), self.connection.line_bytes):
            # What follows cannot be told from another snapshot: nothing is taken until the topic is subscribed again.
            self._too_large.add(topic)
            self._begun.discard(topic)
            self._entrance.refuse(topic, TOO_LARGE)
            raise BadLine("too_long", TOO_LARGE)
        if not record.more:
            self._entrance.snapshot(route, self._snapshots.take(topic), received_ns)
            self._begun.add(topic)
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
