"""What is subscribed: the topics of a worker with their clients, and those of all workers and of the feeder together.

Pure (docs/administration.md, "/api/subscriptions").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import nsmallest
from typing import Annotated, Protocol

import msgspec

from gateway.admin.clients import ClientId, Limit, read_id
from gateway.session import Session
from gateway.streams.member import Member, Refusal
from gateway.streams.stream import Stream
from gateway.subscription import Subscription
from qmt_bridge.errors import WireError
from qmt_bridge.wire.survey import FINDING_BYTES, SubscriptionTerms, TopicFound, TopicsFound
from qmt_bridge.wire.topics import ALL_TRADES, Kind, Topic, TopicParts, parse_topic

# Ids of clients that are named for a topic.
NAMED = 20
# Topics that are looked at before the worker's clients have their turn: some 200 us.
AT_A_TIME = 200
# Bytes of the topics that are named in a survey: the question that it is has at most 256 KiB.
NAMED_BYTES = 100 * 1024
_BYTES = 50
_ID_BYTES = 30


class SubscriptionsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of `/api/subscriptions`."""

    limit: Limit = 500
    after: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    prefix: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    client: str | None = None


class Holders(msgspec.Struct, frozen=True, array_like=True):
    """The clients of one worker that have a topic: how many, and the ids of some."""

    topic: str
    clients: int
    ids: list[str]


class HoldersPart(msgspec.Struct, frozen=True):
    """The topics of one worker; `more` says that some follow the last of them."""

    topics: list[Holders]
    total: int
    more: bool


class Subscribed(msgspec.Struct, frozen=True):
    """One topic: its parts, what the feeder knows of it, and who has it."""

    topic: str
    kind: str
    name: str
    detail: str
    # live, pending or refused; None: the feeder does not have it, or has not answered.
    state: str | None
    code: str | None
    reason: str | None
    seq: int
    # Seconds since its newest message; None before the first.
    age: float | None
    clients: int
    client_ids: list[str]
    workers: list[str]


class Subscriptions(msgspec.Struct, frozen=True):
    """The answer of `/api/subscriptions`; `next` is where to go on, None at the end."""

    subscriptions: list[Subscribed]
    total: int
    next: str | None
    complete: bool
    missing: list[str]


class EndTerms(msgspec.Struct, frozen=True):
    """The terms of a survey that ends the subscription of a topic, for all clients or for one."""

    topic: str
    client: str | None
    reason: str


class EndedPart(msgspec.Struct, frozen=True):
    """For how many of its clients a worker has ended a subscription."""

    ended: int


class Ended(msgspec.Struct, frozen=True):
    """The answer of a DELETE of a topic."""

    topic: str
    ended: int
    complete: bool
    missing: list[str]


class Pages(Protocol):
    """The topics that requests over HTTP hold for some seconds (gateway.http.leases)."""

    def holds(self, topic: Topic) -> int:
        """Return for how many clients a topic is held."""

    def end(self, topic: Topic, refusal: Refusal) -> int:
        """Refuse a topic from now on to those that hold it; return how many these are."""


class Table(Protocol):
    """The streams of a worker (gateway.hub.Hub)."""

    streams: dict[Topic, Stream]

    def leave(self, topic: Topic, member: Member) -> None:
        """Remove a member; the last one ends the upstream subscription."""


def listed(
    streams: Mapping[Topic, Stream], pages: Pages, terms: SubscriptionTerms, worker: str
) -> Iterator[HoldersPart | None]:
    """Yield None after each part of the work, and at last those of a worker's topics that `terms` ask for."""
    waiting: list[Topic] = [*streams] if terms.topics is None else [Topic(text) for text in terms.topics]
    client = None if terms.client is None else read_id(terms.client)
    total = 0
    first: list[Topic] = []
    for at in range(0, len(waiting), AT_A_TIME):
        part = [text for text in waiting[at : at + AT_A_TIME] if text in streams and text.startswith(terms.prefix)]
        if client is not None:
            part = [text for text in part if any(_is_of(of, client) for of in _subscriptions(streams[text]))]
        total += len(part)
        first = nsmallest(terms.limit + 1, [*first, *(text for text in part if text > terms.after)])
        yield None
    more = len(first) > terms.limit
    shown: list[Holders] = []
    size = 0
    for text in first[: terms.limit]:
        if text not in streams:
            continue
        holders = _holders(text, streams[text], pages, worker)
        size += _BYTES + len(text) + _ID_BYTES * len(holders.ids)
        if shown and size > FINDING_BYTES:
            more = True
            break
        shown.append(holders)
    yield HoldersPart(shown, total, more)


