"""Consume the feeder's ZeroMQ topics from Python, without a gateway: ``for frame in subscribe(topic): ...``.

Runs in the caller's thread and owns its sockets there. A slow caller loses market data beyond the high-water mark, is
told so, and holds up nobody else; trade events that are lost on the way come out of the feeder's journal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from urllib.parse import unquote

import zmq

from qmt_bridge import sequence as sequences
from qmt_bridge.config import default
from qmt_bridge.errors import BadRequest, WireError
from qmt_bridge.handshakes import Links, Notice
from qmt_bridge.sequence import Events, LastValues
from qmt_bridge.silence import Silence
from qmt_bridge.sockets import Curve, connect_dealer, connect_subscriber, load_curve
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.frames import Frame, read
from qmt_bridge.wire.requests import ask_reply_encoder, topic_state_decoder
from qmt_bridge.wire.topics import (
    ALL_TRADES,
    KINDS,
    PERIODS,
    STATUS_TOPIC,
    Behaviour,
    Kind,
    Topic,
    check_period,
    parse_demand,
    parse_topic,
    shown_topic,
)

logger = logging.getLogger(__name__)

# Without an answer after this time the topics go live without their last values (WIRE.md, CatchUp).
ANSWER_SECONDS = 1.0
# Messages taken from one socket before the others have their turn.
TURN = 1000
# Between two looks at how the connections stand.
LOOK_SECONDS = 0.5
# Losses with less than this between them are one episode in the log.
EPISODE_SECONDS = 10.0

OnGap = Callable[[Topic, int | None], object]
"""Takes a market topic and how many of its messages were lost; None is unknown: the feeder has started anew."""
OnNotice = Callable[[Notice], object]
"""Takes a sentence for the user: why there is no connection to the feeder and what to do (`reason` is a
`handshakes.Trouble`), that it "answers" again, that a topic or prefix is "silent", or how a topic was "corrected"."""


def subscribe(
    *topics: str,
    market_addr: str = default("market_addr"),
    trade_addr: str = default("trade_addr"),
    ask_addr: str = default("ask_addr"),
    curve_dir: str = "",
    snapshot: bool = True,
    timeout: float | None = None,
    after: int | Mapping[str, int] | None = None,
    epoch: int | None = None,
    on_gap: OnGap | None = None,
    on_notice: OnNotice | None = None,
) -> Iterator[Frame]:
    """Return the frames of `topics` as they come: whole topics, or prefixes that listen to what others asked for.

    With `snapshot` each whole topic begins with its last value, if the feeder has one (its `received_ns` and
    `published_ns` are 0: it is not news). Iteration ends after `timeout` seconds without a frame; None is never.
    A feeder that is away, or refuses the key, is waited for; `on_notice`, or without it the log, is told why there is
    no connection, and which topics and prefixes are silent. A whole topic without its last slash is taken as it is
    meant. Connects at the first ``next()``, closes its sockets when iteration ends.

    Trade events come in order, each once, none is left out, whatever is lost or restarted meanwhile. `after` is the
    position of the last one that an earlier run has seen (by topic, if there are several): every later one is replayed
    first, with times of 0. For ``trade/<account>/``, which counts that account's events, it is the frame's `seq`; for
    ``trade/``, which carries all accounts, the position in the journal, ``frame.data["seq"]``. What is replayed for
    ``trade/`` has that topic, and that position as its `seq`. With the `epoch` of that frame too, a position of another
    journal (another source, another data directory) is not taken for one of this.

    Of other topics messages can be lost, which `on_gap` is told before the frame that follows, and the log once per
    episode.

    Raise `BadRequest` or `WireError` at once for a topic that cannot be, `ConfigError` for missing keys, and
    `Refused`, naming the topic, while iterating if the feeder cannot serve one, or not the events after a position
    (code ``resume_expired``, with the `oldest` position that it could).
    """
    if not topics:
        raise WireError("no topic to subscribe")
    tell = on_notice or _log
    behaviours = {Topic(topic): _behaviour(topic) for topic in spelled(topics, tell)}
    trades = [topic for topic, behaviour in behaviours.items() if behaviour.keeps == "journal"]
    if ALL_TRADES in trades and len(trades) > 1:
        raise WireError(f"{ALL_TRADES} carries {' '.join(set(trades) - {ALL_TRADES})} already")
    values = [topic for topic in behaviours if topic not in trades and _is_whole(topic)]
    numbered = [topic for topic in trades if topic == ALL_TRADES or _is_whole(topic)]
    positions = _positions(after, numbered)
    if epoch is not None and not positions:
        raise BadRequest("bad_request", "epoch says which journal has the position `after`, which is missing")
    sequence = sequences.Sequence(
        LastValues(values, snapshot),
        {topic: Events(topic, positions.get(topic), epoch) for topic in numbered},
        any(STATUS_TOPIC.startswith(topic) for topic in behaviours),
    )
    curve = load_curve(curve_dir, "gateway")
    wanted: dict[Topic, str] = {topic: behaviour.socket for topic, behaviour in behaviours.items()}
    if trades:
        # Heartbeats tell of a restart, and of events whose loss no later one shows.
        wanted[STATUS_TOPIC] = "market"
    silence = Silence(topic for topic in behaviours if topic != STATUS_TOPIC)
    addresses = {"market": market_addr, "trade": trade_addr}
    return _frames(wanted, sequence, silence, addresses, ask_addr, curve, timeout, on_gap, tell)


def _log(notice: Notice) -> None:
    logger.log(logging.INFO if notice.good else logging.WARNING, "%s", notice.text)


def spelled(topics: Sequence[str], on_notice: OnNotice | None = None) -> Iterator[str]:
    """Yield each topic; a whole one without its last slash, which would be a prefix that asks for nothing, with it."""
    for topic in topics:
        if topic.endswith("/") or not _is_demand(f"{topic}/"):
            yield topic
            continue
        shown = shown_topic(topic)
        (on_notice or _log)(Notice(f"{shown} is taken as {shown}/: a whole topic ends with a slash", "corrected"))
        yield f"{topic}/"


def _is_demand(topic: str) -> bool:
    try:
        parse_demand(topic)
    except BadRequest:
        return False
    return _is_whole(topic)


def _positions(after: int | Mapping[str, int] | None, topics: list[Topic]) -> dict[Topic, int]:
    """Return the position of each topic that `after` names."""
    if after is None:
        return {}
    if isinstance(after, int):
        if len(topics) != 1:
            raise BadRequest("bad_request", f"after={after} is for one trade topic, not {len(topics)}; give a mapping")
        after = {topics[0]: after}
    for topic, position in after.items():
        if topic not in topics:
            raise BadRequest("bad_request", f"after names {topic[:80]!r}, which is no trade topic to subscribe")
        if position < 0:
            raise BadRequest("bad_request", f"after must not be negative, got {position}")
    return {Topic(topic): position for topic, position in after.items()}


def _behaviour(topic: str) -> Behaviour:
    head, slash, _ = topic.partition("/")
    if not slash or head not in KINDS:
        raise WireError(f"a topic begins with one of {', '.join(f'{kind}/' for kind in KINDS)}, not {topic[:80]!r}")
    parse_demand(topic)
    _check_prefix(topic)
    return KINDS[Kind(head)]


def _check_prefix(topic: str) -> None:
    """Raise `BadRequest` or `WireError` for a prefix that no topic begins with, which would be silent for ever."""
    kind, *rest = topic.split("/")
    depth = 3 if kind in (Kind.QUOTE, Kind.L2) else 2
    if len(rest) > depth or (len(rest) == depth and rest[-1]) or not all(rest[:-1]):
        raise WireError(f"no topic begins with {topic[:80]!r}")
    if depth == 3 and len(rest) > 1:
        check_code(unquote(rest[0]))
        if kind == Kind.QUOTE and not any(f"{period}/".startswith(rest[1]) for period in PERIODS):
            check_period(rest[1])


def _frames(
    wanted: Mapping[Topic, str],
    sequence: sequences.Sequence,
    silence: Silence,
    addresses: dict[str, str],
    ask_addr: str,
    curve: Curve | None,
    timeout: float | None,
    on_gap: OnGap | None,
    on_notice: OnNotice,
) -> Iterator[Frame]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    opened: list[zmq.Socket[bytes]] = []
    links = Links()
    try:
        # Subscribe first, ask second: what is published in between arrives twice, not never.
        subscribers: dict[str, zmq.Socket[bytes]] = {}
        for topic, name in wanted.items():
            if name not in subscribers:
                subscribers[name] = connect_subscriber(context, addresses[name], curve, links, f"{name}_addr")
                opened.append(subscribers[name])
            subscribers[name].subscribe(topic.encode("ascii"))
        ask = connect_dealer(context, ask_addr, curve, links)
        opened.append(ask)
        poller = zmq.Poller()
        for subscriber in subscribers.values():
            poller.register(subscriber, zmq.POLLIN)
        started = heard = time.monotonic()
        look_at = started
        lost_at = strange_at = -EPISODE_SECONDS
        while True:
            now = time.monotonic()
            poller.register(ask, zmq.POLLIN | zmq.POLLOUT if sequence.asks(now) else zmq.POLLIN)
            until = [heard + timeout] if timeout is not None else []
            if sequence.values.held:
                until.append(started + ANSWER_SECONDS)
            # Such a step leaves Ctrl-C a chance on Windows, where poll cannot be interrupted.
            ready = dict(poller.poll(int(max(0.0, min([now + LOOK_SECONDS, *until]) - now) * 1000) + 1))
            now = time.monotonic()
            if now >= look_at:
                look_at = now + LOOK_SECONDS
                for notice in links.look(now):
                    on_notice(notice)
                if links.all_up() and (remark := silence.remark(now)):
                    on_notice(Notice(remark, "silent"))
            if ready.get(ask, 0) & zmq.POLLOUT:
                # A feeder that goes at this moment leaves the rest to be asked when there is one again.
                with suppress(zmq.Again):
                    for question in sequence.questions(now):
                        ask.send(ask_reply_encoder.encode(question), zmq.NOBLOCK)
            frames = []
            strange: WireError | None = None
            for message in _received(ask):
                try:
                    state = read(topic_state_decoder, message[-1])
                except WireError as exc:
                    strange = exc
                else:
                    frames += sequence.answered(state, now)
            for subscriber in subscribers.values():
                for message in _received(subscriber):
                    try:
                        frames += sequence.arrived(Frame.from_parts(message))
                    except WireError as exc:
                        strange = exc
            if strange is not None:
                # Something else publishes at this address; it must not end whoever waits for the feeder.
                if now >= strange_at + EPISODE_SECONDS:
                    logger.warning("what came from the feeder's address is left out: %s", strange)
                strange_at = now
            if sequence.values.held and now >= started + ANSWER_SECONDS:
                frames += sequence.values.give_up()
            for topic, missed in sequence.values.take_gaps():
                if now >= lost_at + EPISODE_SECONDS:
                    logger.warning("%s: %s messages were lost", topic, "some" if missed is None else missed)
                lost_at = now
                if on_gap is not None:
                    on_gap(topic, missed)
            if frames:
                silence.note(frames)
                yield from frames
                # The time that the caller took is not silence.
                heard = time.monotonic()
            elif timeout is not None and now >= heard + timeout:
                return
    finally:
        # Not Context.destroy, which knows its sockets by weak references: the collector may have cleared them before it
        # ends a forgotten iterator, and would then wait for them for ever.
        links.close()
        for socket in opened:
            socket.close(linger=0)
        context.term()


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
