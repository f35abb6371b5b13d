"""Load 16: how many messages a second of the whole market a consumer reads from the feeder, without the gateway.

The consumer is a process on the servers' core, the sender one on the load's core.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from qmt_bridge.config import Config
from tests.bench.publish import Publisher
from tests.bench.search import Step, sustained
from tests.bench.servers import PEERS, Row, fed, node_with, started

# Seconds in which the first message has to come, and in which the last ones have to be read.
PATIENCE = 20.0
# A rate is held if at least this share of it is read while it is offered, and nothing is lost.
HELD = 0.98
STEPS = 8
# What the next round offers first: so much more than was held that it is mostly too much.
AGAIN = 1.1
NUMBER = 16


class Reading:
    """A consumer process; each call asks it how many messages it has read so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self) -> tuple[int, float]:
        """Return the number of messages, and the consumer's time in seconds."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write("\n")
        stdin.flush()
        count, now = stdout.readline().split() or ("0", "")
        if not now:
            raise ChildProcessError("the consumer has ended")
        return int(count), int(now) / 1e9

    def settled(self) -> int:
        """Return how many messages it has read when no more come."""
        until = time.monotonic() + PATIENCE
        before = -1
        while (count := self()[0]) != before and time.monotonic() < until:
            before = count
            time.sleep(0.2)
        return count


@contextmanager
def _python(name: str, config: Config, topic: str) -> Iterator[Reading]:
    program = [sys.executable, "-m", "tests.bench.peers.consumer"]
    with _piped([*program, config.market_addr, config.ask_addr, topic, name]) as reading:
        yield reading


@contextmanager
def _node(config: Config, topic: str) -> Iterator[Reading]:
    node, env = node_with("zeromq")
    with _piped([node, str(PEERS / "consumer.js"), config.market_addr, topic], env) as reading:
        yield reading


@contextmanager
def _piped(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Reading]:
    with started(command, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Reading(process)


CONSUMERS = (
    Row("Python: pyzmq, json", functools.partial(_python, "json")),
    Row("Python: pyzmq, orjson", functools.partial(_python, "orjson")),
    Row("Python: pyzmq, msgspec", functools.partial(_python, "msgspec")),
    Row("Python: qmt_bridge.subscribe", functools.partial(_python, "subscribe")),
    Row("Node: zeromq.js", _node, prepare=functools.partial(node_with, "zeromq")),
)
# The rates in messages a second at which the searches begin.
TICKS, BATCHES = 30_000.0, 600.0


def sustained_by(
    row: Row, codes: Sequence[str], seconds: float, rates: dict[tuple[int, str], float]
) -> dict[str, float | None]:
    """Return the rates at which a consumer reads every tick of its own topic, and every batch of a market.

    The search begins with those of the previous round in `rates`.
    """
    figures: dict[str, float | None] = {}
    for name, topic, market, first in (("ticks", "quote/", "", TICKS), ("batches", "whole/SH/", "SH", BATCHES)):
        key = NUMBER, f"{row.name}, {name}"
        with fed(kind="wire") as publisher:
            assert publisher.config is not None
            with row.start(publisher.config, topic) as reading:
                measure = measured(reading, publisher, codes, market, seconds)
                best, over = sustained(measure, rates.get(key, first), STEPS)
        figures[name] = best.reached if best else None
        if best is not None:
            rates[key] = best.reached * AGAIN
        figures[f"{name}_overloaded"] = over.reached if over else None
        # Without a rate that was too high, the sender was the limit.
        figures[f"{name}_limited"] = float(over is None)
    return figures


def measured(
    reading: Reading, publisher: Publisher, codes: Sequence[str], market: str, seconds: float
) -> Callable[[float], Step]:
    """Send until the consumer's subscription is in force; return the function that measures one rate."""
    publisher.start(codes, 100.0, market)
    until = time.monotonic() + PATIENCE
    while not reading()[0]:
        if time.monotonic() > until:
            raise TimeoutError("no message has come")
        time.sleep(0.05)
    publisher.stop()
    reading.settled()
    return functools.partial(_step, reading, publisher, codes, market, seconds)


def _step(
    reading: Reading, publisher: Publisher, codes: Sequence[str], market: str, seconds: float, offered: float
) -> Step:
    first, _ = reading()
    publisher.start(codes, offered, market)
    time.sleep(0.5)
    sent, (count, began) = publisher.sent, reading()
    time.sleep(seconds)
    sent_since, (count_since, ended) = publisher.sent - sent, reading()
    publisher.stop()
    lost = publisher.sent - (reading.settled() - first)
    took = ended - began
    rate, reached = sent_since / took, (count_since - count) / took
    return Step(rate, reached, reached >= HELD * rate and not lost, {"lost": float(lost)})
