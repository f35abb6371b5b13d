"""Send random frames, broken conversations and raw requests to a gateway, and watch whether good clients notice.

    python -m tests.fuzz --frames 1000000 --requests 500000 --seed 1

It starts `qmt-bridge up` on the simulator. The exit code is 1 if the log has a traceback, a good client lost a message
or its connection, or sessions are left after all hostile clients have gone. Hostile files are read first
(tests/fuzz/files.py), and a reader that does anything but read or refuse is a fault too.

The hostile clients run at the lowest priority (nice 19), in processes of their own. The latency of the good clients is
printed, at rest and meanwhile; `--within 20` makes it a fault if their p99 rises by more than 20 %.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import click
import psutil

from tests.fuzz.files import fuzz_files
from tests.fuzz.hostile import send_frames
from tests.fuzz.http import send_requests
from tests.fuzz.latency import compare
from tests.fuzz.push import fuzz_push
from tests.fuzz.zmtp import fuzz_wire
from tests.support.good_clients import CLIENTS, watch
from tests.support.load_processes import started
from tests.support.rig import metrics
from tests.support.seen import Good, within
from tests.support.up import Up
from tests.support.waiting import wait_for

# Seconds in which good clients are watched before the hostile ones come.
REST = 10.0
# Seconds for sessions to end after the last hostile client has gone.
SETTLE_SECONDS = 30.0
# Seconds between two ticks of a code. A hole in a stream of few messages would hardly be found.
INTERVAL = 0.5
LOG = Path(tempfile.gettempdir(), "qmt-bridge-fuzz.log")


def fuzz(up: Up, frames: int, requests: int, rate: float, seed: int, percent: float | None) -> list[str]:
    """Run good and hostile clients; return what is wrong."""
    pid = up.pid("gateway")
    with started(watch, up.port) as good:
        good.recv()
        # The loop of the clients is still warming up.
        time.sleep(1.0)
        rested = time.monotonic()
        time.sleep(REST)
        began, before = time.monotonic(), psutil.Process(pid).memory_info().rss
        with ExitStack() as stack:
            of_frames = stack.enter_context(started(send_frames, up.port, frames, seed))
            of_requests = stack.enter_context(started(send_requests, up.port, requests, rate, seed))
            sent, opened = of_frames.recv()
            statuses: Counter[str] = of_requests.recv()
        ended = time.monotonic()
        good.send("end")
        seen: Good = good.recv()
    faults = [fault for _, fault in (*seen.gaps, *seen.closes)]
    if not psutil.pid_exists(pid):
        return [*faults, f"the worker {pid} has ended; its log: {LOG}"]
    faults += _left(up.port)
    grown = (psutil.Process(pid).memory_info().rss - before) / 2**20
    click.echo(
        f"{sent:,} frames over {opened:,} connections, and {statuses.total():,} raw requests, in {ended - began:.0f} s "
        f"({statuses.total() / (ended - began):,.0f} requests/s), seed {seed}; the worker grew by {grown:.0f} MB"
    )
    click.echo("answers: " + ", ".join(f"{status}: {count:,}" for status, count in statuses.most_common()))
    if statuses["500"]:
        faults.append(f"{statuses['500']} requests were answered with 500")
    if statuses["no HTTP"]:
        faults.append(f"{statuses['no HTTP']} answers are no HTTP")
    click.echo(f"{CLIENTS} good clients got {len(seen.delays):,} frames, {len(seen.gaps)} holes")
    at_rest, meanwhile = within(seen.delays, rested, began), within(seen.delays, began, ended)
    faults += compare("good clients", at_rest, meanwhile, percent)
    tracebacks = [line for line in up.lines if "Traceback" in line]
    click.echo(f"{len(tracebacks)} tracebacks in {len(up.lines):,} lines of the log")
    return faults + tracebacks


def _left(port: int) -> list[str]:
    """Return a fault if sessions are left once all have had time to end."""

    def sessions() -> float:
        return sum(value for name, value in metrics(port).items() if name.startswith("connections{"))

    try:
        wait_for(lambda: not sessions(), "the end of all sessions", SETTLE_SECONDS)
    except AssertionError:
        return [f"{sessions():.0f} sessions are left"]
    return []


@click.command()
@click.option("--frames", default=100_000, help="Frames that hostile clients send.")
@click.option("--requests", default=20_000, help="Raw requests, each on a connection of its own.")
@click.option("--rate", default=0.0, help="Raw requests a second at most; 0 is as many as possible.")
@click.option("--wire-frames", default=200_000, help="ZeroMQ frames and messages, to a feeder and from a hostile one.")
@click.option("--push-lines", default=100_000, help="Mutated lines of a pusher.")
@click.option("--files", default=10.0, help="Seconds for hostile files, which are read before.")
@click.option("--seed", default=1)
@click.option("--within", "percent", type=float, help="Percent by which the p99 of good clients may rise.")
def main(
    frames: int,
    requests: int,
    rate: float,
    wire_frames: int,
    push_lines: int,
    files: float,
    seed: int,
    percent: float | None,
) -> None:
    """Fuzz the readers of files, a gateway of one worker, the ZeroMQ side, and the port of pushers."""
    file_faults = fuzz_files(seed, files) if files else []
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder), "--source=sim", f"--sim-interval={INTERVAL}")
        try:
            up.wait_ready()
            faults = fuzz(up, frames, requests, rate, seed, percent)
        finally:
            up.close()
            LOG.write_text(up.text, encoding="utf-8")
    faults += file_faults + fuzz_wire(wire_frames, seed, percent) + fuzz_push(push_lines, seed)
    for fault in faults[:50]:
        click.echo(fault, err=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
