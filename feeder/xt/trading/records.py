"""Records: read the objects of xttrader field by field. An object of its native code becomes a plain dict at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from feeder.xt import normalize
from feeder.xt.trading.failures import Failures
from feeder.xt.trading.published import Record
from feeder.xt.trading.pushes import Legible

# Callbacks of XtQuantTraderCallback (xttrader.py 24-133) and the events that they become. xttrader never calls
# on_connected; `connected` is published when an account is subscribed.
EVENTS = {
    "on_connected": "connected",
    "on_disconnected": "disconnected",
    "on_account_status": "account_status",
    "on_stock_asset": "asset",
    "on_stock_order": "order",
    "on_stock_trade": "trade",
    "on_stock_position": "position",
    "on_order_error": "order_error",
    "on_cancel_error": "cancel_error",
    "on_order_stock_async_response": "async_response",
    "on_cancel_order_stock_async_response": "async_cancel_response",
    "on_smt_appointment_async_response": "smt_appointment_async_response",
    "on_bank_transfer_async_response": "bank_transfer_async_response",
    "on_ctp_internal_transfer_async_response": "ctp_internal_transfer_async_response",
    "on_smart_algo_order_async_response": "smart_algo_order_async_response",
    "on_operate_smart_task_async_response": "operate_smart_task_async_response",
}

# The events that the terminal can list for the day, and the query that lists them.
QUERIES = {
    "order": "query_stock_orders_async",
    "trade": "query_stock_trades_async",
    "position": "query_stock_positions_async",
    "asset": "query_stock_asset_async",
}

# Fields in their published order (xttype.py, doc/xttrader.md); an object's further fields follow.
FIELDS = {
    event: tuple(fields.split())
    for event, fields in {
        "account_status": "account_type account_id status",
        "asset": "account_type account_id cash frozen_cash market_value total_asset fetch_balance current_balance",
        "order": "account_type account_id stock_code order_id order_sysid order_time order_type order_volume "
        "price_type price traded_volume traded_price order_status status_msg strategy_name order_remark direction "
        "offset_flag secu_account instrument_name",
        "trade": "account_type account_id stock_code order_type traded_id traded_time traded_price traded_volume "
        "traded_amount order_id order_sysid strategy_name order_remark direction offset_flag commission "
        "secu_account instrument_name",
        "position": "account_type account_id stock_code volume can_use_volume open_price market_value frozen_volume "
        "on_road_volume yesterday_volume avg_price direction last_price profit_rate secu_account instrument_name "
        "float_profit position_profit open_date",
        "order_error": "account_type account_id order_id error_id error_msg strategy_name order_remark seq",
        "cancel_error": "account_type account_id order_id market order_sysid error_id error_msg",
        "async_response": "account_type account_id order_id strategy_name order_remark error_msg seq",
        "async_cancel_response": "account_type account_id cancel_result order_id order_sysid seq error_msg",
        "smt_appointment_async_response": "seq success msg apply_id",
        "bank_transfer_async_response": "seq success msg",
        "ctp_internal_transfer_async_response": "seq success msg",
        "smart_algo_order_async_response": "account_id task_id strategy_name order_remark error_msg seq",
        "operate_smart_task_async_response": "seq success task_id operate_reason error_msg",
    }.items()
}

# xttype.py sets the account type of these itself, to 2 (STOCK) for every account.
_WITHOUT_TYPE = frozenset(("async_response", "async_cancel_response", "smart_algo_order_async_response"))

# The reason for an answer that is uncertain but may be right: for an account without orders xttrader answers None too.
AMBIGUOUS = "returned None"


class Reader:
    """Reads records of each kind of event; `names` has the names of the values of enumerations, by field."""

    def __init__(self, failures: Failures) -> None:
        self.names: dict[str, dict[int, str]] = {}
        self._failures = failures
        self._fields: dict[tuple[str, type], tuple[str, ...]] = {}

    def read(self, event: str, source: object) -> Record:
        """Copy every field at once: native code may free the object at any time after the callback."""
        if isinstance(source, Legible):
            source = source.source
        data: dict[str, object] = {}
        unread = b""
        kind = (event, type(source))
        names = self._fields.get(kind)
        if names is None:
            names = self._fields[kind] = discover(FIELDS[event], source)
        for name in names:
            try:
                value = getattr(source, name)
                data[name] = normalize.text(value) if isinstance(value, bytes | str) else normalize.plain(value)
            except AttributeError:
                continue
            except UnicodeDecodeError as exc:
                # pybind11 decodes when a field is read. Brokers write GBK.
                data[name] = read = normalize.text(exc.object)
                if read.encode("gb18030", "replace") != (written := exc.object.partition(b"\0")[0]):
                    # The text was cut or partly replaced. The bytes distinguish records with the same readable text.
                    unread += written + b"\0"
                if normalize.REPLACEMENT in read:
                    self._failures.note_field(event, name, "has bytes of no known encoding, replaced by U+FFFD")
            except Exception as exc:
                # The other fields are still published.
                data[name] = None
                self._failures.note_field(event, name, f"cannot be read: {type(exc).__name__}")
        return Record(data, unread)

    def read_answer(self, event: str, answer: Any) -> tuple[list[Record], str | None]:
        """Return the records of an answer that can be read, and why the answer may be incomplete, or None."""
        if event == "asset":
            answer = None if answer is None else [answer]
        if answer is None:
            return [], "failed" if event == "asset" else AMBIGUOUS
        if isinstance(answer, str | bytes | Mapping) or not hasattr(type(answer), "__len__"):
            return [], f"returned {type(answer).__name__}"
        items = list(answer)
        records = []
        for item in items:
            try:
                if item is not None:
                    record = self.read(event, item)
                    if not is_record(event, record.data):
                        raise TypeError(f"{type(item).__name__} has no field of the kind {event}")
                    records.append(record)
            except Exception:
                self._failures.note(event)
        return records, None if len(records) == len(items) else "cannot be read in part"

    def complete(self, event: str, data: dict[str, object], account_type: int | None) -> None:
        """Add what xttrader does not have: the account type of a response, and the names of enumerations' values."""
        if event in _WITHOUT_TYPE and account_type is not None:
            data["account_type"] = account_type
        for field, names in self.names.items():
            value = data.get(field)
            if isinstance(value, int):
                data[f"{field}_name"] = names.get(value)


