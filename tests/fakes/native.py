"""The terminal behind the stand-ins for xtquant's two Windows modules, and the native threads that call back.

`install` puts the stand-ins under xtquant's real Python layer. A test then drives the `Terminal`: it pushes data,
refuses a code, drops the connection, opens the terminal again, and reads the subscriptions of the native side. What is
not known of the real terminal (number of threads, what survives a lost connection, integer widths) is a setting.
"""

from __future__ import annotations

import _thread
import atexit
import calendar
import contextlib
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

if TYPE_CHECKING:
    from datacenter import IPythonApiClient
    from xtpythonclient import TradeSide

Document = dict[str, Any]
Download = Literal["ok", "error", "empty_error", "hang", "stall", "drop"]

# The exit code that the C runtime of Windows gives a process after a failed assertion.
ABORTED = 3
STANDINS = {"xtquant.datacenter": "datacenter", "xtquant.xtpythonclient": "xtpythonclient"}


class Call(NamedTuple):
    """One call that the Python layer made into native code."""

    name: str
    args: tuple[object, ...]
    thread: int


class Feed(NamedTuple):
    """One native subscription: `name` and `detail` are code and period, markets and nothing, or formula and code."""

    kind: Literal["quote", "whole", "formula"]
    name: str
    detail: str
    # The parameters of the subscription: startTime/endTime/count, thousandGearNum..., or the whole formula request.
    region: Document
    callback: Callable[[object], object] | None


