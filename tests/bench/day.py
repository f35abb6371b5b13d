"""The day so far, then live: the targets of subscriptions with a `start`, over real processes.

    python -m tests.bench.day
    python -m tests.bench.day joiners --rate 30000

Feeder, store, gateway of one worker and clients share the machine: nothing is pinned. Each part takes at most two
minutes. A figure is one run, so compare it with runs on the same quiet machine only.

joiners  200 clients join at random while the feeder publishes `--rate` ticks/s of 5,000 codes, each with 5 codes and a
         start of up to 20 s ago; 20 others follow live. What is missing, twice or out of order, and p99 of the others
code     one code's day of 5,000 ticks: to the first frame, and to all
forms    one code's day over HTTP to some readers, again and again, in each form; and p99 of others that follow live
morning  the whole market's morning, in batches and code by code, to one client that reads fast
store    the store on the simulator's whole market of 5,400 codes, each every 3 s
last     /api/last of 50 codes, which a client has subscribed, one request after the other
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import orjson
from websockets.asyncio.client import connect

from qmt_bridge.commands.bench import Usage
from qmt_bridge.config import Config, export_env
from qmt_bridge.store.app import FOLDER
from qmt_bridge.store.log import Log
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.topics import quote_topic
from tests.bench.publish import FIRST_SEQ, Publisher, Template, varied
from tests.bench.servers import connected, process
from tests.support.ports import free_port, tcp
from tests.support.store_asker import asking

MARKET = [f"{600000 + number}.SH" for number in range(5000)]
JOINERS, OTHERS = 200, 20
CODES_A_JOINER, CODES_OF_OTHERS = 5, 10
PAST_SECONDS = 20.0
# Readers of a day over HTTP, and the ticks a second of the others meanwhile.
READERS, LIVE_RATE = 2, 5000.0
# Of each code in a morning of 3 million ticks.
MORNING_TICKS = 600
# Seconds after which a measurement fails.
PATIENCE = 30.0


class Setting(NamedTuple):
    """The processes of a measurement."""

    config: Config
    store: int
    gateway: int


@contextmanager
def serving(config: Config, codes: Sequence[str]) -> Iterator[Setting]:
    """Run a store that keeps `codes` or topics, and a gateway, beside the feeder of `config`."""
    with ExitStack() as parts:
        config = msgspec.structs.replace(config, port=free_port(), store_addr=tcp(free_port()), store=tuple(codes))
        if codes and not codes[0].endswith("/"):
            listed = Path(config.data_dir) / "codes.txt"
            listed.write_text("\n".join(codes), encoding="utf-8")
            config = msgspec.structs.replace(config, store=(str(listed),))
        env = export_env(config)
        run = [sys.executable, "-m", "qmt_bridge.cli"]
        store = parts.enter_context(process([*run, "store"], env, cores=()))
        gateway = parts.enter_context(process([*run, "gateway"], env, cores=()))
        connected(config.port).close()
        yield Setting(config, store, gateway)


@contextmanager
def published(kind: str, shape: str = "day") -> Iterator[tuple[Publisher, Config]]:
    """Run the feeder, or a sender of the same messages ("wire"), in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="qmt-bridge-day-") as folder:
        addresses = {name: tcp(free_port()) for name in ("market_addr", "trade_addr", "ask_addr")}
        config = Config(data_dir=folder, open_trade_addr=True, log_level="warning", store_max_mb=8192, **addresses)
        options = {"config": config} | ({"shape": shape} if kind == "feeder" else {})
        with Publisher(kind, (), **options) as publisher:
            yield publisher, config


def stored(setting: Setting) -> StoreStatus:
    with asking(setting.config.store_addr) as asker:
        return asker.status()


def wait(condition: Callable[[], bool], what: str, seconds: float = 0.0) -> None:
    """Wait for what takes `seconds`, and for `PATIENCE` more."""
    until = time.monotonic() + seconds + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited too long for {what}")
        time.sleep(0.05)


