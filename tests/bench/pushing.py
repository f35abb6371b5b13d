"""Measure the way of a record from a pusher (docs/push.md): the highest rate, and the delay at a WebSocket client.

    python -m tests.bench.pushing --seconds 5

The highest rate is that of one pusher, and beside it, in the same run, that of a source within the feeder, which
publishes the same records and parses nothing. One ZeroMQ consumer counts both. The records are prints, of which none is
conflated: a pusher that is too fast is held. The delay is that from the pusher's write to the client's read.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import click
import msgspec
import zmq
from websockets.sync.client import connect

from qmt_bridge.config import Config
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.bench.publish import FIRST_SEQ, Template, ToFeeder, tick
from tests.support.load_processes import started
from tests.support.ports import address_options, free_addresses, free_port, tcp
from tests.support.pusher import Pusher, quote
from tests.support.seen import percentile
from tests.support.up import Up

PERIOD = "l2transaction"
# Records of one write of a pusher that is as fast as it can be.
BLOCK = 200
# Seconds before each measurement.
WARM = 1.0


def codes(count: int) -> list[str]:
    """Return so many codes of stocks."""
    return [f"{600000 + number}.SH" for number in range(count)]


def _templates(names: Sequence[str]) -> list[Template]:
    """Return for each code its line, in which number and time are replaced."""

    def of(code: str) -> Template:
        return Template(lambda seq, sent: {"topic": quote(code, PERIOD), "data": tick(seq, sent)})

    return [of(code) for code in names]


def _bodies(names: Sequence[str]) -> list[tuple[Topic, Template]]:
    """Return for each code its topic and the body of its messages, likewise."""

    def of(code: str) -> Template:
        return Template(lambda seq, sent: {code: [tick(seq, sent)]})

    return [(quote_topic(code, PERIOD), of(code)) for code in names]


def push_most(port: int, count: int, pipe: Pipe) -> None:
    """Push as fast as the feeder takes it, until told to end."""
    names = codes(count)
    templates, number = _templates(names), FIRST_SEQ
    with Pusher.at(port) as client:
        client.join(name="bench", simulated=True)
        client.drain()
        pipe.send("welcome")
        pipe.recv()
        while not pipe.poll():
            now = time.time_ns() // 1000
            block = [templates[each % count].fill(each, now) + b"\n" for each in range(number, number + BLOCK)]
            client.raw(b"".join(block))
            number += BLOCK


def push_paced(port: int, count: int, rate: int, pipe: Pipe) -> None:
    """Push so many records a second, each as soon as it is due, until told to end."""
    templates, number = _templates(codes(count)), 0
    with Pusher.at(port) as client:
        client.join(name="bench", simulated=True)
        client.drain()
        pipe.send("welcome")
        pipe.recv()
        began = time.monotonic()
        while not pipe.poll():
            due = int((time.monotonic() - began) * rate)
            now = time.time_ns() // 1000
            lines = [templates[each % count].fill(FIRST_SEQ + each, now) + b"\n" for each in range(number, due)]
            if lines:
                client.raw(b"".join(lines))
            number = max(number, due)
            time.sleep(0.0005)


def publish_most(config: Config, count: int, pipe: Pipe) -> None:
    """Publish the same records within a feeder, as fast as its inbox takes them, until told to end."""
    source = ToFeeder(config)
    bodies = _bodies(codes(count))
    pipe.send("started")
    pipe.recv()
    number = FIRST_SEQ
    while not pipe.poll():
        now = time.time_ns() // 1000
        for each in range(number, number + BLOCK):
            topic, template = bodies[each % count]
            source.sink.publish(topic, msgspec.Raw(template.fill(each, now)), now * 1000)
        number += BLOCK
        source.room()
    source.stop()


def count_messages(address: str, names: Sequence[str], seconds: float, pipe: Pipe) -> None:
    """Subscribe, then count when told to; send the messages a second."""
    socket = connect_subscriber(zmq.Context.instance(), address, None)
    for code in names:
        socket.subscribe(quote_topic(code, PERIOD))
    pipe.send("subscribed")
    pipe.recv()
    until, seen = time.monotonic() + WARM, 0
    while time.monotonic() < until:
        seen += _drain(socket)
    began, seen = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        seen += _drain(socket)
    pipe.send(seen / (time.monotonic() - began))


def _drain(socket: zmq.Socket[bytes]) -> int:
    if not socket.poll(10):
        return 0
    for number in range(1000):
        try:
            socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return number
    return 1000


def read_client(url: str, names: Sequence[str], seconds: float, pipe: Pipe) -> None:
    """Read a WebSocket when told to; send the delays in ms."""
    with connect(url, proxy=None, compression=None, max_queue=None) as socket:
        socket.send(json.dumps({"action": "subscribe", "stocks": list(names), "period": PERIOD}))
        pipe.send("subscribed")
        pipe.recv()
        until, delays = time.monotonic() + WARM + seconds, list[float]()
        since = time.monotonic() + WARM
        while (now := time.monotonic()) < until:
            frame = msgspec.json.decode(socket.recv())
            if now > since and "action" not in frame:
                [[record]] = frame.values()
                delays.append(time.time() * 1000 - record["sent"] / 1000)
        pipe.send(delays)


@contextmanager
def _feeder(port: int, folder: str) -> Iterator[dict[str, str]]:
    addresses = free_addresses()
    command = [sys.executable, "-m", "qmt_bridge.cli", "feeder", "--source=push", f"--push-addr={tcp(port)}"]
    command += [f"--data-dir={folder}", "--metrics-addr=", "--log-level=warning", *address_options(addresses)]
    process = subprocess.Popen(command)
    try:
        yield addresses
    finally:
        process.terminate()
        process.wait()


def pushed_rate(count: int, seconds: float) -> float:
    """Return the records a second that come from one pusher through a feeder to a consumer."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        _feeder(port, folder) as addresses,
        started(push_most, port, count) as pusher,
        started(count_messages, addresses["market_addr"], codes(count), seconds) as consumer,
    ):
        return _counted(pusher, consumer)


