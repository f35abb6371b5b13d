"""Trade events by their type: views of what xttrader calls back with, for programs that want attributes. Pure.

As in `qmt_bridge.wire.messages`, a field that is not here is passed over, one that is absent has its default, and a
value of another type stays what it is. Times are in seconds since 1970, prices and amounts in yuan, volumes in shares.
A field such as `order_status_name` is xtconstant's name of the value beside it. Source: xtquant/xttype.py, with the
attributes that the SDK adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from qmt_bridge.wire.messages import TradeEvent

if TYPE_CHECKING:
    Number = int | float | None
    Text = str | int | None
else:
    # A value of another type stays what it is, where an error would cost the event.
    Number = Text = Any


class _Data(msgspec.Struct, frozen=True, kw_only=True):
    account_type: Number = None
    account_type_name: Text = None
    account_id: Text = None
    # True: found by a query after a loss.
    recovered: bool = False


class Order(_Data, frozen=True, kw_only=True):
    """An order as it is now; `order_status` as in xtconstant (50 reported, 55 part filled, 56 filled, 54 cancelled)."""

    stock_code: Text = None
    order_id: Number = None
    order_sysid: Text = None
    order_time: Number = None
    order_type: Number = None
    order_type_name: Text = None
    order_volume: Number = None
    price_type: Number = None
    price_type_name: Text = None
    price: Number = None
    traded_volume: Number = None
    traded_price: Number = None
    order_status: Number = None
    order_status_name: Text = None
    status_msg: Text = None
    offset_flag: Number = None
    offset_flag_name: Text = None
    direction: Number = None
    direction_name: Text = None
    strategy_name: Text = None
    order_remark: Text = None
    secu_account: Text = None
    instrument_name: Text = None


class Fill(_Data, frozen=True, kw_only=True):
    """One fill of an order."""

    stock_code: Text = None
    order_id: Number = None
    order_sysid: Text = None
    order_type: Number = None
    order_type_name: Text = None
    traded_id: Text = None
    traded_time: Number = None
    traded_price: Number = None
    traded_volume: Number = None
    traded_amount: Number = None
    commission: Number = None
    offset_flag: Number = None
    offset_flag_name: Text = None
    direction: Number = None
    direction_name: Text = None
    strategy_name: Text = None
    order_remark: Text = None
    secu_account: Text = None
    instrument_name: Text = None


class Holding(_Data, frozen=True, kw_only=True):
    """What the account has of one instrument."""

    stock_code: Text = None
    volume: Number = None
    can_use_volume: Number = None
    open_price: Number = None
    market_value: Number = None
    frozen_volume: Number = None
    on_road_volume: Number = None
    yesterday_volume: Number = None
    avg_price: Number = None
    direction: Number = None
    direction_name: Text = None
    last_price: Number = None
    profit_rate: Number = None
    float_profit: Number = None
    position_profit: Number = None
    open_date: Text = None
    secu_account: Text = None
    instrument_name: Text = None


class Asset(_Data, frozen=True, kw_only=True):
    """The money of the account."""

    cash: Number = None
    frozen_cash: Number = None
    market_value: Number = None
    total_asset: Number = None
    fetch_balance: Number = None
    current_balance: Number = None


class Failure(_Data, frozen=True, kw_only=True):
    """An order, or its cancellation, that was refused."""

    order_id: Number = None
    order_sysid: Text = None
    market: Number = None
    market_name: Text = None
    error_id: Number = None
    error_msg: Text = None
    strategy_name: Text = None
    order_remark: Text = None
    # The number of the request, which its caller was given.
    seq: Number = None


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    seq: int
    journaled: bool = True


class OrderEvent(_Event, frozen=True, kw_only=True):
    """The frame of the type `order`."""

    data: Order


class FillEvent(_Event, frozen=True, kw_only=True):
    """The frame of the type `trade`."""

    data: Fill


class HoldingEvent(_Event, frozen=True, kw_only=True):
    """The frame of the type `position`."""

    data: Holding


class AssetEvent(_Event, frozen=True, kw_only=True):
    """The frame of the type `asset`."""

    data: Asset


class FailureEvent(_Event, frozen=True, kw_only=True):
    """The frame of the types `order_error` and `cancel_error`."""

    data: Failure


EVENTS: dict[str, type[msgspec.Struct]] = {
    "order": OrderEvent,
    "trade": FillEvent,
    "position": HoldingEvent,
    "asset": AssetEvent,
    "order_error": FailureEvent,
    "cancel_error": FailureEvent,
}


def typed_event(frame: dict[str, Any]) -> msgspec.Struct:
    """Return a frame as the event of its type; of a type without a view as a `TradeEvent`, whose `data` is a dict.

    `seq` is 0 where the server does not number its events, as one of the documented layer only.
    """
    frame = {"seq": 0, **frame}
    data = frame.get("data")
    if not isinstance(data, dict):
        # An event that the SDK gave another form than its documents say is still an event.
        return TradeEvent(frame["type"], frame["seq"], cast(Any, data), frame.get("journaled", True))
    return msgspec.convert(frame, EVENTS.get(frame["type"], TradeEvent))
