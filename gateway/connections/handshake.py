"""Connections before they are WebSockets: uvicorn's HTTP protocol behind bounds of size and time.

    uvicorn gateway.app:app --http gateway.connections.handshake:Handshake --ws gateway.writer:PreparedFrames

uvicorn waits without end for the rest of a request, and hands on what its WebSocket protocols then do not answer. The
attributes of uvicorn's h11 protocol that are used are checked by `tests/gateway/connections/test_handshake.py`. Runs on
the event loop.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from gateway.access.browser_headers import BROWSER_HEADERS
from gateway.access.peers import Proxies
from gateway.connections.arrivals import REQUEST_COST, Arrivals
from gateway.connections.descriptors import Descriptors
from gateway.connections.intake import SOCKET_SHARE, Meter
from gateway.connections.opening import HEAD_BYTES, Opening, Unserved, headers_in
from gateway.keys.attempts import why_barred
from gateway.keys.entry import Entry
from qmt_bridge.config import load_config

# The name under which an answer that takes any time finds its connection in ``scope["extensions"]``.
EXTENSION = "qmt_bridge.stream"
# Seconds in which a whole request has to arrive, and in which its answer has to be read.
REQUEST_TIMEOUT = 8.0
# Seconds in which a refused client can read why.
LINGER = 1.0
# Seconds of the loop that a page takes.
PAGE_COST = 0.001
# Connections that are dropped in one turn of the loop: each takes some 30 us.
DROPPED_AT_ONCE = 50

# Requests of this process that were refused or had to wait, by the name of the limit.
limited: Counter[str] = Counter()
# Who may enter the worker of each loop.
entries: dict[asyncio.AbstractEventLoop, Entry] = {}


class Handshake(H11Protocol):
    """uvicorn's HTTP protocol, which is given one whole request of bounded size at a time.

    uvicorn's part is made with the first whole request: a connection that waits for it takes 2 KB in place of 5 KB, and
    5,000 of them delay the handshake of another client by 131 ms in place of 222 ms.
    """

    # Whether uvicorn's protocol is made, and its request until then.
    made = False
    cycle: RequestResponseCycle = None  # type: ignore[assignment]
    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.server_state = server_state
        self.loop = _loop or asyncio.get_running_loop()
        self._made_of = config, app_state
        # One for each server.
        shared = vars(server_state)
        self.deadlines: Deadlines = shared.get("deadlines") or shared.setdefault("deadlines", Deadlines(self.loop))
        self.arrivals: Arrivals = shared.get("arrivals") or shared.setdefault("arrivals", Arrivals(self.loop))
        self.proxies: Proxies = shared.get("proxies") or shared.setdefault("proxies", _proxies())
        self.opening = Opening()
        # A whole request that waits for its turn, and what the requests of this address have cost.
        self.request = b""
        self.address = ""
        self.meter: Meter
        # What the answers of this connection have cost; None before the first one.
        self.answered: Meter | None = None
        self.refused = False
        # Whether the next request has to wait.
        self.paused = False
        # Of an answer that takes any time: what to do when the server stops.
        self.stopping: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; give up the connection that waits longest if descriptors run out."""
        self.transport = transport
        self.client = get_remote_addr(transport)
        self.server_state.connections.add(self)
        self.deadlines.begin(self)
        self.deadlines.await_request(self, self.client[0] if self.client else "")
        opened = transport.get_extra_info("socket")
        if opened is not None and self.deadlines.descriptors.scarce(opened.fileno()):
            self.deadlines.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self.deadlines.end(self)
        if not self.made:
            self.server_state.connections.discard(self)
        else:
            super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close, after the answer that is being sent: the server stops."""
        if not self.made:
            self.transport.close()
            return
        super().shutdown()
        if self.stopping is not None:
            self.stopping()

    def stream(self, stopping: Callable[[], None]) -> None:
        """Let the answer that is being made take any time (http/events.py); call `stopping` when the server stops."""
        self.stopping = stopping
        self.deadlines.end(self)

    def drop(self) -> None:
        """Drop the connection: a close would wait until the client has read what it does not read."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Note that the client has to read first."""
        if self.made:
            super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has read."""
        if self.made:
            super().resume_writing()

    def _make(self) -> None:
        transport, (config, app_state) = self.transport, self._made_of
        super().__init__(config, self.server_state, app_state, self.loop)
        super().connection_made(transport)
        self.made = True

    def data_received(self, data: bytes) -> None:
        """Collect a request."""
        if self.refused or self.transport.is_closing():
            return
        self.opening.add(data)
        if self._answering():
            if len(self.opening) > HEAD_BYTES:
                self.flow.pause_reading()
        else:
            self._next()

    def on_response_complete(self) -> None:
        """Go on with the next request, which may be there already, unless the client asks too often."""
        super().on_response_complete()
        self.stopping = None
        if len(self.opening) > HEAD_BYTES:
            self.flow.pause_reading()
        if not self.transport.is_closing():
            now = self.loop.time()
            self.answered = self.answered or Meter()
            self.answered.spend(PAGE_COST, now)
            self.paused = True
            self.deadlines.begin(self)
            self.loop.call_later(self.answered.debt(now) / SOCKET_SHARE, self._go_on)

    def expire(self) -> None:
        """Give up a client that has not sent a whole request in time, or has not read the answer, or waits too long."""
        limited["handshakes"] += 1
        if self.request and not self.refused:
            self._answer(HTTPStatus.TOO_MANY_REQUESTS, "too many requests of this address wait for their turn")
            self.transport.close()
        elif not self.opening or self._answering() or self.refused:
            self.transport.abort()
        else:
            self._answer(HTTPStatus.REQUEST_TIMEOUT, f"no whole request came within {REQUEST_TIMEOUT:.0f} s")
            self.transport.close()

    def refuse(self, status: HTTPStatus, sentence: str, headers: str = "") -> None:
        """Answer with a sentence and close, after a moment: what is still on its way would undo the answer."""
        self._answer(status, sentence, headers)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what uvicorn does not understand like everything else that is not served."""
        self.refuse(HTTPStatus.BAD_REQUEST, msg)

    def _answer(self, status: HTTPStatus, sentence: str, headers: str = "") -> None:
        self.refused = True
        self.deadlines.end(self)
        body = f"{sentence}\n".encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n{headers}"
        head += "".join(f"{name}: {value}\r\n" for name, value in BROWSER_HEADERS.items())
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)

    @property
    def waiting(self) -> int:
        """Return 0: requests are served in the order in which they came (intake.Source)."""
        return 0

    def work_off(self, now: float) -> float:
        """Serve the request that waits (intake.Source)."""
        request, self.request = self.request, b""
        if self.refused or self.transport.is_closing():
            return 0.0
        # One that is refused for wrong keys costs less, because neither uvicorn nor the app handles it.
        self.meter.spend(REQUEST_COST, now)
        if seconds := self._barred(request, now):
            told = f"Retry-After: {seconds}\r\n"
            self.refuse(HTTPStatus.TOO_MANY_REQUESTS, why_barred(seconds), told)
        else:
            self._serve(request)
        return REQUEST_COST

    def _barred(self, request: bytes, now: float) -> int:
        """Return the seconds for which a WebSocket is refused because of wrong keys from its address; 0 if it is not.

        The app refuses the others, after all that uvicorn and it do for a handshake.
        """
        entry = entries.get(self.loop)
        if entry is None or not entry.attempts.refused(self.address, now):
            return 0
        head = request.partition(b"\r\n\r\n")[0]
        headers = headers_in(head)
        named = dict(headers)
        if named.get(b"upgrade", b"").lower() != b"websocket":
            return 0
        _, _, target = head.partition(b"\n")[0].partition(b" ")
        offered = named.get(b"sec-websocket-protocol", b"").decode("latin-1")
        scope = {
            "client": (self.address, 0),
            "headers": headers,
            "query_string": target.partition(b" ")[0].partition(b"?")[2],
            "subprotocols": [item.strip() for item in offered.split(",")],
        }
        return entry.barred(scope, needs_key=False)

    def _address(self, request: bytes) -> str:
        """Return the address of the client, whom a trusted proxy names."""
        address = self.client[0] if self.client else ""
        if not self.proxies.trusts(address):
            return address
        head = request.partition(b"\r\n\r\n")[0]
        scope: dict[str, Any] = {"client": self.client, "scheme": self.scheme, "headers": headers_in(head)}
        self.proxies.resolve(scope)
        return str(scope["client"][0])

    def _answering(self) -> bool:
        return bool(self.request) or self.paused or (self.cycle is not None and not self.cycle.response_complete)

    def _go_on(self) -> None:
        self.paused = False
        self._next()
        if len(self.opening) <= HEAD_BYTES and not self.transport.is_closing():
            self.flow.resume_reading()

    def _next(self) -> None:
        """Serve the next request if it is whole."""
        if self.refused or self.transport.is_closing() or self._answering():
            return
        try:
            request = self.opening.take()
        except Unserved as exc:
            self.refuse(exc.status, exc.sentence, exc.headers)
            return
        if request is None:
            if self.opening and self.made:
                # The deadline of the request holds now, not the one of an idle connection.
                self._unset_keepalive_if_required()
            return
        if not self.made:
            self._make()
        self.request = request
        self.deadlines.has_request(self)
        now = self.loop.time()
        self.address = self._address(request)
        self.meter = self.arrivals.meter(self.address, now)
        if self.meter.debt(now) > 0:
            limited["handshakes"] += 1
        if len(self.opening) > HEAD_BYTES:
            self.flow.pause_reading()
        self.arrivals.add(self)

    def _serve(self, request: bytes) -> None:
        self.deadlines.begin(self)
        super().data_received(request)
        if self.cycle is not None and not self.cycle.response_complete:
            # Its task has not begun. Not a reference: the request would keep the connection, and so itself.
            cast(dict[str, Any], self.cycle.scope)["extensions"] = {EXTENSION: weakref.proxy(self)}
        after = self.transport.get_protocol()
        if after is not self:
            # A WebSocket now.
            self.deadlines.end(self)
            self.flow.resume_reading()
            if self.opening:
                assert isinstance(after, asyncio.Protocol)
                after.data_received(self.opening.rest())
        elif len(self.opening) <= HEAD_BYTES and not self._answering():
            self.flow.resume_reading()


