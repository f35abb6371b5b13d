"""Server-sent events: a session as on a WebSocket, whose frames are written as events of one HTTP answer.

The session has the same endpoint, key, limits, subscriptions and outbox as a socket; this file only translates the
messages of its ASGI interface. A client that does not read is conflated and dropped in the same way. Runs on the event
loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qs, urlencode

import msgspec
import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.endpoints.formula import Formula
from gateway.endpoints.l2_thousand import L2Thousand
from gateway.endpoints.realtime import Realtime
from gateway.endpoints.whole_quote import WholeQuote
from gateway.http.admission import Host, check_barred, identify
from gateway.http.connection import Connection
from gateway.http.event_ids import END, FORMULA, Marks
from gateway.http.problems import Denied
from gateway.http.query import KEY, values_of
from gateway.keys.entry import headers_of
from gateway.session import Ended, Endpoint, Session
from qmt_bridge.closes import RESTARTING, VANISHED
from qmt_bridge.errors import ERROR_CODES, ErrorCode
from qmt_bridge.wire.codes import MARKETS
from qmt_bridge.wire.requests import FormulaRequest, L2Request, QuoteRequest, WholeRequest

# Milliseconds after which a browser connects again.
RETRY_MS = 2000
# Some replacements of EventSource cannot send the header, and have one of these parameters.
_ID_PARAMETERS = ("lastEventId", "last_event_id")
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # nginx collects an answer before it passes it on, unless it is told.
    (b"x-accel-buffering", b"no"),
]
# The start of a data frame with its position (sending/view.py), and the first code in it.
_DATA = re.compile(r'\{"type":"data","epoch":(\d+),"seq":(\d+),"time":([^,]+),"published":[^,]+,"data":')
_CODE = re.compile(r'\{"([^"\\]+)"')
_LINES = re.compile(r"\r\n|\r|\n")


# The URLs: what serves each, and the parameters that it takes.
EVENTS: Mapping[str, tuple[type[Endpoint], type[msgspec.Struct]]] = {
    "/sse/realtime": (Realtime, QuoteRequest),
    "/sse/whole_quote": (WholeQuote, WholeRequest),
    "/sse/l2_thousand": (L2Thousand, L2Request),
    "/sse/formula": (Formula, FormulaRequest),
}


async def events(host: Host, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one URL until the client disconnects; raise `Denied` or `BadRequest` before the answer has begun."""
    endpoint, shape = EVENTS[scope["path"].removesuffix("/")]
    needs_key = host.entry.needs_key(scope, always=endpoint.always_key)
    check_barred(host.entry, scope, needs_key=needs_key)
    request = values_of(scope["query_string"], shape, _ID_PARAMETERS)
    marks = Marks(str(name) for name in _named(request))
    given = _last_id(scope)
    if given == END:
        identify(host.entry, scope, needs_key=needs_key)
        # The only answer after which a browser does not connect again.
        await Response(status_code=HTTPStatus.NO_CONTENT)(scope, receive, send)
        return
    if given:
        marks.begin(given)
        marks.resume(request)
    if scope["method"] == "HEAD":
        identify(host.entry, scope, needs_key=needs_key)
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": _HEADERS})
        await send({"type": "http.response.body"})
        return
    connection = Connection(scope, receive)
    stream = _Stream(connection, send, request, marks)
    session = Session(host, _as_socket(scope), stream.receive, stream.send)
    connection.stream(lambda: _restart(session))
    await session.run(endpoint)
    if stream.denied is not None:
        raise stream.denied
    if not stream.complete:
        await connection.drop()


def _restart(session: Session) -> None:
    session.tell_closing()
    session.end(Ended(RESTARTING))


def _named(request: Mapping[str, Any]) -> list[object]:
    """Return the names whose topics a request is for; a formula is one."""
    return next((request[field] for field in ("stocks", "codes") if isinstance(request.get(field), list)), [FORMULA])


def _last_id(scope: Scope) -> str:
    given = headers_of(scope).get("last-event-id", "")
    query = parse_qs(scope["query_string"].decode("latin-1"))
    return given or next((query[name][-1] for name in _ID_PARAMETERS if name in query), "")


def _as_socket(scope: Scope) -> Scope:
    """Return the request as the handshake of a WebSocket, of whose parameters only the key is left."""
    keys = parse_qs(scope["query_string"].decode("latin-1")).get(KEY, [])[:1]
    scheme = "wss" if scope["scheme"] == "https" else "ws"
    query = urlencode([(KEY, key) for key in keys], encoding="latin-1").encode()
    return {**scope, "type": "websocket", "scheme": scheme, "query_string": query, "subprotocols": [], "extensions": {}}


