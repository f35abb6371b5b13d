"""A source as the feeder calls it: a call that raises costs that call alone, and one that does not return is known.

The feeder relies on what `Source` says, and a source may be of another package. Here is what follows where it does not
do that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from feeder.refusals import Refusals
from feeder.source import DownloadRequest, Health, Sink, Source
from feeder.sources.said import plain
from qmt_bridge.errors import ERROR_CODES, Refused
from qmt_bridge.system import clock
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

logger = logging.getLogger(__name__)

# Seconds after which a call that must return at once is logged: all topics of all clients have waited for it.
SLOW_SECONDS = 0.25
# The longest time that a source takes to close (see `Source.close`), and what it is given beyond it.
CLOSE_SECONDS = 2.0
_GRACE_SECONDS = 1.0

Some = TypeVar("Some")


class Running(NamedTuple):
    """A call of the source on the publisher's thread, and when it began (clock.monotonic)."""

    call: str
    since: float


class Guarded:
    """`source`, whose calls are watched; implements `Source`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # The call of the publisher's thread that has not returned yet; any thread may look at it.
        self.running: Running | None = None
        # Calls that raised what they must not, or took too long.
        self.failed = 0
        self._told = Refusals()

    @property
    def protocol(self) -> int:
        """Return the version of the protocol."""
        return self._source.protocol

    @property
    def name(self) -> str:
        """Return the name of the source."""
        return self._source.name

    @property
    def simulated(self) -> bool:
        """Return whether its data is invented."""
        return self._source.simulated

    @property
    def kinds(self) -> frozenset[Kind]:
        """Return the kinds of topics that it has."""
        return self._source.kinds

    @property
    def lossless(self) -> bool:
        """Return whether no message may be dropped."""
        return self._source.lossless

    def start(self, sink: Sink) -> None:
        """Start the source (see `Source`); it may take its time."""
        try:
            self._source.start(sink)
        except SystemExit as exc:
            raise RuntimeError(f"source {self.name} has ended its thread: SystemExit: {exc}") from exc

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic` (see `Source`)."""
        with self._at_once("subscribe"):
            self._source.subscribe(topic, parts)

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic` (see `Source`)."""
        with self._at_once("unsubscribe"):
            self._source.unsubscribe(topic, parts)

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Download history (see `Source`)."""
        with self._at_once("download"):
            self._source.download(topic, request)

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Look for a history (see `Source`)."""
        with self._at_once("history"):
            self._source.history(number, topic, parts, day_ms)

    def upstream(self) -> int:
        """Return how many subscriptions the source has; 0 if it fails to say so."""
        return self._asked("upstream", self._source.upstream, int, 0)

    def health(self) -> Health:
        """Return what the source says of its SDK; nothing if it fails to do so."""
        return self._asked("health", self._source.health, Health, Health())

    def hung(self) -> str | None:
        """Return which call of the source does not return; None if it fails to say so."""
        return self._asked("hung", self._source.hung, str, "") or None

    def capabilities(self) -> Mapping[str, str]:
        """Return what the source can do (see `Source`); raise what prevents an answer."""
        told = self._source.capabilities()
        return {str(name): "" if lack is None else str(lack) for name, lack in told.items()}

    def close(self) -> None:
        """Stop the source; leave it behind if it does not return in time."""
        thread = threading.Thread(target=self._close, name="source-close", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS + _GRACE_SECONDS)
        if thread.is_alive():
            logger.error("source %s does not close within %g s; it is left behind", self.name, CLOSE_SECONDS)

    def _close(self) -> None:
        try:
            self._source.close()
        except Exception:
            logger.exception("source %s cannot be closed", self.name)

    @contextmanager
    def _at_once(self, call: str) -> Iterator[None]:
        """Watch a call of the publisher's thread."""
        self.running = Running(call, clock.monotonic())
        try:
            yield
        except Refused as exc:
            if exc.code in ERROR_CODES:
                exc.reason = plain(exc.reason) or ""
                raise
            raise RuntimeError(f"{exc.code!r} is no error code; its reason: {exc.reason}") from exc
        except SystemExit as exc:
            # It would end the publisher's thread without a word.
            raise RuntimeError(f"SystemExit: {exc}") from exc
        finally:
            took = clock.monotonic() - self.running.since
            self.running = None
            if took > SLOW_SECONDS:
                self._fault(call, f"took {took:.1f} s, and all topics waited for it")

    def _asked(self, call: str, ask: Callable[[], object], kind: type[Some], nothing: Some) -> Some:
        try:
            answer = ask()
        except Exception as exc:
            self._fault(call, f"failed: {type(exc).__name__}: {exc}")
            return nothing
        if answer is None or isinstance(answer, kind):
            return nothing if answer is None else answer
        self._fault(call, f"returned {type(answer).__name__} instead of {kind.__name__}")
        return nothing

    def _fault(self, call: str, what: str) -> None:
        self.failed += 1
        untold = self._told.note(call.encode(), clock.monotonic())
        if untold is not None:
            more = f" ({untold} more since the last such line)" if untold else ""
            logger.error("source %s: %s %s%s", self.name, call, what, more)
