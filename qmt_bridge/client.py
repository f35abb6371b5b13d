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
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from enum import Enum, auto
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

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
# A lost peer answers no close frame, and Ctrl-C should not wait for it.
_CLOSE_TIMEOUT = 2.0

# On /ws/trade the events have a `type` as well; these are not events (WEBSOCKET.md, section 2).
_CONTROL_TYPES = frozenset(
    "welcome heartbeat feed skipped closing subscribed unsubscribed subscriptions pong authenticated".split(),
)
# A close with the same reason follows these error frames, and says more: its code.
_CLOSING_CODES = frozenset(("unauthorized", "forbidden", "origin_denied"))

Callback = Callable[[dict[str, Any]], object]
"""Takes one frame as the gateway sent it; may be a coroutine function, which is awaited before the next frame."""


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
        after: int | None = None,
    ) -> None:
        self.path = path
        self.requests = [orjson.dumps(request).decode() for request in requests]
        # Ends by itself, with a status.
        self.finite = finite
        self.journaled = journaled
        # Position of the last trade event; None before any is known.
        self.after = after
        self._carries = carries
        self._codes = frozenset(codes)
        self.opened()

    def opened(self) -> None:
        """Start over: a new connection asks for everything again."""
        self._unrefused = set(self._codes)
        self._failure: dict[str, Any] | None = None

    def judge(self, frame: dict[str, Any]) -> Verdict:
        """Return what to do with `frame`, and keep its position."""
        if frame.get("type") == "error" or (self.finite and frame.get("status") == "error"):
            return self._judge_error(frame)
        if not self._carries(frame):
            # Where the journal stands when the events begin, so that those which fall into a lost connection are
            # replayed although none was seen before. 0 is "not known", and what is replayed comes after this frame.
            if self.journaled and self.after is None and frame.get("type") == "subscribed":
                self.after = frame.get("seq") or None
            return Verdict.IGNORE
        if self.journaled:
            self.after = frame.get("seq", self.after)
        return Verdict.LAST if self.finite and frame.get("status") == "done" else Verdict.DELIVER

    def _judge_error(self, frame: dict[str, Any]) -> Verdict:
        if frame.get("code") in _CLOSING_CODES:
            return Verdict.IGNORE
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
    """Return the seconds to wait after so many failures in a row; `jitter` in [0, 1) spreads clients out."""
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
    asks for the same again; trade events go on after the last one seen, so none is missed or doubled. The first
    connection is tried for `connect_timeout` seconds (``math.inf``: for ever), so that a script may start before its
    gateway but a typo in the host ends it. Raises:

    - `Disconnected`: not connected within that time, a rejected key, or a close that says not to come back;
    - `ServerError`: the gateway refused the whole request, or a download failed;
    - `CallbackError`: a callback raised; chained to the cause, with the frame.

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
    ) -> None:
        self._base = f"{'wss' if tls else 'ws'}://{_netloc(host)}:{_checked_port(port)}"
        self._headers: dict[str, str] = {}
        self._query: dict[str, str | int] = {}
        if api_key and all("!" <= letter <= "~" for letter in api_key):
            self._headers["Authorization"] = f"Bearer {api_key}"
        elif api_key:
            self._query["api_key"] = api_key
        self._ssl: dict[str, Any] = {"ssl": tls} if isinstance(tls, ssl.SSLContext) else {}
        self._connect_timeout = connect_timeout
        self._on_error = on_error

    def __repr__(self) -> str:
        return f"<QMTClient {self._base}>"

    def realtime(self, stocks: Iterable[str], period: str = "tick") -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over quotes of `stocks`: ``{"000001.SZ": [record]}``, ticks or bars by `period`."""
        codes = _checked_codes("stocks", stocks)
        requests = ({"stocks": part, "period": period} for part in _parts(codes))
        return self._frames(Stream("/ws/realtime", requests, codes))

    async def subscribe_realtime(self, stocks: Iterable[str], callback: Callback, period: str = "tick") -> None:
        """Call back with every quote of `stocks`; see `realtime`."""
        await _drive(self.realtime(stocks, period), callback)

    def whole_quote(self, codes: Iterable[str]) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over ticks of whole markets (``SH``), single codes, or both: ``{"000001.SZ": tick, ...}``."""
        codes = _checked_codes("codes", codes)
        requests = ({"codes": part} for part in _parts(codes))
        return self._frames(Stream("/ws/whole_quote", requests, codes))

    async def subscribe_whole_quote(self, codes: Iterable[str], callback: Callback) -> None:
        """Call back with the ticks of `codes`; see `whole_quote`."""
        await _drive(self.whole_quote(codes), callback)

    def l2_thousand(self, stocks: Iterable[str], gear_num: int = 0) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over depth: ``{"000001.SZ": [depth]}``; `gear_num` levels a side, 0 for every one."""
        codes = _checked_codes("stocks", stocks)
        # A server of the bare document does not know gear_num, so it is said only where it matters.
        options = {"gear_num": gear_num} if gear_num else {}
        requests = ({"stocks": part, **options} for part in _parts(codes))
        return self._frames(Stream("/ws/l2_thousand", requests, codes))

    async def subscribe_l2_thousand(self, stocks: Iterable[str], callback: Callback, gear_num: int = 0) -> None:
        """Call back with the depth of `stocks`; see `l2_thousand`."""
        await _drive(self.l2_thousand(stocks, gear_num), callback)

    def trade_events(self, after: int | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over ``{"type": "order", "seq": 8812, "data": {...}}``; the client needs its `api_key`.

        `after` is the ``seq`` of the last event that an earlier run has seen: every later one is replayed first.
        Raises `ServerError` (resume_expired) if the gateway no longer has all of them, now or after a reconnect.
        """
        return self._frames(Stream("/ws/trade", (), (), _is_trade_event, journaled=True, after=after))

    async def subscribe_trade_events(self, callback: Callback, after: int | None = None) -> None:
        """Call back with every trade event, in order; see `trade_events`."""
        await _drive(self.trade_events(after), callback)

    def download_progress(
        self, stocks: Iterable[str], period: str, start_time: str = "", end_time: str = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Download history to the gateway's side and iterate over its progress; ends after ``{"status": "done"}``.

        Progress is ``{"finished": 1, "total": 3, "stockcode": "000001.SZ", "message": ""}``. Times are
        ``YYYYMMDD`` or ``YYYYMMDDhhmmss``, empty for everything. Equal downloads share one job, so asking again
        after a lost connection does not start it again.
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

    async def _frames(self, stream: Stream) -> AsyncGenerator[dict[str, Any], None]:
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._connect_timeout
        failures = 0
        while True:
            try:
                socket = await self._open(stream, min(_OPEN_TIMEOUT, give_up_at - now()))
            except (OSError, WebSocketException) as exc:
                lost = f"cannot connect: {exc}"
                if is_final(exc) or give_up_at - now() < _FIRST_DELAY:
                    raise Disconnected(None, f"cannot connect to {self._base}{stream.path}: {exc}") from exc
            else:
                give_up_at = math.inf
                opened_at = now()
                code: int | None = None
                try:
                    for request in stream.requests:
                        await socket.send(request)
                    while True:
                        frame = _parse(await socket.recv(decode=False))
                        verdict = stream.judge(frame)
                        if verdict is Verdict.FAIL:
                            raise _server_error(frame)
                        if verdict is Verdict.AGAIN:
                            reason = str(_server_error(frame))
                            break
                        if verdict is Verdict.WARN:
                            await self._warn(stream, frame)
                        elif verdict is not Verdict.IGNORE:
                            if failures:
                                logger.info("%s%s is back", self._base, stream.path)
                                failures = 0
                            yield frame
                            if verdict is Verdict.LAST:
                                return
                except ConnectionClosed as exc:
                    # Only sent, if this side closed: over a frame that is too large, or a ping without an answer.
                    end = exc.rcvd or exc.sent
                    code, reason = (end.code, end.reason) if end else (1006, "connection lost")
                finally:
                    await _close(socket)
                if not stream.closed(code, reason):
                    return
                lost = reason if code is None else f"closed with {code} {reason}".rstrip()
                if now() - opened_at > _LONGEST_DELAY:
                    failures = 0
            failures += 1
            if failures == 1:
                logger.warning("%s%s %s; connecting again", self._base, stream.path, lost)
            # Halving what is left leaves time for one more attempt.
            await asyncio.sleep(min(backoff(failures, random.random()), (give_up_at - now()) / 2))

    async def _open(self, stream: Stream, open_timeout: float) -> ClientConnection:
        stream.opened()
        query = dict(self._query)
        if stream.after is not None:
            query["after"] = stream.after
        return await connect(
            f"{self._base}{stream.path}{'?' if query else ''}{urlencode(query, quote_via=quote)}",
            additional_headers=self._headers,
            # Opted in, /ws/trade tells its position.
            subprotocols=[Subprotocol("qmt.v1.json")] if stream.journaled else None,
            # Deflate costs the gateway 8 us a tick and memory for every client.
            compression=None,
            proxy=None,
            open_timeout=open_timeout,
            close_timeout=_CLOSE_TIMEOUT,
            max_size=FRAME_BYTES,
            logger=_protocol_logger,
            **self._ssl,
        )

    async def _warn(self, stream: Stream, frame: dict[str, Any]) -> None:
        logger.warning("%s%s %s %s", self._base, stream.path, _server_error(frame), " ".join(_refused(frame)))
        if self._on_error is not None:
            await _call(self._on_error, frame)


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


async def _call(callback: Callback, frame: dict[str, Any]) -> None:
    try:
        result = callback(frame)
        if inspect.isawaitable(result):
            await result
    except Exception as exc:
        raise CallbackError(frame) from exc


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
