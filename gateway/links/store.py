"""The worker's link to the store of the day: one DEALER for the streams and the pages. The store may be absent.

Runs on the event loop, which owns the socket. The feed looks at it in its turns, since what arrives for a stream goes
to clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

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
        self._waiting: dict[int, asyncio.Future[TopicHistory]] = {}
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
    ) -> int | None:
        """Ask what is stored of topics from `start` on, or after a position; return the number of the question.

        `end` is the moment before which it ends, `room` about how many bytes the answer may have. Return None while
        there is no connection.
        """
        if self._closed:
            return None
        number = next(self._numbers)
        seq, epoch = (None, None) if after is None else (after.seq, after.epoch)
        question = CatchUp(number, [*topics], seq, room, epoch, start=start, end=end)
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
        answer: asyncio.Future[TopicHistory] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            return await answer
        finally:
            del self._waiting[number]

    def take(self) -> TopicHistory:
        """Return the next answer, which the page that waits for it gets as well.

        Raise `zmq.Again` if there is none, and `WireError` for one that cannot be read.
        """
        history = decode_history(self._socket.recv_multipart(zmq.NOBLOCK)[-1])
        answer = self._waiting.get(history.id)
        if answer is not None and not answer.done():
            answer.set_result(history)
        return history

    def close(self) -> None:
        """Disconnect; who waits for an answer is cancelled."""
        self._closed = True
        for answer in self._waiting.values():
            answer.cancel()
        self._socket.close(linger=0)
