"""QMTClient: the gateway's WebSocket streams for Python, by callback or ``async for``.

Runs on the caller's event loop and starts no task or thread; must never buffer without bound: what the caller has
not taken yet waits in the sixteen frames of websockets' own queue, then in TCP, and then the gateway conflates.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import logging
import math
import os
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args
from urllib.parse import quote, urlencode

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from qmt_bridge.bookmark import Bookmark, BookmarkFile, fingerprint
from qmt_bridge.errors import (
    BadRequest,
    CallbackError,
    ConfigError,
    Disconnected,
    ServerError,
    may_reconnect,
)

logger = logging.getLogger(__name__)
# At DEBUG websockets writes every header of the handshake, the key among them.
_protocol_logger = logging.getLogger(f"{__name__}.websockets")
_protocol_logger.setLevel(logging.WARNING)

# Whole-market snapshots and thousand-level depth are far beyond websockets' 1 MiB.
FRAME_BYTES = 64 * 1024 * 1024
# The gateway closes on a request over 64 KiB; a code has at most 38 characters.
_CODES_A_REQUEST = 1000
_OPEN_TIMEOUT = 10.0
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
# A gateway that serves for so long is well; one that fails sooner, again and again, is not helped by haste.
_GOOD_SECONDS = 60.0
# A peer that vanished without a word (power, cable, firewall) is noticed after both; quiet streams have no other sign.
_PING_INTERVAL = 20.0
_PING_TIMEOUT = 20.0
# A lost peer answers no close frame, and Ctrl-C should not wait for it.
_CLOSE_TIMEOUT = 2.0

# On /ws/trade the events have a `type` as well; these are not events (WEBSOCKET.md, section 2).
_CONTROL_TYPES = frozenset(
    "welcome heartbeat feed skipped snapshot_end closing subscribed unsubscribed subscriptions pong "
    "authenticated".split(),
)
# A close with the same reason follows these error frames, and says more: its code.
_CLOSING_CODES = frozenset(("unauthorized", "forbidden", "origin_denied"))

T = TypeVar("T")
Callback = Callable[[dict[str, Any]], object]
"""Takes one frame as the gateway sent it; may be a coroutine function, which is awaited before the next frame."""

Happening = Literal[
    "connecting",
    "connected",
    "resumed",
    "disconnected",
    "closing",
    "feed_up",
    "feed_stale",
    "feed_down",
    "feed_ended",
    "snapshot_end",
    "skipped",
]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What happened to a stream, for `on_state`; what does not concern `state` keeps its default.

    - ``connecting``: attempt number `attempt` begins; ``connected`` or ``disconnected`` follows.
    - ``connected``: the socket is open, and everything has been asked for (again).
    - ``resumed``: after a loss the stream is served again; trade events go on after `position`.
    - ``disconnected``: the connection was lost, or not made (`code`, `reason`); the next attempt is in `delay` seconds.
      The end of a stream, which its caller sees, is not told.
    - ``closing``: the gateway is about to close the socket (`reason`).
    - ``feed_up``, ``feed_stale``, ``feed_down``, ``feed_ended``: how the gateway's feeder is (`reason`); with
      `data_lost` it was away. Sockets stay open meanwhile.
    - ``snapshot_end``: all pieces of the snapshot of the markets `codes` have been delivered, `count` codes in all.
    - ``skipped``: `count` messages will not come, or some if it is 0 (`reason`: ``slow_client``, ``feed_gap``;
      ``journal_gap`` of trade events, which never happens to a gateway that is well).
    """

    state: Happening
    # The stream's URL path, such as /ws/trade.
    path: str
    reason: str = ""
    code: int | None = None
    attempt: int = 0
    delay: float = 0.0
    position: int | None = None
    count: int = 0
    data_lost: bool = False
    codes: tuple[str, ...] = ()


