"""Reads one socket of the client in a task, so that the gateway does not wait while the caller works.

Runs on the caller's event loop. What is kept meanwhile is decided in `qmt_bridge.reading.backlog`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from qmt_bridge.reading.backlog import Backlog, Lag

# A callback that is no coroutine keeps the loop, and with it the task that reads. After so many seconds the loop is
# given some turns before the next frame is taken.
_SLICE = 0.005
# Seconds after which the caller is given a frame although more could be read.
_LONGEST_LOOK = 0.25


class Answers(Protocol):
    """Takes answers out of what is read, at once; the caller may be waiting for one of them."""

    @property
    def waits(self) -> bool:
        """Return whether an answer is waited for."""

    def take(self, frame: bytes) -> bool:
        """Take a frame; return whether it is such an answer."""


class Mailbox:
    """What waits in `backlog` until the caller takes it. Runs on the loop that is running."""

    # Turns of the loop without a frame after which none is there: one more than a frame takes from the socket to here.
    quiet_turns = 6

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._loop = asyncio.get_running_loop()
        # When the loop was last able to read.
        self._looked_at = self._loop.time()
        self._count = 0
        self._end: Exception | None = None
        self._is_stopped = False
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def take(self) -> bytes | Lag:
        """Return the next frame, or a notice for the caller; raise the end once all have been taken."""
        self._check()
        if self._loop.time() - self._looked_at >= _SLICE:
            await self._look()
        while (taken := self._backlog.take(self._loop.time())) is None:
            if self._end is not None:
                raise self._end
            self._arrival = self._loop.create_future()
            await self._arrival
            self._looked_at = self._loop.time()
            self._check()
        if self._room is not None and not self._backlog.full:
            _set(self._room)
        return taken

    def put(self, frame: bytes) -> None:
        """Take a frame for the caller."""
        self._count += 1
        self._backlog.put(frame, self._loop.time())
        _set(self._arrival)

    async def has_room(self) -> None:
        """Wait until the caller has taken enough, or does not want any more."""
        while self._backlog.full and not self._is_stopped:
            self._room = self._loop.create_future()
            await self._room

    def end(self, end: Exception) -> None:
        """Give the caller this end behind what waits."""
        self._end = self._end or end
        _set(self._arrival)

    def stop(self, end: Exception) -> None:
        """Give the caller this end in place of what waits."""
        self._end, self._is_stopped = end, True
        _set(self._arrival)
        _set(self._room)

    def go_on(self) -> None:
        """Read on although no room is left, because an answer is behind what is not read."""
        _set(self._room)

    def _check(self) -> None:
        if self._is_stopped and self._end is not None:
            raise self._end

    async def _look(self) -> None:
        """Let the loop read what has come while it was kept from running."""
        began = self._loop.time()
        quiet = 0
        while quiet < self.quiet_turns and self._loop.time() - began < _LONGEST_LOOK:
            count = self._count
            await asyncio.sleep(0)
            quiet = quiet + 1 if count == self._count else 0
        self._looked_at = self._loop.time()


class Reader(Mailbox):
    """The frames of `socket`."""

    # A turn reads the socket, the next one lets the task take what was read.
    quiet_turns = 3

    def __init__(self, socket: ClientConnection, backlog: Backlog, answers: Answers) -> None:
        super().__init__(backlog)
        self._socket = socket
        self._answers = answers
        self._task = self._loop.create_task(self._read())

    async def close(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._socket.recv(decode=False)
                if self._answers.waits and self._answers.take(frame):
                    self._count += 1
                    continue
                self.put(frame)
                while self._backlog.full and not self._answers.waits:
                    self._room = self._loop.create_future()
                    await self._room
        except ConnectionClosed as exc:
            self.end(exc)
        except Exception as exc:
            # A bug of ours: it reaches the caller, who would otherwise wait for ever.
            self.end(exc)


def _set(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
