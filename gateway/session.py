"""One WebSocket from its start to its end: accept, key, requests, close with a reason.

What happens to a session is decided by its state (session_state.py): `tell` and `end` may be called at any time.
The ASGI server's task for this socket reads the requests. Everything is sent by the sender (sending/sender.py).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from gateway.access.hosts import host_allowed, is_near, why_unknown
from gateway.access.origins import origin_allowed, why_denied
from gateway.costs.budget import UNREAD_ANSWERS, Budget, Purse, codes_named
from gateway.costs.shares import Download, Shares, SocketShares, is_scarce
from gateway.costs.slices import Slices
from gateway.costs.turns import Turns
from gateway.costs.views import SocketViews, Views
from gateway.counters import SentByPath
from gateway.feed import Feed
from gateway.keys.entry import Entry, NotYet, WrongKey, address_of, headers_of, presented
from gateway.keys.presented_key import KEY_SUBPROTOCOL
from gateway.keys.table import missing_scope
from gateway.read_subscription import ReadSubscription
from gateway.sending.depth import served_by
from gateway.sending.flushes import Flushes
from gateway.sending.outbox import Outbox
from gateway.sending.pool import Pool
from gateway.sending.sender import EXTENSION, AsgiSender, Frames, PreparedSender, Sender
from gateway.session_state import TABLE, Act, Event, State
from gateway.starts import shown_gap
from gateway.streams.member import Gap, Refusal
from gateway.subscription import ENDED, Subscription, Ticket
from qmt_bridge.closes import (
    BAD_REQUEST,
    CONNECTION_LIMIT,
    ENDED_BY_ADMIN,
    FINISHED,
    FORBIDDEN,
    HOST_DENIED,
    INTERNAL,
    NOT_TEXT,
    ORIGIN_DENIED,
    OVERLOADED,
    RATE_LIMITED,
    RESTARTING,
    SLOW_CLIENT,
    TOO_LARGE,
    UNAUTHORIZED,
    UNTOLD,
    UPSTREAM_AWAY,
    VANISHED,
    Ending,
)
from qmt_bridge.config import Config
from qmt_bridge.errors import RETRYABLE, BadRequest, ErrorCode
from qmt_bridge.keys.key import Key
from qmt_bridge.keys.key import Scope as KeyScope
from qmt_bridge.system import clock
from qmt_bridge.wire.hints import Ignored
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import (
    IGNORED_NAMES,
    REQUEST_BYTES,
    Ack,
    ignored_fields,
    ignored_parameters,
    parse_request,
    read_request,
    request_id,
)
from qmt_bridge.wire.topics import Kind, Topic, mask, parse_topic, shown_topic

logger = logging.getLogger(__name__)

# A client that offers one of these has opted in; the value says whether frames are binary (MessagePack).
SUBPROTOCOLS = {"qmt.v1.json": False, "qmt.v1.msgpack": True}
AUTH_TIMEOUT = 5.0
# Topics that are joined or left at a time, which takes 2 ms.
PART = 100
FIRST_REQUEST_TIMEOUT = 30.0
# Seconds between two looks whether a client has read its answers, and after how many looks its window is ignored.
ANSWERS_AGAIN = 0.02
ANSWER_LOOKS = 1
# Seconds that a client has to read its last frames.
CLOSE_TIMEOUT = 5.0
_numbers = itertools.count(1)
# The largest size of a close frame's reason in bytes (RFC 6455, 5.5).
_REASON_BYTES = 123


class Ended(Exception):
    """The socket is to be closed as `ending` says, after an error frame unless the client was `told` already.

    `code` replaces the error code of `ending` where the feeder or a request determines it.
    """

    def __init__(self, ending: Ending, reason: str = "", *, code: ErrorCode | None = None, told: bool = False) -> None:
        super().__init__(reason)
        self.ending = ending
        self.close_code = ending.close_code
        self.code = ending.code if code is None else code
        self.reason = reason if self.code is None else f"{self.code}: {reason}"
        self.error = reason
        self.told = told or self.code is None or self.code in UNTOLD


class _KeyRefused(Ended):
    """The socket is to be closed because of a wrong key."""


class _Disconnected(Exception):
    """The client has disconnected; `close_code` is the code that it sent."""

    def __init__(self, close_code: int) -> None:
        super().__init__(close_code)
        self.close_code = close_code


class Endpoint(Protocol):
    """What one URL does with its requests; there is one object for each socket."""

    # Whether the key is needed whatever the settings are.
    always_key: ClassVar[bool]
    # What a key has to allow.
    scope: ClassVar[KeyScope]
    # Whether a page that was opened from a file may use it.
    to_files: ClassVar[bool]
    # Fields of a request by which the client opts in to the control layer.
    opts_in: ClassVar[frozenset[str]]
    # The parameters of the URL.
    parameters: ClassVar[tuple[str, ...]]
    # Seconds after which a socket without a request is closed; None: the URL needs no request.
    first_request_timeout: ClassVar[float | None]

    def __init__(self, session: Session) -> None:
        """Begin to serve `session`; its client has passed the checks of key, origin and limits."""

    async def handle(self, request: dict[str, Any]) -> None:
        """Serve a request; raise `BadRequest` if it cannot be served as it stands."""


class Host(Protocol):
    """What the sessions of one event loop share; the worker is one."""

    config: Config
    entry: Entry
    feed: Feed
    sent: SentByPath
    flushes: Flushes
    # The outboxes of all sessions.
    pool: Pool
    budget: Budget
    views: Views
    shares: Shares
    slices: Slices
    turns: Turns
    opening_turns: Turns
    # How often each limit was reached, by its name.
    limited: Counter[str]
    # The open sessions.
    sessions: dict[Session, None]

    def welcome(self) -> dict[str, Any]:
        """Return the first frame of a client that opted in when it connected."""

    def note(self, kind: str, text: str) -> None:
        """Take down what has happened, for an operator."""


class Session:
    """One WebSocket. An endpoint reads its requests, subscribes topics, and may `end` it."""

    # An idle connection should take little memory: in a dict, the attributes would take 1.5 KB.
    __slots__ = (
        "_end",
        "_ended",
        "_ignored",
        "_needs_key",
        "_placed",
        "_purse",
        "_reader",
        "_receive",
        "_scope",
        "_send",
        "_shares",
        "_state",
        "_views",
        "host",
        "key",
        "missed",
        "number",
        "on_refused",
        "opted_in",
        "sender",
        "since",
        "subscriptions",
    )

    def __init__(self, host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        self.host = host
        # Of the sessions of this process, and when it began (ms since 1970).
        self.number = next(_numbers)
        self.since = clock.time_ns() // 1_000_000
        self.opted_in = False
        # Messages lost on the way from the feeder, of which the client has not been told.
        self.missed = 0
        self.subscriptions: dict[Subscription, None] = {}
        # Called with a refusal that arrives after the ack; set by the endpoint.
        self.on_refused: Callable[[Subscription, Refusal], None] | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self.sender = self._make_sender()
        config = host.config
        self._purse = Purse(config.max_rate, config.max_code_rate, config.max_topics, self.sender.loop.time())
        self._reader: asyncio.Task[Any] | None = None
        self._state = State.HANDSHAKE
        self._needs_key = False
        # The key that the client has shown.
        self.key: Key | None = None
        # Whether the socket has one of the worker's places.
        self._placed = False
        # Why the session ends, once that is decided.
        self._end: Ended | None = None
        # The snapshots that have ended in this turn of the loop, with the number of codes of each.
        self._ended: dict[Subscription, int] | None = None
        # Unknown names in requests, as far as the client has been told of them.
        self._ignored: set[str] | None = None
        # None until a request leaves out fields or levels, as most do not.
        self._views: SocketViews | None = None
        # None until a socket without a key asks for something scarce.
        self._shares: SocketShares | None = None

    @property
    def views(self) -> SocketViews:
        """Return the views with fewer fields or levels that the socket's topics have."""
        if self._views is None:
            self._views = SocketViews(self.host.views, self.address)
        return self._views

    def take(self, topic: Topic) -> str:
        """Count a topic that is scarce at the source; return why a socket without a key may not have it, or nothing."""
        if self.key is not None or not is_scarce(topic):
            return ""
        return self._limited(self._share().take(served_by(topic), bounded=self.host.entry.configured))

    def give_back(self, topic: Topic) -> None:
        """Note that the socket has a topic no longer that it was given by `take`."""
        if self._shares is not None and is_scarce(topic):
            self._shares.give_back(served_by(topic))

    def take_download(self, download: Download) -> str:
        """Count the download of the socket; return why a socket without a key may not start it, or nothing."""
        if self.key is not None:
            return ""
        now = self.sender.loop.time()
        return self._limited(self._share().download(download, now, bounded=self.host.entry.configured))

    def download_ended(self) -> None:
        """Note that the download of the socket runs no longer."""
        if self._shares is not None:
            self._shares.download_ended()

    def _share(self) -> SocketShares:
        if self._shares is None:
            self._shares = SocketShares(self.host.shares)
        return self._shares

    def _limited(self, reason: str) -> str:
        self.host.limited["without_key"] += bool(reason)
        return reason

    def _make_sender(self) -> Sender:
        """Return a sender: by prepared frames if the server offers them, else by the ASGI send."""
        outbox = Outbox(self.host.config.outbox_bytes, pool=self.host.pool)
        prepared: Frames | None = self._prepared()
        sent = self.host.sent.of(self.path)
        if prepared is None:
            return AsgiSender(self, outbox, sent, self._send)
        config = self.host.config
        return PreparedSender(self, outbox, sent, prepared, self.host.flushes, config.lag_target)

    def _prepared(self) -> Frames | None:
        offered: Frames | None = self._scope.get("extensions", {}).get(EXTENSION)
        return offered

    @property
    def path(self) -> str:
        """Return the path of the URL without a slash at its end."""
        path: str = self._scope["path"]
        return path.removesuffix("/")

    @property
    def address(self) -> str:
        """Return the address of the client."""
        return address_of(self._scope)

    @property
    def query(self) -> bytes:
        """Return the query string of the URL."""
        query: bytes = self._scope["query_string"]
        return query

    async def run(self, endpoint: type[Endpoint]) -> None:
        """Serve the socket with a new `endpoint` until it ends."""
        message = await self._receive()
        assert message["type"] == "websocket.connect", message
        began = clock.monotonic()
        self._reader = asyncio.current_task()
        self._needs_key = self.host.entry.needs_key(self._scope, always=endpoint.always_key)
        chosen = self._choose_subprotocol()
        ended = "failed"
        self.host.sessions[self] = None
        try:
            ended = await self._serve(endpoint, chosen)
        except OSError:
            ended = "lost"
        finally:
            self._leave()
            seconds = clock.monotonic() - began
            # Wrong keys must not be able to fill the log.
            key_refused = isinstance(self._end, _KeyRefused)
            told = f"{self.path} from {self.address}: {ended} after {seconds:.1f} s, {self.sender.frames} frames"
            logger.log(logging.DEBUG if key_refused else logging.INFO, "%s", told)
            if self._end is not None and not key_refused and self._end.ending not in (FINISHED, RESTARTING):
                self.host.note("client", told)

    def _choose_subprotocol(self) -> str | None:
        """Return the subprotocol to accept; one of `SUBPROTOCOLS` also opts in and sets the encoding."""
        offered = self._scope.get("subprotocols", [])
        chosen = next((item for item in offered if item in SUBPROTOCOLS), None)
        self.opted_in = chosen is not None or b"ctl=1" in self.query.split(b"&")
        if chosen is not None:
            self.sender.outbox.binary = SUBPROTOCOLS[chosen]
            return str(chosen)
        # A browser closes the connection if it offered subprotocols and the server chose none.
        return next((item for item in offered if item.startswith(KEY_SUBPROTOCOL)), None)

    def _on(self, event: Event) -> Act:
        """Go to the state that follows an event; return what is to be done about it."""
        self._state, act = TABLE[self._state][event]
        return act

    def _leave(self) -> None:
        """Give up everything that the worker keeps for this socket."""
        if self._on(Event.LEAVE) is not Act.RELEASE:
            return
        del self.host.sessions[self]
        if self._placed:
            self.host.entry.room.leave(self.address, self.key)
        if self._views is not None:
            self._views.close()
        if self._shares is not None:
            self._shares.leave(self.sender.loop.time())
        self.sender.gone = True
        self.host.turns.leave(self)
        self.host.opening_turns.leave(self)
        # Not `unsubscribe`: what waits for the client goes as a whole, and to look for each topic's part takes seconds.
        subscriptions, self.subscriptions = list(self.subscriptions), {}
        for subscription in subscriptions:
            subscription.gate = ENDED
        for part in _parts(subscriptions):
            self.host.slices.do(self, functools.partial(self._leave_streams, part))
        self.sender.stop()
        self.sender.outbox.close()
        unfit = self.sender.outbox.unfit
        if unfit:
            logger.warning("%s: %d frames had no JSON form and were left out", self.path, unfit)

    def subscribe(
        self,
        subscriptions: Sequence[Subscription],
        after: JournalPosition | None,
        acknowledge: Callable[[Ticket], None] | None,
    ) -> None:
        """Subscribe; with `acknowledge`, the data of all subscriptions is held until it has sent the ack."""
        self.subscriptions.update(dict.fromkeys(subscriptions))
        if acknowledge is not None:
            Ticket(self.sender, subscriptions, acknowledge)
        for part in _parts(subscriptions):
            self.host.slices.do(self, functools.partial(self._join_streams, part, after))

    def _join_streams(self, subscriptions: Sequence[Subscription], after: JournalPosition | None) -> None:
        """Join those streams that the client has not left meanwhile."""
        waiting = [of for of in subscriptions if of in self.subscriptions]
        try:
            while waiting:
                # One topic may serve several depths.
                members = {of.upstream: of for of in waiting}
                now, hub = clock.monotonic(), self.host.feed.hub
                readers = {
                    topic: (of, of.question) for topic, of in members.items() if isinstance(of, ReadSubscription)
                }
                plain = {topic: of for topic, of in members.items() if topic not in readers} if readers else members
                if plain:
                    hub.join(plain, now, after)
                if readers:
                    hub.read(readers, now)
                waiting = [of for of in waiting if members[of.upstream] is not of]
        except Exception:
            self.broke()

    def _leave_streams(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            self.host.feed.hub.leave(subscription.upstream, subscription)
            subscription.stop()

    def unsubscribe(self, *subscriptions: Subscription) -> None:
        """End subscriptions."""
        ended = [of for of in subscriptions if self.subscriptions.pop(of, of) is None]
        for subscription in ended:
            subscription.end()
        for part in _parts(ended):
            self.host.slices.do(self, functools.partial(self._leave_streams, part))

    def refused(self, subscription: Subscription, refusal: Refusal) -> None:
        """Tell the client that a topic is not served, or no longer."""
        if refusal.code == "symbol_limit":
            self.host.limited["upstream"] += 1
        self.host.note(
            "refusal", f"{shown_topic(subscription.topic)} of {self.address}: {refusal.code}: {refusal.reason}"
        )
        if self.on_refused is not None:
            self.on_refused(subscription, refusal)
        else:
            self.error(refusal.code, refusal.reason, symbol=parse_topic(subscription.topic).name)

    def fell_behind(self) -> None:
        """End the session: a stream that may not lose anything does not fit into the outbox (sender.Client)."""
        self.end(Ended(SLOW_CLIENT, "the client does not keep up with a stream that may not lose anything"))

    def lagging(self, stalled: float) -> None:
        """End the session: for `stalled` seconds the client has read nothing of what it was sent (sender.Client)."""
        self.end(Ended(SLOW_CLIENT, f"nothing was read for {stalled:.0f} s"))

    def shed(self) -> None:
        """Abort the session: what waits for all clients of this worker takes too much memory."""
        self.end(Ended(SLOW_CLIENT, "too much waits for the slow clients of this worker"))
        self.sender.outbox.close()
        self.sender.abort()

    def vanished(self) -> None:
        """End the session: the client's machine does not answer (sender.Client)."""
        self.end(Ended(VANISHED, "the client's machine does not answer"))

    def flooding(self) -> None:
        """End the session: the client goes on sending more frames than it may (sender.Client)."""
        self.host.limited["frames"] += 1
        self.end(Ended(RATE_LIMITED, "more frames than a socket may send, without end"))

    def kick(self, reason: str) -> None:
        """End the session because an administrator says so."""
        self.end(Ended(ENDED_BY_ADMIN, reason))

    def broke(self) -> None:
        """End the session because of the exception that is being handled, which is a bug of ours (sender.Client)."""
        logger.exception("session on %s failed", self.path)
        self.end(Ended(INTERNAL, "internal error"))

    def tell_closing(self) -> None:
        """Tell a client that opted in that the server stops (sender.Client)."""
        if self.opted_in:
            self.tell({"type": "closing", "reason": "server_restart"})

    def tell(self, frame: Mapping[str, Any]) -> None:
        """Queue a control frame if the client may be told anything now; an absent id is left out."""
        if self._on(Event.TELL) is Act.SEND:
            self._queue(frame)

    def _queue(self, frame: Mapping[str, Any]) -> None:
        shown = {key: value for key, value in frame.items() if key != "id" or value is not None}
        self.sender.tell(shown)

    def error(self, code: ErrorCode, error: str, **fields: Any) -> None:
        """Queue an error frame; fields that are None are left out."""
        self.tell(_error_frame(code, error, fields))

    def has_told(self, names: Iterable[str]) -> None:
        """Note the unknown names that an ack shows, so `tell_ignored` leaves them out; both share one limit."""
        self._ignored = self._ignored or set()
        self._ignored.update(islice(names, IGNORED_NAMES - len(self._ignored)))

    def tell_ignored(self, ignored: Iterable[Ignored]) -> None:
        """Tell a client that gets no ack which names of its requests are unknown, each once, up to a limit."""
        for name, hint in ignored:
            self._ignored = self._ignored or set()
            if name not in self._ignored and len(self._ignored) < IGNORED_NAMES:
                self._ignored.add(name)
                self.error("unknown_field", f"{name!r} means nothing here and is ignored; {hint}", field=name)

    def end(self, ended: Ended) -> None:
        """End the session after what is queued has been sent; a session that ends already goes on doing so."""
        is_own_task = asyncio.current_task() is self._reader
        if self.sender.gone and not is_own_task:
            # The reading task is about to learn it.
            return
        # A client that has not shown the key that it needs gets no frame but the close.
        is_secret = self._state is State.HANDSHAKE and self._needs_key
        if self._on(Event.END) is Act.CLOSE:
            ended.told = ended.told or is_secret
            self._end = ended
            if self._reader is not None and not is_own_task:
                self._reader.cancel()

    def tell_missed(self) -> None:
        """Tell a client that opted in how many messages from the feeder were lost since it was last told."""
        missed, self.missed = self.missed, 0
        if missed and self.opted_in:
            self.tell({"type": "skipped", "count": missed, "reason": "feed_gap"})

    def snapshot_ended(self, subscription: Subscription, count: int) -> None:
        """Tell a client that opted in which snapshots are complete, after the frames of this turn of the loop.

        `count` is the number of codes in the snapshot.
        """
        if not self.opted_in:
            return
        if self._ended is None:
            self._ended = {}
            self.sender.later(self._tell_ended)
        self._ended[subscription] = count

    def ask_turn(self, subscription: Subscription, act: Callable[[float], None], *, opening: bool = False) -> None:
        """Call `act` in a later turn of the loop, when a subscription may be read the next chunk (Owner)."""
        # Called by another session that gives back its turn, which a failure here must not end.
        granted = functools.partial(self.sender.later, lambda: act(clock.monotonic()))
        turns = self.host.opening_turns if opening else self.host.turns
        turns.ask(subscription, self, self.address, granted)

    def rest(self, subscription: Subscription) -> None:
        """Give back the turn of a subscription (Owner)."""
        self.host.turns.give_back(subscription, self)
        self.host.opening_turns.give_back(subscription, self)

    def tell_gap(self, subscription: Subscription, gap: Gap) -> None:
        """Tell what is missing of a topic: by a notice, or by an error frame to a client that has not opted in."""
        parts = parse_topic(subscription.topic)
        if isinstance(subscription, ReadSubscription) and subscription.seq_id is not None:
            named: dict[str, Any] = {"seq_id": subscription.seq_id}
        else:
            named = {"code" if self.opted_in else "symbol": parts.name}
            if parts.kind is Kind.QUOTE and parts.detail != "tick":
                named["period"] = parts.detail
            elif parts.kind is Kind.L2 and parts.detail != "0":
                named["gear_num"] = parts.detail
        shown = shown_gap(gap)
        if self.opted_in:
            self.tell({"type": "gap", **named, **shown})
        else:
            self.error("incomplete", f"a part of what start asked for is missing: {gap.reason}", **named, **shown)

    def _tell_ended(self) -> None:
        ended, self._ended = self._ended or {}, None
        counts = {parse_topic(of.topic).name: count for of, count in ended.items() if of in self.subscriptions}
        if counts:
            self.tell({"type": "snapshot_end", "codes": list(counts), "count": sum(counts.values())})

    async def _serve(self, endpoint: type[Endpoint], subprotocol: str | None) -> str:
        """Serve the client; return how the session ended, for the log."""
        try:
            try:
                await self._open(endpoint, subprotocol)
            except asyncio.CancelledError:
                if self._end is None:
                    raise
        except _Disconnected as exc:
            return f"client closed with {exc.close_code}"
        except Ended as exc:
            self.end(exc)
        except Exception:
            # A bug in our code: the client is told, the log has the traceback, other sessions go on.
            self.broke()
        assert self._end is not None
        return await self._close(self._end)

    async def _open(self, endpoint: type[Endpoint], subprotocol: str | None) -> None:
        """Accept the socket, check its client, and serve its requests."""
        # Accept first, then close: a close before the handshake is an HTTP 403 without code or reason.
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol})
        if (prepared := self._prepared()) is not None:
            prepared.forget_handshake()
        self._check_page(endpoint)
        self._take_presented_key(endpoint)
        self._enter()
        answer = await self._authenticate(endpoint) if self._needs_key and self.key is None else None
        self._on(Event.ADMIT)
        if answer is not None:
            self.tell(answer)
        ignored = self._ignored_parameters(endpoint)
        if self.opted_in:
            self.tell(self.host.welcome() | self._rights() | shown_ignored(ignored))
        else:
            self.tell_ignored(ignored)
        self._on(Event.OPEN)
        await self._read(endpoint)

    async def _read(self, endpoint: type[Endpoint]) -> None:
        """Give each request to the endpoint; a bad first request ends the socket, a later one does not."""
        serving = endpoint(self)
        waits = endpoint.first_request_timeout
        while self._end is None:
            await self._answers_read()
            await self.host.slices.done(self)
            try:
                async with asyncio.timeout(waits):
                    payload = await self._next_payload()
            except TimeoutError:
                raise Ended(BAD_REQUEST, f"no request within {waits:.0f} s") from None
            if not self._may_pass():
                # One refusal in a turn of the loop: while the rest waits, the socket is not read.
                await asyncio.sleep(0)
                continue
            request: dict[str, Any] = {}
            try:
                request = parse_request(payload)
                given = request_id(request)
                self.opted_in = self.opted_in or not endpoint.opts_in.isdisjoint(request)
                if request.get("action") == "ping":
                    pong = {"type": "pong", "id": given, "time": clock.time_ns() // 1_000_000}
                    self.tell(pong | shown_ignored(ignored_fields(request, None)))
                elif request.get("action") == "auth":
                    # Code for browsers sends this frame in any case, also where no key is needed.
                    if self.key is None and self.host.entry.is_valid(request.get("key"), self.address):
                        self._take_key(endpoint, request["key"])
                        self._replace()
                    self.tell({"type": "authenticated", "id": given})
                elif request.get("action") == "ack":
                    self._take_ack(request)
                else:
                    await self._afford(request)
                    before = self.sender.outbox.told
                    await serving.handle(request)
                    self._purse.charge(self.sender.loop.time(), self.sender.outbox.told - before)
                    # Requests that are here already would all be served in this turn of the loop.
                    await asyncio.sleep(0)
                waits = None
            except BadRequest as exc:
                self.error(exc.code, exc.reason, id=_repeated(request))
                if waits is not None:
                    ending = OVERLOADED if exc.code == OVERLOADED.code else BAD_REQUEST
                    raise Ended(ending, exc.reason, code=exc.code, told=True) from None

    def _take_ack(self, request: dict[str, Any]) -> None:
        if self.sender.processed(read_request(request, Ack).seq):
            # There are as many as we have sent frames; only the others count as requests.
            self._purse.give_back(self.sender.loop.time())
        self.tell_ignored(ignored_fields(request, Ack))

    def _ignored_parameters(self, endpoint: type[Endpoint], *, also_blank: bool = True) -> list[Ignored]:
        given = parse_qsl(self.query.decode("latin-1"), keep_blank_values=also_blank)
        return ignored_parameters(given, endpoint.parameters)

    def _no_key(self, endpoint: type[Endpoint]) -> str:
        """Return why a client without a key is refused, and which parameter it may have misspelled.

        This is written to the log, so a parameter without a value is not shown: the name ``api_key:secret`` of
        ``?api_key:secret`` contains the key.
        """
        for name, hint in self._ignored_parameters(endpoint, also_blank=False):
            if hint.startswith("did you mean api_key"):
                return f"no API key was given; the URL has {name!r}: {hint}"
        if endpoint.always_key or self.host.config.require_key:
            return "no API key was given"
        return "no API key was given; clients of other machines and of proxies need one (setting open_market_data)"

    def _check_page(self, endpoint: type[Endpoint]) -> None:
        """Raise `Ended` for a request that is not meant for this gateway, or a page that may not use this URL."""
        headers, config = headers_of(self._scope), self.host.config
        origin, host, reached = headers.get("origin"), headers.get("host"), self._scope.get("server")
        if not host_allowed(host, (config.host, *config.hosts), reached):
            raise Ended(HOST_DENIED, why_unknown(str(host)))
        to_files = endpoint.to_files and is_near(host, config.host, reached)
        secure = self._scope["scheme"] == "wss"
        if not origin_allowed(origin, host, config.origins, secure=secure, to_files=to_files):
            raise Ended(ORIGIN_DENIED, why_denied(str(origin)))

    def _enter(self) -> None:
        """Take one of the worker's places; with a key it is taken from a socket without one if there is no other."""
        room = self.host.entry.room
        if reached := room.enter(self.address, self.key):
            self.host.limited["connections"] += 1
            raise Ended(CONNECTION_LIMIT, reached)
        self._placed = True
        if self.key is not None and room.crowded:
            self._send_away_newest()

    def _replace(self) -> None:
        """Take the place of a socket with a key: until now it had one of those without."""
        self.host.entry.room.leave(self.address, None)
        self._placed = False
        if self._shares is not None:
            self._shares.clear()
        self._enter()

    def _send_away_newest(self) -> None:
        replaceable = (session for session in reversed(self.host.sessions) if session.is_replaceable)
        for session in islice(replaceable, 1):
            self.host.limited["connections"] += 1
            session.end(Ended(CONNECTION_LIMIT, "a socket with a key takes this place"))

    @property
    def is_replaceable(self) -> bool:
        """Return whether a socket with a key may take the place of this one."""
        return self._placed and self.key is None and self._end is None

    def _take_presented_key(self, endpoint: type[Endpoint]) -> None:
        """Check the key of the handshake, if there is one. Without any configured key it has no meaning."""
        if not self.host.entry.configured:
            if self._needs_key:
                told = "no API key is configured on this gateway (setting api_key, or `qmt-bridge key add`)"
                raise Ended(UNAUTHORIZED, told)
            return
        given = presented(self._scope)
        if given is not None:
            self._take_key(endpoint, given)

    def _take_key(self, endpoint: type[Endpoint], given: str) -> None:
        """Accept a key that the client has given, with its limits."""
        try:
            key = self.host.entry.check(given, self.address)
        except WrongKey as exc:
            raise _KeyRefused(UNAUTHORIZED, str(exc)) from None
        except NotYet as exc:
            raise Ended(UPSTREAM_AWAY, str(exc), told=True) from None
        if lacks := missing_scope(key, endpoint.scope):
            raise Ended(FORBIDDEN, lacks)
        self.key = key
        config = self.host.config
        if key.rate or key.codes:
            self._purse = Purse(self.max_rate, config.max_code_rate, self.max_topics, self.sender.loop.time())

    def require(self, scope: KeyScope) -> None:
        """End the session if its client has shown a key that lacks a scope."""
        if self.key is not None and (lacks := missing_scope(self.key, scope)):
            raise Ended(FORBIDDEN, lacks)

    @property
    def max_topics(self) -> int:
        """Return how many subscriptions the socket may hold."""
        most: int = self.host.config.max_topics
        return min(most, self.key.codes) if self.key is not None and self.key.codes else most

    @property
    def max_rate(self) -> int:
        """Return how many requests a second the socket may send."""
        most: int = self.host.config.max_rate
        return min(most, self.key.rate) if self.key is not None and self.key.rate else most

    def _rights(self) -> dict[str, Any]:
        """Return what the welcome says of a key with limits of its own."""
        if self.key is None:
            return {}
        accounts = {"accounts": [mask(account) for account in self.key.accounts]} if self.key.accounts else {}
        if not (self.key.rate or self.key.codes):
            return accounts
        return accounts | {"limits": {"max_topics": self.max_topics, "max_rate": self.max_rate}}

    def check_key(self, now: float) -> None:
        """End the session if its key holds no longer (seconds since 1970)."""
        if self.key is not None and (lapsed := self.host.entry.lapsed(self.key, now)):
            self.end(Ended(UNAUTHORIZED, lapsed))

    async def _authenticate(self, endpoint: type[Endpoint]) -> dict[str, Any]:
        """Wait for the first frame, and check the key in it; return the answer."""
        try:
            async with asyncio.timeout(AUTH_TIMEOUT):
                request = parse_request(await self._next_payload())
            number = request_id(request)
        except TimeoutError:
            raise Ended(UNAUTHORIZED, self._no_key(endpoint)) from None
        except BadRequest as exc:
            raise Ended(UNAUTHORIZED, f"the first frame carries no API key: {exc.reason}") from None
        given = request.get("key") if request.get("action") == "auth" else None
        if not isinstance(given, str):
            raise Ended(UNAUTHORIZED, self._no_key(endpoint))
        self._take_key(endpoint, given)
        self._replace()
        self.opted_in = True
        return {"type": "authenticated", "id": number}

    async def _next_payload(self) -> str | bytes:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.sender.gone = True
            raise _Disconnected(message.get("code") or 1005)
        payload: str | bytes | None = message.get("text")
        if payload is None and self.sender.outbox.binary:
            payload = message.get("bytes")
        if payload is None:
            raise Ended(NOT_TEXT, "requests are text frames; binary was not negotiated")
        size = len(payload)
        # A code point has at most four bytes, so only a text between these two lengths has to be encoded to measure it.
        if isinstance(payload, str) and REQUEST_BYTES // 4 < size <= REQUEST_BYTES:
            size = len(payload.encode())
        if size > REQUEST_BYTES:
            raise Ended(TOO_LARGE, f"a request is at most {REQUEST_BYTES} bytes")
        return payload

    def _may_pass(self) -> bool:
        now = self.sender.loop.time()
        if self._purse.ask(now):
            return True
        self.host.limited["requests"] += 1
        if self._purse.abused(now):
            raise Ended(RATE_LIMITED, f"more than {self.max_rate} requests a second, without end")
        self.tell_refused()
        return False

    def tell_refused(self) -> None:
        """Tell the client how many of its requests were refused since it was last told, at most once a second."""
        if count := self._purse.untold(self.sender.loop.time()):
            self.error("rate_limited", f"more than {self.max_rate} requests a second", count=count)

    async def _afford(self, request: Mapping[str, Any]) -> None:
        """Spend what a request costs, and wait while others spend too much; raise `BadRequest` if it is too much."""
        now, cost = self.sender.loop.time(), max(1, codes_named(request))
        if not self._purse.name(now, cost):
            self.host.limited["codes"] += 1
            raise BadRequest("rate_limited", f"more than {self.host.config.max_code_rate} codes a second")
        key = None if self.key is None else self.key.name
        wait = self.host.budget.spend(self.address, now, cost, key)
        if wait is None or wait > 0:
            self.host.limited["codes_of_all"] += 1
        if wait is None:
            raise BadRequest("rate_limited", "all clients together, or all of this address, name too many codes")
        if wait > 0:
            await asyncio.sleep(wait)

    async def _answers_read(self) -> None:
        """Wait while too many bytes of answers to the client's own requests wait to be read."""
        if self.sender.outbox.answers <= UNREAD_ANSWERS:
            return
        self.host.limited["unread_answers"] += 1
        looks = 0
        while self.sender.outbox.answers > UNREAD_ANSWERS and not self.sender.gone:
            if looks >= ANSWER_LOOKS:
                # The pong that would open its window may be behind requests that are not taken.
                self.sender.push()
            await asyncio.sleep(ANSWERS_AGAIN)
            looks += 1

    async def _close(self, ended: Ended) -> str:
        """Write what waits, then the close; drop the connection of a client that does not read it in time."""
        if ended.code is not None and not ended.told:
            self._queue(_error_frame(ended.code, ended.error, {}))
        shown = f"{ended.close_code} {ended.reason}".rstrip()
        while self._reader is not None and self._reader.cancelling():
            self._reader.uncancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                # A key that was revoked opens nothing more, not even what waits.
                if ended.ending not in (SLOW_CLIENT, VANISHED, UNAUTHORIZED):
                    await self.sender.empty()
                elif ended.ending is VANISHED or self.sender.stalled:
                    self.sender.abort()
                    return f"{shown} (aborted)"
                if not self.sender.gone:
                    await self._send(
                        {"type": "websocket.close", "code": ended.close_code, "reason": cut_reason(ended.reason)}
                    )
        except (OSError, RuntimeError):
            return f"{shown} (client already gone)"
        except TimeoutError:
            if self._on(Event.EXPIRE) is Act.ABORT:
                self.sender.abort()
            return f"{shown} (client did not read it)"
        except asyncio.CancelledError:
            # The server stops, and does not wait any longer.
            self.sender.abort()
            return f"{shown} (aborted)"
        return shown


def _parts(subscriptions: Sequence[Subscription]) -> Iterator[Sequence[Subscription]]:
    for at in range(0, len(subscriptions), PART):
        yield subscriptions[at : at + PART]


def _repeated(request: Mapping[str, Any]) -> int | float | str | None:
    """Return the id of a refused request, or None if that is what it was refused for."""
    try:
        return request_id(request)
    except BadRequest:
        return None


def _error_frame(code: ErrorCode, error: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    extra = {key: value for key, value in fields.items() if value is not None}
    return {"type": "error", **extra, "code": code, "error": error, "retry": code in RETRYABLE}


def shown_ignored(ignored: Iterable[Ignored]) -> dict[str, list[dict[str, str]]]:
    """Return what an ack says of unknown names; empty if there are none."""
    shown = [each._asdict() for each in ignored]
    return {"ignored": shown} if shown else {}


def cut_reason(reason: str) -> str:
    """Return `reason`, cut between two characters so that it fits into a close frame."""
    return reason.encode()[:_REASON_BYTES].decode(errors="ignore")
