"""`qmt-bridge gateway`: uvicorn with the settings that this app needs, and a supervisor of its workers.

The parent process binds the socket and supervises the workers; each worker runs one event loop. On Windows the workers
are told over a pipe to end, because there are no signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from gateway.app import create_app
from gateway.connections import certificate, descriptors
from gateway.connections.handshake import REQUEST_TIMEOUT, Handshake
from gateway.metrics import MULTIPROC_ENV
from gateway.writer import PreparedFrames
from qmt_bridge import log
from qmt_bridge.addresses.certificate import load as load_certificate
from qmt_bridge.addresses.endpoint import market_endpoints, trade_endpoints
from qmt_bridge.config import Config, load_config
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.exposure import check_exposure
from qmt_bridge.keys.key import check_length
from qmt_bridge.keys.key_file import read_keys
from qmt_bridge.process.holder import holder
from qmt_bridge.process.pulse import Pulse
from qmt_bridge.process.stop import Stop, shielded, unshield
from qmt_bridge.system import console, ports
from qmt_bridge.tokens.location import check_tokens
from qmt_bridge.wire.requests import REQUEST_BYTES

logger = logging.getLogger(__name__)

# A request between our own limit and this one is still received whole, so that its client can be told the limit.
WS_MAX_SIZE = 32 * REQUEST_BYTES
# Connections that may wait to be accepted; most systems allow no more. One that comes beyond tries again after 1 s.
BACKLOG = 4096
# Bytes of what a client sends that wait in the system (Linux takes the double). A paused socket holds as much in the
# worker, 256 KB without this; a request has 64 KB at most.
RECEIVE_BUFFER = 32 * 1024
# Open sockets are closed with 1012 at once; clients that do not answer the close are dropped after these seconds.
SHUTDOWN_TIMEOUT = 2
# One of several workers that gives no answer for so many seconds, or `freeze_timeout` if that is shorter, counts as
# frozen: until it is replaced, its share of the new connections fails.
FREEZE_TIMEOUT = 5.0
# Seconds for the first answer of a new worker: on a busy machine its imports take seconds.
FIRST_ANSWER_TIMEOUT = 30.0
# Seconds for the start of a new worker that replaces another one after SIGHUP.
START_TIMEOUT = 20.0
# Seconds for a worker to end when told to, then it is killed; `qmt-bridge up` waits a second longer.
JOIN_TIMEOUT = SHUTDOWN_TIMEOUT + 1.0
# Objects after which the garbage collector looks at the newest ones; Python's 700 are reached 30 times by a client that
# subscribes 5,000 codes.
YOUNG_OBJECTS = 10_000
# What a worker is sent instead of a ping.
_END = b"end"


class _Server(uvicorn.Server):
    """uvicorn's server for a single worker; it ends when `stop` is set, and installs no signal handlers of uvicorn."""

    def __init__(self, config: uvicorn.Config, stop: Stop) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self._stop.is_set()
        return await super().on_tick(counter)


class _Worker(Process):
    """One worker process. A thread of uvicorn in it answers each ping, as soon as the process has started."""

    def __init__(self, config: uvicorn.Config, bound: socket.socket, limit: float) -> None:
        super().__init__(config, [bound])
        self._pulse = Pulse(limit, time.monotonic(), FIRST_ANSWER_TIMEOUT)
        self._asked = False

    def start(self) -> None:
        with shielded():
            super().start()

    def pong(self) -> None:
        """Answer a ping of the parent, or end because it says so. In the worker, on a thread of uvicorn."""
        if self.child_conn.recv() == _END:
            # Handled in the main thread.
            signal.raise_signal(signal.SIGTERM)
        else:
            self.child_conn.send(self.server.started)

    def terminate(self) -> None:
        """Tell the worker to end."""
        if sys.platform == "win32":
            self.ask_to_end()
        else:
            super().terminate()

    def ask_to_end(self) -> None:
        """Tell the worker to end without a signal. uvicorn would send Ctrl-Break, which reaches a whole console."""
        with contextlib.suppress(OSError):
            self.parent_conn.send(_END)

    def frozen(self, now: float) -> bool:
        """Send a ping without waiting for the answer; return whether the last answer came too long ago."""
        # The pipe is broken if the process has just ended.
        with contextlib.suppress(OSError, EOFError):
            if self.parent_conn.poll():
                self.parent_conn.recv()
                self._pulse.beat(now)
                self._asked = False
            if not self._asked:
                self.parent_conn.send(b"ping")
                self._asked = True
        return self._pulse.frozen(now)


