"""The servers of the table: how each is started, fed and subscribed, and whether it is installed.

The public qmt-bridge (by pip) and ws (by npm) need no root; they are installed once into a folder of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from qmt_bridge.commands.bench import Usage
from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crews import pin
from qmt_bridge.commands.load.load import Stamps
from qmt_bridge.config import Config, export_env
from qmt_bridge.wire.frames import encode
from tests.bench.publish import EMBEDDED, Publisher, connected
from tests.support.ports import free_port

PEERS = Path(__file__).parent / "peers"
ROOT = PEERS.parent.parent.parent
CACHE = Path(tempfile.gettempdir()) / "qmt-bridge-bench"
# Servers run on the first core, the load on the second; with one core the results cannot be compared.
SERVER_CORES = (0,) if (os.cpu_count() or 1) > 1 else ()
LOAD_CORES = (1,) if (os.cpu_count() or 1) > 1 else ()


class Missing(Exception):
    """A server that is not installed; the text says how to install it."""


class Asking(Client):
    """A client of the documented layer; the stamps are in the ticks."""

    def joined(self) -> None:
        self.send(encode({"id": 1, "stocks": self.crew.load.codes_of(self.number)}))
        self.settled = not self.crew.load.acked


# What a page with quotes shows of a tick; number and time are the benchmark's own.
FIELDS = ("askPrice", "bidPrice", "lastPrice", "sent", "seq", "time", "volume")
PICKED = EMBEDDED._replace(
    pattern=rb'(?P<epoch>)\{"(?P<code>[^"]+)":\[\{[^}]*?"sent":(?P<time>\d+),"seq":(?P<seq>\d+)(?P<published>)'
)


class AskingFields(Asking):
    """A client that asks for some fields of each record."""

    def joined(self) -> None:
        self.send(encode({"id": 1, "stocks": self.crew.load.codes_of(self.number), "fields": FIELDS}))
        self.settled = not self.crew.load.acked


class AskingMsgpack(Asking):
    """A client of the subprotocol `qmt.v1.msgpack`."""

    def _look(self, data: bytearray, body: int, stop: int, now: float) -> None:
        # One frame of many is looked at, so it may be read as JSON, which shows its position as that of others.
        text = bytearray(encode(msgspec.msgpack.decode(data[body:stop])))
        super()._look(text, 0, len(text), now)


class AskingNats(Client):
    """A client of NATS over a WebSocket; a frame may have several messages, or a part of one."""

    _MARK = b"MSG q."

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._end = b""

    def joined(self) -> None:
        topics = b"".join(b"SUB q.%b %d\r\n" % (code.encode(), i) for i, code in enumerate(self._codes()))
        self.send(b'CONNECT {"verbose":false}\r\n' + topics + b"PING\r\n", 2)

    def _codes(self) -> Sequence[str]:
        return self.crew.load.codes_of(self.number)

    def split(self, data: bytearray, start: int, end: int) -> int:
        while start + 2 <= end:
            size, body = data[start + 1], start + 2
            if size > 125:
                body = start + (4 if size == 126 else 10)
                size = int.from_bytes(data[start + 2 : body])
            stop = body + size
            if body > end or stop > end:
                break
            if data[start] & 0x0F > 2:
                self._rare(data[start], bytes(data[body:stop]))
            else:
                self._stream(data, body, stop)
            start = stop
        return start

    def _stream(self, data: bytearray, start: int, end: int) -> None:
        mark = self._MARK
        joint = self._end + bytes(data[start : min(end, start + len(mark) - 1)])
        count = data.count(mark, start, end) + joint.count(mark)
        self._end = bytes(data[max(start, end - len(mark) + 1) : end])
        self.frames += count
        if not self.settled and b"PONG" in data[start:end]:
            self.settled = True
        if data.startswith(b"PING", start):
            self.send(b"PONG\r\n", 2)
        now = time.time_ns() / 1e6
        at = data.find(b'{"', start, end)
        while at >= 0 and self.crew.match(data, at, end):
            self._look(data, at, end, now)
            # While frames are only counted, the first message of each part is enough.
            at = data.find(b'{"', at + 100, end) if self._every == 1 else -1


def _nothing() -> None:
    """Prepare a server that needs nothing but this project."""


class Row(NamedTuple):
    """A server of the table."""

    name: str
    # A context manager that starts the server and returns a `Running`.
    start: Callable[..., Any]
    client: type[Client] = Asking
    acked: bool = False
    # Whether it reads ZeroMQ.
    wired: bool = False
    stamps: Stamps = EMBEDDED
    # By load: the rate in frames a second at which the search for the highest rate begins.
    guesses: Mapping[int, float] = {}
    # Installs what it needs, or raises `Missing`.
    prepare: Callable[[], object] = _nothing
    # Of the client's handshake.
    headers: tuple[tuple[str, str], ...] = ()


class Running(NamedTuple):
    """A running server: its URL, the publisher that feeds it, and its process ids."""

    url: str
    publisher: Publisher
    pids: tuple[int, ...]

    def usage(self) -> Usage:
        """Return the CPU time and memory that it has used."""
        used = Usage.of(self.pids)
        if used is None:
            raise ChildProcessError(f"the server of {self.url} has ended")
        return used

    def writes(self) -> int:
        """Return the number of its system calls that wrote; 0 if the system does not count them."""
        if sys.platform != "linux":
            return 0
        return sum(psutil.Process(pid).io_counters().write_count for pid in self.pids)


@contextmanager
def started(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    cores: Sequence[int] = SERVER_CORES,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a program on the given cores and yield its process; it ends with this block, or with this process."""
    running = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        text=True,
        preexec_fn=functools.partial(_prepare, tuple(cores)) if sys.platform == "linux" else None,
    )
    try:
        yield running
        if running.poll() is not None:
            raise ChildProcessError(f"{' '.join(command[:4])} ended by itself with {running.returncode}")
    finally:
        running.terminate()
        try:
            running.wait(5)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def process(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    cores: Sequence[int] = SERVER_CORES,
) -> Iterator[int]:
    """Run a server and yield its id."""
    with started(command, env, cwd, cores) as running:
        yield running.pid


