"""The file of a trade journal (SQLite): its tables, and a view of it for programs that only read.

The feeder alone writes it (feeder/journal/journal.py); a `Reader` never changes it, and may read at any time: it delays
no other program. Any thread, one at a time. While the feeder runs, the newest events are only in the file beside it
whose name ends in ``-wal``: a copy of the main file alone is no journal, a copy by `Reader.backup` is.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from qmt_bridge import private
from qmt_bridge.config import WITH_PUSH
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.system.in_use import patiently
from qmt_bridge.wire import earlier, frames
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.topics import mask

# PRAGMA user_version. Files of version 0 do not number the events of an account. The events of version 1 are
# MessagePack (wire/earlier.py), and stay that; those that are added to such a file are JSON, like all of version 2.
VERSION = 2
READABLE = (1, 2)
# `seq` counts the events of all accounts, `number` those of the event's own account, both from 1 without holes. An
# account's newest number is kept when its events are deleted.
TABLES = (
    "CREATE TABLE event (seq INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL, time_ms INTEGER NOT NULL, "
    "body BLOB NOT NULL, number INTEGER NOT NULL)",
    "CREATE TABLE account (name TEXT PRIMARY KEY, newest INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE UNIQUE INDEX event_account ON event (account, number)",
)
# Rows and bytes that are read at once: between two reads the feeder may delete old events and write the file anew from
# its start.
_ROWS = 1000
_READ_BYTES = 4 * 1024 * 1024
# A file may come from anybody. These are far beyond what a journal has, and bound what it costs: bytes of a value, a
# statement of the schema, accounts and characters of their names; positions leave room for events to come.
MOST_VALUE = 16 * 1024 * 1024
MOST_STATEMENT = 64 * 1024
MOST_ACCOUNTS = 10_000
MOST_NAME = 1000
MOST_POSITION = 2**62
_ACCOUNTS = f"it has more than {MOST_ACCOUNTS:,} accounts, or a name of more than {MOST_NAME:,} characters"
_OWN = ("event", "account", "lives", "sqlite_sequence")
_MOST_OBJECTS = 100
# In milliseconds since 1970, some days before the end of the year 9999.
_LATEST_MS = 253_400_000_000_000
_SQLITE = b"SQLite format 3\0"

_event_decoder = msgspec.json.Decoder(TradeEvent)


class Row(NamedTuple):
    """One event: its position over all accounts, its number within its own, when it was written (ms), its body."""

    seq: int
    account: str
    number: int
    time_ms: int
    body: bytes


class Holding(NamedTuple):
    """What a journal has of one account, or of all: `events` from position `first` to `last`, their bytes and times.

    `oldest` is the smallest position after which everything can be replayed, `newest` that of the newest event ever.
    Positions of an account are the numbers of its events.
    """

    oldest: int
    newest: int
    events: int = 0
    size: int = 0
    first: int = 0
    last: int = 0
    first_ms: int = 0
    last_ms: int = 0


def journal_path(folder: Path, source: str) -> Path:
    """Return the file of the journal that is named by a source: simulated fills and real ones never share one."""
    return folder / f"journal-{source}.sqlite3"


def journal_files(folder: Path, source: str, *, invented: bool) -> tuple[Path, Path | None]:
    """Return the file of the journal of a source, and the name that it may have from an earlier version.

    Pushers beside a source share its journal, which so goes on when they come or go. Beside a source whose events are
    `invented`, or played again, they do not, since theirs are real: then each setting has a journal of its own.
    """
    alone = source.removesuffix(WITH_PUSH)
    if invented or alone == "replay":
        return journal_path(folder, source), None
    return journal_path(folder, alone), journal_path(folder, alone + WITH_PUSH)


def find_journal(folder: Path, source: str) -> Path:
    """Return the file of `source`, with ``auto`` the only one in `folder`; raise `ConfigError`."""
    if source != "auto":
        path = journal_path(folder, source)
        # One with pushers has a file of its own, or that of the source alone (see `journal_files`).
        for named in (path, journal_path(folder, source.removesuffix(WITH_PUSH))):
            if named.is_file():
                return named
        raise ConfigError("source", f"there is no trade journal {path}")
    found = sorted(folder.glob(journal_path(Path(), "*").name))
    if not found:
        raise ConfigError(
            "data_dir",
            f"there is no trade journal in {folder}; data_dir is that of the feeder, and --file names a journal",
        )
    if len(found) > 1:
        raise ConfigError("source", f"name one: {folder} has {', '.join(path.name for path in found)}")
    return found[0]


def harden(database: sqlite3.Connection) -> None:
    """Let a file that was just opened run no code of its own and have no value without bounds."""
    # Before the first statement, which reads the schema.
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_VALUE)
    database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MOST_STATEMENT)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
        # Fetched, since some of them answer.
        database.execute(f"PRAGMA {pragma}").fetchall()


def foreign_object(database: sqlite3.Connection) -> str | None:
    """Return what a file has in the place of a journal's tables, or what would change them; raise `sqlite3.Error`.

    A view can be endless, a column or an index can compute a value of any size, a trigger can delete events. Other
    tables and views, which nothing here reads, do not matter.
    """
    query = (
        "SELECT type, name, rootpage, sql FROM sqlite_master WHERE type = 'trigger' OR "
        f"lower(name) IN {_OWN} OR lower(tbl_name) IN {_OWN} LIMIT {_MOST_OBJECTS + 1}"
    )
    found = database.execute(query).fetchall()
    if len(found) > _MOST_OBJECTS:
        return "more objects than a journal has"
    for kind, name, root, sql in found:
        shown = repr(name)[:80]
        if kind == "index":
            if database.execute("SELECT 1 FROM pragma_index_xinfo(?) WHERE cid = -2", (name,)).fetchone():
                return f"the index {shown}, which computes values"
        elif kind != "table" or not isinstance(root, int) or root <= 0:
            return f"the {kind} {shown}"
        elif database.execute("SELECT 1 FROM pragma_table_xinfo(?) WHERE hidden", (name,)).fetchone():
            return f"a computed column in {shown}"
        elif re.search(r"\bCHECK\b", str(sql), re.IGNORECASE):
            return f"a condition (CHECK) on {shown}"
    return None


def check_accounts(database: sqlite3.Connection) -> None:
    """Raise `sqlite3.Error` if a journal has more accounts, or longer names, than can be held in memory."""
    count, longest = database.execute("SELECT count(*), max(length(name)) FROM account").fetchone()
    if count > MOST_ACCOUNTS or (longest or 0) > MOST_NAME:
        raise sqlite3.DatabaseError(_ACCOUNTS)


def newest_position(database: sqlite3.Connection) -> int:
    """Return the position of the newest event; 0 before the first. Raise `sqlite3.Error`."""
    # AUTOINCREMENT keeps it also when every event was deleted.
    row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    newest = _position(row[0]) if row else 0
    # In a damaged file the last event may be newer; its position must not be given again.
    last = database.execute("SELECT max(seq) FROM event").fetchone()[0]
    return newest if last is None else max(newest, _position(last))


def _position(found: object) -> int:
    if isinstance(found, int) and 0 <= found <= MOST_POSITION:
        return found
    raise sqlite3.DatabaseError("its positions are no numbers, or too large")


def oldest_position(database: sqlite3.Connection) -> int:
    """Return the smallest position after which no event is missing; raise `sqlite3.Error`."""
    first, last, count = database.execute("SELECT min(seq), max(seq), count(*) FROM event").fetchone()
    if not count:
        return newest_position(database)
    if last - first + 1 == count:
        return int(first) - 1
    # A replay must have no gap: it begins after the last hole.
    begin = database.execute(
        "SELECT max(seq) FROM event WHERE NOT EXISTS (SELECT 1 FROM event AS before WHERE before.seq = event.seq - 1)"
    ).fetchone()
    return int(begin[0]) - 1


def read_only(path: PurePath) -> str:
    """Return the URI by which SQLite opens an absolute path to read it alone.

    `Path.as_uri` makes the server of a Windows share a host, which SQLite refuses.
    """
    name = path.as_posix()
    return f"file://{'' if name.startswith('/') else '/'}{quote(name, safe='/:')}?mode=ro"


class Reader:
    """A read-only view of a journal. A context manager; its methods raise `sqlite3.Error` for a damaged file."""

    def __init__(self, path: Path) -> None:
        """Open the file; raise `ConfigError` if it is no journal, or not one of this version."""
        if not path.is_file():
            raise ConfigError("file", f"there is no trade journal {path}")
        try:
            self._database = sqlite3.connect(read_only(path.absolute()), uri=True, isolation_level=None)
            try:
                harden(self._database)
                version = self._database.execute("PRAGMA user_version").fetchone()[0]
                tables = self._database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'event'").fetchone()[0]
                foreign = foreign_object(self._database)
            except UnicodeDecodeError as exc:
                # SQLite's error quotes a damaged schema, and Python cannot read the error.
                self._database.close()
                raise sqlite3.DatabaseError("its schema is damaged") from exc
            except sqlite3.Error:
                self._database.close()
                raise
        except sqlite3.Error as exc:
            raise ConfigError("file", f"cannot read the trade journal {path}: {exc}") from exc
        if version not in READABLE or not tables or foreign:
            self._database.close()
            if foreign:
                reason = f"is no trade journal: it has {foreign}"
            elif version > VERSION:
                reason = "is of a later version"
            elif tables:
                reason = "is of an earlier version; the feeder converts it when it starts"
            else:
                reason = "is no trade journal"
            raise ConfigError("file", f"{path} {reason}")
        self.path = path
        # Called with the position up to which events are read.
        self.on_read: Callable[[int], None] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @property
    def size(self) -> int:
        """Return the bytes of the file, with what is in the write-ahead log only."""
        pages, page = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * page)

    def holdings(self) -> tuple[Holding, dict[str, Holding]]:
        """Return what there is of all accounts together, and of each."""
        self._database.execute("BEGIN")
        try:
            self._check_names()
            oldest, newest = oldest_position(self._database), newest_position(self._database)
            # Of an account without events its newest number is left.
            numbers: dict[str, int] = dict(self._database.execute("SELECT name, newest FROM account ORDER BY name"))
            _check(numbers)
            accounts = {name: Holding(number, number) for name, number in numbers.items()}
            for name, replayable, *sums in self._database.execute(
                "SELECT account, min(CASE WHEN seq > ? THEN number END), count(*), sum(length(body)), min(number), "
                "max(number), min(time_ms), max(time_ms) FROM event GROUP BY account LIMIT ?",
                (oldest, MOST_ACCOUNTS + 1),
            ):
                _check({name: replayable or 0}, *sums)
                number = numbers.get(name, sums[3])
                accounts[name] = Holding(number if replayable is None else replayable - 1, number, *sums)
                if len(accounts) > MOST_ACCOUNTS:
                    raise sqlite3.DatabaseError(_ACCOUNTS)
            sums = self._database.execute(
                "SELECT count(*), ifnull(sum(length(body)), 0), ifnull(min(seq), 0), ifnull(max(seq), 0), "
                "ifnull(min(time_ms), 0), ifnull(max(time_ms), 0) FROM event"
            ).fetchone()
            _check({}, *sums)
            return Holding(oldest, newest, *sums), accounts
        finally:
            self._database.execute("ROLLBACK")

    def rows(self, account: str | None = None, after: int = 0, since_ms: int | None = None) -> Iterator[Row]:
        """Yield the events after position `after` of the journal, of one account or of all, in order.

        Raise `sqlite3.Error`, also for a row that no feeder has written.
        """
        chosen = "seq > ?"
        values: list[object] = []
        if account is not None:
            # The plus keeps SQLite from the index by account, which would have it sort the rest for every thousand.
            chosen += " AND +account = ?"
            values.append(account)
        if since_ms is not None:
            chosen += " AND time_ms >= ?"
            values.append(since_ms)
        query = f"SELECT seq, account, number, time_ms, body FROM event WHERE {chosen} ORDER BY seq LIMIT {_ROWS}"
        while rows := self._some_rows(query, (after, *values)):
            yield from (row._replace(body=earlier.modern(row.body)) for row in rows)
            after = rows[-1].seq
            if self.on_read is not None:
                self.on_read(after)

    def _check_names(self) -> None:
        check_accounts(self._database)
        longest = self._database.execute("SELECT max(length(account)) FROM event").fetchone()[0]
        if (longest or 0) > MOST_NAME:
            raise sqlite3.DatabaseError(_ACCOUNTS)

    def _some_rows(self, query: str, values: tuple[object, ...]) -> list[Row]:
        rows: list[Row] = []
        size = 0
        with closing(self._database.execute(query, values)) as cursor:
            for found in cursor:
                rows.append(_row(found))
                size += len(rows[-1].body)
                if size > _READ_BYTES:
                    break
        return rows

    def backup(self, out: Path) -> Holding:
        """Copy the journal as it is at one instant to a new file, and return what the copy holds.

        The copy is one file, which only its owner may read. Raise `ConfigError` if there is a file of that name
        already, `sqlite3.Error` or `OSError` if the copy cannot be made; then nothing is left of it.
        """
        if out.exists():
            raise ConfigError("file", f"{out} exists already")
        part = private.make_part(out)
        try:
            with closing(sqlite3.connect(part, isolation_level=None)) as copy:
                self._database.backup(copy)
                # One file that needs nothing beside it; the feeder turns it into a journal with a log again.
                copy.execute("PRAGMA journal_mode=DELETE").fetchall()
            with Reader(part) as reader:
                held, _ = reader.holdings()
            if out.exists():
                raise ConfigError("file", f"{out} exists already")
            patiently(lambda: part.rename(out))
            return held
        finally:
            for suffix in ("", "-journal", "-wal", "-shm"):
                private.remove(part.with_name(part.name + suffix))

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the file, one sentence each: damage, holes, duplicates, bodies that are not theirs.

        Looks at one instant of the file, whatever the feeder does meanwhile.
        """
        self._database.execute("BEGIN")
        try:
            self._check_names()
            for (said,) in self._database.execute("PRAGMA integrity_check"):
                if said != "ok":
                    yield f"the file is damaged: {said}"
            first = seq = 0
            numbers: dict[str, int] = {}
            for row in self.rows():
                if not first:
                    first = row.seq
                elif row.seq != seq + 1:
                    yield f"a hole: {_range(seq + 1, row.seq - 1)} missing"
                seq = row.seq
                # Where old events were deleted, the first number of an account is not known.
                before = numbers.get(row.account, 0 if first == 1 else row.number - 1)
                if row.number > before + 1:
                    hole = _range(before + 1, row.number - 1)
                    yield f"a hole in account {mask(row.account)}: {hole} missing before {seq}"
                elif row.number <= before:
                    yield f"account {mask(row.account)} has number {row.number} at {seq} after {before}"
                numbers[row.account] = max(before, row.number)
                if len(numbers) > MOST_ACCOUNTS:
                    raise sqlite3.DatabaseError(_ACCOUNTS)
                fault = _fault(row)
                if fault:
                    yield f"the body at {seq} {fault}"
            newest = newest_position(self._database)
            if first and seq != newest:
                yield f"a hole: the newest position is {newest}, the last event's {seq}"
            known = dict(self._database.execute("SELECT name, newest FROM account"))
            for account, number in numbers.items():
                if known.get(account) != number:
                    yield f"account {mask(account)} is at {known.get(account)}, its last event at {number}"
        finally:
            self._database.execute("ROLLBACK")


