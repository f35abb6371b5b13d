"""Clients by the hundred that put a load on a gateway and count what comes: frames, loss by seq, latency by hop.

They run in processes of their own, one a core, each with one loop that splits WebSocket frames and decodes no JSON, so
that the server is what is measured.
"""

from __future__ import annotations

import base64
import logging
import math
import multiprocessing
import os
import re
import selectors
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from qmt_bridge.process.stop import shielded
from qmt_bridge.wire.frames import framed, to_json

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Pipe
else:
    from multiprocessing.connection import Connection as Pipe

logger = logging.getLogger(__name__)

# How long the sockets may take to be open and acknowledged.
OPEN_TIMEOUT = 15.0
# Where not every frame is looked at: how long a topic has for the one that shows how far it has come.
CLOSING_TIMEOUT = 5.0
# Between two looks for what the parent says.
PAUSE = 0.01
# Times counted in a moment without frames: so few that the next frame does not wait. Above the other number they are
# counted even while frames come.
FEW = 20
MANY = 100_000
# select() on Windows watches at most 512 sockets.
WINDOWS_SOCKETS = 500
PERCENTILES = (0.5, 0.99, 0.999)

_FIELDS = {"realtime": "stocks", "whole_quote": "codes", "l2_thousand": "stocks"}
_BUFFER = 256 * 1024
_UNKNOWN = (b"", b"null")


class Histogram(Counter[int]):
    """Counts of times in classes 1 % wide, from a microsecond on; those of several processes add up."""

    def add(self, ms: float) -> None:
        """Count one time; what is shorter than a microsecond counts as that."""
        self[round(100 * math.log(ms * 1000)) if ms > 0.001 else 0] += 1

    def percentile(self, share: float) -> float | None:
        """Return the time in ms that `share` of all do not exceed; None where nothing was counted."""
        left = math.ceil(share * self.total())
        for number in sorted(self):
            left -= self[number]
            if left <= 0:
                return math.exp(number / 100) / 1000
        return None

    def shown(self) -> dict[str, float | None]:
        """Return the percentiles in ms by their names."""
        return {f"p{100 * share:g}": self.percentile(share) for share in PERCENTILES}


class Stamps(NamedTuple):
    """How a frame shows its place: `pattern` has the groups epoch, seq, time, published and code, maybe empty ones."""

    pattern: bytes
    # Milliseconds of one unit of the times.
    unit: float = 1.0


# Option "seq" (docs/websocket.md, section 2). A body of several codes is known by its first one.
STAMPED = Stamps(
    rb'\{"type":"data","epoch":(?P<epoch>\d+),"seq":(?P<seq>\d+),"time":(?P<time>[\d.]+|null)'
    rb',"published":(?P<published>[\d.]+|null),"data":\{"(?P<code>[^"]+)"'
)


class Load(NamedTuple):
    """How many clients connect, where to, and what they ask for; the same for every client process."""

    url: str
    codes: tuple[str, ...] = ()
    clients: int = 100
    # Codes a client asks for, each client beginning where the one before it ended; 0: all of them.
    each: int = 0
    period: str = "tick"
    headers: tuple[tuple[str, str], ...] = ()
    # First frame of a client, instead of one made from its codes.
    send: str = ""
    # One frame in so many is looked at, the others are only counted.
    sample: int = 1
    # So many clients read nothing while the others are measured.
    stalled: int = 0
    # Whether a client waits for the ack of its request.
    acked: bool = True
    stamps: Stamps = STAMPED
    # Cores for the client processes, where the system can pin them; empty: all.
    cores: tuple[int, ...] = ()

    def codes_of(self, number: int) -> tuple[str, ...]:
        """Return the codes that client `number` asks for."""
        if not 0 < self.each < len(self.codes):
            return self.codes
        first = number * self.each
        return tuple(self.codes[(first + i) % len(self.codes)] for i in range(self.each))

    def request(self, number: int) -> bytes:
        """Return the first frame of client `number`."""
        if self.send:
            return self.send.encode()
        name = endpoint(self.url)
        request: dict[str, Any] = {"id": 1, "seq": True, _FIELDS[name]: self.codes_of(number)}
        return to_json({**request, "period": self.period} if name == "realtime" else request)

    @property
    def processes(self) -> int:
        """Return the number of client processes: one a core, on Windows more if there are very many clients."""
        needed = math.ceil(self.clients / WINDOWS_SOCKETS) if sys.platform == "win32" else 1
        return max(1, min(self.clients, max(len(self.cores) or os.cpu_count() or 1, needed)))


