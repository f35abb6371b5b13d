"""The journal on a real file; a full disk is SQLite's own limit of pages."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from feeder import journal as journal_module
from feeder.journal import CHUNK_BYTES, CHUNK_EVENTS, Journal, Unsent
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire import frames

DAY_MS = 24 * 3600 * 1000
Open = Callable[[], Journal]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "journal-sim.sqlite3"


@pytest.fixture
def open_journal(path: Path) -> Iterator[Open]:
    opened: list[Journal] = []

    def open_one() -> Journal:
        opened.append(Journal(path, days=30))
        return opened[-1]

    try:
        yield open_one
    finally:
        for journal in opened:
            journal.close()


def fills(count: int, account: str = "1", text: str = "") -> list[Unsent]:
    return [Unsent(account, "trade", msgspec.Raw(frames.encode({"traded_id": n, "text": text}))) for n in range(count)]


def replay(journal: Journal, after: int, account: str | None = None) -> list[dict[str, object]]:
    events = []
    while True:
        chunk = journal.read(after, account)
        events += frames.decode(chunk.body)
        if not chunk.more:
            return events
        after = chunk.last


def seqs(journal: Journal, after: int, account: str | None = None) -> list[object]:
    return [event["seq"] for event in replay(journal, after, account)]


def limit_disk(journal: Journal, pages: int) -> None:
    journal._database.execute(f"PRAGMA max_page_count={pages}")


def test_events_are_numbered_from_one_over_all_accounts(open_journal: Open) -> None:
    journal = open_journal()
    assert journal.newest == 0
    events = journal.append([*fills(1, "1"), *fills(1, "2"), *fills(1, "1")], 5)
    assert [(event.seq, event.account, event.time_ms) for event in events] == [(1, "1", 5), (2, "2", 5), (3, "1", 5)]
    assert frames.decode(events[1].body) == {"type": "trade", "seq": 2, "data": {"traded_id": 0, "text": ""}}
    assert journal.newest == 3


def test_a_replay_gives_what_was_published_byte_for_byte(open_journal: Open) -> None:
    journal = open_journal()
    events = journal.append(fills(3), 0)
    chunk = journal.read(1, None)
    assert chunk.body == frames.encode([msgspec.Raw(event.body) for event in events[1:]])
    assert (chunk.last, chunk.more) == (3, False)


def test_a_replay_of_one_account_ends_at_the_newest_event_of_all(open_journal: Open) -> None:
    journal = open_journal()
    journal.append([*fills(2, "1"), *fills(2, "2")], 0)
    assert seqs(journal, 0, "1") == [1, 2]
    assert seqs(journal, 3, "2") == [4]
    assert journal.read(0, "1").last == 4
    assert frames.decode(journal.read(0, "nobody").body) == []


def test_events_and_their_numbers_survive_a_restart(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(fills(2), 0)
    journal.close()
    journal = open_journal()
    assert journal.newest == 2
    assert seqs(journal, 0) == [1, 2]
    assert journal.append(fills(1), 0)[0].seq == 3


def test_a_number_is_not_given_again_after_every_event_was_pruned(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(fills(3), 0)
    journal.prune(31 * DAY_MS)
    assert seqs(journal, 3) == []
    journal.close()
    journal = open_journal()
    assert journal.newest == 3
    assert not journal.has(2)
    assert journal.has(3)
    assert journal.append(fills(1), 0)[0].seq == 4


def test_pruning_deletes_what_is_older_than_its_days_and_no_more(open_journal: Open) -> None:
    journal = open_journal()
    for day in range(3):
        journal.append(fills(1), day * DAY_MS)
    journal.prune(31 * DAY_MS)
    assert not journal.has(0)
    assert journal.has(1)
    assert seqs(journal, 1) == [2, 3]


def test_a_clock_that_was_set_back_does_not_punch_a_hole(open_journal: Open) -> None:
    journal = open_journal()
    for time_ms in (40 * DAY_MS, 0, 40 * DAY_MS):
        journal.append(fills(1), time_ms)
    journal.prune(41 * DAY_MS)
    assert journal.has(0)
    assert seqs(journal, 0) == [1, 2, 3]


def test_positions_outside_the_journal_are_not_had(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(fills(2), 0)
    assert [journal.has(after) for after in (-1, 0, 1, 2, 3)] == [False, True, True, True, False]


def test_a_replay_does_not_step_over_a_hole(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(fills(6), 0)
    journal.close()
    database = sqlite3.connect(path)
    try:
        database.execute("DELETE FROM event WHERE seq = 3")
        database.commit()
    finally:
        database.close()
    journal = open_journal()
    assert [journal.has(after) for after in (1, 2, 3)] == [False, False, True]
    assert seqs(journal, 3) == [4, 5, 6]


def test_a_long_replay_comes_in_chunks_of_a_thousand(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(fills(CHUNK_EVENTS + 1), 0)
    first = journal.read(0, None)
    assert (first.last, first.more, len(frames.decode(first.body))) == (CHUNK_EVENTS, True, CHUNK_EVENTS)
    rest = journal.read(first.last, None)
    assert (rest.last, rest.more, len(frames.decode(rest.body))) == (CHUNK_EVENTS + 1, False, 1)


def test_a_replay_of_large_events_comes_in_chunks_of_bounded_size(open_journal: Open) -> None:
    journal = open_journal()
    journal.append([*fills(5, text="x" * 200_000), *fills(1, text="x" * (CHUNK_BYTES + 1)), *fills(1)], 0)
    after, sizes = 0, []
    while True:
        chunk = journal.read(after, None)
        sizes.append((len(frames.decode(chunk.body)), len(chunk.body) <= CHUNK_BYTES))
        if not chunk.more:
            break
        after = chunk.last
    assert sizes == [(2, True), (2, True), (1, True), (1, False), (1, True)]
    assert seqs(journal, 0) == [1, 2, 3, 4, 5, 6, 7]


def test_a_full_disk_loses_no_event_and_says_so_once(open_journal: Open, caplog: pytest.LogCaptureFixture) -> None:
    journal = open_journal()
    journal.append(fills(1), 0)
    limit_disk(journal, 1)
    with caplog.at_level(logging.WARNING):
        assert [event.seq for event in journal.append(fills(2, "1", "x" * 5000), 0)] == [2, 3]
        assert [event.seq for event in journal.append(fills(1, "2", "x" * 5000), 0)] == [4]
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "seq 2" in caplog.text
        assert journal.newest == 4
        assert seqs(journal, 0) == [1, 2, 3, 4]
        assert seqs(journal, 2, "2") == [4]
        limit_disk(journal, 1_000_000)
        journal.save()
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    journal.close()
    assert seqs(open_journal(), 0) == [1, 2, 3, 4]


def test_an_event_after_the_disk_has_room_again_takes_the_waiting_ones_along(open_journal: Open) -> None:
    journal = open_journal()
    limit_disk(journal, 1)
    journal.append(fills(1, text="x" * 5000), 0)
    limit_disk(journal, 1_000_000)
    journal.append(fills(1), 0)
    journal.close()
    assert seqs(open_journal(), 0) == [1, 2]


def test_closing_on_a_full_disk_names_the_events_that_are_lost(
    open_journal: Open, caplog: pytest.LogCaptureFixture
) -> None:
    journal = open_journal()
    journal.append(fills(1), 0)
    limit_disk(journal, 1)
    journal.append(fills(2, text="x" * 5000), 0)
    journal.close()
    assert "without seq 2 to 3" in caplog.text
    journal = open_journal()
    # Who has seen them is told that they cannot be replayed, not that there is nothing new.
    assert not journal.has(3)


def test_what_waits_for_a_full_disk_is_bounded_and_its_loss_is_admitted(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_UNSAVED", 2)
    journal = open_journal()
    journal.append(fills(1), 0)
    limit_disk(journal, 1)
    journal.append(fills(3, text="x" * 5000), 0)
    assert [journal.has(after) for after in (0, 1, 2)] == [False, False, True]
    assert seqs(journal, 2) == [3, 4]


def test_pruning_while_the_disk_is_full_keeps_what_waits_in_memory(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(fills(1), 0)
    limit_disk(journal, 1)
    journal.append(fills(2, text="x" * 5000), 40 * DAY_MS)
    journal.prune(40 * DAY_MS)
    assert journal.has(1)
    assert not journal.has(0)
    assert seqs(journal, 1) == [2, 3]


def test_a_second_feeder_on_the_same_file_is_refused(open_journal: Open, path: Path) -> None:
    open_journal()
    with pytest.raises(ConfigError, match="locked"):
        Journal(path, days=30)


def test_a_file_that_is_no_journal_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("not a database, and long enough to be looked at" * 100, encoding="utf-8")
    with pytest.raises(ConfigError, match="not a database"):
        Journal(path, days=30)


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
        journal.append(fills(2, account=str(day)), day * DAY_MS)
    since = [(time_ms, frames.decode(body)["seq"]) for time_ms, body in journal.since(2 * DAY_MS)]
    assert since == [(2 * DAY_MS, 3), (2 * DAY_MS, 4), (3 * DAY_MS, 5), (3 * DAY_MS, 6)]
