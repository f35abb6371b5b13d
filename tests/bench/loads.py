"""The loads of the table, the servers measured under each, and the targets. The function of a load runs one round."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import psutil
import zmq

from qmt_bridge import sockets
from qmt_bridge.commands.bench import Bare
from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crews import Crews
from qmt_bridge.commands.load.load import STAMPED, Load
from qmt_bridge.commands.load.measurement import Measurement
from qmt_bridge.wire.frames import encode, framed
from tests.bench import recovery
from tests.bench.publish import FIRST_SEQ, tick
from tests.bench.servers import (
    ASGI,
    JOINED,
    LOAD_CORES,
    NATS,
    OURS,
    PUBLIC,
    SERVER_CORES,
    SINGLE,
    STARLETTE,
    WS,
    Asking,
    Row,
    Running,
    fed,
)

# The results of one server under one load: figures by name.
Figures = dict[str, float | None]
# The medians by load and server.
Results = Mapping[tuple[int, str], Figures]

TEN = tuple(f"60000{i}.SH" for i in range(10))
MARKET = tuple(f"{600000 + i}.SH" for i in range(5000))
# Seconds that a load runs before counting begins.
WARM = 0.5
# A server holds a rate if it delivers at least this share of it.
HELD = 0.95
STEP = 1.5
STEPS = 4
LEAST = 1000.0
# Clients look at one frame of so many: with millions of frames, looking at each would make them the limit.
SAMPLE = 200
MB = 1e6


class Settings(NamedTuple):
    """The options of a run."""

    seconds: float
    soak: float
    # By load and server: the rate with which the next round begins its search.
    rates: dict[tuple[int, str], float]


class Seen(NamedTuple):
    """One measurement."""

    offered: float
    measured: Measurement
    # The share of a core that the server used, and the share of the load's core that all processes used.
    cpu: float
    load_core: float
    # Frames for each system call that wrote.
    join: float

    def figures(self) -> Figures:
        measured = self.measured
        return {
            "rate": measured.rate,
            "offered": self.offered,
            "lost": measured.lost,
            "skipped": measured.skipped,
            "trouble": measured.trouble.total(),
            "p50": measured.latency.percentile(0.5),
            "p99": measured.latency.percentile(0.99),
            "cpu": self.cpu,
            "load_core": self.load_core,
            "join": self.join,
            "busy": measured.busy,
        }


class Core:
    """How busy the load's core is since this object was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._idle = self._idle_seconds()

    def busy(self) -> tuple[float, float]:
        """Return the share of the time in which the core was not idle, and the whole time in seconds."""
        took = time.perf_counter() - self._began
        return 1 - (self._idle_seconds() - self._idle) / took, took

    def _idle_seconds(self) -> float:
        times = psutil.cpu_times(percpu=True)
        return float(sum(times[core].idle for core in LOAD_CORES or range(len(times))))


def observe(
    running: Running, crews: Crews, codes: Sequence[str], offered: float, seconds: float, market: str = ""
) -> Seen:
    """Offer `offered` frames a second in all, and measure what the clients receive."""
    load = crews.load
    # The number of clients that receive each message.
    fan = load.clients if market else load.clients * len(load.codes_of(0)) / len(codes)
    publisher = running.publisher
    publisher.start(codes, offered / fan, market)
    time.sleep(WARM)
    before, writes, sent = running.usage(), running.writes(), publisher.sent
    core = Core()
    crews.begin()
    time.sleep(seconds)
    load_core, took = core.busy()
    after, writes, sent = running.usage(), running.writes() - writes, publisher.sent - sent
    crews.end()
    # Before the publisher stops: later messages show for each topic whether earlier ones were lost.
    measured = crews.result()
    publisher.stop()
    cpu = (after.cpu_seconds - before.cpu_seconds) / took
    return Seen(sent / took * fan, measured, cpu, load_core, measured.frames / writes if writes else 0.0)


def _load(running: Running, row: Row, codes: Sequence[str], clients: int, **changes: object) -> Load:
    load = Load(running.url, tuple(codes), clients, acked=row.acked, stamps=row.stamps, cores=LOAD_CORES)
    return load._replace(**changes)  # type: ignore[arg-type]


def _connect(running: Running, crews: Crews, codes: Sequence[str]) -> None:
    crews.connect()
    if not crews.load.acked:
        # These servers do not say when the clients are subscribed.
        time.sleep(WARM)
    running.publisher.ask("once", list(codes))
    time.sleep(WARM)


