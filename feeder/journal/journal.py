"""Trade events on disk before they are published (SQLite): one numbering over all accounts and restarts.

Only one thread uses a `Journal` (see feeder/journal/thread.py). It must never lose an event that was published, nor
give its position to another event.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from feeder.events import Event, Positions
from feeder.journal.database import (
    BESIDE,
    NoJournalError,
    check_file,
    identity,
    is_damage,
    lock_folder,
    open_database,
    set_aside,
)
from feeder.journal.epochs import Epochs
from qmt_bridge import private
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.journal_file import newest_position, oldest_position
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.topics import mask

logger = logging.getLogger(__name__)

# One chunk of a replay. Other replies on the ask socket are as large.
CHUNK_EVENTS = 1000
CHUNK_BYTES = 512 * 1024
# Events of one transaction, which takes some 30 ms; a burst has fewer.
BATCH_EVENTS = 5000
# Bytes of events that are kept in memory while the disk cannot be written (see `Event.size`).
MAX_UNSAVED_BYTES = 64 * 1024 * 1024
# Events that one call deletes, and pages that it gives back to the disk: some 5 ms each.
PRUNE_EVENTS = 500
SHRINK_PAGES = 250
# The write-ahead log is carried over into the file at this size when no event waits, some 10 ms, and at the other one
# in any case: a page (4 KiB) is written anew by each commit that touches it, so that small commits cost 8 KB and more.
CHECKPOINT_BYTES = 2 * 1024 * 1024
LOG_BYTES = 4 * 1024 * 1024
# A log of this size is reported: a program that reads without a pause prevents its being carried over.
LARGE_LOG_BYTES = 64 * 1024 * 1024
# Free pages that stay in the file for the next events (1 MB).
SPARE_PAGES = 256

# Events of one statement. Each statement releases the interpreter's lock, and a busy source may hold it for 5 ms: with
# one event a statement, a burst could wait for seconds. Old versions of SQLite take 999 values a statement.
_INSERT_EVENTS = 150
_DAY_MS = 24 * 3600 * 1000
_event_decoder = msgspec.msgpack.Decoder(TradeEvent)


class Chunk(NamedTuple):
    """Some events in order: `body` is their array, `last` the position that it reaches."""

    body: bytes
    last: int
    more: bool


class Journal:
    """The trade events of one source in one file.

    A commit is synchronous (WAL with ``synchronous=FULL``): with NORMAL a power cut takes back the last commits,
    and the feeder would then give new events the numbers of lost ones that clients have seen; a client that resumed
    after such a number would miss events without notice. Events are few and written in batches, so the flush costs
    little.

    While the disk cannot be written, events are published and replayed out of memory, and written as soon as possible.
    They are lost only by a crash before that, or by `MAX_UNSAVED_BYTES` of later ones; the log says which.

    A file that is damaged, or is no journal, gets another name, and a new journal begins, because market data does not
    depend on it. `note` says so while such a file lies beside the journal.

    The position of an account is the number of one of its events.
    """

    def __init__(self, path: Path, days: int, max_mb: int = 0) -> None:
        """Open or create the file; raise `ConfigError` if it cannot be, or if another feeder has it.

        `days` and `max_mb` (2**20 bytes; 0 is any number) are for how long and up to which size `prune` keeps events.
        """
        # Why the newest events are not on disk; None while they are.
        self.failure: str | None = None
        self._days = days
        self._max_bytes = max_mb * 1024 * 1024
        # A text for the operator, set although the journal can be written.
        self.note: str | None = None
        # Contiguous, and the newest of all.
        self._unsaved: deque[Event] = deque()
        self._unsaved_bytes = 0
        # First and last position of the events that were given up.
        self._forgotten: tuple[int, int] | None = None
        self._prune_failing = False
        # At which size the log is carried over next, when no event waits.
        self._carry_at = CHECKPOINT_BYTES
        self._carry_failing = False
        self._large_log_told = False
        self._epochs = Epochs()
        try:
            private.make_folder(path.parent)
        except OSError as exc:
            raise ConfigError("data_dir", f"cannot make the folder of the trade journal {path}: {exc}") from exc
        self._lock = lock_folder(path.parent)
        with ExitStack() as failed:
            failed.callback(self._lock.close)
            try:
                try:
                    self._read_file(path)
                except (sqlite3.DatabaseError, NoJournalError) as exc:
                    if not is_damage(exc):
                        raise
                    aside = set_aside(path)
                    logger.error(
                        "trade journal %s is damaged or is none (%s): it is now %s, and a new journal begins, which "
                        "refuses the positions of the old one",
                        path,
                        exc,
                        aside.name,
                    )
                    self._read_file(path)
                failed.callback(self._database.close)
                # Where the file is reached by a link, SQLite has it beside the file.
                self._log = path.resolve().with_name(f"{path.resolve().name}-wal")
                self._page_bytes = self._pragma("page_size")
                self._path = path
                self._file = identity(path)
                left = sorted(
                    found.name
                    for found in path.parent.glob(f"{path.name}.damaged-*")
                    if not found.name.endswith(BESIDE)
                )
                if left:
                    self.note = f"a damaged journal was set aside: {', '.join(left)}; look at it, then move it away"
            except (sqlite3.Error, OSError) as exc:
                raise ConfigError("data_dir", f"cannot use the trade journal {path}: {exc}") from exc
            failed.pop_all()

    def _read_file(self, path: Path) -> None:
        """Open the file, read newest positions and epochs; raise `sqlite3.Error`, `OSError` or `NoJournalError`."""
        check_file(path)
        self._database = open_database(path)
        try:
            newest = newest_position(self._database)
            numbers: dict[str, int] = dict(self._database.execute("SELECT name, newest FROM account"))
            if not all(isinstance(position, int) for position in (newest, *numbers.values())):
                raise NoJournalError("its positions are no numbers")
            # The journal's own positions; `positions` is a copy for the thread that numbers new events.
            self._had = Positions(newest, numbers)
            self.positions = self._had.copy()
            self._epochs.read(self._database)
            # Events up to this position cannot be replayed any more.
            self._floor = oldest_position(self._database)
        except sqlite3.OperationalError as exc:
            self._database.close()
            if exc.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                # A table or a column is missing.
                raise NoJournalError(str(exc)) from exc
            raise
        except BaseException:
            self._database.close()
            raise

    def begin_epoch(self, now_ns: int) -> int:
        """Return the epoch of this start of the feeder: `now_ns`, or more if the clock was set back since the last one.

        Consumers take the larger of two epochs for the later one, and name the one they know when they resume.
        """
        epoch = self._epochs.begin(now_ns, self._had)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._epochs.save(self._database)
            self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            logger.warning(
                "the epoch of this start cannot be written yet: %s; the next feeder would refuse the positions seen "
                "in it",
                exc,
            )
        else:
            self._epochs.saved()
        return epoch

    def has(self, position: JournalPosition, account: str | None) -> bool:
        """Return whether this journal has the position, which was one in the journal of the epoch that it names."""
        return self._epochs.have(position, account)

    @property
    def catching_up(self) -> bool:
        """Return whether `save` has more to write, and the disk can be written."""
        return bool(self._unsaved) and self.failure is None

    @property
    def newest(self) -> int:
        """Return the newest position of all; 0 before the first event."""
        return self._had.newest

    @property
    def saved(self) -> int:
        """Return the newest position up to which every event is on disk, or was given up."""
        return self._unsaved[0].seq - 1 if self._unsaved else self._had.newest

    def append(self, events: Sequence[Event]) -> int:
        """Commit `events`, which follow those of the last call; return up to which position everything is on disk.

        Later events are replayed with their mark, and have to be published with it. Positions left out are given up.
        """
        for event in events:
            if event.seq != self._had.newest + 1:
                self._step_over(event.seq)
            self._had.reach(event)
            self._unsaved.append(event)
            self._unsaved_bytes += event.size
        if self.failure is None:
            # While it fails, one try a second is enough (see feeder/journal/thread.py).
            self.save()
        saved = self.saved
        while self._unsaved_bytes > MAX_UNSAVED_BYTES:
            given_up = self._unsaved.popleft()
            self._unsaved_bytes -= given_up.size
            self._give_up(given_up.seq, given_up.seq)
        return saved

    def save(self) -> None:
        """Write events that are not on disk, some thousand at a time; log the first failure of a row.

        It fails also if the file was moved or removed: SQLite would write on to a file that ends with this process.
        """
        displaced = self._displaced()
        if displaced is not None:
            self._fail(displaced)
            return
        if not self._unsaved and self._epochs.are_saved:
            self._recover(self.newest + 1)
            return
        batch = list(islice(self._unsaved, BATCH_EVENTS))
        try:
            self._database.execute("BEGIN IMMEDIATE")
            # First the epoch: in a later one, no event of an epoch that the journal does not know could be resumed
            # after.
            self._epochs.save(self._database)
            self._insert(batch)
            self._database.executemany(
                "INSERT INTO account VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET newest = excluded.newest",
                {event.account: event.number for event in batch}.items(),
            )
            self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self._fail(str(exc))
            return
        self._epochs.saved()
        for event in batch:
            self._unsaved.popleft()
            self._unsaved_bytes -= event.size
        self._recover(batch[0].seq if batch else self.newest + 1)

    def checkpoint(self, *, idle: bool) -> None:
        """Carry the log over into the file, and empty it, once it is large; sooner if no event waits (`idle`).

        SQLite would do so in the commit that exceeds a limit, and the events of that burst would wait for it.
        """
        size = self._log_bytes()
        if size < (self._carry_at if idle else max(self._carry_at, LOG_BYTES)):
            return
        try:
            # It does not wait for readers; one in the middle of a query prevents the log from being emptied.
            ((busy, *_),) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as exc:
            self._carry_at = size + CHECKPOINT_BYTES
            if not self._carry_failing:
                self._carry_failing = True
                logger.warning("the log of the trade journal grows, it cannot be carried over: %s", exc)
            return
        self._carry_failing = False
        self._carry_at = size + CHECKPOINT_BYTES if busy else CHECKPOINT_BYTES
        if not busy:
            self._large_log_told = False
        elif size > LARGE_LOG_BYTES and not self._large_log_told:
            self._large_log_told = True
            logger.warning(
                "the log of the trade journal has %d MiB: a program has been reading the file without a pause, and "
                "keeps the log from being carried over",
                size >> 20,
            )

    def newest_of(self, account: str | None = None) -> int:
        """Return the newest position, of an account or of all; 0 before the first event."""
        return self._had.of(account)

    def oldest(self, account: str | None = None) -> int:
        """Return the smallest position, of an account or of all, after which every event is at hand.

        Raise `sqlite3.Error`.
        """
        if account is None:
            return self._floor
        query = "SELECT number FROM event WHERE account = ? AND seq > ? ORDER BY number LIMIT 1"
        for (number,) in self._database.execute(query, (account, self._floor)):
            if not isinstance(number, int):
                raise sqlite3.DatabaseError(f"a position of account {mask(account)} is damaged")
            return number - 1
        waiting = (event.number - 1 for event in self._unsaved if event.account == account)
        return next(waiting, self.newest_of(account))

    def read(self, after: int, account: str | None = None, room: int = CHUNK_BYTES) -> Chunk:
        """Return the next events after position `after` of an account or of all; raise `sqlite3.Error`.

        At most `CHUNK_EVENTS` events and, unless one alone is larger, `room` bytes. The last chunk reaches the newest.
        """
        bodies: list[msgspec.Raw] = []
        last, size = after, 5
        for position, body in self._after(after, account):
            if not _is_event(body):
                # SQLite has no checksums, so damage inside a page may appear as another value.
                if bodies:
                    return Chunk(frames.encode(bodies), last, True)
                raise sqlite3.DatabaseError(f"the event at position {position} is damaged")
            size += len(body)
            if bodies and (size > room or len(bodies) == CHUNK_EVENTS):
                return Chunk(frames.encode(bodies), last, True)
            bodies.append(msgspec.Raw(body))
            last = position
        return Chunk(frames.encode(bodies), last, False)

    def since(self, time_ms: int, after: int = 0) -> list[tuple[int, int, bytes]]:
        """Return seq, time (ms) and body of the next saved events from `time_ms` on, oldest first.

        At most `CHUNK_EVENTS` of those after position `after`; none if there are no more. Raise `sqlite3.Error`.
        """
        return self._database.execute(
            "SELECT seq, time_ms, body FROM event WHERE seq > ? AND time_ms >= ? ORDER BY seq LIMIT ?",
            (after, time_ms, CHUNK_EVENTS),
        ).fetchall()

    def prune(self, time_ms: int) -> bool:
        """Delete some events that are too old at `time_ms`, or too many; return whether there may be more to do.

        Deletes by position from the oldest event on, not by time alone: a clock that was set back must leave no gap.
        """
        if self.failure is not None:
            return False
        try:
            last = self._deletable(time_ms - self._days * _DAY_MS)
            if last is None:
                return self._shrink()
            self._database.execute("DELETE FROM event WHERE seq <= ?", (last,))
        except sqlite3.Error as exc:
            if not self._prune_failing:
                self._prune_failing = True
                logger.warning("old trade events could not be deleted: %s", exc)
            return False
        self._prune_failing = False
        self._floor = max(self._floor, last)
        return True

    def close(self) -> None:
        """Write the events that can be written, close the file and unlock its folder."""
        self.save()
        while self.catching_up:
            self.save()
        if self._unsaved:
            logger.error("trade journal is closed without seq %d to %d", self._unsaved[0].seq, self._unsaved[-1].seq)
            self._unsaved.clear()
            self._unsaved_bytes = 0
        self._database.close()
        self._lock.close()

    def _after(self, after: int, account: str | None) -> Iterator[tuple[int, bytes]]:
        if account is None:
            cursor = self._database.execute("SELECT seq, body FROM event WHERE seq > ? ORDER BY seq", (after,))
        else:
            query = "SELECT number, body FROM event WHERE account = ? AND number > ? ORDER BY number"
            cursor = self._database.execute(query, (account, after))
        try:
            yield from cursor
        finally:
            cursor.close()
        if not self._unsaved:
            return
        if account is None:
            for event in islice(self._unsaved, max(0, after + 1 - self._unsaved[0].seq), None):
                yield event.seq, event.marked().body
        else:
            for event in self._unsaved:
                if event.account == account and event.number > after:
                    yield event.number, event.marked().body

    def _insert(self, events: list[Event]) -> None:
        for start in range(0, len(events), _INSERT_EVENTS):
            some = events[start : start + _INSERT_EVENTS]
            rows = ", ".join(["(?, ?, ?, ?, ?)"] * len(some))
            query = f"INSERT INTO event (seq, account, number, time_ms, body) VALUES {rows}"
            self._database.execute(query, list(chain.from_iterable(some)))

    def _displaced(self) -> str | None:
        """Return whether the file was replaced or removed, as a text; None while it is in its place."""
        try:
            return None if identity(self._path) == self._file else f"{self._path} has been replaced"
        except OSError as exc:
            return f"{self._path} has been removed: {exc.strerror}"

    def _fail(self, why: str) -> None:
        if self.failure is None:
            first = self._unsaved[0].seq if self._unsaved else self.newest + 1
            logger.error("trade journal cannot be written: %s; events from seq %d on are only in memory", why, first)
        self.failure = why

    def _recover(self, first: int) -> None:
        if self._forgotten is not None:
            logger.error("trade events of seq %d to %d were never written", *self._forgotten)
            self._forgotten = None
        if self.failure is None:
            return
        self.failure = None
        logger.warning("trade journal is written again, from seq %d on", first)

    def _step_over(self, seq: int) -> None:
        """Give up the positions left out before `seq`: a replay must not pass over a gap."""
        while self.catching_up:
            self.save()
        first = self.saved + 1
        # Events that wait are older than the gap, and could not be replayed either.
        self._unsaved.clear()
        self._unsaved_bytes = 0
        self._give_up(first, seq - 1)

    def _give_up(self, first: int, last: int) -> None:
        if self._forgotten is None:
            logger.error(
                "trade events from seq %d on are given up, they can neither be replayed nor written: more than %d MiB "
                "wait for the disk",
                first,
                MAX_UNSAVED_BYTES >> 20,
            )
        self._forgotten = (self._forgotten[0] if self._forgotten else first, last)
        self._floor = last

    def _deletable(self, old_ms: int) -> int | None:
        """Return up to which position events may be deleted at once; None if none has to be."""
        too_large = self._max_bytes and self._used_pages() * self._page_bytes > self._max_bytes
        last = None
        cursor = self._database.execute("SELECT seq, time_ms FROM event ORDER BY seq LIMIT ?", (PRUNE_EVENTS,))
        for seq, time_ms in cursor:
            if not too_large and not isinstance(time_ms, int):
                # The time is damaged: the event is deleted with those that follow it.
                continue
            if not too_large and time_ms >= old_ms:
                break
            last = seq
        cursor.close()
        return last

    def _shrink(self) -> bool:
        """Give some free pages back to the disk; return whether there are more."""
        free = self._pragma("freelist_count")
        if free <= SPARE_PAGES:
            return False
        # A file that was made as version 0 keeps its free pages, for the next events.
        # The statement frees one page a step, and `execute` makes only one step of a statement without columns.
        self._database.executescript(f"PRAGMA incremental_vacuum({min(SHRINK_PAGES, free - SPARE_PAGES)})")
        return SPARE_PAGES < self._pragma("freelist_count") < free

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            # The log is not made yet, or was removed; the next commit notices a disk that fails.
            return 0

    def _used_pages(self) -> int:
        return self._pragma("page_count") - self._pragma("freelist_count")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])


def _is_event(body: object) -> bool:
    try:
        return isinstance(body, bytes) and frames.read(_event_decoder, body) is not None
    except WireError:
        return False
