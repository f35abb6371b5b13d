"""The xtquant quote session: ticks, bars, whole markets, depth and formulas.

The thread `xtquant-calls` makes every xtdata call: xtdata has one client a process and no lock. xtquant's own threads,
several at once, call back: they stamp, convert, hand over to the sink and return. Nobody calls xtdata in a callback or
while the terminal is away: each function begins with `get_client()`, which would replace the client in silence and
lose every subscription with it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from feeder import normalize, xtcenter, xtsdk
from feeder.source import DownloadRequest, Sink
from feeder.splice import Splice
from feeder.xtfeed import Callback, Feed, market_of
from feeder.xtlistener import Listener
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
# A tick from further in the future than this is wrong about its time.
_FUTURE_MS = 3_600_000


def _now() -> int:
    return time.time_ns() // 1_000_000


class XtQuote:
    """The source ``xtquant``: live quotes of the terminal at `config.xt_addr`."""

    name = "xtquant"
    simulated = False
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA))
    lossless = False

    def __init__(self, config: Config, now: Callable[[], int] = _now) -> None:
        self._host, self._port = xtsdk.parse_address(config.xt_addr)
        xtcenter.check(config)
        self._config = config
        # Done once the data service is open, where there is a token for it.
        self._center: Future[None] = Future()
        self._single_limit = config.xt_single_limit
        self._sink: Sink
        self._xtdata: Any
        self._listener: Listener
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="xtquant-calls", daemon=True)
        self._closing = False
        # The wall clock in ms, which trading hours are told by.
        self._now = now
        # The time of the newest tick of each whole-quote subscription. Callbacks write it.
        self._newest: dict[TopicParts, int] = {}
        # Of several callbacks, and the calling thread, one at a time takes a tick out of a market or adds to its ticks.
        self._passing = threading.Lock()
        # Data that could not be published, and the kinds of fault already logged. Callbacks write both, at once.
        self.failed = 0
        self._faults: set[tuple[Kind, str, type[Exception]]] = set()
        self._failures = threading.Lock()

        # The rest is the calling thread's. What is wanted outlives a session, refused topics included.
        self._wanted: dict[Topic, TopicParts] = {}
        self._held: dict[Topic, Feed] = {}
        self._feeds: dict[TopicParts, Feed] = {}
        self._singles = 0
        # Single subscriptions that bring ticks beside the market that still serves them.
        self._returning: dict[Topic, Feed] = {}
        # Since when there has been room for more, and which ticks were refused it.
        self._room_since = 0.0
        self._stuck: set[Topic] = set()
        self._client: Any = None
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
        self._xtdata = xtsdk.load()
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
        self._calls.put(partial(self._want, topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Want `topic` no more."""
        self._calls.put(partial(self._leave, topic))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Raise `Refused`: as `kinds` says, there are no downloads here."""
        raise Refused("upstream_refused", f"source {self.name} does not serve {Kind.DOWNLOAD}")

    def upstream(self) -> int:
        """Return how many native subscriptions are held."""
        return len(self._feeds)

    def close(self) -> None:
        """Give subscriptions back and stop within two seconds; a call that hangs in xtquant is left behind."""
        self._closing = True
        self._wake()
        if self._thread.is_alive():
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
        received_ns = time.time_ns()
        if not feed.live:
            return
        try:
            self._publish(feed, payload, received_ns)
        except Exception as exc:
            # xtdata's wrapper would print this to stdout.
            self._note_failure(feed, exc)

    def _note_failure(self, feed: Feed, exc: Exception) -> None:
        fault = (feed.parts.kind, feed.parts.detail, type(exc))
        with self._failures:
            self.failed += 1
            is_new = fault not in self._faults
            self._faults.add(fault)
        if is_new:
            logger.error("data of %s cannot be published", feed, exc_info=exc)

    def _publish(self, feed: Feed, payload: object, received_ns: int) -> None:
        unfit = partial(self._note_failure, feed)
        if feed.parts.kind is Kind.WHOLE:
            for ticks in normalize.whole(payload, unfit):
                self._publish_whole(feed, ticks, received_ns)
        elif feed.topic is not None:
            if feed.spec is None:
                quote = normalize.quote(payload, unfit)
                if quote:
                    feed.heard = True
                    self._publish_quote(feed, feed.topic, quote, received_ns)
            else:
                body = {
                    "formula_name": feed.spec.formula_name,
                    "stock_code": feed.spec.stock_code,
                    "data": normalize.document(payload),
                }
                self._sink.publish(feed.topic, body, received_ns)

    def _publish_whole(self, feed: Feed, ticks: dict[str, Any], received_ns: int) -> None:
        if not feed.heard:
            feed.heard = self._is_news(feed.parts, ticks, received_ns)
        topic = feed.topic
        if feed.is_market:
            with self._passing:
                # A topic that begins after this finds the ticks among those of the market, else it gets them here.
                feed.ticks.update(ticks)
                topic = feed.topic
        if topic is not None:
            self._sink.publish_whole(topic, ticks, received_ns)
        if feed.quotes:
            for code, tick in ticks.items():
                splice = feed.quotes.get(code)
                if splice is not None:
                    with self._passing:
                        if splice.from_market(tick):
                            self._sink.publish(splice.topic, {code: [tick]}, received_ns)

    def _publish_quote(self, feed: Feed, topic: Topic, quote: dict[str, list[Any]], received_ns: int) -> None:
        splice = feed.splice
        if splice is None:
            self._sink.publish(topic, quote, received_ns)
            return
        for code, ticks in quote.items():
            # Published inside, so that no older tick of the market's can come after it.
            with self._passing:
                ticks = [tick for tick in ticks if splice.from_single(tick, received_ns)]
                if ticks:
                    self._sink.publish(topic, {code: ticks}, received_ns)

    def _is_news(self, parts: TopicParts, ticks: Mapping[str, Any], received_ns: int) -> bool:
        """Return whether there is a newer tick than ever: what begins a subscription is a snapshot, however old."""
        limit = received_ns // 1_000_000 + _FUTURE_MS
        times = (tick.get("time") for tick in ticks.values() if isinstance(tick, Mapping))
        newest = max((time for time in times if isinstance(time, int) and time < limit), default=0)
        if newest <= self._newest.get(parts, 0):
            return False
        self._newest[parts] = newest
        return True

    # -- The calling thread: the session

    def _run(self) -> None:
        if self._config.xt_token:
            try:
                self._host, self._port = xtcenter.open_center(self._config)
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
                xtcenter.close_center()
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
            self._client = self._xtdata.reconnect(self._host, self._port)
        except Exception as exc:
            logger.debug("cannot connect to the terminal: %s", exc)
            return "terminal_disconnected" if self._was_connected else "terminal_unreachable"
        data_lost, self._was_connected = self._was_connected, True
        self._subscribe_wanted()
        if not self._closing and self._is_alive():
            self._down_reason = None
            logger.info("connected to the terminal at %s:%d", self._host, self._port)
            if self._listener.stale:
                # Being connected is not what was missing.
                self._sink.set_state("stale", "market_silent")
            else:
                self._sink.set_state("up", data_lost=data_lost)
        return None

    def _serve(self) -> str | None:
        """Make the calls that come until the session ends; return why, or None to connect anew at once."""
        ask_again = time.monotonic() + REFUSED_SECONDS
        listen = time.monotonic() + WATCH_SECONDS
        while not self._closing and self._is_alive():
            if time.monotonic() >= listen:
                if not self._listen():
                    return None
                self._return_ticks(time.monotonic())
                listen = time.monotonic() + WATCH_SECONDS
            self._call_next(WATCH_SECONDS)
            if time.monotonic() >= ask_again:
                self._stuck.clear()
                self._subscribe_wanted()
                ask_again = time.monotonic() + REFUSED_SECONDS
        return "terminal_disconnected"

    def _listen(self) -> bool:
        """Do what silence asks for; return whether the session may go on."""
        action = self._listener.listen(self._wanted, self._held, self._feeds)
        if action == "reconnect":
            if not self._listener.stale:
                self._sink.set_state("stale", "market_silent")
            return False
        if action in ("recovered", "closed"):
            self._sink.set_state("up", data_lost=True)
        elif action in ("stale", "resubscribe"):
            self._sink.set_state("stale", "market_silent")
            if action == "resubscribe":
                self._begin_anew(self._listener.stale)
        return True

    def _begin_anew(self, markets: frozenset[str]) -> None:
        """Give back all subscriptions of `markets`, longer bars and formulas included, and subscribe what is wanted."""
        old = [feed for feed in self._feeds.values() if feed.market in markets]
        self._held = {topic: feed for topic, feed in self._held.items() if feed not in old}
        self._returning = {topic: feed for topic, feed in self._returning.items() if feed not in old}
        for feed in old:
            self._end(feed)
        self._subscribe_wanted()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._call_next(left)

    def _call_next(self, timeout: float) -> None:
        try:
            call = self._calls.get(timeout=timeout)
        except queue.Empty:
            return
        call()

    def _is_alive(self) -> bool:
        """Return whether our client is connected: the gate before each xtdata call, and the check after it."""
        if self._client is None or self._lost_session == self._session or not self._client.is_connected():
            return False
        try:
            # A call that met a lost connection has put a client of its own in the place of ours.
            return bool(self._xtdata.get_client() is self._client)
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
        self._singles = 0
        self._client = None

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
        self._wanted[topic] = parts
        if self._is_alive():
            self._subscribe(topic, parts)

    def _leave(self, topic: Topic) -> None:
        parts = self._wanted.pop(topic, None)
        self._stuck.discard(topic)
        returning = self._returning.pop(topic, None)
        if returning is not None:
            self._end(returning)
        feed = self._held.pop(topic, None)
        if parts is not None and feed is not None:
            self._release(feed, topic, parts)

    def _release(self, feed: Feed, topic: Topic, parts: TopicParts) -> None:
        """Let `feed` serve `topic` no more, and end it if that was all."""
        if feed.topic == topic:
            feed.topic = None
        else:
            del feed.quotes[parts.name]
        if feed.topic is None and not feed.quotes:
            self._end(feed)

    def _subscribe_wanted(self) -> None:
        for topic, parts in self._wanted.items():
            if self._closing or not self._is_alive():
                return
            self._subscribe(topic, parts)

    def _subscribe(self, topic: Topic, parts: TopicParts) -> None:
        if topic in self._held:
            return
        if parts.kind is Kind.QUOTE and parts.detail == "tick" and self._singles >= self._single_limit:
            market = TopicParts(Kind.WHOLE, market_of(parts), "")
            feed = self._feeds.get(market) or Feed(market)
            feed.quotes[parts.name] = Splice(topic)
        else:
            feed = self._feeds.get(parts) or Feed(parts, topic)
        if feed.parts not in self._feeds:
            refusal = self._begin(feed)
            if refusal:
                if self._is_alive():
                    self._sink.refuse(topic, "upstream_refused", refusal)
                return
        elif feed.parts == parts:
            # A market that single ticks are taken out of has brought its snapshot.
            with self._passing:
                if feed.ticks:
                    self._sink.publish_whole(topic, feed.ticks, time.time_ns())
                feed.topic = topic
        self._held[topic] = feed
        self._sink.accept(topic)

    def _return_ticks(self, now: float) -> None:
        """Let ticks that come out of a market go back to single subscriptions while there is room, oldest first.

        1. Subscribe the single one, which brings ticks beside the market. 2. Once each has brought what the other
        did, publish the single one's and no more of the market's. 3. End the market if it serves nothing else.
        """
        for topic, feed in list(self._returning.items()):
            splice = feed.splice
            if splice is None or not splice.is_ready(now):
                continue
            with self._passing:
                for tick, received_ns in splice.cut():
                    self._sink.publish(topic, {feed.parts.name: [tick]}, received_ns)
            del self._returning[topic]
            market, self._held[topic] = self._held[topic], feed
            self._release(market, topic, feed.parts)
        if self._singles >= self._single_limit or now - self._room_since < RETURN_SECONDS:
            return
        shared = {splice.topic: feed for feed in self._feeds.values() for splice in feed.quotes.values()}
        for topic in [topic for topic in self._wanted if topic in shared]:
            if topic in self._returning or topic in self._stuck:
                continue
            if self._singles >= self._single_limit or not self._is_alive():
                return
            parts = self._wanted[topic]
            feed = Feed(parts, topic)
            splice = feed.splice = shared[topic].quotes[parts.name]
            if refusal := self._begin(feed):
                if self._is_alive():
                    self._stuck.add(topic)
                    logger.warning("%s still comes out of the whole market: %s", topic, refusal)
                # The terminal may allow less than our limit, so one refusal at a time is enough.
                self._room_since = now
                return
            # Not `now`: the call may have taken its time.
            splice.begin(time.monotonic())
            self._returning[topic] = feed

    def _begin(self, feed: Feed) -> str:
        """Subscribe `feed`; return why it is not held, empty if it is."""
        function, arguments = feed.request()
        try:
            if feed.parts.detail == "brokerqueue2" and not self._xtdata.get_hk_broker_dict():
                # Its wrapper would ask for the names in each callback (xtdata.py 1165, 3400).
                raise LookupError("no broker names")
            callback = Callback(feed, self._deliver, self._note_failure)
            feed.handle = getattr(self._xtdata, function)(**arguments, callback=callback)
        except Exception as exc:
            answer = f"raised {type(exc).__name__}: {exc}"
        else:
            # A formula's request id, or a seq above 0 (doc/xtdata.md 239).
            handle = feed.handle
            if handle if feed.spec is not None else isinstance(handle, int) and handle > 0:
                self._feeds[feed.parts] = feed
                self._singles += feed.is_single
                return ""
            answer = f"returned {handle!r}"
        feed.live = False
        return f"{feed} {answer}"

    def _end(self, feed: Feed) -> None:
        del self._feeds[feed.parts]
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
