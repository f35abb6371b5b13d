"""Rates a second, and the growth in the last hour."""

from __future__ import annotations

from qmt_bridge.observation.rates import Rates


def test_rate_is_over_the_last_seconds() -> None:
    rates = Rates()
    for second in range(100):
        rates.note({"sent": 10 * second if second < 50 else 500 + 100 * (second - 50)}, float(second))
    assert rates.rate("sent") == 100.0


def test_rate_is_zero_before_the_second_note() -> None:
    rates = Rates()
    assert rates.in_hour("sent") == 0
    rates.note({"sent": 7}, 0.0)
    assert (rates.rate("sent"), rates.in_hour("sent")) == (0.0, 0)


def test_hour_counts_what_has_grown_since() -> None:
    rates = Rates()
    for minute in range(180):
        rates.note({"lost": minute}, 60.0 * minute)
    assert rates.in_hour("lost") == 60


def test_notes_are_bounded() -> None:
    rates = Rates()
    for second in range(10_000):
        rates.note({"sent": second}, float(second))
    assert len(rates._noted) < 10
    assert len(rates._minutes) < 65
