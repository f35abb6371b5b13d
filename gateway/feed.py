"""The worker's link to the feeder: a SUB for market data and a DEALER for questions about it, and two for trade events.

The link to the store of the day (`links/store.py`) has its turns here too.

Runs on the event loop, which owns the sockets: their file descriptors are watched (`loop/readiness.py`), and the hub is
given the messages. zmq.asyncio would take four to five times as long for a message.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import zmq

from gateway.hub import Hub
from gateway.links.store import StoreLink
from gateway.loop import readiness
from gateway.passage import Passage
from gateway.streams.member import Outcome, Refusal, StoreQuestion
from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.errors import WireError, WireVersionError
from qmt_bridge.handshakes import Links, Trouble
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import STAMP_BYTES, Frame
from qmt_bridge.wire.messages import FeedStatus, event_position, read_status
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import (
    Ask,
    CatchUp,
    DownloadStarted,
    StartDownload,
    Surveyed,
    TopicState,
    decode_reply,
    encode_ask,
    parts_of,
)
from qmt_bridge.wire.survey import Attend, Finding, Survey
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Topic, behaviour_of

logger = logging.getLogger(__name__)

# Messages taken from one socket in one turn of the event loop. The writes to the clients are most of the cost, and one
# write carries all messages of a turn. Therefore turns grow to the larger size (some 40 ms) while messages queue up.
DRAIN = 512
LONGEST_DRAIN = 4096
# Seconds after which a turn ends whatever waits, so that the worker takes its clients' pongs and requests; and messages
# between two looks at the clock. A turn of 4,096 messages to a hundred slow clients would take half a second.
LONGEST_TURN = 0.04
LOOK_EVERY = 32
# Seconds until the next turn if clients that answer soon have reached their windows: their pongs come meanwhile.
# Without this pause a burst would go through the outboxes of all clients, which costs ten times as much.
PAUSE = 0.002
LONGEST_PAUSE = 0.01
# Seconds of a turn in which answers of the store are taken, at least one: each has up to a chunk of some hundred KiB,
# and live data waits meanwhile.
STORE_SECONDS = 0.001
# Heartbeats come once a second; after three missed ones the feeder counts as absent.
ABSENT_AFTER = 3.0
TICK = 0.25
# The most that the time between two looks adds to the silence of the feeder: a worker that was held (SIGSTOP, a machine
# that stands still) has not listened, and the feeder of the same machine may have been held too.
LOOK_MOST = 1.0
# Seconds after which the worker joins the trade events again if it was refused.
AGAIN = 1.0
DOWNLOAD_ANSWER_TIMEOUT = 3.0
# As an int, because recv takes twice as long with an enum member.
_NOBLOCK = int(zmq.NOBLOCK)


# Takes one message; given the socket and clock.monotonic().
Take = Callable[[zmq.Socket[bytes], float], None]


class Clients(Protocol):
    """The senders of all clients, as far as turns of the feed concern them (sending/flushes.py)."""

    # Whether a client that answers soon can take no more in this turn.
    pressed: bool

    def flush(self) -> None:
        """Write what was given to the senders."""

    def waits(self) -> bool:
        """Return whether a client that answers soon has to answer before it takes more."""

    def end_turn(self, seconds: float) -> None:
        """Note that a turn of the loop has ended, which took so long."""


class Feed:
    """The sockets, the hub they drive, and what is known of the feeder."""

    def __init__(
        self,
        config: Config,
        on_change: Callable[[], None],
        clients: Clients,
    ) -> None:
        self.hub = Hub(self)
        # A stream waits for an answer of the feeder or of the store: their questions have no number in common.
        self._ids = itertools.count(1)
        self.store = StoreLink(self._ids, self._drain_soon)
        # The feeder's newest heartbeat; None until the first, and again while the feeder is absent.
        self.status: FeedStatus | None = None
        # For each setting of an address, why there is no connection; None if there is one.
        self.links: dict[str, Trouble | None] = {}
        # True from the first heartbeat after an absence or of a new epoch until the feeder is up: the gateway has lost
        # market data, and a new feeder process cannot know that.
        self.interrupted = False
        # time.time_ns() when the newest market frame was published, 0 before the first.
        self.newest_ns = 0
        self.malformed = 0
        # Questions that were sent about where topics stand, or what the journal has.
        self.asked = 0
        # Whether the feeder speaks another version of the wire; known until a heartbeat can be read.
        self._other_version = False
        self._config = config
        # Called when the feeder connects, is absent, or reports a change of its session.
        self._on_change = on_change
        # Called with what the feeder says of surveys.
        self.on_survey: Callable[[Surveyed], None] = lambda _: None
        # The newest market frame that was taken, and its way here, which is timed now and then.
        self.delays = Passage()
        self._clients = clients
        self._heard_at = 0.0
        # When the silence of the feeder was looked at.
        self._looked_at = 0.0
        self._downloads: dict[int, asyncio.Future[DownloadStarted]] = {}
        self._draining = False
        self._drain_size = DRAIN
        # When the newest turn ended, if messages still waited then; else 0.
        self._turned_at = 0.0
        # When market data began to wait for clients' answers; else 0.
        self._held_at = 0.0
        self._stopped = False
        self._follows_trades = False
        self._watch = Links()
        # The address that only the feeder can have, where everybody may listen at the one of market data; else empty.
        self._proof = ""
        # The addresses of trade events and of questions about them.
        self._trade_names = ("trade_addr", "trade_ask_addr")
        # Whether the feeder is there, and not another program at its open addresses.
        self._proved = False

    def start(self) -> None:
        """Connect; raise `ConfigError` for missing keys."""
        self._loop = asyncio.get_running_loop()
        market, ask = endpoint.market_endpoints(self._config, "gateway")
        trade, trade_ask = endpoint.trade_endpoints(self._config, "gateway", makes=True)
        self._trade_names = (trade.name, trade_ask.name)
        # With CURVE the heartbeats themselves come from the feeder, whose key is known.
        self._proof = "" if market.curve or self._config.open_trade_addr else trade.name
        self._proved = not self._proof
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._market, self._trade = (
            sockets.connect_subscriber(self._context, each.address, each.curve, self._watch, each.name)
            for each in (market, trade)
        )
        asked = {
            each.name: sockets.connect_dealer(self._context, each.address, each.curve, self._watch, each.name)
            for each in (ask, trade_ask)[: 1 if trade_ask.name == ask.name else 2]
        }
        self._dealer, self._trade_dealer = asked[ask.name], asked[trade_ask.name]
        self._store = self.store.open(self._context, self._config)
        self._sockets = (self._market, self._trade, *asked.values())
        watched = [socket.fileno() for socket in (*self._sockets, self._store)]
        self._readiness = readiness.watch(self._loop, watched, self._drain)
        self._market.subscribe(STATUS_TOPIC)
        self._tick()

    def follow_trades(self) -> None:
        """Keep the stream of trade events from now on: a key may have them, without one no client gets them."""
        if not self._follows_trades:
            self._follows_trades = True
            _Resident(self).join()

    @property
    def absence(self) -> str:
        """Return the reason for the state "down" while no heartbeats arrive."""
        untold = Trouble.WIRE_VERSION if self._other_version else Trouble.ABSENT
        return next((trouble for trouble in self.links.values() if trouble is not None), untold)

    @property
    def trade_trouble(self) -> Trouble | None:
        """Return why no trade events come from the feeder; None if they come."""
        return next((trouble for name in self._trade_names if (trouble := self.links.get(name))), None)

    def stop(self) -> None:
        """Disconnect; requests that wait for the answer to a download are cancelled.

        Sessions that end with the worker join and leave streams in slices, the last of them later. That does nothing.
        """
        self._stopped = True
        self._timer.cancel()
        self._readiness.close()
        for waiting in self._downloads.values():
            waiting.cancel()
        self._close()

    def subscribe(self, topic: Topic) -> None:
        """Subscribe the topic or prefix on its socket (Upstream)."""
        if self._stopped:
            return
        self._socket_of(topic).subscribe(topic)
        self._drain_soon()

    def unsubscribe(self, topic: Topic) -> None:
        """Cancel the subscription (Upstream)."""
        if self._stopped:
            return
        self._socket_of(topic).unsubscribe(topic)
        self._drain_soon()

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        """Send a CatchUp; return its id, or None while there is no connection to the feeder (Upstream)."""
        number = next(self._ids)
        for part in parts_of(topics):
            # Half of a client's outbox: the other half is for new events that arrive while it is sent these.
            room = self._config.outbox_bytes // 2 if after is not None else 0
            for socket, mine in self._asked(part):
                if not self._send(CatchUp.after_position(number, mine, after, room), socket):
                    return None
                self.asked += 1
        return number

    def ask_store(self, topics: list[Topic], question: StoreQuestion) -> int | None:
        """Ask the store; return the id of the question, or None while there is no connection to it (Upstream)."""
        return self.store.send(
            topics,
            start=question.start,
            after=question.after,
            end=question.end,
            room=question.room,
            code=question.code,
        )

    async def start_download(
        self, stocks: list[str], period: str, start_time: str, end_time: str
    ) -> DownloadStarted | None:
        """Ask for a download; return None if the feeder does not answer in time."""
        waiting: asyncio.Future[DownloadStarted] = self._loop.create_future()
        request = StartDownload(next(self._ids), stocks, period, start_time, end_time)
        self._downloads[request.id] = waiting
        try:
            if not self._send(request, self._trade_dealer):
                return None
            return await asyncio.wait_for(waiting, DOWNLOAD_ANSWER_TIMEOUT)
        except TimeoutError:
            return None
        finally:
            self._downloads.pop(request.id, None)

    def survey(self, ask: Attend | Survey | Finding) -> bool:
        """Send a part of a survey; return False while there is no connection to the feeder."""
        return self.status is not None and self._send(ask, self._trade_dealer)

    def later(self, delay: float, act: Callable[[float], None]) -> None:
        """Call `act` with clock.monotonic() after `delay` seconds, unless the feed has been stopped."""
        self._loop.call_later(delay, lambda: None if self._stopped else act(clock.monotonic()))

    def _socket_of(self, topic: Topic) -> zmq.Socket[bytes]:
        return self._trade if behaviour_of(topic).socket == "trade" else self._market

    def _asked(self, topics: list[str]) -> Iterator[tuple[zmq.Socket[bytes], list[str]]]:
        """Yield each socket for questions that is needed, with those of the topics that it is asked about."""
        trades = [topic for topic in topics if topic.startswith(ALL_TRADES)]
        if trades and self._trade_dealer is not self._dealer:
            yield self._trade_dealer, trades
            topics = [topic for topic in topics if topic not in trades]
        if topics:
            yield self._dealer, topics

    def _send(self, ask: Ask, socket: zmq.Socket[bytes]) -> bool:
        if self._stopped:
            return False
        try:
            socket.send(encode_ask(ask), zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._drain_soon()
        return True

    def _drain_soon(self) -> None:
        # ZeroMQ's descriptors are edge-triggered, and any call on a socket can consume the edge, so look again soon.
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain_planned)

    def _drain_planned(self) -> None:
        self._draining = False
        self._drain()

    def _drain(self) -> None:
        if self._stopped:
            return
        now = clock.monotonic()
        if self._turned_at:
            # The loop took pongs and requests since then, and did not wait.
            self._clients.end_turn(now - self._turned_at)
        before = self.hub.received
        # Each socket is drained, whatever the one before it has left.
        full = self._drain_one(self._trade, self._take_message, now)
        full |= self._holds(now) or self._drain_market(now)
        # Send the market data to the clients first, because there may be many answers.
        self._clients.flush()
        if self.delays.sampled:
            self.delays.written(clock.monotonic())
        full |= self._drain_one(self._dealer, self._take_reply, now)
        if self._trade_dealer is not self._dealer:
            full |= self._drain_one(self._trade_dealer, self._take_reply, now)
        full |= self._drain_store(now)
        self._clients.flush()
        if self._stopped:
            return
        ended = clock.monotonic()
        if self.hub.received != before and self._proved:
            # Any frame shows that the feeder is running: under overload, heartbeats are lost like other messages.
            self._heard_at = now
        self._clients.end_turn(ended - now)
        self._drain_size = min(2 * self._drain_size, LONGEST_DRAIN) if full else DRAIN
        self._turned_at = ended if full else 0.0
        if full:
            self._drain_again(ended)

    def _drain_again(self, now: float) -> None:
        """Plan the next turn, after which clients that answer soon can take more."""
        if not self._clients.waits():
            self._held_at = 0.0
            self._drain_soon()
        elif not self._draining:
            self._held_at = self._held_at or now
            self._draining = True
            self._loop.call_later(PAUSE, self._drain_planned)

    def _holds(self, now: float) -> bool:
        """Return whether market data has to wait until clients that answer soon have answered."""
        if self._held_at and (now - self._held_at >= LONGEST_PAUSE or not self._clients.waits()):
            self._held_at = 0.0
        return self._held_at > 0.0

    def _drain_market(self, now: float) -> bool:
        if now >= self.delays.sample_at:
            before = self.newest_ns
            # The message that has waited longest, and alone, so that the others cost nothing.
            if not self._drain_one(self._market, self._take_market, now, 1):
                return False
            self.delays.took(self.newest_ns if self.newest_ns != before else 0, clock.time_ns(), now)
        return self._drain_one(self._market, self._take_market, now)

    def _drain_one(self, socket: zmq.Socket[bytes], take: Take, now: float, most: int = LONGEST_DRAIN) -> bool:
        """Take what waits in a socket, at most so many messages; return whether more waits."""
        taken = 0
        size = min(self._drain_size, most)
        try:
            while taken < size:
                take(socket, now)
                taken += 1
                if not taken % LOOK_EVERY and (self._clients.pressed or clock.monotonic() - now > LONGEST_TURN):
                    break
        except zmq.Again:
            return False
        except zmq.ZMQError:
            if socket.closed:
                return False
            raise
        return True

    def _drain_store(self, now: float) -> bool:
        """Take answers of the store for a moment; return whether more may wait."""
        until = clock.monotonic() + STORE_SECONDS
        while self._drain_one(self._store, self._take_history, now, 1):
            if clock.monotonic() >= until:
                return True
        return False

    def _take_market(self, socket: zmq.Socket[bytes], now: float) -> None:
        """Take a message of market data; raise `zmq.Again` if there is none.

        Of a topic that has a stream, which is the usual case. Its cost limits how many messages a worker can take.
        recv_multipart would take three times as long, because it checks after each part whether it was the last.
        """
        head = socket.recv(_NOBLOCK)
        hub = self.hub
        stream = hub.market.get(head[:-STAMP_BYTES])
        if stream is None:
            self._take_second(socket, head, now)
            return
        try:
            body = socket.recv(_NOBLOCK)
        except zmq.Again:
            self._count_malformed(WireError("a message of one part"))
            return
        frame = Frame.of_topic(stream.topic, head, body)
        self.newest_ns = frame.published_ns
        hub.received += 1
        stream.receive(frame, now)

    def _take_message(self, socket: zmq.Socket[bytes], now: float) -> None:
        """Take any message; raise `zmq.Again` if there is none."""
        self._take_second(socket, socket.recv(_NOBLOCK), now)

    def _take_second(self, socket: zmq.Socket[bytes], head: bytes, now: float) -> None:
        """Take the other part of a message."""
        try:
            body = socket.recv(_NOBLOCK)
        except zmq.Again:
            self._count_malformed(WireError("a message of one part"))
            return
        parts = [head, body]
        if not frames.is_head(head):
            # Another program publishes at this address. Skip to the beginning of the next message.
            while socket.getsockopt(zmq.RCVMORE):
                parts.append(socket.recv(_NOBLOCK))
        self._take_frame(parts, socket is self._trade, now)

    def _take_frame(self, parts: list[bytes], of_trades: bool, now: float) -> None:
        try:
            frame = Frame.from_parts(parts)
            # Who listens at the address of market data need not be the feeder.
            if frame.topic.startswith(ALL_TRADES) != of_trades:
                raise WireError(f"topic {frame.topic[:80]!r} does not belong on this socket")
            if frame.topic == STATUS_TOPIC:
                self._take_status(frame.body, now)
                return
        except WireError as exc:
            self._count_malformed(exc)
            return
        if of_trades:
            self._take_event(frame, now)
            return
        self.newest_ns = frame.published_ns
        self.hub.receive(frame, now)

    def _take_event(self, frame: Frame, now: float) -> None:
        # The stamp of the frame counts the events of one account. Clients receive the events of all accounts in one
        # stream, and its sequence numbers are the positions in the journal.
        try:
            frame.seq = event_position(frame.body)
        except WireError as exc:
            self._count_malformed(exc)
            return
        self.hub.receive(frame, now)

    def _take_status(self, body: bytes, now: float) -> None:
        if self._proof:
            self._look_at_links(now)
        status = read_status(body)
        if not self._proved and not self._is_farewell(status):
            # Another program may have taken the address of market data while the feeder is away.
            return
        before, self.status = self.status, status
        self._other_version = False
        self._heard_at = now
        if before is None or before.epoch != status.epoch:
            logger.info("feeder is connected: source %s, state %s", status.source, status.state)
            self.interrupted = self.interrupted or self.hub.epoch != 0
        elif status.state == "up" and before.state != "up":
            self.hub.recheck(now)
        self.hub.feeder_seen(status.epoch, status.trade_seq, now)
        if before is None or (before.epoch, before.state, before.since) != (status.epoch, status.state, status.since):
            self._on_change()
        if status.state == "up":
            self.interrupted = False

    def _is_farewell(self, status: FeedStatus) -> bool:
        """Return whether it can be the last status of the feeder: its connections may be seen to end before it."""
        known = self.status
        return known is not None and known.epoch == status.epoch and status.state != "up"

    def _take_reply(self, socket: zmq.Socket[bytes], now: float) -> None:
        parts = socket.recv_multipart(_NOBLOCK)
        try:
            reply = decode_reply(parts[-1])
            of_trades = not isinstance(reply, TopicState) or reply.topic.startswith(ALL_TRADES)
            if socket is not (self._trade_dealer if of_trades else self._dealer):
                raise WireError("an answer does not belong on this socket")
            if isinstance(reply, DownloadStarted):
                waiting = self._downloads.get(reply.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
            elif not isinstance(reply, TopicState):
                self.on_survey(reply)
            elif reply.topic != STATUS_TOPIC:
                self.hub.answer(reply, now)
            elif reply.body is not None:
                self._take_status(reply.body, now)
        except WireError as exc:
            self._count_malformed(exc)

    def _take_history(self, socket: zmq.Socket[bytes], now: float) -> None:
        try:
            # An answer to a page or to a search has the number of no stream, and shows that the store answers.
            self.hub.history(self.store.take(), now)
        except WireError as exc:
            self._count_malformed(exc)

    def _count_malformed(self, exc: Exception) -> None:
        self.malformed += 1
        if isinstance(exc, WireVersionError):
            if not self._other_version:
                self._other_version = True
                logger.error("%s", exc)
                self._on_change()
        elif self.malformed == 1:
            logger.warning("a message from the feeder's address does not follow docs/wire.md: %s", exc)

    def _tick(self) -> None:
        if self.status is None:
            # Ask for the status: a worker that has just started would wait up to a second for a heartbeat.
            self._send(CatchUp(0, [STATUS_TOPIC]), self._dealer)
        self._timer = self._loop.call_later(TICK if self.status is not None else TICK / 5, self._tick)
        now = clock.monotonic()
        # A heartbeat that was read just before this look came after the time that is not counted.
        self._heard_at = min(now, self._heard_at + max(0.0, now - self._looked_at - LOOK_MOST))
        self._looked_at = now
        if self.status is not None and now - self._heard_at > ABSENT_AFTER:
            logger.warning("feeder absent for %.1f s", now - self._heard_at)
            self.status = None
            self._on_change()
        self._look_at_links(now)
        self.hub.expire(now)
        # The descriptors are edge-triggered: without this call, one lost edge would stop a socket for ever.
        self._drain()

    def _look_at_links(self, now: float) -> None:
        for notice in self._watch.look(now):
            logger.log(logging.INFO if notice.good else logging.WARNING, "%s", notice.text)
        self._proved = not self._proof or self._watch.is_up(self._proof)
        before, self.links = self.absence, self._watch.troubles(now)
        if self.status is None and self.absence != before:
            self._on_change()

    def _close(self) -> None:
        self._watch.close()
        self.store.close()
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()


class _Resident:
    """Keeps a worker's stream of trade events open while no client has joined it (Member).

    The stream then has a position at all times, and a client that connects without a position begins there at once.
    Otherwise the first client would miss the events that are published before the feeder has answered.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def join(self) -> None:
        """Join from now on."""
        self._feed.hub.join({ALL_TRADES: self}, clock.monotonic())

    def deliver(self, frame: Frame) -> None:
        """Ignore it."""

    def starts(self, epoch: int, seq: int) -> bool:
        """Return False: no last value is needed."""
        return False

    def settle(self, outcome: Outcome, refusal: Refusal | None) -> None:
        """Join again after a refusal: the feeder has another journal."""
        if outcome == "refused":
            self._feed.later(AGAIN, lambda _: self.join())

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Ask for the next chunk at once: the events are not kept."""
        self._feed.later(0.0, act)

    def missed(self, count: int) -> None:
        """Ignore it."""

    def snapshot_ended(self, count: int) -> None:
        """Ignore it."""
