"""Replay: a source that plays recorded ticks from a CSV file (`qmt_bridge.tape`), at any pace, every row in order.

One thread of its own plays and talks to the sink; the feeder's calls reach it through a queue, so that a topic
subscribed meanwhile gets the newest played row first and every later one after it. The data is recorded, not
invented: `simulated` is False, and times and values are those of the file. It never sorts and never merges.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from feeder.source import DownloadRequest, Sink
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, Refused
from qmt_bridge.tape import TapeRow, read_csv
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, quote_topic, whole_topic

logger = logging.getLogger(__name__)

# Messages that may wait to be sent before the next rows are read: 2 MB of ticks, some 10 ms of sending.
_ROOM = 1000
# Seconds between two looks for `close` while there is no room; it has to return within two.
_LOOK = 0.2
# threading's longest wait on Windows is 49 days, less than a slow replay over a holiday.
_LONGEST_WAIT = 3600.0
# Rows of several codes go back by seconds in a good recording; by more if the file was put together by code.
_SORTED_BY_CODE_MS = 60_000


class Index(NamedTuple):
    """What one pass over a file tells: its codes, rows and times (ms), and how far a time fell behind another."""

    codes: frozenset[str]
    rows: int
    first: int
    last: int
    backwards: int


def index(rows: Iterable[TapeRow]) -> Index:
    """Read all `rows` and return what is in them; memory grows with the codes only."""
    codes: set[str] = set()
    count = first = last = backwards = 0
    for row in rows:
        count += 1
        codes.add(row.code)
        # Of an instrument that never traded xtquant gives the time 0; the pace cannot start there.
        first = first or row.time
        backwards = max(backwards, last - row.time if row.time else 0)
        last = max(last, row.time)
    return Index(frozenset(codes), count, first, last, backwards)


def moments(rows: Iterable[TapeRow]) -> Iterator[list[TapeRow]]:
    """Yield neighbouring rows of one time together, never two of one code, in the order they came."""
    moment: list[TapeRow] = []
    codes: set[str] = set()
    for row in rows:
        if moment and (row.time != moment[0].time or row.code in codes):
            yield moment
            moment, codes = [], set()
        moment.append(row)
        codes.add(row.code)
    if moment:
        yield moment


def due(row_time: int, first_time: int, speed: float) -> float:
    """Return the seconds from the start after which a row is due; one before the first row is due at once."""
    return max(0.0, (row_time - first_time) / 1000 / speed) if speed else 0.0


class _ClosedError(Exception):
    """Ends the player's thread from wherever it waits."""


class _Route(NamedTuple):
    quote: Topic
    market: Topic
    single: Topic


