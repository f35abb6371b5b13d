"""The journal on a real file.

A full disk is SQLite's own limit of pages (it fails at the INSERT), a limit of the process (at the COMMIT), or another
writer's lock (at the BEGIN).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from feeder.events import EVENT_BYTES, Event, Unsent
from feeder.journal import journal as journal_module
from feeder.journal import opening
from feeder.journal.journal import CHECKPOINT_BYTES, CHUNK_BYTES, CHUNK_EVENTS, LOG_BYTES, Journal
from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import TABLES, Reader, journal_path
from qmt_bridge.wire import frames
from qmt_bridge.wire.positions import JournalPosition

DAY_MS = 24 * 3600 * 1000
Open = Callable[..., Journal]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal-sim.sqlite3"


@pytest.fixture
def open_journal(path: Path) -> Iterator[Open]:
    opened: list[Journal] = []

    def open_one(max_mb: int = 0) -> Journal:
        opened.append(Journal(path, days=30, max_mb=max_mb))
        return opened[-1]

    try:
        yield open_one
    finally:
        for journal in opened:
            journal.close()


def fills(count: int, account: str = "1", text: str = "") -> list[Unsent]:
    return [Unsent(account, "trade", msgspec.Raw(frames.encode({"traded_id": n, "text": text}))) for n in range(count)]


def append(journal: Journal, unsent: list[Unsent], time_ms: int) -> list[Event]:
    """Give events their positions and write them; return the events to publish."""
    events = journal.positions.give(unsent, time_ms)
    saved = journal.append(events)
    return [event if event.seq <= saved else event.marked() for event in events]


def replay(journal: Journal, after: int, account: str | None = None) -> list[dict[str, object]]:
    events = []
    while True:
        chunk = journal.read(after, account)
        some = frames.decode(chunk.body)
        assert chunk.last == after + len(some)
        events += some
        if not chunk.more:
            return events
        after = chunk.last


def seqs(journal: Journal, after: int, account: str | None = None) -> list[object]:
    return [event["seq"] for event in replay(journal, after, account)]


def limit_disk(journal: Journal, pages: int) -> None:
    journal._database.execute(f"PRAGMA max_page_count={pages}")


def allows(journal: Journal, after: int, account: str | None = None) -> bool:
    return journal.oldest(account) <= after <= journal.newest_of(account)


def prune(journal: Journal, time_ms: int) -> int:
    """Delete every event that is due; return the number of calls."""
    calls = 1
    while journal.prune(time_ms):
        calls += 1
        assert calls < 10_000
    return calls


def allow_damage(path: Path) -> None:
    """Let a column hold any value, as a damaged page may: SQLite has no checksums."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema=ON")
        database.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '')")


