"""Where a moment is in a stored topic."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmt_bridge.store.database import Column
from qmt_bridge.store.layout import Record
from qmt_bridge.store.timeline import SLACK_MS, find
from qmt_bridge.store.view import View
from tests.support.stored import MemoryColumn, record


def view(*parts: list[Record]) -> View:
    return View([cast(Column, MemoryColumn(part)) for part in parts], 1)


def test_first_record_at_or_after_the_moment_is_found() -> None:
    stored = view([record(seq, seq * 10) for seq in range(1, 101)])
    assert [find(stored, ms).first for ms in (500, 501, 509)] == [record(50, 500), record(51, 510), record(51, 510)]
    assert find(stored, 501).before == record(50, 500)


def test_moment_before_the_first_record_finds_it_and_none_before() -> None:
    assert find(view([record(1, 100), record(2, 200)]), 50) == (record(1, 100), None)


def test_moment_after_the_newest_finds_only_what_is_before() -> None:
    assert find(view([record(1, 100), record(2, 200)]), 201) == (None, record(2, 200))


def test_topic_without_a_record_has_no_moment() -> None:
    assert find(view([], []), 50) == (None, None)


def test_several_records_of_one_time_are_all_found() -> None:
    stored = view([record(1, 100), record(2, 200), record(3, 200), record(4, 200)])
    assert find(stored, 200) == (record(2, 200), record(1, 100))


@pytest.mark.parametrize("cut", range(1, 5))
def test_moment_is_found_across_parts(cut: int) -> None:
    stored = [record(seq, seq * 10) for seq in range(1, 6)]
    for ms in range(5, 55):
        assert find(view(stored[:cut], stored[cut:]), ms) == find(view(stored), ms)


def test_a_feeder_that_was_started_anew_goes_on_with_the_day() -> None:
    stored = view([record(1, 100), record(2, 200), record(1, 190, epoch=8), record(2, 300, epoch=8)])
    assert find(stored, 150) == (record(2, 200), record(1, 100))
    assert find(stored, 250) == (record(2, 300, epoch=8), record(1, 190, epoch=8))
    assert find(stored, 50) == (record(1, 100), None)


def test_moment_between_two_feeders_has_the_record_before_it() -> None:
    stored = view([record(1, 100), record(2, 200), record(1, 300, epoch=8)])
    assert find(stored, 250) == (record(1, 300, epoch=8), record(2, 200))


def test_a_day_that_is_replayed_again_is_its_own() -> None:
    day = SLACK_MS * 10
    first = [record(seq, SLACK_MS * seq) for seq in range(1, 12)]
    again = [record(seq, SLACK_MS * seq, epoch=8) for seq in range(1, 12)]
    assert find(view(first + again), SLACK_MS) == (again[0], None)
    assert find(view(first + again), day) == (again[9], again[8])


def test_records_of_another_day_before_a_replay_are_not_in_it() -> None:
    today = [record(1, 10**12)]
    replayed = [record(1, 1000, epoch=8), record(2, 2000, epoch=8)]
    assert find(view(today + replayed), 500) == (replayed[0], None)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 30)), min_size=1, max_size=40), st.integers(0, 300))
def test_find_agrees_with_a_scan(steps: list[tuple[int, int]], moment: int) -> None:
    records, seq, ms = [], 0, 100
    for gap, pause in steps:
        seq, ms = seq + gap, ms + pause
        records.append(record(seq, ms))
    first = next((each for each in records if each.ms >= moment), None)
    before = next((each for each in reversed(records) if each.ms < moment), None)
    assert find(view(records), moment) == (first, before)


def test_search_reads_a_few_records_of_a_long_day() -> None:
    column = MemoryColumn([record(seq, seq * 3000) for seq in range(1, 5001)])
    found = find(View([cast(Column, column)], 1), 3000 * 2500).first
    assert found == record(2500, 3000 * 2500)
    assert column.reads < 20
