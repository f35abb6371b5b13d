"""The loads of the table, the servers measured under each, and the targets. The function of a load runs one round."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import zmq

from qmt_bridge import sockets
from qmt_bridge.commands.bench import Bare
from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crews import Crews
from qmt_bridge.commands.load.load import STAMPED, Load
from qmt_bridge.wire.frames import encode, framed
from tests.bench import consumers, recovery, workers
from tests.bench.observing import MB, WARM, Core, Figures, Results, Seen, Settings, connect, load_of, observe
from tests.bench.publish import FIRST_SEQ, tick
from tests.bench.servers import (
    ASGI,
    JOINED,
    LOAD_CORES,
    MSGPACK,
    NATS,
    OURS,
    PICKING,
    PUBLIC,
    SERVER_CORES,
    SINGLE,
    STARLETTE,
    WS,
    Asking,
    Row,
    fed,
)

TEN = tuple(f"60000{i}.SH" for i in range(10))
MARKET = tuple(f"{600000 + i}.SH" for i in range(5000))
# A server holds a rate if it delivers at least this share of it.
HELD = 0.95
STEP = 1.5
STEPS = 4
LEAST = 1000.0
# Clients look at one frame of so many: with millions of frames, looking at each would make them the limit.
SAMPLE = 200


def _most(number: int, row: Row, settings: Settings, codes: Sequence[str], clients: int, each: int) -> Figures:
    """Search for the highest rate that a server delivers."""
    with row.start(**({"kind": "wire"} if row.wired else {})) as running:
        load = load_of(running, row, codes, clients, each=each, sample=SAMPLE)
        with Crews(load, row.client) as crews:
            connect(running, crews, codes)
            offered = settings.rates.get((number, row.name)) or row.guesses[number]
            held: list[Seen] = []
            over: list[Seen] = []
            # Raise the rate until the server does not hold it, or lower it until the server does.
            while not (held and over) and len(held) + len(over) < STEPS:
                seen = observe(running, crews, codes, offered, settings.seconds)
                (held if seen.measured.rate >= HELD * seen.offered else over).append(seen)
                offered = seen.offered * STEP if held else max(min(seen.measured.rate, offered) / STEP, LEAST)
    best = max(held + over, key=lambda seen: seen.measured.rate)
    settings.rates[number, row.name] = best.measured.rate
    return {**best.figures(), "overloaded": over[0].measured.rate if over else None}


class _Drain:
    """Receives what the feeder publishes, and ignores it."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __call__(self) -> Callable[[], None]:
        socket = sockets.connect_subscriber(zmq.Context(), self._address, None)
        socket.subscribe("quote/")

        def drain() -> None:
            # As many as the gateway receives in one turn of its loop.
            with contextlib.suppress(zmq.Again):
                for _ in range(4096):
                    socket.recv_multipart(zmq.NOBLOCK)

        return drain


