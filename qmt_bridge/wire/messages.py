"""What flows down: typed views of the bodies, for consumers that want them.

Pure. Structs are for reading, e.g. ``msgspec.msgpack.decode(body, type=dict[str, list[Tick]])``; what the
source delivered is passed through as it came, fields unknown here included. Field names are xtquant's in
snake case; ``time`` is always milliseconds since 1970. Source: xtquant doc/xtdata.md 1197-1310, xttype.py.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class _Record(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    pass


class Tick(_Record, frozen=True, gc=False, rename="camel"):
    """One snapshot of an instrument: prices in yuan, `volume` in lots, `pvolume` in shares, five levels.

    `open_int` is the trading phase for anything but derivatives: 11 pre-open, 12 call auction, 13 continuous,
    14 break, 15 closed, 18 closing auction.
    """

    time: int
    last_price: float | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    last_close: float | None = None
    amount: float | None = None
    volume: int = 0
    pvolume: int = 0
    stock_status: int = 0
    open_int: int = 0
    transaction_num: int = 0
    last_settlement_price: float | None = None
    settlement_price: float | None = None
    pe: float | None = None
    ask_price: tuple[float | None, ...] = ()
    bid_price: tuple[float | None, ...] = ()
    ask_vol: tuple[int, ...] = ()
    bid_vol: tuple[int, ...] = ()
    vol_ratio: float | None = None
    speed1_min: float | None = msgspec.field(name="speed1Min", default=None)
    speed5_min: float | None = msgspec.field(name="speed5Min", default=None)


class Bar(_Record, frozen=True, gc=False, rename="camel"):
    """OHLCV over a period; `time` is the bar's end. xtquant spells one field ``settelementPrice``."""

    time: int
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: int = 0
    amount: float | None = None
    settelement_price: float | None = None
    open_interest: int = 0
    pre_close: float | None = None
    suspend_flag: int = 0


class L2Order(_Record, frozen=True, gc=False, rename="camel"):
    """One order in the market. `entrust_direction`: 1 buy, 2 sell, 3 and 4 their cancels (SH)."""

    time: int
    price: float | None = None
    volume: int = 0
    entrust_no: int = 0
    entrust_type: int = 0
    entrust_direction: int = 0


class L2Transaction(_Record, frozen=True, gc=False, rename="camel"):
    """One trade print. `trade_flag`: 1 buyer-initiated, 2 seller-initiated, 3 cancel (SZ)."""

    time: int
    price: float | None = None
    volume: int = 0
    amount: float | None = None
    trade_index: int = 0
    buy_no: int = 0
    sell_no: int = 0
    trade_type: int = 0
    trade_flag: int = 0


class L2Thousand(_Record, frozen=True, gc=False, rename="camel"):
    """Depth of up to a thousand levels a side, best first; volumes as the source gives them."""

    time: int
    price: float | None = None
    ask_price: tuple[float | None, ...] = ()
    ask_volume: tuple[int, ...] = ()
    bid_price: tuple[float | None, ...] = ()
    bid_volume: tuple[int, ...] = ()


class FormulaValue(msgspec.Struct, frozen=True):
    """A formula's values: ``data`` is xtquant's ``{"dbt":..,"timelist":[ms],"outputs":{name:[value]}}``."""

    formula_name: str
    stock_code: str
    data: dict[str, object]


class Progress(msgspec.Struct, frozen=True, gc=False):
    """Progress of a download: `finished` of `total` codes, the last of them `stockcode`."""

    finished: int
    total: int
    stockcode: str
    message: str = ""


class DownloadEnd(msgspec.Struct, frozen=True):
    """The end of a download; on ``error`` the failed codes are named in `failed` with their reasons."""

    status: Literal["done", "error"]
    code: str = ""
    error: str = ""
    failed: dict[str, str] = {}


class TradeEvent(msgspec.Struct, frozen=True):
    """One xttrader callback: `data` has every field of its object; `seq` is the journal's position over all accounts.

    `journaled` is false, and only then in the body, while the journal could not be written.
    """

    type: str
    seq: int
    data: dict[str, object]
    journaled: bool = True


class _Positioned(msgspec.Struct):
    seq: int


_positioned_decoder = msgspec.msgpack.Decoder(_Positioned)


def event_position(body: bytes | msgspec.Raw) -> int:
    """Return the position that the body of a trade event says, 0.3 us; raise msgspec.DecodeError if it says none."""
    return _positioned_decoder.decode(body).seq


class FeedStatus(msgspec.Struct, frozen=True):
    """The feeder's heartbeat on ``status/feeder/``, once a second and at every change of `state`.

    `trade_seq` is the journal's newest position: who has seen less has missed an event. `journal` is why the journal
    cannot be written, None while it can: events are then only in the feeder's memory. `instance` is the run of
    `qmt-bridge up` that has started the feeder, empty without one.
    """

    source: str
    simulated: bool
    state: Literal["up", "down", "stale", "ended"]
    epoch: int
    time: int
    topics: int = 0
    upstream: int = 0
    published: int = 0
    version: str = ""
    reason: str | None = None
    since: int = 0
    data_lost: bool = False
    trade_seq: int = 0
    journal: str | None = None
    instance: str = ""
