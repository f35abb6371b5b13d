"""`qmt-bridge bench`: the frames, losses and latency of a running gateway, and the CPU and memory that it uses.

`--selftest` measures the clients alone, against a loop that writes ready-made frames. Runs in the main thread.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from qmt_bridge import __version__
from qmt_bridge.commands.load.crews import Crews, pin
from qmt_bridge.commands.load.load import Load, endpoint
from qmt_bridge.commands.load.measurement import Measurement
from qmt_bridge.keys.exposure import is_loopback
from qmt_bridge.process.stop import shielded
from qmt_bridge.wire.frames import encode, framed

# Errors that a user can correct; anything else is a bug and shows its traceback.
ERRORS = (OSError, ValueError)
# Seconds before counting begins: the gateway sends last values when a client subscribes.
SETTLE = 0.5
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Usage(NamedTuple):
    """The CPU seconds that processes have used so far, and their memory in bytes."""

    pids: tuple[int, ...]
    cpu_seconds: float
    rss: int

    @classmethod
    def of(cls, pids: Sequence[int]) -> Usage | None:
        """Return the usage of those processes of this machine that still run; None without one, or without psutil."""
        psutil = _psutil()
        found = []
        for pid in pids if psutil is not None else ():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                found.append((pid, times.user + times.system, process.memory_info().rss))
            except psutil.Error:
                continue
        if not found:
            return None
        known, cpu, rss = zip(*found, strict=True)
        return cls(tuple(known), sum(cpu), sum(rss))


def servers(url: str) -> tuple[int, ...]:
    """Return the ids of the processes that listen at `url`: none if it is on another machine, or without psutil."""
    parts = urlsplit(url)
    psutil = _psutil()
    if psutil is None or not is_loopback(parts.hostname or ""):
        return ()
    pids = []
    for process in psutil.process_iter():
        try:
            listening = [of for of in process.net_connections("tcp") if of.status == psutil.CONN_LISTEN]
        except (psutil.Error, RuntimeError):
            # On Windows psutil raises RuntimeError when the system does not give the table of connections.
            continue
        if any(of.laddr.port == parts.port for of in listening):
            pids.append(process.pid)
    return tuple(pids)


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        return None


def measure(load: Load, seconds: float, wait: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Put `load` on a gateway for `seconds` and return the report; raise ConnectionError if a client is not served."""
    endpoint(load.url)
    pids = servers(load.url)
    before = Usage.of(pids)
    with Crews(load) as crews:
        crews.connect()
        time.sleep(SETTLE)
        connected = Usage.of(pids)
        crews.begin()
        wait(seconds)
        crews.end()
        after = Usage.of(pids)
        measured = crews.result()
    server = None
    if before is not None and connected is not None and after is not None:
        server = {
            "pids": after.pids,
            "cpu": (after.cpu_seconds - connected.cpu_seconds) / measured.seconds,
            "rss_bytes": after.rss,
            "connection_bytes": (connected.rss - before.rss) / load.clients,
        }
    return {**shown(load, measured), "server": server, "machine": machine()}


def selftest(load: Load, seconds: float, wait: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Measure the clients alone: how many frames they read from a loop that writes ready-made frames."""
    body = encode({"600519.SH": [{"time": 0, "lastPrice": 1858.0, "filler": "x" * 320}]})
    frame = b'{"type":"data","epoch":1,"seq":1,"time":%d,"published":%d,"data":%b}'
    now = time.time_ns() // 1_000_000
    with Bare(framed(frame % (now, now, body)) * 64) as bare:
        load = load._replace(url=bare.url, codes=("600519.SH",), each=0, acked=False)
        with Crews(load) as crews:
            crews.connect()
            bare.begin()
            crews.begin()
            wait(seconds)
            crews.end()
            measured = crews.result()
    ceiling = {
        key: shown(load, measured)[key] for key in ("clients", "frames_per_second", "bytes_per_second", "client")
    }
    return {"selftest": True, **ceiling, "machine": machine()}


class Bare:
    """A process with a bare loop that writes the same bytes to every WebSocket again and again: the upper limit."""

    def __init__(
        self, blob: bytes, cores: Sequence[int] = (), make_chore: Callable[[], Callable[[], None]] | None = None
    ) -> None:
        self._blob = blob
        self._cores = tuple(cores)
        # Called in the process; it returns a function that the loop calls at every turn.
        self._make_chore = make_chore

    def __enter__(self) -> Bare:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        args = self._blob, self._cores, self._make_chore, theirs
        self._process = context.Process(target=_bare, args=args, daemon=True)
        with shielded():
            self._process.start()
        theirs.close()
        self.url = f"ws://127.0.0.1:{self._pipe.recv()}/ws/realtime"
        self.pid = self._process.pid or 0
        return self

    def begin(self) -> None:
        """Begin to write; before that sockets are only accepted."""
        self._pipe.send(True)

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of uvloop, or on Windows, which has no uvloop, one of asyncio."""
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


class _BareSocket(asyncio.Protocol):
    def __init__(self, sockets: dict[_BareSocket, None]) -> None:
        self._sockets = sockets
        self.full = False
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(64 * 1024)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            self._sockets[self] = None
            return
        self._answered = True
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", data)
        accept = base64.b64encode(hashlib.sha1((key[1] if key else b"") + _GUID).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.transport.write(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._sockets.pop(self, None)


def _bare(blob: bytes, cores: tuple[int, ...], make_chore: Callable[[], Callable[[], None]] | None, pipe: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin(cores)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        sockets: dict[_BareSocket, None] = {}
        server = await loop.create_server(lambda: _BareSocket(sockets), "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        begun, ended = asyncio.Event(), threading.Event()

        def listen() -> None:
            try:
                while True:
                    pipe.recv()
                    loop.call_soon_threadsafe(begun.set)
            except (EOFError, OSError):
                ended.set()
                loop.call_soon_threadsafe(begun.set)

        threading.Thread(target=listen, name="parent", daemon=True).start()
        await begun.wait()
        chore = make_chore() if make_chore is not None else None
        while not ended.is_set():
            if chore is not None:
                chore()
            for member in tuple(sockets):
                if not member.full and not member.transport.is_closing():
                    member.transport.write(blob)
            await asyncio.sleep(0)
        server.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())


def shown(load: Load, measured: Measurement) -> dict[str, Any]:
    """Return a measurement in the form of the JSON report; times in ms."""
    return {
        "url": load.url,
        "clients": measured.clients,
        "stalled": load.stalled,
        "codes": len(load.codes),
        "codes_each": load.each or len(load.codes),
        "seconds": measured.seconds,
        "frames": measured.frames,
        "frames_per_second": measured.rate,
        "bytes_per_second": measured.bytes / measured.seconds if measured.seconds else 0.0,
        "lost": measured.lost,
        "skipped": measured.skipped,
        "repeated": measured.repeated,
        "unstamped": measured.unstamped,
        "restarts": measured.restarts,
        "rejected": dict(measured.rejected),
        "trouble": dict(measured.trouble),
        "latency_ms": measured.latency.shown(),
        "feeder_ms": measured.feeder.shown(),
        "gateway_ms": measured.gateway.shown(),
        "client": {"processes": measured.processes, "busy": measured.busy, "sample": load.sample},
    }


def machine() -> dict[str, Any]:
    """Return the hardware and versions of this machine, for comparison with other measurements."""
    cpu = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "qmt_bridge": __version__,
    }
