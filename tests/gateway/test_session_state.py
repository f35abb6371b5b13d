"""The table of a session's states as a model: random walks through it keep the promises of docs/websocket.md."""

from __future__ import annotations

import random

import pytest

from gateway.session_state import TABLE, Act, Event, State

WALKS = 300
STEPS = 40
ORDER = list(State)


def walk(seed: int) -> list[tuple[State, Event, State, Act]]:
    """Return the steps of a walk in which any event may come in any state."""
    chosen = random.Random(seed)
    state, steps = State.HANDSHAKE, []
    # Most walks reach every state, and stay for a while in each.
    rare = {Event.END: 3, Event.LEAVE: 1}
    for event in chosen.choices(list(Event), [rare.get(event, 20) for event in Event], k=STEPS):
        after, act = TABLE[state][event]
        steps.append((state, event, after, act))
        state = after
    return steps


def test_every_event_has_an_outcome_in_every_state() -> None:
    assert {state: set(row) for state, row in TABLE.items()} == {state: set(Event) for state in State}


def test_states_are_entered_in_order_and_never_again() -> None:
    for seed in range(WALKS):
        for before, _, after, _ in walk(seed):
            assert ORDER.index(before) <= ORDER.index(after)


def test_client_is_told_only_between_its_admission_and_its_end() -> None:
    sent = 0
    for seed in range(WALKS):
        admitted = ended = False
        for _, event, _, act in walk(seed):
            may_tell = event is Event.TELL and admitted and not ended
            assert (act is Act.SEND) == may_tell
            sent += may_tell
            admitted = admitted or event is Event.ADMIT
            ended = ended or event in (Event.END, Event.LEAVE)
    assert sent > WALKS


def test_session_closes_for_its_first_reason_only() -> None:
    for seed in range(WALKS):
        closes = [number for number, step in enumerate(walk(seed)) if step[3] is Act.CLOSE]
        reasons = [number for number, step in enumerate(walk(seed)) if step[1] in (Event.END, Event.LEAVE)]
        assert closes in ([], reasons[:1])


def test_session_is_released_once_from_whatever_state() -> None:
    for seed in range(WALKS):
        steps = walk(seed)
        left = Event.LEAVE in [event for _, event, _, _ in steps]
        assert [act for *_, act in steps].count(Act.RELEASE) == left


@pytest.mark.parametrize("state", State)
def test_connection_is_dropped_only_while_it_closes(state: State) -> None:
    assert (TABLE[state][Event.EXPIRE][1] is Act.ABORT) == (state is State.CLOSING)