@contextmanager
def no_room_at_the_commit(path: Path) -> Iterator[None]:
    """Let no file of this process grow beyond the present size of the journal's write-ahead log."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(f"{path.name}-wal").stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_events_are_numbered_from_one_in_total_and_per_account(open_journal: Open) -> None:
    journal = open_journal()
    assert journal.newest == 0
    events = append(journal, [*fills(1, "1"), *fills(1, "2"), *fills(1, "1")], 5)
    assert [event[:4] for event in events] == [(1, "1", 1, 5), (2, "2", 1, 5), (3, "1", 2, 5)]
    assert frames.decode(events[1].body) == {"type": "trade", "seq": 2, "data": {"traded_id": 0, "text": ""}}
    assert [journal.newest_of(account) for account in (None, "1", "2", "3")] == [3, 2, 1, 0]
    assert journal.newest == 3


def test_a_commit_waits_for_the_disk(open_journal: Open) -> None:
    journal = open_journal()
    # A test cannot cut the power. 2 is FULL; with NORMAL (1) a power cut could lose the last commits.
    assert journal._pragma("synchronous") == 2
    assert journal._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_replay_returns_the_published_events_byte_for_byte(open_journal: Open) -> None:
    journal = open_journal()
    events = append(journal, fills(3), 0)
    chunk = journal.read(1, None)
    assert chunk.body == frames.encode([msgspec.Raw(event.body) for event in events[1:]])
    assert (chunk.last, chunk.more) == (3, False)


def test_a_replay_of_one_account_uses_the_numbers_of_its_events(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, [*fills(2, "1"), *fills(2, "2"), *fills(1, "1")], 0)
    assert seqs(journal, 0, "1") == [1, 2, 5]
    assert seqs(journal, 1, "2") == [4]
    assert seqs(journal, 3, "1") == []
    assert journal.read(2, "1").last == 3
    assert [allows(journal, after, "2") for after in (-1, 0, 2, 3)] == [False, True, True, False]
    assert [allows(journal, after, "nobody") for after in (0, 1)] == [True, False]
    assert frames.decode(journal.read(0, "nobody").body) == []


def test_events_and_their_numbers_survive_a_restart(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, fills(2), 0)
    journal.close()
    journal = open_journal()
    assert journal.newest == 2
    assert seqs(journal, 0) == [1, 2]
    assert append(journal, fills(1), 0)[0][:3] == (3, "1", 3)
    assert append(journal, fills(1, "2"), 0)[0][:3] == (4, "2", 1)


def test_a_number_is_not_reused_after_every_event_was_pruned(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, fills(3), 0)
    append(journal, fills(1, "2"), 31 * DAY_MS)
    prune(journal, 62 * DAY_MS)
    assert seqs(journal, 4) == []
    journal.close()
    journal = open_journal()
    assert (journal.newest, journal.newest_of("1")) == (4, 3)
    assert [allows(journal, after) for after in (3, 4)] == [False, True]
    assert [allows(journal, after, "1") for after in (2, 3)] == [False, True]
    assert append(journal, fills(1), 0)[0][:3] == (5, "1", 4)


def test_pruning_deletes_only_events_older_than_its_days(open_journal: Open) -> None:
    journal = open_journal()
    for day in range(3):
        append(journal, [*fills(1), *fills(1, "2")], day * DAY_MS)
    prune(journal, 31 * DAY_MS)
    assert [allows(journal, after) for after in (1, 2)] == [False, True]
    assert [allows(journal, after, "2") for after in (0, 1)] == [False, True]
    assert seqs(journal, 2) == [3, 4, 5, 6]
    assert seqs(journal, 1, "2") == [4, 6]


def test_a_clock_that_was_set_back_makes_no_gap(open_journal: Open) -> None:
    journal = open_journal()
    for time_ms in (40 * DAY_MS, 0, 40 * DAY_MS):
        append(journal, fills(1), time_ms)
    prune(journal, 41 * DAY_MS)
    assert allows(journal, 0)
    assert seqs(journal, 0) == [1, 2, 3]


def test_positions_outside_the_journal_are_refused(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, fills(2), 0)
    assert [allows(journal, after) for after in (-1, 0, 1, 2, 3)] == [False, True, True, True, False]


def test_a_replay_does_not_skip_a_gap(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, [*fills(2, "1"), *fills(4, "2")], 0)
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM event WHERE seq = 4")
        database.commit()
    journal = open_journal()
    assert [allows(journal, after) for after in (1, 2, 3, 4)] == [False, False, False, True]
    assert seqs(journal, 4) == [5, 6]
    assert [allows(journal, after, "2") for after in (0, 1, 2)] == [False, False, True]
    # All returned events are before the gap.
    assert [allows(journal, after, "1") for after in (0, 1, 2)] == [False, False, True]


def test_a_long_replay_comes_in_chunks_of_a_thousand(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, fills(CHUNK_EVENTS + 1), 0)
    first = journal.read(0, None)
    assert (first.last, first.more, len(frames.decode(first.body))) == (CHUNK_EVENTS, True, CHUNK_EVENTS)
    rest = journal.read(first.last, None)
    assert (rest.last, rest.more, len(frames.decode(rest.body))) == (CHUNK_EVENTS + 1, False, 1)


def test_a_replay_of_large_events_comes_in_chunks_of_bounded_size(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, [*fills(5, text="x" * 200_000), *fills(1, text="x" * (CHUNK_BYTES + 1)), *fills(1)], 0)
    after, sizes = 0, []
    while True:
        chunk = journal.read(after, None)
        sizes.append((len(frames.decode(chunk.body)), len(chunk.body) <= CHUNK_BYTES))
        if not chunk.more:
            break
        after = chunk.last
    assert sizes == [(2, True), (2, True), (1, True), (1, False), (1, True)]
    assert seqs(journal, 0) == [1, 2, 3, 4, 5, 6, 7]


def test_a_full_disk_loses_no_event_and_is_logged_once(open_journal: Open, caplog: pytest.LogCaptureFixture) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    limit_disk(journal, 1)
    with caplog.at_level(logging.WARNING):
        published = append(journal, fills(2, "1", "x" * 5000), 0)
        published += append(journal, fills(1, "2", "x" * 5000), 0)
        journal.save()
        assert [event.seq for event in published] == [2, 3, 4]
        assert [frames.decode(event.body)["journaled"] for event in published] == [False] * 3
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "seq 2" in caplog.text
        assert journal.newest == 4
        assert seqs(journal, 0) == seqs(journal, 0) == [1, 2, 3, 4]
        assert replay(journal, 1) == [frames.decode(event.body) for event in published]
        assert replay(journal, 3) == [frames.decode(published[2].body)]
        assert replay(journal, 1, "1") == [frames.decode(event.body) for event in published[:2]]
        assert seqs(journal, 2, "1") == [3]
        assert seqs(journal, 0, "2") == [4]
        assert [allows(journal, after, "2") for after in (-1, 0, 1, 2)] == [False, True, True, False]
        limit_disk(journal, 1_000_000)
        journal.save()
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "journaled" not in frames.decode(append(journal, fills(1), 0)[0].body)
    journal.close()
    journal = open_journal()
    assert seqs(journal, 0) == [1, 2, 3, 4, 5]
    assert all("journaled" not in event for event in replay(journal, 0))
    assert (journal.newest_of("1"), journal.newest_of("2")) == (4, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a process's files")
def test_a_disk_that_is_full_at_the_commit_loses_no_event(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    with no_room_at_the_commit(path):
        assert append(journal, fills(2), 0)[1].number == 3
        assert journal.failure is not None
        journal.save()
        assert seqs(journal, 0) == [1, 2, 3]
    journal.save()
    assert journal.failure is None
    journal.close()
    assert seqs(open_journal(), 0) == [1, 2, 3]


def test_a_lock_of_another_program_loses_no_event(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    assert journal._database.execute("PRAGMA busy_timeout").fetchone() == (0,)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        (event,) = append(journal, fills(1), 0)
        assert journal.failure == "database is locked"
        assert not frames.decode(event.body)["journaled"]
        stranger.execute("COMMIT")
        journal.save()
        assert journal.failure is None
        assert stranger.execute("SELECT count(*) FROM event").fetchone() == (1,)


def test_a_failing_disk_is_not_tried_for_every_event(open_journal: Open) -> None:
    journal = open_journal()
    limit_disk(journal, 1)
    append(journal, fills(1, text="x" * 5000), 0)
    limit_disk(journal, 1_000_000)
    append(journal, fills(1), 0)
    assert journal.failure is not None
    journal.save()
    assert journal.failure is None
    journal.close()
    assert seqs(open_journal(), 0) == [1, 2]


def test_events_that_waited_long_are_written_in_parts(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 2)
    journal = open_journal()
    limit_disk(journal, 1)
    append(journal, fills(5, text="x" * 5000), 0)
    assert not journal.catching_up
    limit_disk(journal, 1_000_000)
    journal.save()
    assert journal.catching_up
    # Events that arrive meanwhile are written after them.
    events = append(journal, fills(1), 0)
    assert [event.get("journaled", True) for event in replay(journal, 0)] == [True] * 4 + [False] * 2
    events += append(journal, fills(3), 0)
    assert [frames.decode(event.body).get("journaled", True) for event in events] == [False] * 4
    append(journal, fills(1), 0)
    while journal.catching_up:
        journal.save()
    events = append(journal, fills(3), 0)
    assert [frames.decode(event.body).get("journaled", True) for event in events] == [True, True, False]
    journal.close()
    assert seqs(open_journal(), 0) == list(range(1, 14))


def test_events_that_still_wait_are_written_on_close(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_EVENTS", 2)
    journal = open_journal()
    limit_disk(journal, 1)
    append(journal, fills(5, text="x" * 5000), 0)
    limit_disk(journal, 1_000_000)
    journal.close()
    assert seqs(open_journal(), 0) == [1, 2, 3, 4, 5]


def test_closing_on_a_full_disk_names_the_events_that_are_lost(
    open_journal: Open, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    limit_disk(journal, 1)
    append(journal, fills(2, text="x" * 5000), 0)
    journal.close()
    assert "without seq 2 to 3" in caplog.text
    journal = open_journal()
    # A client that has seen them gets a refusal, not an empty replay.
    assert not allows(journal, 3)


def test_events_held_by_a_full_disk_are_bounded_and_loss_is_logged(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    # Two events of five kilobytes each.
    monkeypatch.setattr(journal_module, "MAX_UNSAVED_BYTES", 2 * (5000 + EVENT_BYTES + 100))
    limit_disk(journal, 1)
    assert len(append(journal, fills(3, text="x" * 5000), 0)) == 3
    append(journal, fills(1, "2", text="x" * 5000), 0)
    assert [allows(journal, after) for after in (0, 2, 3)] == [False, False, True]
    assert [allows(journal, after, "1") for after in (0, 2, 3)] == [False, False, True]
    assert seqs(journal, 3) == [4, 5]
    assert caplog.text.count("given up") == 1
    assert "from seq 2 on are given up" in caplog.text
    limit_disk(journal, 1_000_000)
    journal.save()
    assert "trade events of seq 2 to 3 were never written" in caplog.text
    journal.close()
    journal = open_journal()
    assert [allows(journal, after) for after in (2, 3)] == [False, True]
    assert seqs(journal, 3) == [4, 5]


def test_pruning_with_a_full_disk_keeps_events_in_memory(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    limit_disk(journal, 1)
    append(journal, fills(2, text="x" * 5000), 40 * DAY_MS)
    assert not journal.prune(40 * DAY_MS)
    assert seqs(journal, 0) == [1, 2, 3]
    limit_disk(journal, 1_000_000)
    journal.save()
    prune(journal, 40 * DAY_MS)
    assert [allows(journal, after) for after in (0, 1)] == [False, True]
    assert seqs(journal, 1) == [2, 3]


def test_old_events_are_deleted_in_slices(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PRUNE_EVENTS", 2)
    journal = open_journal()
    append(journal, fills(5), 0)
    append(journal, fills(2), 40 * DAY_MS)
    assert journal.prune(40 * DAY_MS)
    assert [allows(journal, after) for after in (1, 2)] == [False, True]
    prune(journal, 40 * DAY_MS)
    assert [allows(journal, after) for after in (4, 5)] == [False, True]
    assert seqs(journal, 5) == [6, 7]


def test_pruning_that_fails_is_logged_once_and_deletes_nothing(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        assert not journal.prune(40 * DAY_MS)
        assert not journal.prune(40 * DAY_MS)
        stranger.execute("COMMIT")
    assert caplog.text.count("could not be deleted") == 1
    assert allows(journal, 0)
    prune(journal, 40 * DAY_MS)
    assert not allows(journal, 0)


def test_a_too_large_journal_deletes_oldest_events_and_shrinks(open_journal: Open, path: Path) -> None:
    journal = open_journal(max_mb=2)
    for _ in range(10):
        append(journal, [*fills(1000, "1", "x" * 400), *fills(5, "2", "x" * 400)], 0)
    # It takes several slices, but they are larger than a page.
    assert 5 < prune(journal, 0) < 30
    oldest = journal.oldest()
    # As many events remain as fit, minus one slice and the space of tables and index.
    assert 3000 < journal.newest - oldest < 2 * 1024 * 1024 // 400
    assert seqs(journal, oldest) == list(range(oldest + 1, journal.newest + 1))
    assert journal.newest_of("1") - journal.oldest("1") + journal.newest_of("2") - journal.oldest("2") == (
        journal.newest - oldest
    )
    journal.close()
    assert path.stat().st_size < 3.1 * 1024 * 1024
    journal = open_journal(max_mb=2)
    assert journal.oldest() == oldest
    assert append(journal, fills(1, "2"), 0)[0][:3] == (10051, "2", 51)


def test_a_journal_without_a_limit_keeps_every_event(open_journal: Open) -> None:
    journal = open_journal(max_mb=0)
    append(journal, fills(1000, text="x" * 2000), 0)
    assert prune(journal, 0) == 1
    assert journal.oldest() == 0


def log_bytes(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


def test_the_log_is_checkpointed_between_bursts_not_in_them(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    before = path.stat().st_size
    text = "x" * 10_000
    append(journal, fills(CHECKPOINT_BYTES // len(text) - 50, text=text), 0)
    journal.checkpoint(idle=True)
    assert path.stat().st_size == before
    append(journal, fills(60, text=text), 0)
    assert path.stat().st_size == before, "in a commit that events wait for"
    # While events wait, the log may grow further, up to a limit.
    journal.checkpoint(idle=False)
    assert path.stat().st_size == before
    append(journal, fills(CHECKPOINT_BYTES // len(text), text=text), 0)
    assert log_bytes(path) > LOG_BYTES
    journal.checkpoint(idle=False)
    assert path.stat().st_size > LOG_BYTES * 0.9
    assert log_bytes(path) == 0


def test_the_log_of_small_commits_stays_small(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    largest = 0
    for _ in range(3000):
        append(journal, fills(1, text="x" * 100), 0)
        largest = max(largest, log_bytes(path))
        journal.checkpoint(idle=True)
    # Each commit wrote several pages, although its event is far smaller.
    assert path.stat().st_size < CHECKPOINT_BYTES
    assert CHECKPOINT_BYTES < largest < LOG_BYTES


def test_the_log_stays_small_while_a_reader_has_the_file_open(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, fills(10), 0)
    with Reader(path) as reader:
        for _ in range(10):
            append(journal, fills(100, text="x" * 5000), 0)
            next(iter(reader.rows()))
            journal.checkpoint(idle=True)
            assert log_bytes(path) < LOG_BYTES


def test_a_program_that_never_ends_its_read_is_logged(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LARGE_LOG_BYTES", 3 * CHECKPOINT_BYTES)
    journal = open_journal()
    append(journal, fills(10), 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM event").fetchall()
        for _ in range(10):
            append(journal, fills(200, text="x" * 5000), 0)
            journal.checkpoint(idle=True)
    assert journal.failure is None
    assert caplog.text.count("a program reads the file without a pause") == 1
    # Afterwards it is emptied at once.
    append(journal, fills(400, text="x" * 5000), 0)
    journal.checkpoint(idle=True)
    assert log_bytes(path) == 0


def test_deleting_events_does_not_make_the_log_grow(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    for _ in range(10):
        append(journal, fills(1000, text="x" * 1000), 0)
        journal.checkpoint(idle=True)
    while journal.prune(31 * 24 * 3600 * 1000):
        journal.checkpoint(idle=True)
    assert log_bytes(path) < 2 * CHECKPOINT_BYTES


def test_a_checkpoint_that_fails_is_logged_once(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    database = journal._database

    class Failing:
        def execute(self, query: str, *values: object) -> sqlite3.Cursor:
            if "wal_checkpoint" in query:
                raise sqlite3.OperationalError("database or disk is full")
            return database.execute(query, *values)

        def __getattr__(self, name: str) -> object:
            return getattr(database, name)

    journal._database = Failing()  # type: ignore[assignment]
    for _ in range(3):
        append(journal, fills(300, text="x" * 10_000), 0)
        journal.checkpoint(idle=True)
    assert journal.failure is None
    assert caplog.text.count("cannot be copied into the file: database or disk is full") == 1
    assert journal.read(0).last > 0


@pytest.mark.parametrize("source", ["sim", "xtquant"])
def test_a_second_feeder_in_the_same_folder_is_refused(open_journal: Open, path: Path, source: str) -> None:
    journal = open_journal()
    other = journal_path(path.parent, source)
    with pytest.raises(ConfigError, match=r"another feeder .*feeder\.lock is locked"):
        Journal(other, days=30)
    journal.close()
    Journal(other, days=30).close()


def set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


@pytest.mark.parametrize("at", [0, 20, 100, 4096])
def test_a_damaged_file_is_set_aside_and_a_new_journal_begins(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    journal = open_journal()
    journal.begin_epoch(1000)
    append(journal, fills(100), 0)
    journal.close()
    assert journal.note is None
    damaged = bytearray(path.read_bytes())
    damaged[at:] = (b"not a database, and long enough" * len(damaged))[: len(damaged) - at]
    path.write_bytes(damaged)
    journal = open_journal()
    (aside,) = set_aside(path)
    assert aside.read_bytes() == damaged
    assert f"is renamed to {aside.name}" in caplog.text
    assert str(journal.note).startswith(f"a damaged journal was set aside: {aside.name}")
    assert (journal.newest, journal.oldest()) == (0, 0)
    # Positions of the old journal are refused.
    assert not allows(journal, 100)
    assert not journal.has(JournalPosition(0, 1000), None)
    assert append(journal, fills(1), 0)[0].seq == 1
    journal.close()
    # The damage is reported until the file is moved away.
    assert aside.name in str(open_journal().note)


def test_a_new_journal_takes_nothing_from_a_damaged_file(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.begin_epoch(1000)
    append(journal, fills(300), 0)
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        (index,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event_account'").fetchone()
    with path.open("r+b") as file:
        file.seek((index - 1) * 4096)
        file.write(b"\xff" * 4096)
    journal = open_journal()
    assert len(set_aside(path)) == 1
    # The epochs were read before the damage was found.
    assert not journal.has(JournalPosition(0, 1000), None)
    # The clock may have been set back meanwhile.
    assert journal.begin_epoch(500) == 1001


def test_a_damaged_journal_is_reported_until_its_file_is_moved(open_journal: Open, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("not a database", encoding="utf-8")
    journal = open_journal()
    assert journal.note is not None
    journal.close()
    (aside,) = set_aside(path)
    aside.unlink()
    assert open_journal().note is None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("CREATE TABLE theirs (a)", id="another-program"),
        pytest.param("CREATE TABLE event (a)", id="other-columns"),
        pytest.param("CREATE TABLE theirs (a); PRAGMA user_version=1", id="our-version-without-tables"),
        pytest.param("CREATE TABLE theirs (a); PRAGMA user_version=99", id="another-program-with-a-version"),
        pytest.param(f"{TABLES[0]}; PRAGMA user_version=1", id="ours-without-accounts"),
        pytest.param(f"{';'.join(TABLES)}; CREATE TABLE lives (a); PRAGMA user_version=1", id="ours-with-other-lives"),
    ],
)
def test_the_database_of_another_program_is_set_aside(open_journal: Open, path: Path, content: str) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as theirs:
        theirs.executescript(content)
    before = dump_of_another_program(path)
    journal = open_journal()
    assert append(journal, fills(1), 0)[0].seq == 1
    (aside,) = set_aside(path)
    assert dump_of_another_program(aside) == before


def dump_of_another_program(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


@pytest.mark.parametrize("at", [0, 100, 4096])
def test_the_log_of_a_damaged_file_is_kept_with_it(open_journal: Open, path: Path, at: int) -> None:
    journal = open_journal()
    append(journal, fills(100), 0)
    journal.close()
    journal = open_journal()
    append(journal, fills(1, text="only in the log"), 0)
    log = path.with_name(f"{path.name}-wal")
    kept = {path: bytearray(path.read_bytes()), log: log.read_bytes()}
    journal.close()
    kept[path][at : at + 4096] = b"damage" * 682 + b"dama"
    for file, content in kept.items():
        file.write_bytes(content)
    journal = open_journal()
    found = [path, log, *set_aside(path)]
    assert any(b"only in the log" in file.read_bytes() for file in found if file.exists())
    assert append(journal, fills(1), 0)


@pytest.mark.parametrize("name", ["journal-sim.sqlite3", "feeder.lock"])
def test_a_folder_with_the_name_of_a_file_is_set_aside(open_journal: Open, path: Path, name: str) -> None:
    theirs = path.with_name(name)
    (theirs / "kept").mkdir(parents=True)
    assert append(open_journal(), fills(1), 0)[0].seq == 1
    assert theirs.is_file()
    (aside,) = set_aside(theirs)
    assert (aside / "kept").is_dir()


def test_the_log_of_a_linked_file_is_checkpointed(open_journal: Open, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    there = tmp_path / "elsewhere.sqlite3"
    there.touch()
    try:
        path.symlink_to(there)
    except OSError:
        pytest.skip("this system lets this user make no link")
    if not path.is_symlink():
        pytest.skip("Wine says that it has made a link, and has not")
    journal = open_journal()
    append(journal, fills(1, text="x" * CHECKPOINT_BYTES), 0)
    assert log_bytes(there) > CHECKPOINT_BYTES
    journal.checkpoint(idle=True)
    assert log_bytes(there) == 0


def test_files_beside_a_damaged_one_are_set_aside_with_it(path: Path) -> None:
    path.parent.mkdir()
    names = ["", "-wal", "-shm", "-journal"]
    for name in names:
        path.with_name(path.name + name).write_text(f"is {name}", encoding="utf-8")
    aside = opening.set_aside(path)
    assert [aside.with_name(aside.name + name).read_text(encoding="utf-8") for name in names] == [
        f"is {name}" for name in names
    ]
    assert len(list(path.parent.iterdir())) == len(names)


def test_two_damaged_files_of_one_second_get_two_names(open_journal: Open, path: Path) -> None:
    path.parent.mkdir()
    for number in range(3):
        path.write_text(f"not a database {number}", encoding="utf-8")
        open_journal().close()
        path.unlink()
    texts = {found.read_text(encoding="utf-8") for found in set_aside(path)}
    assert texts == {f"not a database {number}" for number in range(3)}


def test_a_damaged_lock_does_not_keep_a_feeder_out(open_journal: Open, path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "feeder.lock").write_text(
        "not a database, and long enough to be read as one" * 100, encoding="utf-8"
    )
    open_journal()
    with pytest.raises(ConfigError, match=r"another feeder"):
        Journal(path, days=30)


def test_an_unreadable_epoch_makes_its_positions_invalid(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in (100, 200, 300):
        journal = open_journal()
        journal.begin_epoch(epoch)
        append(journal, fills(2), 0)
        journal.close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE lives SET numbers = x'c1' WHERE epoch = 200")
    journal = open_journal()
    assert [journal.has(JournalPosition(1, epoch), None) for epoch in (100, 200, 300)] == [False, False, True]
    assert "an epoch of the feeder that cannot be read" in caplog.text
    assert seqs(journal, 0) == [1, 2, 3, 4, 5, 6]


def test_a_damaged_page_stops_only_the_replays_that_need_it(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, fills(200, text="x" * 500), 0)
    journal.close()
    with closing(sqlite3.connect(path)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event'").fetchone()
        leaf = int.from_bytes(path.read_bytes()[(root - 1) * 4096 + 12 :][:2], "big")
        page = int.from_bytes(path.read_bytes()[(root - 1) * 4096 + leaf :][:4], "big")
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    journal = open_journal()
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        replay(journal, 0)
    assert append(journal, fills(1), 0)[0].seq == 201
    assert journal.failure is None
    assert seqs(journal, 150) == list(range(151, 202))


@pytest.mark.parametrize(
    "body", [None, 7, "text", b"", b"\xc1", b"\x83\xa4ty\xff", frames.encode({"type": 1})], ids=repr
)
def test_a_damaged_event_ends_a_replay_after_those_before_it(open_journal: Open, path: Path, body: object) -> None:
    journal = open_journal()
    append(journal, fills(3), 0)
    journal.close()
    allow_damage(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE event SET body = ? WHERE seq = 2", (body,))
    journal = open_journal()
    chunk = journal.read(0)
    assert (chunk.last, chunk.more, len(frames.decode(chunk.body))) == (1, True, 1)
    for account in (None, "1"):
        with pytest.raises(sqlite3.DatabaseError, match="position 2 is damaged"):
            journal.read(1, account)
    assert seqs(journal, 2) == [3]


@pytest.mark.parametrize("damaged", [None, "text", b"blob"], ids=repr)
def test_a_damaged_time_or_number_does_not_stop_the_journal(open_journal: Open, path: Path, damaged: object) -> None:
    journal = open_journal()
    append(journal, fills(3), 0)
    journal.close()
    allow_damage(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE event SET time_ms = ?, number = ? WHERE seq = 1", (damaged, damaged))
    journal = open_journal()
    if damaged is not None:
        assert journal.oldest("1") in (0, 1)
    prune(journal, 31 * DAY_MS)
    assert journal.oldest() == 3
    assert append(journal, fills(1), 31 * DAY_MS)[0].seq == 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_the_owner_may_read_the_files_of_a_journal(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()} == dict.fromkeys(
        ["feeder.lock", path.name, f"{path.name}-shm", f"{path.name}-wal"], 0o600
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_files_that_others_could_read_are_made_private(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, fills(1), 0)
    kept = {name: path.with_name(name).read_bytes() for name in (path.name, f"{path.name}-wal", f"{path.name}-shm")}
    journal.close()
    # A killed feeder of an older version leaves such files.
    for name, content in kept.items():
        path.with_name(name).write_bytes(content)
    path.parent.chmod(0o755)
    for found in path.parent.iterdir():
        found.chmod(0o644)
    journal = open_journal()
    assert seqs(journal, 0) == [1]
    assert {stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()} == {0o600}
    # Nothing but our files is in it.
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_read_only_file_is_made_private_and_written(
    open_journal: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(open_journal(), fills(1), 0)
    opened = os.open

    def open_as_a_user(name: Path, flags: int, *mode: int) -> int:
        # The tests may run as root, which can always write the file.
        if name.exists() and not name.stat().st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, flags, *mode)

    path.chmod(0o444)
    monkeypatch.setattr(os, "open", open_as_a_user)
    opening.keep_private(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_positions_left_out_are_lost_and_end_a_replay(open_journal: Open, caplog: pytest.LogCaptureFixture) -> None:
    journal = open_journal()
    events = journal.positions.give(fills(9), 0)
    assert journal.append(events[:3]) == 3
    assert journal.append(events[6:]) == 9
    assert "from seq 4 on are given up" in caplog.text
    assert "seq 4 to 6 were never written" in caplog.text
    assert [allows(journal, after) for after in (3, 5, 6)] == [False, False, True]
    assert [allows(journal, after, "1") for after in (5, 6)] == [False, True]
    assert seqs(journal, 6) == [7, 8, 9]
    journal.close()
    journal = open_journal()
    assert [allows(journal, after) for after in (5, 6)] == [False, True]


def test_a_file_of_a_later_version_is_refused(open_journal: Open, path: Path) -> None:
    open_journal().close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="later version"):
        Journal(path, days=30)


def make_first_version(path: Path, accounts: str, pruned: int = 0) -> list[bytes]:
    """Write a journal as the first version did, with an event for each letter of `accounts`."""
    path.parent.mkdir()
    bodies = [frames.encode({"type": "order", "seq": seq, "data": {}}) for seq in range(1, len(accounts) + 1)]
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT NOT NULL, "
            "time_ms INTEGER NOT NULL, body BLOB NOT NULL)"
        )
        database.execute("CREATE INDEX IF NOT EXISTS event_account ON event (account)")
        rows = [
            (seq, account, seq * 10, body) for seq, (account, body) in enumerate(zip(accounts, bodies, strict=True), 1)
        ]
        database.executemany("INSERT INTO event VALUES (?, ?, ?, ?)", rows)
        database.execute("DELETE FROM event WHERE seq <= ?", (pruned,))
    return bodies[pruned:]


def test_a_journal_of_the_first_version_is_converted(open_journal: Open, path: Path) -> None:
    bodies = make_first_version(path, "abacab", pruned=1)
    journal = open_journal()
    assert journal.newest == 6
    assert [allows(journal, after) for after in (0, 1)] == [False, True]
    assert [body for *_, body in journal.since(0)] == bodies
    assert [seqs(journal, 0, account) for account in "abc"] == [[3, 5], [2, 6], [4]]
    assert append(journal, fills(1, "a"), 0)[0][:3] == (7, "a", 3)
    journal.close()
    journal = open_journal()
    assert seqs(journal, 1) == [2, 3, 4, 5, 6, 7]
    assert journal.newest_of("a") == 3


def test_an_empty_journal_of_version_0_is_converted(open_journal: Open, path: Path) -> None:
    make_first_version(path, "ab", pruned=2)
    journal = open_journal()
    assert (journal.newest, journal.oldest()) == (2, 2)
    assert append(journal, fills(1, "a"), 0)[0][:3] == (3, "a", 1)


def test_a_conversion_that_fails_leaves_the_file_as_it_was(
    open_journal: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = make_first_version(path, "abacab")
    with monkeypatch.context() as broken:
        broken.setattr(opening, "TABLES", (*opening.TABLES[:2], "CREATE UNIQUE INDEX bad ON event (time)"))
        with pytest.raises(ConfigError, match="no such column"):
            open_journal()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (0,)
        assert [body for *_, body in database.execute("SELECT * FROM event ORDER BY seq")] == bodies
    journal = open_journal()
    assert seqs(journal, 0, "a") == [1, 3, 5]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of one megabyte; skip the test if this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "journal", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_full_disk_loses_no_event_and_a_feeder_starts(disk: Path) -> None:
    path = disk / "journal-sim.sqlite3"
    with closing(Journal(path, days=30)) as journal:
        append(journal, fills(1), 0)
    with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(4096)):
            pass
    with closing(Journal(path, days=30)) as journal:
        events = append(journal, fills(20, text="x" * 1000), 0)
        assert journal.failure is not None
        assert not any(frames.decode(event.body)["journaled"] for event in events)
        assert seqs(journal, 0) == list(range(1, 22))
        (disk / "ballast").unlink()
        journal.save()
        assert journal.failure is None
    with closing(Journal(path, days=30)) as journal:
        assert seqs(journal, 0) == list(range(1, 22))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a process's files")
def test_a_feeder_started_on_a_full_disk_works_without_readers(
    open_journal: Open, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource")
    journal = open_journal()
    append(journal, fills(2), 0)
    journal.close()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        journal = open_journal()
        assert seqs(journal, 0) == [1, 2]
        assert not frames.decode(append(journal, fills(1), 0)[0].body)["journaled"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be looked at" in caplog.text
    journal.save()
    assert journal.failure is None
    journal.close()
    assert seqs(open_journal(), 0) == [1, 2, 3]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="data_dir"):
        Journal(tmp_path / "file" / "journal.sqlite3", days=30)


def test_closing_twice_is_harmless(open_journal: Open) -> None:
    journal = open_journal()
    journal.close()
    journal.close()


def test_events_since_a_time_come_oldest_first_with_their_times(open_journal: Open) -> None:
    journal = open_journal()
    for day in (1, 2, 3):
        append(journal, fills(2, account=str(day)), day * DAY_MS)
    since = [(time_ms, frames.decode(body)["seq"]) for _, time_ms, body in journal.since(2 * DAY_MS)]
    assert since == [(2 * DAY_MS, 3), (2 * DAY_MS, 4), (3 * DAY_MS, 5), (3 * DAY_MS, 6)]


def test_each_epoch_is_later_than_the_last_for_any_clock(open_journal: Open) -> None:
    first = open_journal()
    assert first.begin_epoch(1000) == 1000
    first.close()
    journal = open_journal()
    assert [journal.begin_epoch(now) for now in (500, 500, 2000, 1000)] == [1001, 1002, 2000, 2001]
    # It is also later in a browser, which rounds the numbers.
    now = 1_764_230_565_123_456_789
    early, late = journal.begin_epoch(now), journal.begin_epoch(now)
    assert float(early) < float(late) < early + 1000


def test_an_epoch_that_cannot_be_written_begins(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert journal.begin_epoch(1000) == 1000
    assert "epoch" in caplog.text
    append(journal, fills(1), 0)
    journal.close()
    journal = open_journal()
    assert journal.has(JournalPosition(0, 1000), None)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert journal.begin_epoch(500) == 1001


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
@pytest.mark.parametrize("how", ["removed", "replaced", "folder"])
def test_a_moved_file_is_a_failure_until_it_is_back(
    open_journal: Open, path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    journal = open_journal()
    append(journal, fills(2), 0)
    moved, away = (path.parent if how == "folder" else path), path.parents[1] / "away"
    moved.rename(away)
    if how != "removed":
        moved.touch()
    # It is a failure even with nothing to write: SQLite would still write to the file that has no name any more.
    journal.save()
    why = {
        "removed": "removed: No such file or directory",
        "replaced": "replaced",
        "folder": "removed: Not a directory",
    }
    assert journal.failure == f"{path} has been {why[how]}"
    (event,) = append(journal, fills(1), 0)
    assert frames.decode(event.body)["journaled"] is False
    assert [event["seq"] for event in frames.decode(journal.read(0).body)] == [1, 2, 3]
    moved.unlink(missing_ok=True)
    away.rename(moved)
    journal.save()
    assert journal.failure is None
    assert caplog.text.count("cannot be written") == 1
    assert "is written again, from seq 3 on" in caplog.text
    journal.close()
    assert open_journal().newest == 3


def test_a_position_is_valid_only_in_the_journal_of_its_epoch(open_journal: Open) -> None:
    epochs = [1_764_230_565_123_456_789, 1_764_230_570_123_456_789]
    for epoch in epochs:
        journal = open_journal()
        assert not journal.has(JournalPosition(0, epoch), None)
        journal.begin_epoch(epoch)
        assert journal.has(JournalPosition(0, epoch), None)
        journal.close()
    journal = open_journal()
    assert all(journal.has(JournalPosition(0, epoch), None) for epoch in epochs)
    # A browser has rounded this epoch.
    assert journal.has(JournalPosition(0, 1_764_230_565_123_456_800.0), None)
    assert not journal.has(JournalPosition(0, epochs[0] + 1000), None)


def test_an_unwritten_epoch_is_written_later_without_events(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        journal.begin_epoch(100)
        journal.save()
        assert journal.failure == "database is locked"
    journal.save()
    assert journal.failure is None
    journal.save()
    journal.close()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT epoch FROM lives").fetchall() == [(100,)]


def test_lost_positions_are_known_after_later_events_were_pruned(open_journal: Open) -> None:
    journal = open_journal()
    journal.begin_epoch(100)
    append(journal, fills(5), 0)
    journal.close()
    # An epoch had five more events, which were lost when it ended.
    journal = open_journal()
    journal.begin_epoch(200)
    append(journal, fills(5), 0)
    prune(journal, 40 * DAY_MS)
    for account in (None, "1"):
        assert journal.oldest(account) == 10
        assert journal.has(JournalPosition(5, 100, True), account)
        assert not journal.has(JournalPosition(10, 100, True), account)
    assert not journal.has(JournalPosition(1, 100, True), "2")


def test_an_exact_position_has_to_be_on_disk_in_its_epoch(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.begin_epoch(100)
    append(journal, [*fills(2, "1"), *fills(2, "2"), *fills(1, "1")], 0)
    journal.close()
    # Remove the last two events, as if they had never been on disk.
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM event WHERE seq > 3")
        database.execute("UPDATE sqlite_sequence SET seq = 3")
        database.executemany("UPDATE account SET newest = ? WHERE name = ?", [(2, "1"), (1, "2")])
    journal = open_journal()
    journal.begin_epoch(200)
    for saved in (False, True):
        append(journal, fills(2, "1"), 0)
        seen = {after: journal.has(JournalPosition(after, 100, True), None) for after in range(6)}
        assert seen == {0: True, 1: True, 2: True, 3: True, 4: False, 5: False}
        assert [journal.has(JournalPosition(after, 100, True), "1") for after in (2, 3)] == [True, False]
        assert [journal.has(JournalPosition(after, 100, True), "2") for after in (1, 2)] == [True, False]
        # A position that is not exact is valid, and so is an exact one of the present epoch.
        assert journal.has(JournalPosition(5, 100), None)
        assert journal.has(JournalPosition(5, 200, True), None)
        if not saved:
            journal.close()
            journal = open_journal()
            journal.begin_epoch(300)
    assert [journal.has(JournalPosition(after, 200, True), None) for after in (5, 6)] == [True, False]