def _prepare(cores: Sequence[int]) -> None:
    pin(cores)
    # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@contextmanager
def fed(shape: str = "quote", kind: str = "feeder") -> Iterator[Publisher]:
    """Run the feeder, or a sender of the same messages ("wire"), in a publisher process."""
    any_port = "tcp://127.0.0.1:*"
    with tempfile.TemporaryDirectory(prefix="qmt-bridge-") as folder:
        config = Config(
            data_dir=folder,
            market_addr=any_port,
            trade_addr=any_port,
            ask_addr=any_port,
            open_trade_addr=True,
            log_level="warning",
        )
        options = {"config": config, "shape": shape} if kind == "feeder" else {"config": config}
        with Publisher(kind, LOAD_CORES, **options) as publisher:
            yield publisher


@contextmanager
def gateway(
    command: Sequence[str] = (),
    shape: str = "quote",
    kind: str = "feeder",
    cores: Sequence[int] = SERVER_CORES,
    **settings: Any,
) -> Iterator[Running]:
    """Run this gateway, or another app that reads ZeroMQ, with a feeder."""
    with fed(shape, kind) as publisher:
        assert publisher.config is not None
        port = free_port()
        own = {"port": port, "log_level": "warning", **settings}
        env = export_env(Config(**{**{name: getattr(publisher.config, name) for name in _ADDRESSES}, **own}))
        run = command or [sys.executable, "-m", "qmt_bridge.cli", "gateway"]
        with process([part.replace("PORT", str(port)) for part in run], env, cores=cores) as pid:
            connected(port).close()
            yield Running(f"ws://127.0.0.1:{port}/ws/realtime", publisher, _tree(pid, settings.get("workers", 1)))


_ADDRESSES = ("market_addr", "trade_addr", "ask_addr", "open_trade_addr")


def _tree(pid: int, workers: int) -> tuple[int, ...]:
    if workers == 1:
        return (pid,)
    until = time.monotonic() + 10
    # The resource tracker of multiprocessing is a child as well.
    while len(children := psutil.Process(pid).children()) < workers and time.monotonic() < until:
        time.sleep(0.05)
    return (pid, *(child.pid for child in children))


def uvicorn_of(app: str) -> list[str]:
    """Return the command that serves an app by plain uvicorn."""
    return [sys.executable, "-m", "uvicorn", app, "--port", "PORT", "--log-level", "warning", "--loop", "uvloop"]


@contextmanager
def by_lines(command: Sequence[str], env: dict[str, str] | None = None, cwd: Path = ROOT) -> Iterator[Running]:
    """Run a server that is fed with lines of text."""
    port, feed = free_port(), free_port()
    run = [part.replace("FEED", str(feed)).replace("PORT", str(port)) for part in command]
    with process(run, {**(env or {}), "BENCH_FEED": str(feed)}, cwd) as pid:
        connected(port).close()
        with Publisher("lines", LOAD_CORES, port=feed) as publisher:
            yield Running(f"ws://127.0.0.1:{port}/ws/realtime", publisher, (pid,))


def public_python() -> Path:
    """Return the Python of the public qmt-bridge's own virtual environment; install it there if it is not."""
    folder = CACHE / "public"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "ready").exists():
        _install([sys.executable, "-m", "venv", "--clear", str(folder)], "a virtual environment")
        _install([str(python), "-m", "pip", "install", "-q", "qmt-bridge[server]"], "pip install qmt-bridge[server]")
        (folder / "ready").touch()
    return python


