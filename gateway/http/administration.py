"""The pages `/api/state`, `/api/capabilities`, `/api/clients` and `/api/subscriptions`. Run on the event loop.

What they answer is collected by `gateway.admin`; here is who may ask, and what the parameters are.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from gateway.access.peers import from_this_machine
from gateway.admin import clients, topics
from gateway.admin.administration import Administration, KickTerms
from gateway.admin.clients import ClientsPart, ClientsQuery, read_id
from gateway.admin.state import FeederPart, WorkerPart, state
from gateway.admin.surveys import Findings, TooMany
from gateway.admin.topics import Ended, EndedPart, EndTerms, HoldersPart, SubscriptionsQuery
from gateway.admin.verdict import judge
from gateway.admin.watch import WhyPart, WhyTerms
from gateway.http import admission
from gateway.http.admission import Caller, admit
from gateway.http.problems import Denied
from gateway.http.query import read_query
from gateway.keys.entry import headers_of
from qmt_bridge import __version__
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import AccountState
from qmt_bridge.wire.survey import SubscriptionTerms, TopicsFound, What
from qmt_bridge.wire.topics import TOPIC_BYTES

_NS_PER_MS = 1_000_000
_TOO_MANY = "too many questions to all workers are under way"


class Host(admission.Host, Protocol):
    """What these pages use of the worker."""

    administration: Administration


class NoQuery(msgspec.Struct, frozen=True):
    """A page without parameters."""


class KickQuery(msgspec.Struct, frozen=True):
    """The parameters of a DELETE of a client."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "an administrator has ended this connection"


class EndQuery(msgspec.Struct, frozen=True):
    """The parameters of a DELETE of a subscription."""

    client: str | None = None
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "an administrator has ended this subscription"


class WhyQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of `/api/why`."""

    # A code, a market, or a topic.
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=TOPIC_BYTES)]
    client: str | None = None
    # For how long the workers look.
    seconds: Annotated[int, msgspec.Meta(ge=1, le=5)] = 3


class Kicked(msgspec.Struct, frozen=True):
    """The answer of a DELETE of a client."""

    id: str
    ended: bool


class Capability(msgspec.Struct, frozen=True):
    """One capability of the source, and in a sentence what is lacking for it."""

    name: str
    served: bool
    lacks: str | None


class Limits(msgspec.Struct, frozen=True):
    """What one socket of this gateway may hold and ask in a second, and what the feeder takes of scarce topics."""

    max_topics: int
    max_rate: int
    max_depths: int
    max_formulas: int


class FeederCapabilities(msgspec.Struct, frozen=True):
    """What the feeder finds (`feeder.publisher.Publisher.capabilities`)."""

    version: str
    kinds: list[str]
    periods: list[str]
    capabilities: list[Capability]
    failure: str | None
    max_depths: int
    max_formulas: int


class Capabilities(msgspec.Struct, frozen=True):
    """The answer of `/api/capabilities`; `failure` is why the source does not say what it can do."""

    source: str
    simulated: bool
    sdk: str
    version: str
    feed: str
    reason: str | None
    kinds: list[str]
    periods: list[str]
    capabilities: list[Capability]
    failure: str | None
    limits: Limits
    accounts: list[AccountState] | None


async def show_state(host: Host, scope: Scope) -> Response:
    """Return what the service does now; raise `Denied` or `BadRequest`."""
    caller = admit(host, scope)
    read_query(scope["query_string"], NoQuery)
    found = await _shared(host, "state")
    parts, feeder = found.read(WorkerPart), found.of_feeder(FeederPart)
    status, absence = host.feed.status, host.feed.absence
    time_ms, full = clock.time_ns() // _NS_PER_MS, _sees_all(caller, scope)
    return _json(state(parts, feeder, status, absence, found.missing, time_ms, __version__, full=full))


async def show_capabilities(host: Host, scope: Scope) -> Response:
    """Return what source, SDK and accounts can serve; raise `Denied` or `BadRequest`."""
    caller = admit(host, scope)
    read_query(scope["query_string"], NoQuery)
    found = (await _shared(host, "capabilities")).of_feeder(FeederCapabilities)
    status, config = host.feed.status, host.config
    if found is None or status is None:
        raise Denied("upstream_unavailable", "the feeder does not answer")
    return _json(
        Capabilities(
            status.source,
            status.simulated,
            status.sdk,
            found.version,
            status.state,
            status.reason,
            found.kinds,
            found.periods,
            found.capabilities,
            found.failure,
            Limits(config.max_topics, config.max_rate, found.max_depths, found.max_formulas),
            list(status.accounts) if _sees_all(caller, scope) else None,
        )
    )


async def show_clients(host: Host, scope: Scope) -> Response:
    """Return the clients of all workers; raise `Denied` or `BadRequest`."""
    _admit(host, scope)
    query = read_query(scope["query_string"], ClientsQuery)
    if query.after:
        read_id(query.after)
    found = await _ask(host, "clients", query)
    return _json(clients.merged(found.read(ClientsPart), query.limit, found.missing))


async def kick(host: Host, scope: Scope) -> Response:
    """Close the socket of a client; raise `Denied` or `BadRequest`."""
    _admit(host, scope)
    query = read_query(scope["query_string"], KickQuery)
    client = read_id(scope["path_params"]["id"])
    found = await _ask(host, "kick", KickTerms(client.number, query.reason), client.worker)
    part = found.read(EndedPart).get(client.worker)
    if part is None and found.missing:
        raise Denied("upstream_unavailable", f"the worker {client.worker} does not answer")
    if part is None or not part.ended:
        raise Denied("bad_request", f"there is no client {client}", HTTPStatus.NOT_FOUND)
    return _json(Kicked(str(client), True))


async def show_subscriptions(host: Host, scope: Scope) -> Response:
    """Return what is subscribed at the terminal, and by whom; raise `Denied` or `BadRequest`."""
    _admit(host, scope)
    query = read_query(scope["query_string"], SubscriptionsQuery)
    terms = SubscriptionTerms(query.limit, query.after, query.prefix)
    if query.client is None:
        found = await _ask(host, "subscriptions", terms)
        parts = found.read(HoldersPart)
        return _json(topics.merged(parts, found.of_feeder(TopicsFound), query.limit, found.missing))
    return _json(await _of_client(host, query, terms))


async def _of_client(host: Host, query: SubscriptionsQuery, terms: SubscriptionTerms) -> topics.Subscriptions:
    """Return the topics of one client: its worker names them, and all are asked about these."""
    client = read_id(str(query.client))
    of_client = msgspec.structs.replace(terms, client=str(client))
    first = await _ask(host, "subscriptions", of_client, client.worker)
    own = first.read(HoldersPart).get(client.worker)
    if own is None:
        return topics.merged({}, None, query.limit, first.missing or [client.worker])
    names = topics.named(each.topic for each in own.topics)
    found = await _ask(host, "subscriptions", SubscriptionTerms(query.limit, topics=names))
    parts = found.read(HoldersPart)
    merged = topics.merged(parts, found.of_feeder(TopicsFound), query.limit, found.missing)
    goes_on = own.more or len(names) < len(own.topics)
    following = names[-1] if goes_on and names else None
    return msgspec.structs.replace(merged, total=own.total, next=following)


async def end_subscription(host: Host, scope: Scope) -> Response:
    """End the subscription of a topic; raise `Denied` or `BadRequest`."""
    _admit(host, scope)
    query = read_query(scope["query_string"], EndQuery)
    topic = scope["path_params"]["topic"].rstrip("/") + "/"
    worker = None if query.client is None else read_id(query.client).worker
    found = await _ask(host, "end", EndTerms(topic, query.client, query.reason), worker)
    ended = sum(part.ended for part in found.read(EndedPart).values())
    if not ended and found.complete:
        raise Denied("bad_request", f"no client has the topic {topic[:80]!r}", HTTPStatus.NOT_FOUND)
    return _json(Ended(topic, ended, found.complete, found.missing))


async def show_why(host: Host, scope: Scope) -> Response:
    """Return where the data of a code is late or lost now; raise `Denied` or `BadRequest`."""
    _admit(host, scope)
    query = read_query(scope["query_string"], WhyQuery)
    client = None if query.client is None else read_id(query.client)
    terms = WhyTerms(query.code, None if client is None else client.number, float(query.seconds))
    found = await _ask(host, "why", terms, None if client is None else client.worker, takes=query.seconds)
    parts = found.read(WhyPart)
    topic = next((part.topic for part in parts.values() if part.topic), None)
    known = None
    if topic is not None:
        listed = (await _ask(host, "subscriptions", SubscriptionTerms(1, topics=[topic]))).of_feeder(TopicsFound)
        known = None if listed is None else next(iter(listed.topics), None)
    return _json(judge(query.code, parts, known, host.feed.status, host.feed.absence, found.missing))


def _admit(host: Host, scope: Mapping[str, Any]) -> Caller:
    """Return an administrator: a key with that scope is needed whatever the settings say, on this machine too."""
    caller = admit(host, scope, always=True)
    caller.require("admin")
    return caller


def _sees_all(caller: Caller, scope: Mapping[str, Any]) -> bool:
    """Return whether a client may see what concerns others; the rule is that of /metrics."""
    near = from_this_machine(scope.get("client"), scope.get("server"), headers_of(scope))
    return near or (caller.key is not None and caller.key.allows("admin"))


async def _ask(host: Host, what: What, terms: object = None, worker: str | None = None, takes: float = 0.0) -> Findings:
    try:
        return await host.administration.ask(what, terms, worker, takes=takes)
    except TooMany:
        raise Denied("rate_limited", _TOO_MANY) from None


async def _shared(host: Host, what: What) -> Findings:
    try:
        return await host.administration.ask_shared(what)
    except TooMany:
        raise Denied("rate_limited", _TOO_MANY) from None


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer) + b"\n", media_type="application/json")