class _Stream:
    """The two ends of a session's socket: its one request comes from the URL, its frames become events."""

    def __init__(self, connection: Connection, send: Send, request: dict[str, Any], marks: Marks) -> None:
        self._connection = connection
        self._send = send
        # Whether the client wants its data with their positions, as on a WebSocket.
        self._stamped = bool(request.get("seq"))
        self._request = orjson.dumps({**request, "seq": True, "action": "subscribe", "id": 0}).decode()
        # What the session receives next.
        self._inbox: list[Message] = [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": self._request},
        ]
        self._marks = marks
        # The positions of markets of which a snapshot is being sent.
        self._begun: dict[str, tuple[int, int]] = {}
        self._started = False
        # Notices that came before the answer had begun.
        self._early: list[dict[str, Any]] = []
        # Why the request is not served, known before the answer has begun.
        self.denied: Denied | None = None
        # Whether nothing more is to be sent, and whether all of it was, or the client is gone.
        self._ended = False
        self.complete = False
        # Set when the session has nothing more to do.
        self._over = asyncio.Event()

    async def receive(self) -> Message:
        """Return what a client of a WebSocket would have sent."""
        if self._inbox:
            return self._inbox.pop(0)
        waits = [asyncio.ensure_future(self._connection.gone()), asyncio.ensure_future(self._over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if waits[0].done():
            self._ended = self.complete = True
        return {"type": "websocket.disconnect", "code": VANISHED.close_code}

    async def send(self, message: Message) -> None:
        """Write what the session sends."""
        if self.denied is not None or self._ended:
            return
        if message["type"] == "websocket.send":
            await self._take(message["text"])
        elif message["type"] == "websocket.close":
            await self._close(message.get("reason") or "")

    async def _take(self, text: str) -> None:
        found = _DATA.match(text)
        if found is not None:
            await self._write(self._event(text, found))
            return
        frame = orjson.loads(text)
        kind = frame.get("type") or frame.get("action")
        if self._started:
            await self._notice(kind, frame)
        elif kind == "error":
            self._deny(frame["code"], frame["error"])
        elif kind == "subscribed":
            await self._begin(frame)
        else:
            self._early.append(frame)

    def _event(self, text: str, found: re.Match[str]) -> bytes:
        """Return a data frame as an event."""
        epoch, seq, at = int(found[1]), int(found[2]), found.end()
        code = _CODE.match(text, at)
        first = FORMULA if code is None or code[1] == "type" else code[1]
        name = self._marks.name_of(first)
        data = text if self._stamped else text[at:-1]
        if found[3] == "null" and name in MARKETS:
            # A part of a snapshot: the client is there once it has all of them.
            self._begun[name] = (epoch, seq)
            return _shown(data)
        self._begun.pop(name, None)
        self._marks.reach(name, epoch, seq)
        return _shown(data, self._marks.id())

    async def _begin(self, frame: dict[str, Any]) -> None:
        """Begin the answer with the ack, or deny a request of which nothing is served."""
        rejected = frame.get("rejected") or ()
        refused = len({each["code"] for each in rejected}) + frame.get("rejected_more", 0)
        if rejected and not frame.get("added") and refused >= len(self._marks.names):
            self._deny(rejected[0]["error"], rejected[0]["reason"])
            return
        self._started = True
        await self._send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": _HEADERS})
        early, self._early = self._early, []
        notices = b"".join(_shown_notice(each) for each in (frame, *early))
        await self._write(b"retry: %d\n\n" % RETRY_MS + notices)

    async def _notice(self, kind: str, frame: dict[str, Any]) -> None:
        if kind == "heartbeat":
            await self._write(b": heartbeat\n\n")
            return
        if kind == "snapshot_end":
            for name in frame["codes"]:
                if name in self._begun:
                    self._marks.reach(name, *self._begun.pop(name))
        id = END if kind == "end" else self._marks.id() if kind == "snapshot_end" else ""
        await self._write(_shown_notice(frame, id))
        if kind == "end":
            await self._finish()

    def _deny(self, code: str, error: str) -> None:
        known = code if code in ERROR_CODES else "internal"
        self.denied = Denied(cast(ErrorCode, known), error)
        self._over.set()

    async def _close(self, reason: str) -> None:
        if self._started:
            await self._finish()
            return
        code, _, error = reason.partition(": ")
        self._deny(code or "upstream_unavailable", error or reason or "the server stops")

    async def _finish(self) -> None:
        self._ended = True
        # A client that does not read what waits before it is dropped.
        await self._send({"type": "http.response.body"})
        self.complete = True
        self._over.set()

    async def _write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


def _shown_notice(frame: Mapping[str, Any], id: str = "") -> bytes:
    # The number of the request is our own.
    return _shown(orjson.dumps({name: value for name, value in frame.items() if name != "id"}).decode(), id, "notice")


def _shown(data: str, id: str = "", event: str = "") -> bytes:
    """Return an event with its empty line."""
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_LINES.split(data))
    head = (f"event: {event}\n" if event else "") + (f"id: {id}\n" if id else "")
    return f"{head}data: {data}\n\n".encode()
