"""Signs of life: which silence means a frozen process."""

from __future__ import annotations

import pytest

from qmt_bridge.process.pulse import JUMP, Pulse

STEP = 0.1


def look(pulse: Pulse, begin: float, seconds: float) -> tuple[float, bool]:
    """Look for `seconds`; return the time then, and whether the process was found frozen at any look."""
    frozen = False
    for number in range(1, round(seconds / STEP) + 1):
        frozen = pulse.frozen(begin + number * STEP) or frozen
    return begin + seconds, frozen


def test_a_process_is_frozen_after_the_limit_and_not_before():
    pulse = Pulse(15.0, 100.0)
    pulse.beat(100.0)
    now, frozen = look(pulse, 100.0, 14.9)
    assert not frozen
    assert look(pulse, now, 0.3)[1]
    assert pulse.silence(now) == pytest.approx(14.9)


def test_a_process_that_answers_is_never_frozen():
    pulse = Pulse(2.0, 0.0)
    now = 0.0
    for _ in range(100):
        pulse.beat(now)
        now, frozen = look(pulse, now, 1.9)
        assert not frozen


def test_before_its_first_answer_a_process_gets_more_time():
    pulse = Pulse(2.0, 0.0)
    now, frozen = look(pulse, 0.0, 179.9)
    assert not frozen
    assert not pulse.began
    assert look(pulse, now, 0.3)[1]
    pulse.beat(now)
    assert pulse.began
    assert not look(pulse, now, 1.9)[1]
    assert look(pulse, now + 1.9, 0.3)[1]


def test_a_limit_above_that_of_the_start_counts_for_the_start_too():
    assert not look(Pulse(300.0, 0.0), 0.0, 299.0)[1]


def test_time_in_which_the_watcher_was_stopped_is_not_counted():
    pulse = Pulse(15.0, 0.0)
    pulse.beat(0.0)
    now, _ = look(pulse, 0.0, 10.0)
    now += 3600.0
    assert not pulse.frozen(now)
    # Counting begins anew after the stop.
    now, frozen = look(pulse, now, 14.9)
    assert not frozen
    assert look(pulse, now, 0.3)[1]


def test_a_look_that_takes_a_second_is_not_a_stop_of_the_watcher():
    pulse = Pulse(15.0, 0.0)
    pulse.beat(0.0)
    assert next(now for now in range(1, 20) if pulse.frozen(float(now))) == 16
    assert JUMP > 1.0


def test_with_a_limit_of_zero_no_process_is_frozen():
    pulse = Pulse(0.0, 0.0)
    pulse.beat(0.0)
    assert not look(pulse, 0.0, 100.0)[1]


@pytest.mark.parametrize(("limit", "start_limit", "allowed"), [(1.5, 30.0, 30.0), (60.0, 30.0, 60.0)])
def test_the_time_to_the_first_sign_can_be_given(limit: float, start_limit: float, allowed: float) -> None:
    pulse = Pulse(limit, 0.0, start_limit)
    assert not any(pulse.frozen(float(second)) for second in range(int(allowed) + 1))
    assert pulse.frozen(allowed + 1)
