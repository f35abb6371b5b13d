"""Flood a gateway from one address, and watch 50 good clients of the same worker.

    python -m tests.bench.floods --seconds 60

Each flood gets a new `qmt-bridge up` on the simulator: 10 s of rest, the flood, and 10 s of rest. The exit code is 1 if
a target was missed. The flood shares the cores with the server, so it runs at the lowest priority (nice 19): what the
good clients see is the server's doing, and not that of the load's own work. Memory is MB of the worker.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import click
import psutil

from gateway.connections.descriptors import raise_limit
from tests.bench.floods.attacks import FLOODS, Flood, attack
from tests.bench.floods.verdict import Answers, Measured, head, misses, row
from tests.support.good_clients import watch
from tests.support.load_processes import started
from tests.support.rig import metrics
from tests.support.seen import Good, percentile, within
from tests.support.up import Up

REST = 10.0
LOOK = 0.2
# Seconds for the last answers of an attack, and for a process that has nothing more to do.
PATIENCE = 60.0
LIMITED = "limited_total{limit="
MB = 2**20


class Usage:
    """CPU and memory of worker and feeder while the phases pass."""

    def __init__(self, up: Up) -> None:
        self.worker = psutil.Process(up.pid("gateway"))
        self.feeder = psutil.Process(up.pid("feeder"))
        self.rss_peak = 0.0

    @property
    def rss(self) -> float:
        return float(self.worker.memory_info().rss / MB)

    @property
    def cpu(self) -> tuple[float, float]:
        return self._cpu(self.worker), self._cpu(self.feeder)

    def _cpu(self, of: psutil.Process) -> float:
        times = of.cpu_times()
        return float(times.user + times.system)

    def wait(self, pipe: Pipe, seconds: float) -> bool:
        """Look at the memory until the pipe has something, or for so long; return whether it has."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not pipe.poll(LOOK):
            self.rss_peak = max(self.rss_peak, self.rss)
        return pipe.poll()


def measure(flood: Flood, seconds: float, log: Path) -> Measured:
    """Run one flood against a gateway of its own."""
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder), "--source=sim", *flood.options)
        try:
            up.wait_ready()
            with started(watch, up.port) as good:
                assert good.poll(PATIENCE), "the good clients were not served"
                good.recv()
                return _measure(flood, seconds, up, good)
        finally:
            up.close()
            log.write_text(up.text, encoding="utf-8")


def _measure(flood: Flood, seconds: float, up: Up, good: Pipe) -> Measured:
    usage = Usage(up)
    # The last values that subscriptions begin with have no stamp, and the loop of the clients is still warming up.
    time.sleep(1.0)
    begin = time.monotonic()
    usage.wait(good, REST)
    rss_before, limited = usage.rss, _limited(up.port)
    before, flooded, lines = usage.cpu, time.monotonic(), len(up.lines)
    with started(attack, flood.name, up.port, seconds) as pipe:
        answered: Answers = pipe.recv() if usage.wait(pipe, seconds + PATIENCE) else Answers(Counter(), float("inf"))
    after, ended, lines = usage.cpu, time.monotonic(), len(up.lines) - lines
    usage.wait(good, REST)
    rss_after = usage.rss
    good.send("end")
    seen: Good = good.recv()
    counts = answered.counts + Counter({f"limit {name}": n for name, n in (_limited(up.port) - limited).items()})
    worker, feeder = ((late - early) / (ended - flooded) for early, late in zip(before, after, strict=True))
    _print_faults(seen, up)
    return Measured(
        flood.name,
        percentile(within(seen.delays, begin, flooded), 0.99),
        percentile(within(seen.delays, flooded, ended), 0.99),
        len(seen.gaps),
        len(seen.closes),
        max(within(seen.connects, flooded, ended), default=float("nan")),
        rss_before,
        usage.rss_peak,
        rss_after,
        worker,
        feeder,
        Answers(counts, answered.longest),
        flood.half_open,
        flood.wrong_keys,
        ended - flooded,
        lines,
    )


def _limited(port: int) -> Counter[str]:
    """Return how often the worker has said that a limit was reached."""
    shown = metrics(port).items()
    return Counter({name.split('"')[1]: int(value) for name, value in shown if name.startswith(LIMITED)})


def _print_faults(seen: Good, up: Up) -> None:
    for _, fault in (*seen.gaps[:3], *seen.closes[:3]):
        click.echo(f"    {fault}", err=True)
    for line in up.lines:
        if "Traceback" in line:
            click.echo(f"    {line}", err=True)


def _chosen(_: click.Context, __: click.Parameter, value: str) -> list[Flood]:
    names = value.split(",") if value else [each.name for each in FLOODS]
    unknown = set(names) - {each.name for each in FLOODS}
    if unknown:
        raise click.BadParameter(f"no flood is named {', '.join(sorted(unknown))}")
    return [each for each in FLOODS if each.name in names]


@click.command(help=(__doc__ or "") + "\n\n\b\n" + "\n".join(f"    {each.name}" for each in FLOODS))
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(min=1), help="Length of each flood.")
@click.option("--only", default="", callback=_chosen, help="Run only the floods of these names, such as pings,lists.")
@click.option("--log", default=tempfile.gettempdir(), type=click.Path(path_type=Path), help="Folder of the logs.")
def main(seconds: float, only: list[Flood], log: Path) -> None:
    # A flood has 5,000 connections.
    raise_limit(8000)
    click.echo("the floods run at nice 19, on the cores of the server\n\n" + head())
    log.mkdir(parents=True, exist_ok=True)
    missed = 0
    for flood in only:
        measured = measure(flood, seconds, log / f"qmt-bridge-flood-{flood.name}.log")
        click.echo(row(measured))
        missed += bool(misses(measured))
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
