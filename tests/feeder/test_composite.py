"""Several sources as one: the worst state of them, each loss once, and all of their accounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from feeder.composite import Composite, Member
from feeder.source import FeedState, Sink, Source
from qmt_bridge.wire.messages import AccountState
from tests.support.sink import Recording


class Told(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[FeedState, str | None, bool]] = []
        self.accounts: list[str] = []

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self.states.append((state, reason, data_lost))

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self.accounts = [each.account for each in accounts]


class Part:
    """A source that keeps the sink that it is started with."""

    simulated = lossless = False
    kinds: frozenset[Any] = frozenset()

    def start(self, sink: Sink) -> None:
        self.sink = sink


def two() -> tuple[Told, Sink, Sink]:
    told, one, other = Told(), Part(), Part()
    members = [Member(cast(Source, part), lambda parts: True) for part in (one, other)]
    Composite("one+other", members).start(cast(Sink, told))
    return told, one.sink, other.sink


def test_state_is_the_worst_of_the_sources() -> None:
    told, one, other = two()
    one.set_state("up")
    other.set_state("up")
    one.set_state("stale", "market_silent")
    other.set_state("down", "pusher_gone")
    one.set_state("up")
    other.set_state("up")
    assert told.states == [
        ("connecting", None, False),
        ("up", None, False),
        ("stale", "market_silent", False),
        ("down", "pusher_gone", False),
        ("down", "pusher_gone", False),
        ("up", None, False),
    ]


def test_loss_is_told_once_with_the_report_that_says_it() -> None:
    told, one, other = two()
    other.set_state("down", "terminal_hung")
    one.set_state("up", data_lost=True)
    one.set_accounts([AccountState("1", "STOCK", "up", since=1)])
    one.set_state("up", data_lost=True)
    other.set_state("up")
    assert told.states == [
        ("down", "terminal_hung", False),
        ("down", "terminal_hung", True),
        ("up", None, False),
    ]


def test_accounts_of_all_sources_are_told_together() -> None:
    told, one, other = two()
    one.set_accounts([AccountState("1", "STOCK", "up", since=1)])
    other.set_accounts([AccountState("2", "STOCK", "down", since=1)])
    assert told.accounts == ["1", "2"]
    one.set_accounts([])
    assert told.accounts == ["2"]
