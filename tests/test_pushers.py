"""Pushers that are killed: a short run of `make pushers`, and its judgement, which has to find every difference."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from tests.chaos.pushers import differences, torment


@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a chaos run are ended by signals")
async def test_no_event_is_lost_or_doubled_by_kills(tmp_path: Path) -> None:
    assert await torment(tmp_path, kills=3, seed=1, feeder_every=2) == []


def rows(*numbers: int, seqs: list[int] | None = None) -> list[tuple[int, bytes]]:
    bodies = [msgspec.json.encode({"data": {"push_id": f"order/{number}"}}) for number in numbers]
    return list(zip(seqs or range(1, len(numbers) + 1), bodies, strict=True))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        pytest.param(rows(0, 1, 2), [], id="all"),
        pytest.param(rows(0, 1, 2, 3), [], id="more-than-asked-for"),
        pytest.param(rows(0, 1), ["the journal has 2 events of 3"], id="lost-at-the-end"),
        pytest.param(rows(0, 2, 3), ["2 events of the journal are at another place"], id="lost"),
        pytest.param(rows(0, 1, 1, 2), ["2 events of the journal are at another place"], id="twice"),
        pytest.param(rows(0, 2, 1), ["2 events of the journal are at another place"], id="out-of-order"),
        pytest.param(rows(0, 1, 2, seqs=[1, 2, 4]), ["the journal has gaps"], id="gap"),
    ],
)
def test_each_difference_of_the_journal_is_found(found: list[tuple[int, bytes]], said: list[str]) -> None:
    assert [each.partition(", ")[0] for each in differences(found, 3)] == said
