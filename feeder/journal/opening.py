"""The database file of a journal: lock its folder, open, make or convert it, and set a damaged one aside.

Only the thread of the `Journal` uses its file. Each function raises `sqlite3.Error` or `OSError` if the disk fails, and
`NoJournalError` if the file is no journal.
"""

from __future__ import annotations

import logging
import sqlite3
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from qmt_bridge import private
from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import TABLES, VERSION, foreign_object, harden
from qmt_bridge.system.in_use import patiently

logger = logging.getLogger(__name__)

# At the start another program may be reading the file of a killed feeder, and hold the lock for a moment.
_OPEN_SECONDS = 2.0
# The endings of the names of the files that SQLite keeps beside a database.
BESIDE = ("-wal", "-shm", "-journal")
# SQLite's errors for a file that is damaged, or is no database.
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
# The columns that every journal has, in version 0 and in later ones.
_COLUMNS = {"seq", "account", "time_ms", "body"}


class NoJournalError(Exception):
    """A file or folder has the name of a journal, but is something else."""


def identity(path: Path) -> tuple[int, int]:
    """Return numbers that differ if another file gets the same name; raise `OSError`."""
    found = path.stat()
    return found.st_dev, found.st_ino


def lock_folder(folder: Path) -> sqlite3.Connection:
    """Lock the folder against a second feeder until the result is closed or the process ends.

    Two feeders would give the same seq twice. A feeder of another source is refused too, because a folder belongs to
    one feeder. The lock is on a file of its own, so that other programs may read the journal. It is a lock of SQLite,
    because that works in the same way on every system.
    """
    path = folder / "feeder.lock"
    try:
        try:
            check_file(path)
            return _locked(path)
        except (sqlite3.DatabaseError, NoJournalError) as exc:
            if not is_damage(exc):
                raise
            # SQLite cannot lock a damaged file. This one has no data, so it is replaced.
            logger.warning("%s is damaged (%s): it is renamed to %s", path, exc, set_aside(path).name)
            return _locked(path)
    except (sqlite3.Error, OSError) as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            reason = f"another feeder has its trade journal in {folder}: {path.name} is locked"
        else:
            reason = f"cannot lock {path}: {exc}"
        raise ConfigError("data_dir", reason) from exc


def _locked(path: Path) -> sqlite3.Connection:
    keep_private(path)
    lock = sqlite3.connect(path, timeout=0.0, isolation_level=None)
    try:
        # This mode needs no space on the disk, which may be full.
        lock.execute("PRAGMA journal_mode=MEMORY")
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def check_file(path: Path) -> None:
    """Raise `NoJournalError` if `path` exists and is no file, but a folder, for example."""
    if path.exists() and not path.is_file():
        raise NoJournalError("it is no file")


def keep_private(path: Path) -> None:
    """Make a file that only its owner may read, or restrict one that exists; raise `OSError`."""
    try:
        if path.exists():
            # Do this first: a file that is not writable, such as a copy, cannot be opened for writing.
            private.protect(path)
        private.make_file(path)
        for suffix in BESIDE:
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                private.protect(beside)
    except PermissionError as exc:
        # The file may belong to another user, and still be writable for this one.
        logger.warning("the access rights of %s cannot be changed: %s", path, exc.strerror)


def is_damage(exc: Exception) -> bool:
    """Return whether an error means that a file is damaged, or is no journal."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        # Python's sqlite3 module itself raises an error without a code for text that it cannot decode.
        return isinstance(exc, (NoJournalError, sqlite3.OperationalError))
    return code & 0xFF in _DAMAGED


def set_aside(path: Path, why: str = "damaged") -> Path:
    """Rename a file, and those that SQLite keeps beside it; return the new name; raise `OSError`."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.{why}-{moment}")
    for number in count(2):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.{why}-{moment}-{number}")
    # First rename the files beside it: SQLite deletes a log without a database, or uses it for a new one of that name.
    for suffix in BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            _rename(beside, aside.with_name(aside.name + suffix))
    return _rename(path, aside)


def _rename(old: Path, new: Path) -> Path:
    return patiently(lambda: old.rename(new))


def open_database(path: Path) -> sqlite3.Connection:
    keep_private(path)
    try:
        return _prepare(path, "NORMAL")
    except sqlite3.OperationalError as exc:
        # The memory that writer and readers share needs 32 KB of disk. On a full disk the feeder starts without
        # readers.
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
        harden(database)
        database.execute(f"PRAGMA locking_mode={locking}")
        # Only for a new file: in a file with tables the statement has no effect, but still writes.
        if not database.execute("PRAGMA page_count").fetchone()[0]:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        # See `Journal.checkpoint`.
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.execute("BEGIN IMMEDIATE")
        foreign = foreign_object(database)
        if foreign:
            raise NoJournalError(f"it has {foreign}")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        columns = {row[0] for row in database.execute("SELECT name FROM pragma_table_info('event')")}
        if columns and version > VERSION:
            raise ConfigError("data_dir", f"the trade journal {path} is of a later version of this program")
        if not version:
            if columns >= _COLUMNS:
                _convert(database)
            elif not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                for table in TABLES:
                    database.execute(table)
            else:
                raise NoJournalError("it is the database of another program")
            database.execute(f"PRAGMA user_version={VERSION}")
        # A file of version 1 becomes one of version 2 with its next epoch, and nothing has to be written before.
        elif not columns >= _COLUMNS | {"number"}:
            raise NoJournalError("it is the database of another program")
        database.execute("COMMIT")
        # From now on a lock is an error at once, because events must not wait for it.
        database.execute("PRAGMA busy_timeout=0")
    except UnicodeDecodeError as exc:
        # SQLite's error quotes a damaged schema, and Python cannot read the error.
        database.close()
        raise NoJournalError("its schema is damaged") from exc
    except (sqlite3.Error, ConfigError, NoJournalError):
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