def discover(fields: tuple[str, ...], source: object) -> tuple[str, ...]:
    """Return `fields` and the other fields of `source`. Native objects have each one twice: order_id and m_nOrderID."""
    names = dict.fromkeys(fields)
    attributes = dir(source)
    known = {_squash(name) for name in fields if name in attributes}
    # The names without m_ come first, so that these are kept.
    for name in sorted(attributes, key=lambda name: (name.startswith("m_"), name)):
        if name not in names and not name.startswith("_") and not callable(getattr(type(source), name, None)):
            squashed = _squash(name)
            if squashed not in known:
                known.add(squashed)
                names[name] = None
    return tuple(names)


def is_record(event: str, data: Mapping[str, object]) -> bool:
    """Return whether `data` has a field of its kind besides the account; the data of a number or a text has none."""
    return not {_squash(name) for name in FIELDS[event][2:]}.isdisjoint(map(_squash, data))


def _squash(name: str) -> str:
    return re.sub(r"^m_[a-z]+(?=[A-Z])", "", name).replace("_", "").lower()


def enumerations(xtconstant: Any) -> dict[str, dict[int, str]]:
    """Return the names of the enumerations' values by field; of several the first (STOCK_BUY, not CREDIT_BUY)."""
    constants = {name: value for name, value in vars(xtconstant).items() if type(value) is int}

    def named(pattern: str) -> dict[int, str]:
        names: dict[int, str] = {}
        for name, value in constants.items():
            if re.fullmatch(pattern, name):
                names.setdefault(value, name)
        return names

    return {
        "account_type": dict(xtconstant.ACCOUNT_TYPE_DICT),
        "order_type": named(r"(?!.*_ACCOUNT$)(FUTURE|STOCK|OPTION|COMPOSE|ETF|CREDIT)_\w+"),
        "price_type": named(r"LATEST_PRICE|FIX_PRICE|MARKET_(?!ENUM_)\w+|PRTP_\w+"),
        "direction": named(r"DIRECTION_FLAG_(LONG|SHORT)"),
        "offset_flag": named(r"OFFSET_FLAG_\w+"),
        "order_status": named(r"ORDER_\w+"),
        "status": named(r"ACCOUNT_STATUS\w+"),
        # Not in xtquant before 240812.
        "market": {number: name for name, number in getattr(xtconstant, "MARKET_STR_TO_ENUM_MAPPING", {}).items()},
    }
