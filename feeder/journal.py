"""Trade events on disk before they are published (SQLite): one row of positions over all accounts and restarts.

Only one thread uses a `Journal` (see feeder/journal_thread.py). It must never lose an event that was published, nor
give its position to another.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from qmt_bridge import private
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.journal_file import TABLES, VERSION, newest_position, oldest_position
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.topics import mask

logger = logging.getLogger(__name__)

# One chunk of a replay; a reader of the ask socket takes messages of this size anyway.
CHUNK_EVENTS = 1000
CHUNK_BYTES = 512 * 1024
# Events of one transaction, more than a burst has: some 30 ms.
BATCH_EVENTS = 5000
# What is kept in memory while the disk takes nothing, an event being its body and what Python adds to it.
MAX_UNSAVED_BYTES = 64 * 1024 * 1024
EVENT_BYTES = 300
# Events that one call deletes, and pages that it gives back to the disk: some 5 ms each.
PRUNE_EVENTS = 500
SHRINK_PAGES = 250
# The write-ahead log is carried over into the file at this size when no event waits, some 10 ms, and at the other one
# in any case: a page (4 KiB) is written anew by each commit that touches it, so that small commits cost 8 KB and more.
CHECKPOINT_BYTES = 2 * 1024 * 1024
LOG_BYTES = 4 * 1024 * 1024
# A log of this size is told: a program that reads the file without an end keeps the log from being carried over.
LARGE_LOG_BYTES = 64 * 1024 * 1024
# Free pages that stay in the file for the next events (1 MB).
SPARE_PAGES = 256

# Events of one statement. Each lets go of the interpreter's lock, which a source that has much to do gives back after
# 5 ms: with one event a statement a burst could wait for seconds. Old versions of SQLite take 999 values at once.
_INSERT_EVENTS = 150
_DAY_MS = 24 * 3600 * 1000
# One row a start of the feeder, with the newest positions then: over all accounts, and of each (MessagePack). Older
# files get it at the next start, and know no life before that.
_LIFE_TABLE = (
    "CREATE TABLE IF NOT EXISTS lives (epoch INTEGER NOT NULL, newest INTEGER NOT NULL, numbers BLOB NOT NULL)"
)
# At the start somebody may be looking at what a killed feeder left, which takes the lock for a moment.
_OPEN_SECONDS = 2.0
# What SQLite keeps beside a file.
_BESIDE = ("-wal", "-shm", "-journal")
# What SQLite says of a file that is damaged, or is something else.
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_event_decoder = msgspec.msgpack.Decoder(TradeEvent)
# Columns without which a file is no journal, of version 0 and of later ones.
_COLUMNS = {"seq", "account", "time_ms", "body"}


class Unsent(NamedTuple):
    """A trade event without a position yet: `data` is encoded already."""

    account: str
    type: str
    data: msgspec.Raw


class Event(NamedTuple):
    """A trade event at its position `seq` over all accounts, the `number`-th of its own; `body` is what is published.

    ``{"type":..,"seq":..,"data":{..}}``, and ``"journaled":false`` if it could not be written.
    """

    seq: int
    account: str
    number: int
    time_ms: int
    body: bytes

    @property
    def size(self) -> int:
        """Return the bytes of memory that the event takes, roughly."""
        return len(self.body) + EVENT_BYTES

    def marked(self) -> Event:
        """Return the event as it is published, and replayed, while it is not on disk."""
        return self._replace(body=frames.encode({**frames.split(self.body), "journaled": False}))


class _Newest(NamedTuple):
    """The newest positions at some moment: over all accounts, and of each."""

    seq: int
    numbers: dict[str, int]


class Positions:
    """The newest positions that some part of the feeder knows: over all accounts, and of each by its name."""

    def __init__(self, newest: int, numbers: Mapping[str, int]) -> None:
        self.newest = newest
        self.numbers = dict(numbers)

    def of(self, account: str | None = None) -> int:
        """Return the newest position of an account or of all; 0 before the first event."""
        return self.newest if account is None else self.numbers.get(account, 0)

    def reach(self, event: Event) -> None:
        """Take the positions of an event that follows."""
        self.newest = event.seq
        self.numbers[event.account] = event.number

    def give(self, events: Iterable[Unsent], time_ms: int) -> list[Event]:
        """Return `events`, which came at `time_ms`, at the positions that follow."""
        given = []
        for event in events:
            seq, number = self.newest + 1, self.of(event.account) + 1
            body = frames.encode({"type": event.type, "seq": seq, "data": event.data})
            given.append(Event(seq, event.account, number, time_ms, body))
            self.reach(given[-1])
        return given

    def copy(self) -> Positions:
        """Return the same positions, for another part of the feeder."""
        return Positions(self.newest, self.numbers)


class _NoJournalError(Exception):
    """Something is a database, a folder or whatever else, but no journal."""


class Chunk(NamedTuple):
    """Some events in order: `body` is their array, `last` the position that it reaches."""

    body: bytes
    last: int
    more: bool


class Journal:
    """The trade events of one source in one file.

    A commit is synchronous (WAL with ``synchronous=FULL``): with NORMAL a power cut takes back the last commits,
    and the feeder would then number new events like lost ones that clients have seen; whoever resumed after such
    a number would miss events without a word. Events are few and written in batches, so the flush is affordable.

    While the disk takes nothing, events are published and replayed out of memory, and written as soon as it does
    again. Only a crash before that forgets them, or `MAX_UNSAVED_BYTES` of younger ones; the log says which.

    A file that is damaged, or no journal at all, is set aside under another name, and a new journal begins: market
    data does not depend on it. `note` says so, as long as such a file lies beside the journal.

    Where it speaks of the position of an account, that is the number of one of its events.
    """

    def __init__(self, path: Path, days: int, max_mb: int = 0) -> None:
        """Open or create the file; raise `ConfigError` if it cannot be, or if another feeder has it.

        `days` and `max_mb` (2**20 bytes; 0 is any number) are for how long and up to which size `prune` keeps events.
        """
        # Why the newest events are not on disk; None while they are.
        self.failure: str | None = None
        self._days = days
        self._max_bytes = max_mb * 1024 * 1024
        # What the operator should look at, though the journal is written.
        self.note: str | None = None
        # Contiguous, and the newest of all.
        self._unsaved: deque[Event] = deque()
        self._unsaved_bytes = 0
        # First and last position of those that had to be given up.
        self._forgotten: tuple[int, int] | None = None
        self._prune_failing = False
        # At which size the log is carried over next, when no event waits.
        self._carry_at = CHECKPOINT_BYTES
        self._carry_failing = False
        self._large_log_told = False
        # What outlived it, of every life of the feeder that had this journal, by its epoch as a browser rounds it; None
        # of the last, which is this one.
        self._lives: dict[float, _Newest | None] = {}
        self._last_life = 0
        # This one, while it is not written: its epoch, and the newest positions when it began.
        self._unsaved_life: tuple[int, _Newest] | None = None
        try:
            private.make_folder(path.parent)
        except OSError as exc:
            raise ConfigError("data_dir", f"cannot make the folder of the trade journal {path}: {exc}") from exc
        self._lock = _lock(path.parent)
        with ExitStack() as failed:
            failed.callback(self._lock.close)
            try:
                try:
                    self._read_file(path)
                except (sqlite3.DatabaseError, _NoJournalError) as exc:
                    if not _is_damage(exc):
                        raise
                    aside = _set_aside(path)
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
                self._file = _identity(path)
                left = sorted(
                    found.name
                    for found in path.parent.glob(f"{path.name}.damaged-*")
                    if not found.name.endswith(_BESIDE)
                )
                if left:
                    self.note = f"a damaged journal was set aside: {', '.join(left)}; look at it, then move it away"
            except (sqlite3.Error, OSError) as exc:
                raise ConfigError("data_dir", f"cannot use the trade journal {path}: {exc}") from exc
            failed.pop_all()

    def _read_file(self, path: Path) -> None:
        """Open the file, and read what has to be known of it; raise `sqlite3.Error`, `OSError` or `_NoJournalError`."""
        _check_file(path)
        self._database = _open(path)
        try:
            newest = newest_position(self._database)
            numbers: dict[str, int] = dict(self._database.execute("SELECT name, newest FROM account"))
            if not all(isinstance(position, int) for position in (newest, *numbers.values())):
                raise _NoJournalError("its positions are no numbers")
            # What the journal has; `positions` is a copy for the one that gives new ones, which may be another thread.
            self._had = Positions(newest, numbers)
            self.positions = self._had.copy()
            self._read_lives()
            # Events up to here cannot be replayed any more.
            self._floor = oldest_position(self._database)
        except sqlite3.OperationalError as exc:
            self._database.close()
            if exc.sqlite_errorcode == sqlite3.SQLITE_ERROR:
                # A table or a column is missing.
                raise _NoJournalError(str(exc)) from exc
            raise
        except BaseException:
            self._database.close()
            raise

    def _read_lives(self) -> None:
        self._lives.clear()
        if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'lives'").fetchone():
            return
        for epoch, newest, numbers in self._database.execute("SELECT epoch, newest, numbers FROM lives ORDER BY epoch"):
            try:
                self._note_life(int(epoch), _Newest(int(newest), msgspec.msgpack.decode(numbers, type=dict[str, int])))
            except (TypeError, ValueError, msgspec.DecodeError) as exc:
                # What outlived the lives before it is not known any more.
                logger.warning("the trade journal has a life of the feeder that cannot be read: %s", exc)
                self._lives.clear()

    def begin_life(self, now_ns: int) -> int:
        """Return the epoch of this life of the feeder: `now_ns`, or more if the clock was set back since the last one.

        Consumers take the larger of two epochs for the later life, and say which one they know when they resume.
        """
        # A browser must not take it for the last one.
        epoch = max(now_ns, math.ceil(math.nextafter(self._last_life, math.inf)))
        born = _Newest(self._had.newest, dict(self._had.numbers))
        self._note_life(epoch, born)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._save_life(epoch, born)
            self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            logger.warning(
                "the epoch of this life cannot be written yet: %s; the next one would refuse the positions seen in it",
                exc,
            )
            self._unsaved_life = epoch, born
        return epoch

    def has(self, position: JournalPosition, account: str | None) -> bool:
        """Return whether this journal has the position, which was one in the journal of the epoch that it names.

        A browser may have rounded the epoch. An exact position must also have outlived its epoch.
        """
        if position.epoch is None:
            return True
        epoch = float(position.epoch)
        if epoch not in self._lives:
            return False
        left = self._lives[epoch]
        if left is None or not position.exact:
            return True
        return position.seq <= (left.seq if account is None else left.numbers.get(account, 0))

    @property
    def catching_up(self) -> bool:
        """Return whether `save` has more to write, and the disk takes it."""
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

        What is not is replayed marked, and has to be published so. Positions that were left out are given up.
        """
        for event in events:
            if event.seq != self._had.newest + 1:
                self._step_over(event.seq)
            self._had.reach(event)
            self._unsaved.append(event)
            self._unsaved_bytes += event.size
        if self.failure is None:
            # Else once a second is often enough to try.
            self.save()
        saved = self.saved
        while self._unsaved_bytes > MAX_UNSAVED_BYTES:
            given_up = self._unsaved.popleft()
            self._unsaved_bytes -= given_up.size
            self._give_up(given_up.seq, given_up.seq)
        return saved

    def save(self) -> None:
        """Write what is not on disk, some thousand events at a time; if that fails, say so once.

        It fails as well if the file is not where it was: SQLite would go on in it, and it would end with this process.
        """
        displaced = self._displaced()
        if displaced is not None:
            self._fail(displaced)
            return
        if not self._unsaved and self._unsaved_life is None:
            self._recover(self.newest + 1)
            return
        batch = list(islice(self._unsaved, BATCH_EVENTS))
        try:
            self._database.execute("BEGIN IMMEDIATE")
            if self._unsaved_life is not None:
                # Events of a life that the journal does not know could not be resumed after in the next one.
                self._save_life(*self._unsaved_life)
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
        self._unsaved_life = None
        for event in batch:
            self._unsaved.popleft()
            self._unsaved_bytes -= event.size
        self._recover(batch[0].seq if batch else self.newest + 1)

    def checkpoint(self, *, idle: bool) -> None:
        """Carry the log over into the file, and empty it, once it is large; sooner if no event waits (`idle`).

        SQLite would do so in the commit that exceeds a limit, and have the events of that burst wait for it.
        """
        size = self._log_bytes()
        if size < (self._carry_at if idle else max(self._carry_at, LOG_BYTES)):
            return
        try:
            # Without waiting for readers, of which one in the middle of a query keeps the log from being emptied.
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
                # SQLite has no checksums: what is damaged inside a page may come as another value.
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

        From the oldest on: by position, not by time alone, so that a clock that was set back punches no hole.
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
        """Write what can be written, close the file, and let another feeder have it."""
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
        """Return what has become of the file; None while it is where it was."""
        try:
            return None if _identity(self._path) == self._file else f"{self._path} has been replaced"
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

    def _note_life(self, epoch: int, born: _Newest) -> None:
        if self._lives:
            self._lives[float(self._last_life)] = born
        self._lives[float(epoch)] = None
        self._last_life = epoch

    def _save_life(self, epoch: int, born: _Newest) -> None:
        self._database.execute(_LIFE_TABLE)
        self._database.execute("INSERT INTO lives VALUES (?, ?, ?)", (epoch, born.seq, frames.encode(born.numbers)))

    def _step_over(self, seq: int) -> None:
        """Give up what was left out before position `seq`: a replay may not step over a hole."""
        while self.catching_up:
            self.save()
        first = self.saved + 1
        # What waits lies before the hole, and would not be replayed either.
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
                # Damaged: it goes with what follows it.
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
        # Each step of the statement is a page, and `execute` makes but one of a statement without columns.
        self._database.executescript(f"PRAGMA incremental_vacuum({min(SHRINK_PAGES, free - SPARE_PAGES)})")
        return SPARE_PAGES < self._pragma("freelist_count") < free

    def _log_bytes(self) -> int:
        try:
            return self._log.stat().st_size
        except OSError:
            # It is not there yet, or was removed; a disk that fails is noticed by the next commit.
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


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one that has its name later; raise `OSError`."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _lock(folder: Path) -> sqlite3.Connection:
    """Return what keeps a second feeder out until it is closed, or its process is gone: two would give one seq twice.

    One of another source too, since a folder is a feeder's. A file of its own, so that others may read the journal;
    SQLite's lock, since it is the same on every system.
    """
    path = folder / "feeder.lock"
    try:
        try:
            _check_file(path)
            return _locked(path)
        except (sqlite3.DatabaseError, _NoJournalError) as exc:
            if not _is_damage(exc):
                raise
            # It never holds anything, and SQLite lets no feeder lock it as it is.
            logger.warning("%s is damaged (%s): it is now %s", path, exc, _set_aside(path).name)
            return _locked(path)
    except (sqlite3.Error, OSError) as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            reason = f"another feeder has its trade journal in {folder}: {path.name} is locked"
        else:
            reason = f"cannot lock {path}: {exc}"
        raise ConfigError("data_dir", reason) from exc


