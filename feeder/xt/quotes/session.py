"""The xtquant quote session: ticks, bars, whole markets, depth and formulas.

The thread `xtquant-calls` makes every xtdata call: xtdata has one client a process and no lock. xtquant's own threads,
several at once, call back: they stamp, convert, hand over to the sink and return. xtdata is never called in a callback
or while the terminal is away: each function begins with `get_client()`, which would replace the client in silence and
lose every subscription with it. A call that does not return is noticed by the thread that asks `hung`.
"""

from __future__ import annotations

import heapq
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from feeder.source import DownloadRequest, Sink
from feeder.xt import center, normalize, sdk
from feeder.xt.calls import Calls
from feeder.xt.quotes.feed import Callback, Feed, Stream, market_of
from feeder.xt.quotes.listener import Listener
from feeder.xt.quotes.newest import Moment
from feeder.xt.quotes.splice import Splice
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused, Unavailable
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

logger = logging.getLogger(__name__)

# A terminal takes about a minute to start; asking more often than RETRY_LAST brings nothing.
RETRY_FIRST = 0.5
RETRY_LAST = 5.0
# xtquant waits for its servers for ever; they load every market in a fraction of this.
CENTER_SECONDS = 120.0
# How often to look at the connection, should xtquant not tell that it was lost.
WATCH_SECONDS = 1.0
# How often to ask again for what was refused: a terminal answers before it is logged in, and limits become free.
REFUSED_SECONDS = 60.0
# How long there has to be room for single subscriptions before ticks go back to them: who leaves only to come again
# finds its place free, and costs no more than that.
RETURN_SECONDS = 5.0
# Of the two seconds that `close` may take: to give subscriptions back, and to wait for the thread.
LEAVE_SECONDS = 1.5
JOIN_SECONDS = 1.9
# How long a subscription has to bring a first tick of itself before the terminal is asked for the newest one, which is
# all that there is after the close. The pause doubles while the terminal has none.
FIRST_SECONDS = 2.0
FIRST_LAST = 1800.0
# For so many codes in one call: a new subscription has to wait for it.
FIRST_CODES = 20
# Calls after which a piece of what is still to be done has its turn, though more calls wait.
CALLS_IN_A_ROW = 10
# Formulas that are held at a time. There is no end to their topics, where instruments and periods are as many as the
# terminal has, and it calculates each of them with every tick.
MAX_FORMULAS = 1000


def _now() -> int:
    return time.time_ns() // 1_000_000


def _is_tick(parts: TopicParts) -> bool:
    """Return whether `parts` are the ticks of one code."""
    return parts.detail == "tick" if parts.kind is Kind.QUOTE else parts.kind is Kind.WHOLE and "." in parts.name


def _moment() -> Moment:
    # Of the monotonic clocks the one that has a fine resolution on Windows too.
    return Moment(time.time_ns(), time.perf_counter_ns())


