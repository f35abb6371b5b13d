"""The source ``xtquant``: quotes, trade events and downloads of one terminal, each with a session of its own.

A failure of one does not stop the others. The source has no thread of its own, except one to start a trade session that
could not be started at first.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from feeder.source import DownloadRequest, Health, Sink
from feeder.xt.download import XtDownload
from feeder.xt.history import XtHistory
from feeder.xt.quotes.session import XtQuote
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

if TYPE_CHECKING:
    from feeder.xt.trading.session import XtTrade

logger = logging.getLogger(__name__)

# Part of the two seconds that `close` may take; each part of the source takes a little less.
CLOSE_SECONDS = 1.95
# The pause between two attempts to start the trade session.
RETRY_FIRST = 1.0
RETRY_LAST = 60.0


class XtSource:
    """All data of the terminal at `config.xt_addr`."""

    protocol = 1
    name = "xtquant"
    simulated = False
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA, Kind.DOWNLOAD, Kind.TRADE))
    lossless = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self._quote = XtQuote(config)
        self._download = XtDownload(config)
        self._history = XtHistory(config)
        self._trade: XtTrade | None = None
        self._closing = threading.Event()
        if config.xt_accounts:
            # Market data needs no part of xtquant's trading.
            from feeder.xt.trading.session import XtTrade

            self._trade = XtTrade(config)

    def start(self, sink: Sink) -> None:
        """Start the parts; raise ImportError where xtquant's native modules cannot be imported."""
        self._quote.start(sink)
        if self._config.xt_token:
            # Downloads and histories use the data service too, and its port is known only now.
            service = msgspec.structs.replace(self._config, xt_addr=self._quote.address)
            self._download, self._history = XtDownload(service), XtHistory(service)
        self._download.start(sink)
        self._history.start(sink)
        if self._trade is None:
            logger.info("no accounts are set: market data only, no trade events")
            return
        if not self._start_trade(self._trade, sink, logging.ERROR):
            # Make the next attempts on a thread: the caller, and with it the quotes, wait for `start`.
            threading.Thread(
                target=self._start_later, args=(self._trade, sink), name="xtquant-trade-start", daemon=True
            ).start()

    def _start_later(self, trade: XtTrade, sink: Sink) -> None:
        delay = RETRY_FIRST
        while not self._closing.wait(delay) and not self._start_trade(trade, sink, logging.DEBUG):
            delay = min(2 * delay, RETRY_LAST)

    def _start_trade(self, trade: XtTrade, sink: Sink, level: int) -> bool:
        try:
            trade.start(sink)
        except Exception as exc:
            logger.log(level, "trade session cannot be started; market data only, trying again", exc_info=True)
            trade.note_no_start(sink, exc)
            return False
        if level < logging.ERROR:
            logger.info("trade session is started")
        return True

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic` (see `Source`)."""
        self._quote.subscribe(topic, parts)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`; cancel it if it is a download."""
        if parts.kind is Kind.DOWNLOAD:
            self._download.cancel(topic)
        else:
            self._quote.unsubscribe(topic, parts)

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Download history (see `Source`)."""
        self._quote.capabilities.require("downloads")
        self._download.download(topic, request)

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Find the ticks of a code (see `Source`); raise `Refused` for anything else."""
        if parts.detail != "tick":
            raise Refused("unsupported_period", f"only ticks have a history that can be joined, not {parts.detail}")
        self._quote.capabilities.require("downloads")
        self._quote.capabilities.require("history")
        self._history.history(number, parts.name, day_ms)

    def capabilities(self) -> dict[str, str]:
        """Return what the installed xtquant lacks for each capability (see `Source`)."""
        return self._quote.capabilities.table()

    def upstream(self) -> int:
        """Return how many subscriptions the terminal serves."""
        return self._quote.upstream()

    def hung(self) -> str | None:
        """Return which call does not return. Those that downloads and old trade sessions left behind do not count."""
        return self._quote.hung() or (None if self._trade is None else self._trade.hung())

    def health(self) -> Health:
        """Return the version of xtquant, and which call of xtdata runs (see `Source`)."""
        health = self._quote.health()
        if self._trade is None:
            return health
        return health._replace(times={**health.times, **self._trade.times.shown()})

    def close(self) -> None:
        """Close the parts, all at once, within two seconds."""
        self._closing.set()
        parts = [part for part in (self._download, self._history, self._trade, self._quote) if part is not None]
        threads = [threading.Thread(target=_close, args=(part,), daemon=True) for part in parts]
        until = time.monotonic() + CLOSE_SECONDS
        for thread in threads:
            thread.start()
        for part, thread in zip(parts, threads, strict=True):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s does not close; it is left behind", type(part).__name__)


def _close(part: XtQuote | XtDownload | XtHistory | XtTrade) -> None:
    try:
        part.close()
    except Exception:
        logger.exception("%s cannot be closed", type(part).__name__)
