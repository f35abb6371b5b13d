"""How often refusals are logged; time is a number that the test sets."""

from __future__ import annotations

from feeder.refusals import MAX_PEERS, MINUTE, Refusals


def test_a_peer_is_logged_once_a_minute_with_the_count_between() -> None:
    refusals = Refusals()
    assert [refusals.note(b"a", 0.1 * number) for number in range(100)] == [0, *[None] * 99]
    assert refusals.note(b"b", 10.0) == 0
    assert refusals.note(b"a", MINUTE - 0.1) is None
    assert refusals.note(b"a", MINUTE) == 100
    assert refusals.note(b"a", MINUTE + 1.0) is None
    assert refusals.count == 104


def test_many_peers_get_few_lines_and_take_little_memory() -> None:
    refusals = Refusals()
    lines = [refusals.note(b"%d" % number, 0.001 * number) for number in range(10_000)]
    assert sum(line is not None for line in lines) == MAX_PEERS
    assert len(refusals._logged) == MAX_PEERS
    assert refusals.note(b"late", MINUTE + 0.0) == 0
    assert refusals.count == 10_001
