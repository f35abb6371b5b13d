"""Who may ask: the key of a request, and what its client may cost. Runs on the event loop.

The rules are those of the sockets: a key that is shown is checked, wrong ones bar an address for a while, and each
client has a number of requests a second. A client is a key, or without one an address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from gateway import session
from gateway.costs.budget import Purse
from gateway.http.leases import Leases
from gateway.http.problems import Denied
from gateway.http.store_link import StoreLink
from gateway.http.waiting import Waiting
from gateway.keys.attempts import why_barred
from gateway.keys.entry import Entry, NotYet, WrongKey, address_of, presented
from gateway.keys.table import missing_scope
from qmt_bridge.config import Config
from qmt_bridge.keys.key import Key, Scope

# Clients whose purse is kept.
MOST_CLIENTS = 10_000
# Seconds that a request waits for the budget of its address or worker: a connection has 8 s to get its answer.
LONGEST_WAIT = 4.0


class Host(session.Host, Protocol):
    """What pages and sessions share; the worker is one."""

    leases: Leases
    store: StoreLink
    purses: Purses
    waiting: Waiting


class Caller(NamedTuple):
    """The client of a request that was admitted."""

    address: str
    key: Key | None = None

    @property
    def name(self) -> str:
        """Return what counts as one client."""
        return self.address if self.key is None else f"key {self.key.sha256}"

    def require(self, scope: Scope) -> None:
        """Raise `Denied` if the client has shown a key that lacks a scope."""
        if self.key is not None and (lacks := missing_scope(self.key, scope)):
            raise Denied("forbidden", lacks)

    def most_topics(self, config: Config) -> int:
        """Return how many topics the client may hold."""
        return min(config.max_topics, self.key.codes) if self.key is not None and self.key.codes else config.max_topics


class Purses:
    """The requests a second of each client."""

    def __init__(self, config: Config) -> None:
        self._config = config
        # The client that asked longest ago comes first.
        self._purses: dict[str, Purse] = {}

    def ask(self, caller: Caller, now: float) -> bool:
        """Spend a request of the client, or return False."""
        purse = self._purses.pop(caller.name, None) or self._new(caller, now)
        self._purses[caller.name] = purse
        while len(self._purses) > MOST_CLIENTS:
            del self._purses[next(iter(self._purses))]
        return purse.ask(now)

    def _new(self, caller: Caller, now: float) -> Purse:
        config, key = self._config, caller.key
        rate = min(config.max_rate, key.rate) if key is not None and key.rate else config.max_rate
        return Purse(rate, config.max_code_rate, caller.most_topics(config), now)


def check_barred(entry: Entry, scope: Mapping[str, Any], *, needs_key: bool) -> None:
    """Raise `Denied` for a client whose address has shown too many wrong keys."""
    if seconds := entry.barred(scope, needs_key=needs_key):
        raise Denied("rate_limited", why_barred(seconds), headers={"Retry-After": str(seconds)})


def identify(entry: Entry, scope: Mapping[str, Any], *, needs_key: bool) -> Caller:
    """Return the client of a request; raise `Denied` because of its key."""
    check_barred(entry, scope, needs_key=needs_key)
    address, given = address_of(scope), presented(scope)
    if given is not None and entry.configured:
        try:
            return Caller(address, entry.check(given, address))
        except WrongKey as exc:
            raise Denied("unauthorized", str(exc)) from None
        except NotYet as exc:
            raise Denied("upstream_unavailable", str(exc), HTTPStatus.SERVICE_UNAVAILABLE) from None
    if needs_key:
        told = "no API key was given" if entry.configured else "no API key is configured on this gateway"
        raise Denied("unauthorized", f"{told} (Authorization: Bearer <key>, X-API-Key, or the parameter api_key)")
    return Caller(address)


def admit(host: Host, scope: Mapping[str, Any], *, always: bool = False) -> Caller:
    """Return the client of a request for market data, which has spent one request; raise `Denied`.

    With `always` a key is needed whatever the settings are.
    """
    caller = identify(host.entry, scope, needs_key=host.entry.needs_key(scope, always=always))
    if not host.purses.ask(caller, asyncio.get_running_loop().time()):
        host.limited["requests"] += 1
        raise Denied("rate_limited", "too many requests a second")
    return caller


async def afford(host: Host, caller: Caller, cost: int) -> None:
    """Spend what so many codes cost, and wait while others spend too much; raise `Denied` if that would take long."""
    key = None if caller.key is None else caller.key.name
    wait = host.budget.spend(caller.address, asyncio.get_running_loop().time(), cost, key)
    if wait is None or wait > 0:
        host.limited["codes_of_all"] += 1
    if wait is None or wait > LONGEST_WAIT:
        raise Denied("rate_limited", "all clients together, or all of this address, name too many codes")
    if wait > 0:
        await asyncio.sleep(wait)