def endpoint(url: str) -> str:
    """Return the endpoint that a URL names; raise ValueError for one that cannot be measured."""
    name = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    if name not in _FIELDS:
        raise ValueError(f"cannot measure {url!r}; expected a URL of {', '.join(f'/ws/{known}' for known in _FIELDS)}")
    return name


class Measurement:
    """What clients saw between begin and end; the measurements of several processes add up."""

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        # Frames missing by their sequence; None where that cannot be known.
        self.lost: int | None = 0
        # Frames that show no position, so that neither loss nor latency is known of them.
        self.unstamped = 0
        # Frames that were not newer than the one before.
        self.repeated = 0
        # How often a new epoch of the feeder began.
        self.restarts = 0
        # Frames and records that the gateway says it has left out for a slow client.
        self.skipped = 0
        self.clients = 0
        # Codes that were refused, and what else went wrong, with how often.
        self.rejected: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.processes = 1
        # From the source's callback to publishing, from there to the client, and all the way.
        self.feeder = Histogram()
        self.gateway = Histogram()
        self.latency = Histogram()

    def add(self, other: Measurement) -> None:
        """Add what another process saw at the same time."""
        self.lost = None if self.lost is None or other.lost is None else self.lost + other.lost
        self.restarts = max(self.restarts, other.restarts)
        self.seconds = max(self.seconds, other.seconds)
        for name in ("frames", "bytes", "unstamped", "repeated", "skipped", "clients", "cpu_seconds", "processes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("rejected", "trouble", "feeder", "gateway", "latency"):
            getattr(self, name).update(getattr(other, name))

    @property
    def rate(self) -> float:
        """Return the frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def busy(self) -> float:
        """Return the share of the time that the client processes worked."""
        return self.cpu_seconds / self.seconds / self.processes if self.seconds else 0.0


class Client:
    """One WebSocket: splits what comes into frames, counts them, and looks at one in `sample`."""

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.stalls = number >= crew.load.clients - crew.load.stalled
        # Whether its subscription is acknowledged or has failed; true as well where no ack is waited for.
        self.settled = False
        self.frames = 0
        self.bytes = 0
        self.gaps = 0
        self.repeated = 0
        self.unstamped = 0
        # By topic: the newest seq, and that at which counting began.
        self.positions: dict[bytes, int] = {}
        self.begun: dict[bytes, int] = {}
        # Topics that have not yet shown how far they have come.
        self.awaited: set[bytes] = set()
        self._socket: socket.socket | None = None
        # Whether the selector watches the socket.
        self._watched = False
        self._open = False
        self._epoch: bytes | None = None
        self._every = 1
        self._left = 1
        self._missing = 0
        # What has come of a frame whose end has not.
        self._rest = b""

    # -- What the crew says

    def connect(self) -> None:
        """Connect and ask for the WebSocket."""
        parts = self.crew.parts
        secure = parts.scheme == "wss"
        address = parts.hostname or "", parts.port or (443 if secure else 80)
        connected = socket.create_connection(address, OPEN_TIMEOUT)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=parts.hostname)
        self._socket = connected
        lines = [
            f"GET {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            *(f"{name}: {value}" for name, value in self.crew.load.headers),
        ]
        connected.sendall("\r\n".join([*lines, "", ""]).encode())
        connected.setblocking(False)
        self.crew.selector.register(connected, selectors.EVENT_READ, self)
        self._watched = True

    def begin(self) -> None:
        """Count from here on."""
        self.frames = self.bytes = self.gaps = self.repeated = self.unstamped = 0
        self.begun = self.positions.copy()
        self._every = self.crew.load.sample
        if self.stalls:
            self._ignore()

    def end(self) -> None:
        """Stop counting gaps; where not all frames were looked at, learn from now on how far each topic has come."""
        self._missing = self.gaps
        if self._every > 1:
            self.awaited = set(self.positions)
        self._every = self._left = 1

    def lost(self) -> int | None:
        """Return how many frames are missing; None where that cannot be known."""
        if self.crew.load.sample == 1:
            return self._missing
        if self.awaited or self.begun.keys() != self.positions.keys():
            return None
        came = self.frames - self.repeated
        return sum(self.positions.values()) - sum(self.begun.values()) - came

    def close(self) -> None:
        """Drop the connection."""
        self._ignore()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ignore(self) -> None:
        if self._socket is not None and self._watched:
            self._watched = False
            self.crew.selector.unregister(self._socket)

    # -- What comes

    def read(self) -> None:
        """Take what has come."""
        taken, kept = self._socket, len(self._rest)
        assert taken is not None
        if len(self.crew.buffer) < 2 * kept:
            self.crew.buffer = bytearray(4 * kept)
        buffer = self.crew.buffer
        buffer[:kept] = self._rest
        try:
            count = taken.recv_into(memoryview(buffer)[kept:])
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as exc:
            self.fail(f"connection lost: {exc}")
            return
        if not count:
            self.fail("connection lost")
            return
        self.bytes += count
        end = kept + count
        start = 0 if self._open else self._opened(bytes(buffer[:end]))
        if self._open:
            start = self.split(buffer, start, end)
        self._rest = bytes(buffer[start:end])
        if isinstance(taken, ssl.SSLSocket) and self._socket is not None and taken.pending():
            # Decrypted already, so that the selector does not show it.
            self.read()

    def fail(self, what: str) -> None:
        """Count what went wrong, and leave."""
        self.crew.measured.trouble[what] += 1
        self.settled = True
        self.close()

    def send(self, payload: bytes, opcode: int = 1) -> None:
        """Write one short frame, under the mask that a client owes (of zeros, which changes nothing)."""
        frame = framed(payload)
        head = frame[: len(frame) - len(payload)]
        assert self._socket is not None
        self._socket.sendall(bytes((0x80 | opcode, 0x80 | head[1])) + head[2:] + bytes(4) + payload)

    def joined(self) -> None:
        """Send the request, now that the WebSocket is open."""
        self.send(self.crew.load.request(self.number))
        self.settled = not self.crew.load.acked

    def _opened(self, seen: bytes) -> int:
        """Read the answer to the handshake; return how long it was, 0 if it is not whole yet."""
        head, found, _ = seen.partition(b"\r\n\r\n")
        if not found:
            return 0
        status = head.partition(b"\r\n")[0].decode(errors="replace")
        if " 101" in status:
            self._open = True
            self.joined()
        else:
            self.fail(f"handshake refused: {status}")
        return len(head) + 4

    # -- Frames

    def split(self, data: bytearray, start: int, end: int) -> int:
        """Count the whole frames of ``data[start:end]``, look at some, and return where the rest begins."""
        now = time.time_ns() / 1e6
        count = 0
        left = self._left
        while start + 2 <= end:
            size = data[start + 1]
            body = start + 2
            if size == 126:
                body = start + 4
                size = data[start + 2] << 8 | data[start + 3] if body <= end else end
            elif size == 127:
                body = start + 10
                size = int.from_bytes(data[start + 2 : body]) if body <= end else end
            stop = body + size
            if stop > end:
                break
            first = data[start]
            before, start = start, stop
            if first != 0x81 and first != 0x82:
                self._rare(first, bytes(data[body:stop]))
                continue
            count += 1
            left -= 1
            # What the gateway has to say for itself is short.
            if left <= 0 or size < 126:
                left = self._every
                # Of what came at once one frame in eight is timed.
                self._look(data, body, stop, now if count & 7 == 1 or left > 1 else 0.0)
            elif size > 125:
                # What follows is mostly as long: to compare its head takes half the time of reading it.
                step = stop - before
                head = data[before:body]
                for _ in range(min(left - 1, (end - start) // step)):
                    if not data.startswith(head, start):
                        break
                    start += step
                    count += 1
                    left -= 1
        self._left = left
        self.frames += count
        return start

    def _rare(self, first: int, payload: bytes) -> None:
        if first == 0x89:
            self.send(payload, 10)
        elif first == 0x88:
            self.fail(f"closed by the server: {int.from_bytes(payload[:2])} {payload[2:].decode(errors='replace')}")
        elif first == 0x80:
            # The last piece of a message in several frames.
            self.frames += 1
            self.unstamped += 1

    def _look(self, data: bytearray, body: int, stop: int, now: float) -> None:
        """Read one frame's place, and its times if it came at `now`."""
        crew = self.crew
        found = crew.match(data, body, stop)
        if found is None:
            self._hear(bytes(data[body:stop]))
            return
        epoch, seq, code = found.group("epoch", "seq", "code")
        topic = crew.topics[code]
        if epoch != self._epoch:
            if self._epoch is not None:
                # What was lost while there was no feeder has no number.
                crew.epochs.add(epoch)
                self.positions.clear()
            self._epoch = epoch
        position = int(seq)
        newest = self.positions.get(topic, position - 1)
        if position > newest:
            self.gaps += position - newest - 1
            self.positions[topic] = position
        else:
            self.repeated += 1
        self.awaited.discard(topic)
        if now and crew.measures and not self.stalls:
            came, published = found.group("time", "published")
            crew.timed.append((now, came, published))

    def _hear(self, payload: bytes) -> None:
        """Take a control frame, or one without a place."""
        measured = self.crew.measured
        if not payload.startswith(b'{"type":'):
            self.unstamped += 1
            # A server that knows of no positions acknowledges nothing either.
            self.settled = True
            return
        self.frames -= 1
        said: dict[str, Any] = orjson.loads(payload)
        match said["type"]:
            case "subscribed":
                for rejection in said["rejected"]:
                    measured.rejected[f"{rejection['code']}: {rejection['error']}"] += 1
                self.settled = True
            case "skipped":
                measured.skipped += said["count"]
            case "error":
                measured.trouble[f"error {said.get('code')}: {said.get('error')}"] += 1
                self.settled = True


class _Topics(dict[bytes, bytes]):
    """The topic by which a code came: its market's, where whole markets are asked for."""

    def __init__(self, asked: Sequence[str]) -> None:
        super().__init__()
        self._asked = frozenset(code.encode() for code in asked)

    def __missing__(self, code: bytes) -> bytes:
        market = code.rpartition(b".")[2]
        # A code whose market is asked for too comes with its market.
        self[code] = market if market in self._asked else code
        return self[code]


class Crew:
    """The clients of one process, in one loop over what can be read: a selector of Python costs less than asyncio,
    and uvloop reads a flooded socket over and over before it looks at the next."""

    def __init__(self, load: Load, numbers: Sequence[int], make: type[Client]) -> None:
        self.load = load
        self.parts = urlsplit(load.url)
        self.match = re.compile(load.stamps.pattern).match
        self.topics = _Topics(load.codes)
        self.buffer = bytearray(_BUFFER)
        self.selector = selectors.DefaultSelector()
        self.measured = Measurement()
        # Epochs of the feeder that began meanwhile.
        self.epochs: set[bytes] = set()
        # When a frame came, and the two times in its text.
        self.timed: list[tuple[float, bytes, bytes]] = []
        self.measures = False
        self._clients = [make(self, number) for number in numbers]
        self._reading = [client for client in self._clients if not client.stalls]

    def turn(self) -> None:
        """Read whatever has come; else count some times, or wait a moment."""
        came = self.selector.select(0 if self.timed else PAUSE)
        for key, _ in came:
            key.data.read()
        if not came:
            self._count_times(FEW)
        elif len(self.timed) > MANY:
            self._count_times(MANY // 100)

    def _count_times(self, most: int) -> None:
        """Count times that were only noted when their frames came, because others were waiting then."""
        measured, unit = self.measured, self.load.stamps.unit
        for now, came, published in self.timed[-most:]:
            if came in _UNKNOWN:
                continue
            began = float(came) * unit
            measured.latency.add(now - began)
            if published not in _UNKNOWN:
                sent = float(published) * unit
                measured.feeder.add(sent - began)
                measured.gateway.add(now - sent)
        del self.timed[-most:]

    def connect(self) -> Counter[str]:
        """Open every socket and wait for its ack; return what went wrong, if something did."""
        for client in self._clients:
            try:
                client.connect()
            except OSError as exc:
                client.fail(f"cannot connect: {exc}")
                break
            # Answers are read meanwhile, so that no backlog of the server is full.
            self.turn()
        return self.settle()

    def settle(self) -> Counter[str]:
        """Wait until every client's subscription is acknowledged; return what went wrong, if something did."""
        until = time.monotonic() + OPEN_TIMEOUT
        while not all(client.settled for client in self._clients) and not self.measured.trouble:
            if time.monotonic() > until:
                waiting = sum(not client.settled for client in self._clients)
                return Counter({f"no answer within {OPEN_TIMEOUT:.0f} s": waiting})
            self.turn()
        return self.measured.trouble

    def begin(self) -> None:
        """Count from here on."""
        rejected, self.measured = self.measured.rejected, Measurement()
        self.measured.rejected = rejected
        self.timed.clear()
        self.epochs.clear()
        for client in self._clients:
            client.begin()
        self.measures = True
        self._began = time.monotonic(), time.process_time()

    def end(self) -> None:
        """Stop counting frames."""
        measured = self.measured
        began, cpu = self._began
        measured.seconds, measured.cpu_seconds = time.monotonic() - began, time.process_time() - cpu
        self.measures = False
        measured.clients = len(self._reading)
        measured.frames = sum(client.frames for client in self._reading)
        measured.bytes = sum(client.bytes for client in self._reading)
        measured.repeated = sum(client.repeated for client in self._reading)
        measured.unstamped = sum(client.unstamped for client in self._reading)
        for client in self._reading:
            client.end()

    def result(self) -> Measurement:
        """Return the measured, once each topic has shown how far it has come or has had its time for that."""
        until = time.monotonic() + CLOSING_TIMEOUT
        while any(client.awaited for client in self._reading) and time.monotonic() < until:
            self.turn()
        measured = self.measured
        self._count_times(len(self.timed))
        measured.restarts = len(self.epochs)
        lost = [client.lost() for client in self._reading]
        known = [count for count in lost if count is not None]
        certain = (
            len(known) == len(lost) and (self.load.sample == 1 or not measured.restarts) and not measured.unstamped
        )
        measured.lost = sum(known) if certain else None
        return measured

    def leave(self) -> None:
        """Drop every connection."""
        for client in self._clients:
            client.close()
        self.selector.close()


def _process(load: Load, numbers: Sequence[int], make: type[Client], pipe: Pipe) -> None:
    # Ctrl-C is for the parent, whose end of the pipe then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin(load.cores)
    crew = Crew(load, numbers, make)
    heard = 0.0
    try:
        while True:
            crew.turn()
            # A look into a pipe costs as much as twenty frames.
            if time.monotonic() - heard > PAUSE:
                heard = time.monotonic()
                while pipe.poll():
                    pipe.send(getattr(crew, pipe.recv())())
    except (EOFError, OSError) as exc:
        # The parent has ended; its own watcher reports why.
        logger.debug("client process ends: %r", exc)
    finally:
        crew.leave()


def pin(cores: Sequence[int]) -> None:
    """Keep this process on the given cores, where the system can."""
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, cores)


class Crews:
    """All client processes; they end with this block, or with this process."""

    def __init__(self, load: Load, make: type[Client] = Client) -> None:
        self.load = load
        self._make = make
        self._pipes: list[Pipe] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Crews:
        context = multiprocessing.get_context("spawn")
        for index in range(self.load.processes):
            ours, theirs = context.Pipe()
            numbers = range(index, self.load.clients, self.load.processes)
            process = context.Process(target=_process, args=(self.load, numbers, self._make, theirs), daemon=True)
            with shielded():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()

    def connect(self) -> None:
        """Connect and subscribe every client; raise ConnectionError if one cannot."""
        self._settle("connect")

    def settle(self) -> None:
        """Wait until every client's subscription is acknowledged; raise ConnectionError if one's is not."""
        self._settle("settle")

    def _settle(self, word: str) -> None:
        trouble: Counter[str] = sum(self._ask(word), Counter())
        if trouble:
            raise ConnectionError("; ".join(f"{what} ({count} clients)" for what, count in trouble.most_common(3)))

    def begin(self) -> None:
        """Let all clients count from here on."""
        self._ask("begin")

    def end(self) -> None:
        """Let all clients stop; those that only counted wait from now on for each topic's next frame."""
        self._ask("end")

    def result(self) -> Measurement:
        """Return what all have seen."""
        first, *others = self._ask("result")
        for measured in others:
            first.add(measured)
        assert isinstance(first, Measurement)
        return first

    def _ask(self, word: str) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(word)
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise ConnectionError("a client process has ended") from None
