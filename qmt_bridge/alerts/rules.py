"""The rules: what of the state that was observed is well, bad, or cannot be judged. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

from qmt_bridge.alerts.incident import Verdict
from qmt_bridge.wire.history import StoreStatus
from qmt_bridge.wire.messages import FeedStatus

Rule = Literal["feed", "restarts", "account", "journal", "store", "gateway", "lost", "cut", "disk"]
RULES: tuple[Rule, ...] = get_args(Rule)
# What is told only after `alerts_after` seconds: it may come back by itself, or its supervisor starts it again. The
# others are counted over minutes, or do not come and go.
PATIENT: frozenset[Rule] = frozenset(("feed", "account", "store", "gateway"))

# Seconds without an answer after which a part counts as absent. Each is asked once a second.
ABSENT = 3.0
# The gateway is asked every few seconds.
GATEWAY_ABSENT = 12.0
# Starts of the feeder in ten minutes. Once may be an update.
MOST_RESTARTS = 3
# Seconds over which messages that were lost are counted, and starts and clients that were cut off.
LOST_SECONDS = 300.0
COUNTED_SECONDS = 600.0
_MIB = 1024 * 1024
# A disk is well again when it has so much more than its limit: a limit that is crossed again and again is no news.
_ROOM_AGAIN = 1.1


class Limits(NamedTuple):
    """The settings that the rules need; 0 turns a rule off, and `ignored` rules are not watched."""

    lost: int
    cut: int
    disk_mb: int
    ignored: frozenset[str] = frozenset()


class Observed(NamedTuple):
    """What is known at one moment. An age is in seconds since the newest answer, or since the watch began."""

    # Whether stocks trade on this day, by what is known of holidays, and whether they trade now.
    trading_day: bool
    trading: bool
    status: FeedStatus | None = None
    status_age: float = math.inf
    # Why there is no connection to the feeder.
    link: str = ""
    # Starts of the feeder in the last minutes.
    restarts: int = 0
    store: StoreStatus | None = None
    store_age: float = math.inf
    # Whether a store is expected to answer: the settings want one, and one has answered before.
    store_expected: bool = False
    gateway_age: float = math.inf
    gateway_expected: bool = False
    # Messages that gateways have missed in the last minutes, and how often clients were cut off; None: not known.
    lost: int | None = None
    cut: Mapping[str, int] | None = None
    # Bytes that the disk of the data folder has left; None: not known.
    free: int | None = None

    @property
    def feeder_answers(self) -> bool:
        """Return whether `status` is of now."""
        return self.status is not None and self.status_age <= ABSENT

    @property
    def gateway_answers(self) -> bool:
        """Return whether what is known of the gateway is of now."""
        return self.gateway_age <= GATEWAY_ABSENT

    @property
    def simulated(self) -> bool:
        """Return whether the prices are invented, as far as the feeder has ever said so."""
        return self.status is not None and self.status.simulated


class Finding(NamedTuple):
    """The verdict of a rule on one subject (an account or a client, or empty), and what messages say of it."""

    rule: Rule
    subject: str
    verdict: Verdict
    facts: Mapping[str, str | int] = {}


def judge(seen: Observed, limits: Limits) -> list[Finding]:
    """Return what each rule finds; a rule without a subject to judge finds nothing."""
    found = [*_feed(seen), *_accounts(seen), *_journal(seen), *_store(seen), *_gateway(seen), *_disk(seen, limits)]
    found += _counts(seen, limits)
    return [each for each in found if each.rule not in limits.ignored]


def blind(seen: Observed) -> frozenset[Rule]:
    """Return the rules whose subjects are not known now: one that is missing is not over."""
    found: set[Rule] = set()
    if not seen.feeder_answers:
        found.add("account")
    if seen.cut is None:
        found.add("cut")
    return frozenset(found)


def _always(seen: Observed) -> bool:
    """Return whether the feed is to be up at any hour: the simulator and a replay keep no trading hours."""
    # Terminals that push, and programs beside them, end at night too.
    return seen.status is not None and not {"xtquant", "push"} & set(seen.status.source.split("+"))


def _must_work(seen: Observed, verdict: Verdict) -> Verdict:
    # A terminal logs out at night and is updated then.
    return verdict if seen.trading or _always(seen) or verdict == "well" else "unknown"


def _feed(seen: Observed) -> Iterator[Finding]:
    if not seen.feeder_answers or seen.status is None:
        verdict: Verdict = "bad" if seen.status_age > ABSENT else "unknown"
        yield Finding("feed", "", _must_work(seen, verdict), {"state": "absent", "reason": seen.link})
    elif seen.status.state in ("up", "ended"):
        yield Finding("feed", "", "well")
    else:
        facts: dict[str, str | int] = {"state": seen.status.state, "reason": seen.status.reason or ""}
        yield Finding("feed", "", _must_work(seen, "bad"), facts)


def _accounts(seen: Observed) -> Iterator[Finding]:
    if not seen.feeder_answers or seen.status is None:
        return
    # The terminal that is away takes its accounts with it: that is one incident.
    alone = seen.status.state in ("up", "stale", "ended")
    # Two numbers may look the same once they are masked: then the one counts that is not up.
    accounts = sorted(seen.status.accounts, key=lambda each: each.state != "up")
    worst = {f"{each.account} {each.type}": each for each in accounts}
    for subject, account in worst.items():
        verdict: Verdict = "well" if account.state == "up" else _must_work(seen, "bad") if alone else "unknown"
        facts: dict[str, str | int] = {"state": account.state, "reason": account.reason or ""}
        yield Finding("account", subject, verdict, facts)


def _journal(seen: Observed) -> Iterator[Finding]:
    if not seen.feeder_answers or seen.status is None:
        yield Finding("journal", "", "unknown")
    elif seen.status.journal is None:
        yield Finding("journal", "", "well")
    else:
        yield Finding("journal", "", "bad", {"reason": seen.status.journal})


def _store(seen: Observed) -> Iterator[Finding]:
    if not seen.store_expected:
        return
    if seen.store_age > ABSENT:
        yield Finding("store", "", "bad", {"state": "gone", "reason": ""})
    elif seen.store is None:
        yield Finding("store", "", "unknown")
    elif seen.store.failure is not None:
        yield Finding("store", "", "bad", {"state": "failing", "reason": seen.store.failure})
    else:
        yield Finding("store", "", "well")


def _gateway(seen: Observed) -> Iterator[Finding]:
    if seen.gateway_expected:
        yield Finding("gateway", "", "well" if seen.gateway_answers else "bad")


def free_of(seen: Observed) -> int | None:
    """Return the bytes that the fullest disk has left, of the data folder and the store's; None: not known."""
    known = [] if seen.free is None else [seen.free]
    if seen.store is not None and seen.store_age <= ABSENT and seen.store.free:
        known.append(seen.store.free)
    return min(known, default=None)


def _disk(seen: Observed, limits: Limits) -> Iterator[Finding]:
    if not limits.disk_mb:
        return
    free = free_of(seen)
    if free is None:
        yield Finding("disk", "", "unknown")
        return
    least = limits.disk_mb * _MIB
    verdict: Verdict = "bad" if free < least else "well" if free >= least * _ROOM_AGAIN else "unknown"
    yield Finding("disk", "", verdict, {"free": free // _MIB, "least": limits.disk_mb})


def _counts(seen: Observed, limits: Limits) -> Iterator[Finding]:
    yield Finding("restarts", "", _counted(seen.restarts, MOST_RESTARTS), {"count": seen.restarts})
    if limits.lost:
        lost = seen.lost
        verdict: Verdict = "unknown" if lost is None else _counted(lost, limits.lost)
        yield Finding("lost", "", verdict, {"count": lost or 0})
    if limits.cut and seen.cut is not None:
        for client, count in seen.cut.items():
            yield Finding("cut", client, _counted(count, limits.cut), {"count": count})


def _counted(count: int, most: int) -> Verdict:
    # Between half of the limit and the limit nothing changes: a count about the limit would open and close by turns.
    return "bad" if count >= most else "well" if count <= most // 2 else "unknown"
