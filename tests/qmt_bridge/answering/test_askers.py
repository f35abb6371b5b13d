"""Only the queues of replies: no sockets, and time is a number that the test sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qmt_bridge.answering import askers as askers_module
from qmt_bridge.answering.askers import PATIENCE_SECONDS, RETRY_LAST, Askers, Replies
from qmt_bridge.wire.requests import TopicState, decode_reply

A, B = (b"a",), (b"b", b"")


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def askers(failures: list[Exception]) -> Askers:
    return Askers(failures.append)


def states(*numbers: int) -> Replies:
    return iter([TopicState(number, "whole/SH/", "live") for number in numbers])


def send(askers: Askers, now: float = 0.0) -> list[tuple[bytes, int]]:
    """Send every reply; return the asker and the number of each."""
    done = []
    while (message := askers.take(now)) is not None:
        peer, payload = message
        if payload:
            askers.sent()
            done.append((peer[0], decode_reply(payload).id))
    return done


def test_askers_take_turns_and_each_keeps_its_order(askers: Askers) -> None:
    askers.add(A, states(1, 2, 3), 0)
    askers.add(A, states(4), 0)
    askers.add(B, states(5, 6), 0)
    done = send(askers)
    assert [number for name, number in done if name == b"a"] == [1, 2, 3, 4]
    assert done[:4] == [(b"a", 1), (b"b", 5), (b"a", 2), (b"b", 6)]
    assert len(askers) == 0
    assert askers.deadline() is None


def test_an_answer_is_made_when_its_turn_comes(askers: Askers) -> None:
    made: list[int] = []

    def answers() -> Iterator[TopicState | None]:
        for number in range(3):
            made.append(number)
            yield TopicState(number, "whole/SH/", "live")

    askers.add(A, answers(), 0)
    assert made == []
    askers.take(0.0)
    askers.full(0.0)
    assert (made, askers.take(0.0)) == ([0], None)
    assert [number for _, number in send(askers, 1.0)] == [0, 1, 2]


def test_a_full_asker_is_retried_with_delays_and_blocks_no_other(askers: Askers) -> None:
    askers.add(A, states(1), 0)
    pauses, now = [], 0.0
    for _ in range(12):
        assert askers.take(now) is not None
        askers.full(now)
        at = askers.deadline()
        assert at is not None
        assert askers.take(now) is None
        pauses.append(at - now)
        now = at
    assert pauses == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, *[RETRY_LAST] * 6])
    askers.add(B, states(2), 0)
    assert askers.deadline() == 0.0
    assert sorted(send(askers, now)) == [(b"a", 1), (b"b", 2)]


def test_an_asker_that_does_not_read_is_dropped(askers: Askers) -> None:
    askers.add(A, states(1), 0)
    now = 0.0
    while len(askers):
        if askers.take(now) is not None:
            askers.full(now)
        now += 1.0
        assert now < PATIENCE_SECONDS + 5
    assert now > PATIENCE_SECONDS
    assert askers.given_up == 1
    assert askers.has_room(A)


def test_a_disconnected_asker_is_removed_with_its_questions(askers: Askers) -> None:
    askers.add(A, states(1, 2), 0)
    askers.add(A, states(3), 0)
    assert askers.take(0.0) is not None
    askers.gone()
    assert (len(askers), askers.take(1.0), askers._size) == (0, None, 0)


def test_waiting_questions_are_bounded_per_asker_and_in_total(askers: Askers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askers_module, "ASKER_BYTES", 10_000)
    monkeypatch.setattr(askers_module, "TOTAL_BYTES", 25_000)
    assert [askers.add(A, states(number), 4000) for number in range(3)] == [True, True, False]
    assert [askers.add((b"%d" % number,), states(number), 4000) for number in range(5)] == [*[True] * 3, False, False]
    # Other parts of the envelope do not make it another connection.
    assert not askers.add((b"a", b"other"), states(9), 4000)
    send(askers)
    assert askers.add(A, states(1), 4000)


def test_an_answer_that_fails_loses_only_itself(askers: Askers, failures: list[Exception]) -> None:
    def broken() -> Iterator[TopicState | None]:
        yield TopicState(1, "whole/SH/", "live")
        raise KeyError("whole/SH/")

    askers.add(A, broken(), 0)
    askers.add(A, states(2), 0)
    assert [number for _, number in send(askers)] == [1, 2]
    assert [type(failure) for failure in failures] == [KeyError]


def test_work_without_an_answer_takes_one_turn(askers: Askers) -> None:
    askers.add(A, iter([None, None]), 0)
    askers.add(B, states(1), 0)
    assert askers.take(0.0) == (A, b"")
    message = askers.take(0.0)
    assert message is not None
    assert message[0] == B