def _most(number: int, row: Row, settings: Settings, codes: Sequence[str], clients: int, each: int) -> Figures:
    """Search for the highest rate that a server delivers."""
    with row.start(**({"kind": "wire"} if row.wired else {})) as running:
        load = _load(running, row, codes, clients, each=each, sample=SAMPLE)
        with Crews(load, row.client) as crews:
            _connect(running, crews, codes)
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
    with row.start() as running, Crews(_load(running, row, codes, clients, each=each), row.client) as crews:
        _connect(running, crews, codes)
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
        load = _load(running, row, ("SH",), 300, url=url, stamps=STAMPED)
        with Crews(load) as crews:
            crews.connect()
            return observe(running, crews, MARKET, slices / 3 * 300, 2 * settings.seconds, "SH").figures()


def one_client(row: Row, settings: Settings) -> Figures:
    with row.start() as running, Crews(_load(running, row, TEN[:1], 1, stamps=STAMPED)) as crews:
        _connect(running, crews, TEN[:1])
        seen = observe(running, crews, TEN[:1], 200, 2 * settings.seconds)
    return {**seen.figures(), "feeder_p50": seen.measured.feeder.percentile(0.5)}


class _Silent(Client):
    """Connects and sends no request."""

    def joined(self) -> None:
        self.settled = True


def idle(row: Row, settings: Settings) -> Figures:
    with row.start() as running:
        load = _load(running, row, (), 100)
        with Crews(load, _Silent) as first, Crews(load._replace(clients=2000), _Silent) as others:
            first.connect()
            time.sleep(WARM)
            before = running.usage().rss
            others.connect()
            time.sleep(WARM)
            return {"connection_kb": (running.usage().rss - before) / 2000 / 1024}


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
    with row.start() as running, Crews(_load(running, row, codes, 10, each=1000), _Later) as crews:
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
            load = _load(running, row, TEN, 100, stalled=count, sample=SAMPLE)
            with Crews(load, row.client) as crews:
                _connect(running, crews, TEN)
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
        with Crews(_load(running, row, TEN, 20, url=url), row.client) as crews:
            _connect(running, crews, TEN)
            return observe(running, crews, TEN, 200 * 20, settings.seconds).figures()


def soak(row: Row, settings: Settings) -> Figures:
    half = (settings.rates.get((1, row.name)) or row.guesses[1]) / 2
    with row.start() as running, Crews(_load(running, row, TEN, 100, sample=SAMPLE), row.client) as crews:
        _connect(running, crews, TEN)
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
        (OURS, ASGI, PUBLIC, STARLETTE, NATS, WS),
        same_ten,
        {JOINED: joined_ten, SINGLE: single_ten},
    ),
    Kind(2, "the same at 50,000/s (public qmt-bridge: 8,000/s)", (OURS, ASGI, PUBLIC, STARLETTE, WS), busy_ten),
    Kind(
        3,
        "1,000 clients x 10 of 5,000 stocks: most frames/s, latency at 40,000/s",
        (OURS, ASGI, STARLETTE, NATS, WS),
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
)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of every figure over the rounds that have it."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    known = {name: [value for figures in rounds if (value := figures.get(name)) is not None] for name in names}
    return {name: statistics.median(values) if values else None for name, values in known.items()}


