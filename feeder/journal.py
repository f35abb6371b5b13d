"""Trade events on disk before they are published (SQLite): one row of seq over all accounts and restarts.

Only the publisher's thread touches it. It must never lose an event that was published, nor give its seq to another.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from qmt_bridge.errors import ConfigError
from qmt_bridge.wire import frames

logger = logging.getLogger(__name__)

# One chunk of a replay; a reader of the ask socket takes messages of this size anyway.
CHUNK_EVENTS = 1000
CHUNK_BYTES = frames.BATCH_BYTES
# While the disk is full: some 50 MB.
MAX_UNSAVED = 100_000

_DAY_MS = 24 * 3600 * 1000


class Unsent(NamedTuple):
    """A trade event without a position yet: `data` is encoded already."""

    account: str
    type: str
    data: msgspec.Raw


class Event(NamedTuple):
    """A trade event at its position; `body` is what is published: ``{"type":..,"seq":..,"data":{..}}``."""

    seq: int
    account: str
    time_ms: int
    body: bytes


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
    as it does again. Only a crash before that forgets them; the log says which.
    """

    def __init__(self, path: Path, days: int) -> None:
        """Open or create the file; raise `ConfigError` if it cannot be, or if another feeder has it open."""
        self._days = days
        self._unsaved: deque[Event] = deque()
        self._failing = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Nobody else may hold a lock (see EXCLUSIVE), and the publisher's thread cannot wait for one.
            self._database = sqlite3.connect(path, timeout=0.0, isolation_level=None)
        except (OSError, sqlite3.Error) as exc:
            raise ConfigError("data_dir", f"cannot open the trade journal {path}: {exc}") from exc
        try:
            # Two feeders on one file would give one seq to two events.
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL, "
                "time_ms INTEGER NOT NULL, body BLOB NOT NULL)"
            )
            # An index ends in the row's key: this one is by account and seq.
            self._database.execute("CREATE INDEX IF NOT EXISTS event_account ON event (account)")
            # AUTOINCREMENT remembers the newest seq also when every event was pruned.
            newest = self._number("SELECT seq FROM sqlite_sequence WHERE name = 'event'")
            # A replay may not step over a hole: the oldest event is the one after the last hole.
            oldest = self._number(
                "SELECT max(seq) FROM event WHERE NOT EXISTS (SELECT 1 FROM event AS before "
                "WHERE before.seq = event.seq - 1)"
            )
        except sqlite3.Error as exc:
            self._database.close()
            raise ConfigError("data_dir", f"cannot use the trade journal {path}: {exc}") from exc
        self.newest = newest or 0
        # Events up to here can not be replayed any more.
        self._floor = oldest - 1 if oldest is not None else self.newest

    def append(self, events: Sequence[Unsent], time_ms: int) -> list[Event]:
        """Give `events` their positions, commit them, and return them as they are to be published."""
        numbered = []
        for seq, event in enumerate(events, self.newest + 1):
            body = frames.encode({"type": event.type, "seq": seq, "data": event.data})
            numbered.append(Event(seq, event.account, time_ms, body))
        self.newest += len(numbered)
        self._unsaved.extend(numbered)
        self.save()
        return numbered

    def save(self) -> None:
        """Write what is not on disk; if that fails, say so once and keep it for the next call."""
        if not self._unsaved:
            return
        try:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO event VALUES (?, ?, ?, ?)", self._unsaved)
            self._database.execute("COMMIT")
        except sqlite3.Error as exc:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            if not self._failing:
                self._failing = True
                logger.error(
                    "trade journal cannot be written: %s; events from seq %d on are only in memory",
                    exc,
                    self._unsaved[0].seq,
                )
            while len(self._unsaved) > MAX_UNSAVED:
                self._floor = self._unsaved.popleft().seq
            return
        if self._failing:
            self._failing = False
            logger.warning("trade journal is written again, up to seq %d", self.newest)
        self._unsaved.clear()

    def has(self, after: int) -> bool:
        """Return whether every event after position `after` is at hand."""
        return self._floor <= after <= self.newest

    def read(self, after: int, account: str | None) -> Chunk:
        """Return the next events after `after`, of one account or of all; raise `sqlite3.Error`.

        At most `CHUNK_EVENTS` events and, unless one alone is larger, `CHUNK_BYTES`. The last chunk reaches `newest`.
        """
        bodies: list[msgspec.Raw] = []
        last, size = self.newest, 5
        for seq, body in self._after(after, account):
            size += len(body)
            if bodies and (size > CHUNK_BYTES or len(bodies) == CHUNK_EVENTS):
                return Chunk(frames.encode(bodies), last, True)
            bodies.append(msgspec.Raw(body))
            last = seq
        return Chunk(frames.encode(bodies), self.newest, False)

    def since(self, time_ms: int) -> Iterator[tuple[int, bytes]]:
        """Yield time (ms) and body of every saved event from `time_ms` on, oldest first; raise `sqlite3.Error`."""
        cursor = self._database.execute("SELECT time_ms, body FROM event WHERE time_ms >= ? ORDER BY seq", (time_ms,))
        try:
            yield from cursor
        finally:
            cursor.close()

    def prune(self, time_ms: int) -> None:
        """Delete the events that are older than `journal_days` at `time_ms`, from the oldest on."""
        # By position, not by time alone: a clock that was set back must not punch holes.
        try:
            saved = self.newest - len(self._unsaved)
            keep = self._number(
                "SELECT seq FROM event WHERE time_ms >= ? ORDER BY seq LIMIT 1", time_ms - self._days * _DAY_MS
            )
            first = saved + 1 if keep is None else keep
            self._database.execute("DELETE FROM event WHERE seq < ?", (first,))
        except sqlite3.Error as exc:
            logger.warning("old trade events could not be deleted: %s", exc)
            return
        self._floor = max(self._floor, first - 1)

    def close(self) -> None:
        """Write what can be written and close the file."""
        self.save()
        if self._unsaved:
            logger.error("trade journal is closed without seq %d to %d", self._unsaved[0].seq, self._unsaved[-1].seq)
            self._unsaved.clear()
        self._database.close()

    def _after(self, after: int, account: str | None) -> Iterator[tuple[int, bytes]]:
        if account is None:
            cursor = self._database.execute("SELECT seq, body FROM event WHERE seq > ? ORDER BY seq", (after,))
        else:
            query = "SELECT seq, body FROM event WHERE account = ? AND seq > ? ORDER BY seq"
            cursor = self._database.execute(query, (account, after))
        try:
            yield from cursor
        finally:
            cursor.close()
        for event in self._unsaved:
            if event.seq > after and account in (None, event.account):
                yield event.seq, event.body

    def _number(self, query: str, *values: int) -> int | None:
        row = self._database.execute(query, values).fetchone()
        return None if row is None or row[0] is None else int(row[0])
