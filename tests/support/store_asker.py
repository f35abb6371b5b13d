"""A program that asks a store, and a store that runs on a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import zmq

from qmt_bridge.config import Config
from qmt_bridge.sockets import connect_dealer
from qmt_bridge.store.app import Store
from qmt_bridge.wire.history import StoreStatus, TopicHistory, decode_history, decode_status
from qmt_bridge.wire.requests import CatchUp, encode_ask
from qmt_bridge.wire.topics import STORE_TOPIC, Topic
from tests.support.turns import TurnThread, turning
from tests.support.waiting import DEADLINE, wait_for

DEADLINE_MS = int(DEADLINE * 1000)


class Asker:
    """A DEALER of its own context."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = connect_dealer(self._context, address, None, name="store_addr")
        # Until there is a connection a question would not be sent.
        assert self.socket.poll(DEADLINE_MS, zmq.POLLOUT)

    def send(self, topics: Sequence[str], **question: object) -> None:
        self.socket.send(encode_ask(CatchUp(1, list(topics), **question)))  # type: ignore[arg-type]

    def receive(self) -> TopicHistory:
        assert self.socket.poll(DEADLINE_MS), "no answer"
        return decode_history(self.socket.recv())

    def ask(self, topic: str, **question: object) -> TopicHistory:
        """Return an answer; a store that looks for the source's history is asked again, as its readers do."""
        found: list[TopicHistory] = []

        def answers() -> bool:
            self.send([topic], **question)
            found.append(self.receive())
            return found[-1].state != "filling"

        wait_for(answers, "the history")
        return found[-1]

    def all(self, topic: str, room: int = 0, **question: object) -> list[TopicHistory]:
        """Return the answers that together have all that is stored from a place on."""
        answers = [self.ask(topic, room=room, **question)]
        while answers[-1].more:
            answers.append(self.ask(topic, room=room, epoch=answers[-1].epoch, after=answers[-1].seq))
        return answers

    def status(self) -> StoreStatus:
        [frame] = self.ask(STORE_TOPIC).frames
        return decode_status(bytes(frame.body))

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()


@contextmanager
def asking(address: str) -> Iterator[Asker]:
    asker = Asker(address)
    try:
        yield asker
    finally:
        asker.close()


@contextmanager
def running_store(config: Config, topics: Sequence[Topic] = ()) -> Iterator[tuple[TurnThread[Store], Config]]:
    """Run a store at a port that the system chooses; yield it and the settings with that port."""
    with turning(Store(config, topics)) as thread:
        yield thread, msgspec.structs.replace(config, store_addr=thread.service.address)
