"""The clients of a worker and of all of them, a page at a time. Pure (docs/administration.md, "/api/clients")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, NamedTuple

import msgspec

from gateway.session import Session
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.survey import FINDING_BYTES

# Of one answer.
MOST_SHOWN = 2000
_ID = re.compile(r"([0-9a-f]{8})-([0-9]{1,15})", re.ASCII)
# Bytes of a client beside its texts.
_BYTES = 350

Limit = Annotated[int, msgspec.Meta(ge=1, le=MOST_SHOWN)]


class ClientId(NamedTuple):
    """The name of a worker and the number of a session there; their order is that of the answers."""

    worker: str
    number: int

    def __str__(self) -> str:
        return f"{self.worker}-{self.number}"


def read_id(text: str) -> ClientId:
    """Return the id of a client; raise `BadRequest`."""
    found = _ID.fullmatch(text)
    if found is None:
        raise BadRequest("bad_request", f"an id of a client is like a3f09c1d-17, not {text[:40]!r}")
    return ClientId(found[1], int(found[2]))


class ClientsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of `/api/clients`, and the terms of the survey."""

    limit: Limit = 500
    after: str = ""
    key: str | None = None
    address: str | None = None
    endpoint: str | None = None


class Client(msgspec.Struct, frozen=True):
    """One connected client; `since` is ms since 1970, `lag` seconds between write and read."""

    id: str
    worker: str
    gateway: str
    address: str
    key: str | None
    since: int
    endpoint: str
    # Topics.
    subscriptions: int
    # Frames that it was sent, bytes that wait for it in the worker, and frames and records that it was not sent.
    frames: int
    outbox_bytes: int
    skipped: int
    lag: float
    # Whether nothing can be written until it reads.
    slow: bool


class ClientsPart(msgspec.Struct, frozen=True):
    """The clients of one worker; `more` says that some follow the last of them."""

    clients: list[Client]
    total: int
    more: bool


class Clients(msgspec.Struct, frozen=True):
    """The answer of `/api/clients`; `next` is where to go on, None at the end."""

    clients: list[Client]
    total: int
    next: str | None
    complete: bool
    missing: list[str]


def part_of(sessions: Iterable[Session], query: ClientsQuery, worker: str, gateway: str) -> ClientsPart:
    """Return those of a worker's clients that the query chooses, in the order of their numbers."""
    after = read_id(query.after) if query.after else ClientId("", 0)
    chosen = sorted((session for session in sessions if _is_chosen(session, query)), key=lambda session: session.number)
    following = [session for session in chosen if ClientId(worker, session.number) > after]
    clients: list[Client] = []
    size = 0
    for session in following[: query.limit]:
        client = _client(session, worker, gateway)
        size += _BYTES + len(client.address) + len(client.key or "") + len(client.endpoint)
        if clients and size > FINDING_BYTES:
            break
        clients.append(client)
    return ClientsPart(clients, len(chosen), len(clients) < len(following))


def merged(parts: Mapping[str, ClientsPart], limit: int, missing: list[str]) -> Clients:
    """Return one page of the clients of all workers, in the order of the workers' names."""
    shown: list[Client] = []
    is_cut = False
    for _, part in sorted(parts.items()):
        left = limit - len(shown)
        shown += part.clients[:left]
        is_cut = part.more or len(part.clients) > left
        if is_cut:
            # What follows here comes before the clients of the next worker.
            break
    total = sum(part.total for part in parts.values())
    return Clients(shown, total, shown[-1].id if is_cut and shown else None, not missing, missing)


def sessions_of(sessions: Iterable[Session], number: int) -> Iterator[Session]:
    """Yield the session with a number, if there is one."""
    return (session for session in sessions if session.number == number)


def _is_chosen(session: Session, query: ClientsQuery) -> bool:
    key = None if session.key is None else session.key.name
    return (
        query.key in (None, key) and query.address in (None, session.address) and query.endpoint in (None, session.path)
    )


def _client(session: Session, worker: str, gateway: str) -> Client:
    sender = session.sender
    return Client(
        str(ClientId(worker, session.number)),
        worker,
        gateway,
        session.address,
        None if session.key is None else session.key.name,
        session.since,
        session.path,
        len(session.subscriptions),
        sender.frames,
        sender.outbox.size,
        sender.skipped,
        round(sender.lag, 4),
        sender.stalled,
    )
