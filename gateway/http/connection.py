"""The connection of an answer that takes any time: until when its client is there, and how it is dropped.

Runs on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from starlette.types import Receive, Scope

from gateway.connections.handshake import EXTENSION

# Seconds in which a connection that was dropped is seen to be gone.
DROP_TIMEOUT = 5.0


class _Answer(Protocol):
    """The connection as our server has it."""

    def stream(self, stopping: Callable[[], None]) -> None: ...

    def drop(self) -> None: ...


class Connection:
    """The connection of one answer; under another server than ours it cannot be dropped."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._answer: _Answer | None = scope.get("extensions", {}).get(EXTENSION)
        self._receive = receive

    def stream(self, stopping: Callable[[], None] | None = None) -> None:
        """Let the answer take any time; call `stopping` when the server stops, or cut the answer off then."""
        if self._answer is not None:
            self._answer.stream(self._answer.drop if stopping is None else stopping)

    async def gone(self) -> None:
        """Wait until the client has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def drop(self) -> None:
        """End an answer whose client does not read it."""
        if self._answer is not None:
            self._answer.drop()
        with suppress(TimeoutError):
            async with asyncio.timeout(DROP_TIMEOUT):
                await self.gone()