class Terminal:
    """A terminal for every stand-in client of this process; safe to drive from any thread."""

    def __init__(self, address: str = "127.0.0.1:58610") -> None:
        self.address = address
        self.is_open = True
        # Whether a client whose connection was lost reconnects by itself, as reconnectSecond=3 in xtdata.ini suggests.
        self.auto_reconnect = True
        # Whether it then has its subscriptions again.
        self.keeps_subscriptions = True
        # Whether the callbacks for "connected" and "disconnected" are called at all.
        self.status_events = True
        # dispatcherThreadNum=8 in xtdata.ini; a single thread keeps the order of pushes.
        self.dispatchers = 1
        # Whether every integer is encoded as an int64, not only the large ones.
        self.wide_ints = False
        # Whether callbacks receive the Python object itself instead of BSON.
        self.undecoded = False
        # Whether a client that was shut down still reports that it is connected.
        self.hides_shutdown = False
        # Codes, markets and formulas whose subscription is answered with -1, or raises.
        self.refused: set[str] = set()
        self.failing: set[str] = set()
        # Whether a subscription to ticks of one code is answered with a push of the newest one: not documented.
        self.single_snapshot = False
        # Number of pushes that make up the snapshot of a whole-quote subscription. That it may be 0 is not documented.
        self.snapshot_pieces = 1
        # Whether the terminal answers get_full_tick: it does not before it is logged in.
        self.knows_ticks = True
        # Names of calls that do not return while they are in this set.
        self.hanging: set[str] = set()
        # Every call takes this long, and waits for the gate.
        self.call_delay = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.download: Download = "ok"
        # Answers of commonControl and read_local_data.
        self.controls: dict[str, Callable[[Document], Document]] = {"getapiversion": lambda _: {"downloadversion": 1}}
        self.files: dict[str, list[Document]] = {}
        # The ticks that were downloaded, by code, and whether they are given as a numpy array with named columns.
        self.history: dict[str, list[Document]] = {}
        self.gives_arrays = False
        # The newest tick of each code: the first push of a whole-quote subscription.
        self.market: dict[str, Document] = {}
        # Newer ticks that only get_full_tick returns: neither a push nor the answer to a subscription has them.
        self.unpushed: dict[str, Document] = {}

        # Called for every native call, on the thread of that call.
        self.on_call: Callable[[Call], object] = bool
        # Trading days in ms, and holidays as YYYYMMDD: get_trading_calendar makes its list from them.
        self.trading_days: list[int] = []
        self.holidays: list[int] = []

        self.calls: list[Call] = []
        self.clients: list[IPythonApiClient] = []
        # The trade side, after a client or a test has asked for it.
        self.trade_side: TradeSide | None = None
        # Exceptions that a callback raised into native code; the wrappers of xtdata let none through.
        self.escaped: list[BaseException] = []
        # Calls at which the real native code ends the process by a failed assertion, and whether these do so too.
        self.aborted: list[str] = []
        self.aborts = False
        self.lock = threading.RLock()
        self._requests = 0
        self._pushes: queue.SimpleQueue[tuple[Callable[[Any], object], object] | None] = queue.SimpleQueue()
        self._running = 0
        self._closed = threading.Event()

    # what a test reads

    def feeds(self) -> list[Feed]:
        """Return the live native subscriptions, of every client together."""
        with self.lock:
            return [feed for client in self.clients if client.connected for feed in client.feeds.values()]

    def subscriptions(self) -> list[tuple[str, str, str]]:
        """Return kind, name and detail of the live native subscriptions, sorted, with duplicates."""
        return sorted((feed.kind, feed.name, feed.detail) for feed in self.feeds())

    def called(self, name: str) -> list[tuple[object, ...]]:
        """Return the arguments of every call of `name`."""
        return [call.args for call in list(self.calls) if call.name == name]

    # what a test triggers

    def push_quote(self, code: str, period: str, *records: Document) -> None:
        """Push records to every subscription of this code and period."""
        self._push("quote", code, period, {code: list(records)})

    def push_whole(self, ticks: Mapping[str, Document]) -> None:
        """Push ticks to every whole-quote subscription of their codes or markets."""
        with self.lock:
            self.market.update(ticks)
            for feed in self.feeds():
                if feed.kind == "whole":
                    self.push_market(feed, ticks)

    def push_formula(self, name: str, code: str, document: Document) -> None:
        """Push a formula's document."""
        self._push("formula", name, code, document)

    def push_market(self, feed: Feed, ticks: Mapping[str, Document]) -> None:
        """Push to one whole-quote subscription the part of `ticks` that it covers."""
        wanted = set(feed.name.split(","))
        covered = {code: tick for code, tick in ticks.items() if code in wanted or code.rpartition(".")[2] in wanted}
        if covered and feed.callback:
            self.dispatch(feed.callback, covered)

    def drop(self) -> None:
        """Close the terminal: every client loses its connection."""
        with self.lock:
            self.is_open = False
            for client in self.clients:
                if client.connected:
                    client.connected = False
                    client.lost = True
                    if not (self.auto_reconnect and self.keeps_subscriptions):
                        client.feeds.clear()
                    self.tell_status(client, "disconnected")
            if self.trade_side:
                self.trade_side.drop()

    def open(self) -> None:
        """Open the terminal again; clients that reconnect by themselves do so at once."""
        with self.lock:
            self.is_open = True
            for client in self.clients:
                if client.lost and self.auto_reconnect:
                    client.lost = False
                    client.connected = True
                    self.tell_status(client, "connected")

    def watch_hanging(self, path: Path) -> None:
        """Make the calls whose names are in the file at `path` hang while the file exists.

        The exit of the process then hangs as well, as it does where native code joins its threads at the end.
        """

        def look() -> None:
            try:
                self.hanging = set(path.read_text(encoding="utf-8").split())
            except OSError:
                self.hanging = set()

        def run() -> None:
            while not self._closed.wait(0.02):
                look()

        def leave() -> None:
            while self.hanging:
                time.sleep(0.02)

        look()
        atexit.register(leave)
        _thread.start_new_thread(run, ())

    def play(self, interval: float, codes: Iterable[str] = ()) -> None:
        """Push invented data to every subscription each `interval` seconds, until closed; `codes` are the market."""
        self.market.update({code: tick(code, 0) for code in codes})

        def run() -> None:
            number = 0
            while not self._closed.wait(interval):
                number += 1
                self.push_whole({code: tick(code, number) for code in list(self.market)})
                for feed in self.feeds():
                    if feed.kind == "quote":
                        self.push_quote(feed.name, feed.detail, record(feed.name, feed.detail, number))
                    elif feed.kind == "formula":
                        self.push_formula(feed.name, feed.detail, formula(number))

        _thread.start_new_thread(run, ())

    def watch_file(self, path: Path, interval: float = 0.05) -> None:
        """Be closed while a file exists at `path`: with it a test drives the terminal of another process."""

        def run() -> None:
            while not self._closed.wait(interval):
                if path.exists() == self.is_open:
                    if self.is_open:
                        self.drop()
                    else:
                        self.open()

        _thread.start_new_thread(run, ())

    def close(self) -> None:
        """Stop the native threads, once they have delivered what was pushed."""
        self._closed.set()
        self.gate.set()
        if self.trade_side:
            self.trade_side.close()
        with self.lock:
            for client in self.clients:
                client.connected = False
            for _ in range(self._running):
                self._pushes.put(None)

    # native side, called by the stand-ins

    def enter(self, name: str, *args: object) -> None:
        """Record a call, and wait as long as calls are set to take."""
        call = Call(name, args, _thread.get_ident())
        self.calls.append(call)
        self.on_call(call)
        if self.call_delay:
            time.sleep(self.call_delay)
        self.gate.wait(30)
        while name in self.hanging and not self._closed.is_set():
            time.sleep(0.01)

    def abort(self, call: str) -> NoReturn:
        """End the process as a failed assertion of native code does; in the process of a test, note it and raise."""
        if self.aborts:
            os._exit(ABORTED)
        self.aborted.append(call)
        raise RuntimeError(f"native code ends the process: {call}")

    def dispatch(self, callback: Callable[[Any], object], document: Document, *, bson: bool = True) -> None:
        """Call `callback` on a native thread, with BSON bytes unless the callback takes the object itself."""
        if self.wide_ints:
            document = _widen(document)
        payload = encode(document) if bson and not self.undecoded else document
        with self.lock:
            while self._running < self.dispatchers:
                # Not threading.Thread: the callbacks must run on a thread that Python did not create.
                _thread.start_new_thread(self._run_dispatcher, ())
                self._running += 1
        self._pushes.put((callback, payload))

    def tell_status(self, client: IPythonApiClient, status: str) -> None:
        """Call the status callback of a client with `status`."""
        watcher = client.controls.get("watchxtquantstatus")
        if watcher and self.status_events:
            self.dispatch(watcher, {"address": self.address, "status": status})

    def create_request_id(self) -> str:
        """Return a new formula request id."""
        with self.lock:
            self._requests += 1
            return f"request-{self._requests}"

    def _push(self, kind: str, name: str, detail: str, document: Document) -> None:
        with self.lock:
            for feed in self.feeds():
                if (feed.kind, feed.name, feed.detail) == (kind, name, detail) and feed.callback:
                    self.dispatch(feed.callback, document)

    def _run_dispatcher(self) -> None:
        while push := self._pushes.get():
            callback, payload = push
            try:
                callback(payload)
            except BaseException as exc:
                traceback.print_exc()
                self.escaped.append(exc)


