"""The page `/api/ticks/CODE`: what the store of the day has of one instrument, chunk by chunk as the client reads.

No more than one chunk is held for a client. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from gateway.http.admission import Caller, Host, admit, afford
from gateway.http.connection import Connection
from gateway.http.formats.rows import Format, Rows, load_parquet, rows_of
from gateway.http.problems import Denied
from gateway.http.query import read_query
from gateway.http.request_headers import known_tags, takes_gzip
from gateway.keys.entry import headers_of
from gateway.links.store import StoreAway
from gateway.session import Ended
from qmt_bridge.closes import CONNECTION_LIMIT
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.history import Hole, TopicHistory
from qmt_bridge.wire.moments import read_moment, shown_moment
from qmt_bridge.wire.positions import Position, Step
from qmt_bridge.wire.requests import FieldNames
from qmt_bridge.wire.topics import Topic, check_period, parse_topic, quote_topic

Made = TypeVar("Made")

# Bytes of one answer of the store: of ticks it takes some 3 ms to render, during which no other client is served.
CHUNK = 128 * 1024
CHUNK_OF: Mapping[Format, int] = {"ndjson": CHUNK, "csv": 32 * 1024, "parquet": 64 * 1024}
# Bytes that an answer holds while it waits: a chunk as it came, as it is shown, and what waits in the transport.
HELD = 3 * CHUNK
# Of a compressor: window, hash table and output of zlib.
HELD_BY_GZIP = 256 * 1024
# Of Parquet: the buffer of what writes it, and a row group that was written.
HELD_BY_PARQUET = 1024 * 1024
# Seconds in which an answer of the store has to come, the turn to ask included; it is read from a disk, one after the
# other.
ANSWER_TIMEOUT = 5.0
# Seconds until a store is asked again that completes the day.
FILLING_AGAIN = 0.25
_TYPES: Mapping[Format, bytes] = {
    "ndjson": b"application/x-ndjson",
    "csv": b"text/csv; charset=utf-8",
    "parquet": b"application/vnd.apache.parquet",
}


class TicksQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of `/api/ticks/CODE`."""

    # The moment of the first record, and the one before which the records end (`wire.moments`); None: the newest one.
    start: int | str = "00:00"
    end: int | str | None = None
    period: str = "tick"
    # The names of the fields to send of each record; empty: all.
    fields: FieldNames = []
    format: Format = "ndjson"


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
    if asked.format == "parquet":
        await _load_parquet()
    _enter(host, caller)
    try:
        await _serve(_Reading(host, caller, topic, asked), scope, receive, send)
    finally:
        host.entry.room.leave(caller.address, caller.key)


def _topic(code: str, asked: TicksQuery) -> Topic:
    for name, given in (("start", asked.start), ("end", asked.end)):
        if given is not None:
            read_moment(given, name)
    return quote_topic(check_code(code), check_period(asked.period))


async def _load_parquet() -> None:
    try:
        await _on_a_thread(load_parquet)
    except ImportError:
        told = "parquet needs pyarrow beside the gateway: pip install 'qmt-bridge-gateway[parquet]'"
        raise Denied("bad_request", told, HTTPStatus.NOT_IMPLEMENTED) from None


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


async def _serve(reading: _Reading, scope: Scope, receive: Receive, send: Send) -> None:
    host, asked = reading.host, reading.asked
    connection = Connection(scope, receive)
    # A server that stops cuts the answer off, and its last line is missing.
    connection.stream()
    try:
        first = await reading.begin()
    except StoreAway as exc:
        raise Denied("upstream_unavailable", str(exc)) from None
    if first.state == "refused":
        raise Denied(first.code or "upstream_refused", first.error or "refused by the store")
    headers = headers_of(scope)
    sent = [(b"content-type", _TYPES[asked.format]), (b"vary", b"Accept-Encoding")]
    if asked.format == "parquet":
        name = f"{parse_topic(reading.topic).name}-{asked.period}.parquet"
        sent.append((b"content-disposition", f'attachment; filename="{name}"'.encode()))
    if tag := reading.tag(known_tags(headers)):
        sent += [(b"etag", tag.encode()), (b"cache-control", b"private, no-cache")]
        if tag in known_tags(headers):
            await send({"type": "http.response.start", "status": HTTPStatus.NOT_MODIFIED, "headers": sent})
            await send({"type": "http.response.body"})
            return
    held, compressor = HELD, None
    if asked.format == "parquet":
        # It is compressed as it is.
        held += HELD_BY_PARQUET
    elif takes_gzip(headers):
        sent.append((b"content-encoding", b"gzip"))
        # The fastest level takes a third of the time of the usual one.
        held, compressor = held + HELD_BY_GZIP, zlib.compressobj(1, wbits=31)
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": sent})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
        return
    gone = asyncio.ensure_future(connection.gone())
    try:
        async for data in reading.lines():
            if gone.done():
                return
            if not data:
                continue
            if compressor is not None:
                data = await _on_a_thread(partial(_compressed, compressor, data))
            message = {"type": "http.response.body", "body": data, "more_body": True}
            if not await _read(host, held, send(message)):
                await connection.drop()
                return
        rest = b"" if compressor is None else compressor.flush()
        if not await _read(host, held, send({"type": "http.response.body", "body": rest})):
            await connection.drop()
        else:
            reading.keep()
    finally:
        gone.cancel()


