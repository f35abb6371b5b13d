"""The one declaration of a worker's numbers: every counter is described, and what pages show of them exists."""

from __future__ import annotations

from gateway.counters import COUNTED, Counts
from gateway.status import SHOWN


def test_every_counter_is_described_once() -> None:
    assert set(COUNTED) == set(Counts._fields)


def test_readiness_shows_only_declared_counters() -> None:
    assert set(SHOWN) <= set(Counts._fields)
