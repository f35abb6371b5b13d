"""QMTClient for scripts, notebooks and threads: ``from qmt_bridge.sync import QMTClient``.

The asynchronous client (`qmt_bridge.client`) runs in one background thread of each client; this file has its methods
for callers without an event loop, and for those whose event loop is already running, as in a notebook.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import ssl
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, Unpack

from qmt_bridge.client import QMTClient as AsyncClient
from qmt_bridge.clients.arguments import QuoteOptions
from qmt_bridge.clients.blocking import Background, Stream
from qmt_bridge.clients.control import Ack, Rejected
from qmt_bridge.clients.exchange import Exchange, running
from qmt_bridge.clients.loop_thread import LoopThread
from qmt_bridge.clients.stream import StreamState
from qmt_bridge.clients.subscription import Subscription
from qmt_bridge.errors import CallbackError
from qmt_bridge.frames import Library

__all__ = ["Ack", "Background", "QMTClient", "Rejected", "Stream", "StreamState"]

Callback = Callable[[Any], object]
"""Takes one frame; a plain function."""


class QMTClient:
    """A client of one gateway without an event loop; parameters, frames, options and errors are those of the other one.

    ``for frame in client.realtime([...])`` reads in the caller's thread. ``client.subscribe_realtime([...], callback)``
    returns at once: the callback runs in a thread of its own until `close`. Both are closed by their own `close`, by
    that of the client, and at the end of ``with``.

    `on_state` and `on_error` are plain functions. They are called in the thread that reads the stream, while it waits
    for the next frame; those of a shared connection (``share=True``) in another thread.

    One background thread with an event loop serves all streams of a client. It is started with the first stream, and
    ends with `close`, with the last reference to the client, or at the end of the program. A client may be used from
    any thread. After a fork a client starts a thread of its own for new streams; those of the parent cannot be read in
    the child.
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
        self._client = AsyncClient(
            host,
            port,
            api_key,
            tls,
            connect_timeout=connect_timeout,
            on_error=_elsewhere("on_error", on_error),
            on_state=_elsewhere("on_state", on_state),
            share=share,
        )
        self._on_state = on_state
        self._thread = LoopThread()
        self._stop = weakref.finalize(self, self._thread.stop)

    def __repr__(self) -> str:
        return repr(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every stream of this client, and its thread. Loops over them end; the client may be used again."""
        self._thread.stop()

    def realtime(
        self, stocks: Iterable[str], period: str = "tick", *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> Stream:
        """Iterate over quotes of `stocks`: ``{"000001.SZ": [record]}``, ticks or bars by `period`."""
        return self._stream(self._client.realtime(stocks, period, typed=typed, **options))

    def subscribe_realtime(
        self,
        stocks: Iterable[str],
        callback: Callback,
        period: str = "tick",
        *,
        typed: bool = False,
        **options: Unpack[QuoteOptions],
    ) -> Background:
        """Call back with every quote of `stocks`, in the background; see `realtime`."""
        return Background(self.realtime(stocks, period, typed=typed, **options), callback)

    def whole_quote(self, codes: Iterable[str], *, typed: bool = False, **options: Unpack[QuoteOptions]) -> Stream:
        """Iterate over ticks of whole markets (``SH``), single codes, or both: ``{"000001.SZ": tick, ...}``."""
        return self._stream(self._client.whole_quote(codes, typed=typed, **options))

    def subscribe_whole_quote(
        self, codes: Iterable[str], callback: Callback, *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> Background:
        """Call back with the ticks of `codes`, in the background; see `whole_quote`."""
        return Background(self.whole_quote(codes, typed=typed, **options), callback)

    def l2_thousand(
        self, stocks: Iterable[str], gear_num: int = 0, *, typed: bool = False, **options: Unpack[QuoteOptions]
    ) -> Stream:
        """Iterate over depth: ``{"000001.SZ": [depth]}``; `gear_num` levels a side, 0 for every one."""
        return self._stream(self._client.l2_thousand(stocks, gear_num, typed=typed, **options))

    def subscribe_l2_thousand(
        self,
        stocks: Iterable[str],
        callback: Callback,
        gear_num: int = 0,
        *,
        typed: bool = False,
        **options: Unpack[QuoteOptions],
    ) -> Background:
        """Call back with the depth of `stocks`, in the background; see `l2_thousand`."""
        return Background(self.l2_thousand(stocks, gear_num, typed=typed, **options), callback)

    def trade_events(
        self,
        after: int | None = None,
        state: str | os.PathLike[str] | None = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
        typed: bool = False,
    ) -> Stream:
        """Iterate over ``{"type": "order", "seq": 8812, "data": {...}}``; the client needs its `api_key`.

        `after`, `state`, `start` and `end` are those of the asynchronous client: with `state` the next run goes on
        behind the last event that this one has seen, which is once the loop has asked for the next one.
        """
        return self._stream(self._client.trade_events(after, state, start=start, end=end, typed=typed))

    def subscribe_trade_events(
        self,
        callback: Callback,
        after: int | None = None,
        state: str | os.PathLike[str] | None = None,
        *,
        start: str | int | None = None,
        end: str | int | None = None,
        typed: bool = False,
    ) -> Background:
        """Call back with every trade event, in order, in the background; see `trade_events`."""
        return Background(self.trade_events(after, state, start=start, end=end, typed=typed), callback)

    def download_progress(
        self, stocks: Iterable[str], period: str, start_time: str = "", end_time: str = "", *, typed: bool = False
    ) -> Stream:
        """Download history to the feeder's machine and iterate over its progress; ends after ``{"status": "done"}``."""
        return self._stream(self._client.download_progress(stocks, period, start_time, end_time, typed=typed))

    def subscribe_download_progress(
        self,
        stocks: Iterable[str],
        period: str,
        callback: Callback,
        start_time: str = "",
        end_time: str = "",
        *,
        typed: bool = False,
    ) -> Background:
        """Call back with the progress of a download, in the background; ``wait()`` returns when it is done."""
        return Background(self.download_progress(stocks, period, start_time, end_time, typed=typed), callback)

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
    ) -> Stream:
        """Iterate over a formula's values: ``{"type": "formula_update", "seq_id": 1, ..., "data": {...}}``."""
        return self._stream(
            self._client.formula(formula_name, stock_code, period, count, dividend_type, params, typed=typed)
        )

    def subscribe_formula(
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
    ) -> Background:
        """Call back with every value of a formula, in the background; see `formula`."""
        frames = self.formula(formula_name, stock_code, period, count, dividend_type, params, typed=typed)
        return Background(frames, callback)

    def last(
        self,
        codes: Iterable[str],
        period: str = "tick",
        gear_num: int | None = None,
        fields: Iterable[str] | None = None,
        library: Library | Literal["records"] | None = None,
    ) -> Any:
        """Return the newest record of each code as a DataFrame; see the asynchronous client."""
        return self._client.pages.last(codes, period, gear_num, fields, library)

    def ticks(
        self,
        code: str,
        start: str | int | None = None,
        end: str | int | None = None,
        period: str = "tick",
        fields: Iterable[str] | None = None,
        library: Library | Literal["records"] | None = None,
    ) -> Any:
        """Return what the gateway's store has of one code as a DataFrame; see the asynchronous client."""
        part = self._client.pages.ticks(code, start, end, period, fields, library)
        if self._on_state is not None:
            for state in part.gaps:
                _told(self._on_state, state)
        return part.shown

    def _stream(self, frames: Subscription) -> Stream:
        return Stream(Exchange(self._thread, frames), self)


def _told(on_state: Callable[[StreamState], object], state: StreamState) -> None:
    try:
        on_state(state)
    except Exception as exc:
        raise CallbackError(state) from exc


def _elsewhere(name: str, function: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
    """Return what the asynchronous client calls for `function`: it runs in the thread that reads the stream."""
    if function is None:
        return None
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} is a coroutine function, which the client of `from qmt_bridge import` takes")

    async def call(told: Any) -> object:
        exchange = running.get()
        if exchange is None:
            return await asyncio.to_thread(function, told)
        return await exchange.call(function, told)

    return call