def _locked(path: Path) -> sqlite3.Connection:
    _keep_private(path)
    lock = sqlite3.connect(path, timeout=0.0, isolation_level=None)
    try:
        # Takes no room, which a full disk does not have.
        lock.execute("PRAGMA journal_mode=MEMORY")
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def _check_file(path: Path) -> None:
    """Raise `_NoJournalError` if what has the name of a file is something else, such as a folder."""
    if path.exists() and not path.is_file():
        raise _NoJournalError("it is no file")


def _keep_private(path: Path) -> None:
    """Make a file that only its owner may read, or take one that exists from the others; raise `OSError`."""
    try:
        if path.exists():
            # First: one that may not be written, such as a copy of a copy, cannot be opened for it.
            private.protect(path)
        private.make_file(path)
        for suffix in _BESIDE:
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                private.protect(beside)
    except PermissionError as exc:
        # It may belong to another user, and be writable for this one.
        logger.warning("the access rights of %s cannot be changed: %s", path, exc.strerror)


def _is_damage(exc: Exception) -> bool:
    """Return whether an error says that a file is damaged or something else than it should be."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        # Python's module says so itself of a text that is none.
        return isinstance(exc, (_NoJournalError, sqlite3.OperationalError))
    return code & 0xFF in _DAMAGED


def _set_aside(path: Path) -> Path:
    """Give a file another name, and what SQLite keeps beside it; return its name; raise `OSError`."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.damaged-{moment}")
    for number in count(2):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.damaged-{moment}-{number}")
    # First: SQLite deletes a log whose file is gone, and would give it to a new one of the same name.
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))
    return path.rename(aside)


