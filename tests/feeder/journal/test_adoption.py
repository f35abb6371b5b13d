"""A journal goes on when pushers come beside its source, or go; a file with the earlier name is found again."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from itertools import product
from pathlib import Path

import msgspec
import pytest

from feeder.events import Unsent
from feeder.journal import adoption
from feeder.journal.journal import Journal
from qmt_bridge.config import WITH_PUSH
from qmt_bridge.journal_file import Reader, find_journal, journal_files, journal_path
from qmt_bridge.wire.positions import JournalPosition


def run(folder: Path, source: str, epoch: int, count: int = 2) -> Journal:
    """Run a feeder of a source: begin an epoch, write `count` events; return the closed journal."""
    path, earlier = journal_files(folder, source, invented=False)
    return add(Journal(path, days=30, earlier=earlier), epoch, count)


def add(journal: Journal, epoch: int, count: int = 2) -> Journal:
    journal.begin_epoch(epoch)
    journal.append(journal.positions.give([Unsent("1", "order", msgspec.Raw(b"{}"))] * count, epoch))
    journal.close()
    return journal


def run_earlier(folder: Path, source: str, epoch: int, count: int = 2) -> None:
    """Run a feeder of the earlier version, whose file is named by the source."""
    add(Journal(journal_path(folder, source), days=30), epoch, count)


def at(seq: int, epoch: int) -> JournalPosition:
    return JournalPosition(seq, epoch, exact=True)


def seqs(path: Path) -> list[int]:
    with Reader(path) as reader:
        assert list(reader.faults()) == []
        return [row.seq for row in reader.rows()]


def names(folder: Path) -> list[str]:
    # A program that only read leaves what SQLite keeps beside a file.
    found = (path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm", ".lock")))
    return sorted(found, key=len)


@pytest.mark.parametrize("source", ["xtquant", "demo"])
def test_one_journal_whether_pushers_are_there(tmp_path: Path, source: str) -> None:
    for number, order in enumerate(product((source, source + WITH_PUSH), repeat=3)):
        folder = tmp_path / str(number)
        for start, each in enumerate(order, 1):
            journal = run(folder, each, start * 1000)
            # Every earlier epoch is known, with the positions that it had.
            assert all(journal.has(at(2 * past, past * 1000), None) for past in range(1, start + 1))
            assert journal.has(at(3, 1000), None) == (start == 1)
        assert names(folder) == [f"journal-{source}.sqlite3"]
        assert seqs(find_journal(folder, order[-1])) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("source", ["sim", "replay"])
def test_pushed_events_are_not_among_invented_ones(tmp_path: Path, source: str) -> None:
    for each in (source, source + WITH_PUSH):
        path, earlier = journal_files(tmp_path, each, invented=source == "sim")
        assert (path, earlier) == (journal_path(tmp_path, each), None)


@pytest.mark.parametrize("source", ["xtquant", "xtquant+push"])
def test_a_file_of_the_earlier_name_goes_on(tmp_path: Path, source: str) -> None:
    run_earlier(tmp_path, "xtquant+push", 1000)
    journal = run(tmp_path, source, 2000)
    assert names(tmp_path) == ["journal-xtquant.sqlite3"]
    assert journal.has(at(2, 1000), None)
    assert not journal.has(at(3, 1000), None)
    assert seqs(find_journal(tmp_path, source)) == [1, 2, 3, 4]


def test_events_in_the_log_of_a_killed_feeder_move_too(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    journal = Journal(journal_path(tmp_path / "live", "xtquant+push"), days=30)
    journal.begin_epoch(1000)
    journal.append(journal.positions.give([Unsent("1", "order", msgspec.Raw(b"{}"))] * 5, 1))
    for file in (tmp_path / "live").iterdir():
        if "journal" in file.name and not file.name.endswith("-shm"):
            (folder / file.name).write_bytes(file.read_bytes())
    journal.close()
    assert (folder / "journal-xtquant+push.sqlite3-wal").stat().st_size
    run(folder, "xtquant", 2000)
    assert names(folder) == ["journal-xtquant.sqlite3"]
    assert seqs(folder / "journal-xtquant.sqlite3") == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("source", ["xtquant", "xtquant+push"])
@pytest.mark.parametrize(
    "order",
    [
        pytest.param(["xtquant", "xtquant+push"], id="pushers-last"),
        pytest.param(["xtquant+push", "xtquant"], id="alone-last"),
        pytest.param(["xtquant", "xtquant+push", "xtquant"], id="alone-again"),
    ],
)
def test_of_two_files_that_used_last_goes_on(
    tmp_path: Path, order: Sequence[str], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Positions of the one go on to be true, those of the other are refused, and its events stay in a file."""
    counts = {"xtquant": 3, "xtquant+push": 2}
    for start, each in enumerate(order, 1):
        run_earlier(tmp_path, each, start * 1000, counts[each])
    last, newest = order[-1], len(order) * 1000
    had = counts[last] * order.count(last)
    other = next(each for each in counts if each != last)
    journal = run(tmp_path, source, 9000)
    assert journal.has(at(had, newest), None)
    assert not journal.has(at(1, (order.index(other) + 1) * 1000), None)
    kept, aside = names(tmp_path)
    assert (kept, aside.partition(".earlier-")[0]) == ("journal-xtquant.sqlite3", f"journal-{other}.sqlite3")
    assert aside in caplog.text
    assert seqs(tmp_path / kept) == list(range(1, had + 3))
    assert seqs(tmp_path / aside) == list(range(1, counts[other] + 1))
    # Once: at the next start nothing has to be done.
    run(tmp_path, source, 10_000)
    assert names(tmp_path) == [kept, aside]


