"""The thread with an event loop on which the streams of a synchronous client run.

It is started when the first stream begins, and ends with its client: by `stop`, with the last reference to the client,
or at the end of the program. A process that was forked has none of its parent's threads, and starts one of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress

# Seconds for the ends of all connections; each waits two for the answer of the gateway.
CLOSE_SECONDS = 5.0


class LoopThread:
    """One daemon thread, and the loop that runs in it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # What was handed to the loop is run before it ends. Reentrant: the garbage collector may end another stream of
        # this client in the middle of it.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        # What to end before the loop.
        self._members: set[Callable[[], None]] = set()

    def start(self) -> None:
        """Start the loop if it does not run."""
        if self._pid != os.getpid():
            # The parent's loop shares its file descriptors with this process: it must not be touched here.
            self._reset()
        with self._lock:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="qmt-bridge-client", daemon=True)
                self._thread.start()

    @property
    def is_current(self) -> bool:
        """Return whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    def is_of(self, pid: int) -> bool:
        """Return whether what began in process `pid` runs here."""
        return pid == self._pid == os.getpid()

    def call(self, method: Callable[..., object], *arguments: object) -> bool:
        """Run a method on the loop; return whether it will run."""
        if self._pid != os.getpid():
            return False
        with self._lock, suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(method, *arguments)
                return True
        # It has ended.
        return False

    def enter(self, end: Callable[[], None]) -> None:
        """Have `end` called before the loop ends."""
        self._members.add(end)

    def leave(self, end: Callable[[], None]) -> None:
        """Forget it again."""
        self._members.discard(end)

    def stop(self) -> None:
        """End what runs, and the thread. A later stream starts it again."""
        if self._pid != os.getpid():
            return
        for end in [*self._members]:
            end()
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            if loop is None or thread is None:
                return
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end_tasks())
        loop.run_until_complete(loop.shutdown_asyncgens())
        # Threads of its executor are not waited for: a callback in one may itself be closing the client, and a look-up
        # of a name can take as long as the resolver likes.
        loop.close()


async def _end_tasks() -> None:
    # Streams that were closed end their connections first: cancelled once more, they would cut them off.
    closing = {task for task in asyncio.all_tasks() if task.cancelling()}
    if closing:
        await asyncio.wait(closing, timeout=CLOSE_SECONDS)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
