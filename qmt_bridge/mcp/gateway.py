"""The gateway as the tools ask it: over HTTP and WebSocket, with the key of its user, and within a time.

Every failure is one sentence with a hint (`Failure`), because an AI application reads it and decides what to do.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from qmt_bridge.client import QMTClient
from qmt_bridge.clients.stream import StreamState
from qmt_bridge.errors import BadRequest, Disconnected, QMTBridgeError, ServerError

# Seconds for all that one call of a tool asks; a whole market is looked through for a code in less.
SECONDS = 30.0
_CONNECT_SECONDS = 5.0
# The end of a part of the day that has none: what there is now.
_NOW = "2099-12-31T23:59:59"
_HINTS = {
    "unauthorized": "set QMT_BRIDGE_API_KEY in the environment of this MCP server to a key of the gateway",
    "forbidden": "`qmt-bridge key add` at the gateway makes a key with another scope (market, l2, trade)",
    "unknown_symbol": "codes are those of the exchange with its market, such as 600519.SH, 000001.SZ and 430047.BJ",
    "unsupported_period": "the tool capabilities names the periods",
    "upstream_unavailable": "ask the tool state, and again in some seconds",
    "upstream_refused": "the tool capabilities says what the source serves",
    "rate_limited": "ask again in some seconds, and for less",
    "resume_expired": "leave out `after`, or begin at a time with `since`",
}


class Failure(QMTBridgeError):
    """What was asked for cannot be had; the text is one sentence with a hint."""


class Gateway:
    """The gateway at `host` and `port`; `tls` as of `QMTClient`, `url` is how errors name it."""

    def __init__(self, url: str, host: str, port: int, api_key: str, tls: bool | ssl.SSLContext) -> None:
        self._url = url
        self._of_client = (host, port, api_key or None, tls)
        # A wrong host or port is told at the start.
        self._client([])

    def _client(self, gaps: list[StreamState]) -> QMTClient:
        def note(state: StreamState) -> None:
            if state.state == "gap":
                gaps.append(state)

        return QMTClient(*self._of_client, connect_timeout=_CONNECT_SECONDS, on_state=note)

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Give the time of one call of a tool, and raise `Failure` when it is over."""
        try:
            async with asyncio.timeout(SECONDS):
                yield
        except TimeoutError as exc:
            raise Failure(f"{self._url} has not answered within {SECONDS:.0f} s; ask for less, or again") from exc

    async def page(self, path: str) -> dict[str, Any]:
        """Return the answer of a page without parameters, such as /api/state."""
        async with self._asked([]) as client:
            return await asyncio.to_thread(client.pages.shown, path)

    async def state(self) -> dict[str, Any] | None:
        """Return the answer of /api/state; None for a key that may not see it."""
        try:
            return await self.page("/api/state")
        except Failure as exc:
            cause = exc.__cause__
            if isinstance(cause, ServerError) and cause.code == "forbidden":
                return None
            raise

    async def last(
        self, codes: Iterable[str], period: str = "tick", gear_num: int | None = None, fields: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Return the newest record of each code, and why codes have none: `records` and `missing`."""
        async with self._asked([]) as client:
            found = await client.last(codes, period, gear_num, list(fields) or None, "records")
        assert isinstance(found, dict)
        return found

    async def stored(
        self, code: str, period: str, start: str | int | None, end: str | int | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return what the store has of a topic of its own, and how complete it is."""
        async with self._asked([]) as client:
            records, last = await client.ticks(code, start, end, period, library="records")
        return records, last

    async def ticks(
        self, code: str, start: str | int, end: str | int | None, fields: list[str]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the stored ticks of a code, also out of its market, and what is missing of them."""
        gaps: list[StreamState] = []
        ticks: list[dict[str, Any]] = []
        async with self._asked(gaps) as client:
            stream = client.realtime([code], start=start, end=_NOW if end is None else end, fields=fields)
            async with aclosing(stream) as frames:
                async for frame in frames:
                    for records in frame.values():
                        ticks += records
        return ticks, [state.gap or {} for state in gaps]

    async def events(
        self, limit: int, types: frozenset[str], start: str | int | None, after: int | None
    ) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
        """Return trade events of some types (empty: all), how many others there were, and what is missing.

        Behind the position `after` the oldest `limit`, else the newest since `start`.
        """
        gaps: list[StreamState] = []
        kept: deque[dict[str, Any]] = deque(maxlen=limit)
        count = 0
        async with (
            self._asked(gaps) as client,
            aclosing(client.trade_events(after, start=start, end=_NOW)) as frames,
        ):
            async for frame in frames:
                if types and frame["type"] not in types:
                    continue
                count += 1
                kept.append(frame)
                if after is not None and count == limit:
                    break
        return list(kept), count - len(kept), [state.gap or {} for state in gaps]

    @asynccontextmanager
    async def _asked(self, gaps: list[StreamState]) -> AsyncIterator[QMTClient]:
        """Give a client for one question, and raise `Failure` for what goes wrong with it."""
        try:
            yield self._client(gaps)
        except BadRequest as exc:
            raise Failure(exc.reason) from exc
        except ServerError as exc:
            raise Failure(_hinted(exc.code, exc.error)) from exc
        except Disconnected as exc:
            raise Failure(self._told(exc)) from exc

    def _told(self, exc: Disconnected) -> str:
        if exc.code is None:
            return (
                f"no gateway answers at {self._url} ({exc.reason}); is it running there, and is it the --url of this "
                "MCP server?"
            )
        code, _, reason = exc.reason.partition(": ")
        return _hinted(code, reason or f"the gateway closed the connection with {exc.code}")


def _hinted(code: str, error: str) -> str:
    # The gateway's own hint is a question: "did you mean '600519.SH'?"
    hint = None if error.endswith("?") else _HINTS.get(code)
    return f"{code}: {error}" + (f"; {hint}" if hint else "")
