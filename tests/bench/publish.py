"""The publisher: one process on the load's core that sends numbered, stamped ticks to a server, at a rate.

Servers that read ZeroMQ are fed by the real feeder, nats-server by its own protocol, the others by lines of text. All
send the same JSON to their clients, about 480 bytes: {"600000.SH":[{"seq":..,"sent":<us>,...}]}.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgspec
import zmq

from feeder.app import Feeder
from feeder.source import Health
from feeder.source import Sink as FeederSink
from qmt_bridge import sockets
from qmt_bridge.commands.load.crews import pin
from qmt_bridge.commands.load.load import Stamps
from qmt_bridge.config import Config
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_ask, encode_reply
from qmt_bridge.wire.topics import Kind, Topic, l2_topic, quote_topic, whole_topic

FIRST_SEQ = 1_000_000_001
ACCOUNT = "1000000365"
EMBEDDED = Stamps(
    rb'(?P<epoch>)\{"(?P<code>[^"]+)":\[?\{"seq":(?P<seq>\d+),"sent":(?P<time>\d+)(?P<published>)', unit=0.001
)
# With more messages in the feeder's inbox, wait: the feeder then publishes as fast as it can.
INBOX = 2000
# A publisher that is more than so many seconds late leaves out what is due, instead of sending a burst.
LATE = 0.02
_STAMP = struct.Struct(">4Q")
_MORE, _LAST = int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.NOBLOCK)


def tick(seq: int, sent: int) -> dict[str, Any]:
    """Return one tick with all fields of xtquant, its number, and the time when it is sent."""
    levels = [1858.01, 1858.02, 1858.03, 1858.04, 1858.05]
    return {
        "seq": seq,
        "sent": sent,
        "time": 1_767_000_000_000,
        "lastPrice": 1858.0,
        "open": 1840.5,
        "high": 1866.66,
        "low": 1835.1,
        "lastClose": 1841.2,
        "amount": 3123456789.0,
        "volume": 16812,
        "pvolume": 1681234,
        "stockStatus": 3,
        "openInt": 13,
        "transactionNum": 48210,
        "lastSettlementPrice": 0.0,
        "settlementPrice": 0.0,
        "askPrice": levels,
        "bidPrice": levels,
        "askVol": [12, 7, 30, 4, 9],
        "bidVol": [3, 18, 2, 41, 6],
        "volRatio": 0.0,
    }


def varied(code: str, seq: int, sent: int) -> dict[str, Any]:
    """Return a tick whose prices and volumes are those of its code alone: equal ticks would compress too well."""
    drawn = random.Random(code)
    price = drawn.uniform(3, 200)
    levels = [round(price + 0.01 * i, 2) for i in range(5)]
    volume = drawn.randrange(1000, 900_000)
    return {
        **tick(seq, sent),
        "lastPrice": levels[0],
        "open": round(price * drawn.uniform(0.97, 1.03), 2),
        "high": round(price * drawn.uniform(1.0, 1.05), 2),
        "low": round(price * drawn.uniform(0.95, 1.0), 2),
        "lastClose": round(price * drawn.uniform(0.97, 1.03), 2),
        "amount": round(price * volume * 100, 0),
        "volume": volume,
        "pvolume": volume * 100 + drawn.randrange(100),
        "transactionNum": drawn.randrange(500, 90_000),
        "askPrice": levels,
        "bidPrice": [round(level - 0.01 * (2 * i + 1), 2) for i, level in enumerate(levels)],
        "askVol": [drawn.randrange(1, 5000) for _ in levels],
        "bidVol": [drawn.randrange(1, 5000) for _ in levels],
        "volRatio": round(drawn.uniform(0.3, 3), 2),
    }


def depth(seq: int, sent: int, levels: int) -> dict[str, Any]:
    """Return one l2_thousand record with `levels` price levels on each side."""
    prices = [10.0 + 0.01 * i for i in range(levels)]
    volumes = [100 + i for i in range(levels)]
    return {
        "seq": seq,
        "sent": sent,
        "time": 1_767_000_000_000,
        "askPrice": prices,
        "bidPrice": prices,
        "askVol": volumes,
        "bidVol": volumes,
    }


def order(number: int, sent: int) -> dict[str, Any]:
    """Return an order as xttrader reports it, with its number and the time of the report in ns."""
    return {
        "account_type": 2,
        "account_id": ACCOUNT,
        "stock_code": "600519.SH",
        "order_id": number,
        "order_sysid": "1",
        "order_time": 1764000000,
        "order_type": 23,
        "order_volume": 100,
        "price_type": 50,
        "price": 1858.0,
        "traded_volume": 0,
        "traded_price": 0.0,
        "order_status": 50,
        "status_msg": "",
        "strategy_name": "",
        "order_remark": "",
        "direction": 0,
        "offset_flag": 48,
        "secu_account": "A1",
        "instrument_name": "",
        "sent": sent,
    }


class Template:
    """A body in which only number and time are replaced: to encode it each time would take ten times as long."""

    def __init__(self, body: Callable[[int, int], object]) -> None:
        seq, sent = FIRST_SEQ, 1_767_000_000_000_000
        whole = encode(body(seq, sent))
        self._head, _, rest = whole.partition(b"%d" % seq)
        self._middle, _, self._tail = rest.partition(b"%d" % sent)
        self.size = len(whole)

    def fill(self, seq: int, sent: int) -> bytes:
        """Return the body with this number and time."""
        return b"%b%d%b%d%b" % (self._head, seq, self._middle, sent, self._tail)


class Slices:
    """Bodies of batches of a market, as the feeder publishes them, of ticks that differ from code to code."""

    def __init__(self) -> None:
        self._ticks: dict[str, Template] = {}

    def fill(self, codes: Sequence[str], seq: int, sent: int) -> bytes:
        """Return the body of a batch with this number and time."""
        for code in codes:
            if code not in self._ticks:
                self._ticks[code] = Template(partial(varied, code))
        ticks = (b'"%b":%b' % (code.encode(), self._ticks[code].fill(seq, sent)) for code in codes)
        return b"{%b}" % b",".join(ticks)


class ToFeeder:
    """A source in a real feeder with its real publisher and sockets; `restart` makes a new feeder."""

    name = "bench"
    simulated = True
    lossless = False
    kinds = frozenset(Kind) - {Kind.STATUS}

    def __init__(self, config: Config, shape: str = "quote") -> None:
        self._config = config
        self._shape = shape
        self._templates: dict[str, tuple[Topic, Template]] = {}
        self._parts: dict[str, msgspec.Raw] = {}
        self.wanted: set[str] = set()
        self.restart()

    # feeder.source.Source

    def start(self, sink: FeederSink) -> None:
        self.sink = sink
        sink.set_state("up")

    def subscribe(self, topic: Topic, parts: object) -> None:
        self.wanted.add(topic)
        self.sink.accept(topic)

    def unsubscribe(self, topic: Topic, parts: object) -> None:
        self.wanted.discard(topic)

    def download(self, topic: Topic, request: object) -> None:
        raise NotImplementedError("a benchmark has no downloads")

    def health(self) -> Health:
        return Health()

    def upstream(self) -> int:
        return len(self.wanted)

    def close(self) -> None:
        """Do nothing; `stop` ends the feeder."""

    # Calls of the publisher

    def restart(self) -> None:
        """Start a new feeder at the addresses of the previous one."""
        self.wanted.clear()
        self.feeder = Feeder(self._config, self)
        self.feeder.start()
        publisher = self.feeder.publisher
        self._config = msgspec.structs.replace(
            self._config,
            market_addr=publisher.market_addr,
            trade_addr=publisher.trade_addr,
            ask_addr=publisher.ask_addr,
        )

    @property
    def config(self) -> Config:
        """Return the settings with which a gateway connects to this feeder."""
        return self._config

    def send(self, code: str, seq: int, sent_us: int) -> None:
        known = self._templates.get(code)
        if known is None:
            known = self._templates[code] = self._template(code)
        topic, template = known
        self.sink.publish(topic, msgspec.Raw(template.fill(seq, sent_us)), sent_us * 1000)

    def send_whole(self, market: str, codes: Sequence[str], seq: int, sent_us: int) -> None:
        """Send one batch of ticks of a market, as subscribe_whole_quote delivers it."""
        template = self._templates.get("tick") or (Topic(""), Template(tick))
        self._templates["tick"] = template
        # All codes of a batch have the same record; its number is that of the batch.
        record = msgspec.Raw(template[1].fill(seq, sent_us))
        self.sink.publish_whole(whole_topic(market), dict.fromkeys(codes, record), sent_us * 1000)

    def send_order(self, number: int) -> None:
        now = time.time_ns()
        self.sink.publish_trade(ACCOUNT, "order", order(number, now), now)

    def room(self) -> None:
        self.sink.wait_room(INBOX, 1.0)

    def stop(self) -> None:
        """Stop the feeder."""
        self.feeder.stop()

    def _template(self, code: str) -> tuple[Topic, Template]:
        if self._shape == "l2":
            return l2_topic(code, 0), Template(lambda seq, sent: {code: [depth(seq, sent, 1000)]})
        if self._shape == "day":
            # Without a time of its own a record counts as one of the moment when it came.
            timeless = {name: value for name, value in varied(code, 0, 0).items() if name != "time"}
            return quote_topic(code), Template(lambda seq, sent: {code: [timeless | {"seq": seq, "sent": sent}]})
        return quote_topic(code, "tick"), Template(lambda seq, sent: {code: [tick(seq, sent)]})


class ToWire:
    """Sends what a feeder sends with less work, so that at the highest rates the server is the limit, not the feeder.

    It keeps no last values; it answers a question with the position of the topic only.
    """

    def __init__(self, config: Config) -> None:
        # The clients run on the same core and have to come first, or they would be slow clients.
        if hasattr(os, "nice"):
            os.nice(5)
        self._epoch = time.time_ns()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._market = sockets.bind_publisher(self._context, "market_addr", config.market_addr, None)
        self._trade = sockets.bind_publisher(self._context, "trade_addr", config.trade_addr, None)
        self._ask = sockets.bind_router(self._context, config.ask_addr, None)
        names = {"market_addr": self._market, "trade_addr": self._trade, "ask_addr": self._ask}
        addresses = {name: bound.getsockopt_string(zmq.LAST_ENDPOINT) for name, bound in names.items()}
        self.config = msgspec.structs.replace(config, **addresses)
        self._templates: dict[str, tuple[bytes, Template]] = {}
        self._slices = Slices()
        self._seq: dict[str, int] = {}
        self._stopping = threading.Event()
        self._answering = threading.Thread(target=self._answer)
        self._answering.start()

    def send(self, code: str, seq: int, sent_us: int) -> None:
        known = self._templates.get(code)
        if known is None:
            template = Template(lambda seq, sent: {code: [tick(seq, sent)]})
            known = self._templates[code] = (quote_topic(code, "tick").encode(), template)
        topic, template = known
        self._publish(code, topic, template.fill(seq, sent_us), seq, sent_us)

    def send_whole(self, market: str, codes: Sequence[str], seq: int, sent_us: int) -> None:
        """Send one batch of ticks of a market."""
        self._publish(market, whole_topic(market).encode(), self._slices.fill(codes, seq, sent_us), seq, sent_us)

    def _publish(self, name: str, topic: bytes, body: bytes, seq: int, sent_us: int) -> None:
        number = self._seq[name] = seq - FIRST_SEQ + 1
        stamp = _STAMP.pack(self._epoch, number, sent_us * 1000, sent_us * 1000)
        self._market.send(topic + stamp, _MORE)
        self._market.send(body, _LAST)

    def room(self) -> None:
        """Return at once: a subscriber that does not keep up loses frames."""

    def stop(self) -> None:
        self._stopping.set()
        self._answering.join()
        self._market.close()
        self._trade.close()
        self._context.destroy(linger=0)

    def _answer(self) -> None:
        while not self._stopping.is_set():
            if not self._ask.poll(100):
                continue
            *envelope, payload = self._ask.recv_multipart()
            ask = decode_ask(payload)
            for topic in ask.topics if isinstance(ask, CatchUp) else ():
                seq = self._seq.get(topic.split("/")[1], 0)
                state = TopicState(ask.id, topic, "live", epoch=self._epoch, seq=seq)
                self._ask.send_multipart([*envelope, encode_reply(state)])
        self._ask.close()


class ToLines:
    """Sends lines ``code TAB json`` by TCP; a server that does not read them blocks the publisher."""

    def __init__(self, port: int) -> None:
        self._socket = connected(port)
        self._templates: dict[str, Template] = {}

    def template(self, code: str) -> Template:
        """Return the template of a code's tick as JSON."""
        known = self._templates.get(code)
        if known is None:
            known = self._templates[code] = Template(lambda seq, sent: {code: [tick(seq, sent)]})
        return known

    def send(self, code: str, seq: int, sent_us: int) -> None:
        self._socket.sendall(b"%b\t%b\n" % (code.encode(), self.template(code).fill(seq, sent_us)))

    def room(self) -> None:
        """Return at once: `send` blocks if there is no room."""

    def stop(self) -> None:
        self._socket.close()