class Replay:
    """A source of ticks and whole quotes from `config.file`; the settings are named as in `Config`.

    It starts `delay` seconds after the first subscription and, at the end, says ``ended``, or starts again with
    `loop` as long as somebody is subscribed.
    """

    name = "replay"
    simulated = False
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE))

    def __init__(self, config: Config) -> None:
        self.lossless = config.speed == 0
        self._speed = config.speed
        self._delay = config.delay
        self._loop = config.loop
        self._path = Path(config.file)
        self._routes: dict[str, _Route] = {}
        self._markets: set[str] = set()
        # What the player's thread is asked to do; the only thing that other threads change.
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure = ""
        # From here on the player's own.
        self._wanted: set[Topic] = set()
        self._wanted_since = 0.0
        self._newest: dict[str, dict[str, object]] = {}
        self._behind = False

    def start(self, sink: Sink) -> None:
        """Read the file once, and start the player; raise `ConfigError` about ``file`` if it cannot be played."""
        if self._path == Path():
            raise ConfigError("file", "a replay needs the CSV file to play")
        self._sink = sink
        found = index(read_csv(self._path))
        if not found.rows:
            raise ConfigError("file", f"{self._path} has no rows")
        self._first = found.first
        for code in found.codes:
            market = code.rpartition(".")[2]
            self._markets.add(market)
            self._routes[code] = _Route(quote_topic(code), whole_topic(market), whole_topic(code))
        logger.info(
            "replay of %s: %d rows of %d codes over %.0f s at speed %g",
            self._path,
            found.rows,
            len(found.codes),
            (found.last - found.first) / 1000,
            self._speed,
        )
        if found.backwards > _SORTED_BY_CODE_MS and self._speed:
            logger.warning(
                "times in %s go back by up to %.0f s, and such rows are played at once; sort it by time for a pace",
                self._path,
                found.backwards / 1000,
            )
        sink.set_state("up")
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._thread.start()

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic`, the newest played rows first; raise `Refused` if the file has no such thing."""
        if self._failure:
            raise Refused("upstream_unavailable", self._failure)
        if parts.kind is Kind.QUOTE and parts.detail != "tick":
            raise Refused("unsupported_period", f"the replay has ticks only, not period {parts.detail!r}")
        if parts.name not in self._routes and parts.name not in self._markets:
            raise Refused("unknown_symbol", f"{self._path.name} has no row of {parts.name!r}")
        self._calls.put(partial(self._join, topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`; the replay goes on without it."""
        self._calls.put(partial(self._wanted.discard, topic))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Refuse: what is recorded is played, there is nothing to fetch."""
        raise Refused("upstream_refused", "a replay has no history to download")

    def upstream(self) -> int:
        """Return how many topics the player serves."""
        return len(self._wanted)

    def close(self) -> None:
        """Stop the player, wherever it waits."""
        self._calls.put(self._stop)
        if self._thread is not None:
            self._thread.join(2)

    def _run(self) -> None:
        try:
            self._play()
            self._sink.set_state("ended")
            logger.info("replay of %s ended", self._path)
            # Who comes late still gets the newest rows.
            self._serve(math.inf)
        except _ClosedError:
            pass
        except Exception as exc:
            logger.exception("replay of %s failed", self._path)
            self._failure = f"the replay failed: {exc}"
            self._sink.set_state("down", self._failure)

    def _play(self) -> None:
        while True:
            # An audience that is there already when the file starts again has waited long ago.
            while not self._wanted:
                self._calls.get()()
            self._serve(self._wanted_since + self._delay)
            start = time.monotonic()
            with closing(read_csv(self._path)) as rows:
                for moment in moments(rows):
                    self._serve(start + due(moment[0].time, self._first, self._speed))
                    self._wait_room(_ROOM)
                    self._publish(moment)
            if not self._loop:
                # "ended" must not overtake the last rows.
                self._wait_room(1)
                return
            logger.debug("replay of %s starts again", self._path)
            # The last may leave now. One second of recorded time: at a pace a file of one moment would spin.
            self._serve(time.monotonic() + (1 / self._speed if self._speed else 0.0))

    def _publish(self, moment: list[TapeRow]) -> None:
        received_ns = time.time_ns()
        whole: dict[Topic, dict[str, object]] = {}
        for code, _, record in moment:
            self._newest[code] = record
            route = self._routes[code]
            if route.quote in self._wanted:
                self._sink.publish(route.quote, {code: [record]}, received_ns)
            for topic in (route.market, route.single):
                if topic in self._wanted:
                    whole.setdefault(topic, {})[code] = record
        for topic, ticks in whole.items():
            self._sink.publish_whole(topic, ticks, received_ns)

    def _join(self, topic: Topic, parts: TopicParts) -> None:
        if not self._wanted:
            self._wanted_since = time.monotonic()
        self._wanted.add(topic)
        self._sink.accept(topic)
        codes = [parts.name] if parts.name in self._routes else self._routes
        played = {code: self._newest[code] for code in codes if topic in self._routes[code] and code in self._newest}
        if not played:
            return
        if parts.kind is Kind.WHOLE:
            self._sink.publish_whole(topic, played, time.time_ns())
        else:
            self._sink.publish(topic, {code: [record] for code, record in played.items()}, time.time_ns())

    def _stop(self) -> None:
        raise _ClosedError

    def _serve(self, until: float) -> None:
        """Do what is asked meanwhile, until monotonic time `until`; at least what is asked already."""
        while True:
            left = min(max(until - time.monotonic(), 0.0), _LONGEST_WAIT)
            try:
                call = self._calls.get(timeout=left)
            except queue.Empty:
                if time.monotonic() >= until:
                    return
            else:
                call()

    def _wait_room(self, limit: int) -> None:
        while not self._sink.wait_room(limit, _LOOK):
            if self._speed and not self._behind:
                self._behind = True
                logger.warning(
                    "replay of %s falls behind its pace: the feeder cannot send speed %g", self._path, self._speed
                )
            self._serve(0.0)
