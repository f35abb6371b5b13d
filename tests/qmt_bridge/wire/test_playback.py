"""The pace of stored records: one clock for all that is played together, which is set back by what is late."""

from __future__ import annotations

import math

import pytest

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.playback import LEAST_SPEED, MOST_SPEED, SLACK_SECONDS, Playback, check_speed, due

T = 1638321301000
HOUR = 3_600_000


def test_pace_is_relative_to_the_first_row() -> None:
    assert due(T, T, 1) == 0
    assert due(T + 3000, T, 1) == 3
    assert due(T + 3000, T, 300) == pytest.approx(0.01)
    assert due(T + HOUR, T, 0.5) == 7200


def test_row_before_the_first_is_due_at_once() -> None:
    assert due(T - 3000, T, 1) == 0


def test_full_speed_does_not_wait() -> None:
    assert due(T + HOUR, T, 0) == 0


def test_players_have_one_clock_that_begins_with_the_earliest() -> None:
    playback = Playback(10)
    playback.expects("a", T + 3000)
    playback.expects("b", T)
    assert playback.first_ms == T
    assert not playback.is_started
    assert playback.due("a", 5.0) == pytest.approx(5.3)
    assert playback.is_started
    # The clock goes on while nobody asks.
    assert playback.due("b", 5.1) == 5.0


def test_what_is_late_sets_the_clock_back_for_all() -> None:
    playback = Playback(1)
    playback.expects("a", T)
    playback.expects("b", T + 1000)
    assert playback.due("a", 0.0) == 0.0
    playback.expects("a", T + 2000)
    # Both are late: the earlier one is due now, and the other a second behind it.
    assert playback.due("a", 60.0) == 61.0
    assert playback.due("b", 60.0) == 60.0


def test_small_lateness_is_not_kept() -> None:
    playback = Playback(1)
    playback.expects("a", T)
    playback.due("a", 0.0)
    for number in range(1, 100):
        playback.expects("a", T + 1000 * number)
        assert playback.due("a", number + SLACK_SECONDS) == number


def test_player_that_left_holds_the_clock_no_more() -> None:
    playback = Playback(1)
    playback.expects("a", T)
    playback.expects("b", T + 5000)
    playback.due("a", 0.0)
    playback.leave("a")
    assert playback.due("b", 100.0) == 100.0


def test_records_of_another_run_set_the_clock_back() -> None:
    playback = Playback(10)
    playback.expects("a", T)
    playback.due("a", 0.0)
    playback.expects("a", T - HOUR)
    assert playback.due("a", 1.0) == 1.0
    playback.expects("a", T - HOUR + 10_000)
    assert playback.due("a", 1.0) == 2.0


def test_only_more_than_real_time_gains_on_the_stream() -> None:
    assert [Playback(speed).gains for speed in (0.5, 1, 1.5)] == [False, False, True]


@pytest.mark.parametrize("speed", [0, LEAST_SPEED, 1, 2.5, MOST_SPEED])
def test_speed_within_the_bounds_is_taken(speed: float) -> None:
    assert check_speed(speed) == speed


@pytest.mark.parametrize("speed", [-1, LEAST_SPEED / 2, MOST_SPEED + 1, math.inf, -math.inf, math.nan])
def test_speed_at_which_nothing_can_be_played_is_refused(speed: float) -> None:
    with pytest.raises(BadRequest, match="speed is from"):
        check_speed(speed)
