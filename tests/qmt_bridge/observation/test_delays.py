"""Delays by class: percentiles, the window, and the time in a body."""

from __future__ import annotations

import pytest

from qmt_bridge.observation.delays import Delays, exchange_delay, percentiles


def test_percentiles_are_those_of_what_was_added() -> None:
    delays = Delays()
    for ms in range(1, 101):
        delays.add(ms / 1000, 0.0)
    found = percentiles(delays.counts(1.0))
    assert found.count == 100
    assert found.p50 == pytest.approx(0.050, rel=0.06)
    assert found.p99 == pytest.approx(0.099, rel=0.06)


def test_counts_of_several_processes_add_up() -> None:
    first, second = Delays(), Delays()
    for _ in range(98):
        first.add(0.001, 0.0)
    second.add(1.0, 0.0)
    second.add(1.0, 0.0)
    found = percentiles(first.counts(0.0), second.counts(0.0))
    assert (found.count, found.p50, found.p99) == (
        100,
        pytest.approx(0.001, rel=0.06),
        pytest.approx(1.0, rel=0.06),
    )


def test_nothing_added_has_no_percentiles() -> None:
    found = percentiles(Delays().counts(0.0))
    assert (found.p50, found.p99, found.count) == (None, None, 0)


def test_delays_count_for_half_a_minute_at_least() -> None:
    delays = Delays()
    delays.add(1.0, 0.0)
    delays.add(2.0, 29.0)
    assert sum(delays.counts(31.0).values()) == 2
    assert sum(delays.counts(59.0).values()) == 2
    assert delays.counts(61.0) == {}


def test_delays_before_a_long_pause_are_forgotten() -> None:
    delays = Delays()
    delays.add(1.0, 0.0)
    delays.add(1.0, 1000.0)
    assert sum(delays.counts(1000.0).values()) == 1


def test_negative_delay_counts_as_none() -> None:
    delays = Delays()
    delays.add(-1.0, 0.0)
    assert delays.counts(0.0) == {0: 1}


@pytest.mark.parametrize(
    ("body", "delay"),
    [
        (b'{"600519.SH":[{"time":1795904107604,"lastPrice":1}]}', 0.05),
        (b'{"600519.SH":[{"lastPrice":1,"timeTag":1795904107604}]}', 0.05),
        (b'{"600519.SH":[{"lastPrice":1}]}', None),
        (b'{"600519.SH":[{"time":17959041}]}', None),
        # Of another day.
        (b'{"600519.SH":[{"time":1795804107604}]}', None),
    ],
)
def test_time_of_a_record_says_how_long_it_took(body: bytes, delay: float | None) -> None:
    found = exchange_delay(body, 1795904107654_000_000)
    assert found == (None if delay is None else pytest.approx(delay, abs=1e-3))
