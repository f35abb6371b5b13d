"""The state of pushers: a model of the feed by all of them, and who takes the place of whom. Pure."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from feeder.push.message import Account
from feeder.push.offer import Offer
from feeder.push.standing import GONE, MOST_GONE, Feed, Standings
from qmt_bridge.wire.topics import Kind

NAMES = ("ctp", "desk", "qmt")
# None of them serves what another one does.
OFFERS = {name: Offer({Kind.TRADE: None}, frozenset((name,))) for name in NAMES}
RANK = ("up", "stale", "connecting", "down")


class Pushers(RuleBasedStateMachine):
    """Pushers that come, say how they are, die and say bye; `ctp` stands in the setting."""

    def __init__(self) -> None:
        super().__init__()
        self.standings = Standings(["ctp"], 0)
        self.now = 0
        # The state by name, and whether data was lost since the feed was told.
        self.model: dict[str, str] = {"ctp": "connecting"}
        self.has_loss = False
        self.connected: set[str] = set()
        self.died: set[str] = set()

    @rule(name=st.sampled_from(NAMES))
    def comes(self, name: str) -> None:
        if name not in self.connected:
            self.now += 1
            self.standings.welcome(name, OFFERS[name], self.now)
            self.model[name] = "up"
            self.has_loss |= name in self.died
            self.connected.add(name)
            self.died.discard(name)

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(["up", "stale", "down"]), lost=st.booleans())
    def says(self, name: str, state: Any, lost: bool) -> None:
        if name in self.connected:
            self.now += 1
            reason = None if state == "up" else f"{name} is {state}"
            self.standings.say(name, state, reason, self.now, data_lost=lost)
            self.model[name] = state
            self.has_loss |= lost

    @rule(name=st.sampled_from(NAMES))
    def dies(self, name: str) -> None:
        if name in self.connected:
            self.now += 1
            self.standings.gone(name, self.now, bye=False)
            self.model[name] = "down"
            self.connected.discard(name)
            self.died.add(name)

    @rule(name=st.sampled_from(NAMES))
    def says_bye(self, name: str) -> None:
        if name in self.connected:
            self.now += 1
            self.standings.gone(name, self.now, bye=True)
            del self.model[name]
            self.connected.discard(name)

    @rule()
    def is_told(self) -> None:
        self.standings.told()
        self.has_loss = False

    @invariant()
    def the_feed_is_as_the_worst(self) -> None:
        feed = self.standings.feed()
        assert feed.data_lost == self.has_loss
        if not self.model:
            assert feed[:2] == ("connecting", None)
            return
        assert feed.state == max(self.model.values(), key=RANK.index)

    @invariant()
    def accounts_are_those_of_known_pushers(self) -> None:
        states = [each.state for each in self.standings.accounts()]
        there = self.died | self.connected
        assert len(states) == len(there)
        assert states.count("down") == len(self.died)

    @invariant()
    def each_is_listed(self) -> None:
        listed = {each.name: each.state for each in self.standings.listed({})}
        assert self.model.items() <= listed.items()
        assert set(listed) - set(self.model) <= {"ctp"}


Pushers.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestPushers = Pushers.TestCase


def quotes(*markets: str) -> Offer:
    return Offer({Kind.QUOTE: frozenset(markets)})


def test_another_name_that_serves_all_takes_the_place() -> None:
    standings = Standings([], 0)
    standings.welcome("old", quotes("SH"), 1)
    standings.gone("old", 2, bye=False)
    assert standings.feed() == Feed("down", GONE, False)
    # A part is not enough.
    standings.welcome("part", quotes("SZ"), 3)
    assert standings.feed().state == "down"
    standings.welcome("new", quotes("SH", "SF"), 4)
    assert standings.feed() == Feed("up", None, True)
    assert [each.name for each in standings.listed({})] == ["new", "part"]


def test_names_that_change_all_the_time_are_bounded() -> None:
    standings = Standings([], 0)
    for number in range(MOST_GONE + 50):
        standings.welcome(f"p{number}", Offer({Kind.TRADE: None}, frozenset((str(number),))), number)
        standings.gone(f"p{number}", number, bye=False)
    assert len(standings.listed({})) == MOST_GONE


def test_the_one_that_died_last_is_remembered() -> None:
    standings = Standings([], 0)
    standings.welcome("old", quotes("SH"), 0)
    for number in range(MOST_GONE):
        standings.welcome(f"p{number}", Offer({Kind.TRADE: None}, frozenset((str(number),))), number)
        standings.gone(f"p{number}", number, bye=False)
    standings.gone("old", MOST_GONE, bye=False)
    standings.told()
    standings.welcome("old", quotes("SH"), MOST_GONE + 1)
    assert standings.feed().data_lost


def test_an_account_keeps_its_time_while_it_stays() -> None:
    standings = Standings([], 0)
    standings.welcome("desk", OFFERS["desk"], 1)
    standings.set_accounts("desk", [Account("1000000365", "STOCK")], 2)
    standings.set_accounts("desk", [Account("1000000365", "STOCK"), Account("7", "CREDIT", "down", "x")], 3)
    assert [(each.account, each.state, each.since) for each in standings.accounts()] == [
        ("******0365", "up", 2),
        ("*", "down", 3),
    ]
