"""The events of a real journal from one moment to another, and what is told of those that it does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.events import Unsent
from feeder.journal import journal as journal_module
from feeder.journal.journal import Journal
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire import frames
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.positions import Position

DAY_MS = 24 * 3600 * 1000
# The first feeder was started at nine in the morning.
DAY = midnight(1_764_300_000_000)
NINE = DAY + 9 * 3_600_000
MINUTE = 60_000
EPOCH = NINE * 1_000_000
Open = Callable[..., Journal]


@pytest.fixture
def open_journal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Journal] = []

    def open_one(at_ms: int = NINE, max_mb: int = 0) -> Journal:
        while opened:
            opened.pop().close()
        opened.append(Journal(tmp_path / "journal-sim.sqlite3", days=30, max_mb=max_mb))
        opened[-1].begin_epoch(at_ms * 1_000_000)
        return opened[-1]

    yield open_one
    for journal in opened:
        journal.close()


def write(journal: Journal, *times: int, account: str = "1", text: str = "") -> None:
    """Write an event that came at each of these times."""
    for ms in times:
        unsent = [Unsent(account, "order", msgspec.Raw(frames.encode({"text": text})))]
        journal.append(journal.positions.give(unsent, ms))


def seqs(journal: Journal, start: int | str, end: int | str | None = None, account: str | None = None) -> list[Any]:
    span = journal.find(start, end, account)
    chunk = journal.read(span.after, account, until=span.until)
    assert not chunk.more
    return [event["seq"] for event in frames.decode(chunk.body)]


def test_events_of_a_part_of_the_day_are_found(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, *(NINE + minute * MINUTE for minute in range(10)))
    assert seqs(journal, "09:03") == [4, 5, 6, 7, 8, 9, 10]
    assert seqs(journal, "09:03:00.001", "09:06") == [5, 6]
    assert seqs(journal, NINE + 8 * MINUTE) == [9, 10]
    assert seqs(journal, "09:03", "09:03") == []
    assert seqs(journal, "09:03", NINE - 10 * DAY_MS) == []
    assert seqs(journal, "15:00") == []


def test_accounts_events_are_found_by_their_own_numbers(open_journal: Open) -> None:
    journal = open_journal()
    for minute in range(10):
        write(journal, NINE + minute * MINUTE, account="12"[minute % 2])
    span = journal.find("09:04", None, "2")
    # 09:05 is the third event of this account.
    assert (span.after, span.until, span.from_ms) == (2, 5, NINE + 5 * MINUTE)
    assert seqs(journal, "09:04", "09:08", "2") == [6, 8]


def test_time_of_day_is_of_the_day_of_the_newest_event(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, NINE, NINE + DAY_MS, NINE + DAY_MS + MINUTE)
    assert seqs(journal, "09:00") == [2, 3]
    assert seqs(journal, NINE) == [1, 2, 3]


def test_journal_without_events_takes_the_day_of_its_feeder(open_journal: Open) -> None:
    span = open_journal().find("09:30", "10:00")
    assert (span.after, span.until, span.start_ms, span.end_ms) == (0, 0, NINE + 30 * MINUTE, NINE + 60 * MINUTE)
    assert (span.from_ms, span.missing) == (None, None)


def test_start_since_the_first_feeder_is_complete(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, NINE + 45 * MINUTE)
    assert journal.find("09:30", None).missing is None
    assert journal.find("09:00", None).missing is None


def test_start_before_the_first_feeder_is_told(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, NINE + 45 * MINUTE)
    hole = Hole("store_began", None, Position(EPOCH, 1), None, NINE + 45 * MINUTE)
    assert journal.find("08:59", None).missing == hole
    later = open_journal(NINE + DAY_MS)
    assert later.find(NINE - 1, None).missing == msgspec.structs.replace(
        hole, before=Position(EPOCH + DAY_MS * 10**6, 1)
    )
    assert later.find(NINE, None).missing is None


def test_old_events_that_were_deleted_are_told(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, NINE, NINE + MINUTE, NINE + 20 * DAY_MS)
    while journal.prune(NINE + 40 * DAY_MS):
        pass
    assert journal.oldest() == 2
    missing = journal.find(NINE, None).missing
    assert missing is not None
    assert (missing.reason, missing.before, missing.until_ms) == ("removed", Position(EPOCH, 3), NINE + 20 * DAY_MS)
    assert journal.find(NINE + MINUTE, None).missing is not None
    assert journal.find(NINE + MINUTE + 1, None).missing is None
    # The next feeder knows only that they came before the first one that is left.
    again = open_journal(NINE + 41 * DAY_MS)
    assert again.find(NINE + 2 * MINUTE, None).missing is not None
    assert again.find(NINE + 20 * DAY_MS + 1, None).missing is None


def test_without_any_event_left_what_came_since_is_complete(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, NINE)
    while journal.prune(NINE + 40 * DAY_MS):
        pass
    again = open_journal(NINE + 40 * DAY_MS)
    assert again.find("09:30", None).missing is None
    missing = again.find("08:30", None).missing
    assert missing == Hole("removed")


def test_events_that_were_never_written_are_told(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_UNSAVED_BYTES", 2000)
    journal = open_journal()
    write(journal, NINE)
    journal.failure = "the test"
    write(journal, *(NINE + minute * MINUTE for minute in range(1, 10)), text="x" * 500)
    oldest = journal.oldest()
    assert 1 < oldest < 10
    missing = journal.find("09:01", None).missing
    assert missing is not None
    assert (missing.reason, missing.before) == ("gap", Position(EPOCH, oldest + 1))
    journal.failure = None


def test_events_that_wait_for_the_disk_are_found_too(open_journal: Open) -> None:
    journal = open_journal()
    write(journal, NINE, NINE + MINUTE, account="1")
    journal.failure = "the test"
    write(journal, NINE + 2 * MINUTE, account="2")
    write(journal, NINE + 3 * MINUTE, NINE + 4 * MINUTE, account="1")
    for ms, found in ((NINE + 1, [2, 3, 4, 5]), (NINE + MINUTE + 1, [3, 4, 5]), (NINE + 3 * MINUTE + 1, [5])):
        assert seqs(journal, ms) == found
    assert seqs(journal, NINE + MINUTE, NINE + 4 * MINUTE, "1") == [2, 4]
    assert seqs(journal, NINE + MINUTE + 1, account="1") == [4, 5]
    journal.failure = None


@pytest.mark.parametrize(("start", "end"), [("x", None), ("09:30", "x")])
def test_what_is_no_part_of_a_day_is_refused(open_journal: Open, start: str, end: int | str | None) -> None:
    with pytest.raises(BadRequest):
        open_journal().find(start, end)
