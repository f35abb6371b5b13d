"""One measurement: a publisher offers a rate to a server, and clients count what they receive."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil

from qmt_bridge.commands.load.crews import Crews
from qmt_bridge.commands.load.load import Load
from qmt_bridge.commands.load.measurement import Measurement
from tests.bench.servers import LOAD_CORES, Row, Running

# The results of one server under one load: figures by name.
Figures = dict[str, float | None]
# The medians by load and server.
Results = Mapping[tuple[int, str], Figures]

# Seconds that a load runs before counting begins.
WARM = 0.5
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


class Others:
    """How much of a core programs that are not of the benchmark have used since this object was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._used = self._used_seconds()

    def share(self) -> float:
        """Return the share of one core; children of the benchmark count only after their end."""
        return max(0.0, self._used_seconds() - self._used) / (time.perf_counter() - self._began)

    def _used_seconds(self) -> float:
        # Interrupts are left out: those of the benchmark's own sockets belong to no process.
        whole, own = psutil.cpu_times(), os.times()
        return float(whole.user + whole.system + getattr(whole, "nice", 0.0) - sum(own[:4]))


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


def load_of(running: Running, row: Row, codes: Sequence[str], clients: int, **changes: object) -> Load:
    load = Load(
        running.url, tuple(codes), clients, acked=row.acked, stamps=row.stamps, headers=row.headers, cores=LOAD_CORES
    )
    return load._replace(**changes)  # type: ignore[arg-type]


def connect(running: Running, crews: Crews, codes: Sequence[str]) -> None:
    crews.connect()
    if not crews.load.acked:
        # These servers do not say when the clients are subscribed.
        time.sleep(WARM)
    running.publisher.ask("once", list(codes))
    time.sleep(WARM)