class Options(TypedDict, total=False):
    """How a subscription is served, by a gateway that knows the control layer (WEBSOCKET.md, section 2)."""

    # The names of the fields that are wanted of each record.
    fields: Iterable[str]
    # One frame of a code in that many milliseconds: the newest tick, the newest state of each bar, every print.
    max_rate_ms: int
    # "all": never only the newest; who does not keep up is disconnected instead.
    mode: Literal["latest", "all"]
    # False: begin with the news and not with the last value.
    snapshot: bool


class Verdict(Enum):
    """What to do with a frame."""

    DELIVER = auto()
    # Deliver it and end.
    LAST = auto()
    IGNORE = auto()
    # An error that leaves the stream alive: some codes are refused, or a close that tells what to do will follow.
    WARN = auto()
    # Nothing is served any more, but the same request may succeed later.
    AGAIN = auto()
    FAIL = auto()


def _refused(frame: dict[str, Any]) -> list[str]:
    listed: list[str] = frame.get("symbols") or frame.get("codes") or []
    return listed or [frame[name] for name in ("symbol", "stock_code") if name in frame]


def _is_untyped(frame: dict[str, Any]) -> bool:
    return not isinstance(frame.get("type"), str)


def _is_formula_value(frame: dict[str, Any]) -> bool:
    return frame.get("type") == "formula_update"


def _is_trade_event(frame: dict[str, Any]) -> bool:
    return isinstance(frame.get("type"), str) and frame["type"] not in _CONTROL_TYPES


