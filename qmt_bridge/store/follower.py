"""The store as a consumer of the feeder: what is published, by prefixes, and topics of its own as demand."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

import zmq

from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.errors import WireError
from qmt_bridge.handshakes import Links
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.store.record_time import STORED
from qmt_bridge.wire.frames import STAMP_BYTES, Frame
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)

# Messages that wait here while the disk is slow, and as many wait in the feeder: four seconds of a market as quotes of
# their own. A batch of a market has at most 64 KiB, so they are at most 256 MiB.
RECEIVE_MARK = 4096
# As an int, because recv takes twice as long with an enum member.
_NOBLOCK = int(zmq.NOBLOCK)


class Follower:
    """A SUB socket; one thread uses it."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], where: Endpoint, links: Links, topics: Iterable[Topic]
    ) -> None:
        """Connect and subscribe; raise `ConfigError`."""
        self.socket = connect_subscriber(context, where.address, where.curve, links, where.name, RECEIVE_MARK)
        # Messages that were none of the feeder's.
        self.strange = 0
        for kind in sorted(STORED):
            # A prefix receives what others have subscribed, and asks the feeder for nothing.
            self.socket.subscribe(f"{kind}/".encode())
        for topic in topics:
            self.socket.subscribe(topic.encode("ascii"))

    def follow(self, topic: Topic) -> None:
        """Subscribe a topic until `leave`, so that the feeder publishes it."""
        self.socket.subscribe(topic.encode("ascii"))

    def leave(self, topic: Topic) -> None:
        """Take back one `follow`; another one of the same topic still holds."""
        self.socket.unsubscribe(topic.encode("ascii"))

    def take(self, most: int, known: Mapping[bytes, Topic]) -> Iterator[Frame]:
        """Yield at most `most` messages that have arrived; `known` are topics by their bytes on the wire.

        Messages of those are the usual case, whose cost limits how many a store can take: recv_multipart would take
        three times as long, because it checks after each part whether it was the last.
        """
        receive = self.socket.recv
        for _ in range(most):
            try:
                head = receive(_NOBLOCK)
            except zmq.Again:
                return
            topic = known.get(head[:-STAMP_BYTES])
            try:
                yield self._read(head) if topic is None else Frame.of_topic(topic, head, receive(_NOBLOCK))
            except (WireError, zmq.Again) as exc:
                if not self.strange:
                    logger.warning("what came from the feeder's address is left out: %s", exc)
                self.strange += 1

    def _read(self, head: bytes) -> Frame:
        """Return the message that begins with `head`; raise `WireError` if it is none of the feeder's."""
        parts = [head]
        while self.socket.getsockopt(zmq.RCVMORE):
            parts.append(self.socket.recv(_NOBLOCK))
        return Frame.from_parts(parts)
