"""A store of the day for tests: a ROUTER that answers from a list of messages, as `qmt_bridge.wire.history` says."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import zmq

from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory, encode_history
from qmt_bridge.wire.moments import read_moment
from qmt_bridge.wire.requests import CatchUp, decode_ask
from qmt_bridge.wire.topics import Topic

# The epoch of every message, and 2026-11-27 09:30 in Shanghai.
EPOCH = 1795743000000000000
OPEN_MS = 1795743000000


class Shelf:
    """Answers on a thread of its own, with the messages of each topic: the time in ms since 1970 and the body."""

    def __init__(self) -> None:
        self.messages: dict[Topic, list[tuple[int, bytes]]] = {}
        # Of each topic, the holes before the first message.
        self.holes: dict[Topic, list[Hole]] = {}
        # Why a topic is refused.
        self.refusals: dict[Topic, str] = {}
        # The questions that came.
        self.asked: list[CatchUp] = []
        # The connections by which they came.
        self.askers: set[bytes] = set()
        # Called before each answer; returns whether to answer.
        self.willing: Callable[[CatchUp], bool] = lambda ask: True
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def put(self, topic: Topic, *records: object, code: str = "", every_ms: int = 3000) -> None:
        """Add messages of one record each, three seconds apart."""
        name = code or topic.split("/")[1]
        listed = self.messages.setdefault(topic, [])
        for record in records:
            listed.append((OPEN_MS + every_ms * len(listed), msgspec.json.encode({name: [record]})))

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()
        self._socket.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        while not self._stopped.is_set():
            if not self._socket.poll(20):
                continue
            *envelope, question = self._socket.recv_multipart()
            ask = decode_ask(question)
            assert isinstance(ask, CatchUp)
            self.askers.add(envelope[0])
            self.asked.append(ask)
            if self.willing(ask):
                for topic in ask.topics:
                    self._socket.send_multipart([*envelope, encode_history(self._answer(ask, Topic(topic)))])

    def _answer(self, ask: CatchUp, topic: Topic) -> TopicHistory:
        if topic in self.refusals:
            return TopicHistory(ask.id, topic, "refused", self.refusals[topic], "internal")
        messages = self.messages.get(topic)
        if messages is None:
            return TopicHistory(ask.id, topic, holes=[Hole("not_stored")])
        start_ms = 0 if ask.start is None else read_moment(ask.start, "start").on_day_of(OPEN_MS)
        end_ms = 0 if ask.end is None else read_moment(ask.end, "end").on_day_of(OPEN_MS)
        taken: list[StoredFrame] = []
        size, more, from_ms = 0, False, None
        for seq, (ms, body) in enumerate(messages, 1):
            if ms < start_ms or (ask.after is not None and seq <= ask.after):
                continue
            if end_ms and ms >= end_ms:
                break
            if taken and size + len(body) > ask.room:
                more = True
                break
            from_ms = from_ms or ms
            size += len(body)
            taken.append(StoredFrame(EPOCH, seq, ms * 10**6, ms * 10**6, msgspec.Raw(body)))
        seq = taken[-1].seq if taken else len(messages)
        holes = self.holes.get(topic, []) if ask.start is not None else []
        first_ms = from_ms if ask.start is not None else None
        return TopicHistory(
            ask.id, topic, frames=taken, more=more, epoch=EPOCH, seq=seq,
            start_ms=start_ms, end_ms=end_ms, from_ms=first_ms, holes=holes,
        )  # fmt: skip
