"""The page `/api/ticks/CODE`: what the store of the day has of one instrument, chunk by chunk as the client reads.

No more than one chunk is held for a client. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

import msgspec
from starlette.types import Receive, Scope, Send

from gateway.connections.handshake import EXTENSION
from gateway.http.admission import Caller, Host, admit, afford
from gateway.http.problems import Denied
from gateway.http.query import read_query
from gateway.http.rows import Rows, rows_of
from gateway.http.store_link import StoreAway
from gateway.keys.entry import headers_of
from gateway.session import Ended
from qmt_bridge.closes import CONNECTION_LIMIT
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.history import Hole, TopicHistory
from qmt_bridge.wire.moments import read_moment, shown_moment
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import FieldNames
from qmt_bridge.wire.topics import Topic, check_period, quote_topic

# Bytes of one answer of the store: of ticks it takes some 3 ms to render, during which no other client is served.
CHUNK = 128 * 1024
CHUNK_OF_CSV = 32 * 1024
# Bytes that an answer holds while it waits: a chunk as it came, as it is shown, and what waits in the transport.
HELD = 3 * CHUNK
# Of a compressor: window, hash table and output of zlib.
HELD_BY_GZIP = 256 * 1024
# Seconds in which a connection that was dropped is seen to be gone.
DROP_TIMEOUT = 5.0


class TicksQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of `/api/ticks/CODE`."""

    # The moment of the first record, and the one before which the records end (`wire.moments`); None: the newest one.
    start: int | str = "00:00"
    end: int | str | None = None
    period: str = "tick"
    # The names of the fields to send of each record; empty: all.
    fields: FieldNames = []
    format: Literal["ndjson", "csv"] = "ndjson"


class Gap(msgspec.Struct, frozen=True):
    """A part that is missing; `reason` is the store's (wire/history.py), or `store_away`: it ceased to answer."""

    reason: str
    after: Position | None = None
    before: Position | None = None
    from_ms: int | None = None
    until_ms: int | None = None

    @classmethod
    def of(cls, hole: Hole) -> Gap:
        """Return a hole of the store."""
        return cls(hole.reason, hole.after, hole.before, hole.from_ms, hole.until_ms)


class End(msgspec.Struct, frozen=True):
    """The last line of `/api/ticks/CODE`: without it the answer was cut off."""

    type: Literal["end"]
    # Lines before this one.
    records: int
    # Whether nothing is missing between the start that was asked for and the end, or the newest record.
    complete: bool
    # Time of day of the first record in Shanghai.
    first: str | None
    # The position of the newest record: a subscription that resumes there continues this answer.
    position: Position | None
    missing: list[Gap]