class Verdict(NamedTuple):
    """A target and the measured figure; `met` is None if nothing was measured."""

    load: int
    target: str
    here: str
    met: bool | None


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield every target of the loads that ran."""

    def figure(load: int, row: str, name: str) -> float | None:
        return results.get((load, row), {}).get(name)

    def ratio(load: int, row: str, least: float, text: str, name: str = "rate") -> Verdict:
        ours, theirs = figure(load, OURS.name, name), figure(load, row, name)
        if not ours or not theirs:
            return Verdict(load, text, "not measured", None)
        return Verdict(load, text, f"{ours / theirs:,.3g} x", ours / theirs >= least)

    def most(load: int, name: str, limit: float, text: str, unit: str, scale: float = 1.0) -> Verdict:
        ours = figure(load, OURS.name, name)
        if ours is None:
            return Verdict(load, text, "not measured", None)
        return Verdict(load, text, f"{ours * scale:,.3g} {unit}".rstrip(), ours * scale <= limit)

    def none(load: int, name: str, text: str) -> Verdict:
        ours = figure(load, OURS.name, name)
        return Verdict(
            load, text, "not measured" if ours is None else f"{ours:,.0f}", None if ours is None else not ours
        )

    def against(load: int, row: str, share: float, name: str, text: str) -> Verdict:
        ours, theirs = figure(load, OURS.name, name), figure(load, row, name)
        if not ours or not theirs:
            return Verdict(load, text, "not measured", None)
        return Verdict(load, text, f"{ours:.3g} ms against {theirs:.3g} ms", ours <= theirs * share)

    def least(load: int, name: str, limit: float, text: str) -> Verdict:
        ours = figure(load, OURS.name, name)
        return Verdict(
            load, text, "not measured" if ours is None else f"{ours:,.0f}", None if ours is None else ours >= limit
        )

    def sustained() -> Verdict:
        text = "200 records/s to 20 clients sustained; share of the core reported"
        rate, offered, cpu = (figure(10, OURS.name, name) for name in ("rate", "offered", "cpu"))
        if rate is None or not offered:
            return Verdict(10, text, "not measured", None)
        return Verdict(10, text, f"{rate:,.0f}/s of {offered:,.0f}/s, {cpu:.0%} of a core", rate >= 0.99 * offered)

    def flat() -> Verdict:
        text = "memory flat within 2 % of the second tenth: the last one, and the peak"
        growth, peak = (figure(11, OURS.name, name) for name in ("growth", "peak"))
        if growth is None or peak is None:
            return Verdict(11, text, "not measured", None)
        return Verdict(11, text, f"{growth:+.2%}, at most {peak:+.1%}", max(growth, peak) <= 0.02)

    def within(name: str, least: float, text: str) -> Verdict:
        ours = figure(9, OURS.name, name)
        if ours is None:
            return Verdict(9, text, "not measured", None)
        return Verdict(9, text, f"{ours:.3f}", ours >= least)

    every = (
        ratio(1, PUBLIC.name, 150, "at least 150 x the public qmt-bridge"),
        ratio(1, STARLETTE.name, 8, "at least 8 x Starlette send_text"),
        ratio(1, JOINED, 0.9, "at least 0.9 x the bare loop that joins as many frames"),
        against(2, PUBLIC.name, 1 / 20, "p99", "p99 at most 1/20 of the public qmt-bridge's at 8,000/s"),
        most(2, "p99", 3.0, "p99 at 50,000/s at most 3 ms", "ms"),
        ratio(3, NATS.name, 1.0, "ahead of nats-server"),
        ratio(3, STARLETTE.name, 4.0, "at least 4 x Starlette send_text"),
        ratio(3, SINGLE, 2.0, "at least 2 x the bare loop with one write a frame"),
        most(3, "p99", 5.0, "p99 at 40,000/s at most 5 ms", "ms"),
        against(4, WS.name, 1.0, "p50", "p50 at 10,000/s at most node ws'"),
        most(5, "p99", 10.0, "p99 at most 10 ms", "ms"),
        none(5, "skipped", "no code skipped"),
        none(5, "lost", "no frame lost"),
        most(6, "p50", 0.35, "p50 at most 0.35 ms", "ms"),
        most(6, "p99", 1.0, "p99 at most 1 ms", "ms"),
        most(7, "connection_kb", 25.0, "at most 25 KB a connection", "KB"),
        most(8, "subscribe_s", 0.2, "subscribed in at most 0.2 s", "s"),
        none(8, "lost", "none lost"),
        most(8, "back_s", 0.5, "all back within 0.5 s of a restart of the feeder", "s"),
        none(9, "lost", "the others lose nothing"),
        within("throughput", 0.97, "the others' throughput within 3 %"),
        most(9, "p99_ratio", 1.2, "the others' p99 within 20 %", "x"),
        most(9, "growth_mb", 5.0, "memory grows by at most 5 MB", "MB"),
        sustained(),
        flat(),
        most(12, "first_s", 2.0, "at most 2 s from its start to the first frame of every client", "s"),
        most(13, "restored_s", 2.0, "at most 2 s from the connection to all subscriptions", "s"),
        none(14, "lost", "none lost"),
        most(14, "p99", 20.0, "p99 from the callback to a consumer at most 20 ms", "ms"),
        least(15, "rate", 50_000, "at least 50,000/s"),
    )
    ran = {load for load, _ in results}
    return (verdict for verdict in every if verdict.load in ran)