@contextmanager
def public() -> Iterator[Running]:
    """Run the public qmt-bridge with a stand-in for xtquant."""
    python = public_python()
    standin = CACHE / "standin" / "xtquant"
    standin.mkdir(parents=True, exist_ok=True)
    (standin / "__init__.py").touch()
    shutil.copy(PEERS / "xtquant_standin.py", standin / "xtdata.py")
    command = [str(python), "-m", "qmt_bridge.server.cli", "--host", "127.0.0.1", "--port", "PORT"]
    with by_lines([*command, "--log-level", "error"], {"PYTHONPATH": str(standin.parent)}, CACHE) as running:
        yield running


def node_with(package: str) -> tuple[str, dict[str, str]]:
    """Return node, and the environment with which it finds a package; install the package if it is not."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Missing("apt install nodejs npm")
    folder = CACHE / package
    if not (folder / "node_modules" / package).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install([npm, "install", "--silent", "--prefix", str(folder), package], f"npm install {package}")
    return node, {"NODE_PATH": str(folder / "node_modules")}


@contextmanager
def node_ws() -> Iterator[Running]:
    """Run node's ws."""
    node, env = node_with("ws")
    with by_lines([node, str(PEERS / "ws_server.js"), "PORT", "FEED"], env) as running:
        yield running


@contextmanager
def nats() -> Iterator[Running]:
    """Run nats-server with its WebSocket listener."""
    found = nats_server()
    port, feed = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="qmt-bridge-") as folder:
        settings = Path(folder) / "nats.conf"
        settings.write_text(
            f'listen: "127.0.0.1:{feed}"\nwebsocket {{ listen: "127.0.0.1:{port}", no_tls: true }}\n', encoding="utf-8"
        )
        # One thread, as the other servers have.
        with process([found, "-c", str(settings), "-l", os.devnull], {"GOMAXPROCS": "1"}) as pid:
            connected(port).close()
            with Publisher("nats", LOAD_CORES, port=feed) as publisher:
                yield Running(f"ws://127.0.0.1:{port}/", publisher, (pid,))


def nats_server() -> str:
    """Return the path of nats-server."""
    # Debian installs it into a folder that only root has on its path.
    found = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
    if found is None:
        raise Missing("apt install nats-server")
    return found


def _install(command: Sequence[str], what: str) -> None:
    CACHE.mkdir(exist_ok=True)
    try:
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except (OSError, subprocess.SubprocessError) as exc:
        raise Missing(f"{what} failed: {getattr(exc, 'stderr', b'') or exc!r}"[:200]) from exc


OURS = Row("this gateway", gateway, acked=True, wired=True, guesses={1: 800_000, 3: 60_000})
ASGI = Row(
    "this gateway, plain ASGI",
    functools.partial(gateway, uvicorn_of("gateway.app:app")),
    acked=True,
    wired=True,
    guesses={1: 100_000, 3: 40_000},
)
MSGPACK = Row(
    "this gateway, qmt.v1.msgpack",
    gateway,
    AskingMsgpack,
    acked=True,
    wired=True,
    headers=(("Sec-WebSocket-Protocol", "qmt.v1.msgpack"),),
    guesses={1: 800_000, 3: 50_000},
)
PICKING = Row(
    f"this gateway, {len(FIELDS)} fields",
    gateway,
    AskingFields,
    acked=True,
    wired=True,
    stamps=PICKED,
    guesses={1: 800_000, 3: 50_000},
)
PUBLIC = Row("public qmt-bridge", public, guesses={1: 6_000}, prepare=public_python)
STARLETTE = Row(
    "Starlette send_text",
    functools.partial(gateway, uvicorn_of("tests.bench.peers.plain_starlette:app")),
    wired=True,
    guesses={1: 50_000, 3: 30_000},
)
NATS = Row("nats-server", nats, AskingNats, acked=True, guesses={1: 800_000, 3: 120_000}, prepare=nats_server)
WS = Row("node ws", node_ws, guesses={1: 70_000, 3: 60_000}, prepare=functools.partial(node_with, "ws"))
JOINED = "limit: bare loop, joined"
SINGLE = "limit: bare loop, one write a frame"


def versions() -> dict[str, str]:
    """Return the versions of the other servers, as far as they are installed."""
    found = {}
    packages = CACHE / "public"
    installed = next(packages.glob("**/site-packages/qmt_bridge-*.dist-info"), None)
    if installed is not None:
        found["public qmt-bridge"] = installed.name.split("-")[1].removesuffix(".dist")
    for name in ("ws", "zeromq"):
        package = CACHE / name / "node_modules" / name / "package.json"
        if package.exists():
            found[f"npm {name}"] = str(json.loads(package.read_text(encoding="utf-8"))["version"])
    with contextlib.suppress(Missing):
        found["nats-server"] = _version(nats_server())
    if node := shutil.which("node"):
        found["node"] = _version(node)
    return found


def _version(command: str) -> str:
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    return said.strip().rpartition("v")[2]