def _bare(clients: int, join: int, messages: float, settings: Settings) -> Figures:
    """Measure a loop that receives the same messages from the feeder as this gateway, and writes ready-made frames."""
    frame = framed(encode({TEN[0]: [tick(FIRST_SEQ, time.time_ns() // 1000)]}))
    with fed(kind="wire") as publisher:
        assert publisher.config is not None
        with Bare(frame * join, SERVER_CORES, _Drain(publisher.config.market_addr)) as bare:
            load = Load(bare.url, TEN[:1], clients, acked=False, sample=SAMPLE, cores=LOAD_CORES)
            with Crews(load, Asking) as crews:
                crews.connect()
                bare.begin()
                publisher.start(TEN, messages)
                time.sleep(WARM)
                core = Core()
                crews.begin()
                time.sleep(settings.seconds)
                load_core, _ = core.busy()
                crews.end()
                measured = crews.result()
                publisher.stop()
    return {"rate": measured.rate, "join": float(join), "busy": measured.busy, "load_core": load_core}


def same_ten(row: Row, settings: Settings) -> Figures:
    return _most(1, row, settings, TEN, 100, 0)


def joined_ten(settings: Settings, results: Results) -> Figures:
    """Measure the bare loop with as many frames in one write as this gateway had in the same run."""
    ours = results.get((1, OURS.name), {})
    return _bare(100, max(1, round(ours.get("join") or 10)), (ours.get("rate") or 0) / 100, settings)


def single_ten(settings: Settings, results: Results) -> Figures:
    return _bare(100, 1, (results.get((1, OURS.name), {}).get("rate") or 0) / 100, settings)


def single_thousand(settings: Settings, results: Results) -> Figures:
    # Each message is for two of a thousand clients.
    return _bare(1000, 1, (results.get((3, OURS.name), {}).get("rate") or 0) / 2, settings)


def _steady(row: Row, settings: Settings, codes: Sequence[str], clients: int, offered: float, each: int = 0) -> Figures:
    with row.start() as running, Crews(load_of(running, row, codes, clients, each=each), row.client) as crews:
        connect(running, crews, codes)
        return observe(running, crews, codes, offered, settings.seconds).figures()


def busy_ten(row: Row, settings: Settings) -> Figures:
    return _steady(row, settings, TEN, 100, 8_000 if row is PUBLIC else 50_000)


def different(row: Row, settings: Settings) -> Figures:
    most = _most(3, row, settings, MARKET, 1000, 10)
    if row is OURS:
        steady = _steady(row, settings, MARKET, 1000, 40_000, 10)
        most.update({"p50": steady["p50"], "p99": steady["p99"]})
    return most


def quiet_ten(row: Row, settings: Settings) -> Figures:
    return _steady(row, settings, TEN, 100, 10_000)


def whole_market(row: Row, settings: Settings) -> Figures:
    slices = len(MARKET) / 100
    with row.start(workers=2) as running:
        url = running.url.replace("realtime", "whole_quote")
        load = load_of(running, row, ("SH",), 300, url=url, stamps=STAMPED)
        with Crews(load) as crews:
            crews.connect()
            return observe(running, crews, MARKET, slices / 3 * 300, 2 * settings.seconds, "SH").figures()


def one_client(row: Row, settings: Settings) -> Figures:
    with row.start() as running, Crews(load_of(running, row, TEN[:1], 1, stamps=STAMPED)) as crews:
        connect(running, crews, TEN[:1])
        seen = observe(running, crews, TEN[:1], 200, 2 * settings.seconds)
    return {**seen.figures(), "feeder_p50": seen.measured.feeder.percentile(0.5)}


class _Silent(Client):
    """Connects and sends no request."""

    def joined(self) -> None:
        self.settled = True


def idle(row: Row, settings: Settings) -> Figures:
    with row.start() as running:
        load = load_of(running, row, (), 100)
        with Crews(load, _Silent) as first, Crews(load._replace(clients=2000), _Silent) as others:
            first.connect()
            time.sleep(WARM)
            before = running.usage().rss
            others.connect()
            time.sleep(WARM)
            return {"connection_kb": (running.usage().rss - before) / 2000 / 1024, "worker_mb": before / MB}


class _Later(Asking):
    """Connects, and sends its request when counting begins."""

    def joined(self) -> None:
        self.settled = True

    def begin(self) -> None:
        super().begin()
        self.settled = False
        super().joined()


def many_topics(row: Row, settings: Settings) -> Figures:
    count = 10_000
    codes = tuple(f"{i:06}.{market}" for market in ("SH", "SZ") for i in range(count // 2))
    with row.start() as running, Crews(load_of(running, row, codes, 10, each=1000), _Later) as crews:
        crews.connect()
        began = time.perf_counter()
        crews.begin()
        crews.settle()
        taken = time.perf_counter() - began
        lost = count - running.publisher.ask("wanted")
        back_from = running.publisher.ask("restart")
        while running.publisher.ask("wanted") < count and time.time() < back_from + 10:
            time.sleep(0.005)
        back = time.time() - back_from
        lost += count - running.publisher.ask("wanted")
    return {"subscribe_s": taken, "lost": lost, "back_s": back}


def stalled(row: Row, settings: Settings) -> Figures:
    # Long enough to fill the kernel's buffers of stalled clients, so that frames wait in the gateway.
    offered, seconds = 200_000.0, max(8.0, 4 * settings.seconds)
    found = []
    for count in (0, 10):
        with row.start() as running:
            load = load_of(running, row, TEN, 100, stalled=count, sample=SAMPLE)
            with Crews(load, row.client) as crews:
                connect(running, crews, TEN)
                before = running.usage().rss
                seen = observe(running, crews, TEN, offered, seconds)
                found.append((seen, (running.usage().rss - before) / MB))
    (calm, calm_growth), (seen, growth) = found
    calm_p99, p99 = calm.measured.latency.percentile(0.99), seen.measured.latency.percentile(0.99)
    return {
        "rate": seen.measured.rate,
        "lost": seen.measured.lost,
        "p99": p99,
        "calm_p99": calm_p99,
        # The rate of each client that reads, compared with the run in which all clients read.
        "throughput": seen.measured.rate / 90 / (calm.measured.rate / 100),
        "p99_ratio": p99 / calm_p99 if p99 and calm_p99 else None,
        "growth_mb": growth - calm_growth,
    }


def thousand_levels(row: Row, settings: Settings) -> Figures:
    with row.start(shape="l2") as running:
        url = running.url.replace("realtime", "l2_thousand")
        with Crews(load_of(running, row, TEN, 20, url=url), row.client) as crews:
            connect(running, crews, TEN)
            return observe(running, crews, TEN, 200 * 20, settings.seconds).figures()


def soak(row: Row, settings: Settings) -> Figures:
    half = (settings.rates.get((1, row.name)) or row.guesses[1]) / 2
    with row.start() as running, Crews(load_of(running, row, TEN, 100, sample=SAMPLE), row.client) as crews:
        connect(running, crews, TEN)
        running.publisher.start(TEN, half / 100)
        crews.begin()
        began = time.monotonic()
        sizes: list[int] = []
        while (elapsed := time.monotonic() - began) < settings.soak:
            time.sleep(1.0)
            # Caches fill during the first tenth, which is left out.
            if elapsed > settings.soak / 10:
                sizes.append(running.usage().rss)
        crews.end()
        measured = crews.result()
        running.publisher.stop()
    # Medians of tenths show growth without short backlogs; the peak, which has to be flat too, shows the backlogs.
    tenth = max(1, len(sizes) // 9)
    base = statistics.median(sizes[:tenth])
    growth, peak = statistics.median(sizes[-tenth:]) / base - 1, max(sizes) / base - 1
    return {"rate": measured.rate, "lost": measured.lost, "seconds": settings.soak, "growth": growth, "peak": peak}


def by_workers(row: Row, settings: Settings) -> Figures:
    return workers.scaled(row, MARKET, settings)


def consumed(row: Row, settings: Settings) -> Figures:
    return consumers.sustained_by(row, MARKET, settings.seconds, settings.rates)


class Kind(NamedTuple):
    """A load: its number and name, the servers measured under it, and the function that runs one round with one."""

    number: int
    name: str
    rows: tuple[Row, ...]
    run: Callable[[Row, Settings], Figures]
    # The limits that are measured with the servers.
    limits: Mapping[str, Callable[[Settings, Results], Figures]] = {}
    # Whether one round is enough.
    once: bool = False


LOADS = (
    Kind(
        1,
        "100 clients x the same 10 stocks: most frames/s",
        (OURS, MSGPACK, PICKING, ASGI, PUBLIC, STARLETTE, NATS, WS),
        same_ten,
        {JOINED: joined_ten, SINGLE: single_ten},
    ),
    Kind(2, "the same at 50,000/s (public qmt-bridge: 8,000/s)", (OURS, ASGI, PUBLIC, STARLETTE, WS), busy_ten),
    Kind(
        3,
        "1,000 clients x 10 of 5,000 stocks: most frames/s, latency at 40,000/s",
        (OURS, MSGPACK, PICKING, ASGI, STARLETTE, NATS, WS),
        different,
        {SINGLE: single_thousand},
    ),
    Kind(4, "100 clients x the same 10 stocks at 10,000/s", (OURS, ASGI, WS), quiet_ten),
    Kind(5, "whole market, 5,000 codes every 3 s, 300 clients, 2 workers", (OURS,), whole_market),
    Kind(6, "one client, source callback to receipt", (OURS,), one_client),
    Kind(7, "2,000 idle connections", (OURS,), idle),
    Kind(8, "10,000 topics by one worker, and a restart of the feeder", (OURS,), many_topics),
    Kind(9, "10 of 100 clients stalled at 200,000/s", (OURS,), stalled),
    Kind(10, "l2_thousand, 1,000 levels a side, 200 records/s to 20 clients", (OURS,), thousand_levels),
    Kind(11, "half load: memory", (OURS,), soak, once=True),
    Kind(12, "200 clients of a simulated market, the feeder started anew", (OURS,), recovery.restarted),
    Kind(13, "xtquant's stand-in goes and comes back, 93 subscriptions", (OURS,), recovery.reconnected),
    Kind(14, "5,000 trade events/s in bursts of 500, each on disk first", (OURS,), recovery.bursts),
    Kind(15, "100,000 trade events replayed to one client", (OURS,), recovery.replayed),
    Kind(
        consumers.NUMBER,
        "a ZeroMQ consumer of the whole market, without the gateway: most messages/s",
        consumers.CONSUMERS,
        consumed,
    ),
    Kind(workers.NUMBER, "whole market by 1 to 4 workers, raw and deflated: MB/s", workers.SCALING, by_workers),
)