class Stream:
    """One stream: what to ask, and what its frames and closes mean. Pure."""

    def __init__(
        self,
        path: str,
        requests: Iterable[dict[str, Any]],
        codes: Iterable[str],
        carries: Callable[[dict[str, Any]], bool] = _is_untyped,
        *,
        finite: bool = False,
        journaled: bool = False,
        position: Bookmark | None = None,
    ) -> None:
        self.path = path
        self.requests = [orjson.dumps(request).decode() for request in requests]
        # Ends by itself, with a status.
        self.finite = finite
        self.journaled = journaled
        # Of the last trade event; None before any is known.
        self.position = position
        # What `judge` has to say beside its verdict; the caller takes it.
        self.news: list[StreamState] = []
        # Between a loss and the first sign that the stream is served again.
        self.interrupted = False
        self._carries = carries
        self._codes = frozenset(codes)
        self._feed: str | None = None
        self.opened()

    def opened(self) -> None:
        """Start over: a new connection asks for everything again."""
        self.closing = False
        self._unrefused = set(self._codes)
        self._failure: dict[str, Any] | None = None
        self._compares = self.position is not None and self.position.event is not None

    @property
    def after(self) -> int | None:
        """Return the position to ask events after: one before the last seen, which comes again to be compared.

        Only so a journal is noticed that lost events which had been seen (or is another one) and has since given
        their positions to others: these would be missed without a word.
        """
        return None if self.position is None else self.position.seq - self._compares

    def judge(self, frame: dict[str, Any]) -> Verdict:
        """Return what to do with `frame`, and keep its position; raise `ServerError` if the journal is another one."""
        if frame.get("type") == "error" or (self.finite and frame.get("status") == "error"):
            return self._judge_error(frame)
        if not self._carries(frame):
            self._take_notice(frame)
            return Verdict.IGNORE
        if self.journaled and isinstance(frame.get("seq"), int) and self._is_seen(Bookmark(frame["seq"]), frame):
            return Verdict.IGNORE
        self._resumed()
        return Verdict.LAST if self.finite and frame.get("status") == "done" else Verdict.DELIVER

    def _is_seen(self, at: Bookmark, event: dict[str, Any]) -> bool:
        """Move to the position of an event; return whether it is the one that was seen last."""
        before, at = self.position, at._replace(event=fingerprint(event))
        if self._compares:
            if at != before:
                told = (
                    f"the event at {at.seq} is not the one that was seen last: the journal lost it, or is another one"
                )
                raise ServerError("resume_expired", told, event)
            self._compares = False
            self._resumed()
            return True
        # The ack's position may be older than what this connection begins with.
        if before is not None and before.event is not None and at.seq != before.seq + 1:
            logger.warning("%s: the event after %d is %d", self.path, before.seq, at.seq)
            lost = max(0, at.seq - before.seq - 1)
            self.news.append(StreamState("skipped", self.path, "journal_gap", count=lost))
        self.position = at
        return False

    def _take_notice(self, frame: dict[str, Any]) -> None:
        reason = frame.get("reason") or ""
        match frame.get("type"):
            case "subscribed" if self.journaled:
                # Where the journal stands when the events begin, so that those which fall into a lost connection are
                # replayed although none was seen before. 0 is "not known"; what is replayed comes after this frame.
                if self.position is None and frame.get("seq"):
                    self.position = Bookmark(frame["seq"])
                if not self._compares:
                    self._resumed()
            case "welcome" if frame.get("feed") != self._feed:
                self._take_feed(frame.get("feed"), reason, False)
            case "feed":
                self._take_feed(frame.get("state"), reason, frame.get("data_lost") is True)
            case "skipped":
                self.news.append(StreamState("skipped", self.path, reason, count=frame.get("count") or 0))
            case "snapshot_end":
                count, codes = frame.get("count") or 0, tuple(frame.get("codes") or ())
                self.news.append(StreamState("snapshot_end", self.path, count=count, codes=codes))
            case "closing":
                self.closing = True
                self.news.append(StreamState("closing", self.path, reason))

    def _take_feed(self, feed: object, reason: str, data_lost: bool) -> None:
        for state in get_args(Happening):
            if state == f"feed_{feed}":
                self._feed = str(feed)
                self.news.append(StreamState(state, self.path, reason, data_lost=data_lost))

    def _resumed(self) -> None:
        if self.interrupted:
            self.interrupted = False
            self.news.append(StreamState("resumed", self.path, position=self._seen()))

    def _seen(self) -> int | None:
        return None if self.position is None else self.position.seq

    def _judge_error(self, frame: dict[str, Any]) -> Verdict:
        if frame.get("code") in _CLOSING_CODES:
            return Verdict.IGNORE
        if frame.get("code") == "unknown_field":
            # The rest of the request is served.
            return Verdict.WARN
        if frame.get("code") == "resume_expired" and self._compares and frame.get("oldest") == self._seen():
            # The event to compare is too old to be replayed, those after it are all there.
            self.position = Bookmark(frame["oldest"])
            return Verdict.AGAIN
        refused = _refused(frame)
        self._unrefused.difference_update(refused)
        if refused and self._unrefused:
            return Verdict.WARN
        if not frame.get("retry"):
            return Verdict.FAIL
        if refused:
            # A stream of which every code is refused would wait for ever.
            return Verdict.AGAIN
        if self.finite:
            self._failure = frame
        return Verdict.WARN

    def closed(self, code: int | None, reason: str) -> bool:
        """Return whether to connect again after this close; raise `Disconnected` or `ServerError` for a bad end."""
        # 1013: the feeder was away, and the same download can be asked for when it is back.
        if self._failure is not None and code != 1013:
            raise _server_error(self._failure)
        if may_reconnect(code):
            return True
        if code != 1000:
            raise Disconnected(code, reason)
        if self.finite:
            raise Disconnected(code, reason or "closed before the end was told")
        return False


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds to wait after so many failures in a row; `jitter` in [0, 1) spreads clients out.

    None of them a failure is the end of a gateway's worker that was announced: others are there already.
    """
    if not failures:
        return _FIRST_DELAY * jitter
    # The exponent is bounded because a float is not: a gateway may be away for days.
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures - 1, 16)) * (0.5 + jitter / 2)


def is_final(exc: Exception) -> bool:
    """Return whether a failure to connect will be the same next time: a rejected key or certificate."""
    if isinstance(exc, InvalidStatus):
        return exc.response.status_code in (401, 403)
    return isinstance(exc, ssl.SSLCertVerificationError)


class QMTClient:
    """A gateway, as seen from a Python program. One client can serve any number of streams, each on its own socket.

    Every stream comes in two forms: ``await client.subscribe_x(..., callback)`` runs until it is cancelled (or the
    download is done), ``async for frame in client.x(...)`` gives the same frames to a loop. Frames are dicts as
    `WEBSOCKET.md` section 1 shows them.

    A stream that has been connected once reconnects by itself, with growing and jittered delays and without end, and
    asks for the same again; trade events go on after the last one seen, so none is missed or doubled. `on_state` is
    told what happens to the streams meanwhile (`StreamState`), and what the gateway says of its feeder. The first
    connection is tried for `connect_timeout` seconds (``math.inf``: for ever), so that a script may start before its
    gateway but a typo in the host ends it. Raises:

    - `Disconnected`: not connected within that time, a rejected key, or a close that says not to come back;
    - `ServerError`: the gateway refused the whole request, or a download failed;
    - `CallbackError`: a callback raised; chained to the cause, with the frame (or the `StreamState`).

    Quotes and depth take options, which are sent only if they are given: ``fields=["lastPrice"]`` of each record,
    ``max_rate_ms=500`` (one frame of a code in that time: the newest tick, every bar and print), ``mode="all"`` (never
    only the newest; a slow client is disconnected instead), ``snapshot=False`` (begin without the last value).

    A code that is refused while others are served is logged as a WARNING and given to `on_error` as its error frame.

    `tls` may be an `ssl.SSLContext`, for a private authority. The key travels in the ``Authorization`` header, on
    every stream; one that a header cannot hold is URL-encoded instead. No proxy is used: websockets would otherwise
    take the system's, which does not lead to a gateway on the local network.
    """

    def __init__(
        self,
        host: str,
        port: int = 8000,
        api_key: str | None = None,
        tls: bool | ssl.SSLContext = False,
        *,
        connect_timeout: float = 10.0,
        on_error: Callback | None = None,
        on_state: Callable[[StreamState], object] | None = None,
    ) -> None:
        self._server = f"{_netloc(host)}:{_checked_port(port)}"
        self._base = f"{'wss' if tls else 'ws'}://{self._server}"
        self._headers: dict[str, str] = {}
        self._query: dict[str, str | int] = {}
        if api_key and all("!" <= letter <= "~" for letter in api_key):
            self._headers["Authorization"] = f"Bearer {api_key}"
        elif api_key:
            self._query["api_key"] = api_key
        self._ssl: dict[str, Any] = {"ssl": tls} if isinstance(tls, ssl.SSLContext) else {}
        self._connect_timeout = connect_timeout
        self._on_error = on_error
        self._on_state = on_state

    def __repr__(self) -> str:
        return f"<QMTClient {self._base}>"

    def realtime(
        self, stocks: Iterable[str], period: str = "tick", **options: Unpack[Options]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over quotes of `stocks`: ``{"000001.SZ": [record]}``, ticks or bars by `period`."""
        codes = _checked_codes("stocks", stocks)
        given = _checked_options(options)
        requests = ({"stocks": part, "period": period, **given} for part in _parts(codes))
        return self._frames(Stream("/ws/realtime", requests, codes))

    async def subscribe_realtime(
        self, stocks: Iterable[str], callback: Callback, period: str = "tick", **options: Unpack[Options]
    ) -> None:
        """Call back with every quote of `stocks`; see `realtime`."""
        await _drive(self.realtime(stocks, period, **options), callback)

    def whole_quote(self, codes: Iterable[str], **options: Unpack[Options]) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over ticks of whole markets (``SH``), single codes, or both: ``{"000001.SZ": tick, ...}``."""
        codes = _checked_codes("codes", codes)
        given = _checked_options(options)
        requests = ({"codes": part, **given} for part in _parts(codes))
        return self._frames(Stream("/ws/whole_quote", requests, codes))

    async def subscribe_whole_quote(self, codes: Iterable[str], callback: Callback, **options: Unpack[Options]) -> None:
        """Call back with the ticks of `codes`; see `whole_quote`."""
        await _drive(self.whole_quote(codes, **options), callback)

    def l2_thousand(
        self, stocks: Iterable[str], gear_num: int = 0, **options: Unpack[Options]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over depth: ``{"000001.SZ": [depth]}``; `gear_num` levels a side, 0 for every one."""
        codes = _checked_codes("stocks", stocks)
        # A server of the bare document does not know gear_num, so it is said only where it matters.
        given = _checked_options(options) | ({"gear_num": gear_num} if gear_num else {})
        requests = ({"stocks": part, **given} for part in _parts(codes))
        return self._frames(Stream("/ws/l2_thousand", requests, codes))

    async def subscribe_l2_thousand(
        self, stocks: Iterable[str], callback: Callback, gear_num: int = 0, **options: Unpack[Options]
    ) -> None:
        """Call back with the depth of `stocks`; see `l2_thousand`."""
        await _drive(self.l2_thousand(stocks, gear_num, **options), callback)

    def trade_events(
        self, after: int | None = None, state: str | os.PathLike[str] | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over ``{"type": "order", "seq": 8812, "data": {...}}``; the client needs its `api_key`.

        `after` is the ``seq`` of the last event that an earlier run has seen: every later one is replayed first.

        `state` names a file that keeps the position for the next run; if it exists, it is used instead of `after`.
        An event counts as seen once the callback has returned (in a loop: once the next one is asked for), and is
        then written within a second, at the latest when the stream ends. So every event is seen at least once; those
        seen in the second before a crash come again. A file belongs to one program and one gateway.

        Raises `ConfigError` for a file that cannot be used: of another gateway, damaged, not writable. Raises
        `ServerError` (resume_expired), now or after a reconnect, if the gateway does not have every later event any
        more: they are too old, or the journal is not the one of the position, or ends before it. Its
        ``frame["oldest"]``, where the gateway gives it, is the smallest `after` that would be accepted. What to do
        about the loss is the caller's to decide: ask again with that, and delete the file, which would win.
        """
        saved = None if state is None else BookmarkFile(state, self._server)
        position = (saved.load() if saved is not None else None) or (None if after is None else Bookmark(after))
        return self._frames(Stream("/ws/trade", (), (), _is_trade_event, journaled=True, position=position), saved)

    async def subscribe_trade_events(
        self, callback: Callback, after: int | None = None, state: str | os.PathLike[str] | None = None
    ) -> None:
        """Call back with every trade event, in order; see `trade_events`."""
        await _drive(self.trade_events(after, state), callback)

    def download_progress(
        self, stocks: Iterable[str], period: str, start_time: str = "", end_time: str = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Download history to the gateway's side and iterate over its progress; ends after ``{"status": "done"}``.

        Progress is ``{"finished": 1, "total": 3, "stockcode": "000001.SZ", "message": ""}``. Times are
        ``YYYYMMDD`` or ``YYYYMMDDhhmmss``, empty for everything. Equal downloads share one job, so asking again
        within some seconds after a lost connection does not start it again; left alone for longer, it is cancelled.
        """
        codes = _checked_codes("stocks", stocks)
        request = {"stocks": codes, "period": period, "start_time": start_time, "end_time": end_time}
        return self._frames(Stream("/ws/download_progress", (request,), codes, finite=True))

    async def subscribe_download_progress(
        self, stocks: Iterable[str], period: str, callback: Callback, start_time: str = "", end_time: str = ""
    ) -> None:
        """Call back with the progress of a download and return when it is done; see `download_progress`."""
        await _drive(self.download_progress(stocks, period, start_time, end_time), callback)

    def formula(
        self,
        formula_name: str,
        stock_code: str,
        period: str = "1d",
        count: int = -1,
        dividend_type: str = "none",
        params: Mapping[str, int | float | str] | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
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
        return self._frames(Stream("/ws/formula", (request,), (stock_code,), _is_formula_value))

    async def subscribe_formula(
        self,
        formula_name: str,
        stock_code: str,
        callback: Callback,
        period: str = "1d",
        count: int = -1,
        dividend_type: str = "none",
        params: Mapping[str, int | float | str] | None = None,
    ) -> None:
        """Call back with every value of a formula; see `formula`."""
        await _drive(self.formula(formula_name, stock_code, period, count, dividend_type, params), callback)

    async def _frames(self, stream: Stream, saved: BookmarkFile | None = None) -> AsyncGenerator[dict[str, Any], None]:
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._connect_timeout
        # Attempts in a row that did not connect, and connections in a row that did not last, those included.
        attempts = failures = 0
        saving = None if saved is None else _Saving(saved)
        if saving is not None:
            saving.reach(stream.position)
        while True:
            attempts += 1
            code: int | None = None
            announced = False
            await self._tell(StreamState("connecting", stream.path, attempt=attempts))
            try:
                socket = await self._open(stream, min(_OPEN_TIMEOUT, give_up_at - now()))
            except (OSError, WebSocketException) as exc:
                reason = lost = f"cannot connect: {exc}"
                if is_final(exc) or give_up_at - now() < _FIRST_DELAY:
                    raise Disconnected(None, f"cannot connect to {self._base}{stream.path}: {exc}") from exc
            else:
                give_up_at = math.inf
                opened_at = now()
                attempts = 0
                try:
                    for request in stream.requests:
                        await socket.send(request)
                    await self._tell(StreamState("connected", stream.path))
                    while True:
                        frame = _parse(await socket.recv(decode=False))
                        verdict = stream.judge(frame)
                        while stream.news:
                            await self._tell(stream.news.pop(0))
                        if verdict is Verdict.FAIL:
                            raise _server_error(frame)
                        if verdict is Verdict.AGAIN:
                            reason = str(_server_error(frame))
                            break
                        if verdict is Verdict.WARN:
                            await self._warn(stream, frame)
                        elif verdict is not Verdict.IGNORE:
                            yield frame
                            if verdict is Verdict.LAST:
                                return
                        # The caller came back for more, so it is done with what it was given.
                        if saving is not None:
                            saving.reach(stream.position)
                except ConnectionClosed as exc:
                    # Only sent, if this side closed: over a frame that is too large, or a ping without an answer.
                    end = exc.rcvd or exc.sent
                    code, reason = (end.code, end.reason) if end else (1006, "connection lost")
                finally:
                    if saving is not None:
                        saving.flush()
                    await _close(socket)
                if not stream.closed(code, reason):
                    return
                lost = reason if code is None else f"closed with {code} {reason}".rstrip()
                announced = stream.closing or code in (1001, 1012)
                if now() - opened_at >= _GOOD_SECONDS:
                    failures = 0
            if not stream.interrupted:
                logger.warning("%s%s %s; connecting again", self._base, stream.path, lost)
                stream.interrupted = True
            # At once only the first time: a gateway that does nothing but restart is no better than one that fails.
            delay = backoff(0 if announced and not failures else failures + 1, random.random())
            # Halving what is left leaves time for one more attempt.
            delay = min(delay, (give_up_at - now()) / 2)
            failures += 1
            await self._tell(StreamState("disconnected", stream.path, reason, code, delay=delay))
            await asyncio.sleep(delay)

    async def _open(self, stream: Stream, open_timeout: float) -> ClientConnection:
        stream.opened()
        query = dict(self._query)
        if stream.after is not None:
            query["after"] = stream.after
        return await connect(
            f"{self._base}{stream.path}{'?' if query else ''}{urlencode(query, quote_via=quote)}",
            additional_headers=self._headers,
            # Opted in: the gateway tells its position in the journal, and how its feeder is. A server that knows the
            # document only chooses no subprotocol, which the handshake allows (RFC 6455, 4.1).
            subprotocols=[Subprotocol("qmt.v1.json")],
            # Deflate costs the gateway 8 us a tick and memory for every client.
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
        logger.warning("%s%s %s %s", self._base, stream.path, _server_error(frame), " ".join(_refused(frame)))
        if self._on_error is not None:
            await _call(self._on_error, frame)

    async def _tell(self, state: StreamState) -> None:
        if state.state == "resumed":
            logger.info("%s%s is back", self._base, state.path)
        if self._on_state is not None:
            await _call(self._on_state, state)


class _Saving:
    """Keeps a file up to date: it is written when it is due, although nothing comes any more."""

    def __init__(self, saved: BookmarkFile) -> None:
        self._saved = saved
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def reach(self, position: Bookmark | None) -> None:
        """Take the position up to which the caller has seen everything."""
        if position is not None:
            self._saved.reach(position, self._loop.time())
            self._plan()

    def flush(self) -> None:
        """Write what is not written yet."""
        self._saved.save(self._loop.time())

    def _plan(self) -> None:
        # A timeout around every receive would cost more than all the rest.
        if self._timer is None and self._saved.due is not None:
            self._timer = self._loop.call_at(self._saved.due, self._save)

    def _save(self) -> None:
        self._timer = None
        self._saved.save(self._loop.time())
        self._plan()


async def _close(socket: ClientConnection) -> None:
    # With its queue full, websockets has stopped reading and would not see the answer to its close frame.
    try:
        await asyncio.gather(socket.close(), _drain(socket))
    finally:
        # Cancelled meanwhile, as at the end of asyncio.run(), nobody else would close it.
        socket.transport.abort()


async def _drain(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await socket.recv(decode=False)


async def _drive(frames: AsyncGenerator[dict[str, Any], None], callback: Callback) -> None:
    async with aclosing(frames):
        async for frame in frames:
            await _call(callback, frame)


async def _call(callback: Callable[[T], object], told: T) -> None:
    try:
        result = callback(told)
        if inspect.isawaitable(result):
            await result
    except Exception as exc:
        raise CallbackError(told) from exc


def _parse(text: bytes) -> dict[str, Any]:
    try:
        frame = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise Disconnected(None, f"the server sent a frame that is not JSON: {exc}") from exc
    if not isinstance(frame, dict):
        raise Disconnected(None, f"the server sent a frame that is not a JSON object: {text[:80]!r}")
    return frame


def _server_error(frame: dict[str, Any]) -> ServerError:
    # The end of a failed download need not have a code.
    return ServerError(frame.get("code") or "internal", frame.get("error") or frame.get("message") or str(frame), frame)


def _parts(codes: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(codes), _CODES_A_REQUEST):
        yield codes[start : start + _CODES_A_REQUEST]


def _checked_codes(name: str, codes: Iterable[str]) -> list[str]:
    # A lone string is an iterable of letters. The gateway judges the codes, each for itself.
    checked = [] if isinstance(codes, str) else list(codes)
    if not checked:
        raise BadRequest("bad_request", f"{name} must be a non-empty list of codes, got {codes!r}")
    return checked


def _checked_options(options: Options) -> dict[str, Any]:
    for name in options.keys() - Options.__annotations__.keys():
        raise TypeError(f"unknown option {name!r}; expected one of {', '.join(Options.__annotations__)}")
    given: dict[str, Any] = dict(options)
    if "fields" in options:
        # A lone string is an iterable of letters.
        fields = [] if isinstance(options["fields"], str) else list(options["fields"])
        if not fields:
            raise BadRequest("bad_request", f"fields must be a non-empty list of names, got {options['fields']!r}")
        given["fields"] = fields
    return given


def _checked_port(port: int) -> int:
    if not 0 < port < 65536:
        raise ConfigError("port", f"must be from 1 to 65535, got {port!r}")
    return port


def _netloc(host: str) -> str:
    bare = host.removeprefix("[").removesuffix("]")
    with suppress(ValueError):
        return f"[{ipaddress.IPv6Address(bare)}]"
    if not host or any(letter in "/?#@:[]%\\" or letter.isspace() for letter in host):
        raise ConfigError("host", f"must be a name or an address alone, got {host!r}")
    return host
