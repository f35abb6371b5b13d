"""The address at which pushers connect: its socket, and each connection from its accept to its hello.

The socket is bound by the thread that starts the source; the loop of the thread "push" accepts. A connection
without a hello has its place for a second once others wait for one, and delays no other connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from feeder.push.connection import HELLO_SECONDS, Connection, Owner
from feeder.push.message import told
from feeder.refusals import Refusals
from qmt_bridge.addresses import ipc_folder
from qmt_bridge.addresses.certificate import Certificate
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.process import peer
from qmt_bridge.sockets import is_local
from qmt_bridge.system import clock, ports

logger = logging.getLogger(__name__)

# Connections in all, and of them those without a hello.
MOST = 64
MOST_ARRIVING = 16
# Seconds that a connection without a hello has for sure.
ARRIVAL_SECONDS = 1.0
_BACKLOG = 64
# Seconds until the system may have descriptors again.
_EXHAUSTED_SECONDS = 1.0
_ADDRESS = re.compile(r"tcp://(\[[^\]]+\]|[^:]+):(\*|\d+)")
SHORTEST_KEY = 16
_UNTOLD = "the system does not tell whose connection this is"
if sys.platform == "win32":
    # So it is with a terminal that was started as administrator beside a feeder that was not.
    _UNTOLD += ", as of a program that runs as administrator or as another user"


class Listener:
    """The listening socket."""

    def __init__(self, config: Config) -> None:
        """Bind it; raise `ConfigError` for an address, key or folder that cannot be used."""
        self._config = config
        self._is_local = is_local(config.push_addr)
        self._check()
        self._socket, self.address = _bind(config.push_addr)
        self._users = ThreadPoolExecutor(2, "push-user")
        self._refused = Refusals()
        # Connections that were refused for their user; read by other threads.
        self.forbidden = 0
        self._owner: Owner
        self._certificate: Certificate | None = None
        self._accepting: asyncio.Task[None] | None = None
        # Since when each connection arrives (clock.monotonic), oldest first; and all that are open.
        self._arriving: dict[asyncio.Task[None], float] = {}
        self._open: set[Connection] = set()
        # Those that were refused and whose last line is under way.
        self._refused_ones: deque[Connection] = deque()

    async def serve(self, owner: Owner) -> None:
        """Accept connections until `close`, which lets it end."""
        self._owner = owner
        self._accepting = asyncio.current_task()
        try:
            if not self._is_local:
                self._certificate = Certificate(self._config.tls_cert, self._config.tls_key)
            await self._accept()
        finally:
            # The loop does not wait for it any more: `select`, which Windows has, fails for a socket that is closed.
            self._socket.close()

    def close(self) -> None:
        """Accept no more, and close all connections; on the loop."""
        if self._accepting is None:
            self._socket.close()
        for task in (self._accepting, *self._arriving):
            if task is not None:
                task.cancel()
        for connection in (*self._open, *self._refused_ones):
            # Also one whose last line is under way: the loop ends before its time is over.
            connection.abort()
        self._users.shutdown(wait=False, cancel_futures=True)
        if ipc_folder.is_ipc(self._config.push_addr):
            with suppress(OSError):
                os.unlink(_path(self._config.push_addr))

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_place()
            await self._wait_connection()
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                # The other end has gone before it was accepted; on Windows that is a reset.
                continue
            except OSError as exc:
                self._tell("no pusher can connect", str(exc.strerror or exc))
                await asyncio.sleep(_EXHAUSTED_SECONDS)
                continue
            self._open = {each for each in self._open if not each.is_closed}
            if len(self._open) + len(self._arriving) >= MOST:
                self._tell("more connections", f"{MOST} connections are open already")
                accepted.close()
                continue
            arrival = loop.create_task(self._admit(accepted))
            self._arriving[arrival] = clock.monotonic()
            arrival.add_done_callback(partial(self._arrived, accepted))

    async def _wait_place(self) -> None:
        """Wait until another connection may arrive; the oldest one makes room once it had its time."""
        while len(self._arriving) >= MOST_ARRIVING:
            oldest, since = next(iter(self._arriving.items()))
            left = since + ARRIVAL_SECONDS - clock.monotonic()
            if left <= 0:
                oldest.cancel()
                left = ARRIVAL_SECONDS
            await asyncio.wait(self._arriving, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    async def _wait_connection(self) -> None:
        # Not `sock_accept`, which loses a connection that it takes while it is cancelled.
        loop, is_there = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._socket, is_there.set)
        try:
            await is_there.wait()
        finally:
            loop.remove_reader(self._socket)

    async def _admit(self, accepted: socket.socket) -> None:
        """Look whose a connection is, and wait for its hello."""
        loop = asyncio.get_running_loop()
        arrival = asyncio.current_task()
        assert arrival is not None
        connection: Connection | None = None
        try:
            accepted.setblocking(False)
            refusal = await self._why_not(accepted)
            line = told("refused", code="forbidden", error=refusal) if refusal else None
            secure = None if self._certificate is None else self._certificate.context
            async with asyncio.timeout(HELLO_SECONDS):
                _, connection = await loop.connect_accepted_socket(
                    lambda: Connection(self._owner, line),
                    accepted,
                    ssl=secure,
                    ssl_handshake_timeout=HELLO_SECONDS if secure else None,
                )
            await connection.arrived.wait()
            # Not counted twice until this task is done.
            self._arriving.pop(arrival, None)
            if connection.is_ended:
                self._linger(connection)
            else:
                self._open.add(connection)
        except (OSError, TimeoutError) as exc:
            self._tell("a connection", f"it failed: {exc or 'too late'}")
        except asyncio.CancelledError:
            if connection is not None:
                connection.end()
            raise
        finally:
            if connection is None:
                accepted.close()

    async def _why_not(self, accepted: socket.socket) -> str:
        """Return why the program at the other end may not connect, or nothing."""
        if self._config.push_key or accepted.family not in (socket.AF_INET, socket.AF_INET6):
            return ""
        loop = asyncio.get_running_loop()
        theirs, ours = accepted.getpeername(), accepted.getsockname()
        is_ours = await loop.run_in_executor(self._users, peer.is_ours, theirs[:2], ours[:2])
        if is_ours:
            return ""
        if is_ours is None:
            reason = f"{_UNTOLD}: set push_key, and send it in the hello"
        else:
            reason = "another user of this machine connects: set push_key, and send it in the hello"
        self.forbidden += 1
        self._tell("a connection", reason)
        return reason

    def _linger(self, connection: Connection) -> None:
        """Let a refused connection be open for a moment; of many the oldest is closed."""
        self._refused_ones = deque(each for each in self._refused_ones if not each.is_closed)
        self._refused_ones.append(connection)
        if len(self._refused_ones) > MOST:
            self._refused_ones.popleft().abort()

    def _arrived(self, accepted: socket.socket, arrival: asyncio.Task[None]) -> None:
        self._arriving.pop(arrival, None)
        if arrival.cancelled():
            # Perhaps before it has begun.
            accepted.close()
        elif (exc := arrival.exception()) is not None:
            logger.error("a connection could not be admitted", exc_info=exc)

    def _tell(self, what: str, reason: str) -> None:
        untold = self._refused.note(what.encode(), clock.monotonic())
        if untold is not None:
            more = f"; {untold} more since the last such line" if untold else ""
            logger.warning("push_addr: %s: %s%s", what, reason, more)

    def _check(self) -> None:
        config = self._config
        if config.push_key and len(config.push_key) < SHORTEST_KEY:
            raise ConfigError("push_key", f"has {len(config.push_key)} characters; it needs {SHORTEST_KEY} or more")
        if not self._is_local:
            if not config.push_key:
                raise ConfigError("push_addr", f"{config.push_addr} can be reached from other machines: set push_key")
            if not (config.tls_cert and config.tls_key):
                raise ConfigError(
                    "push_addr", f"{config.push_addr} can be reached from other machines: set tls_cert and tls_key"
                )
        if ipc_folder.is_ipc(config.push_addr):
            if sys.platform == "win32":
                raise ConfigError("push_addr", "Windows has no local sockets here: use tcp://127.0.0.1:5560")
            why = ipc_folder.why_not_trusted(config.push_addr, ()) or ipc_folder.why_not_closed(config.push_addr)
            if why:
                raise ConfigError("push_addr", f"another user could connect: {why}. Use a folder of mode 0700")


def _path(address: str) -> str:
    return address.removeprefix("ipc://")


def _bind(address: str) -> tuple[socket.socket, str]:
    """Return the listening socket of an address, and the address with the port that the system chose."""
    if ipc_folder.is_ipc(address):
        return _bind_ipc(address), address
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ConfigError("push_addr", f"expected tcp://HOST:PORT or ipc:///path, got {address}")
    host, port = found[1].strip("[]"), 0 if found[2] == "*" else int(found[2])
    try:
        family, _, _, _, where = socket.getaddrinfo(
            "127.0.0.1" if host == "localhost" else None if host == "*" else host,
            port,
            socket.AF_INET if host == "*" else 0,
            socket.SOCK_STREAM,
            0,
            socket.AI_PASSIVE,
        )[0]
    except OSError as exc:
        raise ConfigError("push_addr", f"cannot listen on {address}: {exc.strerror or exc}") from exc
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        ports.claim(bound)
        bound.bind(where)
        bound.listen(_BACKLOG)
    except OSError as exc:
        bound.close()
        # Imported only for this message: the import takes 20 ms of a start.
        from qmt_bridge.process.holder import holder

        has_it = holder(port) if ports.is_taken(exc) else ""
        reason = f"{ports.why_not(exc, port)}{has_it}"
        raise ConfigError("push_addr", f"cannot listen on {address}: {reason}") from exc
    bound.setblocking(False)
    return bound, f"tcp://{found[1]}:{bound.getsockname()[1]}"


def _bind_ipc(address: str) -> socket.socket:
    path = Path(_path(address))
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and not path.is_socket():
            raise ConfigError("push_addr", f"cannot listen on {address}: it is a file or folder, and no socket")
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as probe, suppress(ConnectionRefusedError, FileNotFoundError):
                probe.connect(str(path))
                raise ConfigError("push_addr", f"cannot listen on {address}: Address already in use")
            # The process that listened on it has ended.
            path.unlink(missing_ok=True)
        bound.bind(str(path))
        ipc_folder.share(address)
        bound.listen(_BACKLOG)
    except (ConfigError, OSError) as exc:
        bound.close()
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError("push_addr", f"cannot listen on {address}: {exc.strerror or exc}") from exc
    bound.setblocking(False)
    return bound
