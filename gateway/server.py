"""`qmt-bridge gateway`: uvicorn with the settings this app needs, and its workers watched.

The parent process binds the socket and watches the workers; each worker runs one event loop. Windows spawns them
like everybody else (untested there).
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from gateway.app import create_app
from gateway.metrics import MULTIPROC_ENV
from gateway.writer import PreparedFrames
from qmt_bridge import log
from qmt_bridge.config import Config, load_config
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.requests import REQUEST_BYTES

logger = logging.getLogger(__name__)

# Requests above our own limit still arrive whole up to here, so that they can be told why they are too large.
WS_MAX_SIZE = 32 * REQUEST_BYTES
# Open sockets are told 1012 at once; this is for those that do not listen.
SHUTDOWN_TIMEOUT = 2


class _Supervisor(Multiprocess):
    """uvicorn's supervisor, which also clears the gauges of workers that died."""

    def keep_subprocess_alive(self) -> None:
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            logger.warning("worker %s died; another one is starting", pid)
            if pid is not None:
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop where there is one, else a selector loop: Windows' Proactor cannot watch ZeroMQ."""
    if sys.platform == "win32":
        return asyncio.SelectorEventLoop()
    import uvloop

    return uvloop.new_event_loop()


def worker_app() -> Starlette:
    """Make the app of one worker process; it ends with its parent, even one that was killed."""
    config = load_config()
    log.configure(config.log_level, config.log_format)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    return create_app(config)


def serve(config: Config, stop: threading.Event) -> int:
    """Serve until `stop` is set or a signal comes; return the exit code. Runs in the main thread.

    The settings reach the workers by the environment, which the caller has set (config.export_env).
    """
    bound = _bind(config.host, config.port)
    host, port = bound.getsockname()[:2]
    server_config = uvicorn.Config(
        "gateway.server:worker_app",
        factory=True,
        workers=config.workers,
        loop="gateway.server:new_event_loop",
        ws=PreparedFrames,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=WS_MAX_SIZE,
        ws_per_message_deflate=config.deflate,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
    )
    logger.info("gateway listens on http://%s:%d, %d workers", host, port, config.workers)
    with ExitStack() as stack:
        stack.callback(bound.close)
        if config.workers == 1:
            server = uvicorn.Server(server_config)
            _when_set(stop, lambda: setattr(server, "should_exit", True))
            server.run(sockets=[bound])
            return 0 if server.started else 1
        if MULTIPROC_ENV not in os.environ:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="qmt-bridge-", ignore_cleanup_errors=True))
            os.environ[MULTIPROC_ENV] = folder
            stack.callback(os.environ.pop, MULTIPROC_ENV)
        supervisor = _Supervisor(server_config, sockets=[bound])
        _when_set(stop, supervisor.should_exit.set)
        supervisor.run()
    return 0


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            # On Windows this option would let two servers share a port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        raise ConfigError("port", f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    bound.set_inheritable(True)
    return bound


def _when_set(stop: threading.Event, act: Callable[[], None]) -> None:
    def wait() -> None:
        stop.wait()
        act()

    threading.Thread(target=wait, name="stop-watch", daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    logger.warning("the gateway's parent process is gone; stopping")
    signal.raise_signal(signal.SIGTERM)