async def ticks(host: Host, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the page; raise `Denied` or `BadRequest` before the answer has begun."""
    caller = admit(host, scope)
    asked = read_query(scope["query_string"], TicksQuery)
    topic = _topic(scope["path_params"]["code"], asked)
    caller.require("market")
    if asked.period.startswith("l2"):
        caller.require("l2")
    await afford(host, caller, 1)
    _enter(host, caller)
    try:
        await _serve(host, asked, topic, scope, receive, send)
    finally:
        host.entry.room.leave(caller.address, caller.key)


def _topic(code: str, asked: TicksQuery) -> Topic:
    for name, given in (("start", asked.start), ("end", asked.end)):
        if given is not None:
            read_moment(given, name)
    return quote_topic(check_code(code), check_period(asked.period))


def _room(asked: TicksQuery) -> int:
    return CHUNK_OF_CSV if asked.format == "csv" else CHUNK


def _enter(host: Host, caller: Caller) -> None:
    """Take one of the worker's places, as a socket does."""
    if reached := host.entry.room.enter(caller.address, caller.key):
        host.limited["connections"] += 1
        raise Denied("connection_limit", reached)
    if caller.key is not None and host.entry.room.crowded:
        newest = next((session for session in reversed(host.sessions) if session.is_replaceable), None)
        if newest is not None:
            host.limited["connections"] += 1
            newest.end(Ended(CONNECTION_LIMIT, "a client with a key takes this place"))


async def _serve(host: Host, asked: TicksQuery, topic: Topic, scope: Scope, receive: Receive, send: Send) -> None:
    answer = scope.get("extensions", {}).get(EXTENSION)
    if answer is not None:
        # A server that stops cuts the answer off, and its last line is missing.
        answer.stream(answer.drop)
    first = await host.store.ask(topic, start=asked.start, end=asked.end, room=_room(asked))
    if first.state == "refused":
        raise Denied(first.code or "upstream_refused", first.error or "refused by the store")
    headers = headers_of(scope)
    kind = b"text/csv; charset=utf-8" if asked.format == "csv" else b"application/x-ndjson"
    sent = [(b"content-type", kind), (b"vary", b"Accept-Encoding")]
    if not first.more:
        tag = _tag(first, asked, topic)
        sent += [(b"etag", tag.encode()), (b"cache-control", b"private, no-cache")]
        if tag in [each.strip() for each in headers.get("if-none-match", "").split(",")]:
            await send({"type": "http.response.start", "status": HTTPStatus.NOT_MODIFIED, "headers": sent})
            await send({"type": "http.response.body"})
            return
    compressor = None
    if _takes_gzip(headers.get("accept-encoding", "")):
        sent.append((b"content-encoding", b"gzip"))
        # The fastest level takes a third of the time of the usual one.
        compressor = zlib.compressobj(1, wbits=31)
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": sent})
    held = HELD if compressor is None else HELD + HELD_BY_GZIP
    gone = asyncio.ensure_future(_gone(receive))
    try:
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        async for data in _lines(host, asked, topic, first):
            if gone.done():
                return
            if compressor is not None:
                data = await _compressed(compressor, data)
            message = {"type": "http.response.body", "body": data, "more_body": True}
            if data and not await _read(host, held, send(message)):
                await _drop(answer, gone)
                return
        rest = b"" if compressor is None else compressor.flush()
        if not await _read(host, held, send({"type": "http.response.body", "body": rest})):
            await _drop(answer, gone)
    finally:
        gone.cancel()


async def _lines(host: Host, asked: TicksQuery, topic: Topic, first: TopicHistory) -> AsyncIterator[bytes]:
    """Yield the lines of the answer, those of one chunk at a time, and the last line."""
    rows = rows_of(asked.format, asked.period, topic, asked.fields)
    chunk, missing = first, [Gap.of(hole) for hole in first.holes]
    while True:
        if lines := await host.slices.make(partial(rows.add, chunk)):
            yield lines
        if not chunk.more:
            break
        try:
            chunk = await host.store.ask(
                topic, after=(chunk.epoch, chunk.seq), end=first.end_ms or asked.end, room=_room(asked)
            )
        except StoreAway:
            missing.append(Gap("store_away", chunk.position))
            break
        if chunk.state == "refused":
            missing.append(Gap(chunk.error or "refused by the store", chunk.position))
            break
        missing += [Gap.of(hole) for hole in chunk.holes]
    if lines := rows.rest():
        yield lines
    yield rows.end(_end(rows, first, chunk, missing))


def _end(rows: Rows, first: TopicHistory, newest: TopicHistory, missing: list[Gap]) -> End:
    position = newest.position if newest.epoch else None
    shown = None if first.from_ms is None else shown_moment(first.from_ms)
    return End("end", rows.total, not missing, shown, position, missing)


def _tag(history: TopicHistory, asked: TicksQuery, topic: Topic) -> str:
    """Return the entity tag of an answer that is one chunk: what it is made of, compressed or not."""
    made_of = (
        topic,
        asked.format,
        asked.fields,
        history.start_ms,
        history.position,
        len(history.frames),
        history.holes,
    )
    return f'W/"{hashlib.sha256(msgspec.json.encode(made_of)).hexdigest()[:32]}"'


def _takes_gzip(accepted: str) -> bool:
    for each in accepted.lower().split(","):
        coding, _, quality = each.partition(";")
        if coding.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def _compressed(compressor: Any, data: bytes) -> bytes:
    """Return what is to be sent of a chunk, compressed on another thread: it takes as long as all else together."""

    def compress() -> bytes:
        return bytes(compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))

    return await asyncio.get_running_loop().run_in_executor(None, compress)


async def _read(host: Host, held: int, sending: Awaitable[None]) -> bool:
    """Wait until there is room for more, and hold so many bytes; return False for a client that reads nothing."""
    loop = asyncio.get_running_loop()

    def drop() -> None:
        host.limited["outbox_total_bytes"] += 1
        if not limit.expired():
            limit.reschedule(loop.time())

    try:
        async with asyncio.timeout(host.config.slow_timeout) as limit:
            with host.waiting.hold(held, drop):
                await sending
    except TimeoutError:
        return False
    return True


async def _drop(answer: Any, gone: asyncio.Future[None]) -> None:
    if answer is not None:
        answer.drop()
    await asyncio.wait([gone], timeout=DROP_TIMEOUT)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