class _Supervisor(Multiprocess):
    """uvicorn's supervisor, which does not wait for pings, clears the gauges of ended workers, and ends with `stop`."""

    def __init__(self, server_config: uvicorn.Config, bound: socket.socket, freeze_timeout: float, stop: Stop) -> None:
        super().__init__(server_config, sockets=[bound])
        self._make = functools.partial(_Worker, server_config, bound, min(freeze_timeout, FREEZE_TIMEOUT))
        # uvicorn uses a threading.Event here, whose lock a signal handler must not take.
        self.should_exit = stop  # type: ignore[assignment]
        # The constructor of uvicorn has just replaced the signal handlers of `stop` by its own.
        stop.on_signals()
        stop.last_act = self._kill_all
        # Whether a worker could not start; the next attempt would fail too.
        self.failed = False

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            self.processes.append(self._make())
            self.processes[-1].start()

    def keep_subprocess_alive(self) -> None:
        for index, worker in enumerate(self.processes):
            assert isinstance(worker, _Worker)
            frozen = worker.frozen(time.monotonic())
            if worker.process.is_alive() and not frozen:
                continue
            pid = worker.pid
            worker.kill()
            worker.process.join()
            if worker.exitcode == STARTUP_FAILURE:
                logger.error("worker %s could not start", pid)
                self.failed = True
                self.should_exit.set()
                return
            if self.should_exit.is_set():
                return
            logger.warning(
                "worker %s %s; another one is starting", pid, "is frozen and was killed" if frozen else "ended"
            )
            assert pid is not None
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
            self.processes[index] = self._make()
            self.processes[index].start()

    def restart_all(self) -> None:
        for index, old in enumerate(self.processes):
            new = self._make()
            new.start()
            if not new.wait_until_ready(START_TIMEOUT, self.should_exit):
                new.kill()
                new.join()
                logger.error(
                    "worker %s was not ready in time; worker %s continues, no other is restarted", new.pid, old.pid
                )
                return
            old.terminate()
            old.join()
            self.processes[index] = new

    def handle_ttin(self) -> None:
        self.processes_num += 1
        self.processes.append(self._make())
        self.processes[-1].start()

    def join_all(self) -> None:
        until = time.monotonic() + JOIN_TIMEOUT
        for worker in self.processes:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                logger.warning("worker %s did not stop in time; killed", worker.pid)
                worker.process.kill()
                worker.process.join()

    def _kill_all(self) -> None:
        for worker in self.processes:
            if worker.pid is not None and worker.exitcode is None:
                worker.process.kill()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop, or on Windows, which has none, a loop of our own."""
    if sys.platform == "win32":
        from gateway.loop.windows import WindowsLoop

        return _limit_tls(WindowsLoop())
    import uvloop

    return _limit_tls(uvloop.new_event_loop())


def _limit_tls(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Give a client as long for the handshake of TLS as for a request: the loop's own time is 60 s."""
    create = loop.create_server

    async def create_server(*args: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = REQUEST_TIMEOUT
        return await create(*args, **options)

    loop.create_server = create_server  # type: ignore[method-assign]
    return loop


def worker_app() -> Starlette:
    """Make the app of one worker process, which ends when its parent ends, even if the parent was killed."""
    config = load_config()
    log.configure(config.log_level, config.log_format)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # uvicorn has installed its signal handlers by now.
        unshield()
        console.end_in_order()
        threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    app = create_app(config)
    _collect_seldom()
    return app


def _collect_seldom() -> None:
    """Let the garbage collector of this process leave out what exists now, and come less often.

    A full collection reads all modules, which takes some 20 ms, and 10,000 new topics set off several.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def serve(config: Config, stop: Stop, inherited: socket.socket | None = None) -> int:
    """Serve until `stop` is set; return the exit code; raise `ConfigError`. Runs in the main thread.

    `inherited` listens already, at the host and port of `config`.
    The workers read the settings from the environment, which the caller has set (config.export_env).
    """
    # Checked here because a worker could report these errors only in a traceback.
    # Whether the example key may be used depends on the feeder, so it is decided later (`Entry.lapsed`).
    check_length(config.api_key, simulated=True)
    check_exposure(config)
    check_tokens(config)
    has_key = read_keys(config.data_path) or config.api_key or config.jwt_jwks
    if config.require_key and not has_key:
        raise ConfigError(
            "require_key",
            f"is set, but there is no api_key, and no key in {config.data_path}: every client would be refused",
        )
    market_endpoints(config, "gateway")
    trade_endpoints(config, "gateway", makes=True)
    if config.tls_cert:
        load_certificate(config.tls_cert, config.tls_key)
    descriptors.raise_limit(config.max_connections)
    bound = _prepared(inherited) if inherited is not None else _bind(config.host, config.port)
    host, port = bound.getsockname()[:2]
    server_config = uvicorn.Config(
        "gateway.server:worker_app",
        factory=True,
        workers=config.workers,
        loop="gateway.server:new_event_loop",
        http=Handshake,
        ws=PreparedFrames,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # The app finds the clients of trusted proxies itself, in the same way under each server (access/peers.py).
        proxy_headers=False,
        ssl_context_factory=certificate.context_of_worker if config.tls_cert else None,
        ws_max_size=WS_MAX_SIZE,
        ws_per_message_deflate=config.deflate,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        # The loop sets it anew for the bound socket.
        backlog=BACKLOG,
    )
    scheme = "https" if config.tls_cert else "http"
    logger.info("gateway listens on %s://%s:%d, %d workers", scheme, host, port, config.workers)
    with ExitStack() as stack:
        stack.callback(bound.close)
        if config.workers == 1:
            server = _Server(server_config, stop)
            server.run(sockets=[bound])
            return 0 if server.started or stop.is_set() else 1
        if MULTIPROC_ENV not in os.environ:
            folder = tempfile.mkdtemp(prefix="qmt-bridge-")
            # TemporaryDirectory raises on Windows, in spite of its own flag, if a worker was killed and holds a file.
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            os.environ[MULTIPROC_ENV] = folder
            stack.callback(os.environ.pop, MULTIPROC_ENV)
        supervisor = _Supervisor(server_config, bound, config.freeze_timeout, stop)
        supervisor.run()
    return 1 if supervisor.failed else 0


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        ports.claim(bound)
        # Accepted connections have it too.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        bound.bind((host, port))
        # Listen at once: two processes with this option may both bind the port; only the second `listen` fails.
        bound.listen(BACKLOG)
    except (OSError, UnicodeError) as exc:
        bound.close()
        # A host name that is too long raises a UnicodeError, which has no errno.
        reason = ports.why_not(exc, port) if isinstance(exc, OSError) else str(exc)
        if ports.is_taken(exc):
            reason += holder(port)
        raise ConfigError("port", f"cannot listen on {host}:{port}: {reason}") from exc
    bound.set_inheritable(True)
    return bound


def _prepared(inherited: socket.socket) -> socket.socket:
    inherited.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    inherited.listen(BACKLOG)
    inherited.set_inheritable(True)
    return inherited


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    logger.warning("the gateway's parent process has ended; stopping")
    signal.raise_signal(signal.SIGTERM)
