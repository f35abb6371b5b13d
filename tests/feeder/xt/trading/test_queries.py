"""When an account is asked for what the terminal did not push: pure, with time as an argument."""

from __future__ import annotations

import itertools
import math

import pytest

from feeder.xt.trading.queries import QUIET_SECONDS, SLOWEST, Questions


def make(interval: float = 180.0) -> Questions:
    return Questions(("order", "trade"), 0.0, interval, first=1.0, patience=30.0)


def ask(questions: Questions, event: str = "order", *, certain: bool | None, until: float) -> list[float]:
    """Ask one event whenever it is due, answer at once (never: None), and return when that was."""
    times = []
    while (at := questions._due_at(event)) <= until:
        times.append(at)
        questions.ask(event, at)
        if certain is not None:
            questions.answer(event, at, certain)
    return times


def test_everything_is_due_at_first_and_nothing_while_it_is_asked() -> None:
    questions = make()
    assert questions.due(0.0) == ["order", "trade"]
    assert not questions.were_heard()
    questions.ask("order", 0.0)
    assert questions.due(0.0) == ["trade"]
    questions.ask("trade", 0.0)
    assert (questions.due(29.0), questions.next_at()) == ([], 30.0)
    questions.answer("order", 1.0, True)
    assert not questions.were_heard()
    questions.answer("trade", 1.0, False)
    assert questions.were_heard()


def test_an_uncertain_answer_is_asked_again_ever_more_slowly_and_for_ever() -> None:
    times = ask(make(), certain=False, until=5000.0)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:9] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 180.0]
    assert set(pauses[8:]) == {180.0}
    # Also where nothing is reconciled.
    times = ask(make(0.0), certain=False, until=10_000.0)
    assert times[-1] - times[-2] == SLOWEST


def test_an_unanswered_question_is_asked_again_ever_more_slowly() -> None:
    times = ask(make(), certain=None, until=2000.0)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:4] == [30.0, 60.0, 120.0, 180.0]
    assert set(pauses[3:]) == {180.0}


def test_thousands_of_failures_make_no_number_too_large() -> None:
    assert len(ask(make(1.0), certain=False, until=5000.0)) > 4000


def test_a_certain_answer_is_asked_for_again_after_the_interval() -> None:
    assert ask(make(), certain=True, until=400.0) == [0.0, 180.0, 360.0]
    questions = make(0.0)
    assert ask(questions, certain=True, until=1e9) == [0.0]
    ask(questions, "trade", certain=True, until=0.0)
    assert questions.next_at() == math.inf


def test_an_account_that_moves_is_not_reconciled_until_it_is_quiet() -> None:
    questions = make()
    for event in ("order", "trade"):
        ask(questions, event, certain=True, until=0.0)
    questions.moved(179.5)
    assert questions.due(180.0) == []
    assert questions.due(179.5 + QUIET_SECONDS) == ["order", "trade"]
    # What has no certain answer does not wait for that.
    ask(questions, "order", certain=False, until=179.5 + QUIET_SECONDS)
    questions.moved(183.0)
    assert questions.due(183.0) == ["order"]


def test_what_has_happened_makes_questions_due_again() -> None:
    questions = make()
    ask(questions, certain=True, until=0.0)
    questions.hasten(["order"], 7.0)
    assert questions._due_at("order") == 7.0
    # An answer that is on its way is of before.
    questions.ask("order", 8.0)
    questions.hasten(["order"], 9.0)
    questions.answer("order", 10.0, True)
    assert questions._due_at("order") == 9.0
    assert ask(questions, certain=True, until=100.0) == [9.0]


@pytest.mark.parametrize("certain", [False, None])
def test_it_tells_for_how_long_there_was_no_certain_answer(certain: bool | None) -> None:
    questions = make()
    ask(questions, certain=certain, until=40.0)
    assert questions.unsure_for("order", 40.0) == 40.0
    questions.answer("order", 41.0, True)
    assert questions.unsure_for("order", 50.0) == 0.0
