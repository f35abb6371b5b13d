"""The socket for questions to a store (ROUTER): who may ask, and the answers at the pace of each asker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator
from typing import Literal

import msgspec
import zmq

from qmt_bridge.addresses.endpoint import Endpoint
from qmt_bridge.answering.askers import Askers, Peer
from qmt_bridge.answering.unread import Unread
from qmt_bridge.curve.authenticator import Authenticator
from qmt_bridge.errors import BadRequest, WireError
from qmt_bridge.handshakes import Links
from qmt_bridge.sockets import UNREAD_MS, bind_again, bind_router
from qmt_bridge.system import clock
from qmt_bridge.wire.history import TopicHistory, encode_history
from qmt_bridge.wire.requests import CatchUp, decode_ask

logger = logging.getLogger(__name__)

# Answers that wait for one asker beyond what the system holds: each has up to a MiB (`answers.MOST_CHUNK_BYTES`), and
# who wants the next chunk asks for it.
ANSWER_MARK = 4
# Questions, and seconds and bytes of answers, before the messages of the feeder have their turn again.
TURN = 200
# Bytes of an answer, about, while connections that may not read have too many.
SMALL_ROOM = 4 * 1024
TURN_SECONDS = 0.01
# While messages of the feeder wait: what they wait for is lost in the end, and an answer only comes later.
BUSY_SECONDS = 0.001
TURN_BYTES = 2 * 1024 * 1024
# An envelope is what ZeroMQ puts before a question: of a DEALER one part, of a REQ two, each proxy adds one.
MAX_ENVELOPE_PARTS = 16
MAX_ENVELOPE_BYTES = 1024
# What one topic of a question that waits counts for, beside its text.
_TOPIC_BYTES = 100
# Seconds between two lines of the log about questions that are refused.
_TELL_SECONDS = 10.0

Answer = Callable[[CatchUp, str], TopicHistory]


class Service:
    """Takes questions and sends answers; one thread uses it."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], where: Endpoint, keys: str, links: Links, answer: Answer
    ) -> None:
        """Bind; `keys` is the folder of CURVE keys, or empty. Raise `ConfigError`."""
        self._context = context
        self._where = where
        self._links = links
        self._answer = answer
        # Before the socket is bound: until then CURVE would accept any key.
        self.authenticator: Authenticator | None = None
        if where.curve is not None:
            self.authenticator = Authenticator(context, keys, where.curve.public)
        self.socket = self._bind(where)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        # Questions that were malformed, or too many.
        self.refused = 0
        self._told_at = -_TELL_SECONDS
        self._askers = Askers(self._failed)
        self._unread = Unread()

    def readable(self) -> list[zmq.Socket[bytes]]:
        """Return the sockets to poll."""
        return [self.socket] if self.authenticator is None else [self.socket, self.authenticator.socket]

    def deadline(self) -> float | None:
        """Return when `send` has something to do: 0.0 is at once, None not before a new question."""
        return self._askers.deadline()

    def admit(self, ready: Container[object]) -> None:
        """Answer clients that wait to be admitted."""
        if self.authenticator is not None and self.authenticator.socket in ready:
            self.authenticator.answer()

    def look(self, now: float) -> bool:
        """Look for keys that were taken back, every second; return whether there is a new socket to poll."""
        if self.authenticator is None:
            return False
        self.authenticator.look(now)
        if not self.authenticator.revoked():
            return False
        logger.warning("a client key was taken back: the connections of %s end", self._where.name)
        self._bind_anew()
        return True

    def take(self) -> None:
        """Take questions that have arrived."""
        for _ in range(TURN):
            try:
                *peer, payload = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take(tuple(peer), payload)
            except (BadRequest, WireError) as exc:
                self._refuse(exc.reason if isinstance(exc, BadRequest) else str(exc))

    def send(self, now: float, *, busy: bool = False) -> None:
        """Make and send some answers, in turns between the connections that read; fewer of them while `busy`."""
        self._unread.expire(now)
        until = clock.monotonic() + (BUSY_SECONDS if busy else TURN_SECONDS)
        size = 0
        while size < TURN_BYTES and clock.monotonic() < until:
            message = self._askers.take(now)
            if message is None:
                return
            peer, payload = message
            match self._deliver(peer, payload) if payload else "none":
                case "full":
                    self._askers.full(now)
                case "gone":
                    self._askers.gone()
                    self._unread.gone(peer[0])
                case "sent":
                    self._askers.sent()
                    self._unread.sent(peer[0], len(payload), now)
                    size += len(payload)

    def close(self) -> None:
        """Close the sockets."""
        self._links.leave(self.socket)
        self.socket.close(linger=0)
        if self.authenticator is not None:
            self.authenticator.close()

    def _take(self, peer: Peer, payload: bytes) -> None:
        size = sum(map(len, peer))
        if not peer or len(peer) > MAX_ENVELOPE_PARTS or size > MAX_ENVELOPE_BYTES:
            raise BadRequest("bad_request", f"an envelope of {len(peer)} parts, {size} bytes")
        ask = decode_ask(payload)
        if not isinstance(ask, CatchUp):
            raise BadRequest("bad_request", "a store answers catch_up alone")
        waiting = sum(len(text) + _TOPIC_BYTES for text in ask.topics)
        if not self._askers.add(peer, self._answers(ask), waiting):
            raise BadRequest("rate_limited", f"about {len(ask.topics)} topics, while too many questions wait")

    def _answers(self, ask: CatchUp) -> Iterator[bytes]:
        for text in dict.fromkeys(ask.topics):
            if self._unread.is_full and not 0 < ask.room < SMALL_ROOM:
                ask = msgspec.structs.replace(ask, room=SMALL_ROOM)
            yield encode_history(self._answer(ask, text))

    def _deliver(self, peer: Peer, payload: bytes) -> Literal["sent", "full", "gone"]:
        try:
            self.socket.send_multipart([*peer, payload], zmq.NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            return "gone"
        return "sent"

    def _refuse(self, reason: str) -> None:
        self.refused += 1
        if (now := clock.monotonic()) >= self._told_at + _TELL_SECONDS:
            self._told_at = now
            logger.warning("a question is not answered: %s", reason)

    def _failed(self, exc: Exception) -> None:
        self.refused += 1
        logger.error("an answer could not be made", exc_info=exc)

    def _bind(self, where: Endpoint) -> zmq.Socket[bytes]:
        return bind_router(self._context, where.address, where.curve, self._links, where.name, ANSWER_MARK, UNREAD_MS)

    def _bind_anew(self) -> None:
        assert self.authenticator is not None
        self._links.leave(self.socket)
        self.socket.unbind(self.address)
        self.socket.close(linger=0)
        self.authenticator.bound_anew(self._where.name)
        self.socket = bind_again(lambda: self._bind(self._where._replace(address=self.address)))