class _Reading:
    """One answer while it is read from the store."""

    def __init__(self, host: Host, caller: Caller, topic: Topic, asked: TicksQuery) -> None:
        self.host = host
        self.topic = topic
        self.asked = asked
        self._caller = caller
        self._room = CHUNK_OF[asked.format]
        self._rows = rows_of(asked.format, asked.period, topic, asked.fields)
        self._tag = ""
        self._missing: list[Gap] = []
        self._is_closed = False

    async def begin(self) -> TopicHistory:
        """Return the first chunk, or a refusal; raise `StoreAway`."""
        self._first = self._newest = await self._ask(start=self.asked.start, end=self.asked.end, room=self._room)
        return self._first

    def tag(self, known: Sequence[str]) -> str:
        """Return the entity tag of the answer; it is one of `known` if the client has this answer.

        What more than one chunk has is known at its end: of a part of the past that ends it is remembered then.
        """
        if not self._first.more:
            self._tag = _tag(self._first, self.asked, self.topic)
        elif self._first.end_ms:
            closed = self.host.closed
            self._tag = closed.find(known, self._closed_as()) or closed.tag()
        return self._tag

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of the answer, those of one chunk at a time, and the last line."""
        rows, first = self._rows, self._first
        self._missing += [Gap.of(hole) for hole in first.holes]
        while True:
            yield await self._made(partial(rows.add, self._newest))
            if not self._newest.more:
                break
            after = self._newest.position
            try:
                chunk = await self._ask(after=after, end=first.end_ms or self.asked.end, room=self._room)
            except StoreAway:
                self._missing.append(Gap("store_away", after))
                break
            if chunk.state == "refused":
                self._missing.append(Gap(chunk.error or "refused by the store", after))
                break
            self._missing += [Gap.of(hole) for hole in chunk.holes]
            self._newest = chunk
        yield await self._made(rows.rest)
        self._is_closed = await self._find_closed()
        yield await self._made(lambda: rows.end(_end(rows, first, self._newest, self._missing)))

    def keep(self) -> None:
        """Remember an answer that was sent and cannot change."""
        if self._is_closed:
            self.host.closed.keep(self._tag, self._closed_as())

    async def _find_closed(self) -> bool:
        """Return whether a long answer cannot change: nothing is missing in it, and a newer record follows it."""
        if not self._first.more or not self._first.end_ms or self._missing:
            return False
        try:
            behind = await self._ask(start=self._first.end_ms, room=1)
        except StoreAway:
            return False
        position = self._newest.position
        return any(position.step(Position(each.epoch, each.seq)) is Step.NEXT for each in behind.frames[:1])

    def _closed_as(self) -> Hashable:
        first, asked = self._first, self.asked
        begins = [(each.epoch, each.seq) for each in first.frames[:1]]
        return self.topic, asked.format, (*asked.fields,), first.start_ms, first.end_ms, *begins

    async def _made(self, make: Callable[[], bytes]) -> bytes:
        lines = await self.host.slices.make(make)
        return lines + await _on_a_thread(self._rows.pack) if self._rows.is_full else lines

    async def _ask(
        self,
        *,
        start: int | str | None = None,
        after: Position | None = None,
        end: int | str | None = None,
        room: int,
    ) -> TopicHistory:
        """Return an answer of the store; raise `StoreAway`.

        A store that completes the day from the source's history takes up to some minutes, and is asked again.
        """
        while True:
            history = await self._ask_once(start, after, end, room)
            if history.state != "filling":
                return history
            await asyncio.sleep(FILLING_AGAIN)

    async def _ask_once(
        self, start: int | str | None, after: Position | None, end: int | str | None, room: int
    ) -> TopicHistory:
        """Ask in its turn beside the first answers to sockets: pages and sockets ask by one link, in order."""
        turns, granted = self.host.opening_turns, asyncio.get_running_loop().create_future()
        turns.ask(granted, self._caller.name, self._caller.address, partial(_grant, granted))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await granted
                return await self.host.store.ask(self.topic, start=start, after=after, end=end, room=room)
        except TimeoutError:
            raise StoreAway from None
        finally:
            turns.give_back(granted, self._caller.name)


def _grant(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


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


async def _on_a_thread(make: Callable[[], Made]) -> Made:
    return await asyncio.get_running_loop().run_in_executor(None, make)


def _compressed(compressor: Any, data: bytes) -> bytes:
    """Return what is to be sent of a chunk; to compress takes as long as all else together."""
    return bytes(compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))


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
