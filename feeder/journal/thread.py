"""The thread that owns the journal: it commits, reads, deletes and reports results, so that no tick waits for a disk.

The publisher's thread hands over events and calls, and gets the results through `tell`, in order: that of an event once
it is on disk (or cannot be written now), and that of a call after those of all events before it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from feeder.events import Event, Positions
from feeder.journal.journal import BATCH_EVENTS, MAX_UNSAVED_BYTES, Journal
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

# Seconds between two checks for old events, between two steps of their deletion, and between two attempts to write to a
# disk that fails.
PRUNE_SECONDS = 1.0
PRUNE_PAUSE_SECONDS = 0.02
RETRY_SECONDS = 1.0
# A disk that has not answered for this time is treated as a disk that cannot be written, until it answers. A flush on a
# busy disk takes less time.
HUNG_SECONDS = 5.0

_NS_PER_MS = 1_000_000


class Written(NamedTuple):
    """Events up to the position `last` are handled: those up to `saved` are on disk, the later ones in memory.

    `failure` is the reason why the newest ones are not on disk; None while they are.
    """

    last: int
    saved: int
    failure: str | None


class Opened(NamedTuple):
    """The result of opening a journal: the epoch of this start, the newest positions, and a note for the operator."""

    epoch: int
    positions: Positions
    note: str | None


# The argument of `tell`: an outcome, the result of a call of `ask`, or the exception that has ended the thread.
News = Written | Callable[[], None] | Exception


class JournalThread:
    """Runs a `Journal`. The publisher's thread calls its methods, any thread `call`; `tell` runs on this thread."""

    def __init__(
        self, path: Path, days: int, max_mb: int, tell: Callable[[News], None], earlier: Path | None = None
    ) -> None:
        self._make = partial(Journal, path, days, max_mb, earlier)
        self._tell = tell
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._opened: Future[Opened] = Future()
        # The calls; None only wakes the thread, for events that wait.
        self._calls: queue.SimpleQueue[Callable[[Journal], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Event] = deque()
        # Bytes of all events handed over, and of all taken. Each is counted by one thread only, so no lock is needed.
        self._handed = 0
        self._taken = 0
        # The newest position that was handed over, and the newest that was given up.
        self._newest = 0
        self._left_out = 0
        self._closing = False
        # When the running call began (time.monotonic); None between calls.
        self._began: float | None = None
        self._outcome = Written(0, 0, None)

    # -- The publisher's thread

    def start(self, now_ns: int) -> Opened:
        """Open the journal and begin an epoch at `now_ns`; raise `ConfigError` if it cannot be opened."""
        self._start_ns = now_ns
        self._thread.start()
        if not wait([self._opened], HUNG_SECONDS).done:
            logger.error("the trade journal cannot be opened yet, the disk does not answer; the feeder waits for it")
        try:
            return self._opened.result()
        except BaseException:
            self._thread.join()
            raise

    def write(self, events: Sequence[Event]) -> list[Event]:
        """Queue `events`, which follow those of the last call, to be written; `tell` is called with the outcome.

        While the disk does not answer, at most `MAX_UNSAVED_BYTES` wait; later events are given up. Return the same
        events; those that are given up have the mark ``"journaled":false``.
        """
        accepted = []
        for event in events:
            if self._handed - self._taken > MAX_UNSAVED_BYTES:
                # The journal notices the missing positions at the next event, and logs them.
                accepted.append(event.marked())
                self._left_out = event.seq
                continue
            self._handed += event.size
            self._newest = event.seq
            self._waiting.append(event)
            accepted.append(event)
        self._calls.put(None)
        return accepted

    def ask(self, find: Callable[[Journal], Callable[[], None]]) -> None:
        """Queue `find`, to be called after everything that was queued before; `tell` is called with its result."""
        self._calls.put(lambda journal: self._tell(find(journal)))

    def age(self, now: float) -> float:
        """Return how many seconds the call that runs at `now` (time.monotonic) has taken; 0 between calls."""
        began = self._began
        return 0.0 if began is None else now - began

    def stop(self, warn_after: float, timeout: float) -> bool:
        """Write the events that wait and close the journal; return whether that was done within `timeout` seconds.

        After `warn_after` seconds the log says which events are not written yet, because the operator may stop waiting.
        """
        self._closing = True
        self._calls.put(None)
        if self._thread.ident is None:
            return True
        self._thread.join(warn_after)
        for seconds, level in ((timeout - warn_after, logging.WARNING), (0.0, logging.ERROR)):
            if self._thread.is_alive():
                logger.log(level, "trade journal cannot be closed, the disk does not answer; %s", self._unwritten())
                self._thread.join(seconds)
        return not self._thread.is_alive()

    def _unwritten(self) -> str:
        first = self._outcome.saved + 1
        return f"seq {first} to {self._newest} are not written" if first <= self._newest else "every event is written"

    # -- Any thread

    def call(self, find: Callable[[Journal], Found], timeout: float) -> Found:
        """Return what `find` returns; raise what it raises, or `TimeoutError` after `timeout` seconds."""
        found: Future[Found] = Future()

        def do(journal: Journal) -> None:
            try:
                found.set_result(find(journal))
            except Exception as exc:
                found.set_exception(exc)

        self._calls.put(do)
        return found.result(timeout)

    # -- Its own thread

    def _run(self) -> None:
        try:
            journal = self._make()
            try:
                epoch = journal.begin_epoch(self._start_ns)
            except BaseException:
                journal.close()
                raise
        except BaseException as exc:
            self._opened.set_exception(exc)
            return
        self._outcome = Written(journal.newest, journal.saved, None)
        self._opened.set_result(Opened(epoch, journal.positions, journal.note))
        try:
            try:
                self._loop(journal, epoch)
            finally:
                self._time(journal.close)
        except Exception as exc:
            self._tell(exc)

    def _loop(self, journal: Journal, epoch: int) -> None:
        now = started = next_prune = clock.monotonic()
        next_retry = now + RETRY_SECONDS
        while True:
            # Read this before the queue, so that everything that was handed over before it was set is written below.
            closing = self._closing
            # Take the calls before the events: so a call finds all events in the journal that were queued before it.
            is_idle = not (self._waiting or journal.catching_up or closing)
            calls = self._take_calls(min(next_prune, next_retry) - clock.monotonic() if is_idle else 0.0)
            self._write_waiting(journal)
            for call in calls:
                self._time(call, journal)
                # Write between two calls, so that many calls do not delay events.
                self._write_waiting(journal)
            if closing:
                return
            now = clock.monotonic()
            if journal.catching_up or now >= next_retry:
                next_retry = now + RETRY_SECONDS
                self._time(journal.save)
                self._tell_outcome(journal, journal.saved)
            if now >= next_prune:
                # Use at most the time since the start, so that nothing is deleted if the clock jumps ahead.
                at_most = epoch + int((now - started) * 1e9)
                more = self._time(journal.prune, min(clock.time_ns(), at_most) // _NS_PER_MS)
                next_prune = now + (PRUNE_PAUSE_SECONDS if more else PRUNE_SECONDS)
            self._time(partial(journal.checkpoint, idle=not self._waiting))

    def _take_calls(self, timeout: float) -> list[Callable[[Journal], None]]:
        calls = []
        try:
            call = self._calls.get(timeout=timeout) if timeout > 0 else self._calls.get_nowait()
            while True:
                if call is not None:
                    calls.append(call)
                call = self._calls.get_nowait()
        except queue.Empty:
            return calls

    def _write_waiting(self, journal: Journal) -> None:
        """Commit the events that wait now, some thousand at a time, and report the outcome each time."""
        # Read this before the queue: then every event before that position is in the queue already.
        left_out = self._left_out
        left = len(self._waiting)
        while left:
            batch = [self._waiting.popleft() for _ in range(min(left, BATCH_EVENTS))]
            left -= len(batch)
            saved = self._time(journal.append, batch)
            self._taken += sum(event.size for event in batch)
            self._tell_outcome(journal, saved)
        if left_out > self._outcome.last:
            self._tell_outcome(journal, journal.saved, left_out)

    def _tell_outcome(self, journal: Journal, saved: int, left_out: int = 0) -> None:
        outcome = Written(max(journal.newest, left_out), saved, journal.failure)
        if outcome != self._outcome:
            self._outcome = outcome
            self._tell(outcome)

    def _time(self, call: Callable[..., Found], *arguments: object) -> Found:
        """Make a call that may wait for the disk, and record when it began, for `age`."""
        self._began = clock.monotonic()
        try:
            return call(*arguments)
        finally:
            self._began = None
