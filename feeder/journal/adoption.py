"""The journal of a source goes on with the file that pushers beside the source had before.

In an earlier version such a source had a file of its own (``journal-xtquant+push.sqlite3``). Only the thread of the
`Journal` calls this, while the folder is locked.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from feeder.journal.epochs import MOST_EPOCH
from feeder.journal.opening import BESIDE, set_aside
from qmt_bridge.journal_file import foreign_object, harden, read_only
from qmt_bridge.system.in_use import patiently

logger = logging.getLogger(__name__)

# Another program may read a file for a moment.
_OPEN_SECONDS = 2.0


def adopt(path: Path, earlier: Path) -> Path:
    """Return the file with which a journal goes on: `path`, which `earlier` becomes if it was used last.

    Each has its own numbers, so they cannot be joined: the other one is kept beside it, with the ending ``.earlier-``
    and the time. While a file cannot be renamed, the one that was used last is used at its place.
    """
    if not earlier.is_file():
        return path
    last = earlier if _newest_epoch(earlier) > _newest_epoch(path) or not path.exists() else path
    try:
        if last is earlier:
            _settle(earlier)
        if path.exists():
            aside = set_aside(path if last is earlier else earlier, "earlier")
            logger.warning(
                "there are two trade journals of one source: the one that was used last goes on as %s, and "
                "the other one is kept as %s",
                path.name,
                aside.name,
            )
        if last is earlier:
            patiently(lambda: earlier.rename(path))
            logger.info("trade journal %s goes on as %s", earlier.name, path.name)
    except (sqlite3.Error, OSError) as exc:
        logger.warning("trade journal %s cannot be renamed, it is used at its place: %s", earlier, exc)
        return last
    return path


def _newest_epoch(path: Path) -> int:
    """Return when a feeder began with a journal for the last time, in ns since 1970; 0 if the file does not say it."""
    try:
        with closing(sqlite3.connect(read_only(path.absolute()), uri=True, timeout=_OPEN_SECONDS)) as database:
            harden(database)
            if foreign_object(database):
                return 0
            (epoch,) = database.execute("SELECT max(epoch) FROM lives").fetchone()
    except (sqlite3.Error, UnicodeDecodeError):
        # What it is instead is seen, and told, when it is opened.
        return 0
    return epoch if isinstance(epoch, int) and epoch <= MOST_EPOCH else 0


def _settle(path: Path) -> None:
    """Bring all events into the main file, which then is renamed at once; raise `sqlite3.Error` or `OSError`.

    Its log could not be renamed in the same instant, and one without the other lacks events.
    """
    with closing(sqlite3.connect(path, timeout=_OPEN_SECONDS, isolation_level=None)) as database:
        harden(database)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for suffix in BESIDE:
        beside = path.resolve().with_name(path.resolve().name + suffix)
        if beside.exists() and beside.stat().st_size:
            raise OSError(f"another program uses it: {beside.name} is there")
