"""The declaration of a worker's numbers: every counter has a description, and pages show declared ones only."""

from __future__ import annotations

from gateway.counters import COUNTED, MOST_CUT, OTHERS, Counts, CutOffs
from gateway.status import SHOWN


def test_every_counter_is_described_once() -> None:
    assert set(COUNTED) == set(Counts._fields)


def test_cut_offs_of_many_clients_are_counted_together() -> None:
    cut_offs = CutOffs()
    for number in range(MOST_CUT + 50):
        cut_offs.note(f"10.0.0.{number}")
    cut_offs.note("10.0.0.7")
    assert len(cut_offs.counts) == MOST_CUT + 1
    assert (cut_offs.counts["10.0.0.7"], cut_offs.counts[OTHERS]) == (2, 50)


def test_readiness_shows_only_declared_counters() -> None:
    assert set(SHOWN) <= set(Counts._fields)
