"""When an account is queried for events that the terminal did not push: pure, with time as an argument."""

from __future__ import annotations

import itertools
import math

import pytest

from feeder.xt.trading.queries import QUIET_SECONDS, SLOWEST, Questions


def make(interval: float = 180.0) -> Questions:
    return Questions(("order", "trade"), 0.0, interval, first=1.0, patience=30.0)


def ask(questions: Questions, event: str = "order", *, certain: bool | None, until: float) -> list[float]:
    """Send one query whenever it is due, answer it at once (None: never), and return the times of the queries."""
    times = []
    while (at := questions._due_at(event)) <= until:
        times.append(at)
        questions.ask(event, at)
        if certain is not None:
            questions.answer(event, at, certain)
    return times


def test_every_query_is_due_first_and_none_while_it_runs() -> None:
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


def test_an_uncertain_answer_is_retried_with_growing_pauses() -> None:
    times = ask(make(), certain=False, until=5000.0)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:9] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 180.0]
    assert set(pauses[8:]) == {180.0}
    # The same holds if reconciliation is off.
    times = ask(make(0.0), certain=False, until=10_000.0)
    assert times[-1] - times[-2] == SLOWEST


def test_an_unanswered_query_is_retried_with_growing_pauses() -> None:
    times = ask(make(), certain=None, until=2000.0)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[:4] == [30.0, 60.0, 120.0, 180.0]
    assert set(pauses[3:]) == {180.0}


def test_thousands_of_failures_overflow_no_number() -> None:
    assert len(ask(make(1.0), certain=False, until=5000.0)) > 4000


def test_a_certain_answer_is_queried_again_after_the_interval() -> None:
    assert ask(make(), certain=True, until=400.0) == [0.0, 180.0, 360.0]
    questions = make(0.0)
    assert ask(questions, certain=True, until=1e9) == [0.0]
    ask(questions, "trade", certain=True, until=0.0)
    assert questions.next_at() == math.inf


def test_an_active_account_is_reconciled_only_once_it_is_quiet() -> None:
    questions = make()
    for event in ("order", "trade"):
        ask(questions, event, certain=True, until=0.0)
    questions.moved(179.5)
    assert questions.due(180.0) == []
    assert questions.due(179.5 + QUIET_SECONDS) == ["order", "trade"]
    # A query without a certain answer does not wait for a quiet account.
    ask(questions, "order", certain=False, until=179.5 + QUIET_SECONDS)
    questions.moved(183.0)
    assert questions.due(183.0) == ["order"]


def test_an_event_makes_queries_due_again() -> None:
    questions = make()
    ask(questions, certain=True, until=0.0)
    questions.hasten(["order"], 7.0)
    assert questions._due_at("order") == 7.0
    # An answer that is already on its way is older than the event.
    questions.ask("order", 8.0)
    questions.hasten(["order"], 9.0)
    questions.answer("order", 10.0, True)
    assert questions._due_at("order") == 9.0
    assert ask(questions, certain=True, until=100.0) == [9.0]


@pytest.mark.parametrize("certain", [False, None])
def test_the_time_without_a_certain_answer_is_reported(certain: bool | None) -> None:
    questions = make()
    ask(questions, certain=certain, until=40.0)
    assert questions.unsure_for("order", 40.0) == 40.0
    questions.answer("order", 41.0, True)
    assert questions.unsure_for("order", 50.0) == 0.0
