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
from feeder.silence import MARKETS, SEVERAL, Silence, day_name
from feeder.source import DownloadRequest, Sink
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, formula_spec

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
# Of the two seconds that `close` may take: to give subscriptions back, and to wait for the thread.
LEAVE_SECONDS = 1.5
JOIN_SECONDS = 1.9
# Periods that move while a market trades. How often xtquant pushes an unfinished bar is not documented: longer bars
# may be quiet for their whole length.
_LIVE_PERIODS = frozenset(("tick", "1m", "l2quote", "l2order", "l2transaction"))
# A tick from further in the future than this is wrong about its time.
_FUTURE_MS = 3_600_000


def _live_market(parts: TopicParts) -> str:
    """Return the stock market whose trade keeps `parts` moving; empty if there is none."""
    if parts.kind is Kind.FORMULA or (parts.kind is Kind.QUOTE and parts.detail not in _LIVE_PERIODS):
        return ""
    market = parts.name.rpartition(".")[2]
    return market if market in MARKETS else ""


def _now() -> int:
    return time.time_ns() // 1_000_000


class _Feed:
    """One native subscription, to `parts`, and the topics that it serves."""

    __slots__ = ("handle", "heard", "live", "market", "parts", "quotes", "spec", "topic")

    def __init__(self, parts: TopicParts, topic: Topic | None, quotes: dict[str, Topic]) -> None:
        self.parts = parts
        self.spec = formula_spec(parts) if parts.kind is Kind.FORMULA else None
        # The topic of these very parts; None for a market that only single quotes are taken out of.
        self.topic = topic
        # Those quotes' topics by code. Callbacks read it while the calling thread writes.
        self.quotes = quotes
        # The market whose silence it breaks, and whether it has: set by callbacks, cleared by the calling thread.
        self.market = _live_market(parts)
        self.heard = False
        # What unsubscribes it, on the client that gave it and on no other.
        self.handle: Any = None
        # Cleared when it ends, while xtquant may still be calling back.
        self.live = True

    @property
    def is_single(self) -> bool:
        """Return whether it counts as one instrument's subscription (doc/xtdata.md 194: at most 50)."""
        return self.parts.kind in (Kind.QUOTE, Kind.L2)

    @property
    def code(self) -> str:
        """Return the code, or the market, that it is about."""
        return self.parts.name if self.spec is None else self.spec.stock_code

    def request(self) -> tuple[str, dict[str, Any]]:
        """Return the xtdata function that subscribes it, and its arguments without the callback."""
        name, detail = self.parts.name, self.parts.detail
        if self.spec is not None:
            # xtdata.subscribe_formula wants 'MODEL:PARAM', but reads 'barmode' as it stands.
            model = self.spec.formula_name
            extend_param = {
                param if param == "barmode" or ":" in param else f"{model}:{param}": value
                for param, value in self.spec.params.items()
            }
            return "subscribe_formula", {
                "formula_name": model,
                "stock_code": self.spec.stock_code,
                "period": self.spec.period,
                "count": self.spec.count,
                "dividend_type": self.spec.dividend_type,
                "extend_param": extend_param,
            }
        if self.parts.kind is Kind.WHOLE:
            return "subscribe_whole_quote", {"code_list": [name]}
        if self.parts.kind is Kind.L2:
            return "subscribe_l2thousand", {"stock_code": name, "gear_num": int(detail) or None}
        return "subscribe_quote", {"stock_code": name, "period": detail, "count": 0}

    def __str__(self) -> str:
        function, arguments = self.request()
        return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


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
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="xtquant-calls", daemon=True)
        self._closing = False
        # The wall clock in ms, which trading hours are told by.
        self._now = now
        # The time of the newest tick of each whole-quote subscription. Callbacks write it.
        self._newest: dict[TopicParts, int] = {}
        # Payloads that could not be published, and the kinds of fault already logged. Callbacks write both, at once.
        self.failed = 0
        self._faults: set[tuple[Kind, str, type[Exception]]] = set()
        self._failures = threading.Lock()

        # The rest is the calling thread's. What is wanted outlives a session, refused topics included.
        self._wanted: dict[Topic, TopicParts] = {}
        self._held: dict[Topic, _Feed] = {}
        self._feeds: dict[TopicParts, _Feed] = {}
        self._singles = 0
        self._client: Any = None
        # Counts attempts to connect: what a dead client still tells is not about this one.
        self._session = 0
        self._lost_session = 0
        self._was_connected = False
        self._down_reason: str | None = None
        self._silence = Silence(round(config.xt_silence * 1000))
        self._calendar_day = ""
        self._calendar_fault = ""

    def start(self, sink: Sink) -> None:
        """Import xtquant and begin to connect; raise ImportError where its native modules cannot be imported.

        With a token first wait for the data service; raise `ConfigError` with the reason if it does not open.
        """
        self._sink = sink
        self._xtdata = xtsdk.load()
        self._thread.start()
        if not self._config.xt_token:
            return
        try:
            self._center.result(CENTER_SECONDS)
        except TimeoutError:
            self._closing = True
            raise ConfigError("xt_token", f"the data service has not opened in {CENTER_SECONDS:g} s") from None
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

    def _deliver(self, feed: _Feed, payload: object) -> None:
        received_ns = time.time_ns()
        if not feed.live:
            return
        try:
            self._publish(feed, payload, received_ns)
        except Exception as exc:
            # xtdata's wrapper would print this to stdout.
            self._note_failure(feed, exc)

    def _note_failure(self, feed: _Feed, exc: Exception) -> None:
        fault = (feed.parts.kind, feed.parts.detail, type(exc))
        with self._failures:
            self.failed += 1
            is_new = fault not in self._faults
            self._faults.add(fault)
        if is_new:
            logger.error("payload of %s cannot be published", feed, exc_info=exc)

    def _publish(self, feed: _Feed, payload: object, received_ns: int) -> None:
        topic = feed.topic
        if feed.parts.kind is Kind.WHOLE:
            for ticks in normalize.whole(payload):
                if feed.market and not feed.heard:
                    feed.heard = self._is_news(feed.parts, ticks, received_ns)
                if topic is not None:
                    self._sink.publish_whole(topic, ticks, received_ns)
                if feed.quotes:
                    for code, tick in ticks.items():
                        single = feed.quotes.get(code)
                        if single is not None:
                            self._sink.publish(single, {code: [tick]}, received_ns)
        elif topic is not None:
            if feed.spec is None:
                quote = normalize.quote(payload)
                if quote:
                    feed.heard = True
                    self._sink.publish(topic, quote, received_ns)
            else:
                body = {
                    "formula_name": feed.spec.formula_name,
                    "stock_code": feed.spec.stock_code,
                    "data": normalize.document(payload),
                }
                self._sink.publish(topic, body, received_ns)

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
            self._silence.reset()
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
            if self._silence.stale:
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
                listen = time.monotonic() + WATCH_SECONDS
            self._call_next(WATCH_SECONDS)
            if time.monotonic() >= ask_again:
                self._subscribe_wanted()
                ask_again = time.monotonic() + REFUSED_SECONDS
        return "terminal_disconnected"

    def _listen(self) -> bool:
        """Look for markets that say nothing although they trade; return whether the session may go on."""
        wanted, heard = self._listened()
        now = self._now()
        if wanted:
            self._learn_holidays(day_name(now))
        action = self._silence.check(now, wanted, heard)
        if action == "none":
            return True
        if action == "recovered":
            logger.info("silence is over")
            self._sink.set_state("up", data_lost=True)
            return True
        logger.warning(
            "nothing came from %s while it trades; %s; %d more tries today",
            ", ".join(sorted(self._silence.stale)),
            {"resubscribe": "subscribing again", "reconnect": "connecting again"}.get(action, "waiting"),
            self._silence.left,
        )
        if action == "reconnect":
            return False
        self._sink.set_state("stale", "market_silent")
        if action == "resubscribe":
            self._begin_anew(self._silence.stale)
        return True

    def _listened(self) -> tuple[dict[str, int], set[str]]:
        """Return how many codes of each market should be heard, and the markets that were since the last call."""
        codes: dict[str, set[str]] = {}
        for topic, parts in self._wanted.items():
            market = _live_market(parts)
            # What was refused is silent by right, unless it was held before the market fell silent.
            if market and (topic in self._held or market in self._silence.stale):
                ticking = codes.setdefault(market, set())
                # Minute bars may come but once a minute, so they count for none.
                if parts.detail != "1m":
                    ticking.add(parts.name)
        heard = set()
        for feed in self._feeds.values():
            if feed.heard:
                feed.heard = False
                heard.add(feed.market)
        return {market: SEVERAL if market in names else len(names) for market, names in codes.items()}, heard

    def _learn_holidays(self, today: str) -> None:
        """Ask xtquant for its calendar once a day; without one every weekday is taken for a trading day."""
        if today == self._calendar_day:
            return
        fault = ""
        try:
            # What xtdata.get_trading_calendar does (xtdata.py 2159), which compares holidays with this machine's
            # midnights and so finds none where the clock is not Shanghai's.
            self._xtdata.download_holiday_data()
            holidays = frozenset(self._xtdata.get_holidays())
            if any(day.startswith(today[:4]) for day in holidays):
                self._silence.holidays = holidays
            else:
                fault = f"the terminal has no holidays of {today[:4]}"
        except Exception as exc:
            if not self._is_alive():
                return
            fault = f"{type(exc).__name__}: {exc}"
        self._calendar_day = today
        if fault and not self._calendar_fault:
            logger.warning("no trading calendar, so every weekday is taken for a trading day: %s", fault)
        self._calendar_fault = fault

    def _begin_anew(self, markets: frozenset[str]) -> None:
        """Give back all subscriptions of `markets`, longer bars and formulas included, and subscribe what is wanted."""
        old = [feed for feed in self._feeds.values() if feed.code.rpartition(".")[2] in markets]
        self._held = {topic: feed for topic, feed in self._held.items() if feed not in old}
        for feed in old:
            del self._feeds[feed.parts]
            self._singles -= feed.is_single
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
            self._end(feed)
        self._forget_session()
        self._xtdata.disconnect()

    # -- The calling thread: topics

    def _want(self, topic: Topic, parts: TopicParts) -> None:
        self._wanted[topic] = parts
        if self._is_alive():
            self._subscribe(topic, parts)

    def _leave(self, topic: Topic) -> None:
        parts = self._wanted.pop(topic, None)
        feed = self._held.pop(topic, None)
        if parts is None or feed is None:
            return
        if feed.topic == topic:
            feed.topic = None
        else:
            del feed.quotes[parts.name]
        if feed.topic is None and not feed.quotes:
            del self._feeds[feed.parts]
            self._singles -= feed.is_single
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
            market = TopicParts(Kind.WHOLE, parts.name.rpartition(".")[2], "")
            feed, replaced = _Feed(market, None, {parts.name: topic}), None
            shared = self._feeds.get(market)
            if shared is not None:
                shared.quotes[parts.name] = topic
                self._held[topic] = shared
                self._sink.accept(topic)
                return
        else:
            # A market that only single quotes were taken out of begins anew, for the snapshot that it owes.
            replaced = self._feeds.get(parts)
            feed = _Feed(parts, topic, {} if replaced is None else replaced.quotes)
        if not self._begin(feed, topic):
            return
        if replaced is not None:
            self._end(replaced)
        self._feeds[feed.parts] = feed
        self._singles += feed.is_single
        for served in (topic, *feed.quotes.values()):
            self._held[served] = feed
        self._sink.accept(topic)

    def _begin(self, feed: _Feed, topic: Topic) -> bool:
        """Subscribe `feed` for `topic`; return whether it is held. A lost connection is no refusal."""
        function, arguments = feed.request()
        try:
            if feed.parts.detail == "brokerqueue2" and not self._xtdata.get_hk_broker_dict():
                # Its wrapper would ask for the names in each callback (xtdata.py 1165, 3400).
                raise LookupError("no broker names")
            feed.handle = getattr(self._xtdata, function)(**arguments, callback=partial(self._deliver, feed))
        except Exception as exc:
            answer = f"raised {type(exc).__name__}: {exc}"
        else:
            # A formula's request id, or a seq above 0 (doc/xtdata.md 239).
            handle = feed.handle
            if handle if feed.spec is not None else isinstance(handle, int) and handle > 0:
                return True
            answer = f"returned {handle!r}"
        feed.live = False
        if self._is_alive():
            self._sink.refuse(topic, "upstream_refused", f"{feed} {answer}")
        return False

    def _end(self, feed: _Feed) -> None:
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
