"""Whether sockets have something to read, also for an event loop that cannot watch a descriptor.

Windows' Proactor loop, which asyncio and uvicorn take there, has no `add_reader`. The selector loop has one, but
select() on Windows takes at most 512 sockets, and the loop ends beyond. So there a thread watches the few sockets that
are not the loop's own.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol


class Readiness(Protocol):
    """Calls back on the loop as long as a watched socket has something to read."""

    def close(self) -> None:
        """Watch no more; the sockets may be closed after this. On the loop."""


def watch(loop: asyncio.AbstractEventLoop, descriptors: Sequence[int], ready: Callable[[], None]) -> Readiness:
    """Call `ready` on the loop as long as one of the descriptors can be read. On the loop."""
    try:
        for descriptor in descriptors:
            loop.add_reader(descriptor, ready)
    except NotImplementedError:
        return Thread(loop, descriptors, ready)
    return _Loop(loop, descriptors)


class _Loop:
    """The loop watches the descriptors itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptors: Sequence[int]) -> None:
        self._loop = loop
        self._descriptors = descriptors

    def close(self) -> None:
        """Take the descriptors off the loop."""
        for descriptor in self._descriptors:
            self._loop.remove_reader(descriptor)


class Thread:
    """A thread watches the descriptors, and waits after each call until the loop has made it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptors: Sequence[int], ready: Callable[[], None]) -> None:
        self._loop = loop
        self._descriptors = descriptors
        self._ready = ready
        self._closed = False
        self._pause = 0.0
        # Taken by the thread after each call that it has planned, given by the loop.
        self._made = threading.Semaphore(0)
        self._wake, self._waking = socket.socketpair()
        # A daemon: a loop that is closed without `close` must not keep the process.
        self._thread = threading.Thread(target=self._watch, name="readiness", daemon=True)
        self._thread.start()

    def rest(self, seconds: float) -> None:
        """Call back no sooner than after so many seconds. Within a call."""
        self._pause = seconds

    def close(self) -> None:
        """Watch no more, and wait for the thread: on Windows select() fails if one of its sockets is closed."""
        if self._closed:
            return
        self._closed = True
        self._made.release()
        self._waking.send(b"\0")
        self._thread.join()
        self._wake.close()
        self._waking.close()

    def _watch(self) -> None:
        while not self._closed:
            select.select([self._wake.fileno(), *self._descriptors], (), ())
            if self._closed:
                return
            try:
                self._loop.call_soon_threadsafe(self._call)
            except RuntimeError:
                # The loop was closed.
                return
            self._made.acquire()

    def _call(self) -> None:
        if self._closed:
            return
        self._pause = 0.0
        try:
            self._ready()
        finally:
            if self._pause:
                self._loop.call_later(self._pause, self._made.release)
            else:
                self._made.release()
