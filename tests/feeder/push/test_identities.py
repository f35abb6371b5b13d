"""Identities of trade events: a model test, the window, the bound. Pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from feeder.push.identities import WINDOW_MS, Identities

HOUR_MS = 3600 * 1000
NOW = 1_796_000_000_000


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40 * HOUR_MS)), max_size=60))
def test_an_event_is_new_once_in_three_days(steps: list[tuple[int, int]]) -> None:
    found, now = Identities(), NOW
    seen: dict[int, int] = {}
    for number, passed in steps:
        now += passed
        is_new = found.note("1", f"order/{number}", now)
        before = seen.get(number)
        if before is None:
            assert is_new
        elif now - before <= WINDOW_MS:
            assert not is_new
        elif now - before > WINDOW_MS + HOUR_MS:
            assert is_new
        seen[number] = now


def test_what_the_window_has_passed_is_new_again() -> None:
    found = Identities()
    assert found.note("1", "a", NOW)
    assert found.note("1", "b", NOW + 33 * HOUR_MS)
    assert found.note("1", "a", NOW + WINDOW_MS + HOUR_MS + 1)


def test_account_and_id_are_not_mixed_up() -> None:
    found = Identities()
    assert found.note("1", "2/3", NOW)
    assert found.note("12", "/3", NOW)
    assert found.note("", "12/3", NOW)


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    found = Identities()
    assert found.note("1", "a", NOW)
    assert found.note("1", "b", NOW - 10 * WINDOW_MS)
    assert not found.note("1", "a", NOW)
    assert not found.note("1", "b", NOW)


def test_beyond_the_bound_the_oldest_are_late() -> None:
    found = Identities(most=3)
    for number in range(4):
        assert found.note("1", str(number), NOW + number * HOUR_MS)
    now = NOW + 4 * HOUR_MS
    assert len(found) == 3
    # Those of the first hour may have been published: they cannot be told from news.
    assert found.is_late(NOW, now)
    assert not found.is_late(NOW + HOUR_MS, now)
    assert not found.note("1", "1", now)


def test_what_comes_again_is_not_the_oldest_any_more() -> None:
    found = Identities(most=3)
    for hour, name in enumerate(("a", "b", "c", "a", "d")):
        found.note("1", name, NOW + hour * HOUR_MS)
    # The second one is forgotten, and nothing that came after it.
    now = NOW + 5 * HOUR_MS
    assert found.is_late(NOW + HOUR_MS, now)
    assert not found.is_late(NOW + 2 * HOUR_MS, now)
    assert not found.note("1", "a", now)


def test_what_is_older_than_the_window_is_late() -> None:
    found = Identities()
    assert not found.is_late(NOW - WINDOW_MS, NOW)
    assert found.is_late(NOW - WINDOW_MS - 1, NOW)
