"""The database file of a journal: lock its folder, open, make or convert it, and set a damaged one aside.

Only one thread uses a file, that of its `Journal`. Each function raises `sqlite3.Error` or `OSError` for a disk that
fails, and `NoJournalError` for a file that is something else.
"""

from __future__ import annotations

import logging
import sqlite3
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from qmt_bridge import private
from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import TABLES, VERSION

logger = logging.getLogger(__name__)

# At the start another program may be reading what a killed feeder left, which holds the lock for a moment.
_OPEN_SECONDS = 2.0
# The ends of the names of the files that SQLite keeps beside a file.
BESIDE = ("-wal", "-shm", "-journal")
# SQLite's errors for a file that is damaged, or is no database.
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
# Columns without which a file is no journal, of version 0 and of later ones.
_COLUMNS = {"seq", "account", "time_ms", "body"}


class NoJournalError(Exception):
    """A file or folder has the name of a journal, and is something else."""


def identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one that has its name later; raise `OSError`."""
    found = path.stat()
    return found.st_dev, found.st_ino


def lock_folder(folder: Path) -> sqlite3.Connection:
    """Lock the folder against a second feeder until the result is closed or the process ends.

    Two feeders would give one seq twice; a feeder of another source is kept out too, because a folder belongs to one
    feeder. The lock is a file of its own, so that others may read the journal, and is SQLite's, which works alike on
    every system.
    """
    path = folder / "feeder.lock"
    try:
        try:
            check_file(path)
            return _locked(path)
        except (sqlite3.DatabaseError, NoJournalError) as exc:
            if not is_damage(exc):
                raise
            # It holds no data, and SQLite cannot lock it as it is.
            logger.warning("%s is damaged (%s): it is now %s", path, exc, set_aside(path).name)
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
        # This mode needs no room on the disk, which may be full.
        lock.execute("PRAGMA journal_mode=MEMORY")
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        lock.close()
        raise
    return lock


def check_file(path: Path) -> None:
    """Raise `NoJournalError` if what has the name of a file is something else, such as a folder."""
    if path.exists() and not path.is_file():
        raise NoJournalError("it is no file")


def keep_private(path: Path) -> None:
    """Make a file that only its owner may read, or restrict one that exists; raise `OSError`."""
    try:
        if path.exists():
            # First, because a file without the right to write, such as a copy, cannot be opened for writing.
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
    """Return whether an error says that a file is damaged or something else than it should be."""
    code = getattr(exc, "sqlite_errorcode", None)
    if code is None:
        # Python's module itself raises an error without a code for a text that is none.
        return isinstance(exc, (NoJournalError, sqlite3.OperationalError))
    return code & 0xFF in _DAMAGED


def set_aside(path: Path) -> Path:
    """Rename a file, and those that SQLite keeps beside it; return the new name; raise `OSError`."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.damaged-{moment}")
    for number in count(2):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.damaged-{moment}-{number}")
    # First the files beside it: SQLite deletes a log without its file, and would use it for a new file of that name.
    for suffix in BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))
    return path.rename(aside)


def open_database(path: Path) -> sqlite3.Connection:
    keep_private(path)
    try:
        return _prepare(path, "NORMAL")
    except sqlite3.OperationalError as exc:
        # The memory that writer and readers share needs 32 KB of disk. On a full one the feeder starts without readers.
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
        # Only for a new file: in one with tables the statement has no effect, and still writes.
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
                raise NoJournalError("it is the database of another program")
            database.execute(f"PRAGMA user_version={VERSION}")
        elif not columns >= _COLUMNS | {"number"}:
            raise NoJournalError("it is the database of another program")
        database.execute("COMMIT")
        # From here on events would wait for a lock, so a lock is an error at once.
        database.execute("PRAGMA busy_timeout=0")
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
