"""How each pusher is, and what the feed and the accounts are by all of them. Pure; times are ms since 1970.

A pusher is known from its first hello, or by the setting `pushers`, until it says bye or another one has taken over
what it served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from feeder.push.message import Account, one_line
from feeder.push.offer import Offer
from qmt_bridge.wire.messages import AccountState, PusherState, Session
from qmt_bridge.wire.topics import mask

GONE = "pusher_gone"
# From the best to the worst.
_RANK: dict[str, int] = {"up": 0, "stale": 1, "connecting": 2, "down": 3, "refused": 4}
# Pushers that are remembered after their end; a program that takes a new name each time would fill the list.
MOST_GONE = 64


class Feed(NamedTuple):
    """The state of the feed, as `Sink.set_state` takes it; `data_lost` is a loss that was not told yet."""

    state: Session
    reason: str | None
    data_lost: bool


@dataclass
class Standing:
    """One pusher."""

    name: str
    # Whether the setting names it.
    is_named: bool
    since: int
    state: Session = "connecting"
    reason: str | None = None
    connected: bool = False
    # Whether it was connected and has not said bye since; and whether it has said so, and is not missed.
    was_there: bool = False
    said_bye: bool = False
    offer: Offer | None = None
    simulated: bool = False
    # By the number of the account.
    accounts: dict[str, AccountState] = field(default_factory=dict)
    records: int = 0
    refused: int = 0
    conflated: int = 0

    def turn(self, state: Session, reason: str | None, now: int) -> None:
        """Note a state."""
        if (state, reason) != (self.state, self.reason):
            self.since = now
        self.state, self.reason = state, reason


class Standings:
    """All pushers that are known."""

    def __init__(self, named: Collection[str], now: int) -> None:
        self._known = {name: Standing(name, True, now) for name in named}
        # Whether data was lost since the last `told`: a state may last, and a loss is told once.
        self._has_loss = False

    def welcome(self, name: str, offer: Offer, now: int, *, simulated: bool = False) -> Standing:
        """Note that a pusher is connected; one that comes back may have missed data."""
        other = [each for each in self._known.values() if each.name != name]
        taken = [each for each in other if not each.is_named and each.offer is not None and _left(each)]
        overtaken = [each for each in taken if each.offer is not None and offer.covers(each.offer)]
        for each in overtaken:
            del self._known[each.name]
        standing = self._known.setdefault(name, Standing(name, False, now))
        self._has_loss |= standing.was_there or bool(overtaken)
        standing.offer, standing.simulated = offer, simulated
        standing.connected = standing.was_there = True
        standing.said_bye = False
        standing.turn("up", None, now)
        standing.accounts = {
            account: AccountState(mask(account), "", "up", since=now) for account in sorted(offer.accounts or ())
        }
        return standing

    def say(self, name: str, state: Session, reason: str | None, now: int, *, data_lost: bool) -> None:
        """Note what a pusher says of itself."""
        self._known[name].turn(state, reason, now)
        self._has_loss |= data_lost

    def gone(self, name: str, now: int, *, bye: bool) -> None:
        """Note that a pusher's connection has ended; after `bye` it is not missed."""
        standing = self._known[name]
        standing.connected = False
        if not bye:
            standing.turn("down", GONE, now)
            # The last one: those that have been gone for longest are forgotten first.
            self._known[name] = self._known.pop(name)
            for account, state in standing.accounts.items():
                standing.accounts[account] = AccountState(state.account, state.type, "down", GONE, now)
            left = [each.name for each in self._known.values() if _left(each) and not each.is_named]
            for oldest in left[: max(0, len(left) - MOST_GONE)]:
                del self._known[oldest]
        elif standing.is_named:
            standing.was_there, standing.said_bye = False, True
            standing.accounts = {}
            standing.turn("connecting", None, now)
        else:
            del self._known[name]

    def set_accounts(self, name: str, accounts: Sequence[Account], now: int) -> None:
        """Note what a pusher says of its accounts: those that it does not name are no longer served."""
        before = self._known[name].accounts
        found = {}
        for each in accounts:
            reason = one_line(each.reason) if each.reason else None
            state = AccountState(mask(each.account), one_line(each.type), each.state, reason, now)
            known = before.get(each.account)
            if known is not None and replace(state, since=known.since) == known:
                state = known
            found[each.account] = state
        self._known[name].accounts = found

    def feed(self) -> Feed:
        """Return the state of the worst pusher; without any the feed is connecting."""
        # One that ended in order and may come again by the setting is not missed.
        missed = [each for each in self._known.values() if not each.said_bye]
        if not missed:
            return Feed("connecting", None, self._has_loss)
        worst = max(missed, key=lambda each: _RANK[each.state])
        reason = worst.reason
        if worst.state == "connecting":
            reason = f"waiting for {worst.name}"
        return Feed(worst.state, reason, self._has_loss)

    def told(self) -> None:
        """Note that the feed was told, and a loss with it."""
        self._has_loss = False

    def accounts(self) -> list[AccountState]:
        """Return the states of all accounts."""
        return [state for each in self._known.values() for state in each.accounts.values()]

    @property
    def simulated(self) -> bool:
        """Return whether a pusher invents its prices."""
        return any(each.simulated for each in self._known.values())

    def absent(self) -> list[Standing]:
        """Return the pushers that are missed: those that have died, and those of the setting that never came."""
        return [each for each in self._known.values() if not each.connected and not each.said_bye]

    def listed(self, silent: dict[str, float]) -> tuple[PusherState, ...]:
        """Return all pushers by name, as a heartbeat has them; `silent` is how long each has said nothing, in s."""
        return tuple(
            PusherState(
                each.name,
                each.state,
                each.reason,
                each.since,
                () if each.offer is None else tuple(sorted(each.offer.markets)),
                () if each.offer is None else each.offer.all_markets(),
                () if each.offer is None else tuple(sorted(map(mask, each.offer.accounts or ()))),
                each.records,
                each.refused,
                each.conflated,
                silent.get(each.name),
            )
            for each in sorted(self._known.values(), key=lambda each: each.name)
        )


def _left(standing: Standing) -> bool:
    return standing.was_there and not standing.connected
