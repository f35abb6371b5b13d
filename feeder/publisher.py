"""The one thread that owns the ZeroMQ sockets (XPUB market, XPUB trade, ROUTER ask) and the registry.

The journal has a thread of its own (feeder/journal_thread.py), so that no tick waits for a disk. Every other thread
leaves calls in the inbox, and trade events beside it, through the methods of `Sink`, which encode what they are given
and never wait for the network, a disk or a consumer. The thread never waits for a source: see `Source`.
"""

from __future__ import annotations

import logging
import socket
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import msgspec
import zmq

from feeder.askers import Answers, Askers
from feeder.journal import CHUNK_BYTES, Event, Journal, Unsent
from feeder.journal_thread import HUNG_SECONDS, JournalThread, News, Written
from feeder.refusals import Refusals
from feeder.registry import Peer, Registry, Upstream
from feeder.source import DownloadRequest, FeedState, Source
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest, ErrorCode, Refused, WireError
from qmt_bridge.handshakes import Links
from qmt_bridge.journal_file import journal_path
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.requests import CatchUp, DownloadStarted, Reply, StartDownload, TopicState, ask_decoder
from qmt_bridge.wire.topics import ALL_TRADES, KINDS, STATUS_TOPIC, Topic, parse_topic, trade_topic

logger = logging.getLogger(__name__)

# Messages, subscriptions and questions that are served before the thread looks at the others again.
TURN = 1000
# Of subscriptions fewer, since the source is told of each.
TURN_DEMAND = 250
# Bytes that are read of subscriptions, of questions, and that are sent of answers before ticks have their turn again:
# the first two take up to 25 ms where somebody means harm, the last one 1 ms.
TURN_BYTES_IN = 256 * 1024
TURN_BYTES_OUT = 1024 * 1024
# An envelope is what ZeroMQ puts before a question: of a DEALER one part, of a REQ two, each proxy adds one.
MAX_ENVELOPE_PARTS = 16
MAX_ENVELOPE_BYTES = 1024
# Questions for the journal that wait: of all connections, and of one.
MAX_REPLAYS = 10_000
MAX_REPLAYS_OF_ONE = 1000
HEARTBEAT_SECONDS = 1.0
# A lossless message that a full consumer holds up is tried again after this time.
RETRY_SECONDS = 0.001
# What is queued at the end gets this long to leave, then the sockets another while.
DRAIN_SECONDS = 1.0
LINGER_MS = 200
# A disk that does not answer at the end is told after the one time, and left alone after the other.
CLOSE_WARNING_SECONDS = 0.5
CLOSE_SECONDS = 10.0
# What `Publisher.stop` takes at most.
STOP_SECONDS = DRAIN_SECONDS + CLOSE_SECONDS + LINGER_MS / 1000

_BY_CODE = frozenset(kind for kind, behaviour in KINDS.items() if behaviour.keeps == "by_code")
_JOURNALED = frozenset(kind for kind, behaviour in KINDS.items() if behaviour.keeps == "journal")
_NS_PER_MS = 1_000_000
# Ints, part by part: send_multipart and enum members as flags cost twice as much, 2 us of some 5 a message.
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)
# A stamp holds unsigned 64-bit numbers; half of that is the year 2262.
_MAX_NS = 1 << 63
_trade_decoder = msgspec.msgpack.Decoder(TradeEvent)


class _Replay(NamedTuple):
    """A question for the journal that is answered chunk by chunk, between other work."""

    peer: Peer
    number: int
    topic: str
    account: str | None
    after: int
    # Bytes of the only chunk that is wanted; 0: all there is.
    room: int
    # A life of the feeder whose journal has the position `after`, and whether it was seen in that very life.
    epoch: float | None
    exact: bool


class _Held(NamedTuple):
    """A trade event that is published once it is on disk; `since` is when it was handed over (time.monotonic)."""

    topic: Topic
    event: Event
    received_ns: int
    since: float


