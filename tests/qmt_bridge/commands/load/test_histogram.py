"""Percentiles of counted times."""

from __future__ import annotations

import pytest

from qmt_bridge.commands.load.histogram import Histogram


def test_percentiles_are_right_to_one_percent():
    times = Histogram()
    for ms in range(1, 1001):
        times.add(float(ms))
    assert times.percentile(0.5) == pytest.approx(500, rel=0.01)
    assert times.percentile(0.99) == pytest.approx(990, rel=0.01)
    assert times.percentile(0.999) == pytest.approx(999, rel=0.01)
    assert times.percentile(1.0) == pytest.approx(1000, rel=0.01)


def test_no_time_has_no_percentile():
    assert Histogram().shown() == {"p50": None, "p99": None, "p99.9": None}


def test_a_clock_that_is_behind_gives_no_negative_time():
    times = Histogram()
    times.add(-3.0)
    assert times.percentile(0.5) == pytest.approx(0.001)
