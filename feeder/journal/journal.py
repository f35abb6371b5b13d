"""Write trade events to disk (SQLite) before they are published, with one numbering over all accounts and restarts.

Only one thread uses a `Journal` (see feeder/journal/thread.py). It must never lose an event that was published, and
never give its position to another event.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from feeder.events import Event, Positions
from feeder.journal.adoption import adopt
from feeder.journal.epochs import Epochs
from feeder.journal.opening import (
    BESIDE,
    NoJournalError,
    check_file,
    identity,
    is_damage,
    lock_folder,
    open_database,
    set_aside,
)
from feeder.journal.timeline import Stamp, position_before
from qmt_bridge import private
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.journal_file import MOST_ACCOUNTS, MOST_POSITION, check_accounts, newest_position, oldest_position
from qmt_bridge.wire import earlier, frames
from qmt_bridge.wire.history import Hole, Missing
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.moments import Moment, read_moment
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.topics import mask

logger = logging.getLogger(__name__)

# The size of one chunk of a replay; other replies on the ask socket are of the same size.
CHUNK_EVENTS = 1000
CHUNK_BYTES = 512 * 1024
SINCE_BYTES = 4 * 1024 * 1024
# The most events of one transaction, which then takes some 30 ms; a burst has fewer.
BATCH_EVENTS = 5000
# Bytes of events that are kept in memory while the disk fails (see `Event.size`).
MAX_UNSAVED_BYTES = 64 * 1024 * 1024
# How many events one call deletes, or how many pages it frees on the disk: some 5 ms each.
PRUNE_EVENTS = 500
SHRINK_PAGES = 250
# The write-ahead log is copied into the file (a checkpoint, some 10 ms) at CHECKPOINT_BYTES if no event waits, and at
# LOG_BYTES in any case. Each commit writes every page (4 KiB) that it changes to the log, so a small commit costs 8 KB
# or more.
CHECKPOINT_BYTES = 2 * 1024 * 1024
LOG_BYTES = 4 * 1024 * 1024
# A log of this size is reported: a program that reads without a pause prevents the checkpoint.
LARGE_LOG_BYTES = 64 * 1024 * 1024
# Free pages that stay in the file for the next events (1 MB).
SPARE_PAGES = 256

# Events of one statement. Each statement releases the interpreter's lock, and a busy source may then hold it for 5 ms:
# with one event per statement, a burst could wait for seconds. Old versions of SQLite accept 999 values per statement.
_INSERT_EVENTS = 150
_DAY_MS = 24 * 3600 * 1000
_event_decoder = msgspec.json.Decoder(TradeEvent)


class Chunk(NamedTuple):
    """Some events in order: `body` is their encoded array, `last` the position of the last one."""

    body: bytes
    last: int
    more: bool


class Span(NamedTuple):
    """The events from one moment to another: those behind the position `after`, up to the position `until`.

    `from_ms` is when the first of them came; `missing` says that events before it are missing, or may be.
    """

    after: int
    until: int
    start_ms: int
    end_ms: int
    from_ms: int | None
    missing: Hole | None


class Journal:
    """The trade events of one source in one file.

    A commit is synchronous (WAL with ``synchronous=FULL``). With NORMAL a power cut can undo the last commits. The
    feeder would then give the numbers of lost events, which clients have received, to new events, and a client that
    resumes after such a number would miss events without notice. Events are few and written in batches, so the flush
    costs little.

    While the disk cannot be written, events are published and replayed from memory, and written as soon as possible.
    They are lost only if the feeder crashes before that, or if more than `MAX_UNSAVED_BYTES` wait; the log says which.

    A file that is damaged, or is no journal, is renamed, and a new journal begins, because market data does not depend
    on it. `note` says so as long as the renamed file is in the folder.

    A position of an account is the number of one of its events.
    """

    def __init__(self, path: Path, days: int, max_mb: int = 0, earlier: Path | None = None) -> None:
        """Open or create the file; raise `ConfigError` if that fails, or if another feeder uses the folder.

        `prune` keeps events for `days`, and up to a size of `max_mb` (2**20 bytes; 0 means no limit). `earlier` is a
        name that the file had before (see `adopt`).
        """
        # Why the newest events are not on disk; None while they are.
        self.failure: str | None = None
        self._days = days
        self._max_bytes = max_mb * 1024 * 1024
        # A text for the operator about a damaged journal that was set aside.
        self.note: str | None = None
        # The newest events, which are not on disk; their positions have no gap.
        self._unsaved: deque[Event] = deque()
        self._unsaved_bytes = 0
        # First and last position of the events that were given up, until the log says so.
        self._forgotten: tuple[int, int] | None = None
        self._prune_failing = False
        # When the newest event came that cannot be replayed any more; None: not since this start.
        self._floor_ms: int | None = None
        # The size of the log at which the next checkpoint is made, if no event waits.
        self._carry_at = CHECKPOINT_BYTES
        self._carry_failing = False
        self._large_log_told = False
        self._epochs = Epochs()
        try:
            private.keep_folder(path.parent)
        except OSError as exc:
            raise ConfigError("data_dir", f"cannot make the folder of the trade journal {path}: {exc}") from exc
        self._lock = lock_folder(path.parent)
        with ExitStack() as failed:
            failed.callback(self._lock.close)
            try:
                if earlier is not None:
                    path = adopt(path, earlier)
                self._open(path)
                failed.callback(self._database.close)
                self._note_file(path)
            except (sqlite3.Error, OSError) as exc:
                raise ConfigError("data_dir", f"cannot use the trade journal {path}: {exc}") from exc
            failed.pop_all()

    def _open(self, path: Path) -> None:
        """Read the file; if it is damaged or no journal, rename it and begin a new one."""
        try:
            self._read_file(path)
        except (sqlite3.DatabaseError, NoJournalError) as exc:
            if not is_damage(exc):
                raise
            aside = set_aside(path)
            logger.error(
                "trade journal %s is damaged or is no journal (%s): it is renamed to %s, and a new journal "
                "begins, which refuses the positions of the old one",
                path,
                exc,
                aside.name,
            )
            self._read_file(path)

    def _note_file(self, path: Path) -> None:
        """Remember where the file and its log are; set `note` if a damaged journal is still in the folder."""
        # If `path` is a link, SQLite keeps the log in the folder of the real file.
        self._log = path.resolve().with_name(f"{path.resolve().name}-wal")
        self._page_bytes = self._pragma("page_size")
        self._path = path
        self._file = identity(path)
        left = sorted(
            found.name for found in path.parent.glob(f"{path.name}.damaged-*") if not found.name.endswith(BESIDE)
        )
        if left:
            self.note = f"a damaged journal was set aside: {', '.join(left)}; look at it, then move it away"

    def _read_file(self, path: Path) -> None:
        """Open the file, read positions and epochs; raise `sqlite3.Error`, `OSError` or `NoJournalError`."""
        check_file(path)
        self._database = open_database(path)
        try:
            try:
                newest = newest_position(self._database)
                check_accounts(self._database)
            except sqlite3.DatabaseError as exc:
                # Not SQLite's error, which has a code.
                if getattr(exc, "sqlite_errorcode", None) is None:
                    raise NoJournalError(str(exc)) from exc
                raise
            numbers = self._read_numbers()
            self._epochs.read(self._database)
            self._reach_events(numbers)
            # The journal's own positions; `positions` is a copy for the thread that numbers new events.
            self._had = Positions(newest, numbers)
            self.positions = self._had.copy()
            # Events up to this position can no longer be replayed.
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

    def _read_numbers(self) -> dict[str, int]:
        """Return the newest number of each account; raise `sqlite3.Error` or `NoJournalError`."""
        numbers: dict[str, int] = dict(self._database.execute("SELECT name, newest FROM account"))
        if not all(isinstance(name, str) for name in numbers) or not all(
            isinstance(number, int) and 0 <= number <= MOST_POSITION for number in numbers.values()
        ):
            raise NoJournalError("its positions are no numbers, or too large")
        return numbers

    def _reach_events(self, numbers: dict[str, int]) -> None:
        """Raise `numbers` to those of the events: of a damaged file they may be newer, and none may be given again."""
        if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'event_account'").fetchone():
            # Without the index each account would cost a pass over the file.
            raise NoJournalError("it has no index of accounts")
        account: object = ""
        for _ in range(MOST_ACCOUNTS + 1):
            query = "SELECT min(account) FROM event WHERE account > ?"
            account = self._database.execute(query, (account,)).fetchone()[0]
            if not isinstance(account, str):
                return
            # Text and blobs, which are damage, are greater than any number.
            query = "SELECT number FROM event WHERE account = ? AND number BETWEEN 1 AND ? ORDER BY number DESC LIMIT 1"
            for (number,) in self._database.execute(query, (account, MOST_POSITION)):
                numbers[account] = max(math.ceil(number), numbers.get(account, 0))
        raise NoJournalError(f"it has more than {MOST_ACCOUNTS:,} accounts")

    def begin_epoch(self, now_ns: int) -> int:
        """Return the epoch of this start of the feeder: `now_ns`, or more if the clock was set back since the last one.

        For consumers the larger of two epochs is the later one; when they resume, they send the epoch that they know.
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
                "the epoch of this start cannot be written yet: %s; until it is written, the next feeder would refuse "
                "positions of this epoch",
                exc,
            )
        else:
            self._epochs.saved()
        return epoch

    def has(self, position: JournalPosition, account: str | None) -> bool:
        """Return whether a client can resume at the position: whether this journal had it in the epoch it names."""
        return self._epochs.have(position, account)

    @property
    def catching_up(self) -> bool:
        """Return whether events wait to be written, and the last write succeeded."""
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
        """Commit `events`, which follow those of the last call; return the position up to which everything is on disk.

        Events after it are replayed with a mark, and must be published with it. Missing positions are given up.
        """
        for event in events:
            if event.seq != self._had.newest + 1:
                self._step_over(event.seq)
            self._had.reach(event)
            self._unsaved.append(event)
            self._unsaved_bytes += event.size
        if self.failure is None:
            # While the disk fails, one attempt a second is enough (see feeder/journal/thread.py).
            self.save()
        saved = self.saved
        while self._unsaved_bytes > MAX_UNSAVED_BYTES:
            given_up = self._unsaved.popleft()
            self._unsaved_bytes -= given_up.size
            self._give_up(given_up.seq, given_up.seq)
        return saved

    def save(self) -> None:
        """Write the next events, some thousand at a time; of failures in a row, log only the first.

        This also fails if the file was moved or removed: SQLite would still write, to a file that ends with the
        process.
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
            # Write the epoch first: without it, a later feeder refuses the positions of this epoch.
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
        """Copy the log into the file, and empty it, once it is large; at a smaller size if no event waits (`idle`).

        SQLite by itself would do this in the commit that exceeds a limit, and the events of that burst would wait.
        """
        size = self._log_bytes()
        if size < (self._carry_at if idle else max(self._carry_at, LOG_BYTES)):
            return
        try:
            # This does not wait for readers; a reader in the middle of a query prevents the log from being emptied.
            ((busy, *_),) = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as exc:
            self._carry_at = size + CHECKPOINT_BYTES
            if not self._carry_failing:
                self._carry_failing = True
                logger.warning("the log of the trade journal grows, it cannot be copied into the file: %s", exc)
            return
        self._carry_failing = False
        self._carry_at = size + CHECKPOINT_BYTES if busy else CHECKPOINT_BYTES
        if not busy:
            self._large_log_told = False
        elif size > LARGE_LOG_BYTES and not self._large_log_told:
            self._large_log_told = True
            logger.warning(
                "the log of the trade journal has %d MiB: a program reads the file without a pause, so the log cannot "
                "be emptied",
                size >> 20,
            )

    def newest_of(self, account: str | None = None) -> int:
        """Return the newest position, of an account or of all; 0 before the first event."""
        return self._had.of(account)

    def oldest(self, account: str | None = None) -> int:
        """Return the smallest position, of an account or of all, after which every event can be replayed.

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

    def find(self, start: int | str, end: int | str | None, account: str | None = None) -> Span:
        """Return where the events of an account or of all from `start` to `end` are (`wire.moments`).

        A time of day is one of the day of the newest event; without any, of the day on which this feeder was started.
        Raise `BadRequest` for what is no moment, and `sqlite3.Error`.
        """
        oldest, newest = self.oldest(account), self.newest_of(account)
        start_ms = self._moment(read_moment(start, "start"), newest, account)
        end_ms = 0 if end is None else self._moment(read_moment(end, "end"), newest, account)
        look = partial(self._look, account=account)
        after = position_before(look, oldest, newest, start_ms)
        # At an end before the start there are no events.
        until = max(after, position_before(look, oldest, newest, end_ms)) if end_ms else newest
        from_ms = look(after + 1, after + 1)[0].came_ms if after < newest else None
        reason = self._why_missing(start_ms) if after == oldest else None
        before = None if from_ms is None else Position(self._epochs.last, after + 1)
        missing = None if reason is None else Hole(reason, None, before, None, from_ms)
        return Span(after, until, start_ms, end_ms, from_ms, missing)

    def before(self, end: int | str, account: str | None = None) -> int:
        """Return the position before the first event at or after the moment `end`.

        Raise `BadRequest` and `sqlite3.Error`.
        """
        oldest, newest = self.oldest(account), self.newest_of(account)
        end_ms = self._moment(read_moment(end, "end"), newest, account)
        return position_before(partial(self._look, account=account), oldest, newest, end_ms)

    def read(
        self, after: int, account: str | None = None, room: int = CHUNK_BYTES, until: int = MOST_POSITION
    ) -> Chunk:
        """Return the next events after position `after` of an account or of all; raise `sqlite3.Error`.

        At most `CHUNK_EVENTS` events and `room` bytes, but at least one event. The last chunk ends with the newest, or
        with the one at `until`.
        """
        bodies: list[bytes] = []
        last, size = after, 2
        for position, saved in self._after(after, account):
            # SQLite has no checksums, so a damaged page may be read as another value, or as no number.
            is_number = type(position) is int
            if is_number and position > until:
                break
            body = _event(saved) if is_number else None
            if body is None:
                if bodies:
                    return Chunk(frames.join_records(bodies), last, True)
                raise sqlite3.DatabaseError(f"the event at position {position} is damaged")
            size += len(body) + 1
            if bodies and (size > room or len(bodies) == CHUNK_EVENTS):
                return Chunk(frames.join_records(bodies), last, True)
            bodies.append(body)
            last = position
        return Chunk(frames.join_records(bodies), last, False)

    def since(self, time_ms: int, after: int = 0) -> list[tuple[int, int, bytes]]:
        """Return seq, time (ms) and body of the next saved events from `time_ms` on, oldest first.

        At most `CHUNK_EVENTS`, or some MiB, of those after position `after`; none if there are no more. Raise
        `sqlite3.Error`.
        """
        query = "SELECT seq, time_ms, body FROM event WHERE seq > ? AND time_ms >= ? ORDER BY seq LIMIT ?"
        events: list[tuple[int, int, bytes]] = []
        size = 0
        with closing(self._database.execute(query, (after, time_ms, CHUNK_EVENTS))) as cursor:
            for seq, written_ms, body in cursor:
                # Of a damaged file time and body may be anything: the caller leaves such an event out.
                events.append((seq, written_ms, body))
                size += len(body) if isinstance(body, bytes | str) else 0
                if size > SINCE_BYTES:
                    break
        return events

    def prune(self, time_ms: int) -> bool:
        """Delete some events that are too old at `time_ms`, or too many; return whether there may be more to do.

        This deletes by position from the oldest event on, not by time alone, so that a clock that was set back leaves
        no gap.
        """
        if self.failure is not None:
            return False
        try:
            last = self._deletable(time_ms - self._days * _DAY_MS)
            if last is None:
                return self._shrink()
            query = "SELECT max(time_ms) FROM event WHERE seq <= ? AND typeof(time_ms) = 'integer'"
            removed_ms = self._database.execute(query, (last,)).fetchone()[0] or 0
            self._database.execute("DELETE FROM event WHERE seq <= ?", (last,))
        except sqlite3.Error as exc:
            if not self._prune_failing:
                self._prune_failing = True
                logger.warning("old trade events could not be deleted: %s", exc)
            return False
        self._prune_failing = False
        self._floor = max(self._floor, last)
        self._floor_ms = max(removed_ms, self._floor_ms or 0)
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

    def _moment(self, moment: Moment, newest: int, account: str | None) -> int:
        day_ms = self._epochs.last_ms
        if moment.of_day and newest > self.oldest(account):
            day_ms = self._look(newest, newest, account=account)[0].came_ms
        return moment.on_day_of(day_ms)

    def _why_missing(self, start_ms: int) -> Missing | None:
        """Return why events from `start_ms` on may be missing before the first one, or None if none can be."""
        if not self._floor:
            return "store_began" if start_ms < self._epochs.first_ms else None
        floor_ms = self._floor_ms
        if floor_ms is None:
            # They came before the first one that can be replayed; without any, before this start.
            floor_ms = self._epochs.last_ms
            if self._floor < self.newest:
                floor_ms = self._look(self._floor + 1, self._floor + 1, account=None)[0].came_ms
        if start_ms > floor_ms:
            return None
        left = self._database.execute("SELECT 1 FROM event WHERE seq <= ? LIMIT 1", (self._floor,)).fetchone()
        return "gap" if left else "removed"

    def _look(self, first: int, last: int, *, account: str | None) -> list[Stamp]:
        """Return when the events from one position to another came, and their bodies; raise `sqlite3.Error`."""
        if account is None:
            query = "SELECT time_ms, body FROM event WHERE seq BETWEEN ? AND ? ORDER BY seq"
            rows = self._database.execute(query, (first, last))
        else:
            query = "SELECT time_ms, body FROM event WHERE account = ? AND number BETWEEN ? AND ? ORDER BY number"
            rows = self._database.execute(query, (account, first, last))
        found = [Stamp(time_ms, body) for time_ms, body in rows if isinstance(time_ms, int) and isinstance(body, bytes)]
        if len(found) <= last - first:
            waiting = [event for event in self._unsaved if account is None or event.account == account]
            begin = (waiting[0].seq if account is None else waiting[0].number) if waiting else 0
            some = waiting[max(0, first - begin) : max(0, last + 1 - begin)]
            found += [Stamp(event.time_ms, event.body) for event in some]
        if len(found) <= last - first:
            raise sqlite3.DatabaseError(f"an event from position {first} to {last} is damaged")
        return found

    def _insert(self, events: list[Event]) -> None:
        for start in range(0, len(events), _INSERT_EVENTS):
            some = events[start : start + _INSERT_EVENTS]
            rows = ", ".join(["(?, ?, ?, ?, ?)"] * len(some))
            query = f"INSERT INTO event (seq, account, number, time_ms, body) VALUES {rows}"
            self._database.execute(query, list(chain.from_iterable(some)))

    def _displaced(self) -> str | None:
        """Return a text if the file was replaced or removed; None while it is in its place."""
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
        """Give up the missing positions before `seq`, because a replay must have no gap."""
        while self.catching_up:
            self.save()
        first = self.saved + 1
        # Events that wait are older than the gap, so they cannot be replayed either.
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
        # When the last of them came is not known: it may be later than any start.
        self._floor_ms = MOST_POSITION

    def _deletable(self, old_ms: int) -> int | None:
        """Return the position up to which to delete events in one step; None if there is nothing to delete."""
        too_large = self._max_bytes and self._used_pages() * self._page_bytes > self._max_bytes
        last = None
        cursor = self._database.execute("SELECT seq, time_ms FROM event ORDER BY seq LIMIT ?", (PRUNE_EVENTS,))
        for seq, time_ms in cursor:
            if not too_large and not isinstance(time_ms, int):
                # The time is damaged: delete the event together with those that follow it.
                continue
            if not too_large and time_ms >= old_ms:
                break
            last = seq
        cursor.close()
        return last

    def _shrink(self) -> bool:
        """Free some unused pages on the disk; return whether there are more."""
        free = self._pragma("freelist_count")
        if free <= SPARE_PAGES:
            return False
        # A file of version 0 keeps its free pages for the next events.
        # Not `execute`: the statement frees one page per step, and `execute` makes only one step of it.
        self._database.executescript(f"PRAGMA incremental_vacuum({min(SHRINK_PAGES, free - SPARE_PAGES)})")
        return SPARE_PAGES < self._pragma("freelist_count") < free

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            # The log does not exist yet, or was removed. If the disk fails, the next commit notices it.
            return 0

    def _used_pages(self) -> int:
        return self._pragma("page_count") - self._pragma("freelist_count")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])


def _event(saved: object) -> bytes | None:
    """Return the body of an event, of version 1 too; None for anything else."""
    if not isinstance(saved, bytes):
        return None
    body = earlier.modern(saved)
    try:
        frames.read(_event_decoder, body)
    except WireError:
        return None
    return body