_terminal = Terminal()


def terminal() -> Terminal:
    """Return the terminal that clients made from now on belong to."""
    return _terminal


def install(settings: Terminal | None = None) -> Terminal:
    """Put the stand-ins where xtquant imports its native modules from, under a new terminal, and return that."""
    global _terminal
    _terminal = settings or Terminal()
    for name, standin in STANDINS.items():
        sys.modules[name] = __import__(standin)
    return _terminal


def import_package(platform: str) -> None:
    """Import `xtquant` as on `platform`: on Linux the oldest version makes a link in /home for its native modules."""
    from feeder.xt import sdk

    real, sys.platform = sys.platform, platform
    try:
        # Or it asks the package index for a newer version.
        with sdk._without_request():
            __import__("xtquant")
    finally:
        sys.platform = real


def uninstall() -> None:
    """Take the stand-ins away, so that this interpreter again cannot import xtquant's native modules."""
    for name in STANDINS:
        sys.modules.pop(name, None)


@contextlib.contextmanager
def installed() -> Iterator[Terminal]:
    """Install the stand-ins under a new terminal and load xtquant over it; at the end reset its modules."""
    from feeder.xt import sdk

    terminal = install()
    try:
        with warnings.catch_warnings():
            # The wheel's sources have invalid escapes, which warn when they are compiled.
            warnings.simplefilter("ignore")
            sdk.load()
        yield terminal
    finally:
        if xtdata := sys.modules.get("xtquant.xtdata"):
            # Not before 240613; and in the oldest version the second one connects.
            if hasattr(xtdata, "disconnect"):
                xtdata.disconnect()
                xtdata.watch_xtquant_status(None)
            vars(xtdata)["__client_last_spec"] = ("", None)
        if center := sys.modules.get("xtquant.xtdatacenter"):
            center.set_token("")
        terminal.close()
        uninstall()
    assert terminal.aborted == []


