"""Questions up and answers down: a ROUTER for clients, and for each client a connection of its own to feeder or store.

So to feeder and store each client of a forwarder is an asker like any other: answers are made at the client's pace, its
limits are its own, and a survey finds it. libzmq's proxy could not do this: it would drop the answers for which a
client has no room, join all clients to one asker, and pass on what the roles of a client's key do not allow.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses.endpoint import Forwarded
from qmt_bridge.curve.authenticator import Authenticator
from qmt_bridge.errors import BadRequest, WireError
from qmt_bridge.forward.rights import admit
from qmt_bridge.handshakes import Links
from qmt_bridge.wire.requests import encode_reply

logger = logging.getLogger(__name__)

# Clients that have a connection. Beyond, one of the key (without keys: of the address) with most of them loses it: the
# one that was silent longest, which gets another with its next question. Each takes two files, and Windows waits for
# some hundred sockets alone.
MOST_ASKERS = 200 if sys.platform == "win32" else 1000
# A connection without questions and answers for so long is closed. The longest answer comes after 45 s (a history).
IDLE_SECONDS = 120.0
# A question waits for a connection for so long; a gateway without an answer asks again.
WAIT_SECONDS = 2.0
# Bytes of questions that wait for the connection of one client, and of all. A worker that starts again asks about a
# hundred thousand topics in a hundred questions, some 13 MB.
WAITING_BYTES = 16 * 1024 * 1024
TOTAL_BYTES = 64 * 1024 * 1024
# Questions of one client that wait in its connection.
QUESTION_MARK = 100
# A client that has no room for its answer is tried again after the first time, then after twice as long, and given up
# after the last one: libzmq does not tell when there is room.
RETRY_FIRST = 0.001
RETRY_LAST = 0.05
PATIENCE_SECONDS = 60.0
# Questions, and answers of one client, before others have their turn.
TURN = 200
ANSWERS = 20
# An envelope is what ZeroMQ puts before a question: of a DEALER one part, of a REQ two, each proxy adds one.
MAX_ENVELOPE_PARTS = 16
MAX_ENVELOPE_BYTES = 1024
# Seconds between two lines of the log about questions that are refused.
_TELL_SECONDS = 10.0


class _Asker:
    """One client: its connection, the questions that wait for it, and the answer that the client has no room for."""

    __slots__ = ("dealer", "delay", "full_since", "name", "owner", "retry_at", "size", "unsent", "used_at", "waiting")

    def __init__(self, name: bytes, owner: str, dealer: zmq.Socket[bytes], now: float) -> None:
        self.name = name
        # Its key, or without keys its address. Not the name of the connection: a program with a thousand
        # connections would be a thousand owners, and displace all others.
        self.owner = owner
        self.dealer = dealer
        self.used_at = now
        # Questions with the time until which each waits, oldest first.
        self.waiting: deque[tuple[list[bytes], float]] = deque()
        self.size = 0
        self.unsent: list[bytes] | None = None
        self.full_since: float | None = None
        self.retry_at = 0.0
        self.delay = RETRY_FIRST


class Questions:
    """The clients of one of the two sockets for questions; one thread uses it."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        where: Forwarded,
        links: Links,
        poller: zmq.Poller,
        authenticator: Authenticator | None,
        epoch: Callable[[], int],
        mark: int,
        unread_ms: int,
    ) -> None:
        """Connect and bind; raise `ConfigError`.

        `epoch` is the feeder's. At most `mark` answers wait for a client, and as many for this process; a client that
        reads nothing for `unread_ms` loses its connection.
        """
        self._context = context
        self._where = where
        self._links = links
        self._poller = poller
        self._authenticator = authenticator
        self._epoch = epoch
        self._mark = mark
        self._unread_ms = unread_ms
        # What was passed on; refused; and given up, as nothing took it.
        self.asked = 0
        self.answered = 0
        self.refused = 0
        self.dropped = 0
        self._told_at = -_TELL_SECONDS
        # By the name of the connection, the one that was silent longest first; and by its socket.
        self._askers: dict[bytes, _Asker] = {}
        self._by_dealer: dict[object, _Asker] = {}
        # By owner, in the same order.
        self._by_owner: dict[str, dict[bytes, _Asker]] = {}
        self._full: dict[bytes, _Asker] = {}
        self._waiting: dict[bytes, _Asker] = {}
        self._size = 0
        upstream = where.upstream
        # It asks nothing: its events tell why there is no connection.
        self._probe = sockets.connect_dealer(context, upstream.address, upstream.curve, links, upstream.name)
        self._bind(where.listened.address)

    def __len__(self) -> int:
        """Return how many clients have a connection."""
        return len(self._askers)

    @property
    def name(self) -> str:
        """Return the setting of the address at which it listens."""
        return self._where.listened.name

    def deadline(self) -> float | None:
        """Return when `look` has something to do, None if nothing waits."""
        times = [asker.retry_at for asker in self._full.values()]
        times += [asker.waiting[0][1] for asker in self._waiting.values()]
        return min(times, default=None)

    def turn(self, ready: Mapping[object, int], now: float) -> None:
        """Pass on what has come, and try again what could not be passed on."""
        if self.socket in ready:
            self._take(now)
        for found in ready:
            asker = self._by_dealer.get(found)
            # An earlier one of this turn may have ended its connection.
            if asker is not None:
                self._send_waiting(asker)
                self._answer(asker, now)
        for asker in [each for each in self._full.values() if each.retry_at <= now]:
            self._answer(asker, now)
        for asker in [each for each in self._waiting.values() if each.waiting[0][1] <= now]:
            self._give_up_waiting(asker, now)

    def expire(self, now: float) -> None:
        """End connections of clients that ask nothing any more; call it every second."""
        idle = [asker for asker in self._askers.values() if now - asker.used_at >= IDLE_SECONDS]
        for asker in idle:
            self._end(asker)

    def bind_anew(self) -> None:
        """End all connections of clients; those that may come again do so. Raise `ConfigError`."""
        self._close()
        self._bind(self.address, again=True)

    def close(self) -> None:
        """Pass on no more."""
        self._close()
        self._links.leave(self._probe)
        self._probe.close(linger=0)

    # -- Questions

    def _take(self, now: float) -> None:
        for _ in range(TURN):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._take_one(parts, now)
            except (BadRequest, WireError) as exc:
                self.refused += 1
                if now >= self._told_at + _TELL_SECONDS:
                    self._told_at = now
                    told = exc.reason if isinstance(exc, BadRequest) else str(exc)
                    logger.warning("a question at %s is not passed on: %s", self.name, ascii(told[:300])[1:-1])

    def _take_one(self, parts: list[zmq.Frame], now: float) -> None:
        name, *envelope, payload = (part.bytes for part in parts)
        size = sum(map(len, envelope))
        if len(envelope) >= MAX_ENVELOPE_PARTS or size > MAX_ENVELOPE_BYTES:
            raise BadRequest("bad_request", f"an envelope of {1 + len(envelope)} parts, {size} bytes")
        question: bytes | None = payload
        if self._authenticator is not None and self._where.upstream.name == "ask_addr":
            client = self._authenticator.client(_told(parts[-1], "User-Id").encode())
            if client is None:
                raise BadRequest("forbidden", "its key was taken back")
            question, replies = admit(payload, client.name, client.roles, self._epoch())
            for reply in replies:
                self.refused += 1
                try:
                    self.socket.send_multipart([name, *envelope, encode_reply(reply)], zmq.NOBLOCK)
                except zmq.ZMQError as exc:
                    # It reads nothing, or is gone.
                    logger.debug("a refusal did not reach its client: %s", exc)
        if question is None:
            return
        asker = self._asker(name, _told(parts[-1], "User-Id") or _told(parts[-1], "Peer-Address"), now)
        self.asked += 1
        if asker.waiting or not _sent(asker.dealer, [*envelope, question]):
            self._wait(asker, [*envelope, question], now)

    def _asker(self, name: bytes, owner: str, now: float) -> _Asker:
        asker = self._askers.pop(name, None)
        if asker is None:
            while len(self._askers) >= MOST_ASKERS:
                self._end(next(iter(max(self._by_owner.values(), key=len).values())))
            upstream = self._where.upstream
            dealer = sockets.connect_dealer(
                self._context, upstream.address, upstream.curve, name=upstream.name, mark=self._mark
            )
            dealer.sndhwm = QUESTION_MARK
            asker = self._by_dealer[dealer] = _Asker(name, owner, dealer, now)
            self._poller.register(dealer, zmq.POLLIN)
        asker.used_at = now
        self._askers[name] = asker
        # Behind those that were silent for longer.
        owned = self._by_owner.setdefault(asker.owner, {})
        owned.pop(name, None)
        owned[name] = asker
        return asker

    def _wait(self, asker: _Asker, question: list[bytes], now: float) -> None:
        size = sum(map(len, question))
        if asker.size + size > WAITING_BYTES or self._size + size > TOTAL_BYTES:
            self.dropped += 1
            return
        asker.waiting.append((question, now + WAIT_SECONDS))
        asker.size += size
        self._size += size
        if asker.name not in self._waiting:
            self._waiting[asker.name] = asker
            self._register(asker)

    def _send_waiting(self, asker: _Asker) -> None:
        while asker.waiting and _sent(asker.dealer, asker.waiting[0][0]):
            self._leave_waiting(asker)

    def _give_up_waiting(self, asker: _Asker, now: float) -> None:
        while asker.waiting and asker.waiting[0][1] <= now:
            self.dropped += 1
            self._leave_waiting(asker)
        if not asker.waiting:
            # libzmq may have given the connection up, as after a refused key.
            self._end(asker)

    def _leave_waiting(self, asker: _Asker) -> None:
        question, _ = asker.waiting.popleft()
        size = sum(map(len, question))
        asker.size -= size
        self._size -= size
        if not asker.waiting:
            del self._waiting[asker.name]
            self._register(asker)

    # -- Answers

    def _answer(self, asker: _Asker, now: float) -> None:
        for parts in self._answers(asker):
            try:
                self.socket.send_multipart([asker.name, *parts], zmq.NOBLOCK)
            except zmq.Again:
                self._hold(asker, parts, now)
                return
            except zmq.ZMQError as exc:
                if exc.errno != zmq.EHOSTUNREACH:
                    raise
                self._end(asker)
                return
            self.answered += 1
            asker.used_at = now
            if asker.unsent is not None:
                asker.unsent, asker.full_since, asker.delay = None, None, RETRY_FIRST
                del self._full[asker.name]
                self._register(asker)

    def _answers(self, asker: _Asker) -> Iterator[list[bytes]]:
        """Yield the answer that could not be sent, and some that have come."""
        if asker.unsent is not None:
            yield asker.unsent
        for _ in range(ANSWERS):
            try:
                yield asker.dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _hold(self, asker: _Asker, parts: list[bytes], now: float) -> None:
        """Keep an answer for which the client has no room, and read no other one meanwhile."""
        asker.unsent = parts
        if asker.full_since is None:
            asker.full_since = now
            self._full[asker.name] = asker
            self._register(asker)
        elif now - asker.full_since >= PATIENCE_SECONDS:
            self.dropped += 1
            self._end(asker)
            return
        asker.retry_at = now + asker.delay
        asker.delay = min(2 * asker.delay, RETRY_LAST)

    # -- Sockets

    def _register(self, asker: _Asker) -> None:
        """Wait for what can be done with a connection now."""
        flags = (0 if asker.unsent is not None else zmq.POLLIN) | (zmq.POLLOUT if asker.waiting else 0)
        if flags:
            self._poller.register(asker.dealer, flags)
        elif asker.dealer in self._poller:
            self._poller.unregister(asker.dealer)

    def _end(self, asker: _Asker) -> None:
        if asker.dealer in self._poller:
            self._poller.unregister(asker.dealer)
        del self._askers[asker.name], self._by_dealer[asker.dealer], self._by_owner[asker.owner][asker.name]
        if not self._by_owner[asker.owner]:
            del self._by_owner[asker.owner]
        self._full.pop(asker.name, None)
        self._waiting.pop(asker.name, None)
        self._size -= asker.size
        asker.dealer.close(linger=0)

    def _bind(self, address: str, *, again: bool = False) -> None:
        listened = self._where.listened
        self.socket = sockets.bind_router(
            self._context,
            address,
            listened.curve,
            self._links,
            listened.name,
            self._mark,
            self._unread_ms,
            sockets.FREED_SECONDS if again else 0.0,
        )
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._poller.register(self.socket, zmq.POLLIN)

    def _close(self) -> None:
        for asker in list(self._askers.values()):
            self._end(asker)
        self._poller.unregister(self.socket)
        self._links.leave(self.socket)
        self.socket.unbind(self.address)
        self.socket.close(linger=0)


def _told(message: zmq.Frame, name: str) -> str:
    """Return what libzmq tells of the connection of a message; nothing if it does not."""
    try:
        return str(message.get(name))
    except zmq.ZMQError:
        return ""


def _sent(dealer: zmq.Socket[bytes], question: list[bytes]) -> bool:
    try:
        dealer.send_multipart(question, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
