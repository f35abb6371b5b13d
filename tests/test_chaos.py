"""The verdict of the chaos runs: it has to count every lost, repeated and reordered event."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.chaos import program
from tests.chaos.leaks import Memory
from tests.chaos.verdict import Received, Verdict, digest, journaled, judge, received

JOURNAL = {seq: 100 + seq for seq in range(1, 6)}


def events(*seqs: int) -> list[Received]:
    return [Received(seq, JOURNAL.get(seq, 0)) for seq in seqs]


@pytest.mark.parametrize(
    ("got", "verdict"),
    [
        pytest.param((1, 2, 3, 4, 5), Verdict(0, 0, 0, 0), id="all"),
        pytest.param((1, 2, 3, 4), Verdict(0, 0, 0, 0), id="up-to-the-last"),
        pytest.param((1, 2, 4), Verdict(1, 0, 0, 0), id="lost"),
        pytest.param((), Verdict(4, 0, 0, 0), id="all-lost"),
        pytest.param((1, 2, 2, 3, 4), Verdict(0, 1, 0, 0), id="twice"),
        pytest.param((1, 3, 2, 4), Verdict(0, 0, 1, 0), id="late"),
        pytest.param((1, 2, 3, 4, 9), Verdict(0, 0, 0, 1), id="not-in-the-journal"),
    ],
)
def test_each_difference_is_counted_by_its_kind(got: tuple[int, ...], verdict: Verdict) -> None:
    assert judge(events(*got), JOURNAL, last=4) == verdict
    assert verdict.is_clean == (verdict == (0, 0, 0, 0))


def test_other_content_at_the_same_position_is_foreign() -> None:
    assert judge([Received(1, 1)], {1: 2}, last=1) == Verdict(0, 0, 0, 1)


def test_checksum_depends_on_the_content_not_on_the_encoding() -> None:
    event = {"type": "order", "seq": 7, "data": {"price": 1.5, "b": None, "a": "字"}}
    shuffled = {"seq": 7, "data": {"a": "字", "b": None, "price": 1.5}, "type": "order"}
    assert journaled([(7, msgspec.json.encode(event))]) == {7: digest(shuffled)}
    assert received(shuffled) == (7, digest(event))
    assert digest({**event, "data": {"price": 1.6}}) != digest(event)
    assert digest({**event, "type": "trade"}) != digest(event)


def test_line_that_was_cut_short_by_a_kill_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert program.read(path) == []
    path.write_bytes(b"1 11\n2 22\n3 3")
    assert program.read(path) == [Received(1, 11), Received(2, 22)]
    assert path.read_bytes() == b"1 11\n2 22\n"
    path.write_bytes(b"1 1")
    assert program.read(path) == []
    assert path.read_bytes() == b""


def test_growing_process_is_found_and_a_new_one_is_not_judged() -> None:
    memory = Memory()
    for second in range(0, 1000, 2):
        # The first minutes do not count, and neither does a short peak.
        memory.note("leaky", 1, second, 10.0 + second / 10 if second > 100 else 1.0)
        memory.note("flat", 2, second, 500.0 if second == 500 else 50.0)
        if second > 800:
            memory.note("young", 3, second, second)
    leaky, flat = memory.processes()
    assert (leaky.name, flat.name, flat.growth) == ("leaky", "flat", 0.0)
    assert leaky.growth > 1.0
