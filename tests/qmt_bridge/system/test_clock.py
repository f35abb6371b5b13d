"""Clocks that step by microseconds on every system, and agree with those of Python."""

from __future__ import annotations

import time
from itertools import pairwise

from qmt_bridge.system import clock


def steps(read: object, count: int = 2000) -> list[float]:
    """Return the distances between so many different values of a clock."""
    assert callable(read)
    found: list[float] = [read()]
    while len(found) < count:
        value = read()
        if value != found[-1]:
            found.append(value)
    return [after - before for before, after in pairwise(found)]


def test_stamps_of_a_burst_differ() -> None:
    """A clock of 16 ms would give 2,000 values in half a minute, and steps of 15,625,000 ns."""
    assert sorted(steps(clock.time_ns))[1000] < 1_000_000


def test_delays_are_measured_finely() -> None:
    assert sorted(steps(clock.monotonic))[1000] < 0.001


def test_stamps_agree_with_the_clock_of_the_system() -> None:
    before = time.time_ns()
    stamp = clock.time_ns()
    after = time.time_ns()
    # The coarse clock of Windows is late by up to one step.
    assert before - 50_000_000 <= stamp <= after + 50_000_000


def test_the_steady_clock_counts_seconds_and_never_goes_back() -> None:
    assert min(steps(clock.monotonic)) > 0
    began, coarse = clock.monotonic(), time.monotonic()
    time.sleep(0.2)
    assert abs((clock.monotonic() - began) - (time.monotonic() - coarse)) < 0.1
