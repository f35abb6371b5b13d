"""Send mutated lines to a feeder as a pusher does, beside a good pusher whose records must all arrive, in order.

    python -m tests.fuzz.push --lines 1000000 --seed 1

The exit code is 1 if the feeder has ended or its log has a traceback, if a record of the good pusher is missing, twice
or out of order at a WebSocket client, if the good pusher was cut off, if a client of what the hostile one pushes got
anything but documented frames, or if the feeder's memory has grown beyond its bounds.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from select import select
from typing import Any

import click
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.contract import documented
from tests.support.load_processes import started, yield_cores
from tests.support.ports import free_port, tcp
from tests.support.pusher import Pusher, line, quote
from tests.support.up import Up
from tests.support.waiting import wait_for

GOOD, BAD = "600519.SH", "000001.SZ"
ACCOUNT = "6660000365"
# Records of the good pusher a second; they are prints, of which none may be left out.
RATE = 1000
# Mutated lines of one write.
AT_ONCE = 100
# What the feeder may hold beyond what it held before: 32 MiB of conflated records, a snapshot and a line of 16 and
# 4 MiB, 32 MiB that a pusher does not read, and what CPython has made of the longest lines.
GROWTH_MB = 256.0
# Seconds between two looks at the memory.
LOOK_SECONDS = 0.1
LONG = 4 * 1024 * 1024
LOG = Path(tempfile.gettempdir(), "qmt-bridge-fuzz-push.log")

ODD: tuple[Any, ...] = (
    *(None, True, "", "x" * 2000, "茅台", "\x00", "\ud800", 0, -1, 1.5, 2**63, -(2**70), 10**400, 1e308, [], {}, [[]]),
    *({"kind": "quote"}, ["SH"], "600519.SH", "../..", "quote/x/y/"),
)
# As text, because json.dumps does not write them.
NUMBERS = (b"1e999", b"-1e999", b"NaN", b"Infinity", b"0x10", b"01", b"1.", b"9" * 400, b"-0", b"1E+2")


class Lines:
    """Valid lines of every kind, and mutations of them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._number = 0

    def valid(self) -> dict[str, Any]:
        """Return a message as a pusher may send it."""
        self._number += 1
        make: Callable[[int], dict[str, Any]] = self._rng.choice(
            (_tick, _tick, _bars, _market, _depth, _formula, _progress, _event, _event, _history, _spoken)
        )
        return make(self._number)

    def mutated(self) -> bytes:
        """Return the bytes of one line with a fault, or of a valid one, or of parts of several."""
        rng, kind = self._rng, self._rng.random()
        if kind < 0.25:
            return line(_with_odd_value(rng, self.valid()))
        body = line(self.valid())[:-1]
        if kind < 0.45:
            return _flipped(rng, body) + b"\n"
        if kind < 0.55:
            return body[: rng.randrange(len(body) + 1)] + b"\n"
        if kind < 0.62:
            return body + line(self.valid())
        if kind < 0.69:
            return body.replace(b"1", rng.choice(NUMBERS), rng.randrange(1, 4)) + b"\n"
        if kind < 0.76:
            # The same key twice.
            return b"%s,%s\n" % (body[:-1], body[1:])
        if kind < 0.80:
            return body + b"\r\n"
        if kind < 0.84:
            at = rng.randrange(len(body))
            return (
                body[:at]
                + rng.choice((b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf"))
                + body[at:]
                + b"\n"
            )
        if kind < 0.86:
            depth = rng.choice((10, 500, 2000, 50_000))
            return b'{"topic":%s,"data":%s%s}\n' % (_of(quote(BAD)), b"[" * depth, b"]" * rng.choice((depth, 0)))
        if kind < 0.88:
            return rng.randbytes(rng.randrange(200)) + b"\n"
        if kind < 0.90:
            # Of the good pusher, of no market, and of no kind.
            topic = rng.choice((quote(GOOD), quote("IF2612.CF"), {"kind": "status"}, {"kind": "trade", "account": "1"}))
            return line({"topic": topic, "time": 1, "id": "x", "event": "order", "data": {"time": 1, "lastPrice": 1}})
        if kind < 0.93:
            # Without an end, so that the next one is a part of it.
            return body
        if kind < 0.9302:
            filled = b'{"topic":%s,"data":{"time":1,"text":"%s"}}' % (
                _of(quote(BAD)),
                b"x" * rng.randrange(LONG, LONG + 90),
            )
            return filled + b"\n"
        return body + b"\n"


def _of(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


def _tick(number: int) -> dict[str, Any]:
    return {
        "topic": quote(BAD),
        "time": 1_795_904_107_650,
        "data": {"time": number, "lastPrice": 10.11, "volume": number},
    }


def _bars(number: int) -> dict[str, Any]:
    bars = [{"time": number + each, "open": 10.1, "close": 11.1} for each in range(3)]
    return {"topic": quote(BAD, "1m"), "data": bars}


def _market(number: int) -> dict[str, Any]:
    ticks = {f"{number % 1000:06}.SZ": {"time": number, "lastPrice": 1.1}}
    return {"topic": {"kind": "whole", "code": "SZ"}, "data": ticks, "more": number % 7 == 1}


def _depth(number: int) -> dict[str, Any]:
    depth = {"time": number, "askPrice": [1.1] * 10, "askVolume": [1] * 10}
    return {"topic": {"kind": "l2", "code": BAD, "gear_num": 0}, "data": depth}


def _formula(number: int) -> dict[str, Any]:
    topic = {"kind": "formula", "formula_name": "MA", "stock_code": BAD, "period": "1d", "count": -1}
    return {"topic": topic, "data": {"dbt": 0, "timelist": [number], "outputs": {"MA1": [1.1]}}}


def _progress(number: int) -> dict[str, Any]:
    progress = {"finished": number, "total": 11, "stockcode": BAD, "message": ""}
    return {"topic": {"kind": "download", "job": f"1-{number}"}, "data": progress}


def _event(number: int) -> dict[str, Any]:
    data = {"account_id": ACCOUNT, "order_id": number, "stock_code": BAD, "order_status": 50}
    topic = {"kind": "trade", "account": ACCOUNT}
    return {"topic": topic, "id": f"order/{number}", "event": "order", "data": data}


def _history(number: int) -> dict[str, Any]:
    return {"type": "history", "id": number, "data": [{"time": 1, "lastPrice": 1.1}], "more": number % 2 == 1}


def _spoken(number: int) -> dict[str, Any]:
    account = {"account": ACCOUNT, "type": "STOCK", "state": "up", "reason": None}
    told = (
        {"type": "accept", "topic": quote(BAD)},
        {"type": "refuse", "topic": quote(BAD, "1q"), "code": "unsupported_period", "error": "no 1q"},
        {"type": "accounts", "accounts": [account]},
        {"type": "state", "state": "stale", "reason": "11", "data_lost": False},
        {"type": "heartbeat"},
        {"type": "hello", "protocol": 1, "name": "bad", "kinds": ["quote"]},
    )
    return told[number % len(told)]


def _with_odd_value(rng: random.Random, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of which one value, at any depth, is another one, or is missing."""
    changed: dict[str, Any] = json.loads(json.dumps(message))
    at: Any = changed
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        inner = at[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.6:
            at = inner
            continue
        if rng.random() < 0.15:
            del at[key]
        else:
            at[key] = rng.choice(ODD)
        return changed


def _flipped(rng: random.Random, body: bytes) -> bytes:
    flipped = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def push_hostile(port: int, count: int, seed: int, pipe: Pipe) -> None:
    """Send so many mutated lines, over as many connections as that takes; tell what the feeder answered."""
    yield_cores()
    rng = random.Random(seed)
    lines, sent, connections = Lines(rng), 0, 0
    answers: Counter[str] = Counter()
    kinds = ["quote", "whole", "l2", "formula", "download", "trade"]
    while sent < count:
        with Pusher.at(port) as client, suppress(OSError, ValueError):
            client.join(name="bad", kinds=kinds, markets=["SZ", "BJ"], accounts=[ACCOUNT], simulated=True, history=True)
            connections += 1
            if connections == 1:
                pipe.send("welcome")
            while sent < count:
                client.raw(b"".join(lines.mutated() for _ in range(AT_ONCE)))
                sent += AT_ONCE
                while select([client.socket], [], [], 0)[0]:
                    said = client.socket.recv(65536)
                    if not said:
                        raise ConnectionResetError
                    answers.update(
                        code for code in ("bad_json", "bad_request", "too_long", "not_wanted") if code.encode() in said
                    )
    pipe.send((sent, connections, answers))


def push_good(port: int, pipe: Pipe) -> None:
    """Send numbered prints until told to end; tell how many were sent."""
    with Pusher.at(port) as client:
        client.join(name="good", kinds=["quote"], markets=["SH"], simulated=True)
        client.until("subscribe", topic=quote(GOOD, "l2transaction"))
        pipe.send("subscribed")
        number, began = 0, time.monotonic()
        while not pipe.poll():
            due = int((time.monotonic() - began) * RATE)
            topic = quote(GOOD, "l2transaction")
            prints = [{"topic": topic, "data": {"time": each, "tradeIndex": each}} for each in range(number, due)]
            client.say(*prints)
            number = max(number, due)
            time.sleep(0.005)
        client.say({"topic": topic, "data": {"time": number, "tradeIndex": -1}})
        pipe.send(number)
        # Until the last record has arrived.
        pipe.recv()
        pipe.recv()


class Reader:
    """A WebSocket client that reads until the last record, or until its connection ends."""

    def __init__(self, url: str, requests: list[dict[str, Any]], take: Callable[[dict[str, Any]], bool]) -> None:
        self.fault = ""
        self._socket: ClientConnection = connect(
            url, proxy=None, compression=None, max_size=None, max_queue=None, legacy=True
        )
        for request in requests:
            self._socket.send(json.dumps(request))
        self._take = take
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._socket.request is not None
        path = self._socket.request.path
        try:
            while self._take(documented(path, json.loads(self._socket.recv()), invented=True)):
                pass
        except (ConnectionClosed, ValueError, AssertionError) as exc:
            self.fault = repr(exc)

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._socket.close()
        self._thread.join()


def fuzz_push(count: int, seed: int) -> list[str]:
    """Send mutated lines beside a good pusher; return what is wrong."""
    port, faults, arrived, frames = free_port(), list[str](), list[int](), Counter[str]()

    def take_good(frame: dict[str, Any]) -> bool:
        numbers = [each["tradeIndex"] for each in frame.get(GOOD, ())]
        arrived.extend(number for number in numbers if number >= 0)
        return -1 not in numbers

    def take_hostile(frame: dict[str, Any]) -> bool:
        frames[frame.get("type", "data")] += 1
        return True

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        up = Up(Path(folder), "--source=push", f"--push-addr={tcp(port)}", "--store-days=0")
        stack.callback(lambda: LOG.write_text(up.text, encoding="utf-8"))
        stack.callback(up.close)
        up.wait_ready()
        feeder = psutil.Process(up.pid("feeder"))
        good = stack.enter_context(started(push_good, port))
        asked = [{"action": "subscribe", "stocks": [GOOD], "period": "l2transaction"}]
        reader = Reader(up.url("/ws/realtime"), asked, take_good)
        stack.callback(reader.close)
        assert good.recv() == "subscribed"
        wait_for(lambda: arrived, "the first record")
        before = feeder.memory_info().rss / 2**20
        # What no pusher serves would be refused.
        hostile = stack.enter_context(started(push_hostile, port, count, seed))
        assert hostile.recv() == "welcome"
        requests = [{"action": "subscribe", "stocks": [BAD]}, {"action": "subscribe", "stocks": [BAD], "period": "1m"}]
        others = [
            Reader(up.url("/ws/realtime"), requests, take_hostile),
            Reader(up.url("/ws/whole_quote"), [{"codes": ["SZ"]}], take_hostile),
        ]
        for other in others:
            stack.callback(other.close)
        began, most = time.monotonic(), before
        while not hostile.poll(LOOK_SECONDS) and feeder.is_running():
            most = max(most, feeder.memory_info().rss / 2**20)
        if not feeder.is_running() or not reader.runs:
            return [f"the feeder runs: {feeder.is_running()}; the good client: {reader.fault or 'reads'}; see {LOG}"]
        sent, connections, answers = hostile.recv()
        took = time.monotonic() - began
        good.send("end")
        number = good.recv()
        with suppress(AssertionError):
            wait_for(lambda: not reader.runs, "the last record")
        good.send("arrived")
        after = feeder.memory_info().rss / 2**20
        click.echo(
            f"push: {sent:,} mutated lines over {connections} connections in {took:.0f} s "
            f"({sent / took:,.0f} a second), seed {seed}; "
            f"the feeder grew by {after - before:.0f} MB, at most by {most - before:.0f} MB"
        )
        click.echo(f"answers: {dict(answers)}; clients of the hostile one got {dict(frames)}")
        click.echo(f"the good pusher sent {number:,} records, its client got {len(arrived):,}")
        # The first ones may have been sent before the client's subscription was acknowledged.
        first = arrived[0]
        if arrived != list(range(first, number)):
            faults.append(
                f"records of the good pusher are missing, twice or out of order: {number - first - len(arrived)}"
            )
        if most - before > GROWTH_MB:
            faults.append(f"the feeder grew by {most - before:.0f} MB")
        faults += [f"a client of the hostile pusher: {other.fault}" for other in others if other.fault]
        if not frames["data"]:
            faults.append("none of the mutated lines was published")
    return faults + [text for text in up.lines if "Traceback" in text or "starting it again" in text]


@click.command()
@click.option("--lines", default=100_000, help="Mutated lines.")
@click.option("--seed", default=1)
def main(lines: int, seed: int) -> None:
    """Fuzz the feeder's port for pushers."""
    faults = fuzz_push(lines, seed)
    for fault in faults[:50]:
        click.echo(fault, err=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
