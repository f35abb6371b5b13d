"""What a pusher serves, and what the setting `pushers` lets it serve. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from feeder.push.message import Hello
from feeder.push.spoken import OF_MARKETS, SERVED, market_of
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.codes import MARKETS
from qmt_bridge.wire.topics import Kind, TopicParts, mask

_FORM = 'NAME:KINDS or NAME:KINDS:MARKETS with "+" between several, such as "ctp:quote+whole:SF+DF"'
_NAME = re.compile(r"[a-z0-9_-]{1,32}")


class BadHello(Exception):
    """A hello that is malformed (not `forbidden`), or asks for what its name may not serve."""

    def __init__(self, reason: str, *, forbidden: bool = False) -> None:
        super().__init__(reason)
        self.forbidden = forbidden


class Offer(NamedTuple):
    """The kinds of topics that are served, each with its markets, and the accounts; None is all of them."""

    markets: Mapping[Kind, frozenset[str] | None]
    accounts: frozenset[str] | None = None

    def serves(self, parts: TopicParts) -> bool:
        """Return whether a topic is one of it."""
        if parts.kind not in self.markets:
            return False
        if parts.kind is Kind.TRADE:
            return self.accounts is None or parts.name in self.accounts
        markets = self.markets[parts.kind]
        return markets is None or market_of(parts) in markets

    def overlap(self, other: Offer) -> str:
        """Return the first of what both serve, such as ``quote of SH``; nothing if there is none."""
        for kind in sorted(self.markets.keys() & other.markets.keys()):
            if kind is Kind.TRADE:
                ours, theirs = self.accounts, other.accounts
            else:
                ours, theirs = self.markets[kind], other.markets[kind]
            if ours is None or theirs is None:
                both = ours if theirs is None else theirs
            else:
                both = ours & theirs
                if not both:
                    continue
            if kind not in OF_MARKETS and kind is not Kind.TRADE:
                return str(kind)
            if both is None:
                return f"{kind} of all {'accounts' if kind is Kind.TRADE else 'markets'}"
            first = min(both)
            return f"{kind} of {mask(first) if kind is Kind.TRADE else first}"
        return ""

    def covers(self, other: Offer) -> bool:
        """Return whether all of another offer is served by this one too."""
        for kind, markets in other.markets.items():
            if kind not in self.markets:
                return False
            ours, theirs = self.markets[kind], markets
            if kind is Kind.TRADE:
                ours, theirs = self.accounts, other.accounts
            if ours is not None and (theirs is None or not theirs <= ours):
                return False
        return True

    def all_markets(self) -> tuple[str, ...]:
        """Return the markets that are named, of all kinds; none if a kind has all of them."""
        of_kinds = [markets for kind, markets in self.markets.items() if kind in OF_MARKETS]
        if None in of_kinds:
            return ()
        return tuple(sorted(set[str]().union(*(markets or () for markets in of_kinds))))


# What each name may serve; without any, every name may serve everything.
Permits = Mapping[str, Offer]


def read_permits(setting: Iterable[str]) -> Permits:
    """Return who may serve what by the setting `pushers`; raise `ConfigError`."""
    found: dict[str, dict[Kind, frozenset[str] | None]] = {}
    for text in setting:
        name, *rest = text.split(":")
        if not _NAME.fullmatch(name) or len(rest) not in (1, 2):
            raise ConfigError("pushers", f"expected {_FORM}, got {text[:100]!r}")
        kinds = _kinds(rest[0].split("+"), text)
        markets = _markets(rest[1].split("+"), text) if rest[1:] else None
        if markets is not None and OF_MARKETS.isdisjoint(kinds):
            only = " ".join(sorted(OF_MARKETS))
            raise ConfigError("pushers", f"{text[:100]!r}: only {only} have markets, expected {name}:{rest[0]}")
        ours = found.setdefault(name, {})
        for kind in kinds:
            before = ours.get(kind, frozenset())
            # A kind that has no markets has all of them.
            theirs = markets if kind in OF_MARKETS else None
            ours[kind] = None if before is None or theirs is None else before | theirs
    return {name: Offer(markets) for name, markets in found.items()}


def read_offer(hello: Hello, permits: Permits) -> Offer:
    """Return what a hello offers; raise `BadHello`.

    Markets that it does not name are those that its name may serve.
    """
    try:
        kinds = {Kind(word) for word in hello.kinds}
    except ValueError:
        kinds = set()
    if not kinds or not kinds <= SERVED:
        raise BadHello(f"kinds: each is one of {' '.join(sorted(SERVED))}")
    unknown = next((market for market in hello.markets or () if market not in MARKETS), None)
    if unknown is not None:
        raise BadHello(f"markets: there is no market {unknown[:20]!r}")
    asked = None if hello.markets is None else frozenset(hello.markets)
    accounts = None if hello.accounts is None else frozenset(hello.accounts)
    markets: dict[Kind, frozenset[str] | None] = {kind: asked if kind in OF_MARKETS else None for kind in kinds}
    if not permits:
        return Offer(markets, accounts)
    permit = permits.get(hello.name)
    if permit is None:
        raise BadHello(f"the setting pushers does not name {hello.name}", forbidden=True)
    for kind in sorted(kinds):
        if kind not in permit.markets:
            raise BadHello(f"the setting pushers does not let {hello.name} serve {kind}", forbidden=True)
        allowed, offered = permit.markets[kind], markets[kind]
        if offered is None:
            markets[kind] = allowed
        elif allowed is not None and not offered <= allowed:
            beyond = min(offered - allowed)
            raise BadHello(f"the setting pushers does not let {hello.name} serve {kind} of {beyond}", forbidden=True)
    return Offer(markets, accounts)


def named(permits: Permits, parts: TopicParts) -> Sequence[str]:
    """Return the names that may serve a topic."""
    return [name for name, permit in permits.items() if permit.serves(parts)]


def _kinds(words: Sequence[str], text: str) -> list[Kind]:
    if not words or not all(word in SERVED for word in words):
        known = " ".join(sorted(SERVED))
        raise ConfigError("pushers", f"{text[:100]!r}: each kind is one of {known}")
    return [Kind(word) for word in words]


def _markets(words: Sequence[str], text: str) -> frozenset[str]:
    if words == [""]:
        raise ConfigError("pushers", f"{text[:100]!r}: expected markets such as SF+DF, or no colon for all of them")
    unknown = next((word for word in words if word not in MARKETS), None)
    if unknown is not None:
        raise ConfigError("pushers", f"{text[:100]!r}: there is no market {unknown[:20]!r}")
    return frozenset(words)
