"""Messages from the source to clients: typed views of the bodies, for consumers that want them.

Pure. Structs are for reading, e.g. ``msgspec.json.decode(body, type=dict[str, list[Tick]])``; what the source delivered
is passed through as it came, fields unknown here included. Field names are xtquant's in snake case; ``time`` is
milliseconds since 1970. Source: xtquant doc/xtdata.md 1197-1310 and 1360-1570, xtdata.py 1264-1500, xttype.py, and
recorded pushes.

Reading a record never fails on a value. xtquant gives counts as floats, None or NaN where it has nothing, and leaves
fields out; the same field may be an integer in one record and a float in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from qmt_bridge.errors import WireVersionError
from qmt_bridge.wire.frames import WIRE_VERSION, read
from qmt_bridge.wire.topics import BAR_PERIODS, Kind

if TYPE_CHECKING:
    # A number as the source has it; None or NaN where it has none.
    Number = int | float | None
    # One number a level or order, best or first one first.
    Numbers = tuple[Number, ...] | None
    Text = str | None
else:
    # What msgspec reads: a value of another type stays what it is, where an error would cost the whole message.
    Number = Text = Any
    Numbers = tuple[Any, ...] | dict[str, Any] | str | bool | int | float | None


class _Record(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    # A record without a time is rare: QMT's own get_full_tick has `timetag` alone, a thousand-level depth `timeTag`.
    time: Number = None


class Tick(_Record, frozen=True, gc=False, rename="camel"):
    """One snapshot of an instrument: prices in yuan, `volume` in lots, `pvolume` in shares, five levels (l2quote: ten).

    `open_int` is the trading phase for anything but derivatives: 11 pre-open, 12 call auction, 13 continuous,
    14 break, 15 closed, 18 closing auction. Of get_full_tick come `timetag`, the time as text, and `tickvol`, the
    lots since the snapshot before.
    """

    last_price: Number = None
    open: Number = None
    high: Number = None
    low: Number = None
    last_close: Number = None
    amount: Number = None
    volume: Number = 0
    pvolume: Number = 0
    stock_status: Number = 0
    open_int: Number = 0
    transaction_num: Number = 0
    last_settlement_price: Number = None
    settlement_price: Number = None
    pe: Number = None
    ask_price: Numbers = ()
    bid_price: Numbers = ()
    ask_vol: Numbers = ()
    bid_vol: Numbers = ()
    vol_ratio: Number = None
    speed1_min: Number = msgspec.field(name="speed1Min", default=None)
    speed5_min: Number = msgspec.field(name="speed5Min", default=None)
    timetag: Text = None
    tickvol: Number = None


class Bar(_Record, frozen=True, gc=False, rename="camel"):
    """OHLCV over a period; `time` is the bar's end. xtquant spells the settlement price in two ways, and gives both.

    `dr` and `totaldr` are the dividend factor of the day and its product since the listing.
    """

    open: Number = None
    high: Number = None
    low: Number = None
    close: Number = None
    volume: Number = 0
    amount: Number = None
    settelement_price: Number = None
    settlement_price: Number = None
    open_interest: Number = 0
    pre_close: Number = None
    suspend_flag: Number = 0
    dr: Number = None
    totaldr: Number = None


class L2Order(_Record, frozen=True, gc=False, rename="camel"):
    """One order in the market. `entrust_direction`: 1 buy, 2 sell, 3 and 4 their cancels (SH)."""

    price: Number = None
    volume: Number = 0
    entrust_no: Number = 0
    entrust_type: Number = 0
    entrust_direction: Number = 0


class L2Transaction(_Record, frozen=True, gc=False, rename="camel"):
    """One trade print. `trade_flag`: 1 buyer-initiated, 2 seller-initiated, 3 cancel (SZ)."""

    price: Number = None
    volume: Number = 0
    amount: Number = None
    trade_index: Number = 0
    buy_no: Number = 0
    sell_no: Number = 0
    trade_type: Number = 0
    trade_flag: Number = 0


class L2QuoteAux(_Record, frozen=True, gc=False, rename="camel"):
    """What all orders of both sides come to: mean prices in yuan, quantities in lots, and what was withdrawn."""

    avg_bid_price: Number = None
    total_bid_quantity: Number = 0
    avg_off_price: Number = None
    total_off_quantity: Number = 0
    withdraw_bid_quantity: Number = 0
    withdraw_bid_amount: Number = None
    withdraw_off_quantity: Number = 0
    withdraw_off_amount: Number = None


class L2OrderQueue(_Record, frozen=True, gc=False, rename="camel"):
    """The orders that wait at the best bid and the best ask, first come first, and how many they are."""

    bid_level_price: Number = None
    bid_level_volume: Numbers = ()
    offer_level_price: Number = None
    offer_level_volume: Numbers = ()
    bid_level_number: Number = 0
    off_level_number: Number = 0


class L2Thousand(_Record, frozen=True, gc=False, rename="camel"):
    """Depth of up to a thousand levels a side, best first; volumes in lots.

    The SDK delivers `time`, `ask_price` and `ask_volume`; by the vendor's document (doc/xtdata.md 1563) the same are
    `time_tag`, `off_price` and `off_volume`. What did not come is None or empty.
    """

    price: Number = None
    ask_price: Numbers = ()
    ask_volume: Numbers = ()
    bid_price: Numbers = ()
    bid_volume: Numbers = ()
    time_tag: Number = None
    off_price: Numbers = ()
    off_volume: Numbers = ()


class FormulaValue(msgspec.Struct, frozen=True):
    """A formula's values: ``data`` is xtquant's ``{"dbt":..,"timelist":[ms],"outputs":{name:[value]}}``."""

    formula_name: str
    stock_code: str
    data: dict[str, object]


class Progress(msgspec.Struct, frozen=True, gc=False):
    """Progress of a download: `finished` of `total` codes, the last of them `stockcode`."""

    finished: Number
    total: Number
    stockcode: Text = None
    message: Text = ""


class DownloadEnd(msgspec.Struct, frozen=True):
    """The end of a download; on ``error`` the failed codes are named in `failed` with their reasons."""

    status: Literal["done", "error"]
    code: str = ""
    error: str = ""
    failed: dict[str, str] = {}


# Types of trade events: the callbacks of xttrader (docs/websocket.md, "/ws/trade").
TradeType = Literal[
    "order",
    "trade",
    "order_error",
    "cancel_error",
    "asset",
    "position",
    "account_status",
    "async_response",
    "async_cancel_response",
    "connected",
    "disconnected",
    "smt_appointment_async_response",
    "bank_transfer_async_response",
    "ctp_internal_transfer_async_response",
    "smart_algo_order_async_response",
    "operate_smart_task_async_response",
]
TRADE_TYPES: frozenset[str] = frozenset(get_args(TradeType))


class TradeEvent(msgspec.Struct, frozen=True):
    """One xttrader callback: `data` has every field of its object; `seq` is the journal's position over all accounts.

    `journaled` is false, and only then in the body, while the journal could not be written.
    """

    type: str
    seq: int
    data: dict[str, object]
    journaled: bool = True


_VIEWS: dict[Kind, type[msgspec.Struct]] = {Kind.WHOLE: Tick, Kind.L2: L2Thousand}
_PERIOD_VIEWS: dict[str, type[msgspec.Struct]] = {
    "tick": Tick,
    "l2quote": Tick,
    "l2order": L2Order,
    "l2transaction": L2Transaction,
    "l2quoteaux": L2QuoteAux,
    "l2orderqueue": L2OrderQueue,
    **dict.fromkeys(BAR_PERIODS, Bar),
}


def view_of(kind: Kind, detail: str) -> type[msgspec.Struct] | None:
    """Return the view of the records of a topic; None where nothing is known of them."""
    return _PERIOD_VIEWS.get(detail) if kind is Kind.QUOTE else _VIEWS.get(kind)


@cache
def known_fields(kind: Kind, detail: str) -> frozenset[str]:
    """Return the fields that records of a topic are known to have; empty where nothing is known of them.

    A source may deliver more: a name that is not here is no error.
    """
    view = view_of(kind, detail)
    return frozenset() if view is None else frozenset(field.encode_name for field in msgspec.structs.fields(view))


class _Positioned(msgspec.Struct):
    seq: int


_positioned_decoder = msgspec.json.Decoder(_Positioned)


def event_position(body: bytes | msgspec.Raw) -> int:
    """Return the position that the body of a trade event says, 0.3 us; raise `WireError` if it says none."""
    return read(_positioned_decoder, body).seq


# The states of a session with the terminal, for quotes or for one account. connecting: the first attempt, or the
# terminal or the broker is at it. up: data comes. stale: there is a session, but what should come does not. down: there
# is no session. refused: the terminal, the broker or the SDK says no. The feeder tries again from each of them.
Session = Literal["connecting", "up", "down", "stale", "refused"]


class AccountState(msgspec.Struct, frozen=True):
    """How the trade events of one account are served, since when (ms since 1970), and if they are not, why not.

    `account` is masked as in a log, since the topic of heartbeats asks for no key. `fault` says that no session could
    ever be opened, and that only a change of the settings or of the machine helps.
    """

    account: str
    type: str
    state: Session
    reason: str | None = None
    since: int = 0
    fault: bool = False


class PusherState(msgspec.Struct, frozen=True):
    """How one pusher is (docs/push.md), since when (ms since 1970), what it serves, and what came from it.

    `markets` and `accounts` are empty for all of them; an account is masked as in `AccountState`. `records`, `refused`
    lines and `conflated` records are counted since the feeder's start, over all connections of this name. `silent` are
    the seconds since its last line; None while it is not connected.
    """

    name: str
    state: Session
    reason: str | None = None
    since: int = 0
    kinds: tuple[str, ...] = ()
    markets: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    records: int = 0
    refused: int = 0
    conflated: int = 0
    silent: float | None = None


TradeState = Literal["off", "up", "waiting", "down"]


def trade_state(accounts: Sequence[AccountState]) -> TradeState:
    """Return the worst state among `accounts`, in the words of the documented layer; ``off`` if there are none."""
    states = {account.state for account in accounts}
    if not states:
        return "off"
    if states <= {"up"}:
        return "up"
    return "waiting" if states <= {"up", "connecting"} else "down"


def told_feed(state: str) -> str:
    """Return the state of the feed in the words of the documented layer, which knows up, down, stale and ended."""
    return "down" if state in ("connecting", "refused") else state


class FeedStatus(msgspec.Struct, frozen=True):
    """The feeder's heartbeat on ``status/feeder/``, once a second and at every change of `state`.

    `trade_seq` is the journal's newest position: a client that has seen less has missed an event. `journal` is
    why the journal cannot be written, None while it can: events are then only in the feeder's memory. `journal_note`
    tells an operator that a damaged journal was set aside at the start, while the new one is written. `accounts` are
    those whose trade events are asked for; a change of one is published at once too. `refused` counts subscriptions and
    questions that were not served since the start: malformed, too long, or beyond what the feeder takes. `instance` is
    the run of `qmt-bridge up` that has started the feeder, empty without one. `unkept` counts last values that found no
    room in the feeder's memory: a client that joins such a topic waits for its next message. `sdk` is the version of
    xtquant, `call` the call into it that runs at this moment, and `call_age` for how many seconds. `trading_day` is
    whether stocks trade on this day, by the terminal's calendar; None while that is not known. `parts` are the store
    and the alerts that have reported to this feeder, each ``up`` or ``silent``. `pushers` are the programs that push
    data to the source ``push``.
    """

    source: str
    simulated: bool
    state: Literal[Session, "ended"]
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
    accounts: tuple[AccountState, ...] = ()
    journal_note: str | None = None
    refused: int = 0
    instance: str = ""
    unkept: int = 0
    sdk: str = ""
    call: str | None = None
    call_age: float = 0.0
    trading_day: bool | None = None
    parts: dict[str, str] = {}
    pushers: tuple[PusherState, ...] = ()
    # The version of docs/wire.md.
    wire: int = WIRE_VERSION


_status_decoder = msgspec.json.Decoder(FeedStatus)


def read_status(body: bytes) -> FeedStatus:
    """Return the heartbeat that `body` is; raise `WireError`, of another version of the wire `WireVersionError`."""
    status = read(_status_decoder, body)
    if status.wire != WIRE_VERSION:
        raise WireVersionError(status.wire, WIRE_VERSION)
    return status
