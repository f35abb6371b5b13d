"""Which workers attend, and who waits for what they find."""

from __future__ import annotations

import pytest

from feeder import roll as roll_module
from feeder.roll import ENDED_AFTER, FORGOTTEN_AFTER, Roll
from qmt_bridge.errors import BadRequest

A, B, C = (b"a",), (b"b",), (b"c",)


def attending() -> Roll:
    roll = Roll()
    for name, peer in (("bbbbbbbb", B), ("aaaaaaaa", A), ("cccccccc", C)):
        assert roll.attend(name, peer, 0.0)
    return roll


def test_survey_goes_to_all_but_the_one_that_asks() -> None:
    number, asked = attending().begin(A, 7, None, 1.0)
    assert asked == {"bbbbbbbb": B, "cccccccc": C}
    assert list(asked) == sorted(asked)
    assert number == 1


def test_survey_of_one_goes_to_it_alone() -> None:
    roll = attending()
    assert roll.begin(A, 7, "cccccccc", 1.0)[1] == {"cccccccc": C}
    assert roll.begin(A, 7, "dddddddd", 1.0)[1] == {}


def test_finding_goes_to_the_one_that_asked() -> None:
    roll = attending()
    number, _ = roll.begin(A, 7, None, 1.0)
    found = roll.asker(number, 2.0)
    assert found is not None
    assert (found.peer, found.number) == (A, 7)
    assert roll.asker(number + 1, 2.0) is None


def test_late_finding_has_nobody_who_waits() -> None:
    roll = attending()
    number, _ = roll.begin(A, 7, None, 1.0)
    assert roll.asker(number, 1.0 + ENDED_AFTER) is None


def test_silent_worker_is_known_for_a_while() -> None:
    roll = attending()
    assert not roll.attend("aaaaaaaa", A, 30.0)
    assert roll.begin((b"d",), 1, None, FORGOTTEN_AFTER - 1)[1].keys() == {"aaaaaaaa", "bbbbbbbb", "cccccccc"}
    assert roll.begin((b"d",), 1, None, FORGOTTEN_AFTER)[1].keys() == {"aaaaaaaa"}


def test_worker_that_leaves_or_whose_connection_ends_is_forgotten() -> None:
    roll = attending()
    roll.leave("aaaaaaaa")
    roll.leave("aaaaaaaa")
    roll.gone(b"b")
    assert roll.begin((b"d",), 1, None, 1.0)[1] == {"cccccccc": C}
    assert len(roll) == 1


def test_worker_that_connects_again_is_asked_there() -> None:
    roll = attending()
    roll.attend("aaaaaaaa", (b"new",), 1.0)
    roll.gone(b"a")
    assert roll.begin(B, 1, "aaaaaaaa", 1.0)[1] == {"aaaaaaaa": (b"new",)}


def test_workers_and_surveys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_module, "MOST_WORKERS", 3)
    monkeypatch.setattr(roll_module, "MOST_SURVEYS", 2)
    roll = attending()
    with pytest.raises(BadRequest, match="more than 3 workers"):
        roll.attend("dddddddd", (b"d",), 1.0)
    assert not roll.attend("aaaaaaaa", A, 1.0)
    roll.begin(A, 1, None, 1.0)
    roll.begin(A, 2, None, 2.0)
    with pytest.raises(BadRequest, match="more than 2 surveys"):
        roll.begin(A, 3, None, 3.0)
    assert roll.begin(A, 3, None, 1.0 + ENDED_AFTER)[0] == 3
