"""A look at one topic for some seconds: when each of its messages was where, at this worker. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median

import msgspec

from gateway.admin.clients import ClientId
from gateway.hub import Hub
from gateway.session import Session
from gateway.streams.member import Outcome, Refusal
from gateway.streams.stream import Stream
from gateway.subscription import Subscription
from qmt_bridge.errors import WireError
from qmt_bridge.observation.delays import exchange_delay
from qmt_bridge.system import clock
from qmt_bridge.wire.codes import is_code
from qmt_bridge.wire.frames import Frame, LastValue
from qmt_bridge.wire.topics import Kind, Topic, parse_topic

# A look ends after so many messages and seconds.
MESSAGES = 20
LEAST = 0.5
# Seconds between two pings that ask how far a client is behind, and how many clients are asked.
LOOK_EVERY = 0.02
PROBED = 20
# Workers answer in order of these: what is most likely meant by a code.
_PREFERRED = (Kind.QUOTE, Kind.L2, Kind.WHOLE, Kind.FORMULA)


class WhyTerms(msgspec.Struct, frozen=True):
    """What is looked at: a code, a market or a topic, at one client or at any, and for how many seconds."""

    name: str
    client: int | None
    seconds: float


class Passed(msgspec.Struct, frozen=True):
    """What was seen of one hop: the median and the worst delay in seconds of `count` messages."""

    median: float
    worst: float
    count: int


class WhyPart(msgspec.Struct, frozen=True):
    """What one worker has seen of a topic; `topic` is empty if no client of it has the code."""

    topic: str
    clients: int
    # Messages that came, and those that are missing between them.
    messages: int
    missed: int
    # By hop, `socket_to_client` included: the client's that was named, or the one that is most behind.
    hops: dict[str, Passed]
    # The client to which `socket_to_client`, `waiting` (bytes) and `skipped` belong; None: no client has it.
    client: str | None
    waiting: int
    skipped: int


_NOTHING = WhyPart("", 0, 0, 0, {}, None, 0, 0)


class _Watch:
    """A member of the stream that only looks (streams.member.Member)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.messages = 0
        self.missed_messages = 0
        self.delays: dict[str, list[float]] = {}

    def deliver(self, frame: Frame) -> None:
        """Take down where a message was when; the sockets are written after this turn of the feed."""
        if isinstance(frame, LastValue) or not frame.published_ns:
            return
        now_ns, now = clock.time_ns(), clock.monotonic()
        self.messages += 1
        exchange = exchange_delay(frame.body, frame.received_ns)
        if exchange is not None:
            self._add("exchange_to_callback", exchange)
        self._add("callback_to_publish", (frame.published_ns - frame.received_ns) / 1e9)
        self._add("publish_to_worker", (now_ns - frame.published_ns) / 1e9)
        self._loop.call_soon(self._written, now)

    def _written(self, taken_at: float) -> None:
        self._add("worker_to_socket", clock.monotonic() - taken_at)

    @property
    def full(self) -> bool:
        """Return whether enough messages came."""
        return self.messages >= MESSAGES

    def _add(self, hop: str, seconds: float) -> None:
        self.delays.setdefault(hop, []).append(max(0.0, seconds))

    def starts(self, epoch: int, seq: int) -> bool:
        """Return False: the last value is no news."""
        return False

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Ignore it: the feeder is asked apart from this."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` in the next turn of the loop: nothing is sent."""
        self._loop.call_soon(lambda: act(clock.monotonic()))

    def missed(self, count: int) -> None:
        """Count messages that were lost on the way from the feeder."""
        self.missed_messages += count

    def snapshot_ended(self, count: int) -> None:
        """Ignore it."""


async def look(hub: Hub, sessions: Iterable[Session], terms: WhyTerms, worker: str) -> WhyPart:
    """Return what this worker sees of a topic until enough messages came or the time is over."""
    chosen = [session for session in sessions if terms.client in (None, session.number)]
    if terms.client is not None and not chosen:
        return _NOTHING
    topic = _topic(terms, hub.streams, chosen)
    if topic is None:
        return _NOTHING
    holders = [session for session in chosen if any(of.upstream == topic for of in session.subscriptions)]
    skipped = {session: session.sender.skipped for session in holders}
    watch = _Watch(asyncio.get_running_loop())
    hub.join({topic: watch}, clock.monotonic())
    probes = [_Probe(session) for session in sorted(holders, key=lambda of: of.sender.lag, reverse=True)[:PROBED]]
    began = clock.monotonic()
    try:
        while (now := clock.monotonic()) < began + terms.seconds and not (watch.full and now >= began + LEAST):
            for probe in probes:
                probe.ask()
            await asyncio.sleep(LOOK_EVERY)
    finally:
        hub.leave(topic, watch)
    hops = {hop: _passed(delays) for hop, delays in watch.delays.items()}
    slowest = max(probes, key=lambda probe: median(probe.delays()), default=None)
    if slowest is None:
        return WhyPart(topic, 0, watch.messages, watch.missed_messages, hops, None, 0, 0)
    hops["socket_to_client"] = _passed(slowest.delays())
    client = slowest.session
    return WhyPart(
        topic,
        len(holders),
        watch.messages,
        watch.missed_messages,
        hops,
        str(ClientId(worker, client.number)),
        client.sender.outbox.size,
        client.sender.skipped - skipped[client],
    )


class _Probe:
    """How soon one client answers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._trips: list[float] = []
        self._newest = session.sender.probe()

    def ask(self) -> None:
        """Take the newest answer, and ask for the next one."""
        newest = self.session.sender.probe()
        if newest is not None and newest != self._newest:
            self._newest = newest
            self._trips.append(newest[1])

    def delays(self) -> list[float]:
        """Return the seconds that the answers took; without an answer those that it is waited for."""
        return self._trips or [self.session.sender.lag]


def _passed(delays: list[float]) -> Passed:
    return Passed(round(median(delays), 6), round(max(delays), 6), len(delays))


def _topic(terms: WhyTerms, streams: Mapping[Topic, Stream], chosen: Iterable[Session]) -> Topic | None:
    """Return the topic that is meant by a name: itself, or the best of those that are subscribed."""
    held: Mapping[Topic, object] = streams
    if terms.client is not None:
        held = {of.upstream: None for session in chosen for of in session.subscriptions if isinstance(of, Subscription)}
    if terms.name.endswith("/"):
        return Topic(terms.name) if terms.name in held and terms.name in streams else None
    return min(((rank, topic) for topic, rank in _ranked(terms.name, held) if topic in streams), default=(0, None))[1]


def _ranked(name: str, topics: Iterable[Topic]) -> Iterator[tuple[Topic, int]]:
    market = name.rpartition(".")[2] if is_code(name) else ""
    for topic in topics:
        try:
            kind, of, detail = parse_topic(topic)
        except WireError:
            # All trade events together.
            continue
        if of == name and kind in _PREFERRED:
            yield topic, 10 * _PREFERRED.index(kind) + (detail != "tick")
        elif kind is Kind.WHOLE and of == market:
            yield topic, 100
