"""The event loop of a worker on Windows: the Proactor loop, with a clock of microseconds.

The selector loop would end with its 513th socket (FD_SETSIZE of CPython).
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any

from gateway.loop.acceptor import Acceptor
from qmt_bridge.system import clock

if sys.platform == "win32":

    class WindowsLoop(asyncio.ProactorEventLoop):
        """A loop that serves thousands of sockets, and shares a listening socket with other processes."""

        def __init__(self) -> None:
            super().__init__()
            # Timers that are due within this time run at once: 16 ms, of the clock that asyncio would use.
            self._clock_resolution = clock.RESOLUTION

        def time(self) -> float:
            """Return the seconds of the clock that the whole worker uses."""
            return clock.monotonic()

        async def create_server(  # type: ignore[override]
            self, protocol_factory: Callable[[], asyncio.BaseProtocol], *args: Any, **options: Any
        ) -> Any:
            """Serve a socket that listens already by an `Acceptor`, any other one as asyncio does."""
            listening: socket.socket | None = options.get("sock")
            if listening is None:
                return await super().create_server(protocol_factory, *args, **options)
            listening.listen(options.get("backlog") or 100)
            return Acceptor(self, protocol_factory, listening, options.get("ssl"), options.get("ssl_handshake_timeout"))
