"""The link of the pages to the store of the day: a DEALER, and the questions whose answers are waited for.

It is made with the first question: most workers serve no history. Runs on the event loop, which owns the socket.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec
import zmq

from gateway.http.problems import Denied
from gateway.loop import readiness
from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.errors import WireError
from qmt_bridge.wire.history import TopicHistory, decode_history
from qmt_bridge.wire.requests import CatchUp, encode_ask
from qmt_bridge.wire.topics import Topic

logger = logging.getLogger(__name__)

# Seconds in which an answer has to come; it is read from a disk, one after the other.
ANSWER_TIMEOUT = 5.0
# Seconds between two attempts to ask a store that is being connected to.
_AGAIN = 0.02
# Seconds until a store is asked again that completes a day.
_FILLING = 0.25
# Answers that are read in one turn of the loop: one of 128 KiB takes some 0.3 ms.
_AT_A_TIME = 8


class StoreAway(Denied):
    """The store does not answer."""

    def __init__(self) -> None:
        super().__init__("upstream_unavailable", "the store of the day does not answer (setting store_addr)")


class StoreLink:
    """The questions of one worker's pages to the store."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._waiting: dict[int, asyncio.Future[TopicHistory]] = {}
        self._next_id = 0
        self._socket: zmq.Socket[bytes] | None = None
        self._closed = False
        # ZeroMQ's descriptors are edge-triggered, and any call on a socket can consume the edge.
        self._draining = False

    async def ask(
        self,
        topic: Topic,
        *,
        start: int | str | None = None,
        after: tuple[int, int] | None = None,
        end: int | str | None = None,
        room: int = 0,
    ) -> TopicHistory:
        """Return what is stored of a topic from `start` on, or after the position (epoch, seq); raise `StoreAway`.

        `end` is the moment before which it ends, `room` about how many bytes the answer may have. A store that
        completes the day from the source's history takes up to some minutes.
        """
        epoch, seq = (None, None) if after is None else after
        while True:
            history = await self._ask(CatchUp(0, [topic], seq, room, epoch, start=start, end=end))
            if history.state != "filling":
                return history
            await asyncio.sleep(_FILLING)

    async def _ask(self, asked: CatchUp) -> TopicHistory:
        self._next_id += 1
        number = self._next_id
        answer: asyncio.Future[TopicHistory] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        question = msgspec.structs.replace(asked, id=number)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                while True:
                    if self._send(question):
                        return await answer
                    await asyncio.sleep(_AGAIN)
        except TimeoutError:
            raise StoreAway from None
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Disconnect."""
        self._closed = True
        for answer in self._waiting.values():
            answer.cancel()
        if self._socket is not None:
            self._readiness.close()
            self._socket.close(linger=0)
            self._context.term()

    def _send(self, question: CatchUp) -> bool:
        """Send a question; return False while there is no connection."""
        if self._closed:
            raise StoreAway
        if self._socket is None:
            self._open()
        assert self._socket is not None
        try:
            self._socket.send(encode_ask(question), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._drain_soon()
        return True

    def _open(self) -> None:
        store = endpoint.store_endpoint(self._config, "gateway")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = sockets.connect_dealer(self._context, store.address, store.curve, name=store.name)
        loop = asyncio.get_running_loop()
        self._readiness = readiness.watch(loop, [self._socket.fileno()], self._drain)

    def _drain_soon(self) -> None:
        if not self._draining:
            self._draining = True
            asyncio.get_running_loop().call_soon(self._drain)

    def _drain(self) -> None:
        """Take answers that are here, the others in the next turn."""
        self._draining = False
        for _ in range(_AT_A_TIME):
            if self._socket is None or self._closed:
                return
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                history = decode_history(parts[-1])
            except WireError as exc:
                logger.warning("an answer of the store cannot be read: %s", exc)
                continue
            answer = self._waiting.get(history.id)
            if answer is not None and not answer.done():
                answer.set_result(history)
        self._drain_soon()
