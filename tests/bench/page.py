"""The page with many rows at many updates a second in a real Chromium: long tasks, memory, first paint.

    python -m tests.bench.page --rows 500 --rate 10000 --seconds 600

The simulator invents some 4,000 ticks a second. So it invents some minutes of a tick a second for each row beforehand,
as a tape, which the feeder plays at the speed that makes the rate. Feeder, gateway and browser share the machine, so
the rate that the page receives is measured, and not assumed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import psutil

from feeder.sim.market import Market
from qmt_bridge import __version__
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import quote_topic
from tests.support.browser import Visit, running_browser
from tests.support.up import Up, running

# Codes of the simulator that are there in one block.
_FIRST = 600000
# Each row has one tick in a recorded second, and a recorded second has so many moments.
_MOMENTS = 20
# 2026-01-05 10:00 in Shanghai.
_BEGIN_MS = 1767578400000
_SEED = 7
# Notes each task of more than 50 ms from the page's start on.
_WATCH = """
window.longTasks = [];
new PerformanceObserver(list => {
    for (const each of list.getEntries()) window.longTasks.push(each.duration);
}).observe({type: "longtask", buffered: true});
window.framesDrawn = 0;
(function frame() { window.framesDrawn += 1; requestAnimationFrame(frame); })();
"""
_RECEIVED = "() => import('/assets/parts/quotes.js').then(({quotes}) => [quotes.received, quotes.pace.ms])"


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option("--rows", default=500, show_default=True, help="Codes of the board.")
@click.option("--rate", default=10_000, show_default=True, help="Updates a second of all codes.")
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--every", default=10.0, show_default=True, help="Seconds between two lines.")
@click.option("--traced", "traced_seconds", default=5.0, show_default=True, help="Seconds of tracing at the end.")
@click.option(
    "--taped", "taped_seconds", default=120, show_default=True, help="Seconds of the tape, which is repeated."
)
@click.option("--place", default="market", show_default=True, help="The view that is shown.")
def main(
    rows: int, rate: int, seconds: float, every: float, traced_seconds: float, taped_seconds: int, place: str
) -> None:
    codes = [f"{_FIRST + number}.SH" for number in range(rows)]
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser, ExitStack() as stack:
        tape = make_tape(Path(folder) / "ticks.qmtape", codes, taped_seconds)
        source = ("--source=replay", f"--file={tape}", f"--speed={rate / rows:g}", "--loop")
        up = stack.enter_context(running(Path(folder) / "data", *source, "--store-days=0"))
        visit = Visit(browser, f"http://127.0.0.1:{up.port}")
        visit.page.add_init_script(_WATCH)
        visit.page.add_init_script(f"localStorage.setItem('qmt-bridge.codes', {json.dumps(json.dumps(codes))})")
        visit.open(place)
        paint = visit.until("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        click.echo(f"first contentful paint {paint:.0f} ms, with {rows} rows")
        visit.until("() => /\\d/.test(document.querySelector('.row[data-code] .c-last')?.textContent)")
        for line in measured(visit, Shares(up), seconds, every):
            click.echo(line)
        click.echo(traced(browser, visit, traced_seconds))
        visit.close()


def make_tape(path: Path, codes: Sequence[str], seconds: int) -> Path:
    """Write what the simulator would publish of these codes, a tick a second of each, and return the path."""
    market = Market(_SEED, interval=1000)
    session = session_frame([quote_topic(code) for code in codes], __version__)
    tape = TapeWriter(path, Recorded(_BEGIN_MS * 1_000_000, session))
    for moment in range(seconds * _MOMENTS):
        time_ms = _BEGIN_MS + moment * 1000 // _MOMENTS
        for code in codes[moment % _MOMENTS :: _MOMENTS]:
            tick = {**market.tick(code, time_ms), "time": time_ms}
            frame = Frame(
                quote_topic(code),
                1,
                moment // _MOMENTS + 1,
                time_ms * 1_000_000,
                time_ms * 1_000_000,
                encode({code: [tick]}),
            )
            tape.write(time_ms * 1_000_000, frame)
    tape.close()
    return path


def measured(visit: Visit, shares: Shares, seconds: float, every: float) -> Iterator[str]:
    """Yield a line each `every` seconds: what the page received and drew, its long tasks, and what it holds."""
    cdp = visit.context.new_cdp_session(visit.page)
    cdp.send("Performance.enable")
    yield f"at first, after a garbage collection: {_kept(cdp)}"
    tasks = len(visit.page.evaluate("() => window.longTasks"))
    at = time.monotonic()
    end = at + seconds
    before, _ = visit.page.evaluate(_RECEIVED)
    drawn = visit.page.evaluate("() => window.framesDrawn")
    while time.monotonic() < end:
        visit.page.wait_for_timeout(every * 1000)
        received, pace = visit.page.evaluate(_RECEIVED)
        frames = visit.page.evaluate("() => window.framesDrawn")
        long = visit.page.evaluate("() => window.longTasks")
        passed = time.monotonic() - at
        at += passed
        new = long[tasks:]
        yield (
            f"{(received - before) / passed:7.0f} updates/s  pace {pace} ms  "
            f"{(frames - drawn) / passed:5.1f} frames/s  "
            f"long tasks {len(new)} (longest {max(new, default=0):.0f} ms)  {_held(cdp)}  {shares.look(passed)}"
        )
        before, drawn, tasks = received, frames, len(long)
    yield f"at last, after a garbage collection: {_kept(cdp)}"


class Shares:
    """Which shares of a core feeder, gateway and Chromium have had since the last look, and all other programs."""

    def __init__(self, up: Up) -> None:
        self._parts = {up.pid("feeder"): "feeder", up.pid("gateway"): "gateway"}
        self._before = self._read()

    def look(self, seconds: float) -> str:
        """Return the shares over the `seconds` since the last look."""
        now = self._read()
        used = {name: (now[name] - self._before.get(name, 0.0)) / seconds for name in now}
        self._before = now
        others = max(0.0, used.pop("all") - sum(used.values()))
        return " ".join(f"{name} {share:.0%}" for name, share in {**used, "others": others}.items())

    def _read(self) -> dict[str, float]:
        times = psutil.cpu_times()
        found = {
            "all": times.user + times.nice + times.system,
            "feeder": 0.0,
            "gateway": 0.0,
            "page": 0.0,
            "browser": 0.0,
        }
        for process in psutil.process_iter(["cpu_times", "cmdline"]):
            command = process.info["cmdline"] or [""]
            name = self._parts.get(process.pid)
            if name is None and "chromium" in command[0]:
                name = "page" if "--type=renderer" in command else "browser"
            if name is not None and process.info["cpu_times"] is not None:
                found[name] += process.info["cpu_times"].user + process.info["cpu_times"].system
        return found


def traced(browser: Any, visit: Visit, seconds: float) -> str:
    """Return what the page's thread has computed, by the clock of the thread: others that use the machine do not count.

    A long task of the browser's own count has waited too, wherever other processes had the processor.
    """
    # A trace of all processes has some megabytes for each second, which the driver hands over piece by piece.
    browser.start_tracing(page=visit.page, categories=["toplevel", "__metadata"])
    before, _ = visit.page.evaluate(_RECEIVED)
    at = time.monotonic()
    visit.page.wait_for_timeout(seconds * 1000)
    passed = time.monotonic() - at
    received, _ = visit.page.evaluate(_RECEIVED)
    events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {
        (each["pid"], each["tid"])
        for each in events
        if each["name"] == "thread_name" and each["args"]["name"] == "CrRendererMain"
    }
    tasks: dict[tuple[int, int], list[float]] = {}
    for each in events:
        thread = (each["pid"], each["tid"])
        if thread in threads and each["name"].endswith("RunTask") and "tdur" in each:
            tasks.setdefault(thread, []).append(each["tdur"] / 1000)
    # Of several renderers the page's is the one that computed most.
    page = max(tasks.values(), key=sum, default=[0.0])
    return (
        f"{passed:.0f} s by the thread's clock: {(received - before) / passed:.0f} updates/s, "
        f"{sum(page) / passed / 10:.0f} % of a core, {len(page)} tasks, "
        f"{sum(each > 50 for each in page)} longer than 50 ms, longest {max(page):.1f} ms"
    )


def _kept(cdp: Any) -> str:
    # A collection that is asked for stops the page for longer than one of its own.
    cdp.send("HeapProfiler.collectGarbage")
    return _held(cdp)


def _held(cdp: Any) -> str:
    """Return the heap and the nodes of the page, and the memory of the largest renderer."""
    found = {each["name"]: each["value"] for each in cdp.send("Performance.getMetrics")["metrics"]}
    sizes = [
        process.info["memory_info"].rss
        for process in psutil.process_iter(["memory_info", "cmdline"])
        if "--type=renderer" in (process.info["cmdline"] or [])
    ]
    heap = f"heap {found['JSHeapUsedSize'] / 2**20:.1f} MiB, {found['Nodes']:.0f} nodes"
    return f"{heap}, renderer {max(sizes, default=0) / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
