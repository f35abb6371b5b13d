"""Identities of trade events: a model test, the window, the bound. Pure."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.push import entrance
from feeder.push.identities import WINDOW_MS, Identities

HOUR_MS = 3600 * 1000
NOW = 1_796_000_000_000


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40 * HOUR_MS)), max_size=60))
def test_an_event_is_new_once_in_three_days(steps: list[tuple[int, int]]) -> None:
    found, now = Identities(), NOW
    seen: dict[int, int] = {}
    for number, passed in steps:
        now += passed
        is_new = found.note("1", f"order/{number}", now)
        before = seen.get(number)
        if before is None:
            assert is_new
        elif now - before <= WINDOW_MS:
            assert not is_new
        elif now - before > WINDOW_MS + HOUR_MS:
            assert is_new
        seen[number] = now


def test_what_the_window_has_passed_is_new_again() -> None:
    found = Identities()
    assert found.note("1", "a", NOW)
    assert found.note("1", "b", NOW + 33 * HOUR_MS)
    assert found.note("1", "a", NOW + WINDOW_MS + HOUR_MS + 1)


def test_account_and_id_are_not_mixed_up() -> None:
    found = Identities()
    assert found.note("1", "2/3", NOW)
    assert found.note("12", "/3", NOW)
    assert found.note("", "12/3", NOW)


def test_a_clock_that_goes_back_forgets_nothing() -> None:
    found = Identities()
    assert found.note("1", "a", NOW)
    assert found.note("1", "b", NOW - 10 * WINDOW_MS)
    assert not found.note("1", "a", NOW)
    assert not found.note("1", "b", NOW)


def test_beyond_the_bound_the_oldest_are_late() -> None:
    found = Identities(most=3)
    for number in range(4):
        assert found.note("1", str(number), NOW + number * HOUR_MS)
    now = NOW + 4 * HOUR_MS
    assert len(found) == 3
    # Those of the first hour may have been published: they cannot be told from news.
    assert found.is_late(NOW, now)
    assert not found.is_late(NOW + HOUR_MS, now)
    assert not found.note("1", "1", now)


def test_what_comes_again_is_not_the_oldest_any_more() -> None:
    found = Identities(most=3)
    for hour, name in enumerate(("a", "b", "c", "a", "d")):
        found.note("1", name, NOW + hour * HOUR_MS)
    # The second one is forgotten, and nothing that came after it.
    now = NOW + 5 * HOUR_MS
    assert found.is_late(NOW + HOUR_MS, now)
    assert not found.is_late(NOW + 2 * HOUR_MS, now)
    assert not found.note("1", "a", now)


def test_what_is_older_than_the_window_is_late() -> None:
    found = Identities()
    assert not found.is_late(NOW - WINDOW_MS, NOW)
    assert found.is_late(NOW - WINDOW_MS - 1, NOW)


class Machine:
    """The clocks of a machine, and a sink with the events of the journal."""

    def __init__(self, *past: tuple[int, str]) -> None:
        self.now, self.steady = NOW, 0.0
        self.published: list[str] = []
        self._past = past

    def time_ns(self) -> int:
        return self.now * 1_000_000

    def monotonic(self) -> float:
        return self.steady

    def wait_room(self, limit: int, timeout: float) -> bool:
        return True

    def past_trades(self, since_ms: int) -> list[tuple[int, Any]]:
        return [(at, SimpleNamespace(data={"account_id": "1", "push_id": each})) for at, each in self._past]

    def publish_trade(self, account: str, event: str, data: dict[str, Any], received_ns: int) -> None:
        self.published.append(data["push_id"])


def entrance_of(machine: Any, monkeypatch: pytest.MonkeyPatch) -> entrance.Entrance:
    """Return an entrance that has read the journal."""
    monkeypatch.setattr(entrance, "clock", machine)
    found = entrance.Entrance(machine, lambda: None)
    found.restore(threading.Event(), found.restored)
    return found


def test_a_wrong_date_for_a_while_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    found = entrance_of(machine, monkeypatch)
    for identity, days in (("a", 0), ("b", 10), ("a", 0), ("b", 0)):
        machine.now, machine.steady = NOW + days * 24 * HOUR_MS, machine.steady + 60
        assert found.trade("1", "order", identity, {}, (machine.now, machine.time_ns()))
    assert machine.published == ["a", "b"]


def test_an_event_of_the_future_in_the_journal_forgets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine((NOW - HOUR_MS, "a"), (NOW + 10 * 24 * HOUR_MS, "b"))
    found = entrance_of(machine, monkeypatch)
    for identity in ("a", "b", "c"):
        assert found.trade("1", "order", identity, {}, (NOW, machine.time_ns()))
    assert machine.published == ["c"]


def test_an_identity_is_forgotten_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    found = entrance_of(machine, monkeypatch)
    for days in (0, 4):
        machine.now, machine.steady = NOW + days * 24 * HOUR_MS, days * 86400.0
        assert found.trade("1", "order", "a", {}, (machine.now, machine.time_ns()))
    assert machine.published == ["a", "a"]
