"""The declaration of a worker's numbers: every counter has a description, and pages show declared ones only."""

from __future__ import annotations

from gateway.counters import COUNTED, Counts
from gateway.status import SHOWN


def test_every_counter_is_described_once() -> None:
    assert set(COUNTED) == set(Counts._fields)


def test_readiness_shows_only_declared_counters() -> None:
    assert set(SHOWN) <= set(Counts._fields)
