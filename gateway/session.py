"""The life of one WebSocket: accept, key, requests in, frames out, close with a reason.

The reader is the ASGI server's task for this socket. What is to be sent leaves by prepared frames (writer.py) or, under
another server, by a task that exists only while something waits. `put` never waits, so a slow client costs its own
memory and nobody's time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from gateway.auth import KEY_SUBPROTOCOL, presented_key
from gateway.hub import Refusal
from gateway.limits import TokenBucket, is_own_origin, origin_allowed
from gateway.sending.outbox import Item, Outbox
from gateway.sending.view import Seen
from gateway.subscription import Subscription, Ticket
from gateway.writer import EXTENSION, HIGH_WATER, PreparedFrames
from qmt_bridge.errors import RETRYABLE, BadRequest, ErrorCode, WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, to_json
from qmt_bridge.wire.hints import Ignored
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import (
    IGNORED_NAMES,
    REQUEST_BYTES,
    ignored_fields,
    ignored_parameters,
    parse_request,
    request_id,
)
from qmt_bridge.wire.topics import parse_topic

if TYPE_CHECKING:
    from gateway.worker import Worker

logger = logging.getLogger(__name__)

# Whoever offers one has opted in; the value tells whether frames are binary ones (MessagePack).
SUBPROTOCOLS = {"qmt.v1.json": False, "qmt.v1.msgpack": True}
AUTH_TIMEOUT = 5.0
FIRST_REQUEST_TIMEOUT = 30.0
# How long a client may take to read what it is told at the end.
CLOSE_TIMEOUT = 5.0
# Who has not shown a key, or comes from a foreign page, gets no frame at all; who does not read could not take one.
_UNTOLD: frozenset[ErrorCode] = frozenset(("unauthorized", "origin_denied", "slow_client"))
# Bytes of a close frame's reason (RFC 6455, 5.5).
_REASON_BYTES = 123


class Ended(Exception):
    """The socket is to be closed with `close_code`; `error` is told in an error frame first."""

    def __init__(self, close_code: int, code: ErrorCode | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.close_code = close_code
        self.code = code
        self.reason = reason


class _Disconnected(Exception):
    """The client has gone; `close_code` is its own."""

    def __init__(self, close_code: int) -> None:
        super().__init__(close_code)
        self.close_code = close_code


class Endpoint(Protocol):
    """What one URL does with its requests; a new one serves each socket."""

    # Needs the key whatever the settings say.
    always_key: ClassVar[bool]
    # Fields of a request by which the client opts in to the control layer.
    opts_in: ClassVar[frozenset[str]]
    # Parameters of its URL.
    parameters: ClassVar[tuple[str, ...]]
    # Seconds after which a socket without a request is closed; None: the URL needs none.
    first_request_timeout: ClassVar[float | None]

    def __init__(self, session: Session) -> None:
        """Begin to serve `session`, whose client has been admitted."""

    async def handle(self, request: dict[str, Any]) -> None:
        """Serve a request; raise `BadRequest` if it cannot be served as it stands."""


class Session:
    """One WebSocket. An endpoint reads its requests, subscribes topics, and may `end` it."""

    # A connection that says nothing should cost little: as a dict, the attributes would take 1.5 KB.
    __slots__ = (
        "_bucket",
        "_direct",
        "_drained",
        "_end",
        "_ended",
        "_flushing",
        "_frames",
        "_gone",
        "_ignored",
        "_limited",
        "_reader",
        "_receive",
        "_reported",
        "_scope",
        "_send",
        "_writer",
        "binary",
        "loop",
        "missed",
        "on_refused",
        "opted_in",
        "outbox",
        "path",
        "query",
        "ready",
        "room",
        "sending_since",
        "sent_at",
        "subscriptions",
        "worker",
    )

    def __init__(self, worker: Worker, scope: Scope, receive: Receive, send: Send) -> None:
        self.worker = worker
        self.path: str = scope["path"].removesuffix("/")
        self.query: bytes = scope["query_string"]
        self.opted_in = False
        # Whether frames are MessagePack in binary frames.
        self.binary = False
        # Messages lost on the way from the feeder, of which the client has not been told.
        self.missed = 0
        self.outbox = Outbox(worker.config.outbox_bytes)
        self.subscriptions: dict[Subscription, None] = {}
        # Frames of this turn of the loop that go past the outbox, and the bytes for which there is room: none while
        # something waits in the outbox, since they would overtake it, or where the server offers no prepared frames.
        self.ready: list[Frame | Seen] = []
        self.room = 0
        # loop.time() when the send under way began, or None; the worker ends a session that makes no progress.
        self.sending_since: float | None = None
        self.sent_at = 0.0
        # What a refusal that comes later than the ack is turned into; set by the endpoint.
        self.on_refused: Callable[[Subscription, Refusal], None] | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self.loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(worker.config.max_rate, self.loop.time())
        self._limited = 0
        # One of the two: prepared frames where the server offers them, else a task that sends by ASGI.
        self._direct: PreparedFrames | None = scope.get("extensions", {}).get(EXTENSION)
        self._writer: asyncio.Task[None] | None = None
        self._flushing = False
        # To be called once nothing waits any more.
        self._drained: list[Callable[[float], None]] | None = None
        if self._direct is not None:
            self._direct.on_room = self.flush
            self._direct.on_shutdown = self._tell_closing
            self.outbox.deflated = self._direct.deflates
            self.room = HIGH_WATER
        self._reader: asyncio.Task[Any] | None = None
        self._end: Ended | None = None
        # Snapshots that have ended in this turn of the loop, with their numbers of codes.
        self._ended: dict[Subscription, int] | None = None
        self._gone = False
        self._reported = 0
        # Names that exist nowhere, of which the client has been told.
        self._ignored: set[str] | None = None
        self._frames = 0

    async def run(self, endpoint: type[Endpoint]) -> None:
        """Serve the socket by a new `endpoint` until it ends."""
        message = await self._receive()
        assert message["type"] == "websocket.connect", message
        began = time.monotonic()
        self._reader = asyncio.current_task()
        offered = self._scope.get("subprotocols", [])
        chosen = next((item for item in offered if item in SUBPROTOCOLS), None)
        self.opted_in = chosen is not None or b"ctl=1" in self.query.split(b"&")
        self.binary = self.outbox.binary = chosen is not None and SUBPROTOCOLS[chosen]
        if chosen is None:
            # A browser fails the connection when it offered subprotocols and none is chosen.
            chosen = next((item for item in offered if item.startswith(KEY_SUBPROTOCOL)), None)
        ended = "failed"
        self.worker.sessions[self] = None
        try:
            # Accept first, then close: a close before the handshake is a bare HTTP 403 without code or reason.
            await self._send({"type": "websocket.accept", "subprotocol": chosen})
            if self._direct is not None:
                self._direct.forget_handshake()
            ended = await self._serve(endpoint)
        except OSError:
            ended = "lost"
        finally:
            del self.worker.sessions[self]
            self._gone = True
            for subscription in self.subscriptions:
                self.worker.feed.hub.leave(subscription.topic, subscription)
            if self._writer is not None:
                self._writer.cancel()
            self._count_skipped()
            if self.outbox.unfit:
                logger.warning("%s: %d frames had no JSON form and were left out", self.path, self.outbox.unfit)
            client = self._scope.get("client") or ("?",)
            seconds = time.monotonic() - began
            logger.info("%s from %s: %s after %.1f s, %d frames", self.path, client[0], ended, seconds, self._frames)

    def subscribe(
        self,
        subscriptions: Sequence[Subscription],
        after: JournalPosition | None,
        acknowledge: Callable[[Ticket], None] | None,
    ) -> None:
        """Subscribe; with `acknowledge` the data of all of them waits until it has sent the ack."""
        self.subscriptions.update(dict.fromkeys(subscriptions))
        if acknowledge is not None:
            Ticket(self, subscriptions, acknowledge)
        members = {subscription.topic: subscription for subscription in subscriptions}
        position = () if after is None else (after.seq, after.epoch)
        self.worker.feed.hub.join(members, time.monotonic(), *position)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Give a subscription up."""
        if self.subscriptions.pop(subscription, subscription) is None:
            self.worker.feed.hub.leave(subscription.topic, subscription)
            if isinstance(subscription.gate, Ticket):
                subscription.gate.release(subscription)

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` with time.monotonic(), later, once nothing waits for the client any more."""
        if self._drained is None:
            self._drained = []
        self._drained.append(act)
        # After what has been delivered in this turn of the loop, or held back until an ack.
        self.later(self.wake)

    def later(self, act: Callable[[], None]) -> None:
        """Call `act` once the hub is done with the answer at hand, if the socket is still there then."""
        self.loop.call_soon(lambda: None if self._gone else act())

    def refused(self, subscription: Subscription, refusal: Refusal) -> None:
        """Tell the client that a topic is not served (any more)."""
        if self.on_refused is not None:
            self.on_refused(subscription, refusal)
        else:
            self.error(refusal.code, refusal.reason, symbol=parse_topic(subscription.topic).name)

    def put(self, item: Item) -> None:
        """Queue a frame; end the session if a stream that may not lose anything does not fit."""
        self.room = 0
        self.outbox.put(item)
        if self.outbox.overflowed:
            self.end(Ended(1013, "slow_client", "the client does not keep up with a stream that may not lose anything"))
        else:
            self.wake()

    def tell(self, frame: Mapping[str, Any]) -> None:
        """Queue a control frame; an absent id is left out."""
        shown = {key: value for key, value in frame.items() if key != "id" or value is not None}
        self.room = 0
        self.outbox.put_control(self._encode(shown))
        self.wake()

    def error(self, code: ErrorCode, error: str, **fields: Any) -> None:
        """Queue an error frame, the same everywhere; fields that are None are left out."""
        extra = {key: value for key, value in fields.items() if value is not None}
        self.tell({"type": "error", **extra, "code": code, "error": error, "retry": code in RETRYABLE})

    def has_told(self, names: Iterable[str]) -> None:
        """Note that an ack names these, so that no error frame has to; no more than `tell_ignored` tells."""
        self._ignored = self._ignored or set()
        self._ignored.update(islice(names, IGNORED_NAMES - len(self._ignored)))

    def tell_ignored(self, ignored: Iterable[Ignored]) -> None:
        """Tell a client that gets no ack which names of its request mean nothing; each once, and not without end."""
        for name, hint in ignored:
            self._ignored = self._ignored or set()
            if name not in self._ignored and len(self._ignored) < IGNORED_NAMES:
                self._ignored.add(name)
                self.error("unknown_field", f"{name!r} means nothing here and is ignored; {hint}", field=name)

    def end(self, ended: Ended) -> None:
        """End the session from outside its reader, once what is queued has been sent."""
        if self._end is None and not self._gone and self._reader is not None:
            self._end = ended
            self._reader.cancel()

    def tell_missed(self) -> None:
        """Tell a client that opted in what was lost on the way from the feeder since it was last told."""
        missed, self.missed = self.missed, 0
        if missed and self.opted_in:
            self.tell({"type": "skipped", "count": missed, "reason": "feed_gap"})

    def snapshot_ended(self, subscription: Subscription, count: int) -> None:
        """Tell a client that opted in, once it was sent what this turn of the loop brings, which snapshots are whole.

        `count` is the number of codes in the snapshot.
        """
        if not self.opted_in:
            return
        if self._ended is None:
            self._ended = {}
            self.later(self._tell_ended)
        self._ended[subscription] = count

    def _tell_ended(self) -> None:
        ended, self._ended = self._ended or {}, None
        counts = {parse_topic(of.topic).name: count for of, count in ended.items() if of in self.subscriptions}
        if counts:
            self.tell({"type": "snapshot_end", "codes": list(counts), "count": sum(counts.values())})

    def _encode(self, frame: Mapping[str, Any]) -> bytes:
        return frames.encode(frame) if self.binary else to_json(frame)

    async def _serve(self, endpoint: type[Endpoint]) -> str:
        try:
            try:
                self._admit()
                if endpoint.always_key or self.worker.config.require_key:
                    await self._authenticate(endpoint)
                ignored = self._ignored_parameters(endpoint)
                if self.opted_in:
                    self.tell(self.worker.welcome() | shown_ignored(ignored))
                else:
                    self.tell_ignored(ignored)
                await self._read(endpoint)
            except asyncio.CancelledError:
                if self._end is None:
                    raise
                if self._reader is not None:
                    self._reader.uncancel()
                raise self._end from None
        except _Disconnected as exc:
            return f"client closed with {exc.close_code}"
        except Ended as exc:
            return await self._close(exc)
        except Exception:
            # A bug in our code: the client is told, the log has the traceback, nobody else is touched.
            logger.exception("session on %s failed", self.path)
            return await self._close(Ended(1011, "internal", "internal error"))
        return await self._close(Ended(1000))

    async def _read(self, endpoint: type[Endpoint]) -> None:
        """Give the endpoint one request after the other; a bad first frame ends the socket, a later one does not."""
        serving = endpoint(self)
        waits = endpoint.first_request_timeout
        while True:
            try:
                async with asyncio.timeout(waits):
                    payload = await self._next_payload()
            except TimeoutError:
                raise Ended(1008, "bad_request", f"no request within {waits:.0f} s") from None
            if not self._may_pass():
                continue
            request: dict[str, Any] = {}
            try:
                request = parse_request(payload)
                given = request_id(request)
                self.opted_in = self.opted_in or not endpoint.opts_in.isdisjoint(request)
                if request.get("action") == "ping":
                    pong = {"type": "pong", "id": given, "time": time.time_ns() // 1_000_000}
                    self.tell(pong | shown_ignored(ignored_fields(request, None)))
                elif request.get("action") == "auth":
                    # The handshake has passed already; browsers' code sends it all the same.
                    self.tell({"type": "authenticated", "id": given})
                else:
                    await serving.handle(request)
                waits = None
            except BadRequest as exc:
                given = request.get("id")
                self.error(exc.code, exc.reason, id=given if isinstance(given, int | str) else None)
                if waits is not None:
                    raise Ended(1008, None, f"{exc.code}: {exc.reason}") from None

    def _ignored_parameters(self, endpoint: type[Endpoint], *, also_blank: bool = True) -> list[Ignored]:
        given = parse_qsl(self.query.decode("latin-1"), keep_blank_values=also_blank)
        return ignored_parameters(given, endpoint.parameters)

    def _no_key(self, endpoint: type[Endpoint]) -> str:
        """Return why a client without a key is turned away, and which name it may have misspelled.

        This goes into the log, so no name is shown that may be the key itself or end with it: ``?api_key:secret`` has
        no value.
        """
        for name, hint in self._ignored_parameters(endpoint, also_blank=False):
            if hint.startswith("did you mean api_key"):
                return f"no API key was given; the URL has {name!r}: {hint}"
        return "no API key was given"

    def _admit(self) -> None:
        headers = self._headers()
        origin = headers.get("origin")
        secure = self._scope["scheme"] == "wss"
        is_own = is_own_origin(origin, headers.get("host"), headers.get("user-agent"), secure=secure)
        if not is_own and not origin_allowed(origin, self.worker.config.origins):
            raise Ended(1008, "origin_denied", f"origin {str(origin)[:60]!r} is not allowed")
        if len(self.worker.sessions) > self.worker.config.max_connections:
            raise Ended(1013, "connection_limit", f"this worker serves {self.worker.config.max_connections} sockets")

    async def _authenticate(self, endpoint: type[Endpoint]) -> None:
        keys = self.worker.keys
        if not keys.configured:
            raise Ended(1008, "unauthorized", "no API key is configured on this gateway (setting api_key)")
        key = presented_key(self._headers(), self._scope.get("subprotocols", []), self.query)
        if key is None:
            try:
                async with asyncio.timeout(AUTH_TIMEOUT):
                    request = parse_request(await self._next_payload())
            except TimeoutError:
                raise Ended(1008, "unauthorized", self._no_key(endpoint)) from None
            except BadRequest as exc:
                raise Ended(1008, "unauthorized", f"the first frame carries no API key: {exc.reason}") from None
            given = request.get("key") if request.get("action") == "auth" else None
            key = given if isinstance(given, str) else None
            if key is not None and keys.accepts(key):
                self.opted_in = True
                self.tell({"type": "authenticated", "id": request.get("id")})
        if key is None or not keys.accepts(key):
            raise Ended(1008, "unauthorized", self._no_key(endpoint) if key is None else "the API key is wrong")

    def _headers(self) -> dict[str, str]:
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._scope["headers"]}

    async def _next_payload(self) -> str | bytes:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._gone = True
            raise _Disconnected(message.get("code") or 1005)
        payload: str | bytes | None = message.get("text")
        if payload is None and self.binary:
            payload = message.get("bytes")
        if payload is None:
            raise Ended(1003, "bad_request", "requests are text frames; binary was not negotiated")
        size = len(payload)
        # A code point is at most four bytes, so only a text between the two bounds has to be measured.
        if isinstance(payload, str) and REQUEST_BYTES // 4 < size <= REQUEST_BYTES:
            size = len(payload.encode())
        if size > REQUEST_BYTES:
            raise Ended(1009, "bad_request", f"a request is at most {REQUEST_BYTES} bytes")
        return payload

    def _may_pass(self) -> bool:
        if self._bucket.take(self.loop.time()):
            self._limited = 0
            return True
        self._limited += 1
        limit = self.worker.config.max_rate
        if self._limited > limit * 100:
            raise Ended(1008, "rate_limited", f"more than {limit} requests a second, without end")
        self.error("rate_limited", f"more than {limit} requests a second")
        return False

    def wake(self) -> None:
        """See to it that what waits is sent."""
        if self._direct is not None:
            if not self._flushing:
                # Once the loop has done what it is at: all that this wake-up brings goes out in one write.
                self._flushing = True
                self.worker.plan_flush(self)
        elif self._writer is None and not self._gone:
            self._writer = self.loop.create_task(self._write())

    def flush(self) -> None:
        """Write what waits until the transport is full; `on_room` goes on then."""
        self._flushing = False
        direct = self._direct
        assert direct is not None
        self._write_ready()
        while not self._gone:
            if direct.full:
                self.room = 0
                self.sending_since = self.sending_since or self.loop.time()
                return
            taken = self.outbox.take(framed=True)
            if taken:
                self._send_frames(taken)
            elif not self._count_skipped() or not self.opted_in:
                break
        self.room = HIGH_WATER
        self.sending_since = None
        self.sent_at = self.loop.time()
        self._tell_drained()

    def make_room(self) -> bool:
        """Write at once what has come in this turn of the loop; return whether the transport has room for more.

        Else a turn of thousands of messages would put what exceeds the room into the outbox, which costs ten times as
        much, for clients that are not slow at all. What waits in the outbox already may not be overtaken.
        """
        if not self.ready or self._gone or len(self.outbox):
            return False
        self._write_ready()
        if self._direct is None or self._direct.full:
            return False
        self.room = HIGH_WATER
        return True

    def _write_ready(self) -> None:
        ready, self.ready = self.ready, []
        if ready and not self._gone:
            # Also if the transport has become full meanwhile: they came before what waits in the outbox by now.
            try:
                framed = [frame.framed for frame in ready]
            except WireError:
                framed = self._fit(ready)
            if framed:
                self._send_frames(framed)

    def _tell_drained(self) -> None:
        if self._drained is not None and not self._gone:
            waiting, self._drained = self._drained, None
            for act in waiting:
                act(time.monotonic())

    def _fit(self, ready: list[Frame | Seen]) -> list[bytes]:
        framed = []
        for frame in ready:
            try:
                framed.append(frame.framed)
            except WireError:
                self.outbox.unfit += 1
        return framed

    def _send_frames(self, taken: list[bytes]) -> None:
        assert self._direct is not None
        joined = taken[0] if len(taken) == 1 else b"".join(taken)
        if self._direct.write(joined):
            self._frames += len(taken)
            self.worker.frames_sent += len(taken)
            self.worker.bytes_sent += len(joined)
        else:
            self._gone = True

    async def _write(self) -> None:
        try:
            while True:
                payloads = self.outbox.take()
                if not payloads:
                    if self._count_skipped() and self.opted_in:
                        continue
                    self._tell_drained()
                    break
                for payload in payloads:
                    self.sending_since = self.loop.time()
                    shown = {"bytes": payload} if self.binary else {"text": payload.decode()}
                    await self._send({"type": "websocket.send", **shown})
                    self._frames += 1
                    self.worker.frames_sent += 1
                    self.worker.bytes_sent += len(payload)
                self.sending_since = None
                self.sent_at = self.loop.time()
        except (OSError, RuntimeError) as exc:
            # The client has gone; the reader hears of it by itself, under whichever server.
            logger.debug("%s: nobody reads any more: %r", self.path, exc)
            self._gone = True
        finally:
            self.sending_since = None
            self._writer = None

    def _count_skipped(self) -> bool:
        skipped = self.outbox.skipped - self._reported
        if not skipped:
            return False
        self._reported = self.outbox.skipped
        self.worker.skipped += skipped
        if self.opted_in and not self._gone:
            self.outbox.put_control(self._encode({"type": "skipped", "count": skipped, "reason": "slow_client"}))
        return True

    def _tell_closing(self) -> None:
        """Send what waits, last that the server stops, before it closes with 1012; nobody is waited for."""
        if self.opted_in:
            self.tell({"type": "closing", "reason": "server_restart"})
        self.flush()

    async def _close(self, ended: Ended) -> str:
        reason = ended.reason
        if ended.code is not None:
            reason = f"{ended.code}: {ended.reason}"
            if ended.code not in _UNTOLD:
                self.error(ended.code, ended.reason)
        shown = f"{ended.close_code} {reason}".rstrip()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if ended.code != "slow_client":
                    await self._empty()
                elif self._direct is not None and self._direct.full:
                    self._direct.abort()
                    return f"{shown} (aborted)"
                if not self._gone:
                    await self._send(
                        {"type": "websocket.close", "code": ended.close_code, "reason": cut_reason(reason)}
                    )
        except (OSError, RuntimeError):
            return f"{shown} (client already gone)"
        except TimeoutError:
            if self._direct is not None:
                self._direct.abort()
            return f"{shown} (client did not read it)"
        return shown

    async def _empty(self) -> None:
        """Wait until all that waits has been written."""
        while self._writer is not None:
            await asyncio.shield(self._writer)
        while self._direct is not None and (len(self.outbox) or self.ready) and not self._gone:
            await self._direct.room()
            self.flush()


def shown_ignored(ignored: Iterable[Ignored]) -> dict[str, list[dict[str, str]]]:
    """Return what an ack has to say of names that mean nothing: nothing, if there are none."""
    shown = [each._asdict() for each in ignored]
    return {"ignored": shown} if shown else {}


def cut_reason(reason: str) -> str:
    """Return `reason` cut to what fits into a close frame, never within a character."""
    return reason.encode()[:_REASON_BYTES].decode(errors="ignore")
