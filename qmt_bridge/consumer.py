"""Consume the feeder's ZeroMQ topics from Python, without a gateway: ``for frame in subscribe(topic): ...``.

Runs in the caller's thread and owns its sockets there. A slow caller loses messages beyond the high-water mark
(`Frame.seq` shows it) and holds up nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import zmq

from qmt_bridge.config import default
from qmt_bridge.errors import Refused, WireError
from qmt_bridge.sockets import Curve, connect_dealer, connect_subscriber, load_curve
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import CatchUp, TopicState, reply_encoder, topic_state_decoder
from qmt_bridge.wire.topics import KINDS, Behaviour, Kind, Topic, parse_demand, parse_topic

# Without an answer after this time the topics go live without their last values (WIRE.md, CatchUp).
ANSWER_SECONDS = 1.0
# Messages taken from one socket before the others have their turn.
TURN = 1000


def subscribe(
    *topics: str,
    market_addr: str = default("market_addr"),
    trade_addr: str = default("trade_addr"),
    ask_addr: str = default("ask_addr"),
    curve_dir: str = "",
    snapshot: bool = True,
    timeout: float | None = None,
) -> Iterator[Frame]:
    """Return the frames of `topics` as they come: whole topics, or prefixes that listen to what others asked for.

    With `snapshot` each whole topic begins with its last value, if the feeder has one (its `received_ns` and
    `published_ns` are 0: it is not news). Iteration ends after `timeout` seconds without a frame; None is never.
    A feeder that is away is waited for. Connects at the first ``next()``, closes its sockets when iteration ends.

    Raise `BadRequest` or `WireError` at once for a topic that cannot be, `ConfigError` for missing keys, and
    `Refused`, naming the topic, while iterating if the feeder cannot serve one.
    """
    if not topics:
        raise WireError("no topic to subscribe")
    behaviours = {Topic(topic): _behaviour(topic) for topic in topics}
    curve = load_curve(curve_dir, "gateway")
    return _frames(behaviours, {"market": market_addr, "trade": trade_addr}, ask_addr, curve, snapshot, timeout)


def _behaviour(topic: str) -> Behaviour:
    head, slash, _ = topic.partition("/")
    if not slash or head not in KINDS:
        raise WireError(f"a topic begins with one of {', '.join(f'{kind}/' for kind in KINDS)}, not {topic[:80]!r}")
    parse_demand(topic)
    return KINDS[Kind(head)]


def _frames(
    behaviours: dict[Topic, Behaviour],
    addresses: dict[str, str],
    ask_addr: str,
    curve: Curve | None,
    snapshot: bool,
    timeout: float | None,
) -> Iterator[Frame]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        # Subscribe first, ask second: what is published in between arrives twice, not never.
        subscribers: dict[str, zmq.Socket[bytes]] = {}
        for topic, behaviour in behaviours.items():
            name = behaviour.socket
            if name not in subscribers:
                subscribers[name] = connect_subscriber(context, addresses[name], curve)
            subscribers[name].subscribe(topic.encode("ascii"))
        joining = _Joining(
            [topic for topic, behaviour in behaviours.items() if behaviour.keeps != "journal" and _is_whole(topic)],
            snapshot,
        )
        ask = connect_dealer(context, ask_addr, curve)
        poller = zmq.Poller()
        for subscriber in subscribers.values():
            poller.register(subscriber, zmq.POLLIN)
        question = 0
        started = heard = time.monotonic()
        while True:
            poller.register(ask, zmq.POLLIN | zmq.POLLOUT if joining.unasked else zmq.POLLIN)
            now = time.monotonic()
            until = [heard + timeout] if timeout is not None else []
            if joining.held:
                until.append(started + ANSWER_SECONDS)
            # A step of a second leaves Ctrl-C a chance on Windows, where poll cannot be interrupted.
            events = dict(poller.poll(int(max(0.0, min([now + 1.0, *until]) - now) * 1000) + 1))
            if joining.unasked and events.get(ask, 0) & zmq.POLLOUT:
                question += 1
                ask.send(reply_encoder.encode(CatchUp(question, sorted(joining.unasked))), zmq.NOBLOCK)
                joining.unasked.clear()
            frames = []
            for message in _received(ask):
                frames += joining.answered(topic_state_decoder.decode(message[-1]))
            for subscriber in subscribers.values():
                for message in _received(subscriber):
                    frames += joining.arrived(Frame.from_parts(message))
            now = time.monotonic()
            if joining.held and now >= started + ANSWER_SECONDS:
                frames += joining.give_up()
            if frames:
                yield from frames
                # The time that the caller took is not silence.
                heard = time.monotonic()
            elif timeout is not None and now >= heard + timeout:
                return
    finally:
        context.destroy(linger=0)


def _is_whole(topic: str) -> bool:
    try:
        parse_topic(topic)
    except WireError:
        return False
    return True


def _received(socket: zmq.Socket[bytes]) -> Iterator[list[bytes]]:
    for _ in range(TURN):
        try:
            yield socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return


class _Joining:
    """Puts last values before the news: holds what arrives until the question about its topic is answered."""

    def __init__(self, topics: list[Topic], snapshot: bool) -> None:
        self.unasked: set[Topic] = set(topics)
        self.held: dict[Topic, list[Frame]] = {topic: [] for topic in topics} if snapshot else {}
        self._snapshot = snapshot
        # Epoch and seq that a topic has reached.
        self._reached: dict[Topic, tuple[int, int]] = {}

    def arrived(self, frame: Frame) -> list[Frame]:
        """Return the frame if it is next, nothing if it is held or old."""
        held = self.held.get(frame.topic)
        if held is not None:
            held.append(frame)
            return []
        epoch, seq = self._reached.get(frame.topic, (0, 0))
        if frame.epoch == epoch and frame.seq <= seq:
            return []
        self._reached[frame.topic] = frame.epoch, frame.seq
        return [frame]

    def answered(self, state: TopicState) -> list[Frame]:
        """Return the last value and what was held, or raise `Refused`."""
        topic = Topic(state.topic)
        if state.state == "refused":
            raise Refused(state.code or "internal", f"{topic}: {state.error}")
        if state.state == "pending":
            # The source has yet to decide; the feeder answers when it has, or says pending again.
            self.unasked.add(topic)
            return self._release(topic)
        frames = []
        epoch, seq = self._reached.get(topic, (0, 0))
        news = state.epoch != epoch or state.seq > seq
        if state.body is not None and self._snapshot and news:
            frames.append(Frame(topic, state.epoch, state.seq, 0, 0, state.body))
            if not state.more:
                self._reached[topic] = state.epoch, state.seq
        return frames if state.more else frames + self._release(topic)

    def give_up(self) -> list[Frame]:
        """Return everything held: no answer came in time."""
        return [frame for topic in list(self.held) for frame in self._release(topic)]

    def _release(self, topic: Topic) -> list[Frame]:
        return [frame for waiting in self.held.pop(topic, []) for frame in self.arrived(waiting)]
