"""The xtquant quote session: ticks, bars, whole markets, depth and formulas.

The thread `xtquant-calls` makes every call of xtdata, because xtdata has one client per process and no lock. Callbacks
run on several threads of xtquant at the same time: they take the time, convert the data, hand it to the sink and return
(see `Callbacks`). xtdata is never called in a callback, nor while there is no connection to the terminal (see
`QuoteClient`). The thread that calls `hung` notices a call that does not return.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from feeder.source import DownloadRequest, Health, Sink
from feeder.xt import center, sdk
from feeder.xt.calls import Calls
from feeder.xt.capabilities import Capabilities, capability_of
from feeder.xt.quotes import intervals
from feeder.xt.quotes.callbacks import Callbacks
from feeder.xt.quotes.client import QuoteClient
from feeder.xt.quotes.last_values import LastValues
from feeder.xt.quotes.returns import Returns
from feeder.xt.quotes.subscriptions import Subscriptions
from feeder.xt.quotes.topic_table import TopicTable
from feeder.xt.quotes.watchdog import Watchdog
from feeder.xt.quotes.work import Work
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused, Unavailable
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

logger = logging.getLogger(__name__)


def _now() -> int:
    return time.time_ns() // 1_000_000


class XtQuote:
    """The source ``xtquant``: live quotes of the terminal at `config.xt_addr`."""

    name = "xtquant"
    simulated = False
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA))
    lossless = False

    def __init__(self, config: Config, now: Callable[[], int] = _now) -> None:
        """Raise `ConfigError` if an address or a setting of the data service is wrong; `now` returns ms since 1970."""
        self._host, self._port = sdk.parse_address(config.xt_addr)
        center.check(config)
        self._config = config
        # Done once the data service is open; used only if there is a token for it.
        self._center: Future[None] = Future()
        self._single_limit = config.xt_single_limit
        # Which call the calling thread makes now.
        self._running = Calls(config.xt_hang)
        self._work = Work(self._running)
        self._table = TopicTable()
        self._callbacks = Callbacks()
        self.capabilities = Capabilities()
        self._sink: Sink
        self._watchdog: Watchdog
        self._quote_client: QuoteClient
        self._values: LastValues
        self._subscriptions: Subscriptions
        self._returns: Returns
        # The topics that are subscribed at this moment. A queued call may be about a topic that was unsubscribed after
        # it. The publisher's thread writes this set.
        self._asked: set[Topic] = set()
        self._thread = threading.Thread(target=self._run, name="xtquant-calls", daemon=True)
        self._closing = False
        # The wall clock (ms since 1970), for trading hours.
        self._now = now

        # Only the calling thread uses the rest.
        # While the first subscriptions of a session are made: whether data was lost before the session. Otherwise None.
        self._arriving: bool | None = None
        self._was_connected = False
        self._down_reason: str | None = None
        # When to check the connection, and when to try refused subscriptions again (s, monotonic).
        self._watch_at = 0.0
        self._ask_again_at = 0.0
        # Whether there may be ticks that can return to single subscriptions now.
        self._may_return = True

    def start(self, sink: Sink) -> None:
        """Import xtquant and begin to connect; raise ImportError where its native modules cannot be imported.

        With a token, first wait for the data service. If it does not open, raise `ConfigError` with the reason, or
        `Unavailable` if the cause may be temporary.
        """
        self._sink = self._callbacks.sink = sink
        table, callbacks, work = self._table, self._callbacks, self._work
        xtdata = sdk.load()
        self._quote_client = client = QuoteClient(xtdata, self.capabilities, self._running, work.wake)
        self._watchdog = Watchdog(client.xtdata, self._config.xt_silence, self._now, client.is_alive)
        self._values = LastValues(table, client, callbacks)
        self._subscriptions = Subscriptions(
            self.name, self._single_limit, table, client, callbacks, self._values, work, sink
        )
        self._returns = Returns(table, self._subscriptions, client, callbacks, sink)
        if missing := self.capabilities.lack("connection"):
            logger.error("no market data: %s", missing)
            sink.set_state("refused", f"unsupported_sdk: {missing}")
            return
        if self._config.xt_token and (missing := self.capabilities.lack("data service")):
            raise ConfigError("xt_token", missing)
        self._thread.start()
        if not self._config.xt_token:
            return
        try:
            self._center.result(intervals.CENTER_SECONDS)
        except TimeoutError:
            self._closing = True
            reason = f"the data service has not opened in {intervals.CENTER_SECONDS:g} s"
            raise Unavailable("xt_token", reason) from None
        except ConfigError as exc:
            logger.error("the data service cannot be opened: %s", exc.reason)
            raise

    @property
    def address(self) -> str:
        """Return the "host:port" of the terminal, or with a token that of the data service, once started."""
        return f"{self._host}:{self._port}"

    @property
    def failed(self) -> int:
        """Return how many pushes and records could not be published."""
        return self._callbacks.failed

    @property
    def overtaken(self) -> int:
        """Return how many records were dropped because a newer one was already published."""
        return self._callbacks.overtaken

    @property
    def failed_calls(self) -> int:
        """Return how many queued calls ended in an exception."""
        return self._work.failed

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic`: subscribe it at once, or as soon as there is a connection to the terminal.

        Raise `Refused` if this version of xtquant cannot serve it.
        """
        self.capabilities.require("connection")
        self.capabilities.require(capability_of(parts))
        self._asked.add(topic)
        self._work.put(partial(self._want, topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`."""
        self._asked.discard(topic)
        self._work.put(partial(self._leave, topic))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Raise `Refused`: this source has no downloads (see `kinds`)."""
        raise Refused("upstream_refused", f"source {self.name} does not serve {Kind.DOWNLOAD}")

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Raise `Refused`: this source has no histories (see `XtSource`)."""
        raise Refused("upstream_refused", f"source {self.name} has no history")

    def upstream(self) -> int:
        """Return how many subscriptions the terminal serves."""
        return len(self._table.native)

    def hung(self) -> str | None:
        """Return which call into xtquant has not returned for `config.xt_hang` seconds (see `Source`)."""
        if self._closing or self._thread.ident is None:
            return None
        if not self._thread.is_alive():
            return "the thread that calls xtquant has ended"
        return self._running.hung(time.monotonic())

    def health(self) -> Health:
        """Return the version of xtquant, which of its calls runs, and what its calendar says (see `Source`)."""
        call, age = self._running.under_way() or (None, 0.0)
        return Health(self.capabilities.version, call, age, self._watchdog.trades_today(), self._running.times.shown())

    def close(self) -> None:
        """Unsubscribe and stop within two seconds. A call that hangs in xtquant is left on its daemon thread."""
        is_hung = self.hung() is not None
        self._closing = True
        self._work.wake()
        if self._thread.is_alive():
            if not is_hung:
                self._thread.join(intervals.JOIN_SECONDS)
            if self._thread.is_alive():
                logger.warning("an xtquant call still runs; its thread is left behind")

    # -- The calling thread

    def _want(self, topic: Topic, parts: TopicParts) -> None:
        # Make no call for a topic that was unsubscribed meanwhile: it would delay the topics after it.
        if topic in self._asked:
            self._subscriptions.want(topic, parts)

    def _leave(self, topic: Topic) -> None:
        self._subscriptions.leave(topic)

    def _run(self) -> None:
        if self._config.xt_token and not self._open_center():
            return
        delay = intervals.RETRY_FIRST
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
            self._watchdog.forget()
            self._tell_down(reason)
            if time.monotonic() - began > intervals.RETRY_LAST:
                delay = intervals.RETRY_FIRST
            self._wait(delay)
            delay = min(2 * delay, intervals.RETRY_LAST)
        self._end()

    def _open_center(self) -> bool:
        try:
            self._host, self._port = center.open_center(self._config)
        except Exception as exc:
            self._center.set_exception(exc)
            return False
        self._center.set_result(None)
        return True

    def _end(self) -> None:
        try:
            self._subscriptions.give_back()
            self._quote_client.disconnect()
            self._forget_session()
            if self._config.xt_token:
                center.close_center()
        except Exception:
            logger.exception("xtquant session could not be ended")

    def _connect(self) -> str | None:
        """Connect, and queue the subscriptions of all topics; return why there is no connection, or None."""
        if not self._quote_client.connect(self._host, self._port):
            return "terminal_disconnected" if self._was_connected else "terminal_unreachable"
        self._arriving, self._was_connected = self._was_connected, True
        self._subscriptions.subscribe_wanted()
        return None

    def _serve(self) -> str | None:
        """Do the session's work until it ends; return why it ended, or None to connect again at once."""
        self._ask_again_at = time.monotonic() + intervals.REFUSED_SECONDS
        self._watch_at = time.monotonic() + intervals.WATCH_SECONDS
        self._may_return = True
        while not self._closing and self._quote_client.is_alive():
            if self._arriving is not None and not self._work.pieces:
                self._arrive(self._arriving)
            now = time.monotonic()
            if now >= self._watch_at:
                if not self._watch():
                    return None
                self._may_return = True
                self._watch_at = time.monotonic() + intervals.WATCH_SECONDS
            if now >= self._ask_again_at and not self._work.pieces:
                self._subscriptions.stuck.clear()
                self._subscriptions.subscribe_wanted()
                self._ask_again_at = time.monotonic() + intervals.REFUSED_SECONDS
            self._do_next(now)
        return "terminal_disconnected"

    def _do_next(self, now: float) -> None:
        """Do one call of the feeder; if there is none, do one piece of background work."""
        work = self._work
        has_values = self._values.is_due(now)
        has_others = bool(work.pieces or has_values or self._may_return)
        if work.do_calls_first(0.0 if has_others or work.formulas else intervals.WATCH_SECONDS):
            return
        formula = work.next_formula(has_others)
        if formula is not None:
            work.do(partial(self._subscriptions.subscribe_again, formula))
        elif work.pieces:
            work.do(work.pieces.popleft())
            if not work.pieces:
                # Counted from the end: a pass may take longer than the pause.
                self._ask_again_at = time.monotonic() + intervals.REFUSED_SECONDS
        elif has_values:
            self._values.ask(now)
        elif self._may_return:
            self._may_return = self._returns.step(now)

    def _arrive(self, data_lost: bool) -> None:
        """Report the session as up, once every topic has been subscribed or refused."""
        self._arriving = None
        self._down_reason = None
        logger.info("connected to the terminal at %s:%d", self._host, self._port)
        if self._watchdog.stale:
            # A new connection does not end a silence; only data does.
            self._sink.set_state("stale", "market_silent")
        else:
            self._sink.set_state("up", data_lost=data_lost)

    def _watch(self) -> bool:
        """Do what the watchdog advises; return False if a new session is needed."""
        table = self._table
        action, silent = self._watchdog.look(table.wanted, table.held, table.native)
        if action == "reconnect":
            if not self._watchdog.stale:
                self._sink.set_state("stale", "market_silent")
            return False
        # While the first subscriptions are made, `_arrive` will report the state.
        if self._arriving is None:
            if action in ("recovered", "closed"):
                self._sink.set_state("up", data_lost=True)
            elif action in ("stale", "resubscribe"):
                self._sink.set_state("stale", "market_silent")
        self._work.pieces.extend(partial(self._subscriptions.renew, subscription) for subscription in silent)
        return True

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._work.do_call(left)

    def _forget_session(self) -> None:
        self._subscriptions.forget()
        self._work.forget()
        self._values.forget()
        self._arriving = None
        self._quote_client.forget()

    def _tell_down(self, reason: str) -> None:
        if reason != self._down_reason:
            self._down_reason = reason
            logger.warning("%s at %s:%d; trying again", reason, self._host, self._port)
            self._sink.set_state("down", reason)
