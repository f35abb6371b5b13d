"""Trade events on disk before they are published (SQLite): one row of positions over all accounts and restarts.

Only the publisher's thread touches it. It must never lose an event that was published, nor give its seq to another.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import TABLES, VERSION, newest_position, oldest_position
from qmt_bridge.wire import frames

logger = logging.getLogger(__name__)

# One chunk of a replay; a reader of the ask socket takes messages of this size anyway.
CHUNK_EVENTS = 1000
CHUNK_BYTES = frames.BATCH_BYTES
# Events of one transaction, more than a burst has: some 30 ms.
BATCH_EVENTS = 5000
# While the disk is full: some 50 MB.
MAX_UNSAVED = 100_000
# Events that one call deletes, and pages that it gives back to the disk: some 5 ms each.
PRUNE_EVENTS = 500
SHRINK_PAGES = 250
# Bytes of the write-ahead log, roughly, that are carried over into the file at a time: some 10 ms.
CHECKPOINT_BYTES = 2 * 1024 * 1024
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
# A reader that takes its time lets the write-ahead log grow; it is cut back to this afterwards.
_LOG_BYTES = 16 * 1024 * 1024


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


class _Newest(NamedTuple):
    """The newest positions at some moment: over all accounts, and of each."""

    seq: int
    numbers: dict[str, int]


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

    While the disk takes nothing, events are numbered, published and replayed out of memory, and written as soon
    as it does again. Only a crash before that forgets them, or `MAX_UNSAVED` younger ones; the log says which.

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
        # Contiguous, and the newest of all.
        self._unsaved: deque[Event] = deque()
        # First and last position of those that had to be given up.
        self._forgotten: tuple[int, int] | None = None
        self._prune_failing = False
        # Bytes that were written to the log since it was carried over.
        self._logged = 0
        self._carry_failing = False
        # What outlived it, of every life of the feeder that had this journal, by its epoch as a browser rounds it; None
        # of the last, which is this one.
        self._lives: dict[float, _Newest | None] = {}
        self._last_life = 0
        # This one, while it is not written: its epoch, and the newest positions when it began.
        self._unsaved_life: tuple[int, _Newest] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError("data_dir", f"cannot make the folder of the trade journal {path}: {exc}") from exc
        self._lock = _lock(path.parent)
        with ExitStack() as failed:
            failed.callback(self._lock.close)
            try:
                self._database = _open(path)
                failed.callback(self._database.close)
                self.newest = newest_position(self._database)
                self._numbers: dict[str, int] = dict(self._database.execute("SELECT name, newest FROM account"))
                if self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'lives'").fetchone():
                    rows = self._database.execute("SELECT epoch, newest, numbers FROM lives ORDER BY epoch")
                    for epoch, newest, numbers in rows:
                        self._note_life(epoch, _Newest(newest, frames.decode(numbers)))
                # Events up to here cannot be replayed any more.
                self._floor = oldest_position(self._database)
                self._page_bytes = self._pragma("page_size")
                self._path = path
                self._file = _identity(path)
            except (sqlite3.Error, OSError) as exc:
                raise ConfigError("data_dir", f"cannot use the trade journal {path}: {exc}") from exc
            failed.pop_all()

    def begin_life(self, now_ns: int) -> int:
        """Return the epoch of this life of the feeder: `now_ns`, or more if the clock was set back since the last one.

        Consumers take the larger of two epochs for the later life, and say which one they know when they resume.
        """
        # A browser must not take it for the last one.
        epoch = max(now_ns, math.ceil(math.nextafter(self._last_life, math.inf)))
        born = _Newest(self.newest, dict(self._numbers))
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

    def has(self, after: int, account: str | None, epoch: float, exact: bool) -> bool:
        """Return whether `after` is a position in this journal, where it was one in that of the life `epoch`.

        A browser may have rounded the epoch. If it was seen in that very life (`exact`), it must have outlived it.
        """
        if float(epoch) not in self._lives:
            return False
        left = self._lives[float(epoch)]
        if left is None or not exact:
            return True
        return after <= (left.seq if account is None else left.numbers.get(account, 0))

    @property
    def catching_up(self) -> bool:
        """Return whether `save` has more to write, and the disk takes it."""
        return bool(self._unsaved) and self.failure is None

    def append(self, events: Sequence[Unsent], time_ms: int) -> list[Event]:
        """Give `events` their positions, commit them, and return them as they are to be published."""
        numbered = []
        for seq, event in enumerate(events, self.newest + 1):
            body = frames.encode({"type": event.type, "seq": seq, "data": event.data})
            number = self._numbers[event.account] = self._numbers.get(event.account, 0) + 1
            numbered.append(Event(seq, event.account, number, time_ms, body))
        self.newest += len(numbered)
        self._unsaved.extend(numbered)
        if self.failure is None:
            # Else once a second is often enough to try.
            self.save()
        if not self._unsaved:
            return numbered
        saved = self._unsaved[0].seq - 1
        while len(self._unsaved) > MAX_UNSAVED:
            self._forget(self._unsaved.popleft().seq)
        return [event if event.seq <= saved else event._replace(body=_marked(event.body)) for event in numbered]

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
            self._logged += len(event.body)
        self._recover(batch[0].seq if batch else self.newest + 1)

    def checkpoint(self) -> None:
        """Carry the log over into the file once there is enough of it.

        SQLite would do so in the commit that exceeds a limit, and have the events of that burst wait for it.
        """
        if self._logged < CHECKPOINT_BYTES:
            return
        self._logged = 0
        try:
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as exc:
            if not self._carry_failing:
                self._carry_failing = True
                logger.warning("the log of the trade journal grows, it cannot be carried over: %s", exc)
            return
        self._carry_failing = False

    def newest_of(self, account: str | None = None) -> int:
        """Return the newest position, of an account or of all; 0 before the first event."""
        return self.newest if account is None else self._numbers.get(account, 0)

    def oldest(self, account: str | None = None) -> int:
        """Return the smallest position, of an account or of all, after which every event is at hand.

        Raise `sqlite3.Error`.
        """
        if account is None:
            return self._floor
        query = "SELECT number FROM event WHERE account = ? AND seq > ? ORDER BY number LIMIT 1"
        for (number,) in self._database.execute(query, (account, self._floor)):
            return int(number) - 1
        waiting = (event.number - 1 for event in self._unsaved if event.account == account)
        return next(waiting, self.newest_of(account))

    def read(self, after: int, account: str | None = None, room: int = CHUNK_BYTES) -> Chunk:
        """Return the next events after position `after` of an account or of all; raise `sqlite3.Error`.

        At most `CHUNK_EVENTS` events and, unless one alone is larger, `room` bytes. The last chunk reaches the newest.
        """
        bodies: list[msgspec.Raw] = []
        last, size = after, 5
        for position, body in self._after(after, account):
            size += len(body)
            if bodies and (size > room or len(bodies) == CHUNK_EVENTS):
                return Chunk(frames.encode(bodies), last, True)
            bodies.append(msgspec.Raw(body))
            last = position
        return Chunk(frames.encode(bodies), last, False)

    def since(self, time_ms: int) -> Iterator[tuple[int, bytes]]:
        """Yield time (ms) and body of every saved event from `time_ms` on, oldest first; raise `sqlite3.Error`."""
        cursor = self._database.execute("SELECT time_ms, body FROM event WHERE time_ms >= ? ORDER BY seq", (time_ms,))
        try:
            yield from cursor
        finally:
            cursor.close()

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
            self._logged += CHECKPOINT_BYTES // 4
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
                yield event.seq, _marked(event.body)
        else:
            for event in self._unsaved:
                if event.account == account and event.number > after:
                    yield event.number, _marked(event.body)

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
        if self.failure is None:
            return
        self.failure = None
        logger.warning("trade journal is written again, from seq %d on", first)
        if self._forgotten is not None:
            logger.error("trade events of seq %d to %d were never written", *self._forgotten)
            self._forgotten = None

    def _note_life(self, epoch: int, born: _Newest) -> None:
        if self._lives:
            self._lives[float(self._last_life)] = born
        self._lives[float(epoch)] = None
        self._last_life = epoch

    def _save_life(self, epoch: int, born: _Newest) -> None:
        self._database.execute(_LIFE_TABLE)
        self._database.execute("INSERT INTO lives VALUES (?, ?, ?)", (epoch, born.seq, frames.encode(born.numbers)))

    def _forget(self, seq: int) -> None:
        if self._forgotten is None:
            logger.error(
                "trade events from seq %d on are given up, they can neither be replayed nor written: more than %d wait",
                seq,
                MAX_UNSAVED,
            )
        self._forgotten = (self._forgotten[0] if self._forgotten else seq, seq)
        self._floor = seq

    def _deletable(self, old_ms: int) -> int | None:
        """Return up to which position events may be deleted at once; None if none has to be."""
        too_large = self._max_bytes and self._used_pages() * self._page_bytes > self._max_bytes
        last = None
        cursor = self._database.execute("SELECT seq, time_ms FROM event ORDER BY seq LIMIT ?", (PRUNE_EVENTS,))
        for seq, time_ms in cursor:
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
        self._logged += CHECKPOINT_BYTES // 4
        return SPARE_PAGES < self._pragma("freelist_count") < free

    def _used_pages(self) -> int:
        return self._pragma("page_count") - self._pragma("freelist_count")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])


def _marked(body: bytes) -> bytes:
    return frames.encode({**frames.split(body), "journaled": False})


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
        lock = sqlite3.connect(path, timeout=0.0, isolation_level=None)
    except sqlite3.Error as exc:
        raise ConfigError("data_dir", f"cannot make {path}: {exc}") from exc
    try:
        # Takes no room, which a full disk does not have.
        lock.execute("PRAGMA journal_mode=MEMORY")
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as exc:
        lock.close()
        if exc.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            reason = f"another feeder has its trade journal in {folder}: {path.name} is locked"
        else:
            reason = f"cannot lock {path}: {exc}"
        raise ConfigError("data_dir", reason) from exc
    return lock


def _open(path: Path) -> sqlite3.Connection:
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
        database.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        # See `Journal.checkpoint`.
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.execute("BEGIN IMMEDIATE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise ConfigError("data_dir", f"the trade journal {path} is of a later version of this program")
        if version < VERSION:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'event'").fetchone():
                _convert(database)
            else:
                for table in TABLES:
                    database.execute(table)
            database.execute(f"PRAGMA user_version={VERSION}")
        database.execute("COMMIT")
        # From here on the publisher's thread cannot wait for a lock.
        database.execute("PRAGMA busy_timeout=0")
    except (sqlite3.Error, ConfigError):
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
