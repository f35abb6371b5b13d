"""What answers hold until their clients read: beyond the limit the one that has waited longest is dropped."""

from __future__ import annotations

from contextlib import ExitStack

from gateway.http.waiting import Waiting


def test_answer_that_has_waited_longest_is_dropped() -> None:
    waiting, dropped = Waiting(30), []
    with ExitStack() as held:
        for name in "abcd":
            held.enter_context(waiting.hold(10, lambda name=name: dropped.append(name)))
        assert dropped == ["a"]
    with ExitStack() as held:
        for name in "efg":
            held.enter_context(waiting.hold(10, lambda name=name: dropped.append(name)))
        assert dropped == ["a"]


def test_answer_that_was_written_holds_nothing() -> None:
    waiting, dropped = Waiting(30), []
    for name in range(10):
        with waiting.hold(10, lambda name=name: dropped.append(name)):
            pass
    assert dropped == []


def test_answer_that_is_too_large_alone_is_dropped() -> None:
    waiting, dropped = Waiting(5), []
    with waiting.hold(10, lambda: dropped.append("a")):
        assert dropped == ["a"]
