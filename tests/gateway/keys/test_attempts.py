"""Attempts with wrong keys: who is refused, for how long, and how much is remembered and told."""

from __future__ import annotations

import pytest

from gateway.keys.attempts import ATTEMPTS, BACK_OFF, MOST_ADDRESSES, WINDOW, Attempts

HERE = "203.0.113.7"


def failed(times: int, address: str = HERE, now: float = 0.0) -> Attempts:
    attempts = Attempts()
    for _ in range(times):
        attempts.fail(address, now)
    return attempts


def test_fifth_attempt_in_a_minute_bars_the_address_for_a_minute() -> None:
    assert failed(ATTEMPTS - 1).refused(HERE, 0.0) == 0
    attempts = failed(ATTEMPTS)
    assert attempts.refused(HERE, 1.0) == BACK_OFF - 1
    assert attempts.refused(HERE, BACK_OFF) == 0
    assert attempts.refused("203.0.113.8", 1.0) == 0


def test_slow_attempts_do_not_bar_an_address() -> None:
    attempts = Attempts()
    for number in range(50):
        attempts.fail(HERE, number * (WINDOW / (ATTEMPTS - 1)))
        assert attempts.refused(HERE, number * (WINDOW / (ATTEMPTS - 1))) == 0


def test_attempts_in_the_back_off_do_not_make_it_longer() -> None:
    attempts = failed(ATTEMPTS)
    for _ in range(3):
        attempts.fail(HERE, BACK_OFF / 2)
    assert attempts.refused(HERE, BACK_OFF) == 0


def test_an_address_is_barred_again_after_its_back_off() -> None:
    attempts = failed(ATTEMPTS)
    for number in range(ATTEMPTS):
        attempts.fail(HERE, BACK_OFF + 1 + number)
    assert attempts.refused(HERE, BACK_OFF + 1 + ATTEMPTS) > 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("unix:", "unix:", True),
        ("?", "?", True),
    ],
)
def test_a_network_of_ipv6_counts_as_one_client(one: str, other: str, same: bool) -> None:
    assert (failed(ATTEMPTS, one).refused(other, 1.0) > 0) is same


def test_memory_is_bounded_and_the_oldest_are_forgotten() -> None:
    attempts = failed(ATTEMPTS)
    for number in range(3 * MOST_ADDRESSES):
        attempts.fail(f"n{number}", 1.0)
    assert len(attempts._addresses) == MOST_ADDRESSES
    assert attempts.refused(HERE, 1.0) == 0
    assert attempts.total == ATTEMPTS + 3 * MOST_ADDRESSES


def test_attempts_are_told_once_a_minute() -> None:
    attempts, told = Attempts(), []

    def write(count: int, newest: str) -> None:
        told.append((count, newest))

    for second in range(181):
        for _ in range(100):
            attempts.fail(HERE, second)
        attempts.tell(second, write)
    assert told == [(100, HERE), (6000, HERE), (6000, HERE), (6000, HERE)]
