"""The growth of counters over the last minutes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmt_bridge.alerts.window import Window, Windows


def test_what_was_counted_before_the_first_look_does_not_count() -> None:
    window = Window(60.0)
    assert [window.note(float(at), total) for at, total in [(0, 500), (1, 500), (2, 507)]] == [0, 0, 7]


def test_growth_leaves_the_window() -> None:
    window = Window(60.0)
    window.note(0.0, 0)
    window.note(10.0, 5)
    assert window.note(40.0, 8) == 8
    assert window.growth(69.9) == 8
    assert window.growth(70.0) == 3
    assert window.growth(100.0) == 0


def test_a_counter_that_begins_anew_counts_from_zero() -> None:
    window = Window(60.0)
    window.note(0.0, 100)
    assert window.note(1.0, 4) == 4


def test_a_name_that_is_new_in_the_table_began_with_nothing() -> None:
    windows = Windows(60.0)
    windows.note(0.0, {"a": 50})
    windows.note(1.0, {"a": 51, "b": 3})
    assert windows.growths(2.0) == {"a": 1, "b": 3}
    windows.note(70.0, {"a": 51})
    assert windows.growths(70.0) == {"a": 0}


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 9)), min_size=1, max_size=200))
def test_the_window_holds_at_least_its_time_and_few_steps(growths: list[tuple[float, int]]) -> None:
    window, now, total, history = Window(60.0), 0.0, 0, []
    window.note(now, total)
    for pause, grown in growths:
        now, total = now + pause, total + grown
        history.append((now, grown))
        found = window.note(now, total)
        exact = sum(grown for at, grown in history if at > now - 60.0)
        # A step is kept as long as its begin, so what is younger than the window less a step is always counted.
        surely = sum(grown for at, grown in history if at > now - 59.0)
        assert surely <= found <= exact
        assert len(window._steps) <= 61
