"""The worker's link to the store of the day: one DEALER for the streams and the pages. The store may be absent.

Runs on the event loop, which owns the socket. The feed looks at it in its turns, since what arrives for a stream goes
to clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.wire.history import TopicHistory, decode_history
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp, encode_ask
from qmt_bridge.wire.topics import Topic

# Seconds between two attempts to ask a store that is being connected to.
_AGAIN = 0.02
# Seconds in which the store has to say what it has of topics, before a subscription does without it.
FIND_TIMEOUT = 1.0


class _Waiting(NamedTuple):
    """The answers about `expected` topics, and what is set when all have come."""

    answers: dict[Topic, TopicHistory]
    expected: int
    complete: asyncio.Future[None]


class StoreAway(Exception):
    """The store does not answer."""

    def __init__(self) -> None:
        super().__init__("the store of the day does not answer (setting store_addr)")


class StoreLink:
    """The questions of one worker to the store, and the answers that are waited for."""

    def __init__(self, numbers: Iterator[int], used: Callable[[], None]) -> None:
        """`numbers` are those of questions: no other one of the worker has the same. `used` is called after each send.

        ZeroMQ's descriptors are edge-triggered, and any call on a socket can consume the edge; `used` has `take` called
        soon.
        """
        self._numbers = numbers
        self._used = used
        self._waiting: dict[int, _Waiting] = {}
        self._closed = False

    def open(self, context: zmq.Context[zmq.Socket[bytes]], config: Config) -> zmq.Socket[bytes]:
        """Connect, and return the socket; raise `ConfigError`."""
        store = endpoint.store_endpoint(config, "gateway")
        # That it is away is no trouble of the feed, so no link is watched.
        self._socket = sockets.connect_dealer(context, store.address, store.curve, name=store.name)
        return self._socket

    def send(
        self,
        topics: list[Topic],
        *,
        start: int | str | None = None,
        after: Position | None = None,
        end: int | str | None = None,
        room: int = 0,
        code: str | None = None,
    ) -> int | None:
        """Ask what is stored of topics from `start` on, or after a position; return the number of the question.

        `end` is the moment before which it ends, `room` about how many bytes the answer may have. Of a market, `code`
        has only what its messages hold of that code answered. Return None while there is no connection.
        """
        if self._closed:
            return None
        number = next(self._numbers)
        seq, epoch = (None, None) if after is None else (after.seq, after.epoch)
        question = CatchUp(number, [*topics], seq, room, epoch, start=start, end=end, code=code)
        try:
            self._socket.send(encode_ask(question), zmq.NOBLOCK)
        except zmq.Again:
            return None
        self._used()
        return number

    async def ask(
        self,
        topic: Topic,
        *,
        start: int | str | None = None,
        after: Position | None = None,
        end: int | str | None = None,
        room: int = 0,
    ) -> TopicHistory:
        """Return the answer to `send` about one topic; raise `StoreAway` once the worker has stopped.

        It may never come: give it a timeout.
        """
        while (number := self.send([topic], start=start, after=after, end=end, room=room)) is None:
            if self._closed:
                raise StoreAway
            await asyncio.sleep(_AGAIN)
        with self._wait(number, [topic]) as waiting:
            await waiting.complete
        return waiting.answers[topic]

    async def find(self, topics: list[Topic], start: int | str) -> dict[Topic, TopicHistory]:
        """Return the first of what is stored of topics from `start` on; without those not answered about in time."""
        number = self.send(topics, start=start, room=1)
        if number is None:
            return {}
        with self._wait(number, topics) as waiting:
            try:
                async with asyncio.timeout(FIND_TIMEOUT):
                    await waiting.complete
            except TimeoutError:
                pass
        return waiting.answers

    @contextmanager
    def _wait(self, number: int, topics: list[Topic]) -> Iterator[_Waiting]:
        """Gather the answers to a question meanwhile."""
        waiting = _Waiting({}, len(topics), asyncio.get_running_loop().create_future())
        self._waiting[number] = waiting
        try:
            yield waiting
        finally:
            del self._waiting[number]

    def take(self) -> TopicHistory:
        """Return the next answer, which what waits for it gets as well.

        Raise `zmq.Again` if there is none, and `WireError` for one that cannot be read.
        """
        history = decode_history(self._socket.recv_multipart(zmq.NOBLOCK)[-1])
        waiting = self._waiting.get(history.id)
        if waiting is not None:
            waiting.answers[Topic(history.topic)] = history
            if len(waiting.answers) == waiting.expected and not waiting.complete.done():
                waiting.complete.set_result(None)
        return history

    def close(self) -> None:
        """Disconnect; who waits for an answer is cancelled."""
        self._closed = True
        for waiting in self._waiting.values():
            waiting.complete.cancel()
        self._socket.close(linger=0)