def _open(path: Path) -> sqlite3.Connection:
    _keep_private(path)
    try:
        return _prepare(path, "NORMAL")
    except sqlite3.OperationalError as exc:
        # What writer and readers share needs 32 KB of disk. A feeder that starts on a full one goes without readers.
        try:
            database = _prepare(path, "EXCLUSIVE")
        except sqlite3.OperationalError:
            raise exc from None
        logger.warning("trade journal %s cannot be looked at while this feeder runs: %s", path, exc)
        return database


def _prepare(path: Path, locking: str) -> sqlite3.Connection:
    """Open the file, and make or convert its tables in one transaction; raise `sqlite3.Error` or `ConfigError`."""
    database = sqlite3.connect(path, timeout=_OPEN_SECONDS, isolation_level=None)
    try:
        database.execute(f"PRAGMA locking_mode={locking}")
        # Later it is without effect, and yet writes.
        if not database.execute("PRAGMA page_count").fetchone()[0]:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        # See `Journal.checkpoint`.
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.execute("BEGIN IMMEDIATE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        columns = {row[0] for row in database.execute("SELECT name FROM pragma_table_info('event')")}
        if columns and version > VERSION:
            raise ConfigError("data_dir", f"the trade journal {path} is of a later version of this program")
        if version < VERSION:
            if columns >= _COLUMNS:
                _convert(database)
            elif not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                for table in TABLES:
                    database.execute(table)
            else:
                raise _NoJournalError("it is the database of another program")
            database.execute(f"PRAGMA user_version={VERSION}")
        elif not columns >= _COLUMNS | {"number"}:
            raise _NoJournalError("it is the database of another program")
        database.execute("COMMIT")
        # From here on events would wait for a lock.
        database.execute("PRAGMA busy_timeout=0")
    except (sqlite3.Error, ConfigError, _NoJournalError):
        database.close()
        raise
    return database


def _convert(database: sqlite3.Connection) -> None:
    """Number the events of each account in a file of version 0, from 1 for the oldest that is left."""
    database.execute("ALTER TABLE event ADD COLUMN number INTEGER NOT NULL DEFAULT 0")
    database.execute("DROP INDEX event_account")
    database.execute(
        "UPDATE event SET number = counted.number FROM (SELECT seq, "
        "row_number() OVER (PARTITION BY account ORDER BY seq) AS number FROM event) AS counted "
        "WHERE event.seq = counted.seq"
    )
    for table in TABLES[1:]:
        database.execute(table)
    database.execute("INSERT INTO account SELECT account, max(number) FROM event GROUP BY account")
