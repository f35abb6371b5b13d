"""A store of the day for tests: it keeps what it is given, and answers as `qmt_bridge.wire.history` says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import zmq

from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory, encode_history
from qmt_bridge.wire.moments import read_moment
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp, decode_ask


def time_of(frame: Frame) -> int:
    """Return the time of the first record of a frame."""
    [first, *_] = frame.data.values()
    record = first[0] if isinstance(first, list) else first
    return int(record["time"])


def position(frame: Frame) -> Position:
    return Position(frame.epoch, frame.seq)


def of_code(frame: Frame, code: str) -> Frame | None:
    """Return what a message of a market has of one code."""
    record = frame.data.get(code)
    return None if record is None else frame.with_body(encode({code: [record]}))


class Day:
    """The frames that a store has, by topic. With `first_epoch` it was there before the feeder's first process."""

    def __init__(self, first_epoch: int | None = None) -> None:
        self.kept: dict[str, list[Frame]] = {}
        self.first_epoch = first_epoch
        # Messages of a market that one answer about a code looks through.
        self.looks = 3

    def keep(self, frame: Frame) -> None:
        self.kept.setdefault(frame.topic, []).append(frame)

    def answer(self, ask: CatchUp) -> list[TopicHistory]:
        return [self._answer(ask, topic) for topic in ask.topics]

    def _answer(self, ask: CatchUp, topic: str) -> TopicHistory:
        kept = self.kept.get(topic, [])
        if not kept:
            return TopicHistory(ask.id, topic, holes=[Hole("not_stored")])
        day = time_of(kept[-1])
        start_ms = 0 if ask.start is None else read_moment(ask.start, "start").on_day_of(day)
        end_ms = 0 if ask.end is None else read_moment(ask.end, "end").on_day_of(day)
        if ask.after is None:
            wanted = [frame for frame in kept if time_of(frame) >= start_ms]
            before = kept[: len(kept) - len(wanted)]
            last = before[-1] if before else None
        else:
            # A client may have rounded the epoch.
            passed = [f for f in kept if (float(f.epoch), f.seq) <= (float(ask.epoch or 0), ask.after)]
            wanted, last = kept[len(passed) :], None
        if end_ms:
            wanted = [frame for frame in wanted if time_of(frame) < end_ms]
        chunk: list[Frame] = []
        size = 0
        for frame in wanted[: self.looks] if ask.code else wanted:
            if chunk and ask.room and size + len(frame.body) > ask.room:
                break
            chunk.append(frame)
            size += len(frame.body)
        more = len(chunk) < len(wanted)
        shown = chunk if ask.code is None else [of for frame in chunk if (of := of_code(frame, ask.code)) is not None]
        after = Position(ask.epoch or 0, ask.after) if ask.after is not None else None
        end = position(chunk[-1]) if chunk else after or (position(kept[-1]))
        return TopicHistory(
            ask.id,
            topic,
            frames=[StoredFrame(f.epoch, f.seq, f.received_ns, f.published_ns, msgspec.Raw(f.body)) for f in shown],
            times=[time_of(frame) for frame in shown],
            more=more,
            epoch=int(end.epoch),
            seq=end.seq,
            start_ms=start_ms,
            end_ms=end_ms,
            from_ms=time_of(shown[0]) if shown and ask.after is None else None,
            holes=list(self._holes(ask, topic, chunk, after, last)),
        )

    def _holes(
        self, ask: CatchUp, topic: str, chunk: list[Frame], after: Position | None, last: Frame | None
    ) -> Iterator[Hole]:
        if not chunk:
            return
        before = after if last is None else position(last)
        if before is None or (ask.after is None and last is None):
            if chunk[0].seq > 1 or self.first_epoch not in (None, chunk[0].epoch):
                yield Hole("store_began", None, position(chunk[0]), None, time_of(chunk[0]))
            before = None
        for frame in chunk:
            at = position(frame)
            if before is not None and float(before.epoch) != float(frame.epoch):
                yield Hole("restart", before, at, None, time_of(frame))
            elif before is not None and frame.seq > before.seq + 1:
                yield Hole("gap", before, at, None, time_of(frame))
            before = at


class StoreServer:
    """A `Day` behind a ROUTER, on a thread of its own, that keeps what a feeder publishes."""

    def __init__(self, day: Day, market_addr: str, address: str = "tcp://127.0.0.1:*") -> None:
        self.day = day
        # Called with each message; returns whether to keep it.
        self.keeps: Callable[[Frame], bool] = lambda frame: True
        self.asks: list[CatchUp] = []
        # Called with each question; returns whether to answer it.
        self.answers: Callable[[CatchUp], bool] = lambda ask: True
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._market = self._context.socket(zmq.SUB)
        self._market.linger = 0
        self._market.rcvhwm = 0
        self._market.connect(market_addr)
        # Prefixes are no demand.
        for prefix in ("quote/", "whole/", "l2/", "formula/"):
            self._market.subscribe(prefix)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._market, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(20))
            if self._market in ready:
                frame = Frame.from_parts(self._market.recv_multipart())
                if self.keeps(frame):
                    self.day.keep(frame)
            if self._socket in ready:
                self._serve()
        self._socket.close()
        self._market.close()
        self._context.term()

    def _serve(self) -> None:
        asker, question = self._socket.recv_multipart()
        ask = decode_ask(question)
        assert isinstance(ask, CatchUp)
        self.asks.append(ask)
        if self.answers(ask):
            for history in self.day.answer(ask):
                self._socket.send_multipart([asker, encode_history(history)])

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@contextmanager
def store_of(market_addr: str) -> Iterator[StoreServer]:
    server = StoreServer(Day(), market_addr)
    try:
        yield server
    finally:
        server.stop()