def fill(publisher: Publisher, setting: Setting, codes: Sequence[str], count: int, rate: float, market: str) -> None:
    """Publish `count` messages and wait until the store has them."""
    # A store that has just started has not subscribed yet.
    before = stored(setting).stored
    publisher.start(codes, rate, market)
    wait(lambda: publisher.sent >= count, "the publisher", count / rate)
    publisher.stop()
    settled = [-1]

    def has_settled() -> bool:
        settled.append(stored(setting).stored)
        return settled[-1] == settled[-2]

    wait(has_settled, "the store")
    status = stored(setting)
    click.echo(f"  filled: {status.stored - before:,} of {publisher.sent:,} messages, {status.left_out:,} left out")


class Raw:
    """A WebSocket client that reads as fast as Python can: it looks at the heads of the frames alone."""

    def __init__(self, port: int, path: str, request: dict[str, Any]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        key = base64.b64encode(bytes(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self._data = bytearray()
        while b"\r\n\r\n" not in self._data:
            self._more()
        del self._data[: self._data.index(b"\r\n\r\n") + 4]
        self.sent_at = time.perf_counter()
        body = orjson.dumps(request)
        # With a mask of zeros the payload is itself.
        size = len(body)
        head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2)
        if size > 0xFFFF:
            head = bytes((0x81, 0xFF)) + size.to_bytes(8)
        self._socket.sendall(head + bytes(4) + body)

    def _more(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError(f"the gateway has closed the connection: {bytes(self._data[-200:])!r}")
        self._data += data

    def frames(self) -> Iterator[list[bytes]]:
        """Yield the first bytes of the text frames that each read of the socket has completed."""
        while True:
            self._more()
            data, at, found = self._data, 0, []
            end = len(data)
            while end - at >= 2:
                size, head = data[at + 1], 2
                if size == 126 and end - at >= 4:
                    size, head = (data[at + 2] << 8) | data[at + 3], 4
                elif size == 127 and end - at >= 10:
                    size, head = int.from_bytes(data[at + 2 : at + 10]), 10
                if at + head + size > end:
                    break
                if data[at] == 0x81:
                    found.append(bytes(data[at + head : at + head + 24]))
                elif data[at] == 0x88:
                    raise ConnectionError(f"closed: {bytes(data[at + head : at + head + size])!r}")
                elif data[at] == 0x89:
                    self._pong(bytes(data[at + head : at + head + size]))
                at += head + size
            del data[:at]
            if found:
                yield found

    def _pong(self, body: bytes) -> None:
        self._socket.sendall(bytes((0x8A, 0x80 | len(body))) + bytes(4) + body)

    def close(self) -> None:
        self._socket.close()


def is_data(frame: bytes) -> bool:
    return not frame.startswith(b'{"type"')


# -- joiners


def follow(port: int, seconds: float, seed: int) -> list[float]:
    """Follow live with some clients; return the ms from the feeder to each frame."""

    async def one(codes: list[str], ages: list[float], until: float) -> None:
        async with connect(
            f"ws://127.0.0.1:{port}/ws/realtime", proxy=None, compression=None, open_timeout=PATIENCE
        ) as client:
            await client.send(json.dumps({"id": 1, "stocks": codes, "seq": True}))
            async for text in client:
                now = time.time() * 1000
                if now / 1000 > until:
                    return
                frame = orjson.loads(text)
                if frame["type"] == "data" and frame["published"] is not None:
                    ages.append(now - frame["published"])

    async def all_of_them() -> list[float]:
        chance = random.Random(seed)
        ages: list[float] = []
        until = time.time() + seconds
        await asyncio.gather(*(one(chance.sample(MARKET, CODES_OF_OTHERS), ages, until) for _ in range(OTHERS)))
        return ages

    return asyncio.run(all_of_them())


def join(port: int, seconds: float, seed: int) -> Counter[str]:
    """Join at random moments of the first two thirds of the time; return what is wrong with what came."""

    async def one(chance: random.Random, found: Counter[str], began: float) -> None:
        await asyncio.sleep(chance.uniform(0, seconds * 2 / 3))
        codes = chance.sample(MARKET, CODES_A_JOINER)
        joined_ms = time.time() * 1000
        start = int(joined_ms - chance.uniform(0, PAST_SECONDS) * 1000)
        newest: dict[str, tuple[int, int]] = {}
        async with connect(
            f"ws://127.0.0.1:{port}/ws/realtime", proxy=None, compression=None, open_timeout=PATIENCE
        ) as client:
            await client.send(json.dumps({"id": 1, "stocks": codes, "seq": True, "mode": "all", "start": start}))
            async for text in client:
                frame = orjson.loads(text)
                if frame["type"] == "data":
                    [code] = frame["data"]
                    place = frame["epoch"], frame["seq"]
                    before = newest.get(code)
                    found["ticks"] += 1
                    # A last value, which begins a stream that was told to be incomplete, has no time.
                    at = frame["time"] or joined_ms
                    found["stored"] += at < joined_ms
                    if before is None:
                        found["early"] += at < start
                    elif place == before:
                        found["duplicate"] += 1
                    elif place < before:
                        found["out_of_order"] += 1
                    elif place[1] != before[1] + 1:
                        found["missing"] += place[1] - before[1] - 1
                    newest[code] = place
                    if time.monotonic() > began + seconds:
                        break
                elif frame["type"] == "subscribed":
                    found["complete"] += sum(said["complete"] for said in frame["start"].values())
                    for said in frame["start"].values():
                        if not said["complete"]:
                            found[f"begins with {said['reason']}"] += 1
                elif frame["type"] in ("gap", "skipped", "error"):
                    found[f"told {frame.get('reason') or frame['code']}"] += 1
        found["streams"] += len(newest)

    async def all_of_them() -> Counter[str]:
        chance = random.Random(seed)
        names = ("streams", "complete", "ticks", "stored", "early", "missing", "duplicate", "out_of_order")
        found = Counter(dict.fromkeys(names, 0))
        began = time.monotonic()
        await asyncio.gather(*(one(chance, found, began) for _ in range(JOINERS)))
        return found

    return asyncio.run(all_of_them())


def joiners(rate: float) -> None:
    """Measure clients that join at random."""
    spawn = multiprocessing.get_context("spawn")
    with (
        published("feeder") as (publisher, config),
        serving(config, MARKET) as setting,
        ProcessPoolExecutor(2, spawn) as pool,
    ):
        wait(lambda: publisher.ask("wanted") >= len(MARKET), "the store's subscriptions")
        publisher.start(MARKET, rate)
        began = time.monotonic()
        # What the first joiners ask for.
        time.sleep(PAST_SECONDS)
        alone = pool.submit(follow, setting.config.port, 10.0, 1).result()
        usages = {name: Usage.of([pid]) for name, pid in (("store", setting.store), ("gateway", setting.gateway))}
        at = time.monotonic()
        joined = pool.submit(join, setting.config.port, 24.0, 2)
        beside = pool.submit(follow, setting.config.port, 20.0, 3).result()
        found = joined.result()
        seconds = time.monotonic() - at
        elapsed = time.monotonic() - began
        sent = publisher.sent
        publisher.stop()
        status = stored(setting)
        for name, before in usages.items():
            after = Usage.of([setting.store if name == "store" else setting.gateway])
            if before and after:
                click.echo(f"  {name}: {(after.cpu_seconds - before.cpu_seconds) / seconds:.0%} of a core")
    click.echo(f"  published {sent / elapsed:,.0f} ticks/s of {rate:,.0f}, {status.stored:,} stored of {sent:,}")
    click.echo(f"  joiners: {dict(found)}")
    click.echo(
        f"  others alone: p50 {quantile(alone, 0.5):.2f} ms, p99 {quantile(alone, 0.99):.2f} ms of {len(alone):,}; "
        f"beside joiners: p50 {quantile(beside, 0.5):.2f} ms, p99 {quantile(beside, 0.99):.2f} ms of {len(beside):,}"
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values is; NaN without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


# -- code and morning


def code(rate: float) -> None:
    """Measure one code's day."""
    ticks, name = 5000, MARKET[0]
    with published("wire") as (publisher, config), serving(config, [name]) as setting:
        fill(publisher, setting, [name], ticks, min(rate, 5000.0), "")
        kept = stored(setting).stored
        firsts, alls = [], []
        for _ in range(20):
            reader = Raw(setting.config.port, "/ws/realtime", {"stocks": [name], "start": 1_766_000_000_000})
            count = 0
            for frames in reader.frames():
                data = sum(map(is_data, frames))
                if data and not count:
                    firsts.append((time.perf_counter() - reader.sent_at) * 1000)
                count += data
                if count >= kept:
                    break
            alls.append((time.perf_counter() - reader.sent_at) * 1000)
            reader.close()
    for label, values in (("first frame", firsts), (f"all {kept:,}", alls)):
        click.echo(f"  {label}: median {quantile(values, 0.5):.1f} ms, worst {max(values):.1f} ms of {len(values)}")


def fetch(port: int, code: str, form: str, until: float) -> list[tuple[float, int]]:
    """Read a code's day in a form until then (time.time()); return the ms and bytes of each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    answers = []
    while time.time() < until:
        began = time.perf_counter()
        connection.request("GET", f"/api/ticks/{code}?format={form}")
        response = connection.getresponse()
        size = len(response.read())
        assert response.status == 200, response.status
        answers.append(((time.perf_counter() - began) * 1000, size))
    return answers


def forms(rate: float) -> None:
    """Measure a code's day over HTTP, and what its readers cost those that follow live."""
    day, live = MARKET[0], MARKET[1:]
    spawn = multiprocessing.get_context("spawn")
    with (
        published("feeder") as (publisher, config),
        serving(config, MARKET) as setting,
        ProcessPoolExecutor(1 + READERS, spawn) as pool,
    ):
        wait(lambda: publisher.ask("wanted") >= len(MARKET), "the store's subscriptions")
        fill(publisher, setting, [day], 5000, min(rate, 5000.0), "")
        publisher.start(live, min(rate, LIVE_RATE))
        for form in ("", "ndjson", "csv", "parquet"):
            before, at = Usage.of([setting.gateway]), time.monotonic()
            followed = pool.submit(follow, setting.config.port, 12.0, 1)
            # The first answer as Parquet imports what makes it.
            readers = [
                pool.submit(fetch, setting.config.port, day, form, time.time() + 11.0)
                for _ in range(READERS if form else 0)
            ]
            ages, answers = followed.result(), [answer for reader in readers for answer in reader.result()]
            after = Usage.of([setting.gateway])
            told = f"  {form or 'no reader'}: others p50 {quantile(ages, 0.5):.2f}, p99 {quantile(ages, 0.99):.2f} ms"
            if answers:
                times = [ms for ms, _ in answers]
                told += f"; {len(answers) / 11.0:.0f} answers/s of {max(size for _, size in answers):,} bytes"
                told += f", median {quantile(times, 0.5):.0f} ms"
            if before and after:
                told += f"; gateway {(after.cpu_seconds - before.cpu_seconds) / (time.monotonic() - at):.0%} of a core"
            click.echo(told)
        publisher.stop()


def morning(rate: float) -> None:
    """Measure a whole market's morning, to one client that reads fast."""
    with published("wire") as (publisher, config), serving(config, ["whole/SH/"]) as setting:
        fill(publisher, setting, MARKET, 30_000, min(rate / 50, 1000.0), "SH")
        kept = stored(setting).stored
        request = {"codes": ["SH"], "start": 1_766_000_000_000}
        came, seconds = read(setting, "/ws/whole_quote", request, kept)
        click.echo(f"  in batches: {came * 100:,} ticks in {seconds:.1f} s: {came * 100 / seconds:,.0f} ticks/s")
    with published("wire") as (_, config):
        kept = write(config, MARKET, MORNING_TICKS)
        with serving(config, MARKET) as setting:
            came, seconds = read(setting, "/ws/realtime", {"stocks": MARKET, "start": 1_766_000_000_000}, kept)
    name = f"{came:,} of {kept:,} ticks of {len(MARKET):,} codes"
    click.echo(f"  code by code: {name} in {seconds:.1f} s: {came / seconds:,.0f} ticks/s")


def write(config: Config, codes: Sequence[str], each: int) -> int:
    """Write so many ticks of each code into the store, which does not run yet; return how many these are."""
    began = time.monotonic()
    now_ns = time.time_ns()
    templates = {quote_topic(code): Template(partial(tick_of, code)) for code in codes}
    with closing(Log(config.data_path / FOLDER, config.store_max_mb)) as log:
        for seq in range(1, each + 1):
            at_ns = now_ns - (each - seq) * 3_000_000_000
            for topic, template in templates.items():
                body = template.fill(FIRST_SEQ + seq, at_ns // 1000)
                log.append(Frame(topic, now_ns, seq, at_ns, at_ns, body), "2026-11-27")
            log.commit()
    click.echo(f"  written: {each * len(codes):,} ticks in {time.monotonic() - began:.0f} s")
    return each * len(codes)


def tick_of(code: str, seq: int, sent: int) -> dict[str, Any]:
    """Return the body of a tick."""
    return {code: [varied(code, seq, sent)]}


def read(setting: Setting, path: str, request: dict[str, Any], count: int) -> tuple[int, float]:
    """Return how many of `count` messages came, at most in `PATIENCE` seconds, and in how many seconds."""
    reader = Raw(setting.config.port, path, request)
    before = Usage.of([setting.gateway]), Usage.of([setting.store])
    missing = count
    for frames in reader.frames():
        missing -= sum(map(is_data, frames))
        if missing <= 0 or time.perf_counter() - reader.sent_at > PATIENCE:
            break
    seconds = time.perf_counter() - reader.sent_at
    reader.close()
    after = Usage.of([setting.gateway]), Usage.of([setting.store])
    for name, old, new in zip(("gateway", "store"), before, after, strict=True):
        if old and new:
            click.echo(f"  {name}: {(new.cpu_seconds - old.cpu_seconds) / seconds:.0%} of a core")
    return count - missing, seconds


# -- store and last


@contextmanager
def simulated(codes: Sequence[str]) -> Iterator[Setting]:
    """Run the simulator at its own pace, with a store of these codes."""
    with tempfile.TemporaryDirectory(prefix="qmt-bridge-day-") as folder:
        addresses = {name: tcp(free_port()) for name in ("market_addr", "trade_addr", "ask_addr")}
        config = Config(
            data_dir=folder,
            source="sim",
            open_trade_addr=True,
            log_level="warning",
            api_key="bench-0123456789",
            **addresses,
        )
        with (
            process([sys.executable, "-m", "qmt_bridge.cli", "feeder"], export_env(config), cores=()),
            serving(config, codes) as setting,
        ):
            yield setting


def store(rate: float) -> None:
    """Measure the store on the simulator's whole market."""
    codes = [f"{first + number:06}.{market}" for first, market in ((600000, "SH"), (1, "SZ")) for number in range(2700)]
    with simulated(codes) as setting:
        wait(lambda: stored(setting).stored > 2 * len(codes), "the market")
        before, began, first = Usage.of([setting.store]), time.monotonic(), stored(setting)
        time.sleep(40.0)
        after, last = Usage.of([setting.store]), stored(setting)
        seconds = time.monotonic() - began
        assert before
        assert after
        ticks = last.stored - first.stored
        click.echo(f"  {ticks / seconds:,.0f} ticks/s of {last.topics:,} codes, {last.left_out:,} left out")
        click.echo(
            f"  store: {(after.cpu_seconds - before.cpu_seconds) / seconds:.1%} of a core, {after.rss / 1e6:.0f} MB, "
            f"{last.size / last.stored:.0f} bytes a tick of {last.stored:,} (log and index, young part uncompressed)"
        )


def last(rate: float) -> None:
    """Measure /api/last of 50 subscribed codes."""
    codes = MARKET[:50]
    with simulated(codes) as setting:
        path = "/api/last?codes=" + ",".join(codes)
        connection = http.client.HTTPConnection("127.0.0.1", setting.config.port, timeout=10)

        def ask() -> bytes:
            connection.request("GET", path)
            return connection.getresponse().read()

        wait(lambda: b"null" not in ask(), "a record of each code")
        times = []
        for _ in range(300):
            began = time.perf_counter()
            ask()
            times.append((time.perf_counter() - began) * 1000)
            # More than ten such requests a second wait for the budget of the address.
            time.sleep(0.12)
    click.echo(f"  p50 {quantile(times, 0.5):.2f} ms, p99 {quantile(times, 0.99):.2f} ms of {len(times):,} requests")


PARTS: dict[str, Callable[[float], None]] = {
    "joiners": joiners,
    "code": code,
    "forms": forms,
    "morning": morning,
    "store": store,
    "last": last,
}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option(
    "--rate", default=50_000.0, help="Ticks a second beside which clients join, or with which a store is filled."
)
def main(parts: tuple[str, ...], rate: float) -> None:
    """Measure the targets of subscriptions with a start."""
    for part in parts or PARTS:
        click.echo(part)
        PARTS[part](rate)


if __name__ == "__main__":
    main()
