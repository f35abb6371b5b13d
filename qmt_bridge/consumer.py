"""Consume the feeder's ZeroMQ topics from Python, without a gateway: ``for frame in subscribe(topic): ...``.

Runs in the caller's thread and owns its sockets there. A slow caller loses market data beyond the high-water mark and
is told so; it does not slow down other programs. Lost trade events are read from the feeder's journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from urllib.parse import unquote

import zmq

from qmt_bridge import sequence as sequences
from qmt_bridge.addresses.endpoint import Endpoint, market_endpoints, store_endpoint, trade_endpoints
from qmt_bridge.config import Config, default
from qmt_bridge.errors import BadRequest, WireError, WireVersionError
from qmt_bridge.handshakes import Links, Notice, Trouble
from qmt_bridge.reading.stored_topic import StoredTopic
from qmt_bridge.sequence import Events, LastValues
from qmt_bridge.silence import Silence
from qmt_bridge.sockets import connect_dealer, connect_subscriber
from qmt_bridge.system import clock
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import decode_history
from qmt_bridge.wire.moments import read_moment
from qmt_bridge.wire.playback import Playback, check_speed
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import TopicState, decode_reply, encode_ask
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

# Seconds to wait for the answer to "catch_up" (docs/wire.md); after that the topics go live without last values.
ANSWER_SECONDS = 1.0
# Seconds between two looks whether the store is to be asked again.
STORE_SECONDS = 0.1
# Messages taken from one socket before the next one is read.
TURN = 1000
# Seconds between two checks of the connections.
LOOK_SECONDS = 0.5
# Losses with less than this many seconds between them are one episode in the log.
EPISODE_SECONDS = 10.0

After = int | Mapping[str, int] | None
"""The position of the last trade event that an earlier run has received; by topic, if there are several.

