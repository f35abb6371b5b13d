"""Work of all sessions of one loop that may take long, in slices: nothing else waits longer than one slice.

A request may name thousands of codes, and to join or leave each takes some 20 us. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import TypeVar

Made = TypeVar("Made")

# Seconds of work in one turn of the loop.
SLICE = 0.002


class Slices:
    """Does work at once while there is time left in this turn of the loop, and the rest in later turns.

    The work of one owner is done in order. Owners take turns, so a small request does not wait for a large one.
    """

    __slots__ = ("_clock", "_planned", "_until", "_work")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        # Not the loop's clock: uvloop's stands still during a turn.
        self._clock = clock
        # What waits of each owner; the next one is first.
        self._work: dict[Hashable, deque[Callable[[], None]]] = {}
        self._planned = False
        self._until = 0.0

    def do(self, owner: Hashable, work: Callable[[], None]) -> None:
        """Call `work`, now or in a later turn of the loop; it must not raise."""
        waiting = self._work.get(owner)
        if waiting is not None:
            waiting.append(work)
            return
        if not self._planned:
            self._until = self._clock() + SLICE
            self._plan()
        if self._clock() < self._until:
            work()
        else:
            self._work[owner] = deque((work,))

    async def make(self, make: Callable[[], Made]) -> Made:
        """Return what `make` returns, in a turn of the loop that has time for it: hundreds may be due at once."""
        made: asyncio.Future[Made] = asyncio.get_running_loop().create_future()

        def work() -> None:
            if made.done():
                # The one that waited is gone.
                return
            try:
                made.set_result(make())
            except Exception as exc:
                made.set_exception(exc)

        self.do(made, work)
        return await made

    async def done(self, owner: Hashable) -> None:
        """Wait until all present work of `owner` has been done."""
        waiting = self._work.get(owner)
        if waiting is not None:
            done = asyncio.get_running_loop().create_future()
            waiting.append(functools.partial(_settle, done))
            await done

    def _plan(self) -> None:
        self._planned = True
        asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._planned = False
        if not self._work:
            return
        self._until = self._clock() + SLICE
        try:
            self._do_next()
            while self._work and self._clock() < self._until:
                self._do_next()
        finally:
            if self._work:
                self._plan()

    def _do_next(self) -> None:
        """Do the first piece of the owner whose turn it is."""
        owner = next(iter(self._work))
        waiting = self._work.pop(owner)
        work = waiting.popleft()
        if waiting:
            self._work[owner] = waiting
        work()


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