def _proxies() -> Proxies:
    config = load_config()
    return Proxies(config.behind_proxy, config.proxy_header)


class Deadlines:
    """The connections of one server that have to send or read something in time. All have the same time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.descriptors = Descriptors()
        self._loop = loop
        # In the order of the time when they end.
        self._ends: dict[Handshake, float] = {}
        # Those of each address that have sent no whole request yet, the oldest first, and the address of each.
        self._bare: dict[str, dict[Handshake, None]] = {}
        self._addresses: dict[Handshake, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: Handshake) -> None:
        """Give the connection its time, from now on."""
        self._ends.pop(connection, None)
        self._ends[connection] = self._loop.time() + REQUEST_TIMEOUT
        self._plan()

    def end(self, connection: Handshake) -> None:
        """Forget the connection."""
        self._ends.pop(connection, None)
        self.has_request(connection)

    def await_request(self, connection: Handshake, address: str) -> None:
        """Count a new connection; drop the oldest one of its address if that has more than its share.

        Otherwise one address could take all descriptors again and again, and the owner would find none with his key.
        """
        of = self._bare.setdefault(address, {})
        of[connection] = None
        self._addresses[connection] = address
        if len(of) > self.descriptors.share():
            limited["handshakes"] += 1
            oldest = next(iter(of))
            self.end(oldest)
            oldest.transport.abort()

    def has_request(self, connection: Handshake) -> None:
        """Count a connection no more that has sent a whole request."""
        address = self._addresses.pop(connection, None)
        if address is not None:
            of = self._bare[address]
            del of[connection]
            if not of:
                del self._bare[address]

    def make_room(self) -> None:
        """Drop the connection that waits longest: it is the one that is least likely to become a WebSocket."""
        self.descriptors.tell()
        limited["handshakes"] += 1
        oldest = next(iter(self._ends))
        self.end(oldest)
        oldest.transport.abort()

    def _plan(self) -> None:
        if self._timer is None and self._ends:
            self._timer = self._loop.call_at(next(iter(self._ends.values())), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for connection, end in list(self._ends.items())[:DROPPED_AT_ONCE]:
            if end > now:
                break
            self.end(connection)
            connection.expire()
        self._plan()
