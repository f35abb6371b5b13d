"""Kill a pusher again and again, and the feeder now and then, and compare what came with what was pushed.

    python -m tests.chaos.pushers --kills 200 --seed 1

Each time the feed has to be down with the reason `pusher_gone`, and up again with `data_lost` once the pusher is back,
with its account. The journal has to have every trade event once and in order, although each connection begins with all
of them, and clients of the gateway the same as the journal. The exit code is 1 if anything of that is not so.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click
import msgspec
import zmq

from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import FeedStatus, read_status
from qmt_bridge.wire.topics import STATUS_TOPIC
from tests.chaos.broker import NAME, count
from tests.chaos.verdict import journaled, judge
from tests.chaos.watchers import LibraryTrader, RawTrader, Watcher
from tests.chaos.world import Part, bridge
from tests.support.ports import free_ports, tcp
from tests.support.waiting import until

KEY = "chaos-0123456789"
# Seconds between two trade events.
INTERVAL = 0.05
# After so many kills of the pusher the feeder is killed once.
FEEDER_EVERY = 5
LOOK_SECONDS = 0.002


class Run:
    """The processes, what the feeder's heartbeats said, and what is wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.faults: list[str] = []
        # Seconds from a kill to the state that says so, and from the return of the pusher to the state up.
        self.down: list[float] = []
        self.up: list[float] = []
        # Heartbeats with a state that differs from the one before.
        self.changes: list[FeedStatus] = []
        self.status: FeedStatus | None = None
        self.began = time.time()
        self.watchers: list[Watcher] = [LibraryTrader("library"), RawTrader("raw", notices=True)]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start everything, and wait until the pusher's events come."""
        market, ask, trade, trade_ask = map(tcp, free_ports(4))
        push, self.port = free_ports(2)
        addresses = {"MARKET": market, "ASK": ask, "TRADE": trade, "TRADE_ASK": trade_ask}
        env = {f"QMT_BRIDGE_{name}_ADDR": address for name, address in addresses.items()}
        env |= {"QMT_BRIDGE_OPEN_TRADE_ADDR": "true", "QMT_BRIDGE_DATA_DIR": str(self.folder)}
        of_feeder = {"QMT_BRIDGE_SOURCE": "push", "QMT_BRIDGE_PUSH_ADDR": tcp(push), "QMT_BRIDGE_METRICS_ADDR": ""}
        of_gateway = {"QMT_BRIDGE_API_KEY": KEY, "QMT_BRIDGE_PORT": str(self.port)}
        command = [sys.executable, "-m", "tests.chaos.broker", str(push), str(self.began), str(INTERVAL)]
        self.feeder = Part("feeder", bridge("feeder"), env | of_feeder, self.folder)
        self.gateway = Part("gateway", bridge("gateway"), env | of_gateway, self.folder)
        self.broker = Part("broker", command, {}, self.folder)
        self._subscriber = zmq.Context.instance().socket(zmq.SUB)
        self._subscriber.connect(market)
        self._subscriber.subscribe(STATUS_TOPIC)
        self._tasks.append(asyncio.create_task(self._look()))
        for part in (self.feeder, self.gateway, self.broker):
            part.tend()
        await self._until(lambda: self._is_up(0), "the pusher")
        self._tasks += [asyncio.create_task(watcher.run(self.port, KEY)) for watcher in self.watchers]
        await self._until(lambda: all(watcher.position for watcher in self.watchers), "the first events")

    async def kill_pusher(self) -> None:
        """Kill the pusher, and start it again once the feed is down."""
        await asyncio.sleep(self.random.choice((0.0, self.random.uniform(0.0, 0.3))))
        assert self.status is not None
        epoch, seen, killed = self.status.epoch, len(self.changes), time.monotonic()
        self.broker.send(signal.SIGKILL)
        await self._until(lambda: self._is_down(epoch), "the feed to be down")
        self.down.append(time.monotonic() - killed)
        started = time.monotonic()
        await self._restart(self.broker)
        await self._until(lambda: self._is_up(epoch), "the feed to be up")
        self.up.append(time.monotonic() - started)
        told = [(each.state, each.reason, each.data_lost) for each in self.changes[seen:]]
        if told != [("down", "pusher_gone", False), ("up", None, True)]:
            self.faults.append(f"after a kill of the pusher the feed was {told}")

    async def kill_feeder(self) -> None:
        """Kill the feeder, and start it again; the pusher comes by itself."""
        assert self.status is not None
        before = self.status.epoch
        self.feeder.send(signal.SIGKILL)
        await asyncio.sleep(self.random.uniform(0.0, 0.3))
        await self._restart(self.feeder)
        await self._until(lambda: self.status is not None and self.status.epoch > before, "another feeder")
        await self._until(lambda: self._is_up(0), "the pusher at another feeder")

    async def settle(self) -> int:
        """Wait until the clients have all events of now; return the position of the newest one."""
        there = count(self.began, INTERVAL, time.time())
        with suppress(TimeoutError):
            await self._until(lambda: all(watcher.position >= there for watcher in self.watchers), f"{there} events")
        return there

    async def close(self) -> list[tuple[int, bytes]]:
        """End everything; return the rows of the journal."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for part in (self.broker, self.gateway, self.feeder):
            await asyncio.to_thread(part.stop)
        self._subscriber.close(linger=0)
        [path] = self.folder.glob("journal-*.sqlite3")
        database = sqlite3.connect(path)
        try:
            return list(database.execute("SELECT seq, body FROM event ORDER BY seq"))
        finally:
            database.close()

    def _is_down(self, epoch: int) -> bool:
        status = self.status
        return status is not None and (status.state, status.epoch) == ("down", epoch) and self._account() == "down"

    def _is_up(self, epoch: int) -> bool:
        status = self.status
        return status is not None and status.state == "up" and status.epoch >= epoch and self._account() == "up"

    def _account(self) -> str:
        """Return the state of the pusher's account, if the list of pushers agrees with that of the accounts."""
        assert self.status is not None
        states = {each.state for each in self.status.accounts} | {
            each.state for each in self.status.pushers if each.name == NAME
        }
        return states.pop() if len(states) == 1 else ""

    async def _restart(self, part: Part) -> None:
        """Start a process again that was killed, as soon as it has ended."""
        killed = part.pid

        def is_another() -> bool:
            part.tend()
            return part.pid != killed

        await self._until(is_another, f"the end of the {part.name}")

    async def _look(self) -> None:
        while True:
            with suppress(zmq.Again):
                while True:
                    status = read_status(Frame.from_parts(self._subscriber.recv_multipart(zmq.NOBLOCK)).body)
                    before = self.status
                    self.status = status
                    if before is None or (before.epoch, before.state) != (status.epoch, status.state):
                        self.changes.append(status)
            await asyncio.sleep(LOOK_SECONDS)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            await until(condition, lambda: f"{what}; the newest heartbeat: {self.status}")
        except AssertionError as exc:
            raise TimeoutError(str(exc)) from None