def end(hub: Table, pages: Pages, terms: EndTerms) -> EndedPart:
    """End the subscription of a topic for all clients of a worker or for one; each is told by a refusal."""
    topic = Topic(terms.topic)
    refusal = Refusal("ended_by_admin", terms.reason)
    client = None if terms.client is None else read_id(terms.client)
    stream = hub.streams.get(topic)
    chosen = [] if stream is None else [of for of in _subscriptions(stream) if client is None or _is_of(of, client)]
    for subscription in chosen:
        hub.leave(topic, subscription)
        subscription.settle("refused", refusal)
    return EndedPart(len(chosen) + (pages.end(topic, refusal) if client is None else 0))


def named(topics: Iterable[str]) -> list[str]:
    """Return as many of the first topics as a survey may name."""
    found: list[str] = []
    size = 0
    for topic in topics:
        size += len(topic) + 3
        if size > NAMED_BYTES:
            break
        found.append(topic)
    return found


def merged(
    parts: Mapping[str, HoldersPart], feeder: TopicsFound | None, limit: int, missing: list[str]
) -> Subscriptions:
    """Return one page of the topics of all workers and of the feeder, in the order of their texts."""
    # Beyond the last topic of a part that goes on, other parts may lack topics that it has.
    ends = [part.topics[-1].topic for part in (*parts.values(), feeder) if part is not None and part.more]
    horizon = min(ends, default=None)
    known: dict[str, TopicFound] = {} if feeder is None else {each.topic: each for each in feeder.topics}
    holders: dict[str, dict[str, Holders]] = {topic: {} for topic in known}
    for worker, part in sorted(parts.items()):
        for each in part.topics:
            holders.setdefault(each.topic, {})[worker] = each
    within = sorted(topic for topic in holders if horizon is None or topic <= horizon)
    shown = [_subscribed(topic, known.get(topic), holders[topic]) for topic in within[:limit]]
    is_cut = horizon is not None or len(within) > limit
    total = max(len(holders), 0 if feeder is None else feeder.total, *(part.total for part in parts.values()), 0)
    return Subscriptions(shown, total, shown[-1].topic if is_cut and shown else None, not missing, missing)


def _subscribed(topic: str, known: TopicFound | None, holders: Mapping[str, Holders]) -> Subscribed:
    parts = _parts(topic)
    ids = [client for each in holders.values() for client in each.ids][:NAMED]
    state, code, reason, seq, age = (
        (None, None, None, 0, None)
        if known is None
        else (
            known.state,
            known.code,
            known.reason,
            known.seq,
            known.age,
        )
    )
    clients = sum(each.clients for each in holders.values())
    return Subscribed(
        topic, str(parts.kind), parts.name, parts.detail, state, code, reason, seq, age, clients, ids, [*holders]
    )


def _parts(topic: str) -> TopicParts:
    if topic == ALL_TRADES:
        return TopicParts(Kind.TRADE, "", "")
    try:
        return parse_topic(topic)
    except WireError:
        # A prefix, or a topic of another version.
        return TopicParts(Kind.STATUS, topic, "")


def _holders(topic: Topic, stream: Stream, pages: Pages, worker: str) -> Holders:
    members = _subscriptions(stream)
    numbers = [of.owner.number for of in members[:NAMED] if isinstance(of.owner, Session)]
    return Holders(topic, len(members) + pages.holds(topic), [str(ClientId(worker, number)) for number in numbers])


def _subscriptions(stream: Stream) -> list[Subscription]:
    return [member for cohort in stream.cohorts for member in cohort.members if isinstance(member, Subscription)]


def _is_of(subscription: Subscription, client: ClientId) -> bool:
    return isinstance(subscription.owner, Session) and subscription.owner.number == client.number
