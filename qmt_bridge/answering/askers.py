"""Replies that wait to be sent: connections take turns, each at its own pace; the size is limited for each and for all.

Pure: time is an argument (seconds of any monotonic clock), no sockets. The thread of the socket takes one message after
another, tries to send it, and notes the result. An answer is made only when it is next, so only questions wait here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from qmt_bridge.wire.requests import Reply, encode_reply

# Bytes of questions and answers that wait for one connection, and for all. A worker that starts again asks about a
# hundred thousand topics in a hundred questions, some 13 MB.
ASKER_BYTES = 32 * 1024 * 1024
TOTAL_BYTES = 128 * 1024 * 1024
# The replies to a connection that has accepted none for this time are dropped: a program that still needs them asks
# again within seconds.
PATIENCE_SECONDS = 60.0
# A full connection is tried again after RETRY_FIRST, and then after twice the time, up to RETRY_LAST, because libzmq
# does not report when there is room again.
RETRY_FIRST = 0.001
RETRY_LAST = 0.05

# Bytes of one waiting question beside its own size.
_WAITING_BYTES = 500

# The ZeroMQ envelope of a question, which only the socket reads.
Peer = tuple[bytes, ...]
# Replies as they are made; None stands for work that made no reply. Bytes are sent as they are.
Replies = Iterator[Reply | bytes | None]


class _Asker:
    """One connection: the answers that wait for it, oldest first, and the message that could not be sent."""

    __slots__ = ("delay", "full_since", "retry_at", "size", "unsent", "waiting")

    def __init__(self) -> None:
        # The envelope, the answers, and the bytes that count for them.
        self.waiting: deque[tuple[Peer, Replies, int]] = deque()
        self.size = 0
        self.unsent: tuple[Peer, bytes] | None = None
        # Since when the connection is full (None: it is not), when to try again, and the delay after that.
        self.full_since: float | None = None
        self.retry_at = 0.0
        self.delay = RETRY_FIRST


class Askers:
    """All connections that wait for an answer. An envelope begins with the name of its connection."""

    def __init__(self, on_failure: Callable[[Exception], None]) -> None:
        # Answers that were dropped: their connection was closed, or accepted nothing for too long.
        self.given_up = 0
        # Called for an answer that could not be made; other answers to the same connection are still made.
        self._on_failure = on_failure
        self._askers: dict[bytes, _Asker] = {}
        # Connections that may be sent to, in turns, and those that are full.
        self._turns: deque[bytes] = deque()
        self._full: dict[bytes, _Asker] = {}
        self._size = 0
        self._retried_at = 0.0

    def __len__(self) -> int:
        return len(self._askers)

    def add(self, peer: Peer, answers: Replies, size: int) -> bool:
        """Queue `answers`, which take `size` bytes; if there is no room, drop them and return False."""
        name = peer[0]
        asker = self._askers.get(name)
        size += _WAITING_BYTES
        if self._size + size > TOTAL_BYTES or (asker.size if asker is not None else 0) + size > ASKER_BYTES:
            return False
        if asker is None:
            asker = self._askers[name] = _Asker()
            self._turns.append(name)
        asker.waiting.append((peer, answers, size))
        asker.size += size
        self._size += size
        return True

    def has_room(self, peer: Peer) -> bool:
        """Return whether nothing waits for the connection of `peer`, so that a long answer may continue."""
        return peer[0] not in self._askers

    def take(self, now: float) -> tuple[Peer, bytes] | None:
        """Return the next message to send, b"" if the work made none, None if there is none to send now.

        After a message, call `sent`, `full` or `gone` before you take the next one.
        """
        if now > self._retried_at:
            # Once in each turn of the loop, however many messages the turn sends.
            self._retried_at = now
            self._retry(now)
        if not self._turns:
            return None
        name = self._turns[0]
        asker = self._askers[name]
        if asker.unsent is not None:
            return asker.unsent
        peer, answers, size = asker.waiting[0]
        try:
            reply = next(answers)
            if reply is not None:
                asker.unsent = peer, reply if isinstance(reply, bytes) else encode_reply(reply)
                return asker.unsent
        except StopIteration:
            self._end_first(name, asker, size)
        except Exception as exc:
            self._on_failure(exc)
            self._end_first(name, asker, size)
        else:
            self._turns.rotate(-1)
        return peer, b""

    def sent(self) -> None:
        """Note that the message taken last was sent; the next asker follows."""
        asker = self._askers[self._turns[0]]
        asker.unsent = None
        asker.full_since = None
        asker.delay = RETRY_FIRST
        self._turns.rotate(-1)

    def full(self, now: float) -> None:
        """Note that the connection of the message taken last has no room for it."""
        name = self._turns.popleft()
        asker = self._askers[name]
        if asker.full_since is None:
            asker.full_since = now
        asker.retry_at = now + asker.delay
        asker.delay = min(2 * asker.delay, RETRY_LAST)
        self._full[name] = asker

    def gone(self) -> None:
        """Note that the connection of the message taken last is closed."""
        self._forget(self._turns.popleft())

    def deadline(self) -> float | None:
        """Return when there is something to take: 0.0 means at once, None means not before a new question."""
        if self._turns:
            return 0.0
        return min((asker.retry_at for asker in self._full.values()), default=None)

    def _retry(self, now: float) -> None:
        for name in [name for name, asker in self._full.items() if asker.retry_at <= now]:
            asker = self._full.pop(name)
            if asker.full_since is not None and now - asker.full_since >= PATIENCE_SECONDS:
                self._forget(name)
            else:
                self._turns.append(name)

    def _end_first(self, name: bytes, asker: _Asker, size: int) -> None:
        asker.waiting.popleft()
        asker.size -= size
        self._size -= size
        if asker.waiting:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self._askers[name]

    def _forget(self, name: bytes) -> None:
        asker = self._askers.pop(name)
        self._size -= asker.size
        self.given_up += len(asker.waiting)