def _row(found: tuple[object, ...]) -> Row:
    match found:
        case (int(), str(), int(), int(time_ms), bytes()) if 0 <= time_ms <= _LATEST_MS:
            return Row._make(found)
    raise sqlite3.DatabaseError(f"the event at position {str(found[0])[:20]} is damaged")


def _check(numbers: Mapping[Any, object], *values: object) -> None:
    """Raise `sqlite3.DatabaseError` for names that are no text, and numbers that are none."""
    if not all(isinstance(name, str) for name in numbers):
        raise sqlite3.DatabaseError("the name of an account is no text")
    if not all(isinstance(value, int) and 0 <= value <= MOST_POSITION for value in (*numbers.values(), *values)):
        raise sqlite3.DatabaseError("its positions or times are no numbers, or too large")
    if any(isinstance(value, int) and value > _LATEST_MS for value in values[-2:]):
        raise sqlite3.DatabaseError("its times are too late")


def _range(first: int, last: int) -> str:
    return f"{first} is" if first == last else f"{first} to {last} are"


def _fault(row: Row) -> str | None:
    try:
        event = frames.read(_event_decoder, row.body)
    except WireError as exc:
        return f"is no event: {exc}"
    if event.seq != row.seq:
        return f"says that it is at {event.seq}"
    return None if event.journaled else "says that it is not here"


