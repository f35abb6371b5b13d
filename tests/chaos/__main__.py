"""Kill, stop, cut and stall processes at random, then compare what each client received with the journal.

    python -m tests.chaos --seconds 60 --seed 1
    python -m tests.chaos --seconds 0 --kills 200
    python -m tests.chaos --seconds 3600 --rate 0.0167 --crowd 200

It runs real processes on the built-in simulator: a feeder, a store of the day, a gateway of two workers, proxies
between all parts, and clients: the Python library, plain WebSockets, programs that are killed themselves, watchers of
ticks, and those that begin in the past: they stay, leave and join at random, or read slowly. The exit code is 1 if an
event was lost, repeated or out of order, if clients were not told of a gap in the ticks or in their day, or if feeder
and workers hold more resources after all clients have disconnected than before the first one connected.

After the random faults come `--kills`, one after the other, of the store, the feeder and a worker in turn: each time
half of some further clients are in the middle of their morning, and it is counted how each of these streams goes on.

With a crowd the whole market is simulated at its own pace, as on a trading day. Processes are then killed in the first
half only, so that they run long enough to show whether their memory grows.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path

import click
import zmq

from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import FeedStatus, read_status
from qmt_bridge.wire.topics import STATUS_TOPIC, quote_topic
from tests.chaos import leaks, program
from tests.chaos.crowd import Crowd
from tests.chaos.joiners import Joiner
from tests.chaos.leaks import Holding, Memory
from tests.chaos.mornings import Place, Published
from tests.chaos.proxy import Proxy
from tests.chaos.readers import VICTIMS, Reader, Streams
from tests.chaos.verdict import Received, journaled, judge
from tests.chaos.watchers import LibraryTrader, QuoteWatcher, RawTrader, Watcher
from tests.chaos.world import Disk, Part, bridge
from tests.support.ports import free_port, free_ports

KEY = "chaos-0123456789"
STOCKS = [f"{600000 + number}.SH" for number in range(10)]
# What the store keeps beside them, so that it has some work: 1,000 ticks a second in all.
FURTHER = [f"{600100 + number}.SH" for number in range(40)]
# Clients that are read their morning while processes are killed.
READERS = 12
# Seconds until there is a morning that they can be read.
MORNING_SECONDS = 16.0
# Seconds for everything to recover after the last fault.
SETTLE_SECONDS = 60.0
# Seconds between two measurements of the memory of all processes.
LOOK_SECONDS = 2.0
# The share by which the memory of a process may grow after its first minutes.
GROWTH = 0.2
# Looks in a row, half a second apart, that find the same before the first client.
SAME_LOOKS = 4


class Run:
    """One run: its processes, clients and faults."""

    def __init__(self, folder: Path, seed: int, rate: float, crowd: int, *, only_kills: bool = False) -> None:
        # Without random faults there is one client of each kind beside the readers: kills follow each other faster.
        self._each = 1 if only_kills else 4
        self.random = random.Random(seed)
        self.crowd = Crowd(crowd, seed)
        self.memory = Memory()
        self.before: dict[str, Holding] = {}
        self.after: dict[str, Holding] = {}
        self.rate = rate
        self.faults: Counter[str] = Counter()
        self.folder = folder
        self.disk = Disk(folder / "data")
        self.status: FeedStatus | None = None
        # Failures of the run itself.
        self.trouble: list[str] = []
        self.published = Published()
        self.watchers: list[Watcher] = []
        self.joiners: list[Joiner] = []
        self.readers: list[Reader] = []
        self.streams = Streams()
        self.programs: list[Part] = []
        # With a crowd the whole market is busy.
        self.kept = STOCKS if crowd else STOCKS + FURTHER
        self._watched = set(map(quote_topic, STOCKS))
        self._kills = True
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start everything and wait until every client is served."""
        ports = free_ports(4)
        # From the gateway to each address, and at last from the store to the market data.
        self.wires = [Proxy(port) for port in (*ports, ports[0])]
        self.port = free_port()
        self.doors = [Proxy(self.port) for _ in range(2)]
        # The buffers of the kernel take all frames of a stall, so a client behind them is not conflated; this proxy has
        # small buffers. It is not cut, because a gap without a notice shows only after some seconds.
        self.narrow = Proxy(self.port, narrow=True)
        for proxy in (*self.wires, *self.doors, self.narrow):
            await proxy.start()
        feeder, gateway, store = self._settings(ports)
        self.feeder = Part("feeder", bridge("feeder"), feeder, self.folder)
        self.gateway = Part("gateway", bridge("gateway"), gateway, self.folder)
        self.store = Part("store", bridge("store"), store, self.folder)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._subscriber = context.socket(zmq.SUB)
        self._subscriber.rcvhwm = 0
        self._subscriber.connect(feeder["QMT_BRIDGE_MARKET_ADDR"])
        self._subscriber.subscribe(STATUS_TOPIC)
        # What is published to others: a prefix asks the feeder for nothing.
        self._subscriber.subscribe("quote/")
        if not self.crowd.size:
            self.joiners = [
                *(Joiner(f"stays {number}", STOCKS, self.published, stays=True) for number in range(self._each)[:2]),
                *(Joiner(f"joins {number}", STOCKS, self.published) for number in range(self._each)[:3]),
                Joiner("slow stays", STOCKS, self.published, stays=True, pause=0.003),
                Joiner("slow joins", STOCKS, self.published, pause=0.003),
            ]
        self.watchers = [
            *(LibraryTrader(f"library {number}") for number in range(self._each)[:3]),
            *(RawTrader(f"raw {number}", notices=number == 3) for number in range(self._each)),
            *self.joiners,
            *(QuoteWatcher(f"ticks {number}", STOCKS) for number in range(self._each)),
        ]
        self.feeder.tend()
        self.gateway.tend()
        self.store.tend()
        self._background(self._tend())
        self._background(self._look())
        await self._until(lambda: self.status is not None and len(self.gateway.workers) == 2, "feeder and gateway")
        # The store asks for what it keeps by itself.
        await self._until(lambda: self.status is not None and self.status.topics >= len(self.kept), "the store")
        # A connection that asked may still be open at the first look, and links of the workers may not be there yet:
        # they try again within 0.4 s, and on a busy machine two looks found the same without them.
        same = 0
        while same < SAME_LOOKS:
            await asyncio.sleep(0.5)
            held = await self._hold()
            same = same + 1 if held == self.before else 0
            self.before = held
        for number in range(self._each)[:2]:
            name = f"program {number}"
            arguments = [str(self.doors[number].port), KEY, str(self._file(name))]
            command = [sys.executable, "-m", "tests.chaos.program", *arguments]
            part = Part(name, command, {}, self.folder)
            part.tend()
            self.programs.append(part)
        for number, watcher in enumerate(self.watchers):
            door = self.narrow if watcher is self.watchers[-1] else self.doors[number % 2]
            self._listeners.append(asyncio.create_task(watcher.run(door.port, KEY)))
        self.crowd.start([door.port for door in self.doors], KEY)
        await self._until(lambda: all(watcher.longest for watcher in self.watchers), "the first frames")

    def _settings(self, ports: list[int]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Return the environments of feeder, gateway and store, which reach each other by the proxies."""
        names = ("QMT_BRIDGE_MARKET_ADDR", "QMT_BRIDGE_TRADE_ADDR", "QMT_BRIDGE_ASK_ADDR")
        feeder = dict(zip(names, (f"tcp://127.0.0.1:{port}" for port in ports), strict=False))
        gateway = dict(zip(names, (f"tcp://127.0.0.1:{proxy.port}" for proxy in self.wires), strict=False))
        # A proxy stands between, so that neither end can know the other by a folder.
        feeder["QMT_BRIDGE_OPEN_TRADE_ADDR"] = gateway["QMT_BRIDGE_OPEN_TRADE_ADDR"] = "true"
        feeder |= {
            "QMT_BRIDGE_SOURCE": "sim",
            "QMT_BRIDGE_DATA_DIR": str(self.disk.path),
            # With a crowd the length of the run matters, not the number of events: some ten a second.
            "QMT_BRIDGE_SIM_ORDER_INTERVAL": "1" if self.crowd.size else "0.05",
        }
        gateway |= {
            "QMT_BRIDGE_API_KEY": KEY,
            "QMT_BRIDGE_PORT": str(self.port),
            "QMT_BRIDGE_WORKERS": "2",
            "QMT_BRIDGE_STORE_ADDR": f"tcp://127.0.0.1:{self.wires[3].port}",
        }
        stored = self.folder / "stored"
        stored.mkdir()
        store = {
            "QMT_BRIDGE_MARKET_ADDR": f"tcp://127.0.0.1:{self.wires[4].port}",
            "QMT_BRIDGE_STORE_ADDR": f"tcp://127.0.0.1:{ports[3]}",
            "QMT_BRIDGE_STORE": ",".join(map(quote_topic, self.kept)),
            # Not on the disk that is filled.
            "QMT_BRIDGE_DATA_DIR": str(stored),
        }
        if not self.crowd.size:
            feeder["QMT_BRIDGE_SIM_INTERVAL"] = "0.05"
            # So small that a stalled client is conflated, and one of trade events is closed.
            gateway |= {"QMT_BRIDGE_OUTBOX_BYTES": "65536", "QMT_BRIDGE_SLOW_TIMEOUT": "5"}
        return feeder, gateway, store

    async def torment(self, seconds: float) -> None:
        """Cause faults for so many seconds; several happen at the same time, but only one to each victim."""
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            self._kills = not self.crowd.size or elapsed < seconds / 2
            await asyncio.sleep(self.random.expovariate(self.rate))
            victim, name, act = self.random.choice(self._menu())
            if victim not in self._busy:
                self._busy.add(victim)
                self.faults[name] += 1
                self._background(self._suffer(victim, act))
        await self._until(lambda: not self._busy, "the end of the faults")

    async def kill(self, count: int) -> None:
        """Kill processes in turn, each time while clients are in the middle of their morning."""
        if not count:
            return
        await asyncio.sleep(MORNING_SECONDS)
        self.readers = [Reader(f"reader {number}", STOCKS, self.published, self.streams) for number in range(READERS)]
        for number, reader in enumerate(self.readers):
            self._listeners.append(asyncio.create_task(reader.run(self.doors[number % 2].port, KEY)))
        for number in range(count):
            victim = VICTIMS[number % len(VICTIMS)]
            await self._until(self._is_in_the_middle, "clients in the middle of their morning")
            await asyncio.sleep(self.random.uniform(0.0, 0.3))
            self.streams.killed(victim, sum(reader.mark(victim) for reader in self.readers))
            self.faults[f"kill {victim}"] += 1
            if victim == "worker":
                os.kill(self._worker(), signal.SIGKILL)
            else:
                (self.store if victim == "store" else self.feeder).send(signal.SIGKILL)
            # Those that do not go on are counted.
            with suppress(TimeoutError):
                await self._until(
                    lambda: all(reader.has_passed() or reader.failure for reader in self.readers),
                    f"the streams that were read when a {victim} was killed",
                )
        read = [reader.mornings for reader in self.readers]
        await self._until(
            lambda: all(
                reader.mornings > before or reader.failure for reader, before in zip(self.readers, read, strict=True)
            ),
            "the end of the last mornings",
        )

    def _is_in_the_middle(self) -> bool:
        found = sum(bool(reader.in_the_middle()) for reader in self.readers)
        return 2 * found >= READERS and len(self.gateway.workers) == 2

    async def settle(self) -> int:
        """Wait until every client has all events, and return the position of the last one."""
        told = self.status.epoch if self.status else 0
        await self._until(lambda: self.status is not None and self.status.trade_seq > 0, "the feeder")
        # Wait for a heartbeat of the process that runs now.
        seen = time.time_ns() // 1_000_000
        await self._until(lambda: self.status is not None and self.status.time > seen, f"a heartbeat after {told}")
        assert self.status is not None
        last = self.status.trade_seq
        traders = [watcher for watcher in self.watchers if not isinstance(watcher, QuoteWatcher | Joiner)]
        for joiner in self.joiners:
            joiner.staying = True
        with suppress(TimeoutError):
            await self._until(
                lambda: (
                    all(watcher.position >= last or watcher.failure for watcher in traders)
                    and all(got and got[-1].seq >= last for got in map(program.read, self._files()))
                ),
                f"every client to reach {last}",
            )
            await self._until(
                lambda: not any(watcher.unexplained for watcher in self.watchers if isinstance(watcher, QuoteWatcher)),
                "the last notices",
            )
        # A stock without any more ticks would show no gap.
        since = time.monotonic()
        quotes = [watcher for watcher in self.watchers if isinstance(watcher, QuoteWatcher | Joiner)]
        with suppress(TimeoutError):
            await self._until(lambda: not any(watcher.silent(since) for watcher in quotes), "a tick of every stock")
        self.trouble += [
            f"{each.name} receives no ticks of {', '.join(each.silent(since))}" for each in quotes if each.silent(since)
        ]
        return last

    async def leave(self) -> None:
        """Disconnect all clients, and wait until feeder and workers hold what they held before the first one."""
        await self._dismiss()
        deadline = time.monotonic() + SETTLE_SECONDS
        while self.after != self.before and time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            self.after = await self._hold()

    async def _hold(self) -> dict[str, Holding]:
        assert self.status is not None
        async with asyncio.timeout(SETTLE_SECONDS):
            return await leaks.hold(self.feeder, self.gateway, self.status, self.port)

    async def _dismiss(self) -> None:
        await self.crowd.stop()
        for task in self._listeners:
            task.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        for part in self.programs:
            await asyncio.to_thread(part.stop)

    async def stop(self) -> list[tuple[int, bytes]]:
        """End everything; return the rows of the journal."""
        await self._dismiss()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for part in (self.gateway, self.store, self.feeder):
            await asyncio.to_thread(part.stop)
        for proxy in (*self.wires, *self.doors, self.narrow):
            await proxy.stop()
        self._subscriber.close(linger=0)
        try:
            return self._journal()
        finally:
            self.disk.close()

    def _journal(self) -> list[tuple[int, bytes]]:
        [path] = self.disk.path.glob("journal-*.sqlite3")
        database = sqlite3.connect(path)
        try:
            return database.execute("SELECT seq, body FROM event ORDER BY seq").fetchall()
        finally:
            database.close()

    def events(self) -> dict[str, list[Received]]:
        """Return what each client of trade events has received."""
        traders = [watcher for watcher in self.watchers if not isinstance(watcher, QuoteWatcher | Joiner)]
        got = {watcher.name: watcher.got for watcher in traders}
        return got | {part.name: program.read(self._file(part.name)) for part in self.programs}

    def bugs(self) -> list[str]:
        """Return the failures in the logs that no fault of this run explains."""
        logs = {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in self.folder.glob("*.log")}
        found = [f"{name} failed: see its log" for name, log in logs.items() if "Traceback" in log]
        # A worker that is frozen for too long is killed by its parent.
        ended = logs["gateway"].count("; another one is starting")
        caused = sum(self.faults[name] for name in ("kill worker", "freeze worker", "freeze gateway"))
        if ended > caused:
            found.append(f"{ended} workers ended, {caused} were killed or frozen")
        return found

    def _file(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.events"

    def _files(self) -> list[Path]:
        return [self._file(part.name) for part in self.programs]

    def _background(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as exc:
                self.trouble.append(f"{type(exc).__name__}: {exc}")

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tend(self) -> None:
        while True:
            for part in (self.feeder, self.gateway, self.store, *self.programs):
                part.tend()
            with suppress(zmq.Again):
                while True:
                    self._hear(Frame.from_parts(self._subscriber.recv_multipart(zmq.NOBLOCK)))
            await asyncio.sleep(0.05)

    def _hear(self, frame: Frame) -> None:
        if frame.topic == STATUS_TOPIC:
            self.status = read_status(frame.body)
        elif self.joiners and frame.topic in self._watched:
            for code, [record, *_] in frame.data.items():
                self.published.add(code, Place(frame.epoch, frame.seq), record["time"])

    async def _look(self) -> None:
        while True:
            for part in (self.feeder, self.gateway, self.store):
                for number, pid in enumerate(part.workers or [part.pid]):
                    # The process may have been killed just now.
                    with suppress(OSError):
                        name = f"worker {number}" if part is self.gateway else part.name
                        self.memory.note(name, pid, time.monotonic(), leaks.megabytes(pid))
            await asyncio.sleep(LOOK_SECONDS)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited more than {SETTLE_SECONDS:.0f} s for {what}")
            await asyncio.sleep(0.05)

    # -- Faults

    async def _suffer(self, victim: str, act: Callable[[], Awaitable[None]]) -> None:
        try:
            await act()
        finally:
            self._busy.discard(victim)

    def _menu(self) -> list[tuple[str, str, Callable[[], Awaitable[None]]]]:
        menu: list[tuple[str, str, Callable[[], Awaitable[None]]]] = []
        for part in (self.feeder, self.gateway, self.store, *self.programs):
            kind = part.name.split()[0]
            menu.append((part.name, f"freeze {kind}", self._freezes(partial(attrgetter("pid"), part))))
            if self._kills or part in self.programs:
                menu.append((part.name, f"kill {kind}", self._signals(part, signal.SIGKILL)))
        for _ in range(2):
            menu.append(("gateway", "freeze worker", self._freezes(self._worker)))
        if self._kills:
            menu.append(("feeder", "stop feeder", self._signals(self.feeder, signal.SIGTERM)))
            menu.append(("gateway", "stop gateway", self._signals(self.gateway, signal.SIGTERM)))
            menu.append(("store", "stop store", self._signals(self.store, signal.SIGTERM)))
            menu += [("gateway", "kill worker", self._kill_worker)] * 2
        for number, proxy in enumerate(self.wires):
            menu.append((f"wire {number}", "cut wire", self._cuts(proxy)))
            menu.append((f"wire {number}", "hold wire", self._holds(proxy)))
        for number, proxy in enumerate(self.doors):
            menu.append((f"door {number}", "cut clients", self._cuts(proxy)))
            menu.append((f"door {number}", "hold clients", self._holds(proxy)))
        for watcher in self.watchers:
            menu.append((watcher.name, "stall client", self._stalls(watcher)))
        if self.disk.mounted:
            # The victim is the feeder: if it were killed meanwhile, events that are only in its memory would be lost.
            menu += [("feeder", "fill disk", self._fill)] * 2
        return menu

    def _signals(self, part: Part, number: signal.Signals) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            before = part.pid
            part.send(number)
            await self._until(lambda: part.pid != before, f"the return of {part.name}")
            # The next fault has to wait until the process has started.
            await asyncio.sleep(self.random.uniform(0.5, 2.0))

        return act

    def _freezes(self, pid_of: Callable[[], int]) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            pid = pid_of()
            if not pid:
                return
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(self.random.uniform(0.2, 4.0))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        return act

    def _worker(self) -> int:
        workers = self.gateway.workers
        return self.random.choice(workers) if workers else 0

    async def _kill_worker(self) -> None:
        pid = self._worker()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(self.random.uniform(0.5, 2.0))

    def _cuts(self, proxy: Proxy) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            proxy.cut()

        return act

    def _holds(self, proxy: Proxy) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            proxy.hold()
            await asyncio.sleep(self.random.uniform(0.2, 4.0))
            if self.random.random() < 0.5:
                proxy.cut()
            proxy.heal()

        return act

    def _stalls(self, watcher: Watcher) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            watcher.reading.clear()
            await asyncio.sleep(self.random.uniform(0.2, 6.0))
            watcher.reading.set()

        return act

    async def _fill(self) -> None:
        await asyncio.to_thread(self.disk.fill)
        await asyncio.sleep(self.random.uniform(0.5, 3.0))
        self.disk.empty()
        # Events that were kept in memory meanwhile are on disk within a heartbeat.
        healed = time.time_ns() // 1_000_000 + 1000
        await self._until(lambda: self.status is not None and self.status.time > healed, "the journal")


async def _run(folder: Path, seconds: float, seed: int, rate: float, crowd: int, kills: int) -> int:
    run = Run(folder, seed, rate, crowd, only_kills=not seconds)
    try:
        await run.start()
        began = time.monotonic()
        await run.torment(seconds)
        await run.kill(kills)
        took = time.monotonic() - began
        last = await run.settle()
        holes = sum(watcher.unexplained for watcher in run.watchers if isinstance(watcher, QuoteWatcher))
        await run.leave()
    finally:
        rows = await run.stop()
    journal = journaled(rows)
    checks = (_check_events(run, journal, last), _check_days(run), _check_kills(run), _check_processes(run))
    failed = [*itertools.chain(*checks), *_check_memory(run)]
    if holes:
        failed.append(f"{holes} missing ticks without a notice")
    click.echo(f"faults       {sum(run.faults.values())} in {took:.0f} s: {dict(run.faults.most_common())}")
    click.echo(f"journal      {len(journal)} events, compared up to {last}")
    _report(run, holes)
    click.echo(f"seed         {seed}")
    for reason in failed:
        click.echo(f"FAILED       {reason}", err=True)
    return 1 if failed else 0


def _check_events(run: Run, journal: Mapping[int, int], last: int) -> Iterator[str]:
    """Print how each client's events differ from the journal; yield the failures."""
    if list(journal) != list(range(1, len(journal) + 1)):
        yield "the journal has gaps"
    for name, got in run.events().items():
        verdict = judge(got, journal, last)
        click.echo(f"{name:<12} {len(got):>8} events, {verdict}")
        if not verdict.is_clean:
            yield f"{name}: {verdict}"
    for watcher in run.watchers:
        click.echo(f"{watcher.name:<12} longest silence {watcher.longest:.1f} s")
        if watcher.failure:
            yield f"{watcher.name} failed: {watcher.failure}"


def _check_days(run: Run) -> Iterator[str]:
    """Print what the clients with a start received; yield where it differs from what was published."""
    for joiner in run.joiners:
        gaps = Counter(reason for visit in joiner.visits for reason in visit.reasons)
        begun = sum(len(visit.arrivals) for visit in joiner.visits)
        complete = sum(len(visit.complete) for visit in joiner.visits)
        click.echo(
            f"{joiner.name:<12} {joiner.frames:>8} ticks in {len(joiner.visits)} visits, "
            f"{complete} of {begun} days complete, told {dict(gaps)}"
        )
        yield from joiner.faults()


def _check_kills(run: Run) -> Iterator[str]:
    """Print how the streams went on that kills found in the middle; yield where they did not, or not as published."""
    for reader in run.readers:
        reader.judge()
        if reader.failure:
            yield f"{reader.name} failed: {reader.failure}"
    for victim in VICTIMS if run.readers else ():
        click.echo(f"kill {victim:<7} {run.streams.shown(victim)}")
        if run.streams.unended(victim):
            yield f"{run.streams.unended(victim)} streams did not go on after a {victim} was killed"
    for victim, wrong in run.streams.wrong.items():
        yield from (f"{found} (killed before: {victim})" for found in wrong)


def _check_processes(run: Run) -> Iterator[str]:
    """Yield the processes that ended by themselves, failed, or hold more than before the clients."""
    for part in (run.feeder, run.gateway, run.store, *run.programs):
        if part.crashes:
            yield f"{part.name} ended {part.crashes} times by itself"
    yield from run.trouble
    yield from run.bugs()
    for name, held in run.before.items():
        if run.after.get(name) != held:
            yield f"{name} held {held} before the clients, now {run.after.get(name)}"


def _check_memory(run: Run) -> Iterator[str]:
    """Print the memory of each process; yield those that have grown."""
    for each in run.memory.processes():
        sizes = f"{each.warm:.1f} MB, {each.last:.1f} MB after {each.seconds:.0f} s: {each.growth:+.1%}"
        click.echo(f"{each.name:<12} {sizes}")
        if each.growth > GROWTH:
            yield f"{each.name} grew by {each.growth:.1%}"


def _report(run: Run, holes: int) -> None:
    """Print the figures of a run that decide nothing."""
    ticks = [watcher for watcher in run.watchers if isinstance(watcher, QuoteWatcher)]
    skipped = sum((watcher.skipped for watcher in ticks), start=Counter())
    click.echo(f"ticks        {sum(watcher.frames for watcher in ticks)} frames, {holes} missing without a notice")
    click.echo(f"skipped      {dict(skipped)}")
    longest = max(watcher.longest for watcher in run.watchers)
    click.echo(f"outage       longest {longest:.1f} s, reconnects {sum(w.reconnects for w in run.watchers)}")
    held = ", ".join(f"{name} {holding.descriptors}" for name, holding in run.after.items())
    compared = "as" if run.after == run.before else "not as"
    click.echo(f"descriptors  {held} after all clients had left, {compared} before")
    if run.crowd.size:
        click.echo(f"crowd        {run.crowd.size} at a time, {run.crowd.visits} in all, {run.crowd.frames} frames")
    filled = "filled as well" if run.disk.mounted else "not filled: no file system could be mounted"
    click.echo(f"disk         {filled}")


@click.command()
@click.option("--seconds", default=60.0, help="Seconds with faults.")
@click.option("--seed", default=None, type=int, help="The same seed chooses the same faults.")
@click.option("--rate", default=2.0, help="Faults a second.")
@click.option("--kills", default=3, help="Kills in the middle of mornings, after the faults; none with a crowd.")
@click.option(
    "--crowd", default=0, help="Number of further clients, which connect and disconnect, with a whole market."
)
@click.option("--keep", is_flag=True, help="Keep logs and journal.")
def main(seconds: float, seed: int | None, rate: float, crowd: int, keep: bool, kills: int) -> None:
    """Kill, stop, cut and stall processes at random, then compare what every client received with the journal."""
    if sys.platform != "linux":
        raise click.ClickException("stopping processes and filling a disk needs Linux")
    seed = random.randrange(1_000_000) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="qmt-bridge-chaos-"))
    click.echo(f"seed {seed}, logs in {folder}")
    code = asyncio.run(_run(folder, seconds, seed, rate, crowd, 0 if crowd else kills))
    if not (keep or code):
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