def published_rate(count: int, seconds: float) -> float:
    """Return the records a second that come from a source within a feeder to a consumer."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(data_dir=folder, log_level="warning", open_trade_addr=True, **free_addresses())
        with (
            started(publish_most, config, count) as source,
            started(count_messages, config.market_addr, codes(count), seconds) as consumer,
        ):
            return _counted(source, consumer)


def _counted(sender: Pipe, consumer: Pipe) -> float:
    sender.recv()
    consumer.recv()
    # Time for the subscriptions to reach the source: what is not wanted is not published.
    time.sleep(WARM)
    sender.send("begin")
    consumer.send("begin")
    rate: float = consumer.recv()
    sender.send("end")
    return rate


def delays(count: int, rate: int, seconds: float) -> list[float]:
    """Return the delays in ms from a pusher of so many records a second to a WebSocket client."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder), "--source=push", f"--push-addr={tcp(port)}", "--store-days=0", "--log-level=warning")
        try:
            up.wait_ready()
            with (
                started(push_paced, port, count, rate) as pusher,
                started(read_client, up.url("/ws/realtime"), codes(count), seconds) as client,
            ):
                pusher.recv()
                client.recv()
                time.sleep(WARM)
                pusher.send("begin")
                client.send("begin")
                found: list[float] = client.recv()
                pusher.send("end")
                return found
        finally:
            up.close()


@click.command()
@click.option("--seconds", default=3.0, help="Length of each measurement.")
@click.option("--rounds", default=3, help="Rounds; medians are shown.")
@click.option("--rate", default=5000, help="Records a second whose delay is measured.")
def main(seconds: float, rounds: int, rate: int) -> None:
    """Measure rates and delays of pushed records."""
    click.echo(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; medians of {rounds} rounds")
    for count in (2, 1000):
        pairs = [(pushed_rate(count, seconds), published_rate(count, seconds)) for _ in range(rounds)]
        pushed, published = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        click.echo(
            f"{count} codes: {pushed:,.0f} records/s of one pusher, {published:,.0f} of a source within the feeder, "
            f"{ratio:.2f} x"
        )
    found = [delays(100, rate, seconds) for _ in range(rounds)]
    shown = [statistics.median(percentile(each, part) for each in found) for part in (0.5, 0.99)]
    received = statistics.median(len(each) / seconds for each in found)
    click.echo(
        f"{rate:,}/s of 100 codes to a WebSocket client: {received:,.0f}/s, p50 {shown[0]:.2f} ms, "
        f"p99 {shown[1]:.2f} ms"
    )


if __name__ == "__main__":
    main()
