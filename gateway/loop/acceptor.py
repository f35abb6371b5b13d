"""Takes the connections of a listening socket for an event loop that must not do so itself.

Windows ties a socket to the completion port of one Proactor loop. Several workers share the listening socket, and only
the first one of them could take connections from it. What is taken belongs to one worker alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from gateway.loop import readiness

logger = logging.getLogger(__name__)

# Connections that are taken in one turn of the loop.
AT_ONCE = 64
# Seconds until the next attempt after the system had no room for one more, as asyncio waits.
AGAIN = 1.0


class _Connection(socket.socket):
    """A connection whose other end may have left: the Proactor loop of CPython 3.11 would log that as an error."""

    def shutdown(self, how: int) -> None:
        """Shut down; do nothing if the connection is broken already."""
        with suppress(OSError):
            super().shutdown(how)


class Acceptor:
    """The server of one listening socket, as far as uvicorn uses a server of asyncio. On the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.BaseProtocol],
        listening: socket.socket,
        context: ssl.SSLContext | None = None,
        handshake_timeout: float | None = None,
    ) -> None:
        """Serve each connection by a protocol of `factory`, with TLS if there is a `context`."""
        listening.setblocking(False)
        self.sockets = (listening,)
        self._loop = loop
        self._factory = factory
        self._listening = listening
        self._context = context
        self._handshake_timeout = handshake_timeout if context is not None else None
        self._opening: set[asyncio.Task[None]] = set()
        self._readiness = readiness.Thread(loop, (listening.fileno(),), self._accept)

    def close(self) -> None:
        """Take no more connections; those that are open stay."""
        self._readiness.close()

    async def wait_closed(self) -> None:
        """Return at once: the server of the connections closes them itself."""

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                accepted, _address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                # Another worker has taken it, or the client has left.
                return
            except OSError as exc:
                logger.error("no connection can be taken for %g s: %s", AGAIN, exc)
                self._readiness.rest(AGAIN)
                return
            connection = _Connection(fileno=accepted.detach())
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory, connection, ssl=self._context, ssl_handshake_timeout=self._handshake_timeout
            )
        except OSError as exc:
            # The client has left, or the handshake of TLS failed. Anybody can do that.
            logger.debug("a connection has not opened: %s", exc)
            connection.close()
