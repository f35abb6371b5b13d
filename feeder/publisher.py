"""The publisher's thread: the one that owns the ZeroMQ sockets (feeder/doors.py) and the registry.

Sources reach it through its inbox (feeder/inbox.py), from any thread. The journal has a thread of its own
(feeder/journal/thread.py), so that no tick waits for a disk. This thread never waits for a source: see `Source`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import msgspec
import zmq

from feeder.answers import Answers, Outcome
from feeder.doors import Asked, Doors
from feeder.events import Event
from feeder.inbox import Inbox
from feeder.journal.thread import HUNG_SECONDS, JournalThread, News, Written
from feeder.observed import Observed
from feeder.refusals import Refusals
from feeder.registry import Registry, SourceTopic
from feeder.reports import Reports
from feeder.source import SessionState, Source
from feeder.sources.guarded import Guarded
from qmt_bridge.answering.askers import Peer
from qmt_bridge.config import Config
from qmt_bridge.errors import BadRequest, ErrorCode, Refused, WireError
from qmt_bridge.handshakes import Links
from qmt_bridge.journal_file import journal_files
from qmt_bridge.observation.delays import Delays
from qmt_bridge.system import clock
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import AccountState, PusherState
from qmt_bridge.wire.parts.report import PARTS, Report, Reported
from qmt_bridge.wire.topics import BAR_PERIODS, LEVEL2_PERIODS, STATUS_TOPIC, Kind, Topic, shown_topic

logger = logging.getLogger(__name__)

# Messages and trade events that are served before the thread looks at the others again.
TURN = 1000
# Seconds of work for subscriptions, which take 30 us each, and as many for questions, before ticks have their turn.
TURN_SECONDS = 0.002
# Bytes of subscriptions, and of questions, that are read before ticks have their turn again: up to 25 ms of work for
# the most expensive content.
TURN_BYTES_IN = 256 * 1024
HEARTBEAT_SECONDS = 1.0
# A lossless message that a full consumer holds up is tried again after this time.
RETRY_SECONDS = 0.001
# What is queued at the end has the first time to leave; after that the sockets have the second one.
DRAIN_SECONDS = 1.0
LINGER_MS = 200
# A disk that does not answer at the end is logged after the first time, and no longer waited for after the second.
CLOSE_WARNING_SECONDS = 0.5
CLOSE_SECONDS = 10.0
# The longest time that `Publisher.stop` takes.
STOP_SECONDS = DRAIN_SECONDS + CLOSE_SECONDS + LINGER_MS / 1000

_NS_PER_MS = 1_000_000
# Ints, sent part by part: send_multipart and enum members as flags cost twice as much.
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_LAST = int(zmq.NOBLOCK)


class _Held(NamedTuple):
    """A trade event that is published once it is on disk; `since` is when it was handed over (time.monotonic)."""

    topic: Topic
    event: Event
    received_ns: int
    since: float


class Numbers(NamedTuple):
    """What the feeder counts and is, for its metrics (feeder/metrics.py)."""

    source: str
    sdk: str
    state: str
    journal: str | None
    accounts: tuple[AccountState, ...]
    pushers: Sequence[PusherState]
    # By code.
    pushers_refused: Mapping[str, int]
    markets: Mapping[str, float]
    counted: Mapping[str, int]
    gauges: Mapping[str, float]
    # By hop.
    delays: Mapping[str, Delays]
    # By call into the source's SDK.
    calls: Mapping[str, Delays]
    downloads_ended: Mapping[str, int]
    download_times: Delays
    store: Reported | None
    alerts: Reported | None


class Publisher:
    """Publish what a source puts into `inbox`; implements `feeder.inbox.Outlet` and `feeder.answers.Reporter`."""

    def __init__(self, config: Config, source: Source, version: str = "", instance: str = "") -> None:
        self.market_addr = config.market_addr
        self.trade_addr = config.trade_addr
        self.ask_addr = config.ask_addr
        self.trade_ask_addr = config.trade_ask_addr
        self.inbox = Inbox(self)
        # Set when the thread has ended; `failure` is the reason, unless `stop` was called.
        self.ended = threading.Event()
        self.failure: Exception | None = None
        # Messages sent, and messages of topics that were not subscribed any more.
        self.published = 0
        self.unwanted = 0
        # Calls of the inbox that failed; each failure loses that call only.
        self.failed_calls = 0

        self._config = config
        self.source = self._source = Guarded(source)
        self._version = version
        self._instance = instance
        self._thread = threading.Thread(target=self._run, name="publisher")
        self._opened = threading.Event()
        self._stopping = False
        self._end_reason = "feeder_stopped"

        # The thread's own from here on.
        self._epoch = clock.time_ns()
        limits = {Kind.L2: config.max_depths, Kind.FORMULA: config.max_formulas}
        self._registry = Registry(self._epoch, source.name, source.kinds, config.grace, limits)
        # Trade events that wait for the disk, and the news of the journal's thread, each in order.
        self._held: deque[_Held] = deque()
        self._told: deque[News] = deque()
        # Why trade events are not on disk: the journal's error, or since when the disk does not answer
        # (time.monotonic).
        self._journal_failure: str | None = None
        self._hung_since: float | None = None
        # The newest position in the news of the journal's thread, and the newest that was published before its news.
        self._heard_of = 0
        self._sent_early = 0
        self._refusals = Refusals()
        self._failures = Refusals()
        self._observed = Observed()
        self._reports = Reports()
        # Last values without room that were logged.
        self._unkept_told = 0
        # Whether a lossless message waits for a full consumer.
        self._held_up = False
        self._state = SessionState("connecting")
        self._since = self._epoch // _NS_PER_MS
        self._accounts: tuple[AccountState, ...] = ()
        self._links = Links()

    # -- Called by the feeder

    def start(self) -> None:
        """Open sockets and journal, start the source, then the thread's loop; raise what prevents it."""
        self.begin()
        while not self.opened(1.0):
            pass

    def begin(self) -> None:
        """Do as `start`, but do not wait for it: see `opened`."""
        self.inbox.open()
        self._thread.start()

    def opened(self, timeout: float) -> bool:
        """Return whether the start was completed within `timeout` seconds; raise what prevented it."""
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
            self.inbox.wake()
            self._thread.join()

    @property
    def ended_in_part(self) -> bool:
        """Return whether the source has ended with a reason, or a replay failed: a part of it was not published."""
        state, reason, _ = self._state
        return (state == "ended" and reason is not None) or (state == "down" and self._source.name == "replay")

    # -- The thread

    def _run(self) -> None:
        try:
            with ExitStack() as closing:
                closing.callback(self.inbox.close)
                self._bind(closing)
                self._open_journal(closing)
                self._source.start(self.inbox)
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

    def _bind(self, closing: ExitStack) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        closing.callback(context.destroy, LINGER_MS)
        closing.callback(self._links.close)
        self._doors = Doors(context, self._config, self._links, lossless=self._source.lossless)
        closing.callback(self._doors.close)
        where = self._doors.addresses
        self.market_addr, self.trade_addr = where["market_addr"], where["trade_addr"]
        self.ask_addr, self.trade_ask_addr = where["ask_addr"], where["trade_ask_addr"]

    def _open_journal(self, closing: ExitStack) -> None:
        path, earlier = journal_files(self._config.data_path, self._source.name, invented=self._source.simulated)
        days, max_mb = self._config.journal_days, self._config.journal_max_mb
        self._journal = JournalThread(path, days, max_mb, self._hear, earlier)
        opened = self._journal.start(self._epoch)
        closing.callback(self._close_journal)
        self._epoch = self._registry.epoch = opened.epoch
        self._journal_note = opened.note
        # The newest positions that were given to events, and those that were published.
        self._given, self._sent = opened.positions, opened.positions.copy()
        self._heard_of = opened.positions.newest
        self._answers = Answers(
            self._registry, self._source, self._journal, self._sent, self._refuse, self._answer_failed, self
        )
        self.inbox.use(self._journal)

    def _loop(self) -> None:
        poller = self._poller()
        now = next_heartbeat = clock.monotonic()
        failing = self._journal_failure, self._hung_since
        while not self._stopping:
            self._watch_journal(now)
            if self._doors.end_revoked(self._market_left):
                poller = self._poller()
            if now >= next_heartbeat or failing != (self._journal_failure, self._hung_since):
                next_heartbeat = now + HEARTBEAT_SECONDS
                failing = self._journal_failure, self._hung_since
                self._beat(now)
            self.inbox.asleep = True
            events = dict(poller.poll(self._pause_ms(next_heartbeat, now)))
            self.inbox.asleep = False
            now = clock.monotonic()
            self._read(events)
            # Before the inbox, because a message that is held up there must not hold up trade events.
            self._hand_over_trades()
            self._hear_journal()
            self._empty_inbox()
            self._answers.look_up(self._hung())
            for upstream in self._registry.expire(now):
                self._unsubscribe(upstream)
            self._give_places(now)
            self._refuse_unplaced(now)
            self._answers.send(now, self._deliver)

    def _poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        for readable in (*self._doors.readable(), self.inbox.waking):
            poller.register(readable, zmq.POLLIN)
        return poller

    def _beat(self, now: float) -> None:
        self._publish_status()
        self._observed.rates.note({"published": self.published}, now)
        self._log_unkept(now)
        self._doors.look(now)
        for notice in self._links.look(now):
            logger.warning("%s", notice.text)

    def _read(self, events: Mapping[object, int]) -> None:
        if self.inbox.waking.fileno() in events:
            self.inbox.waking.recv(4096)
        self._doors.admit(events)
        if self._doors.market in events:
            self._read_demand()
        if self._doors.trade in events:
            self._skip_demand()
        for asked in self._doors.asked:
            if asked.socket in events:
                self._read_asks(asked)

    def _market_left(self, now: float) -> None:
        """Treat all subscriptions as ended: those whose clients may subscribe come again within the grace time."""
        for gone in self._registry.leave_all(now):
            self._unsubscribe(gone)

    def _pause_ms(self, until: float, now: float) -> int:
        if self._stopping or self.inbox.trades or self._told or (self.inbox.calls and not self._held_up):
            return 0
        for deadline in (self._registry.deadline(), self._answers.deadline(self._hung_since is not None)):
            if deadline is not None:
                until = min(until, deadline)
        if self._held_up:
            until = min(until, now + RETRY_SECONDS)
        # Rounded up: rounded down, the loop would spin through the last millisecond.
        return max(0, int((until - now) * 1000) + 1)

    def _drain(self) -> None:
        until = clock.monotonic() + DRAIN_SECONDS
        while (self.inbox.trades or self._held or self.inbox.calls) and (now := clock.monotonic()) < until:
            self._watch_journal(now)
            self._hand_over_trades()
            self._hear_journal()
            self._empty_inbox()
            if self._held_up or (self._held and not self._told):
                time.sleep(RETRY_SECONDS)
        self.change_state(SessionState("down", self._end_reason))

    def _empty_inbox(self) -> None:
        self._held_up = False
        calls = self.inbox.calls
        for _ in range(TURN):
            try:
                call = calls.popleft()
            except IndexError:
                break
            try:
                call()
            except zmq.Again:
                calls.appendleft(call)
                self._held_up = True
                break
            except Exception:
                # One failed call must end neither the other calls nor the feeder.
                self.failed_calls += 1
                self._log_failure(b"inbox", "a call of the source failed")
        self.inbox.notify_room()

    # -- Calls of the inbox

    def send(self, topic: Topic, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, received_ns: int) -> None:
        """Number and send one message, if its topic is subscribed."""
        entry = self._registry.find(topic)
        if entry is None:
            self.unwanted += 1
            return
        # Raises zmq.Again only on a lossless socket, and then nothing has been numbered.
        self._transmit(self._doors.market, topic, entry.seq + 1, received_ns, body)
        now = clock.monotonic()
        self._registry.published(entry, body, pieces, now)
        self._observed.published(entry, now)
        if now >= self._observed.sample_at and entry.market:
            self._observed.sample(entry, body, received_ns, clock.time_ns(), now)

    def accept(self, topic: Topic) -> None:
        """Note that the source has subscribed `topic`."""
        self._registry.accept(topic)

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        """Note that the source cannot serve `topic`."""
        self._note("refusal", f"{shown_topic(topic)} is refused: {code}: {reason}")
        self._registry.refuse(topic, code, reason)

    def give_history(self, number: int, bodies: Sequence[bytes], from_ms: int) -> None:
        """Answer a question for a history."""
        self._answers.give_history(number, bodies, from_ms)

    def refuse_history(self, number: int, code: ErrorCode, reason: str) -> None:
        """Answer that a history cannot be found."""
        self._answers.refuse_history(number, code, reason)

    def change_state(self, state: SessionState) -> None:
        """Publish the state of the session at once if it is new."""
        if state == self._state:
            return
        self._state = state
        self._since = clock.time_ns() // _NS_PER_MS
        told = f"feed is {state.state}{f': {state.reason}' if state.reason else ''}"
        logger.info("%s", told)
        self._note("feed", told)
        self._publish_status()

    def change_accounts(self, accounts: tuple[AccountState, ...]) -> None:
        """Publish the state of the accounts at once if it is new."""
        if accounts != self._accounts:
            known = set(self._accounts)
            for each in accounts:
                if each not in known:
                    reason = f": {each.reason}" if each.reason else ""
                    self._note("account", f"account {each.account} ({each.type}) is {each.state}{reason}")
            self._accounts = accounts
            self._publish_status()

    def held(self) -> int:
        """Return how many trade events wait for the disk."""
        return len(self._held)

    def _transmit(self, publisher: zmq.Socket[bytes], topic: Topic, seq: int, received_ns: int, body: bytes) -> None:
        frame = frames.Frame(topic, self._epoch, seq, received_ns, clock.time_ns(), body)
        head, body = frame.to_parts()
        # A full consumer is noticed at the first part or not at all: an XPUB finishes what it began.
        publisher.send(head, _MORE)
        publisher.send(body, _LAST)
        self.published += 1

    # -- Trade events and their journal

    def _hand_over_trades(self) -> None:
        trades = self.inbox.trades
        burst = [trades.popleft() for _ in range(min(TURN, len(trades)))]
        if not burst:
            return
        since = clock.monotonic()
        events = self._given.give([unsent for _, unsent, _ in burst], clock.time_ns() // _NS_PER_MS)
        for (topic, _, received_ns), event in zip(burst, self._journal.write(events), strict=True):
            self._held.append(_Held(topic, event, received_ns, since))

    def _hear(self, news: News) -> None:
        # On the journal's thread.
        self._told.append(news)
        self.inbox.wake_sleeper()

    def _hear_journal(self) -> None:
        """Publish events that are on disk, or cannot be, and send answers: each after the events that it covers."""
        left = TURN
        while self._told:
            news = self._told[0]
            if isinstance(news, Written):
                left -= self._send_trades(news.last, news.saved, left)
                if self._held and self._held[0].event.seq <= news.last:
                    # The market has its turn first.
                    return
                self._heard_of = news.last
                if news.failure != self._journal_failure:
                    self._note("journal", f"trade journal: {news.failure or 'it is written again'}")
                self._journal_failure = news.failure
            elif isinstance(news, Exception):
                raise RuntimeError("the journal's thread has ended") from news
            else:
                news()
            self._told.popleft()

    def _watch_journal(self, now: float) -> None:
        """Treat a disk that does not answer as one that cannot be written."""
        waits = max(self._journal.age(now), now - self._held[0].since if self._held else 0.0)
        if waits >= HUNG_SECONDS:
            if self._hung_since is None:
                self._hung_since = now - waits
                logger.error("trade journal: %s; events are only in memory", self._hung())
                self._note("journal", f"trade journal: {self._hung()}; events are only in memory")
            self._send_trades(self._given.newest, 0, TURN)
            self._sent_early = self._sent.newest
        elif self._hung_since is not None and self._heard_of >= self._sent_early:
            # Events that came after the disk answered are not counted, because events without a pause would always be
            # ahead of the news.
            logger.warning("trade journal: the disk answers again, after %.0f s", now - self._hung_since)
            self._hung_since = None

    def _send_trades(self, last: int, saved: int, limit: int) -> int:
        """Publish at most `limit` of the events up to position `last`, marked above `saved`; return how many."""
        count = 0
        while count < limit and self._held and self._held[0].event.seq <= last:
            topic, event, received_ns, _ = self._held.popleft()
            published = event if event.seq <= saved else event.marked()
            self._transmit(self._doors.trade, topic, event.number, received_ns, published.body)
            self._sent.reach(event)
            count += 1
        return count

    def _hung(self) -> str | None:
        """Return that the disk does not answer, and for how long; None while it does."""
        if self._hung_since is None:
            return None
        return f"the disk has not answered for {clock.monotonic() - self._hung_since:.0f} s"

    def _close_journal(self) -> None:
        """Write the events that cannot be sent any more: the next feeder replays them."""
        self.inbox.close_trades()
        while self.inbox.trades:
            self._hand_over_trades()
        if self._journal.stop(CLOSE_WARNING_SECONDS, CLOSE_SECONDS) and self._held:
            logger.warning("%d trade events are written but not sent", len(self._held))

    # -- What comes from outside. Each message is handled by itself: a bad one ends nothing else.

    def _refuse(self, peer: bytes, what: str, reason: object) -> None:
        """Count a refusal, and log it: at most one line a peer and minute."""
        untold = self._refusals.note(peer, clock.monotonic())
        if untold is not None:
            more = f"; {untold} more since the last such line" if untold else ""
            # Cut and escaped, because the reason may quote any bytes of any length.
            told = ascii(str(reason)[:300])[1:-1]
            logger.warning("%s is refused: %s%s", what, told, more)
            self._note("refusal", f"{what} is refused: {told}")

    def _log_unkept(self, now: float) -> None:
        unkept = self._registry.unkept
        if unkept > self._unkept_told and self._failures.note(b"values", now) is not None:
            logger.warning(
                "%d last values found no room; a late subscriber of these topics waits for the next message", unkept
            )
            self._unkept_told = unkept

    def _log_failure(self, where: bytes, what: str) -> None:
        """Log the exception that is handled, at most once a minute and place."""
        untold = self._failures.note(where, clock.monotonic())
        if untold is not None:
            logger.exception("%s%s", what, f" ({untold} more since the last such line)" if untold else "")

    def _answer_failed(self, exc: Exception) -> None:
        self._refusals.count += 1
        self._log_failure(b"answer", "a question could not be answered and is left out")

    def _read_demand(self) -> None:
        size = 0
        until = time.perf_counter() + TURN_SECONDS
        while time.perf_counter() < until:
            try:
                # Part by part: libzmq puts those of all peers into one queue, so a part that says that more follows
                # would take the subscription of another peer with it.
                said = self._doors.market.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                self._take_demand(said)
            except BadRequest as exc:
                self._refuse(b"market", "a subscription", exc.reason)
            except Exception:
                self._refusals.count += 1
                self._log_failure(b"market", "a subscription could not be handled and is left out")
            size += len(said)
            if size > TURN_BYTES_IN:
                break
        self._doors.departures.ask()

    def _take_demand(self, said: bytes) -> None:
        if self._doors.departures.is_mark(said):
            return
        # A peer may send any bytes up an XPUB; our topics are ASCII.
        if said[:1] not in (b"\0", b"\1") or not said.isascii():
            raise BadRequest("bad_request", f"a message of {len(said)} bytes")
        text = said[1:].decode()
        if not said[0]:
            self._take_departure(text)
        elif not self._doors.departures.are_answers:
            self._want(text, clock.monotonic())

    def _want(self, text: str, now: float) -> None:
        for gone in self._registry.make_room(text):
            self._unsubscribe(gone)
        if self._registry.waits(text, now):
            return
        wanted = self._registry.want(text)
        if wanted is not None:
            self._subscribe(wanted)

    def _give_places(self, now: float) -> None:
        """Subscribe topics that have waited for a place that is free now."""
        while (text := self._registry.next_in_line()) is not None:
            self._want(text, now)

    def _refuse_unplaced(self, now: float) -> None:
        # What is being asked about may have left, which would make room.
        if not self._doors.departures.is_asking:
            for refusal in self._registry.refuse_unplaced(now):
                self._refuse(b"market", "a subscription", refusal.reason)

    def _take_departure(self, text: str) -> None:
        if self._doors.departures.are_answers:
            now = clock.monotonic()
            gone = self._registry.leave(text, now)
            if gone is not None:
                self._unsubscribe(gone)
            self._give_places(now)
        elif self._registry.may_leave(text):
            self._doors.departures.doubt(text)

    def _skip_demand(self) -> None:
        # Trade events are published without subscribers too; their subscriptions are read so that they do not pile up.
        for _ in range(TURN):
            try:
                self._doors.trade.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _subscribe(self, upstream: SourceTopic) -> None:
        try:
            self._source.subscribe(upstream.topic, upstream.parts)
        except Refused as exc:
            self._registry.refuse(upstream.topic, exc.code, exc.reason, held=False)
        except Exception as exc:
            logger.exception("source %s failed to subscribe %s", self._source.name, upstream.topic)
            reason = f"source {self._source.name} failed: {exc}"
            self._registry.refuse(upstream.topic, "internal", reason, held=False)

    def _unsubscribe(self, upstream: SourceTopic) -> None:
        try:
            self._source.unsubscribe(upstream.topic, upstream.parts)
        except Exception:
            logger.exception("source %s failed to unsubscribe %s", self._source.name, upstream.topic)

    def _read_asks(self, asked: Asked) -> None:
        size = 0
        until = time.perf_counter() + TURN_SECONDS
        while time.perf_counter() < until:
            try:
                peer, payload, rights = self._doors.take(asked)
            except zmq.Again:
                return
            try:
                self._answers.take(peer, payload, rights)
            except (BadRequest, WireError) as exc:
                reason = exc.reason if isinstance(exc, BadRequest) else exc
                self._refuse(peer[0], f"a question of {len(payload)} bytes", reason)
            except Exception:
                self._refusals.count += 1
                self._log_failure(b"ask", f"a question of {len(payload)} bytes could not be handled and is left out")
            size += len(payload)
            if size > TURN_BYTES_IN:
                return

    def _deliver(self, peer: Peer, payload: bytes) -> Outcome:
        """Send one reply, if its connection has room."""
        try:
            self._doors.send(peer, payload)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            return "gone"
        return "sent"

    def numbers(self) -> Numbers | None:
        """Return what is counted, None before the start; from any thread, so some numbers may be newer than others."""
        if not self._opened.is_set() or self.failure is not None:
            return None
        health = self._source.health()
        now = clock.monotonic()
        return Numbers(
            self._source.name,
            health.sdk,
            self._state.state,
            self._journal_failure if self._hung_since is None else self._hung(),
            self._accounts,
            health.pushers,
            health.pushers_refused,
            self._observed.markets(now),
            counted={
                "published": self.published,
                "unwanted": self.unwanted,
                "failed_calls": self.failed_calls + self._source.failed,
                "unencodable": self.inbox.unencodable,
                "refused": self._refusals.count,
                "unkept": self._registry.unkept,
            },
            gauges={
                "topics": self._registry.wanted,
                "upstream": self._source.upstream(),
                "queued": len(self.inbox.calls),
                "held_trades": len(self._held),
                "attending": len(self._answers.roll),
                "downloads": self._registry.downloads,
                "call_age_seconds": health.call_age,
                "started_seconds": self._epoch / 1e9,
            },
            delays={
                "exchange_to_callback": self._observed.exchange,
                "callback_to_publish": self._observed.publish,
            },
            calls=health.times,
            downloads_ended=self._registry.downloads_ended,
            download_times=self._registry.download_times,
            store=self._reports.of("store", now),
            alerts=self._reports.of("alerts", now),
        )

    # -- What a survey is told

    def state(self) -> Mapping[str, Any]:
        """Return what the feeder is doing and has seen lately (answers.Reporter)."""
        now = clock.monotonic()
        return {
            "version": self._version,
            "instance": self._instance,
            "started": self._epoch // _NS_PER_MS,
            "topics": self._registry.wanted,
            "upstream": self._source.upstream(),
            "published": self.published,
            "refused": self._refusals.count,
            "unkept": self._registry.unkept,
            **self._observed.shown(now),
            **{part: _shown(self._reports.of(part, now)) for part in PARTS},
        }

    def reported(self, peer: Peer, report: Report) -> None:
        """Take what a store or the alerts report, and what has happened there (answers.Reporter)."""
        self._reports.take(peer, report, clock.monotonic())
        for each in report.happened:
            self._observed.recent.learn(report.part or "", each.kind, each.text, each.time)

    def capabilities(self, told: Callable[[Mapping[str, Any]], None]) -> None:
        """Ask the source on a thread of its own, which may look at an SDK (answers.Reporter)."""

        def ask() -> None:
            lacks: Mapping[str, str] = {}
            failure = None
            try:
                lacks = self._source.capabilities()
            except Exception as exc:
                logger.exception("source %s does not say what it can serve", self._source.name)
                failure = f"source {self._source.name} does not say it: {exc}"
            self.inbox.put(partial(told, self._capable(lacks, failure)))

        threading.Thread(target=ask, name="capabilities", daemon=True).start()

    def _capable(self, lacks: Mapping[str, str], failure: str | None) -> Mapping[str, Any]:
        quotes = ("tick", *BAR_PERIODS, *LEVEL2_PERIODS) if Kind.QUOTE in self._source.kinds else ()
        return {
            "version": self._version,
            "kinds": sorted(self._source.kinds),
            "periods": quotes,
            "capabilities": [
                {"name": name, "served": not lack, "lacks": _encodable(lack) or None} for name, lack in lacks.items()
            ],
            "failure": _encodable(failure),
            "max_depths": self._config.max_depths,
            "max_formulas": self._config.max_formulas,
        }

    def _note(self, kind: str, text: str) -> None:
        self._observed.recent.note(kind, text, clock.time_ns() // _NS_PER_MS)

    # -- Status

    def _publish_status(self) -> None:
        state, reason, data_lost = self._state
        now = clock.time_ns()
        health = self._source.health()
        failure = self._journal_failure if self._hung_since is None else self._hung()
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
            "reason": _encodable(reason),
            "since": self._since,
            "data_lost": data_lost,
            "trade_seq": self._sent.newest,
            "journal": _encodable(failure),
            "journal_note": _encodable(self._journal_note),
            "accounts": [
                {**msgspec.structs.asdict(each), "reason": _encodable(each.reason)} for each in self._accounts
            ],
            "refused": self._refusals.count,
            "unkept": self._registry.unkept,
            "instance": self._instance,
            "sdk": health.sdk,
            "call": health.call,
            "call_age": round(health.call_age, 1),
            "trading_day": health.trading_day,
            "parts": self._reports.states(clock.monotonic()),
            "pushers": [{**msgspec.structs.asdict(each), "reason": _encodable(each.reason)} for each in health.pushers],
            "wire": frames.WIRE_VERSION,
        }
        try:
            self.send(STATUS_TOPIC, frames.encode(body), None, now)
        except zmq.Again:
            # The socket is lossless and held up; the next heartbeat says the same.
            return


def _shown(reported: Reported | None) -> Mapping[str, Any] | None:
    """Return what a part has reported as a survey about states shows it; None if there is no such part."""
    if reported is None:
        return None
    status = reported.report.store or reported.report.alerts
    return {"up": reported.up, "age": round(reported.age, 1), **msgspec.to_builtins(status)}


def _encodable(text: str | None) -> str | None:
    """Return a text that can be encoded: the name of a file may hold bytes that are no characters."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