def encode(document: Document) -> bytes:
    """Return BSON as native code hands it over: plain bytes, not the subclass that BSON.encode returns."""
    from xtquant.xtbson import BSON

    return bytes(BSON.encode(document))


def decode(data: bytes) -> Document:
    """Return the document in BSON bytes."""
    from xtquant.xtbson import BSON

    document: Document = BSON(data).decode()
    return document


def _widen(value: Any) -> Any:
    from xtquant.xtbson import Int64

    if isinstance(value, dict):
        return {key: _widen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_widen(item) for item in value]
    return Int64(value) if type(value) is int else value


def milliseconds(moment: str) -> int:
    """Return YYYYMMDDhhmmss of Shanghai in ms since 1970."""
    return (calendar.timegm(time.strptime(moment, "%Y%m%d%H%M%S")) - 8 * 3600) * 1000


def as_array(rows: list[Document]) -> Any:
    """Return records of the same fields as an array with a column for each; what is a list is an object there."""
    import numpy

    kinds = {int: "i8", float: "f8"}
    columns = [(name, kinds.get(type(value), "O")) for name, value in rows[0].items()] if rows else []
    return numpy.array([tuple(row.values()) for row in rows], dtype=columns)


def tick(code: str, number: int) -> Document:
    """Return the `number`th invented tick of a code; fields as in xtdata.py 1492."""
    price = 10.0 + number % 100 / 100
    levels = range(5)
    return {
        "time": 1733118954000 + 3000 * number,
        "lastPrice": price,
        "open": 10.0,
        "high": 11.0,
        "low": 9.99,
        "lastClose": 10.0,
        "amount": 862127800.0 + number,
        "volume": 758613 + number,
        "pvolume": 75861284 + number,
        "stockStatus": 3,
        "openInt": 13,
        "transactionNum": 37062 + number,
        "lastSettlementPrice": 10.0,
        "settlementPrice": 0.0,
        "pe": float("nan"),
        "askPrice": [price + level / 100 for level in levels],
        "bidPrice": [price - (level + 1) / 100 for level in levels],
        "askVol": [10929 + level for level in levels],
        "bidVol": [2429 + level for level in levels],
        "volRatio": 0.0,
        "speed1Min": 0.0,
        "speed5Min": 0.0,
    }


def full_tick(tick: Any) -> Any:
    """Return the answer of get_full_tick for a pushed tick: it has more fields, and the amount is an integer."""
    if not isinstance(tick, Mapping):
        return tick
    answer = dict(tick)
    if isinstance(answer.get("amount"), float):
        answer["amount"] = int(answer["amount"])
    if isinstance(answer.get("time"), int):
        # The time of day in Shanghai.
        answer["timetag"] = time.strftime("%Y%m%d %H:%M:%S", time.gmtime(answer["time"] // 1000 + 8 * 3600))
    return answer | {"tickvol": 0}


def record(code: str, period: str, number: int) -> Document:
    """Return the `number`th invented record of a period: a tick, a depth of ten levels, else a bar."""
    if period in ("tick", "l2quote"):
        return tick(code, number)
    levels = range(10)
    if period == "l2thousand":
        return {
            "time": 1733120580630 + number,
            "askPrice": [282.14 + level / 100 for level in levels],
            "askVolume": [4 + level for level in levels],
            "bidPrice": [282.08 - level / 100 for level in levels],
            "bidVolume": [3 + level for level in levels],
            "price": 282.14,
        }
    return {
        "time": 1733118960000 + 60000 * number,
        "open": 10.0,
        "high": 10.5,
        "low": 9.5,
        "close": 10.2,
        "volume": 1000 + number,
        "amount": 1.02e6,
        "settelementPrice": 0.0,
        "openInterest": 15,
        "preClose": 10.0,
        "suspendFlag": 0,
    }


def formula(number: int) -> Document:
    """Return an invented formula document."""
    return {"dbt": 0, "timelist": [1733118960000 + 60000 * number], "outputs": {"ma1": [10.0 + number % 100 / 100]}}