class Publisher:
    """Publish what a source says; implements `feeder.source.Sink`."""

    def __init__(self, config: Config, source: Source, version: str = "", instance: str = "") -> None:
        self.market_addr = config.market_addr
        self.trade_addr = config.trade_addr
        self.ask_addr = config.ask_addr
        # Set when the thread is gone; `failure` is why, if it was not asked to go.
        self.ended = threading.Event()
        self.failure: Exception | None = None
        # Messages sent; bodies that could not be encoded; messages of topics that nobody had asked for any more.
        self.published = 0
        self.unencodable = 0
        self.unwanted = 0
        # Calls of the source that failed on the publisher's thread; each cost only itself.
        self.failed_calls = 0

        self._config = config
        self._source = source
        self._version = version
        self._instance = instance
        self._thread = threading.Thread(target=self._run, name="publisher")
        self._opened = threading.Event()
        self._stopping = False
        self._end_reason = "feeder_stopped"

        self._inbox: deque[Callable[[], None]] = deque()
        self._asleep = False
        self._room = threading.Condition()
        self._room_wanted = 0
        self._logged_failures: set[tuple[str, type[Exception]]] = set()
        # Trade events stand in a row of their own, so that no message of the market holds them up. The lock is for the
        # end: an event is in the row before the last ones are written, or is known to come too late.
        self._trades: deque[tuple[Topic, Unsent, int]] = deque()
        self._trades_lock = threading.Lock()
        self._trades_over = False

        # From here on the thread's own.
        self._epoch = time.time_ns()
        self._registry = Registry(self._epoch, source.name, source.kinds, config.grace)
        self._replays: deque[_Replay] = deque()
        # Whether the journal's thread is looking up one of them.
        self._looking_up = False
        # Trade events that wait for the disk, and what the journal's thread has told, in its order.
        self._held: deque[_Held] = deque()
        self._told: deque[News] = deque()
        # Why trade events are not on disk: what the journal says, or since when it has said nothing (time.monotonic).
        self._journal_failure: str | None = None
        self._hung_since: float | None = None
        # The newest position of which the journal's thread has told, and of those that did not wait for that.
        self._heard_of = 0
        self._sent_early = 0
        self._replay_askers: Counter[bytes] = Counter()
        # Whether every asker of the journal has to take first what it was sent.
        self._replays_wait = False
        self._askers = Askers(self._answer_failed)
        self._refusals = Refusals()
        self._failures = Refusals()
        # Last values without room that the log has told of.
        self._unkept_told = 0
        self._held_up = False
        self._state: tuple[FeedState, str | None, bool] = ("down", None, False)
        self._since = self._epoch // _NS_PER_MS
        self._accounts: tuple[AccountState, ...] = ()
        self._authenticator: sockets.Authenticator | None = None
        self._links = Links()

    # -- Called by the feeder

    def start(self) -> None:
        """Open sockets and journal, start the source, then the thread's loop; raise what prevents it."""
        self.begin()
        while not self.opened(1.0):
            pass

    def begin(self) -> None:
        """Do as `start`, but do not wait for it: see `opened`."""
        # A pair of sockets, not a pipe: Windows cannot poll a pipe beside ZeroMQ.
        self._wake_reader, self._waker = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._waker.setblocking(False)
        self._thread.start()

    def opened(self, timeout: float) -> bool:
        """Return whether the start came to its end within `timeout` seconds; raise what prevented it."""
        if not self._opened.wait(timeout):
            return False
        if self.failure is not None:
            self._thread.join()
            raise self.failure
        return True

    def stop(self, reason: str = "feeder_stopped") -> None:
        """Send what is queued, at last that the feed is down for `reason`, close everything and join the thread."""
        self._end_reason = reason
        self._stopping = True
        if self._thread.ident is not None:
            self._wake()
            self._thread.join()

    # -- Sink: called by the source, from any thread

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        """Encode and queue one message (see `Sink`)."""
        try:
            if isinstance(body, Mapping) and topic.partition("/")[0] in _BY_CODE:
                self.publish_whole(topic, body, received_ns)
                return
            _check_time(received_ns)
            encoded = frames.encode(body)
        except Exception as exc:
            self._not_encoded(topic, exc)
            return
        self._put(partial(self._send, topic, encoded, None, received_ns))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        """Encode and queue ticks by code, each tick once (see `Sink`); one that cannot be encoded is left out."""
        pieces: dict[str, msgspec.Raw] = {}
        try:
            _check_time(received_ns)
            for code, tick in ticks.items():
                try:
                    pieces[code] = msgspec.Raw(frames.encode(tick))
                except Exception as exc:
                    self._not_encoded(topic, exc)
            # The snapshot may be ahead of its seq but never behind: all pieces go with the first batch.
            rest = pieces
            for body in frames.join(pieces):
                self._put(partial(self._send, topic, body, rest, received_ns))
                rest = {}
        except Exception as exc:
            self._not_encoded(topic, exc)

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        """Encode and queue one trade event (see `Sink`); it is on disk before it is sent."""
        try:
            topic = trade_topic(account)
            # Here, because on the publisher's thread nothing may fail any more.
            frames.encode(event)
            try:
                _check_time(received_ns)
                encoded = frames.encode(data)
            except Exception as exc:
                # A fill with an odd field is a fill.
                self._count_failure(ALL_TRADES, exc, "has a part that cannot be encoded")
                received_ns = time.time_ns()
                encoded = frames.encode({str(name): _shown(value) for name, value in data.items()})
        except Exception as exc:
            self._not_encoded(ALL_TRADES, exc)
            return
        with self._trades_lock:
            if not self._trades_over:
                self._trades.append((topic, Unsent(account, event, msgspec.Raw(encoded)), received_ns))
                self._wake_up()
                return
        logger.error("a trade event of type %s came after the feeder's end and is not in the journal", event)

    def past_trades(self, since_ms: int) -> Iterator[tuple[int, TradeEvent]]:
        """Yield what the journal has (see `Sink`)."""
        after = 0
        while events := self._journal.call(partial(Journal.since, time_ms=since_ms, after=after), HUNG_SECONDS):
            for _, time_ms, body in events:
                if not isinstance(time_ms, int) or not isinstance(body, bytes):
                    logger.error("an event in the trade journal is damaged")
                    continue
                try:
                    event = frames.read(_trade_decoder, body)
                except WireError as exc:
                    # It is one event, and those after it are remembered.
                    logger.error("an event of %d bytes in the trade journal cannot be read: %s", len(body), exc)
                    continue
                yield time_ms, event
            after = events[-1][0]

    def accept(self, topic: Topic) -> None:
        """Queue that the source has subscribed `topic`."""
        self._put(partial(self._registry.accept, topic))

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Queue that the source cannot serve `topic`."""
        self._put(partial(self._registry.refuse, topic, code, reason))

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        """Queue a new state of the session."""
        self._put(partial(self._set_state, (state, reason, data_lost)))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        """Queue how the trade events of all accounts are served."""
        self._put(partial(self._set_accounts, tuple(accounts)))

    @property
    def ended_in_part(self) -> bool:
        """Return whether the source has ended and gave a reason: not all that it should have was published."""
        state, reason, _ = self._state
        return state == "ended" and reason is not None

    def wait_room(self, limit: int, timeout: float) -> bool:
        """Block until fewer than `limit` calls and trade events wait; False if `timeout` seconds passed."""

        def has_room() -> bool:
            return len(self._inbox) + len(self._trades) + len(self._held) < limit

        if has_room():
            return True
        with self._room:
            self._room_wanted += 1
            try:
                return self._room.wait_for(has_room, timeout)
            finally:
                self._room_wanted -= 1

    def _put(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        self._wake_up()

    def _wake_up(self) -> None:
        # The thread looks at what waits once more after it said that it sleeps, so no wake-up is missed.
        if self._asleep:
            self._asleep = False
            self._wake()

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            # Full of wake-ups that nobody has read yet.
            return
        except OSError:
            # Closed: a source's last callbacks may come after the end.
            if not self.ended.is_set():
                raise

    def _not_encoded(self, topic: Topic, exc: Exception) -> None:
        self._count_failure(topic, exc, "cannot be encoded and is dropped")

    def _count_failure(self, topic: Topic, exc: Exception, what: str) -> None:
        self.unencodable += 1
        kind = str(topic).partition("/")[0]
        seen = (kind, type(exc))
        # A lost trade event is never routine.
        if seen not in self._logged_failures or kind in _JOURNALED:
            self._logged_failures.add(seen)
            logger.error("a message of kind %s %s: %s", kind, what, exc, exc_info=exc)

    # -- The thread

    def _run(self) -> None:
        try:
            with ExitStack() as closing:
                self._open(closing)
                self._opened.set()
                self._loop()
                self._drain()
        except Exception as exc:
            self.failure = exc
            if self._opened.is_set():
                logger.critical("publisher failed", exc_info=True)
        finally:
            self.ended.set()
            self._opened.set()

    def _open(self, closing: ExitStack) -> None:
        closing.callback(self._wake_reader.close)
        closing.callback(self._waker.close)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        closing.callback(context.destroy, LINGER_MS)
        links = self._links
        closing.callback(links.close)
        config = self._config
        curve = sockets.load_curve(config.curve_dir, "feeder")
        if curve is not None:
            self._authenticator = sockets.Authenticator(context, config.curve_dir)
            closing.callback(self._authenticator.close)
        lossless = self._source.lossless
        self._market = sockets.bind_publisher(
            context, "market_addr", config.market_addr, curve, lossless=lossless, links=links
        )
        # Never lossless: the journal repairs a loss, and who watches trades must not hold up the market.
        self._trade = sockets.bind_publisher(context, "trade_addr", config.trade_addr, curve, links=links)
        self._ask = sockets.bind_router(context, config.ask_addr, curve, links)
        self.market_addr, self.trade_addr, self.ask_addr = (
            bound.getsockopt_string(zmq.LAST_ENDPOINT) for bound in (self._market, self._trade, self._ask)
        )
        path = journal_path(config.data_path, self._source.name)
        self._journal = JournalThread(path, config.journal_days, config.journal_max_mb, self._hear)
        opened = self._journal.start(self._epoch)
        closing.callback(self._close_journal)
        self._epoch = self._registry.epoch = opened.epoch
        self._journal_note = opened.note
        # The newest positions that were given to events, and those that were published.
        self._given, self._sent = opened.positions, opened.positions.copy()
        self._heard_of = opened.positions.newest
        self._source.start(self)

    def _loop(self) -> None:
        poller = zmq.Poller()
        for readable in (self._market, self._trade, self._ask, self._wake_reader):
            poller.register(readable, zmq.POLLIN)
        if self._authenticator is not None:
            poller.register(self._authenticator.socket, zmq.POLLIN)
        now = next_heartbeat = time.monotonic()
        failing = self._journal_failure, self._hung_since
        while not self._stopping:
            self._watch_journal(now)
            if now >= next_heartbeat or failing != (self._journal_failure, self._hung_since):
                next_heartbeat = now + HEARTBEAT_SECONDS
                failing = self._journal_failure, self._hung_since
                self._publish_status()
                self._tell_unkept(now)
                for notice in self._links.look(now):
                    logger.warning("%s", notice.text)
            self._asleep = True
            events = dict(poller.poll(self._pause_ms(next_heartbeat, now)))
            self._asleep = False
            now = time.monotonic()
            if self._wake_reader.fileno() in events:
                self._wake_reader.recv(4096)
            if self._authenticator is not None and self._authenticator.socket in events:
                self._authenticator.answer()
            if self._market in events:
                self._read_demand(now)
            if self._trade in events:
                self._skip_demand()
            if self._ask in events:
                self._read_asks(now)
            # First: a message that is held up must not hold up these.
            self._hand_over_trades()
            self._hear_journal()
            self._empty_inbox()
            self._continue_replay()
            for upstream in self._registry.expire(now):
                self._unsubscribe(upstream)
            self._answer(now)

    def _pause_ms(self, until: float, now: float) -> int:
        if self._stopping or self._trades or self._told or (self._inbox and not self._held_up):
            return 0
        may_look_up = not self._looking_up or self._hung_since is not None
        if self._replays and not self._replays_wait and may_look_up:
            return 0
        for deadline in (self._registry.deadline(), self._askers.deadline()):
            if deadline is not None:
                until = min(until, deadline)
        if self._held_up:
            until = min(until, now + RETRY_SECONDS)
        # Rounded up, or the last millisecond would be spun away.
        return max(0, int((until - now) * 1000) + 1)

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_SECONDS
        while (self._trades or self._held or self._inbox) and (now := time.monotonic()) < until:
            self._watch_journal(now)
            self._hand_over_trades()
            self._hear_journal()
            self._empty_inbox()
            if self._held_up or (self._held and not self._told):
                time.sleep(RETRY_SECONDS)
        self._set_state(("down", self._end_reason, False))

    def _close_journal(self) -> None:
        """Write what cannot be sent any more: the next feeder replays it."""
        with self._trades_lock:
            self._trades_over = True
        while self._trades:
            self._hand_over_trades()
        if self._journal.stop(CLOSE_WARNING_SECONDS, CLOSE_SECONDS) and self._held:
            logger.warning("%d trade events are written but not sent", len(self._held))

    def _empty_inbox(self) -> None:
        self._held_up = False
        for _ in range(TURN):
            try:
                call = self._inbox.popleft()
            except IndexError:
                break
            try:
                call()
            except zmq.Again:
                self._inbox.appendleft(call)
                self._held_up = True
                break
            except Exception:
                # Whatever it was about, it must cost neither the others nor the session of the feeder.
                self.failed_calls += 1
                self._log_failure(b"inbox", "a call of the source failed")
        if self._room_wanted:
            with self._room:
                self._room.notify_all()

    def _send(self, topic: Topic, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, received_ns: int) -> None:
        entry = self._registry.find(topic)
        if entry is None:
            self.unwanted += 1
            return
        # Raises zmq.Again only on a lossless socket, and then nothing has been numbered.
        self._transmit(self._market, topic, entry.seq + 1, received_ns, body)
        self._registry.published(entry, body, pieces, time.monotonic())

    def _hand_over_trades(self) -> None:
        burst = [self._trades.popleft() for _ in range(min(TURN, len(self._trades)))]
        if not burst:
            return
        since = time.monotonic()
        events = self._given.give([unsent for _, unsent, _ in burst], time.time_ns() // _NS_PER_MS)
        for (topic, _, received_ns), event in zip(burst, self._journal.write(events), strict=True):
            self._held.append(_Held(topic, event, received_ns, since))

    def _hear(self, news: News) -> None:
        # On the journal's thread.
        self._told.append(news)
        self._wake_up()

    def _hear_journal(self) -> None:
        """Publish what is on disk, or cannot be, and send answers: each after the events that it covers."""
        left = TURN
        while self._told:
            news = self._told[0]
            if isinstance(news, Written):
                left -= self._send_trades(news.last, news.saved, left)
                if self._held and self._held[0].event.seq <= news.last:
                    # The market has its turn first.
                    return
                self._heard_of = news.last
                self._journal_failure = news.failure
            elif isinstance(news, Exception):
                raise RuntimeError("the journal's thread has ended") from news
            else:
                news()
            self._told.popleft()

    def _watch_journal(self, now: float) -> None:
        """Take a disk that does not answer for one that takes nothing."""
        waits = max(self._journal.age(now), now - self._held[0].since if self._held else 0.0)
        if waits >= HUNG_SECONDS:
            if self._hung_since is None:
                self._hung_since = now - waits
                logger.error("trade journal: %s; events are only in memory", self._failure())
            self._send_trades(self._given.newest, 0, TURN)
            self._sent_early = self._sent.newest
        elif self._hung_since is not None and self._heard_of >= self._sent_early:
            # What came since it answers has waited for it: else events without a pause would always be ahead of it.
            logger.warning("trade journal: the disk answers again, after %.0f s", now - self._hung_since)
            self._hung_since = None

    def _send_trades(self, last: int, saved: int, limit: int) -> int:
        """Publish at most `limit` of the events up to position `last`, marked above `saved`; return how many."""
        count = 0
        while count < limit and self._held and self._held[0].event.seq <= last:
            topic, event, received_ns, _ = self._held.popleft()
            published = event if event.seq <= saved else event.marked()
            self._transmit(self._trade, topic, event.number, received_ns, published.body)
            self._sent.reach(event)
            count += 1
        return count

    def _transmit(self, publisher: zmq.Socket[bytes], topic: Topic, seq: int, received_ns: int, body: bytes) -> None:
        frame = frames.Frame(topic, self._epoch, seq, received_ns, time.time_ns(), body)
        name, stamp, body = frame.to_parts()
        # A full consumer is noticed at the first part or not at all: an XPUB finishes what it began.
        publisher.send(name, _MORE)
        publisher.send(stamp, _MORE)
        publisher.send(body, _LAST)
        self.published += 1

    # -- What comes from outside. Each message is handled by itself: whatever it holds, it ends nothing.

    def _refuse(self, peer: bytes, what: str, reason: object, now: float) -> None:
        """Count something that was refused, and tell it: at most one line a peer and minute."""
        untold = self._refusals.note(peer, now)
        if untold is not None:
            more = f"; {untold} more since the last such line" if untold else ""
            # Of any length, and whatever was sent is in it.
            logger.warning("%s is refused: %s%s", what, ascii(str(reason)[:300])[1:-1], more)

    def _tell_unkept(self, now: float) -> None:
        unkept = self._registry.unkept
        if unkept > self._unkept_told and self._failures.note(b"values", now) is not None:
            logger.warning("%d last values found no room; who joins these topics waits for the next message", unkept)
            self._unkept_told = unkept

    def _log_failure(self, where: bytes, what: str) -> None:
        """Log the exception that is handled, at most once a minute and place."""
        untold = self._failures.note(where, time.monotonic())
        if untold is not None:
            logger.exception("%s%s", what, f" ({untold} more since the last such line)" if untold else "")

    def _read_demand(self, now: float) -> None:
        size = 0
        for _ in range(TURN_DEMAND):
            try:
                parts = self._market.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._take_demand(parts, now)
            except BadRequest as exc:
                self._refuse(b"market", "a subscription", exc.reason, now)
            except Exception:
                self._refusals.count += 1
                self._log_failure(b"market", "a subscription could not be handled and is left out")
            size += sum(map(len, parts))
            if size > TURN_BYTES_IN:
                return

    def _take_demand(self, parts: list[bytes], now: float) -> None:
        said = parts[0]
        # Any program may send anything up an XPUB; our topics are ASCII.
        if len(parts) != 1 or said[:1] not in (b"\0", b"\1") or not said.isascii():
            raise BadRequest("bad_request", f"a message of {len(parts)} parts, {len(said)} bytes the first")
        text = said[1:].decode()
        if not said[0]:
            gone = self._registry.leave(text, now)
            if gone is not None:
                self._unsubscribe(gone)
            return
        for gone in self._registry.make_room(text):
            self._unsubscribe(gone)
        wanted = self._registry.want(text)
        if wanted is not None:
            self._subscribe(wanted)

    def _skip_demand(self) -> None:
        # Trade events come whether somebody listens or not; unread, the subscriptions would pile up.
        for _ in range(TURN):
            try:
                self._trade.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _subscribe(self, upstream: Upstream) -> None:
        try:
            self._source.subscribe(upstream.topic, upstream.parts)
        except Refused as exc:
            self._registry.refuse(upstream.topic, exc.code, exc.reason, held=False)
        except Exception as exc:
            logger.exception("source %s failed to subscribe %s", self._source.name, upstream.topic)
            reason = f"source {self._source.name} failed: {exc}"
            self._registry.refuse(upstream.topic, "internal", reason, held=False)

    def _unsubscribe(self, upstream: Upstream) -> None:
        try:
            self._source.unsubscribe(upstream.topic, upstream.parts)
        except Exception:
            logger.exception("source %s failed to unsubscribe %s", self._source.name, upstream.topic)

    # -- Questions

    def _read_asks(self, now: float) -> None:
        size = 0
        for _ in range(TURN):
            try:
                *envelope, payload = self._ask.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            peer = tuple(envelope)
            try:
                self._take_ask(peer, payload)
            except (BadRequest, WireError) as exc:
                reason = exc.reason if isinstance(exc, BadRequest) else exc
                self._refuse(peer[0], f"a question of {len(payload)} bytes", reason, now)
            except Exception:
                self._refusals.count += 1
                self._log_failure(b"ask", f"a question of {len(payload)} bytes could not be handled and is left out")
            size += len(payload)
            if size > TURN_BYTES_IN:
                return

    def _take_ask(self, peer: Peer, payload: bytes) -> None:
        size = sum(map(len, peer))
        if len(peer) > MAX_ENVELOPE_PARTS or size > MAX_ENVELOPE_BYTES:
            raise BadRequest("bad_request", f"an envelope of {len(peer)} parts, {size} bytes")
        ask = frames.read(ask_decoder, payload)
        if isinstance(ask, StartDownload):
            self._reply(peer, self._start_download(peer, ask))
            return
        # Each topic once, however often it is named.
        topics = list(dict.fromkeys(ask.topics))
        size = sum(len(text) + 100 for text in topics)
        if not self._askers.add(peer, self._answers(peer, ask, topics), size):
            raise BadRequest("rate_limited", f"about {len(topics)} topics, while too many questions wait")

    def _answers(self, peer: Peer, ask: CatchUp, topics: list[str]) -> Answers:
        for text in topics:
            if text.partition("/")[0] in _JOURNALED:
                yield self._catch_up_trades(peer, ask, text)
            else:
                answered = False
                for state in self._registry.ask(peer, ask.id, text, time.monotonic()):
                    yield state
                    answered = True
                if not answered:
                    yield None

    def _answer_failed(self, exc: Exception) -> None:
        self._refusals.count += 1
        self._log_failure(b"answer", "a question could not be answered and is left out")

    def _catch_up_trades(self, peer: Peer, ask: CatchUp, text: str) -> TopicState | None:
        """Return the answer about a trade topic; None if the journal is read first."""
        try:
            account = None if text == ALL_TRADES else parse_topic(text).name
        except WireError as exc:
            return TopicState(ask.id, text, "refused", str(exc), "bad_request", self._epoch)
        if ask.after is None:
            return TopicState(ask.id, text, "live", epoch=self._epoch, seq=self._sent.of(account))
        if len(self._replays) >= MAX_REPLAYS or self._replay_askers[peer[0]] >= MAX_REPLAYS_OF_ONE:
            error = "too many questions for the trade journal wait"
            return TopicState(ask.id, text, "refused", error, "rate_limited", self._epoch)
        self._queue_replay(_Replay(peer, ask.id, text, account, ask.after, ask.room, ask.epoch, ask.exact))
        return None

    def _queue_replay(self, replay: _Replay) -> None:
        self._replays.append(replay)
        self._replay_askers[replay.peer[0]] += 1

    def _next_replay(self) -> _Replay | None:
        """Return the next question for the journal whose asker has taken what it was sent."""
        self._replays_wait = False
        for _ in range(len(self._replays)):
            replay = self._replays.popleft()
            if self._askers.has_room(replay.peer):
                self._replay_askers[replay.peer[0]] -= 1
                if not self._replay_askers[replay.peer[0]]:
                    del self._replay_askers[replay.peer[0]]
                return replay
            self._replays.append(replay)
        self._replays_wait = True
        return None

    def _continue_replay(self) -> None:
        """Have one chunk looked up; a long replay does not hold up the others, and none holds up a tick."""
        if self._looking_up and self._hung_since is None:
            return
        replay = self._next_replay()
        if replay is None:
            return
        if self._hung_since is not None:
            self._reply(replay.peer, _unreadable(replay, self._epoch, self._sent.of(replay.account), self._failure()))
            return
        self._looking_up = True
        self._journal.ask(lambda journal: partial(self._replayed, *_look_up(replay, journal, self._epoch)))

    def _replayed(self, replay: _Replay, state: TopicState) -> None:
        self._looking_up = False
        self._reply(replay.peer, state)
        if state.state == "live" and state.more and replay.room <= 0:
            # The next position is this life's own.
            self._queue_replay(replay._replace(after=state.seq, epoch=None))

    def _start_download(self, peer: Peer, ask: StartDownload) -> DownloadStarted:
        try:
            topic, key = self._registry.start_download(ask, peer[0])
        except BadRequest as exc:
            return DownloadStarted(ask.id, None, exc.code, exc.reason)
        if key is None:
            return DownloadStarted(ask.id, topic)
        request = DownloadRequest(tuple(dict.fromkeys(ask.stocks)), *key[1:])
        try:
            self._source.download(topic, request)
        except Refused as exc:
            self._registry.drop_download(topic, key)
            return DownloadStarted(ask.id, None, exc.code, exc.reason)
        except Exception as exc:
            logger.exception("source %s failed to start a download", self._source.name)
            self._registry.drop_download(topic, key)
            return DownloadStarted(ask.id, None, "internal", f"source {self._source.name} failed: {exc}")
        return DownloadStarted(ask.id, topic)

    def _reply(self, peer: Peer, reply: Reply) -> None:
        """Let a reply wait until its asker takes it: sent when ticks have had their turn."""
        body = reply.body if isinstance(reply, TopicState) else None
        if not self._askers.add(peer, iter((reply,)), len(body or b"") + 500):
            # An asker that does not read goes without it, and asks again.
            self._refuse(peer[0], "an answer", "too much waits for its asker, which does not read", time.monotonic())

    def _answer(self, now: float) -> None:
        """Send some of what was asked for, in turns between the askers that read."""
        decided = self._registry.decided
        while decided:
            peer, number, text = decided.popleft()
            if not self._askers.add(peer, self._registry.states(number, text), len(text)):
                self._refuse(peer[0], "an answer", "too much waits for its asker, which does not read", now)
        waiting = len(self._askers)
        self._send_answers(now)
        if len(self._askers) < waiting:
            # A journal's next chunk is looked up once its asker has taken the one before.
            self._replays_wait = False

    def _send_answers(self, now: float) -> None:
        size = 0
        for _ in range(TURN):
            message = self._askers.take(now)
            if message is None:
                return
            peer, payload = message
            if not payload:
                continue
            try:
                self._ask.send_multipart([*peer, payload], zmq.NOBLOCK)
            except zmq.Again:
                self._askers.full(now)
                continue
            except zmq.ZMQError as exc:
                if exc.errno != zmq.EHOSTUNREACH:
                    raise
                self._askers.gone()
                continue
            self._askers.sent()
            size += len(payload)
            if size > TURN_BYTES_OUT:
                return

    # -- Status

    def _set_state(self, state: tuple[FeedState, str | None, bool]) -> None:
        if state == self._state:
            return
        self._state = state
        self._since = time.time_ns() // _NS_PER_MS
        logger.info("feed is %s%s", state[0], f": {state[1]}" if state[1] else "")
        self._publish_status()

    def _set_accounts(self, accounts: tuple[AccountState, ...]) -> None:
        if accounts != self._accounts:
            self._accounts = accounts
            self._publish_status()

    def _failure(self) -> str | None:
        """Return why trade events are not on disk; None while they are."""
        if self._hung_since is None:
            return self._journal_failure
        return f"the disk has not answered for {time.monotonic() - self._hung_since:.0f} s"

    def _publish_status(self) -> None:
        state, reason, data_lost = self._state
        now = time.time_ns()
        body = {
            "source": self._source.name,
            "simulated": self._source.simulated,
            "state": state,
            "epoch": self._epoch,
            "time": now // _NS_PER_MS,
            "topics": self._registry.wanted,
            "upstream": self._source.upstream(),
            "published": self.published,
            "version": self._version,
            "reason": _told(reason),
            "since": self._since,
            "data_lost": data_lost,
            "trade_seq": self._sent.newest,
            "journal": _told(self._failure()),
            "journal_note": _told(self._journal_note),
            "accounts": [msgspec.structs.replace(each, reason=_told(each.reason)) for each in self._accounts],
            "refused": self._refusals.count,
            "unkept": self._registry.unkept,
            "instance": self._instance,
        }
        try:
            self._send(STATUS_TOPIC, frames.encode(body), None, now)
        except zmq.Again:
            # Lossless and held up: the next heartbeat says the same.
            return


def _look_up(replay: _Replay, journal: Journal, epoch: int) -> tuple[_Replay, TopicState]:
    """Return a question and the next chunk of its answer, in the life `epoch`. On the journal's thread."""
    _, number, topic, account, after, room, life, exact = replay
    newest = journal.newest_of(account)
    try:
        oldest = journal.oldest(account)
        is_ours = life is None or journal.has(after, account, life, exact)
        if not is_ours or not oldest <= after <= newest:
            error = f"events after {after} cannot be replayed, only those after {oldest} to {newest}"
            if not is_ours:
                error = f"position {after} is not one of this journal, which has what follows {oldest} to {newest}"
            state = TopicState(number, topic, "refused", error, "resume_expired", epoch, newest, oldest=oldest)
            return replay, state
        chunk = journal.read(after, account, min(room, CHUNK_BYTES) if room > 0 else CHUNK_BYTES)
    except sqlite3.Error as exc:
        logger.exception("trade journal cannot be read")
        return replay, _unreadable(replay, epoch, newest, str(exc))
    return replay, TopicState(number, topic, "live", None, None, epoch, chunk.last, chunk.body, chunk.more)


def _unreadable(replay: _Replay, epoch: int, newest: int, reason: str | None) -> TopicState:
    error = f"the trade journal cannot be read: {reason}"
    return TopicState(replay.number, replay.topic, "refused", error, "internal", epoch, newest)


def _shown(value: object) -> object:
    """Return a value as it is if it can be encoded, else as text."""
    try:
        frames.encode(value)
    except Exception:
        return ascii(value)
    return value


def _told(text: str | None) -> str | None:
    """Return a text as it can be encoded: one with the name of a file may hold bytes that are no characters."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _check_time(received_ns: int) -> None:
    if not isinstance(received_ns, int) or not 0 <= received_ns < _MAX_NS:
        raise ValueError(f"received_ns must be nanoseconds since 1970, got {received_ns!r}")