For ``trade/<account>/``, which counts that account's events, the position is the frame's `seq`; for ``trade/``, which
carries all accounts, it is the position in the journal, ``frame.data["seq"]``. Every later event is replayed first,
with times of 0; events that are replayed for ``trade/`` have that topic, and that position as their `seq`. With the
`epoch` of the same frame, the position is refused by any other journal (another source, another data directory)."""
OnGap = Callable[[Topic, int | None], object]
"""Takes a market topic and how many of its messages were lost; None is unknown: the feeder has restarted. Takes a trade
topic whose journal does not reach back to `start`."""
OnNotice = Callable[[Notice], object]
"""Takes a sentence for the user: why there is no connection to the feeder and what to do (`reason` is a
`handshakes.Trouble`), that it "answers" again, that a topic or prefix is "silent", or how a topic was "corrected".
Without such a function the log gets these sentences."""


def subscribe(
    *topics: str,
    market_addr: str = default("market_addr"),
    trade_addr: str = "",
    ask_addr: str = default("ask_addr"),
    trade_ask_addr: str = "",
    store_addr: str = default("store_addr"),
    open_trade_addr: bool = False,
    curve_dir: str = "",
    data_dir: str = "",
    snapshot: bool = True,
    timeout: float | None = None,
    after: After = None,
    epoch: int | None = None,
    start: int | str | None = None,
    speed: float = 0,
    on_gap: OnGap | None = None,
    on_notice: OnNotice | None = None,
) -> Iterator[Frame]:
    """Return the frames of `topics` as they arrive: whole topics, or prefixes of topics that other programs asked for.

    With `snapshot` each whole topic begins with its last value, if the feeder has one (its `received_ns` and
    `published_ns` are 0: it is not news). Iteration ends after `timeout` seconds without a frame, with None never.
    While there is no connection to the feeder, or the feeder refuses the key, iteration waits, and `on_notice` is
    called. A whole topic without its last slash is completed. The sockets are opened at the first ``next()`` and
    closed when iteration ends.

    Trade events arrive in order, each once and without a gap, also after losses and restarts. With `after` and `epoch`
    (see `After`) all later events are replayed first. Messages of other topics can be lost; `on_gap` is called before
    the next frame, and the log has one line an episode.

    With `start` (a time of day such as ``09:30:00``, an ISO time, or milliseconds since 1970) each whole topic of
    market data begins with what the store has from then on, and goes on with what is published; trade topics begin
    with what the journal has. `on_gap` is called for what they do not have. With `speed` (0.01 to 1000) the stored
    messages of all topics of market data come at so many times the pace of their own times, in the order of these;
    what a slow caller makes late is not hurried after. A topic reaches what is published now if `speed` is more than 1,
    and goes on with it; else it stays as far behind as it is.

    Raise `BadRequest` or `WireError` at once for an impossible topic, and `ConfigError` for missing keys. Raise
    `Refused` while iterating, with the topic, if the feeder cannot serve it, or cannot replay what follows a position
    (code ``resume_expired``, with the `oldest` position that it accepts).
    """
    if not topics:
        raise WireError("no topic to subscribe")
    tell = on_notice or _log
    behaviours = {Topic(topic): _behaviour(topic) for topic in spelled(topics, tell)}
    sequence = _sequence(behaviours, snapshot, after, epoch, start, speed)
    config = Config(
        market_addr=market_addr,
        trade_addr=trade_addr,
        ask_addr=ask_addr,
        trade_ask_addr=trade_ask_addr,
        store_addr=store_addr,
        open_trade_addr=open_trade_addr,
        curve_dir=curve_dir,
        data_dir=data_dir,
    )
    endpoints = _endpoints(config, behaviours)
    if start is not None and sequence.reads_store:
        endpoints["store"] = (endpoints["market"][0], store_endpoint(config, "gateway"))
    link = _Link(_wanted(behaviours), endpoints, tell)
    silence = Silence(topic for topic in behaviours if topic != STATUS_TOPIC)
    return _frames(link, sequence, silence, timeout, _Losses(on_gap))


def _endpoints(config: Config, behaviours: Mapping[Topic, Behaviour]) -> dict[str, tuple[Endpoint, Endpoint]]:
    """Return the sockets for messages and for questions, of market data and, if they are wanted, of trade events."""
    found = {"market": market_endpoints(config, "gateway")}
    if _trades(behaviours):
        found["trade"] = trade_endpoints(config, "gateway", makes=False)
    return found


def _trades(behaviours: Mapping[Topic, Behaviour]) -> list[Topic]:
    return [topic for topic, behaviour in behaviours.items() if behaviour.keeps == "journal"]


def _sequence(
    behaviours: Mapping[Topic, Behaviour],
    snapshot: bool,
    after: After,
    epoch: int | None,
    start: int | str | None,
    speed: float,
) -> sequences.Sequence:
    """Return the order of the frames; raise `WireError` or `BadRequest` for topics and positions that do not fit."""
    trades = _trades(behaviours)
    if ALL_TRADES in trades and len(trades) > 1:
        raise WireError(f"{ALL_TRADES} carries {' '.join(set(trades) - {ALL_TRADES})} already")
    values = [topic for topic in behaviours if topic not in trades and _is_whole(topic)]
    numbered = [topic for topic in trades if topic == ALL_TRADES or _is_whole(topic)]
    positions = _positions(after, epoch, numbered)
    if epoch is not None and not positions:
        raise BadRequest("bad_request", "epoch says which journal has the position `after`, which is missing")
    stored: list[StoredTopic] = []
    playback = Playback(speed) if check_speed(speed) else None
    if start is None and playback is not None:
        raise BadRequest("bad_request", "speed is that of the day so far, which needs a start")
    if start is not None:
        read_moment(start, "start")
        if positions:
            raise BadRequest("bad_request", "start and after both say where to begin; choose one")
        stored = [StoredTopic(topic, start, playback) for topic in values if topic != STATUS_TOPIC]
        positions = {topic: JournalPosition(0, start=start) for topic in numbered}
        if not stored and not positions:
            raise BadRequest("bad_request", "start is for whole topics, and there is none")
        if playback is not None and not stored:
            raise BadRequest("bad_request", "speed is for whole topics of market data, and there is none")
    begun = {of.topic for of in stored}
    return sequences.Sequence(
        LastValues(values, [topic for topic in values if topic not in begun] if snapshot else ()),
        {topic: Events(topic, positions.get(topic)) for topic in numbered},
        any(STATUS_TOPIC.startswith(topic) for topic in behaviours),
        stored,
    )


def _wanted(behaviours: Mapping[Topic, Behaviour]) -> dict[Topic, str]:
    """Return the topics to subscribe, each with the name of its socket."""
    wanted: dict[Topic, str] = {topic: behaviour.socket for topic, behaviour in behaviours.items()}
    if _trades(behaviours):
        # Heartbeats show a restart, and the loss of an event that no later event follows.
        wanted[STATUS_TOPIC] = "market"
    return wanted


def _log(notice: Notice) -> None:
    logger.log(logging.INFO if notice.good else logging.WARNING, "%s", notice.text)


def spelled(topics: Sequence[str], on_notice: OnNotice | None = None) -> Iterator[str]:
    """Yield each topic; add the last slash to a whole topic without it: as a prefix it would ask for nothing."""
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


def _positions(after: After, epoch: int | None, topics: list[Topic]) -> dict[Topic, JournalPosition]:
    """Return the position of each topic that `after` names."""
    if after is None:
        return {}
    if isinstance(after, int):
        if len(topics) != 1:
            raise BadRequest("bad_request", f"after={after} is for one trade topic, not {len(topics)}; give a mapping")
        after = {topics[0]: after}
    for topic, seq in after.items():
        if topic not in topics:
            raise BadRequest("bad_request", f"after names {topic[:80]!r}, which is no trade topic to subscribe")
        if seq < 0:
            raise BadRequest("bad_request", f"after must not be negative, got {seq}")
    return {Topic(topic): JournalPosition(seq, epoch) for topic, seq in after.items()}


def _behaviour(topic: str) -> Behaviour:
    head, slash, _ = topic.partition("/")
    if not slash or head not in KINDS:
        raise WireError(f"a topic begins with one of {', '.join(f'{kind}/' for kind in KINDS)}, not {topic[:80]!r}")
    parse_demand(topic)
    _check_prefix(topic)
    return KINDS[Kind(head)]


def _check_prefix(topic: str) -> None:
    """Raise `BadRequest` or `WireError` for a prefix that no topic begins with: no frame would ever arrive."""
    kind, *rest = topic.split("/")
    depth = 3 if kind in (Kind.QUOTE, Kind.L2) else 2
    if len(rest) > depth or (len(rest) == depth and rest[-1]) or not all(rest[:-1]):
        raise WireError(f"no topic begins with {topic[:80]!r}")
    if depth == 3 and len(rest) > 1:
        check_code(unquote(rest[0]))
        if kind == Kind.QUOTE and not any(f"{period}/".startswith(rest[1]) for period in PERIODS):
            check_period(rest[1])


def _frames(
    link: _Link, sequence: sequences.Sequence, silence: Silence, timeout: float | None, losses: _Losses
) -> Iterator[Frame]:
    try:
        link.connect()
        started = heard = clock.monotonic()
        while True:
            until = [heard + timeout] if timeout is not None else []
            if sequence.values.held:
                until.append(started + ANSWER_SECONDS)
            if (due := sequence.next_due(clock.monotonic())) is not None:
                until.append(due)
            now = link.wait(until, sequence, silence)
            frames = link.take(sequence, now)
            if sequence.values.held and now >= started + ANSWER_SECONDS:
                frames += sequence.values.give_up()
            if sequence.values.has_late and not link.has_more():
                frames += sequence.values.take_overdue(now)
            frames += sequence.play(now) + sequence.give_up(now)
            losses.tell(sequence.values.take_gaps(), now)
            if frames:
                silence.note(frames)
                yield from frames
                # The timeout counts from here, without the time that the caller spent on the frames.
                heard = clock.monotonic()
            elif timeout is not None and now >= heard + timeout:
                return
    finally:
        link.close()


class _Losses:
    """Report losses: call `on_gap` each time, and log once per episode."""

    def __init__(self, on_gap: OnGap | None) -> None:
        self._on_gap = on_gap
        self._lost_at = -EPISODE_SECONDS

    def tell(self, gaps: Iterable[tuple[Topic, int | None]], now: float) -> None:
        """Report the gaps since the last call."""
        for topic, missed in gaps:
            if now >= self._lost_at + EPISODE_SECONDS:
                logger.warning("%s: %s messages were lost", topic, "some" if missed is None else missed)
            self._lost_at = now
            if self._on_gap is not None:
                self._on_gap(topic, missed)


class _Link:
    """The sockets of one consumer: for market data and for trade events each a SUB, and a DEALER for questions."""

    def __init__(
        self,
        wanted: Mapping[Topic, str],
        endpoints: Mapping[str, tuple[Endpoint, Endpoint]],
        on_notice: OnNotice,
    ) -> None:
        self._wanted = wanted
        self._endpoints = endpoints
        self._on_notice = on_notice
        self._opened: list[zmq.Socket[bytes]] = []
        self._links = Links()
        self._look_at = 0.0
        self._strange_at = -EPISODE_SECONDS
        # Made by `connect`, for two reasons. An iterator that is never started is never closed. And the garbage
        # collector finalizes the older of two unreachable objects first: a context that is older than the iterator
        # would wait for the sockets.
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        # By what they are for: "market" or "trade"; both may be asked by one socket.
        self._subscribers: dict[str, zmq.Socket[bytes]] = {}
        self._dealers: dict[str, zmq.Socket[bytes]] = {}

    def connect(self) -> None:
        """Subscribe first, ask second: a message published between the two then arrives twice, and is not lost."""
        self._context = zmq.Context()
        for topic, kind in self._wanted.items():
            if kind not in self._subscribers:
                where = self._endpoints[kind][0]
                opened = connect_subscriber(self._context, where.address, where.curve, self._links, where.name)
                self._subscribers[kind] = opened
                self._opened.append(opened)
            self._subscribers[kind].subscribe(topic.encode("ascii"))
        by_name: dict[str, zmq.Socket[bytes]] = {}
        for kind, (_, where) in self._endpoints.items():
            if where.name not in by_name:
                dealer = connect_dealer(self._context, where.address, where.curve, self._links, where.name)
                by_name[where.name] = dealer
                self._opened.append(dealer)
            self._dealers[kind] = by_name[where.name]
        self._poller = zmq.Poller()
        for subscriber in self._subscribers.values():
            self._poller.register(subscriber, zmq.POLLIN)
        self._look_at = clock.monotonic()

    def wait(self, until: Iterable[float], sequence: sequences.Sequence, silence: Silence) -> float:
        """Wait for a message, at most until the earliest of `until`, and send questions; return the time after that."""
        now = clock.monotonic()
        asking = dict.fromkeys(self._dealers.values(), False)
        for kind, dealer in self._dealers.items():
            asking[dealer] |= sequence.asks(kind, now)
        if "store" in self._dealers:
            # What the store does not have yet is asked for soon again.
            until = [*until, now + STORE_SECONDS]
        for dealer, asks in asking.items():
            self._poller.register(dealer, zmq.POLLIN | zmq.POLLOUT if asks else zmq.POLLIN)
        # Windows cannot interrupt poll; after at most LOOK_SECONDS Ctrl-C ends the program.
        ready = dict(self._poller.poll(int(max(0.0, min([now + LOOK_SECONDS, *until]) - now) * 1000) + 1))
        now = clock.monotonic()
        self._look_at_links(silence, now)
        for kind, dealer in self._dealers.items():
            if ready.get(dealer, 0) & zmq.POLLOUT:
                # If the feeder ends at this moment, the other questions are sent when a feeder answers again.
                with suppress(zmq.Again):
                    for question in sequence.questions(kind, now):
                        dealer.send(encode_ask(question), zmq.NOBLOCK)
        return now

    def take(self, sequence: sequences.Sequence, now: float) -> list[Frame]:
        """Return the frames that can be handed out after the messages that have arrived."""
        frames: list[Frame] = []
        strange: WireError | None = None
        for dealer in dict.fromkeys(self._dealers.values()):
            for message in _received(dealer):
                try:
                    if dealer is self._dealers.get("store"):
                        frames += sequence.read(decode_history(message[-1]), now)
                        continue
                    reply = decode_reply(message[-1])
                    if isinstance(reply, TopicState):
                        self._check_socket(reply.topic, dealer, self._dealers)
                        frames += sequence.answered(reply, now)
                except WireError as exc:
                    strange = exc
        for subscriber in self._subscribers.values():
            for message in _received(subscriber):
                try:
                    frame = Frame.from_parts(message)
                    self._check_socket(frame.topic, subscriber, self._subscribers)
                    frames += sequence.arrived(frame)
                except WireError as exc:
                    strange = exc
        if strange is not None:
            # Another program publishes at this address: ignore its message and wait for the feeder.
            if now >= self._strange_at + EPISODE_SECONDS:
                self._tell_strange(strange)
            self._strange_at = now
        return frames

    def has_more(self) -> bool:
        """Return whether messages wait that `take` has left."""
        return any(subscriber.poll(0) for subscriber in self._subscribers.values())

    def _check_socket(self, topic: str, socket: zmq.Socket[bytes], sockets: Mapping[str, zmq.Socket[bytes]]) -> None:
        """Raise `WireError` for what claims to be of trade events: who listens for market data may be anybody."""
        kind = "trade" if topic.startswith(ALL_TRADES) else "market"
        if sockets.get(kind) is not socket:
            raise WireError(f"{shown_topic(topic)} does not belong on this socket")

    def _tell_strange(self, strange: WireError) -> None:
        if isinstance(strange, WireVersionError):
            self._on_notice(Notice(str(strange), Trouble.WIRE_VERSION))
        else:
            logger.warning("what came from the feeder's address is left out: %s", strange)

    def close(self) -> None:
        """Close the sockets.

        Context.destroy finds its sockets by weak references. When the garbage collector ends an iterator that was not
        closed, it may have cleared them before, and destroy would wait for the sockets for ever.
        """
        self._links.close()
        for socket in self._opened:
            socket.close(linger=0)
        if self._context is not None:
            self._context.term()

    def _look_at_links(self, silence: Silence, now: float) -> None:
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        for notice in self._links.look(now):
            self._on_notice(notice)
        if self._links.all_up() and (remark := silence.remark(now)):
            self._on_notice(Notice(remark, "silent"))


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