def test_a_file_that_is_in_use_goes_on_at_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "_OPEN_SECONDS", 0.01)
    run_earlier(tmp_path, "xtquant", 1000, 3)
    run_earlier(tmp_path, "xtquant+push", 2000)
    path = journal_path(tmp_path, "xtquant+push")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        # A reader of what another connection has just written: the log cannot be emptied.
        other.execute("BEGIN")
        other.execute("SELECT * FROM event").fetchall()
        with closing(sqlite3.connect(path)) as writer, writer:
            writer.execute("PRAGMA user_version=2")
            writer.execute("CREATE TABLE IF NOT EXISTS notes (text)")
        run(tmp_path, "xtquant", 3000)
    assert "it is used at its place" in caplog.text
    assert seqs(path) == [1, 2, 3, 4]
    assert seqs(journal_path(tmp_path, "xtquant")) == [1, 2, 3]
    # At the next start, without the reader, it is renamed.
    assert run(tmp_path, "xtquant", 4000).has(at(4, 3000), None)
    assert seqs(journal_path(tmp_path, "xtquant")) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damaged", ["xtquant", "xtquant+push"])
def test_of_two_files_a_damaged_one_is_set_aside(tmp_path: Path, damaged: str) -> None:
    run_earlier(tmp_path, "xtquant", 1000)
    run_earlier(tmp_path, "xtquant+push", 2000)
    journal_path(tmp_path, damaged).write_bytes(b"no database, and longer than that" * 100)
    run(tmp_path, "xtquant", 3000)
    assert seqs(journal_path(tmp_path, "xtquant")) == [1, 2, 3, 4]
    assert len(names(tmp_path)) == 2


def test_a_damaged_file_of_the_earlier_name_is_set_aside(tmp_path: Path) -> None:
    journal_path(tmp_path, "xtquant+push").write_bytes(b"no database, and longer than that" * 100)
    run(tmp_path, "xtquant", 3000)
    run(tmp_path, "xtquant", 4000)
    kept, aside = names(tmp_path)
    assert (kept, aside.partition(".damaged-")[0]) == ("journal-xtquant.sqlite3", "journal-xtquant+push.sqlite3")
    assert seqs(tmp_path / kept) == [1, 2, 3, 4]