def differences(rows: list[tuple[int, bytes]], there: int) -> Iterator[str]:
    """Yield how the journal differs from the first `there` events, each once and in order. Pure."""
    found = [msgspec.json.decode(body)["data"]["push_id"] for _, body in rows]
    if [seq for seq, _ in rows] != list(range(1, len(rows) + 1)):
        yield "the journal has gaps"
    if len(found) < there:
        yield f"the journal has {len(found)} events of {there}"
    wrong = [(place, identity) for place, identity in enumerate(found) if identity != f"order/{place}"]
    if wrong:
        yield f"{len(wrong)} events of the journal are at another place, the first of them {wrong[0]}"


async def torment(folder: Path, kills: int, seed: int, feeder_every: int = FEEDER_EVERY) -> list[str]:
    """Run, kill and compare; print what was seen and return what is wrong."""
    run = Run(folder, seed)
    there, feeders = 0, 0
    try:
        await run.start()
        for number in range(1, kills + 1):
            await run.kill_pusher()
            if number % feeder_every == 0:
                feeders += 1
                await run.kill_feeder()
        there = await run.settle()
    except TimeoutError as exc:
        run.faults.append(str(exc))
    finally:
        rows = await run.close()
    run.faults += differences(rows, there)
    journal = journaled(rows)
    for watcher in run.watchers:
        verdict = judge(watcher.got, journal, there)
        click.echo(f"client {watcher.name}: {len(watcher.got)} events, {verdict}")
        if watcher.failure or not verdict.is_clean:
            run.faults.append(f"the client {watcher.name}: {watcher.failure or verdict}")
    crashes = {part.name: part.crashes for part in (run.feeder, run.gateway, run.broker) if part.crashes}
    if crashes:
        run.faults.append(f"processes ended by themselves: {crashes}")
    click.echo(
        f"{len(run.up)} kills of the pusher and {feeders} of the feeder in {time.time() - run.began:.0f} s, "
        f"seed {seed}; {len(rows)} events in the journal; down after at most {max(run.down, default=0):.3f} s, "
        f"up again at most {max(run.up, default=0):.3f} s after the start of the pusher"
    )
    return run.faults


@click.command()
@click.option("--kills", default=200, help="Kills of the pusher; after each fifth one the feeder is killed too.")
@click.option("--seed", type=int, help="[default: a random one, which is printed]")
def main(kills: int, seed: int | None) -> None:
    """Kill a pusher and the feeder, and compare the journal and its clients with what was pushed."""
    folder = Path(tempfile.mkdtemp(prefix="qmt-bridge-chaos-"))
    faults = asyncio.run(torment(folder, kills, random.randrange(1_000_000) if seed is None else seed))
    for fault in faults[:50]:
        click.echo(f"FAILED: {fault}; logs in {folder}", err=True)
    if not faults:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
