"""QMTClient: the gateway's WebSocket streams for Python, by callback or ``async for``.

Runs on the caller's event loop, with one task for each connection and no thread. The task goes on reading while the
caller works (`qmt_bridge.reading.reader`); what it keeps is bounded and, for a caller that is behind, the newest
(`qmt_bridge.reading.backlog`). What the frames mean is decided in `qmt_bridge.clients.stream`, when the caller takes
them: positions are those of the caller.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack
from urllib.parse import quote, urlencode

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from qmt_bridge.clients.arguments import QuoteOptions, checked_codes, checked_options, checked_port, netloc, trusting
from qmt_bridge.clients.bookmark import Bookmark, BookmarkFile
from qmt_bridge.clients.control import Closed, Control
from qmt_bridge.clients.pages import Pages
from qmt_bridge.clients.shared_connection import Member, SharedConnection
from qmt_bridge.clients.stream import (
    Retries,
    Stream,
    StreamState,
    Verdict,
    is_formula_value,
    is_stamped,
    is_trade_event,
    is_untyped,
    parts,
    refused_codes,
    server_error,
)
from qmt_bridge.clients.subscription import Subscription, call
from qmt_bridge.clients.typed import Shape, depth, download, events, formula, market, plain, quotes
from qmt_bridge.errors import BadRequest, Disconnected
from qmt_bridge.frames import Library
from qmt_bridge.reading.backlog import Backlog, Lag
from qmt_bridge.reading.places import CODES_A_REQUEST, Places
from qmt_bridge.reading.reader import Reader
from qmt_bridge.wire.topics import VERSIONS, Versions

logger = logging.getLogger(__name__)
# At DEBUG websockets logs every header of the handshake, including the API key.
_protocol_logger = logging.getLogger(f"{__name__}.websockets")
_protocol_logger.setLevel(logging.WARNING)

# Whole-market snapshots and thousand-level depth are much larger than websockets' default limit of 1 MiB.
FRAME_BYTES = 64 * 1024 * 1024
_OPEN_TIMEOUT = 10.0
# A peer that vanished (power, cable, firewall) is noticed after both times; a quiet stream has no other sign of it.
_PING_INTERVAL = 20.0
_PING_TIMEOUT = 20.0
# A lost peer does not answer a close frame, and Ctrl-C should not wait long for the answer.
_CLOSE_TIMEOUT = 2.0

Callback = Callable[[dict[str, Any]], object]
"""Takes one frame as the gateway sent it; may be a coroutine function, which is awaited before the next frame."""


def is_final(exc: Exception) -> bool:
    """Return whether a failure to connect will be the same next time: a rejected key or certificate."""
    if isinstance(exc, InvalidStatus):
        return exc.response.status_code in (401, 403)
    return isinstance(exc, ssl.SSLCertVerificationError)


class QMTClient:
    """A client of one gateway. It can serve any number of streams, each on its own socket unless they are shared.

    Every stream comes in two forms: ``await client.subscribe_x(..., callback)`` runs until it is cancelled (or the
    download is done), ``async for frame in client.x(...)`` gives the same frames to a loop. Frames are dicts as
    `docs/websocket.md` shows them, with ``typed=True`` the records of `qmt_bridge.wire.messages` and of
    `qmt_bridge.clients.trades`. To what ``client.x(...)`` returns codes can be added while it runs, from any task or
    thread (`clients.subscription.Subscription`). Scripts and notebooks have `qmt_bridge.sync`.

    With ``share=True`` streams of quotes, markets and depth with the same period and options have one connection
    (`clients.shared_connection`). What may leave nothing out (``mode="all"``, ``complete``, ``start``, trade prints),
    and trade events, downloads and formulas have one of their own.

    A stream that has been connected once reconnects by itself, with growing and jittered delays and without a limit,
    and sends the same requests again; trade events go on after the last one seen, so none is missed or doubled.
    `on_state` is called with every change of a stream and of the gateway's feeder (`StreamState`). The first
    connection is tried for `connect_timeout` seconds (``math.inf``: without a limit), so a script may start before
    its gateway, but a typo in the host ends with an error. Raises:

    - `Disconnected`: not connected within that time, a rejected key, or a close code that forbids to reconnect;
    - `ServerError`: the gateway refused the whole request, or a download failed;
    - `CallbackError`: a callback raised; chained to the cause, with the frame (or the `StreamState`).

    Quotes and depth take options, which are sent only if they are given: ``fields=["lastPrice"]`` of each record,
    ``max_rate_ms=500`` (one frame of a code in that time: the newest tick, every bar and print), ``mode="all"`` (no
    conflation; a slow client is disconnected instead), ``snapshot=False`` (do not send the last known value first).
    ``start="09:30:00"`` begins with what the gateway's store has of the day, and goes on live; after a lost connection
    each code goes on where it was. With ``end`` the stream ends there. ``speed=10`` plays what is stored at ten times
    the pace of its own times, at most 400 codes by one clock, also after a lost connection; at more than 1 it meets
    the live stream. ``complete=True``: without a `start` too, nothing is left out for a slow callback, and what is
    lost between feeder and gateway, or while the feeder is started again, is read from the store. What the store does
    not have is told to `on_state` as ``gap``.

    A callback (or a loop's body) may take its time: the client goes on reading. Once a frame has waited for half a
    second the callback gets the newest value of each code, and `on_state` is told ``lagging``, what was ``skipped``,
    and ``caught_up``. With ``mode="all"``, and of trade events, every frame waits its turn: at most 256 KiB here, the
    rest at the gateway.

    A code that is refused while others are served is logged as a WARNING and given to `on_error` as its error frame.

    `tls` is True for a gateway with TLS. The file of a certificate authority (PEM) is trusted instead of those of the
    system; for more than that it may be an `ssl.SSLContext`. Every stream sends the key in the
    ``Authorization`` header, or in the URL if a header cannot hold it. No proxy is used: websockets would otherwise
    take the system's proxy, which cannot reach a gateway on the local network.
    """

    def __init__(
        self,
        host: str,
        port: int = 8000,
        api_key: str | None = None,
        tls: bool | str | os.PathLike[str] | ssl.SSLContext = False,
        *,
        connect_timeout: float = 10.0,
        on_error: Callback | None = None,
        on_state: Callable[[StreamState], object] | None = None,
        share: bool = False,
    ) -> None:
        self._server = f"{netloc(host)}:{checked_port(port)}"
        self._base = f"{'wss' if tls else 'ws'}://{self._server}"
        self._headers: dict[str, str] = {}
        self._query: dict[str, str | int] = {}
        if api_key and all("!" <= letter <= "~" for letter in api_key):
            self._headers["Authorization"] = f"Bearer {api_key}"
        elif api_key:
            self._query["api_key"] = api_key
        self._ssl: dict[str, Any] = {} if isinstance(tls, bool) else {"ssl": trusting(tls)}
        self._connect_timeout = connect_timeout
        self._on_error = on_error
        self._on_state = on_state
        context = self._ssl.get("ssl") or (ssl.create_default_context() if tls else None)
        self._share = share
        # By event loop, because a connection belongs to one, and by what its streams have in common.
        self._shared: dict[tuple[asyncio.AbstractEventLoop, bytes], SharedConnection] = {}
        self.pages = Pages(host.removeprefix("[").removesuffix("]"), port, self._headers, self._query, context)

    def __repr__(self) -> str:
        return f"<QMTClient {self._base}>"

    def realtime(
        self, stocks: Iterable[str], period: str = "tick", *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> Subscription:
        """Iterate over quotes of `stocks`: ``{"000001.SZ": [record]}``, ticks or bars by `period`."""
        codes = checked_codes("stocks", stocks)
        given = checked_options(options)
        requests = ({"stocks": part, "period": period, **given} for part in parts(codes))
        shape = quotes(period, typed)
        return self._quotes("/ws/realtime", requests, codes, given, VERSIONS.get(period, "none"), shape)

    async def subscribe_realtime(
        self,
        stocks: Iterable[str],
        callback: Callback,
        period: str = "tick",
        *,
        typed: bool = False,
        **options: Unpack[QuoteOptions],
    ) -> None:
        """Call back with every quote of `stocks`; see `realtime`."""
        await self.realtime(stocks, period, typed=typed, **options).run(callback)

    def whole_quote(
        self, codes: Iterable[str], *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> Subscription:
        """Iterate over ticks of whole markets (``SH``), single codes, or both: ``{"000001.SZ": tick, ...}``."""
        codes = checked_codes("codes", codes)
        given = checked_options(options)
        requests = ({"codes": part, **given} for part in parts(codes))
        return self._quotes("/ws/whole_quote", requests, codes, given, "code", market(typed), joined=True)

    async def subscribe_whole_quote(
        self, codes: Iterable[str], callback: Callback, *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> None:
        """Call back with the ticks of `codes`; see `whole_quote`."""
        await self.whole_quote(codes, typed=typed, **options).run(callback)

    def l2_thousand(
        self, stocks: Iterable[str], gear_num: int = 0, *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> Subscription:
        """Iterate over depth: ``{"000001.SZ": [depth]}``; `gear_num` levels a side, 0 for every one."""
        codes = checked_codes("stocks", stocks)
        # A server of the documented layer only does not know gear_num, so it is sent only if it is not the default.
        given = checked_options(options) | ({"gear_num": gear_num} if gear_num else {})
        requests = ({"stocks": part, **given} for part in parts(codes))
        return self._quotes("/ws/l2_thousand", requests, codes, given, "code", depth(typed))

    async def subscribe_l2_thousand(
        self,
        stocks: Iterable[str],
        callback: Callback,
        gear_num: int = 0,
        *,
        typed: bool = False,
        **options: Unpack[QuoteOptions],
    ) -> None:
        """Call back with the depth of `stocks`; see `l2_thousand`."""
        await self.l2_thousand(stocks, gear_num, typed=typed, **options).run(callback)

    def trade_events(
        self,
        after: int | None = None,
        state: str | os.PathLike[str] | None = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
        typed: bool = False,
    ) -> Subscription:
        """Iterate over ``{"type": "order", "seq": 8812, "data": {...}}``; the client needs its `api_key`.

        `after` is the ``seq`` of the last event that an earlier run has seen: every later event is replayed first.
        `start` is a moment instead (``09:30:00``, an ISO time, or milliseconds since 1970): every event is replayed
        that came since then; what the journal does not have of it is told to `on_state` as ``gap``. With `end` the
        stream ends before the first event at or after that moment.

        `state` names a file that keeps a bookmark for the next run; if it exists, it is used instead of `after` and
        `start`.
        An event counts as seen once the callback has returned (in a loop: once the next event is requested), and is
        then written within a second, at the latest when the stream ends. So every event is seen at least once; those
        seen in the second before a crash come again. A file belongs to one program and one gateway.

        Raises `ConfigError` for a file that cannot be used: of another gateway, damaged, not writable. Raises
        `ServerError` (resume_expired), now or after a reconnect, if the gateway does not have every later event any
        more: they are too old, or the journal is not the one of the bookmark, or ends before it. Its
        ``frame["oldest"]``, where the gateway gives it, is the smallest `after` that would be accepted. The caller
        decides what to do about the loss; to go on, delete the file, which has precedence, and use that `after`.
        """
        if after is not None and start is not None:
            raise BadRequest("bad_request", "start and after both say where to begin; choose one")
        if end is not None and start is None and after is None and state is None:
            raise BadRequest("bad_request", "end is that of a part of the day, which needs a start")
        moments = {name: moment for name, moment in (("start", start), ("end", end)) if moment is not None}
        saved = None if state is None else BookmarkFile(state, self._server)
        bookmark = (saved.load() if saved is not None else None) or (None if after is None else Bookmark(after))
        stream = Stream("/ws/trade", (), (), is_trade_event, journaled=True, bookmark=bookmark, moments=moments)
        return self._subscription(stream, events(typed), saved)

    async def subscribe_trade_events(
        self,
        callback: Callback,
        after: int | None = None,
        state: str | os.PathLike[str] | None = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
        typed: bool = False,
    ) -> None:
        """Call back with every trade event, in order; see `trade_events`."""
        await self.trade_events(after, state, start=start, end=end, typed=typed).run(callback)

    def download_progress(
        self, stocks: Iterable[str], period: str, start_time: str = "", end_time: str = "", *, typed: bool = False
    ) -> Subscription:
        """Download history to the feeder's machine and iterate over its progress; ends after ``{"status": "done"}``.

        Progress is ``{"finished": 1, "total": 3, "stockcode": "000001.SZ", "message": ""}``. Times are
        ``YYYYMMDD`` or ``YYYYMMDDhhmmss``, empty for everything. Equal downloads share one job, so a request within
        some seconds after a lost connection continues it; a job without a client for longer is cancelled.
        """
        codes = checked_codes("stocks", stocks)
        request = {"stocks": codes, "period": period, "start_time": start_time, "end_time": end_time}
        stream = Stream("/ws/download_progress", (request,), codes, finite=True, versions="topic")
        return self._subscription(stream, download(typed))

    async def subscribe_download_progress(
        self,
        stocks: Iterable[str],
        period: str,
        callback: Callback,
        start_time: str = "",
        end_time: str = "",
        *,
        typed: bool = False,
    ) -> None:
        """Call back with the progress of a download and return when it is done; see `download_progress`."""
        await self.download_progress(stocks, period, start_time, end_time, typed=typed).run(callback)

    def formula(
        self,
        formula_name: str,
        stock_code: str,
        period: str = "1d",
        count: int = -1,
        dividend_type: str = "none",
        params: Mapping[str, int | float | str] | None = None,
        *,
        typed: bool = False,
    ) -> Subscription:
        """Iterate over a formula's values: ``{"type": "formula_update", "seq_id": 1, ..., "data": {...}}``.

        `count` is the number of bars to calculate over, -1 for all; `params` are the formula's own parameters.
        """
        request = {
            "action": "subscribe",
            "formula_name": formula_name,
            "stock_code": stock_code,
            "period": period,
            "count": count,
            "dividend_type": dividend_type,
            "params": dict(params or {}),
        }
        stream = Stream("/ws/formula", (request,), (stock_code,), is_formula_value, versions="values")
        return self._subscription(stream, formula(typed))

    async def subscribe_formula(
        self,
        formula_name: str,
        stock_code: str,
        callback: Callback,
        period: str = "1d",
        count: int = -1,
        dividend_type: str = "none",
        params: Mapping[str, int | float | str] | None = None,
        *,
        typed: bool = False,
    ) -> None:
        """Call back with every value of a formula; see `formula`."""
        frames = self.formula(formula_name, stock_code, period, count, dividend_type, params, typed=typed)
        await frames.run(callback)

    async def last(
        self,
        codes: Iterable[str],
        period: str = "tick",
        gear_num: int | None = None,
        fields: Iterable[str] | None = None,
        library: Library | Literal["records"] | None = None,
    ) -> Any:
        """Return the newest record of each code as a DataFrame (`qmt_bridge.frames`), one row a code.

        Ticks or bars by `period`; with `gear_num` depth instead. The last column, `missing`, says why a code has no
        record, and is null where it has one. `library` is "pandas", "polars", or "records" for the answer itself,
        which needs neither: ``{"records": {code: record}, "missing": {...}, "feed": "up"}``. Raises `ServerError` for
        what the gateway refuses, `Disconnected` without a gateway.
        """
        return await asyncio.to_thread(self.pages.last, codes, period, gear_num, fields, library)

    async def ticks(
        self,
        code: str,
        start: str | int | None = None,
        end: str | int | None = None,
        period: str = "tick",
        fields: Iterable[str] | None = None,
        library: Library | Literal["records"] | None = None,
    ) -> Any:
        """Return what the gateway's store has of one code, from `start` up to `end`, as a DataFrame.

        Moments are those of a stream's `start`; without them everything of the day. What is missing is logged, and told
        to `on_state` as ``gap``, with the hole as it is in the answer. With the library "records" the answer is
        ``(records, end)``, where `end` has `complete` and `missing` (docs/http.md). Raises as `last`.
        """
        part = await asyncio.to_thread(self.pages.ticks, code, start, end, period, fields, library)
        for state in part.gaps:
            await self._tell(state)
        return part.shown

    def _quotes(
        self,
        path: str,
        requests: Iterable[dict[str, Any]],
        codes: list[str],
        given: dict[str, Any],
        versions: Versions,
        shape: Shape,
        *,
        joined: bool = False,
    ) -> Subscription:
        if given.get("speed") and len(codes) > CODES_A_REQUEST:
            raise BadRequest("bad_request", f"at most {CODES_A_REQUEST} codes are played together, not {len(codes)}")
        places = Places(codes) if given.get("seq") else None
        # Stored messages come as fast as they are read, and none of them is to be left out here.
        versions = "none" if places is not None or given.get("mode") == "all" else versions
        carries = is_untyped if places is None else is_stamped
        stream = Stream(path, requests, codes, carries, versions=versions, joined=joined, places=places)
        return self._subscription(stream, shape)

    def _subscription(self, stream: Stream, shape: Shape = plain, saved: BookmarkFile | None = None) -> Subscription:
        control = Control(stream)
        if self._share and stream.shared_by:
            return Subscription(self._shared_frames(stream, control, shape), control)
        return Subscription(self._frames(stream, control, shape, saved), control)

    async def _shared_frames(self, stream: Stream, control: Control, shape: Shape) -> AsyncGenerator[Any, None]:
        """Yield the frames of a stream that has no connection of its own."""
        try:
            control.begin()
            member = Member(set(stream.codes), Backlog(stream.versions, joined=stream.joined))
            shared = self._shared_connection(stream)
            shared.join(member, control.connection)
            try:
                control.joined(
                    member.mailbox,
                    lambda action, codes: (shared.add if action == "subscribe" else shared.remove)(member, codes),
                )
                while True:
                    taken = await member.mailbox.take()
                    if isinstance(taken, Lag):
                        await self._tell(StreamState(taken.state, stream.path, "slow_callback", count=taken.skipped))
                        continue
                    frame = member.wanted(_parse(taken))
                    if frame:
                        yield shape(frame)
            finally:
                shared.leave(member)
        except Closed:
            return
        finally:
            control.ended()

    def _shared_connection(self, stream: Stream) -> SharedConnection:
        loop = asyncio.get_running_loop()
        key = (loop, stream.shared_by)
        if key not in self._shared:
            carried = stream.emptied()
            control = Control(carried)
            frames = Subscription(self._frames(carried, control, plain, None), control)
            left = partial(self._shared.__delitem__, key)
            shared = SharedConnection(frames, partial(self._warn, carried), left, snapshot=carried.has_snapshot)
            carried.on_refused = shared.refuse
            self._shared[key] = shared
        return self._shared[key]

    async def _frames(
        self, stream: Stream, control: Control, shape: Shape, saved: BookmarkFile | None
    ) -> AsyncGenerator[Any, None]:
        try:
            control.begin()
            now = asyncio.get_running_loop().time
            retries = Retries(now() + self._connect_timeout)
            saving = _Saving(saved)
            saving.reach(stream.bookmark)
            while True:
                socket = await self._connect(stream, retries, control)
                backlog = Backlog(stream.versions, joined=stream.joined)
                reader = Reader(socket, backlog, control)
                try:
                    await self._ask(stream, socket)
                    control.connected(socket, reader)
                    while True:
                        frame, verdict = await self._receive(stream, reader, backlog, saving)
                        if verdict is Verdict.AGAIN:
                            loss = _Loss(str(server_error(frame)))
                            break
                        if verdict is Verdict.END:
                            return
                        yield shape(stream.shown(frame))
                        if verdict is Verdict.LAST:
                            return
                        # The caller has asked for the next frame, so it has finished with this one.
                        saving.reach(stream.bookmark)
                except ConnectionClosed as exc:
                    loss = _loss(exc)
                finally:
                    control.lost()
                    saving.flush()
                    await _close(socket, reader)
                if not stream.closed(loss.code, loss.reason):
                    return
                retries.lost(now())
                is_announced = stream.closing or loss.code in (1001, 1012)
                await self._wait(stream, retries, control, loss, announced=is_announced)
        except Closed:
            return
        finally:
            control.ended()

    async def _connect(self, stream: Stream, retries: Retries, control: Control) -> ClientConnection:
        """Try until the gateway answers; raise `Disconnected` if it never will, or not in `connect_timeout`."""
        now = asyncio.get_running_loop().time
        while True:
            await self._tell(StreamState("connecting", stream.path, attempt=retries.begin()))
            try:
                opening = self._open(stream, min(_OPEN_TIMEOUT, retries.left(now())))
                socket = await control.unless_closed(opening, lambda opened: opened.transport.abort())
            except (OSError, WebSocketException) as exc:
                if is_final(exc) or retries.is_over(now()):
                    raise Disconnected(None, f"cannot connect to {self._base}{stream.path}: {exc}") from exc
                loss = _Loss(f"cannot connect: {exc}")
            else:
                retries.connected(now())
                return socket
            await self._wait(stream, retries, control, loss)

    async def _ask(self, stream: Stream, socket: ClientConnection) -> None:
        for request in stream.requests:
            await socket.send(request)
        await self._tell(StreamState("connected", stream.path))

    async def _receive(
        self, stream: Stream, reader: Reader, backlog: Backlog, saving: _Saving
    ) -> tuple[dict[str, Any], Verdict]:
        """Return the next frame to deliver, with DELIVER or LAST, or an error after which to connect AGAIN."""
        while True:
            taken = await reader.take()
            if isinstance(taken, Lag):
                await self._tell(StreamState(taken.state, stream.path, "slow_callback", count=taken.skipped))
                continue
            frame = _parse(taken)
            verdict = _judged(stream, frame)
            while stream.news:
                state = stream.news.pop(0)
                if state.state == "skipped":
                    backlog.server_skipped(state.count)
                await self._tell(state)
            if verdict is Verdict.FAIL:
                raise server_error(frame)
            if verdict is Verdict.WARN:
                await self._warn(stream, frame)
            elif verdict is not Verdict.IGNORE:
                return frame, verdict
            saving.reach(stream.bookmark)

    async def _wait(
        self, stream: Stream, retries: Retries, control: Control, loss: _Loss, *, announced: bool = False
    ) -> None:
        """Tell of a lost connection, or one that was not made, and sleep until the next attempt."""
        if not stream.interrupted:
            logger.warning("%s%s %s; connecting again", self._base, stream.path, loss)
            stream.interrupted = True
        delay = retries.delay(asyncio.get_running_loop().time(), random.random(), announced=announced)
        await self._tell(StreamState("disconnected", stream.path, loss.reason, loss.code, delay=delay))
        await control.unless_closed(asyncio.sleep(delay))

    async def _open(self, stream: Stream, open_timeout: float) -> ClientConnection:
        stream.opened()
        query = self._query | stream.parameters
        return await connect(
            f"{self._base}{stream.path}{'?' if query else ''}{urlencode(query, quote_via=quote)}",
            additional_headers=self._headers,
            # With this subprotocol the gateway sends the journal's sequence number and the state of its feeder. A
            # server of the documented layer only chooses no subprotocol, which RFC 6455 (4.1) allows.
            subprotocols=[Subprotocol("qmt.v1.json")],
            # Compression costs the gateway 8 us a tick, and memory for every client.
            compression=None,
            proxy=None,
            open_timeout=open_timeout,
            close_timeout=_CLOSE_TIMEOUT,
            ping_interval=_PING_INTERVAL,
            ping_timeout=_PING_TIMEOUT,
            max_size=FRAME_BYTES,
            logger=_protocol_logger,
            **self._ssl,
        )

    async def _warn(self, stream: Stream, frame: dict[str, Any]) -> None:
        logger.warning("%s%s %s %s", self._base, stream.path, server_error(frame), " ".join(refused_codes(frame)))
        if stream.on_refused is not None:
            stream.on_refused(frame)
        if self._on_error is not None:
            await call(self._on_error, frame)

    async def _tell(self, state: StreamState) -> None:
        if state.state == "resumed":
            logger.info("%s%s is back", self._base, state.path)
        if self._on_state is not None:
            await call(self._on_state, state)


class _Loss(NamedTuple):
    """Why there is no connection; `code` is that of the close frame, None if the gateway did not close."""

    reason: str
    code: int | None = None

    def __str__(self) -> str:
        return self.reason if self.code is None else f"closed with {self.code} {self.reason}".rstrip()


def _loss(exc: ConnectionClosed) -> _Loss:
    # This side closes by itself over a frame that is too large or a ping without an answer; then only `sent` is set.
    end = exc.rcvd or exc.sent
    return _Loss(end.reason, end.code) if end else _Loss("connection lost", 1006)


class _Saving:
    """Keeps a bookmark's file up to date, by a timer when no more events come; without a file it does nothing."""

    def __init__(self, saved: BookmarkFile | None) -> None:
        self._saved = saved
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def reach(self, bookmark: Bookmark | None) -> None:
        """Take the bookmark up to which the caller has seen everything."""
        if self._saved is not None and bookmark is not None:
            self._saved.reach(bookmark, self._loop.time())
            self._plan(self._saved)

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._saved is not None:
            self._saved.save(self._loop.time())

    def _plan(self, saved: BookmarkFile) -> None:
        # One timer is cheap; a timeout around every receive would cost more than the rest of the client.
        if self._timer is None and saved.due is not None:
            self._timer = self._loop.call_at(saved.due, self._save, saved)

    def _save(self, saved: BookmarkFile) -> None:
        self._timer = None
        saved.save(self._loop.time())
        self._plan(saved)


async def _close(socket: ClientConnection, reader: Reader) -> None:
    # With a full queue websockets stops reading and would never see the answer to its close frame, so drain it.
    try:
        await reader.close()
        await asyncio.gather(socket.close(), _drain(socket))
    finally:
        # If this is cancelled, as at the end of asyncio.run(), nothing else closes the transport.
        socket.transport.abort()


async def _drain(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await socket.recv(decode=False)


def _judged(stream: Stream, frame: dict[str, Any]) -> Verdict:
    try:
        return stream.judge(frame)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        # A gateway sends no such frame; another server, or one that is much newer, may.
        told = f"the server sent a frame that cannot be read: {str(frame)[:80]!r}"
        raise Disconnected(None, told) from exc


def _parse(text: bytes) -> dict[str, Any]:
    try:
        frame = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise Disconnected(None, f"the server sent a frame that is not JSON: {exc}") from exc
    if not isinstance(frame, dict):
        raise Disconnected(None, f"the server sent a frame that is not a JSON object: {text[:80]!r}")
    return frame