def may_be_written(path: Path) -> bool:
    """Return whether an export may replace `path`: not a journal, nor what SQLite keeps beside one."""
    beside = re.fullmatch(r"(.+)-(?:wal|shm|journal)", path.name)
    for database in (path, path.with_name(beside[1])) if beside else (path,):
        if database.is_file():
            with database.open("rb") as file:
                if file.read(len(_SQLITE)) == _SQLITE:
                    return False
    return True


def to_object(reader: Reader) -> dict[str, object]:
    """Return what a journal holds, for JSON."""
    total, accounts = reader.holdings()
    by_account = {name: holding._asdict() for name, holding in accounts.items()}
    return {"file": str(reader.path), "file_size": reader.size, **total._asdict(), "accounts": by_account}


def title(reader: Reader) -> str:
    """Return how large a journal is, in words."""
    total, _ = reader.holdings()
    return f"{reader.size / 1e6:,.1f} MB, {total.size / 1e6:,.1f} MB of them in events"


HEADS = ("account", "events", "first", "last", "replayable after", "first event", "last event")


def to_rows(reader: Reader) -> list[tuple[str, ...]]:
    """Return what a journal holds, a row for all accounts and for each, below `HEADS`; times are local."""
    total, accounts = reader.holdings()
    return [_cells(_printable(name), holding) for name, holding in [("(all)", total), *accounts.items()]]


def _printable(text: str) -> str:
    # A journal may come from anybody, and a terminal takes some characters for commands.
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def to_line(row: Row) -> bytes:
    """Return an event as a line of JSON; raise `WireError` if its body has no such form."""
    event = {"seq": row.seq, "account": row.account, "number": row.number, "time": row.time_ms}
    return frames.encode({**event, **frames.split(row.body)}) + b"\n"


def _cells(name: str, holding: Holding) -> tuple[str, ...]:
    if not holding.events:
        return (name, "0", "", f"{holding.newest}", f"{holding.oldest}", "", "")
    times = [datetime.fromtimestamp(ms / 1000).isoformat(" ", "seconds") for ms in (holding.first_ms, holding.last_ms)]
    return (name, f"{holding.events:,}", f"{holding.first}", f"{holding.last}", f"{holding.oldest}", *times)