class XtQuote:
    """The source ``xtquant``: live quotes of the terminal at `config.xt_addr`."""

    name = "xtquant"
    simulated = False
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA))
    lossless = False

    def __init__(self, config: Config, now: Callable[[], int] = _now) -> None:
        self._host, self._port = sdk.parse_address(config.xt_addr)
        center.check(config)
        self._config = config
        # Done once the data service is open, where there is a token for it.
        self._center: Future[None] = Future()
        self._single_limit = config.xt_single_limit
        self._sink: Sink
        self._xtdata: Any
        self._listener: Listener
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Topics that are wanted at this moment; a queued call may be about one that was given up since. The publisher's
        # thread writes it.
        self._asked: set[Topic] = set()
        # What the calling thread does now.
        self._running = Calls(config.xt_hang)
        self._thread = threading.Thread(target=self._run, name="xtquant-calls", daemon=True)
        self._closing = False
        # The wall clock in ms, which trading hours are told by.
        self._now = now
        # Data that could not be published, and the kinds of fault already logged; records left out because a newer one
        # had been published. Callbacks write these, at once.
        self.failed = 0
        self.overtaken = 0
        self._faults: set[tuple[Kind, str, type[Exception]]] = set()
        self._failures = threading.Lock()
        # Queued calls that ended in an exception; the calling thread counts.
        self.failed_calls = 0

        # The rest is the calling thread's. What is wanted outlives a session, refused topics included.
        self._wanted: dict[Topic, TopicParts] = {}
        self._streams: dict[TopicParts, Stream] = {}
        self._held: dict[Topic, Feed] = {}
        self._feeds: dict[TopicParts, Feed] = {}
        self._singles = 0
        # Single subscriptions that bring ticks beside the market that still serves them.
        self._returning: dict[Topic, Feed] = {}
        # Since when there has been room for more, and which ticks were refused it.
        self._room_since = 0.0
        self._stuck: set[Topic] = set()
        # What is still to be done in this session, each piece about one native call. It is done one by one, whenever
        # no call waits: the first subscriptions of the session, then refused ones, and subscriptions made anew.
        self._todo: deque[Callable[[], None]] = deque()
        # Formulas that are to be subscribed, in turns with these, so that many of them hold up no other topic; and how
        # many are held.
        self._new_formulas: dict[Topic, None] = {}
        self._formulas = 0
        self._formula_was_last = False
        # Of a session whose first subscriptions are not all made: whether data was lost before it.
        self._arriving: bool | None = None
        # Ticks that have no value yet, by the time at which the terminal is asked for one, with a number that keeps the
        # order and the pause before the next time.
        self._empty: list[tuple[float, int, Topic, float]] = []
        self._emptied = count()
        self._client: Any = None
        self._native: Any = None
        # Counts attempts to connect: what a dead client still tells is not about this one.
        self._session = 0
        self._lost_session = 0
        self._was_connected = False
        self._down_reason: str | None = None

    def start(self, sink: Sink) -> None:
        """Import xtquant and begin to connect; raise ImportError where its native modules cannot be imported.

        With a token first wait for the data service; raise `ConfigError` with the reason if it does not open, and
        `Unavailable` if that may pass.
        """
        self._sink = sink
        self._xtdata = self._running.through(sdk.load())
        self._listener = Listener(self._xtdata, self._config.xt_silence, self._now, self._is_alive)
        self._thread.start()
        if not self._config.xt_token:
            return
        try:
            self._center.result(CENTER_SECONDS)
        except TimeoutError:
            self._closing = True
            raise Unavailable("xt_token", f"the data service has not opened in {CENTER_SECONDS:g} s") from None
        except ConfigError as exc:
            logger.error("the data service cannot be opened: %s", exc.reason)
            raise

    @property
    def address(self) -> str:
        """Return where quotes come from, "host:port": with a token the data service, once started."""
        return f"{self._host}:{self._port}"

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Want `topic`: it is subscribed at once, or as soon as the terminal is there."""
        self._asked.add(topic)
        self._calls.put(partial(self._want, topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Want `topic` no more."""
        self._asked.discard(topic)
        self._calls.put(partial(self._leave, topic))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Raise `Refused`: as `kinds` says, there are no downloads here."""
        raise Refused("upstream_refused", f"source {self.name} does not serve {Kind.DOWNLOAD}")

    def upstream(self) -> int:
        """Return how many native subscriptions are held."""
        return len(self._feeds)

    def hung(self) -> str | None:
        """Return which call into xtquant has not returned for `config.xt_hang` seconds (see `Source`)."""
        if self._closing or self._thread.ident is None:
            return None
        if not self._thread.is_alive():
            return "the thread that calls xtquant has ended"
        return self._running.hung(time.monotonic())

    def close(self) -> None:
        """Give subscriptions back and stop within two seconds; a call that hangs in xtquant is left behind."""
        is_hung = self.hung() is not None
        self._closing = True
        self._wake()
        if self._thread.is_alive():
            if not is_hung:
                self._thread.join(JOIN_SECONDS)
            if self._thread.is_alive():
                logger.warning("an xtquant call still runs; its thread is left behind")

    def _wake(self) -> None:
        self._calls.put(lambda: None)

    # -- xtquant's threads

    def _watch(self, session: int, info: object) -> None:
        status = info.get("status") if isinstance(info, Mapping) else None
        if status == "disconnected" and session == self._session:
            self._lost_session = session
            self._wake()

    def _deliver(self, feed: Feed, payload: object) -> None:
        moment = _moment()
        if not feed.live:
            return
        try:
            self._publish(feed, payload, moment)
        except Exception as exc:
            # xtdata's wrapper would print this to stdout.
            self._lose(feed, exc)

    def _lose(self, feed: Feed, exc: Exception) -> None:
        """Note a push that cannot be read as a whole; it is a sign of life all the same."""
        feed.hear({})
        self._note_failure(feed, exc)

    def _note_failure(self, feed: Feed, exc: Exception) -> None:
        fault = (feed.parts.kind, feed.parts.detail, type(exc))
        with self._failures:
            self.failed += 1
            is_new = fault not in self._faults
            self._faults.add(fault)
        if is_new:
            logger.error("data of %s cannot be published", feed, exc_info=exc)

    def _publish(self, feed: Feed, payload: object, moment: Moment) -> None:
        unfit = partial(self._note_failure, feed)
        if feed.parts.kind is Kind.WHOLE:
            rows = 0
            for ticks in normalize.whole(payload, unfit):
                rows += 1
                feed.hear(ticks)
                self._publish_whole(feed, ticks, moment)
            if not rows:
                feed.hear({})
        elif feed.spec is None:
            quote = normalize.quote(payload, unfit)
            feed.hear({code: records[-1] for code, records in quote.items()})
            self._publish_quote(feed, quote, moment)
        else:
            # Which answer a formula begins with is not documented, so the first document is none of its news.
            feed.hear({})
            self._publish_values(feed, normalize.document(payload), moment)

    def _publish_values(self, feed: Feed, document: dict[str, Any], moment: Moment) -> None:
        stream, spec, topic = feed.stream, feed.spec, feed.topic
        if spec is None or topic is None:
            return
        with stream.lock:
            if self._admit(stream, spec.stock_code, document, moment):
                body = {"formula_name": spec.formula_name, "stock_code": spec.stock_code, "data": document}
                self._sink.publish(topic, body, moment.received_ns)

    def _publish_whole(self, feed: Feed, ticks: dict[str, Any], moment: Moment) -> None:
        stream = feed.stream
        with stream.lock:
            # A topic that begins after this finds the ticks among those of the stream, else it gets them here.
            fresh = self._admit_all(stream, ticks, moment)
            feed.pushed = ticks
            topic = feed.topic
            if topic is not None and fresh:
                self._sink.publish_whole(topic, fresh, moment.received_ns)
        if feed.quotes:
            for code, tick in fresh.items():
                single = feed.quotes.get(code)
                if single is not None:
                    self._publish_from_market(single, code, tick, moment)

    def _publish_from_market(self, stream: Stream, code: str, tick: Any, moment: Moment) -> None:
        topic, splice = stream.topic, stream.splice
        if topic is None or splice is None:
            return
        with stream.lock:
            if splice.from_market(tick) and self._admit(stream, code, tick, moment):
                self._sink.publish(topic, {code: [tick]}, moment.received_ns)

    def _publish_quote(self, feed: Feed, quote: dict[str, list[Any]], moment: Moment) -> None:
        stream, splice, topic = feed.stream, feed.splice, feed.topic
        if topic is None:
            return
        fresh = {}
        with stream.lock:
            for code, records in quote.items():
                kept = [
                    record
                    for record in records
                    if (splice is None or splice.from_single(record, moment))
                    and self._admit(stream, code, record, moment)
                ]
                if kept:
                    fresh[code] = kept
            if fresh:
                self._sink.publish(topic, fresh, moment.received_ns)

    def _admit(self, stream: Stream, code: str, record: Any, moment: Moment) -> bool:
        """Return whether `record` may be published: not after a newer version of it. The caller holds the lock."""
        if stream.is_filled:
            stream.is_filled = False
            if not stream.newest.is_new(code, record):
                return False
        if stream.newest.admit(code, record, moment):
            return True
        with self._failures:
            self.overtaken += 1
        return False

    def _admit_all(self, stream: Stream, ticks: dict[str, Any], moment: Moment) -> dict[str, Any]:
        """Return those of `ticks` that may be published (see `_admit`)."""
        if stream.is_filled:
            return {code: tick for code, tick in ticks.items() if self._admit(stream, code, tick, moment)}
        fresh = stream.newest.admit_all(ticks, moment)
        if len(fresh) < len(ticks):
            with self._failures:
                self.overtaken += len(ticks) - len(fresh)
        return fresh

    # -- The calling thread: the session

    def _run(self) -> None:
        if self._config.xt_token:
            try:
                self._host, self._port = center.open_center(self._config)
            except Exception as exc:
                self._center.set_exception(exc)
                return
            self._center.set_result(None)
        delay = RETRY_FIRST
        while not self._closing:
            began = time.monotonic()
            try:
                reason = self._connect()
                if reason is None:
                    reason = self._serve()
            except Exception:
                logger.exception("xtquant session failed")
                reason = "internal"
            if self._closing:
                break
            self._forget_session()
            if reason is None:
                continue
            self._listener.forget()
            self._tell_down(reason)
            if time.monotonic() - began > RETRY_LAST:
                delay = RETRY_FIRST
            self._wait(delay)
            delay = min(2 * delay, RETRY_LAST)
        try:
            self._give_back()
            if self._config.xt_token:
                center.close_center()
        except Exception:
            logger.exception("xtquant session could not be ended")

    def _connect(self) -> str | None:
        """Connect and subscribe all that is wanted; return why there is no connection, or None."""
        self._session += 1
        # Only a client that connects after this tells its status to it.
        self._xtdata.watch_xtquant_status(partial(self._watch, self._session))
        try:
            # Always a new client, also where xtquant has connected again by itself: whether such a client still has
            # its subscriptions is not documented, and shutting it down is what ends them all for certain.
            self._native = self._xtdata.reconnect(self._host, self._port)
            self._client = self._running.through(self._native)
        except Exception as exc:
            logger.debug("cannot connect to the terminal: %s", exc)
            return "terminal_disconnected" if self._was_connected else "terminal_unreachable"
        self._arriving, self._was_connected = self._was_connected, True
        self._subscribe_wanted()
        return None

    def _serve(self) -> str | None:
        """Make the calls that come until the session ends; return why, or None to connect anew at once.

        Calls that wait go first, `CALLS_IN_A_ROW` at most. Between two of them there is at most one piece of what is
        still to be done.
        """
        in_a_row = 0
        ask_again = time.monotonic() + REFUSED_SECONDS
        listen = time.monotonic() + WATCH_SECONDS
        returns = True
        while not self._closing and self._is_alive():
            if self._arriving is not None and not self._todo:
                self._arrive(self._arriving)
            now = time.monotonic()
            if now >= listen:
                if not self._listen():
                    return None
                returns = True
                listen = time.monotonic() + WATCH_SECONDS
            if now >= ask_again and not self._todo:
                self._stuck.clear()
                self._subscribe_wanted()
                ask_again = time.monotonic() + REFUSED_SECONDS
            has_values = bool(self._empty) and self._empty[0][0] <= now
            is_idle = not (self._todo or self._new_formulas or has_values or returns)
            if in_a_row < CALLS_IN_A_ROW and self._call_next(WATCH_SECONDS if is_idle else 0.0):
                in_a_row += 1
                continue
            in_a_row = 0
            if self._new_formulas and not (self._formula_was_last and (self._todo or has_values or returns)):
                self._formula_was_last = True
                self._do(self._subscribe_formula)
                continue
            self._formula_was_last = False
            if self._todo:
                self._do(self._todo.popleft())
                if not self._todo:
                    # Counted from the end: a pass may take longer than the pause.
                    ask_again = time.monotonic() + REFUSED_SECONDS
            elif has_values:
                self._ask_values(now)
            elif returns:
                returns = self._return_ticks(now)
        return "terminal_disconnected"

    def _arrive(self, data_lost: bool) -> None:
        """Say that the session is there, once all that is wanted has been asked for."""
        self._arriving = None
        self._down_reason = None
        logger.info("connected to the terminal at %s:%d", self._host, self._port)
        if self._listener.stale:
            # Being connected is not what was missing.
            self._sink.set_state("stale", "market_silent")
        else:
            self._sink.set_state("up", data_lost=data_lost)

    def _listen(self) -> bool:
        """Do what silence asks for; return whether the session may go on."""
        action, feeds = self._listener.listen(self._wanted, self._held, self._feeds)
        if action == "reconnect":
            if not self._listener.stale:
                self._sink.set_state("stale", "market_silent")
            return False
        # Of a session that is still arriving the end of that says how it is.
        if self._arriving is None:
            if action in ("recovered", "closed"):
                self._sink.set_state("up", data_lost=True)
            elif action in ("stale", "resubscribe"):
                self._sink.set_state("stale", "market_silent")
        self._todo.extend(partial(self._renew, feed) for feed in feeds)
        return True

    def _renew(self, feed: Feed) -> None:
        """Give a subscription back, longer bars and formulas included, and subscribe what it serves again."""
        if self._feeds.get(feed.parts) is not feed:
            return
        topics = [topic for topic, held in self._held.items() if held is feed]
        for topic, returning in list(self._returning.items()):
            if returning is feed or topic in topics:
                # Its market serves it, or will again.
                del self._returning[topic]
                self._end(returning)
        if self._feeds.get(feed.parts) is feed:
            self._end(feed)
        for topic in topics:
            del self._held[topic]
        for topic in topics:
            if not self._is_alive():
                return
            self._subscribe(topic, self._wanted[topic])

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._call_next(left)

    def _call_next(self, timeout: float) -> bool:
        """Make the call that waits, or comes within `timeout` seconds; return whether there was one."""
        self._running.rest()
        try:
            call = self._calls.get(timeout=timeout)
        except queue.Empty:
            return False
        finally:
            self._running.begin("own work")
        self._do(call)
        return True

    def _do(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            # Of one topic. The session has the data of all others, and the next call may be about another.
            self.failed_calls += 1
            logger.exception("a call of the xtquant session failed")

    def _is_alive(self) -> bool:
        """Return whether our client is connected: the gate before each xtdata call, and the check after it."""
        if self._client is None or self._lost_session == self._session or not self._client.is_connected():
            return False
        try:
            # A call that met a lost connection has put a client of its own in the place of ours.
            return bool(self._xtdata.get_client() is self._native)
        except Exception as exc:
            logger.debug("the terminal went away: %s", exc)
            return False

    def _forget_session(self) -> None:
        for feed in self._feeds.values():
            feed.live = False
        self._feeds.clear()
        self._held.clear()
        self._returning.clear()
        self._stuck.clear()
        self._todo.clear()
        self._new_formulas.clear()
        self._formulas = 0
        self._empty.clear()
        self._arriving = None
        self._singles = 0
        self._client = self._native = None

    def _tell_down(self, reason: str) -> None:
        if reason != self._down_reason:
            self._down_reason = reason
            logger.warning("%s at %s:%d; trying again", reason, self._host, self._port)
            self._sink.set_state("down", reason)

    def _give_back(self) -> None:
        until = time.monotonic() + LEAVE_SECONDS
        for feed in self._feeds.values():
            feed.live = False
        for feed in self._feeds.values():
            if time.monotonic() > until or not self._is_alive():
                break
            self._unsubscribe(feed)
        self._forget_session()
        self._xtdata.disconnect()

    # -- The calling thread: topics

    def _want(self, topic: Topic, parts: TopicParts) -> None:
        if topic not in self._asked:
            # It was wanted for a moment only, and the calls that it would take would hold up what others want.
            return
        self._wanted[topic] = parts
        if parts.kind is Kind.FORMULA:
            self._new_formulas[topic] = None
        elif self._is_alive():
            self._subscribe(topic, parts)

    def _leave(self, topic: Topic) -> None:
        parts = self._wanted.pop(topic, None)
        self._stuck.discard(topic)
        self._new_formulas.pop(topic, None)
        returning = self._returning.pop(topic, None)
        if returning is not None:
            self._end(returning)
        feed = self._held.pop(topic, None)
        if parts is not None:
            if feed is not None:
                self._release(feed, topic, parts)
            if parts not in self._feeds:
                self._streams.pop(parts, None)

    def _release(self, feed: Feed, topic: Topic, parts: TopicParts) -> None:
        """Let `feed` serve `topic` no more, and end it if that was all."""
        if feed.topic == topic:
            feed.topic = None
        else:
            del feed.quotes[parts.name]
        if feed.topic is None and not feed.quotes:
            self._end(feed)
            if feed.is_market:
                self._streams.pop(feed.parts, None)

    def _subscribe_wanted(self) -> None:
        """Ask for all that is wanted and not held, oldest first, whenever no call waits."""
        self._todo.extend(partial(self._subscribe_again, topic) for topic in self._wanted if topic not in self._held)

    def _subscribe_again(self, topic: Topic) -> None:
        parts = self._wanted.get(topic)
        if parts is not None:
            self._subscribe(topic, parts)

    def _subscribe_formula(self) -> None:
        topic = next(iter(self._new_formulas))
        del self._new_formulas[topic]
        self._subscribe_again(topic)

    def _stream(self, parts: TopicParts, topic: Topic | None = None) -> Stream:
        stream = self._streams.get(parts)
        if stream is None:
            stream = self._streams[parts] = Stream(parts, topic)
        elif topic is not None:
            stream.topic = topic
        return stream

    def _subscribe(self, topic: Topic, parts: TopicParts) -> None:
        try:
            self._hold(topic, parts)
        except Exception as exc:
            # The call fails, and the session goes on; what is not held then is asked for again with what was refused.
            self._sink.refuse(topic, "internal", f"source {self.name} failed: {exc}")
            raise

    def _hold(self, topic: Topic, parts: TopicParts) -> None:
        if topic in self._held:
            return
        if parts.kind is Kind.FORMULA and self._formulas >= MAX_FORMULAS:
            # It is asked for again with what else was refused.
            self._sink.refuse(topic, "symbol_limit", f"{self._formulas} formulas are subscribed, which is the limit")
            return
        stream = self._stream(parts, topic)
        if parts.kind is Kind.QUOTE and parts.detail == "tick" and self._singles >= self._single_limit:
            market = TopicParts(Kind.WHOLE, market_of(parts), "")
            feed = self._feeds.get(market) or Feed(self._stream(market))
            stream.splice = Splice(topic)
            feed.quotes[parts.name] = stream
        else:
            feed = self._feeds.get(parts) or Feed(stream, topic)
        if feed.parts not in self._feeds:
            refusal = self._begin(feed)
            if refusal:
                if self._is_alive():
                    self._sink.refuse(topic, "upstream_refused", refusal)
                return
        elif feed.parts == parts:
            # A market that single ticks are taken out of has brought its snapshot.
            with stream.lock:
                if stream.newest.records:
                    self._sink.publish_whole(topic, stream.newest.records, time.time_ns())
                feed.topic = topic
        if feed.stream is not stream:
            newest = feed.stream.newest.records.get(parts.name)
            if newest is not None:
                self._begin_with(stream, parts.name, newest, _moment())
        self._held[topic] = feed
        self._sink.accept(topic)
        if not stream.newest.records and _is_tick(parts):
            self._await_value(topic, FIRST_SECONDS)

    # -- The calling thread: ticks that begin with the newest known one

    def _begin_with(self, stream: Stream, code: str, tick: Any, moment: Moment) -> None:
        """Publish the tick that the feeder or the terminal knows as the last value, unless there is that or a newer."""
        topic, splice = stream.topic, stream.splice
        if topic is None:
            return
        with stream.lock:
            if not stream.newest.is_new(code, tick) or not stream.newest.admit(code, tick, moment):
                return
            stream.is_filled = True
            if stream.parts.kind is Kind.WHOLE:
                self._sink.publish_whole(topic, {code: tick}, moment.received_ns)
                return
            if splice is not None:
                # So that it is not published a second time if a single subscription brings it.
                splice.from_market(tick)
            self._sink.publish(topic, {code: [tick]}, moment.received_ns)

    def _await_value(self, topic: Topic, pause: float) -> None:
        heapq.heappush(self._empty, (time.monotonic() + pause, next(self._emptied), topic, pause))

    def _ask_values(self, now: float) -> None:
        """Ask the terminal, in one call, for the newest tick of some topics that have brought none."""
        asked: dict[Topic, float] = {}
        while self._empty and self._empty[0][0] <= now and len(asked) < FIRST_CODES:
            _, _, topic, pause = heapq.heappop(self._empty)
            if topic in self._held and not self._streams[self._wanted[topic]].newest.records:
                asked[topic] = pause
        if not asked:
            return
        # Before the call: what is pushed meanwhile is newer.
        moment = _moment()
        try:
            ticks = self._xtdata.get_full_tick(sorted({self._wanted[topic].name for topic in asked}))
            values = normalize.quote(ticks, lambda exc: logger.debug("a last tick cannot be read: %s", exc))
        except Exception as exc:
            logger.debug("last ticks cannot be had: %s", exc)
            values = {}
        for topic, pause in asked.items():
            parts = self._wanted[topic]
            if parts.name in values:
                self._begin_with(self._streams[parts], parts.name, values[parts.name][-1], moment)
            else:
                self._await_value(topic, min(2 * pause, FIRST_LAST))

    def _return_ticks(self, now: float) -> bool:
        """Let ticks that come out of a market go back to single subscriptions while there is room, oldest first.

        1. Subscribe the single one, which brings ticks beside the market. 2. Once each has brought what the other
        did, publish the single one's and no more of the market's. 3. End the market if it serves nothing else.
        At most one is subscribed; return whether there may be more to do at once.
        """
        for topic, feed in list(self._returning.items()):
            splice = feed.splice
            if splice is None or not splice.is_ready(now):
                continue
            with feed.stream.lock:
                for tick, moment in splice.cut():
                    if self._admit(feed.stream, feed.parts.name, tick, moment):
                        self._sink.publish(topic, {feed.parts.name: [tick]}, moment.received_ns)
            del self._returning[topic]
            market, self._held[topic] = self._held[topic], feed
            self._release(market, topic, feed.parts)
        if self._singles >= self._single_limit or now - self._room_since < RETURN_SECONDS:
            return False
        shared = {single.topic: single for feed in self._feeds.values() for single in feed.quotes.values()}
        for topic in self._wanted:
            stream = shared.get(topic)
            if stream is None or stream.splice is None or topic in self._returning or topic in self._stuck:
                continue
            if not self._is_alive():
                return False
            feed = Feed(stream, topic)
            feed.splice = stream.splice
            if refusal := self._begin(feed):
                if self._is_alive():
                    self._stuck.add(topic)
                    logger.warning("%s still comes out of the whole market: %s", topic, refusal)
                # The terminal may allow less than our limit, so one refusal at a time is enough.
                self._room_since = now
                return False
            # Not `now`: the call may have taken its time.
            stream.splice.begin(time.monotonic())
            self._returning[topic] = feed
            return True
        return False

    def _begin(self, feed: Feed) -> str:
        """Subscribe `feed`; return why it is not held, empty if it is."""
        function, arguments = feed.request()
        try:
            if feed.parts.detail == "brokerqueue2" and not self._xtdata.get_hk_broker_dict():
                # Its wrapper would ask for the names in each callback (xtdata.py 1165, 3400).
                raise LookupError("no broker names")
            callback = Callback(feed, self._deliver, self._lose)
            feed.handle = getattr(self._xtdata, function)(**arguments, callback=callback)
        except Exception as exc:
            answer = f"raised {type(exc).__name__}: {exc}"
        else:
            # A formula's request id, or a seq above 0 (doc/xtdata.md 239).
            handle = feed.handle
            if handle if feed.spec is not None else isinstance(handle, int) and handle > 0:
                self._feeds[feed.parts] = feed
                self._singles += feed.is_single
                self._formulas += feed.spec is not None
                return ""
            answer = f"returned {handle!r}"
        feed.live = False
        return f"{feed} {answer}"

    def _end(self, feed: Feed) -> None:
        del self._feeds[feed.parts]
        self._formulas -= feed.spec is not None
        if feed.is_single:
            self._singles -= 1
            if self._singles == self._single_limit - 1:
                self._room_since = time.monotonic()
        self._unsubscribe(feed)

    def _unsubscribe(self, feed: Feed) -> None:
        feed.live = False
        if not self._is_alive():
            return
        try:
            if feed.spec is not None:
                self._xtdata.unsubscribe_formula(feed.handle)
            else:
                self._xtdata.unsubscribe_quote(feed.handle)
        except Exception:
            # The terminal may go on pushing; what it pushes is ignored.
            logger.warning("cannot unsubscribe %s", feed, exc_info=True)
