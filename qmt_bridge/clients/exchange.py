"""Hands the frames of one stream from the client's loop to the thread that reads them, one at a time.

The loop asks for the next frame when the thread does, so what a slow thread gets, and what it has seen, are decided as
for a slow loop of the asynchronous client. While the thread waits it also runs the caller's `on_state` and `on_error`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, Literal, NamedTuple

from qmt_bridge.clients.loop_thread import LoopThread
from qmt_bridge.clients.subscription import Subscription

# On Windows a thread that waits for a lock is not interrupted by Ctrl-C, so it wakes up to look.
_LOOK_SECONDS = 0.1 if os.name == "nt" else None

running: ContextVar[Exchange | None] = ContextVar("running", default=None)
"""The exchange whose stream the present task serves."""


class _Item(NamedTuple):
    kind: Literal["frame", "end", "error", "call"]
    value: Any = None


class _Call(NamedTuple):
    function: Callable[[Any], object]
    told: Any
    done: asyncio.Future[object]


class Exchange:
    """Of one stream. `next` and `close` are for other threads than the loop's."""

    def __init__(self, thread: LoopThread, frames: Subscription) -> None:
        self._thread = thread
        self._pid = os.getpid()
        self.frames = frames
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._task: asyncio.Task[None] | None = None
        self._asked: asyncio.Future[None] | None = None
        # Whether a frame was asked for that has not come yet.
        self._is_awaited = False
        self._has_begun = False
        self.is_closed = False
        # Guards `_has_begun` and `is_closed`. Reentrant: a collection of garbage within it may close this stream.
        self._lock = threading.RLock()
        # Held by the thread that waits for a frame.
        self._reading = threading.Lock()
        self._gone = threading.Event()

    # In the thread that reads.

    def next(self) -> Any:
        """Return the next frame; raise StopIteration after the last one, and what ends the stream otherwise."""
        if self._pid != os.getpid():
            raise RuntimeError("this stream was begun before a fork; begin another one in the new process")
        if not self._reading.acquire(blocking=False):
            # Each would take what belongs to the other, and one of them would wait for ever.
            raise RuntimeError("another thread waits for the next frame of this stream; it has one reader")
        try:
            return self._next()
        finally:
            self._reading.release()

    def _next(self) -> Any:
        self._ask()
        while True:
            item = self._take()
            if item.kind == "call" and not self.is_closed:
                self._run(item.value)
            if item.kind == "call":
                continue
            self._is_awaited = False
            if item.kind == "frame" and not self.is_closed:
                return item.value
            self.close()
            if item.kind == "error":
                raise item.value
            raise StopIteration

    def _ask(self) -> None:
        with self._lock:
            if self.is_closed or self._is_awaited:
                # After an interrupted wait the frame that was asked for is still to come.
                return
            self._is_awaited = True
            begins, self._has_begun = not self._has_begun, True
        if begins:
            self._thread.start()
            self._thread.enter(self._leave)
            asked = self._thread.call(self._begin)
        else:
            asked = self._thread.call(self._go_on)
        if not asked:
            self._items.put(_Item("end"))

    def _take(self) -> _Item:
        if self.is_closed and self._items.empty():
            return _Item("end")
        while True:
            with suppress(queue.Empty):
                return self._items.get(timeout=_LOOK_SECONDS)

    def _run(self, call: _Call) -> None:
        try:
            result = call.function(call.told)
        except Exception as exc:
            self._thread.call(_fail, call.done, exc)
        except BaseException:
            self._thread.call(call.done.cancel)
            raise
        else:
            self._thread.call(_answer, call.done, result)

    # In any thread.

    def close(self, *, waits: bool = True) -> None:
        """End the stream, and wait until its connection is closed."""
        with self._lock:
            is_first, self.is_closed = not self.is_closed, True
            has_begun = self._has_begun
        self._thread.leave(self._leave)
        if has_begun and not self._thread.is_of(self._pid):
            # Its loop is that of the parent, which shares its file descriptors.
            return
        if not has_begun:
            self.frames.close()
            self._items.put(_Item("end"))
            return
        if is_first:
            # A thread that waits goes on at once; the connection is closed meanwhile.
            self._items.put(_Item("end"))
            if not self._thread.call(self._end):
                self._gone.set()
        if waits and not self._thread.is_current:
            wait(self._gone)

    def _leave(self) -> None:
        self.close(waits=False)

    # On the loop.

    def _begin(self) -> None:
        if self.is_closed:
            # Before this turn of the loop: `_end` has found no task to cancel.
            self._thread.leave(self._leave)
            self._gone.set()
            return
        context = copy_context()
        context.run(running.set, self)
        self._task = asyncio.get_running_loop().create_task(self._pump(), context=context)
        self._task.add_done_callback(lambda _: self._gone.set())

    def _go_on(self) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _pump(self) -> None:
        try:
            async with self.frames as frames:
                async for frame in frames:
                    self._asked = asyncio.get_running_loop().create_future()
                    self._items.put(_Item("frame", frame))
                    await self._asked
        except Exception as exc:
            self._items.put(_Item("error", exc))
        finally:
            self._items.put(_Item("end"))

    async def call(self, function: Callable[[Any], object], told: Any) -> object:
        """Have a function called by the thread that reads; return its result."""
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._items.put(_Item("call", _Call(function, told, done)))
        return await done


def wait(event: threading.Event, timeout: float | None = None) -> bool:
    """Wait for an event, so that Ctrl-C ends the wait; return whether it came."""
    if timeout is None:
        while not event.wait(_LOOK_SECONDS):
            pass
        return True
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0.0:
        if event.wait(min(left, _LOOK_SECONDS or left)):
            return True
    return event.is_set()


def _answer(done: asyncio.Future[object], result: object) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[object], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
