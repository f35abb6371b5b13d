"""Simulator: the source without a terminal, `feeder.sim.market` and `feeder.sim.account` played in real time.

One thread computes everything and calls the sink; the feeder's calls reach it through a queue. It never catches up: a
tick for which it is late is left out, and the next tick includes its data.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

from feeder.sim.account import SimulatedAccount
from feeder.sim.backlog import Backlog
from feeder.sim.formula import Formula
from feeder.sim.history import download
from feeder.sim.hours import DAY_BARS, MINUTE_BARS
from feeder.sim.market import STREAMS, Market, Record, bars_wanted
from feeder.source import DownloadRequest, Health, Sink, by_kind, mask
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import AccountState
from qmt_bridge.wire.topics import Kind, Topic, TopicParts, formula_spec

logger = logging.getLogger(__name__)

ACCOUNT = "1000000365"
# Seconds between two turns, which publish what is due: whole-market slices keep a readable size, and no tick is late.
_TURN = 0.05
# So many seconds after it last slept, the thread sleeps for a short time. Each ZeroMQ call of the publisher's thread
# gives up the interpreter, and takes it back at once only while this thread does not compute; the first tick of a code
# takes 0.5 ms.
_STINT = 0.0005
_PAUSE = 0.0001
# How many codes of a market's first snapshot are made in a turn: each takes some 0.3 ms at the first time.
_SNAPSHOT_CODES = 200
# The limit of bars of all formulas together, and how many each formula counts in addition to its own. A bar takes 1 us
# with each tick of its code, and 300 bytes of memory.
MAX_FORMULA_BARS = 250_000
FORMULA_BARS = 100
# A download takes this many turns, or one for each code if there are fewer codes.
_DOWNLOAD_TURNS = 100
# Milliseconds of orders and trade prints that are still published when the thread was late.
_STREAM_DELAY = 1000
# The most milliseconds by which one turn advances the account's time while that is ahead of a clock that was set back.
_LONGEST_STEP = 1000
# Publishes the data of a topic after a new tick of its code.
_Publish = Callable[[int, Record], None]


def epoch_ms() -> int:
    """Return the milliseconds since 1970."""
    return clock.time_ns() // 1_000_000


class Simulator:
    """A whole market and a trading account, invented; `now` is the clock that it plays by, in ms since 1970."""

    protocol = 1
    name = "sim"
    simulated = True
    lossless = False
    kinds = frozenset((Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA, Kind.DOWNLOAD, Kind.TRADE))

    def __init__(self, config: Config, now: Callable[[], int] = epoch_ms) -> None:
        self._config = config
        self._now = now
        self._interval = round(config.sim_interval * 1000)
        self._market = Market(config.sim_seed, self._interval, config.sim_l2_rate, config.sim_hours)
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="simulator", daemon=True)
        # The topics that are subscribed now, while the queue may still have older calls. The feeder's thread writes it.
        self._wanted: set[Topic] = set()
        self._sink: Sink
        self._account: SimulatedAccount
        # Only the simulator's thread uses the rest.
        self._topics: set[Topic] = set()
        self._played = 0
        # When the thread last slept (clock.monotonic).
        self._paused_at = 0.0
        # The account's time.
        self._traded = 0
        # By code: what publishes its ticks, and what publishes anything else about it, which takes longer.
        self._ticks: dict[str, dict[Topic, _Publish]] = {}
        self._others: dict[str, dict[Topic, _Publish]] = {}
        self._backlog = Backlog(self._try_begin)
        # What each formula that is published or is to begin counts, and the sum of that.
        self._formula_bars: dict[Topic, int] = {}
        self._formula_sum = 0
        self._markets: dict[str, Topic] = {}
        # Code, period, and until when orders or trade prints were published.
        self._streams: dict[Topic, tuple[str, str, int]] = {}
        self._snapshots: deque[_Snapshot] = deque()
        self._downloads: dict[Topic, tuple[int, Iterator[Record]]] = {}

    def start(self, sink: Sink) -> None:
        """Start the thread and return."""
        self._sink = sink
        self._played = self._traded = self._now()
        self._account = SimulatedAccount(
            ACCOUNT,
            self._config.sim_seed,
            self._market.trading_price,
            [code for code, each in self._market.instruments.items() if each.type == "stock"],
            round(self._config.sim_order_interval * 1000),
            self._played,
        )
        sink.set_accounts([AccountState(mask(ACCOUNT), "STOCK", "up", since=self._played)])
        self._thread.start()

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic`: what there is at once, then after each tick of its code."""
        self._wanted.add(topic)
        self._calls.put(partial(self._open, topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`; of a download: cancel it."""
        self._wanted.discard(topic)
        self._calls.put(partial(self._drop, topic, parts))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Pretend to download: unknown codes and `FAILING_DOWNLOAD` fail, there is nothing that could be kept."""
        if request.period != "tick" and request.period not in MINUTE_BARS and request.period not in DAY_BARS:
            raise Refused("unsupported_period", f"history of period {request.period} is not simulated")
        turn = -(-len(request.stocks) // _DOWNLOAD_TURNS)
        self._calls.put(
            partial(self._downloads.__setitem__, topic, (turn, download(request.stocks, self._market.instruments)))
        )

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Refuse: what was invented before a topic was subscribed is not kept."""
        raise Refused("upstream_refused", "a simulation has no history")

    def capabilities(self) -> dict[str, str]:
        """Return the kinds of topics (see `Source`)."""
        return by_kind(self.kinds)

    def upstream(self) -> int:
        """Return how many topics are published."""
        return len(self._topics)

    def health(self) -> Health:
        """Return nothing: there is no SDK."""
        return Health()

    def hung(self) -> str | None:
        """Return None: it calls nothing that could hang (see `Source`)."""
        return None

    def close(self) -> None:
        """Stop the thread."""
        self._calls.put(None)
        if self._thread.is_alive():
            self._thread.join(2)

    def _run(self) -> None:
        try:
            self._sink.set_state("up")
            turn = min(_TURN, self._config.sim_interval)
            next_turn = clock.monotonic()
            while self._work(next_turn):
                self._play(self._now())
                # The second keeps calls moving where every turn is late.
                next_turn = max(next_turn + turn, clock.monotonic() + turn / 10)
        except Exception as exc:
            logger.exception("simulator failed")
            self._sink.set_state("down", f"simulator failed: {exc}", data_lost=True)

    def _work(self, until: float) -> bool:
        """Do the work that waits until it is time for the next turn; return False if the feeder has called `close`.

        The feeder's calls, which are short, come first, and leave half of the time to longer work.
        """
        while True:
            share = (clock.monotonic() + until) / 2
            while True:
                is_busy = bool(self._backlog or self._snapshots)
                wait = 0.0 if is_busy else until - clock.monotonic()
                try:
                    call = self._calls.get(timeout=max(0.0, wait))
                except queue.Empty:
                    break
                if call is None:
                    return False
                call()
                self._pause()
                if clock.monotonic() >= share:
                    break
            if not self._backlog:
                if self._snapshots or clock.monotonic() >= until:
                    return True
                continue
            self._backlog.do_one()
            self._pause()
            if clock.monotonic() >= until:
                return True

    def _pause(self) -> None:
        """Let the publisher's thread run, if this one has worked for long."""
        if clock.monotonic() - self._paused_at >= _STINT:
            time.sleep(_PAUSE)
            self._paused_at = clock.monotonic()

    def _play(self, now: int) -> None:
        """Publish what has become due since the last turn, each code at most once."""
        received_ns = clock.time_ns()
        # The account's time never goes back, because new orders would get the numbers of earlier ones; it never stops.
        passed = min(max(now - self._played, 0), _LONGEST_STEP)
        self._traded = max(now, self._traded + passed)
        after, self._played = max(self._played, now - self._interval), now
        slices: dict[str, dict[str, object]] = {market: {} for market in self._markets}
        unfinished = {snapshot.market: snapshot.ticks for snapshot in self._snapshots}
        for code in self._market.due(after, now):
            exchange = self._market.instruments[code].market
            market, snapshot = slices.get(exchange), unfinished.get(exchange, {})
            topics, others = self._ticks.get(code), self._others.get(code)
            if market is None and topics is None and others is None and code not in snapshot:
                continue
            tick = self._market.tick(code, now)
            if market is not None:
                market[code] = tick
            if code in snapshot:
                snapshot[code] = tick
            for publish in (topics or {}).values():
                publish(now, tick)
            for topic, publish in (others or {}).items():
                self._backlog.put(topic, partial(publish, now, tick))
            self._pause()
        for name, ticks in slices.items():
            if ticks:
                self._sink.publish_whole(self._markets[name], ticks, received_ns)
        for topic in self._streams:
            self._backlog.put(topic, partial(self._go_on_with_stream, topic, now))
        for event, fields in self._account.step(self._traded):
            self._sink.publish_trade(ACCOUNT, event, fields, received_ns)
        self._go_on_with_snapshot(now)
        self._go_on_with_downloads()

    def _go_on_with_stream(self, topic: Topic, now: int) -> None:
        code, period, published = self._streams[topic]
        records = self._market.stream(code, period, max(published, now - _STREAM_DELAY), now)
        self._streams[topic] = code, period, now
        if records:
            self._sink.publish(topic, {code: records}, clock.time_ns())

    def _go_on_with_snapshot(self, now: int) -> None:
        """Make a part of the oldest snapshot; once it is whole, publish it in one push, as xtquant does.

        The topic stays pending until then, so that no client gets the end of a snapshot that has not begun.
        """
        if not self._snapshots:
            return
        snapshot = self._snapshots[0]
        part = {code: self._market.tick(code, now) for code in islice(snapshot.codes, _SNAPSHOT_CODES)}
        snapshot.ticks.update(part)
        if len(part) < _SNAPSHOT_CODES:
            self._snapshots.popleft()
            self._markets[snapshot.market] = snapshot.topic
            self._sink.publish_whole(snapshot.topic, snapshot.ticks, clock.time_ns())

    def _go_on_with_downloads(self) -> None:
        for topic, (turn, bodies) in tuple(self._downloads.items()):
            for body in islice(bodies, turn):
                self._sink.publish(topic, body, clock.time_ns())
                if "status" in body:
                    del self._downloads[topic]

    def _open(self, topic: Topic, parts: TopicParts) -> None:
        if topic in self._topics or topic not in self._wanted:
            # Do not begin a topic that was unsubscribed meanwhile: that takes time, and other topics would wait.
            return
        is_short = parts.kind is Kind.QUOTE and (parts.detail == "tick" or parts.detail in STREAMS)
        if is_short or parts.kind is Kind.WHOLE:
            self._try_begin(topic, parts)
            return
        if parts.kind is Kind.FORMULA and topic not in self._formula_bars:
            bars = FORMULA_BARS + bars_wanted(formula_spec(parts).count)
            if self._formula_sum + bars > MAX_FORMULA_BARS:
                reason = f"{len(self._formula_bars)} formulas are calculated already, and there is no room for this one"
                self._sink.refuse(topic, "symbol_limit", reason)
                return
            self._formula_bars[topic] = bars
            self._formula_sum += bars
        self._backlog.open(topic, parts)

    def _try_begin(self, topic: Topic, parts: TopicParts) -> None:
        if topic not in self._wanted:
            return
        try:
            self._begin(topic, parts)
        except Refused as refusal:
            self._free_formula(topic)
            self._sink.refuse(topic, refusal.code, refusal.reason)
        else:
            self._topics.add(topic)

    def _free_formula(self, topic: Topic) -> None:
        self._formula_sum -= self._formula_bars.pop(topic, 0)

    def _begin(self, topic: Topic, parts: TopicParts) -> None:
        # Use the time of the last turn: what is due since then belongs to the next turn, so nothing comes twice.
        now = self._played
        if parts.kind is Kind.WHOLE and "." not in parts.name:
            self._snapshots.append(_Snapshot(topic, parts.name, iter(self._market.codes(parts.name)), {}))
        elif parts.kind is Kind.QUOTE and parts.detail in STREAMS:
            self._market.check_period(parts.name, parts.detail)
            self._streams[topic] = parts.name, parts.detail, now
            self._sink.accept(topic)
        else:
            code, publish = self._make_publish(topic, parts)
            publish(now, self._market.tick(code, now))
            is_tick = parts.kind is Kind.WHOLE or parts.detail == "tick"
            (self._ticks if is_tick else self._others).setdefault(code, {})[topic] = publish

    def _make_publish(self, topic: Topic, parts: TopicParts) -> tuple[str, _Publish]:
        """Return the code of a topic and what publishes it; what the market refuses is refused then."""
        code, detail = parts.name, parts.detail
        if parts.kind is Kind.WHOLE:

            def publish(now: int, tick: Record) -> None:
                self._sink.publish_whole(topic, {code: tick}, clock.time_ns())

        elif parts.kind is Kind.L2:

            def publish(now: int, tick: Record) -> None:
                received_ns = clock.time_ns()
                self._sink.publish(topic, {code: [self._market.thousand(code, int(detail), now)]}, received_ns)

        elif parts.kind is Kind.FORMULA:
            formula = Formula(self._market, formula_spec(parts))
            code = formula.code

            def publish(now: int, tick: Record) -> None:
                received_ns = clock.time_ns()
                self._sink.publish(topic, formula.value(now), received_ns)

        else:

            def publish(now: int, tick: Record) -> None:
                received_ns = clock.time_ns()
                record = tick if detail == "tick" else self._market.quote(code, detail, now)
                self._sink.publish(topic, {code: [record]}, received_ns)

        return code, publish

    def _drop(self, topic: Topic, parts: TopicParts) -> None:
        if self._downloads.pop(topic, None) is not None:
            end = {"status": "error", "type": "error", "code": "upstream_unavailable", "failed": {}}
            self._sink.publish(topic, {**end, "error": "the download was cancelled"}, clock.time_ns())
            return
        self._topics.discard(topic)
        self._streams.pop(topic, None)
        self._markets = {market: each for market, each in self._markets.items() if each != topic}
        self._snapshots = deque(each for each in self._snapshots if each.topic != topic)
        code = formula_spec(parts).stock_code if parts.kind is Kind.FORMULA else parts.name
        for by_code in (self._ticks, self._others):
            topics = by_code.get(code, {})
            topics.pop(topic, None)
            if not topics:
                by_code.pop(code, None)
        self._backlog.drop(topic, parts.kind)
        self._free_formula(topic)


class _Snapshot(NamedTuple):
    """The first snapshot of a market while it is made: the codes to come, and the newest ticks of those that were."""

    topic: Topic
    market: str
    codes: Iterator[str]
    ticks: dict[str, object]
