"""The one thread that owns the ZeroMQ sockets (XPUB market, XPUB trade, ROUTER ask), the registry and the journal.

Every other thread leaves calls in the inbox, and trade events beside it, through the methods of `Sink`, which encode
what they are given and never wait for the network, a disk or a consumer. The thread never waits for a source: see
`Source`.
"""

from __future__ import annotations

import logging
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import msgspec
import zmq

from feeder.journal import CHUNK_BYTES, Journal, Unsent
from feeder.registry import Peer, Registry, Upstream
from feeder.source import DownloadRequest, FeedState, Source
from qmt_bridge import sockets
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest, ErrorCode, Refused, WireError
from qmt_bridge.journal_file import journal_path
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.requests import (
    CatchUp,
    DownloadStarted,
    StartDownload,
    TopicState,
    ask_decoder,
    reply_encoder,
)
from qmt_bridge.wire.topics import ALL_TRADES, KINDS, STATUS_TOPIC, Topic, parse_topic, trade_topic

logger = logging.getLogger(__name__)

# Messages, subscriptions and questions that are served before the thread looks at the others again.
TURN = 1000
# Above it a question is a mistake: no worker subscribes more.
MAX_ASK_TOPICS = 100_000
HEARTBEAT_SECONDS = 1.0
# Between two looks for old trade events, and between two slices of their deletion.
PRUNE_SECONDS = 1.0
PRUNE_PAUSE_SECONDS = 0.02
# A lossless message that a full consumer holds up is tried again after this time.
RETRY_SECONDS = 0.001
# What is queued at the end gets this long to leave, then the sockets another while.
DRAIN_SECONDS = 1.0
LINGER_MS = 200

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

        self._config = config
        self._source = source
        self._version = version
        self._instance = instance
        self._thread = threading.Thread(target=self._run, name="publisher")
        self._opened = threading.Event()
        self._stopping = False

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
        self._held_up = False
        self._state: tuple[FeedState, str | None, bool] = ("down", None, False)
        self._since = self._epoch // _NS_PER_MS
        self._authenticator: sockets.Authenticator | None = None

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

    def stop(self) -> None:
        """Send what is queued, close everything and join the thread."""
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
        for time_ms, body in self._journal.since(since_ms):
            yield time_ms, _trade_decoder.decode(body)

    def accept(self, topic: Topic) -> None:
        """Queue that the source has subscribed `topic`."""
        self._put(partial(self._registry.accept, topic))

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Queue that the source cannot serve `topic`."""
        self._put(partial(self._registry.refuse, topic, code, reason))

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        """Queue a new state of the session."""
        self._put(partial(self._set_state, (state, reason, data_lost)))

    def wait_room(self, limit: int, timeout: float) -> bool:
        """Block until fewer than `limit` calls and trade events wait; False if `timeout` seconds passed."""

        def has_room() -> bool:
            return len(self._inbox) + len(self._trades) < limit

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
        config = self._config
        curve = sockets.load_curve(config.curve_dir, "feeder")
        if curve is not None:
            self._authenticator = sockets.Authenticator(context, config.curve_dir)
        lossless = self._source.lossless
        self._market = sockets.bind_publisher(context, "market_addr", config.market_addr, curve, lossless=lossless)
        # Never lossless: the journal repairs a loss, and who watches trades must not hold up the market.
        self._trade = sockets.bind_publisher(context, "trade_addr", config.trade_addr, curve)
        self._ask = sockets.bind_router(context, config.ask_addr, curve)
        self.market_addr, self.trade_addr, self.ask_addr = (
            bound.getsockopt_string(zmq.LAST_ENDPOINT) for bound in (self._market, self._trade, self._ask)
        )
        path = journal_path(config.data_path, self._source.name)
        self._journal = Journal(path, config.journal_days, config.journal_max_mb)
        closing.callback(self._close_journal)
        self._epoch = self._registry.epoch = self._journal.begin_life(self._epoch)
        self._source.start(self)

    def _loop(self) -> None:
        poller = zmq.Poller()
        for readable in (self._market, self._trade, self._ask, self._wake_reader):
            poller.register(readable, zmq.POLLIN)
        if self._authenticator is not None:
            poller.register(self._authenticator.socket, zmq.POLLIN)
        now = began = time.monotonic()
        next_heartbeat = next_prune = now
        journal = self._journal
        failure = journal.failure
        while not self._stopping:
            if now >= next_prune:
                # A clock that jumps ahead must not delete everything.
                at_most = self._epoch + int((now - began) * 1e9)
                more = journal.prune(min(time.time_ns(), at_most) // _NS_PER_MS)
                journal.checkpoint()
                next_prune = now + (PRUNE_PAUSE_SECONDS if more else PRUNE_SECONDS)
            if now >= next_heartbeat or journal.catching_up:
                journal.save()
            if now >= next_heartbeat or journal.failure != failure:
                next_heartbeat = now + HEARTBEAT_SECONDS
                failure = journal.failure
                self._publish_status()
            self._asleep = True
            events = dict(poller.poll(self._pause_ms(min(next_heartbeat, next_prune), now)))
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
            self._send_trades()
            self._empty_inbox()
            self._continue_replay()
            for upstream in self._registry.expire(now):
                self._unsubscribe(upstream)
            self._send_replies()

    def _pause_ms(self, until: float, now: float) -> int:
        if self._stopping or self._replays or self._trades or (self._inbox and not self._held_up):
            return 0
        if self._journal.catching_up:
            return 0
        deadline = self._registry.deadline()
        if deadline is not None:
            until = min(until, deadline)
        if self._held_up:
            until = min(until, now + RETRY_SECONDS)
        # Rounded up, or the last millisecond would be spun away.
        return max(0, int((until - now) * 1000) + 1)

    def _drain(self) -> None:
        until = time.monotonic() + DRAIN_SECONDS
        while (self._trades or self._inbox) and time.monotonic() < until:
            self._send_trades()
            self._empty_inbox()
            if self._held_up:
                time.sleep(RETRY_SECONDS)
        self._set_state(("down", "feeder_stopped", False))

    def _close_journal(self) -> None:
        """Write what nobody could be sent any more: the next feeder replays it."""
        with self._trades_lock:
            self._trades_over = True
        if self._trades:
            logger.warning("%d trade events are written but not sent", len(self._trades))
            self._journal.append([unsent for _, unsent, _ in self._trades], time.time_ns() // _NS_PER_MS)
            self._trades.clear()
        self._journal.close()

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

    def _send_trades(self) -> None:
        burst = [self._trades.popleft() for _ in range(min(TURN, len(self._trades)))]
        if not burst:
            return
        events = self._journal.append([unsent for _, unsent, _ in burst], time.time_ns() // _NS_PER_MS)
        for (topic, _, received_ns), event in zip(burst, events, strict=True):
            self._transmit(self._trade, topic, event.number, received_ns, event.body)
        self._journal.checkpoint()

    def _transmit(self, publisher: zmq.Socket[bytes], topic: Topic, seq: int, received_ns: int, body: bytes) -> None:
        frame = frames.Frame(topic, self._epoch, seq, received_ns, time.time_ns(), body)
        name, stamp, body = frame.to_parts()
        # A full consumer is noticed at the first part or not at all: an XPUB finishes what it began.
        publisher.send(name, _MORE)
        publisher.send(stamp, _MORE)
        publisher.send(body, _LAST)
        self.published += 1

    # -- Demand

    def _read_demand(self, now: float) -> None:
        for _ in range(TURN):
            try:
                parts = self._market.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            said = parts[0]
            # A stranger may send anything up an XPUB; our topics are ASCII.
            if len(parts) != 1 or said[:1] not in (b"\0", b"\1") or not said.isascii():
                continue
            text = said[1:].decode()
            if said[0]:
                wanted = self._registry.want(text)
                if wanted is not None:
                    self._subscribe(wanted)
            else:
                gone = self._registry.leave(text, now)
                if gone is not None:
                    self._unsubscribe(gone)

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
        for _ in range(TURN):
            try:
                *envelope, payload = self._ask.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            peer = tuple(envelope)
            try:
                ask = ask_decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                logger.warning("a question of %d bytes cannot be read: %s", len(payload), exc)
                continue
            if isinstance(ask, StartDownload):
                self._reply(peer, self._start_download(ask))
            elif len(ask.topics) > MAX_ASK_TOPICS:
                logger.warning("a question about %d topics is not answered", len(ask.topics))
            else:
                self._catch_up(peer, ask, now)

    def _catch_up(self, peer: Peer, ask: CatchUp, now: float) -> None:
        for text in ask.topics:
            if text.partition("/")[0] in _JOURNALED:
                self._catch_up_trades(peer, ask, text)
            else:
                self._registry.ask(peer, ask.id, text, now)
        self._send_replies()

    def _catch_up_trades(self, peer: Peer, ask: CatchUp, text: str) -> None:
        try:
            account = None if text == ALL_TRADES else parse_topic(text).name
        except WireError as exc:
            self._reply(peer, TopicState(ask.id, text, "refused", str(exc), "bad_request", self._epoch))
            return
        if ask.after is None:
            newest = self._journal.newest_of(account)
            self._reply(peer, TopicState(ask.id, text, "live", epoch=self._epoch, seq=newest))
        else:
            self._replays.append(_Replay(peer, ask.id, text, account, ask.after, ask.room, ask.epoch, ask.exact))

    def _continue_replay(self) -> None:
        """Send one chunk: whoever replays a month must not hold up the ticks."""
        if not self._replays:
            return
        replay = self._replays.popleft()
        peer, number, topic, account, after, room, epoch, exact = replay
        newest = self._journal.newest_of(account)
        try:
            oldest = self._journal.oldest(account)
            is_ours = epoch is None or self._journal.has(after, account, epoch, exact)
            if not is_ours or not oldest <= after <= newest:
                error = f"events after {after} cannot be replayed, only those after {oldest} to {newest}"
                if not is_ours:
                    error = f"position {after} is not one of this journal, which has what follows {oldest} to {newest}"
                state = TopicState(
                    number, topic, "refused", error, "resume_expired", self._epoch, newest, oldest=oldest
                )
                self._reply(peer, state)
                return
            chunk = self._journal.read(after, account, min(room, CHUNK_BYTES) if room > 0 else CHUNK_BYTES)
        except sqlite3.Error as exc:
            logger.exception("trade journal cannot be read")
            error = f"the trade journal cannot be read: {exc}"
            self._reply(peer, TopicState(number, topic, "refused", error, "internal", self._epoch, newest))
            return
        state = TopicState(number, topic, "live", None, None, self._epoch, chunk.last, chunk.body, chunk.more)
        self._reply(peer, state)
        if chunk.more and room <= 0:
            # The next position is this life's own.
            self._replays.append(replay._replace(after=chunk.last, epoch=None))

    def _start_download(self, ask: StartDownload) -> DownloadStarted:
        try:
            topic, key = self._registry.start_download(ask)
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

    def _send_replies(self) -> None:
        replies = self._registry.replies
        while replies:
            peer, state = replies.popleft()
            self._reply(peer, state)

    def _reply(self, peer: Peer, reply: TopicState | DownloadStarted) -> None:
        # A ROUTER drops what it cannot deliver; the asker goes live without an answer, or asks again.
        self._ask.send_multipart([*peer, reply_encoder.encode(reply)], zmq.NOBLOCK)

    # -- Status

    def _set_state(self, state: tuple[FeedState, str | None, bool]) -> None:
        if state == self._state:
            return
        self._state = state
        self._since = time.time_ns() // _NS_PER_MS
        logger.info("feed is %s%s", state[0], f": {state[1]}" if state[1] else "")
        self._publish_status()

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
            "reason": reason,
            "since": self._since,
            "data_lost": data_lost,
            "trade_seq": self._journal.newest,
            "instance": self._instance,
            "journal": self._journal.failure,
        }
        try:
            self._send(STATUS_TOPIC, frames.encode(body), None, now)
        except zmq.Again:
            # Lossless and held up: the next heartbeat says the same.
            return


def _shown(value: object) -> object:
    """Return a value as it is if it can be encoded, else as text."""
    try:
        frames.encode(value)
    except Exception:
        return ascii(value)
    return value


def _check_time(received_ns: int) -> None:
    if not isinstance(received_ns, int) or not 0 <= received_ns < _MAX_NS:
        raise ValueError(f"received_ns must be nanoseconds since 1970, got {received_ns!r}")
