"""What is missing between stored messages."""

from __future__ import annotations

import pytest

from qmt_bridge.store.holes import Place, between, from_the_start
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.positions import Position


def place(epoch: int, seq: int, ms: int = 0) -> Place:
    return Place(Position(epoch, seq), ms)


def test_successor_has_no_hole_before_it() -> None:
    assert between(place(7, 3), place(7, 4)) == []


def test_jump_of_the_number_is_a_gap_with_both_sides() -> None:
    assert between(place(7, 3, 10), place(7, 6, 20)) == [Hole("gap", Position(7, 3), Position(7, 6), 10, 20)]


def test_first_message_of_a_new_feeder_is_after_a_restart() -> None:
    assert between(place(7, 3, 10), place(8, 1, 20)) == [Hole("restart", Position(7, 3), Position(8, 1), 10, 20)]


def test_later_message_of_a_new_feeder_is_after_a_gap_too() -> None:
    assert between(place(7, 3, 10), place(8, 5, 20)) == [
        Hole("restart", Position(7, 3), Position(8, 5), 10, 20),
        Hole("gap", Position(8, 0), Position(8, 5), 10, 20),
    ]


@pytest.mark.parametrize(("seq", "holes"), [(1, []), (2, [Hole("gap", Position(7, 0), Position(7, 2), 5, 9)])])
def test_epoch_begins_with_one(seq: int, holes: list[Hole]) -> None:
    assert from_the_start(place(7, seq, 9), 5) == holes
