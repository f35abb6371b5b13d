"""A subscription of one code that is served by the messages of its market. Runs on the event loop.

The store has the code only within what it keeps of the market. All that the client is sent, stored and live, has the
positions of the market, so nothing is repeated or missing where the two meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from gateway.read_subscription import ReadSubscription
from gateway.sending.sender import Sender
from gateway.streams.member import StoreQuestion
from gateway.subscription import Owner, Terms
from qmt_bridge.errors import WireError
from qmt_bridge.wire.frames import Frame, split
from qmt_bridge.wire.topics import Topic, whole_topic

# Where a frame has what it is split into.
_BY_CODE = "by_code"


class MarketSubscription(ReadSubscription):
    """One client's subscription of the ticks of one code, out of its market (streams.member.Reader)."""

    __slots__ = ("code", "market")

    def __init__(
        self,
        sender: Sender,
        owner: Owner,
        topic: Topic,
        terms: Terms,
        question: StoreQuestion,
        on_end: Callable[[ReadSubscription], None] | None = None,
    ) -> None:
        """Serve `topic`, the ticks of the code of the question."""
        assert question.code is not None
        self.code = question.code
        self.market = question.code.rpartition(".")[2]
        super().__init__(sender, owner, topic, terms, question, on_end=on_end)
        self.upstream = whole_topic(self.market)

    def serve(self, terms: Terms, seq_id: int | None = None) -> None:
        """Serve by these terms; positions are shown as those of the market."""
        super().serve(terms, seq_id)
        if self._view is not None and self._view.stamped:
            self._view = self._view._replace(market=self.market)

    def deliver(self, frame: Frame) -> None:
        """Queue what a message of the market has of the code, as its own topic would have it."""
        if frame.topic == self.topic:
            # What a gate has held.
            super().deliver(frame)
            return
        found = _by_code(frame).get(self.code)
        if found is None:
            return
        record = bytes(found)
        # The store has made a list of it already.
        body = b'{"%b":%b}' % (self.code.encode(), record if record[:1] == b"[" else b"[%b]" % record)
        stamp = (frame.epoch, frame.seq, frame.received_ns, frame.published_ns)
        super().deliver(type(frame)(self.topic, *stamp, body))

    def snapshot_ended(self, count: int) -> None:
        """Tell nothing: the client has asked for no market."""


def _by_code(frame: Frame) -> Mapping[str, msgspec.Raw]:
    """Return a message by code, split once for all clients: it takes 80 us."""
    if frame.seen is None:
        frame.seen = {}
    found: Mapping[str, msgspec.Raw] | None = frame.seen.get(_BY_CODE)
    if found is None:
        try:
            found = split(frame.body)
        except WireError:
            # Of another shape: it has no record of a code.
            found = {}
        frame.seen[_BY_CODE] = found
    return found