class ToNats(ToLines):
    """Sends by the protocol of NATS."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        # Two threads write; the lock keeps each message whole.
        self._lock = threading.Lock()
        self._socket.sendall(b'CONNECT {"verbose":false}\r\n')
        threading.Thread(target=self._answer, daemon=True).start()

    def send(self, code: str, seq: int, sent_us: int) -> None:
        body = self.template(code).fill(seq, sent_us)
        with self._lock:
            self._socket.sendall(b"PUB q.%b %d\r\n%b\r\n" % (code.encode(), len(body), body))

    def _answer(self) -> None:
        try:
            while said := self._socket.recv(4096):
                if b"PING" in said:
                    with self._lock:
                        self._socket.sendall(b"PONG\r\n")
        except OSError:
            return


def connected(port: int) -> socket.socket:
    """Return a connection to a server that may still be starting."""
    until = time.monotonic() + 15
    while True:
        try:
            made = socket.create_connection(("127.0.0.1", port), 5)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            # A server that does not read for so long has failed.
            made.settimeout(10)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made


class Publisher:
    """A publisher process, seen from its parent; it ends with this block or with the parent."""

    def __init__(self, kind: str, cores: Sequence[int] = (), **options: Any) -> None:
        self._args = (kind, tuple(cores), options)

    def __enter__(self) -> Publisher:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(*self._args, theirs), daemon=True)
        self._process.start()
        theirs.close()
        # The settings with which a gateway connects; None without a feeder.
        self.config: Config | None = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, word: str, *args: Any) -> Any:
        """Call a method of `_Worker` in the process and return its result."""
        self._pipe.send((word, args))
        return self._pipe.recv()

    def start(self, codes: Sequence[str], rate: float, market: str = "") -> None:
        """Send ticks of the codes in turn, `rate` messages a second, until `stop`."""
        self.ask("start", list(codes), rate, market)

    @property
    def sent(self) -> int:
        """Return how many messages have been sent since `start`."""
        return int(self.ask("sent"))

    def stop(self) -> None:
        """Stop sending; raise ConnectionError if sending has failed."""
        if failure := self.ask("stop"):
            raise ConnectionError(f"the publisher has failed: {failure}")


class _Worker:
    """The publisher process: one thread sends, another one receives the parent's calls."""

    def __init__(self, outlet: Any) -> None:
        self.outlet = outlet
        self._seq: dict[str, int] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._sent = 0
        self._failure = ""

    def once(self, codes: list[str]) -> None:
        """Send one tick of each code."""
        for code in codes:
            self._send(code)

    def start(self, codes: list[str], rate: float, market: str) -> None:
        """Start to send."""
        self._stopping.clear()
        self._failure = ""
        self._thread = threading.Thread(target=self._run, args=(codes, rate, market), daemon=True)
        self._thread.start()

    def stop(self) -> str:
        """Stop; return why sending has failed, or an empty text."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        return self._failure

    def sent(self) -> int:
        """Return how many messages have been sent since `start`."""
        return self._sent

    def orders(self, count: int, rate: float, burst: int) -> float:
        """Send `count` trade events, `rate` a second in bursts of `burst`; return the seconds that this took."""
        began = time.perf_counter()
        for number in range(count):
            if number % burst == 0:
                time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                self.outlet.room()
            self.outlet.send_order(number)
        return time.perf_counter() - began

    def wanted(self) -> int:
        """Return how many topics are subscribed."""
        return len(self.outlet.wanted)

    def restart(self) -> float:
        """Stop the feeder and start it again; return the time of the start (time.time())."""
        self.outlet.stop()
        began = time.time()
        self.outlet.restart()
        return began

    def _send(self, code: str) -> None:
        seq = self._seq.get(code, FIRST_SEQ - 1) + 1
        self._seq[code] = seq
        self.outlet.send(code, seq, time.time_ns() // 1000)

    def _run(self, codes: list[str], rate: float, market: str) -> None:
        try:
            self._pace(codes, rate, market)
        except OSError as exc:
            self._failure = repr(exc)

    def _pace(self, codes: list[str], rate: float, market: str) -> None:
        sent = self._sent = 0
        forgiven, turn = 0, len(codes)
        began = time.perf_counter()
        while not self._stopping.is_set():
            elapsed = time.perf_counter() - began
            due = int(elapsed * rate) + 1 - forgiven
            if due - sent > rate * LATE:
                # Leave out what is late: sent at once, it would be a burst above the rate.
                forgiven += due - sent - 1
                due = sent + 1
            if sent >= due:
                time.sleep((sent + forgiven) / rate - elapsed)
                continue
            for _ in range(min(due - sent, 100)):
                if market:
                    # A whole market comes in slices, as from a terminal.
                    self._seq[market] = self._seq.get(market, FIRST_SEQ - 1) + 1
                    first = (sent * 100) % turn
                    self.outlet.send_whole(
                        market, codes[first : first + 100], self._seq[market], time.time_ns() // 1000
                    )
                else:
                    self._send(codes[sent % turn])
                sent += 1
            self._sent = sent
            self.outlet.room()


def _run(kind: str, cores: tuple[int, ...], options: dict[str, Any], pipe: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin(cores)
    makers: dict[str, Callable[..., Any]] = {"feeder": ToFeeder, "wire": ToWire, "lines": ToLines, "nats": ToNats}
    outlet = makers[kind](**options)
    worker = _Worker(outlet)
    try:
        pipe.send(getattr(outlet, "config", None))
        while True:
            word, args = pipe.recv()
            pipe.send(getattr(worker, word)(*args))
    except (EOFError, OSError):
        worker.stop()
    finally:
        outlet.stop()
