"""Capabilities: what the installed xtquant can do of all that the feeder wants of it.

xtquant differs between years and brokers: functions are missing, or have other parameters. The table names the calls of
each capability as the feeder makes them; `inspect` says whether the installed functions accept them. Nothing is called.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

from feeder.xt import sdk
from qmt_bridge.errors import Refused
from qmt_bridge.wire.topics import Kind, TopicParts


class Call(NamedTuple):
    """A function of a module of xtquant, with the names of the arguments that it gets; those before "/" by place."""

    module: str
    function: str
    arguments: str = ""


class Capability(NamedTuple):
    """One capability: what it serves, the first version of the package index that has it, and its calls."""

    name: str
    since: str
    calls: tuple[Call, ...]


def _calls(module: str, *lines: str) -> tuple[Call, ...]:
    return tuple(Call(module, *line.split(maxsplit=1)) for line in lines)


# The oldest version in the package index. What it has is not dated more exactly: earlier ones came from brokers only.
OLDEST = "240119.3"
_UNSUBSCRIBE = "unsubscribe_quote seq /"
_TABLE = (
    Capability("connection", OLDEST, _calls("xtdata", "connect ip port /", "reconnect ip port /", "get_client")),
    # Without them, the connection is looked at once a second.
    Capability("connection events", "240613.1.0", _calls("xtdata", "watch_xtquant_status callback /")),
    Capability("quotes", OLDEST, _calls("xtdata", "subscribe_quote stock_code period count callback", _UNSUBSCRIBE)),
    Capability("markets", OLDEST, _calls("xtdata", "subscribe_whole_quote code_list callback", _UNSUBSCRIBE)),
    Capability("depth", OLDEST, _calls("xtdata", "subscribe_l2thousand stock_code gear_num callback", _UNSUBSCRIBE)),
    Capability(
        "formulas",
        "240329.1.1",
        _calls(
            "xtdata",
            "subscribe_formula formula_name stock_code period count dividend_type extend_param callback",
        ),
    ),
    Capability(
        "downloads",
        OLDEST,
        _calls("xtdata", "download_history_data2 stock_list period start_time end_time / callback"),
    ),
    Capability(
        "history",
        OLDEST,
        _calls("xtdata", "get_market_data_ex_ori field_list stock_list period start_time end_time fill_data"),
    ),
    Capability("last ticks", OLDEST, _calls("xtdata", "get_full_tick code_list /")),
    Capability("calendar", OLDEST, _calls("xtdata", "download_holiday_data", "get_holidays")),
    Capability("broker names", OLDEST, _calls("xtdata", "get_hk_broker_dict")),
    Capability(
        "trade events",
        OLDEST,
        (
            *_calls(
                "xttrader",
                "XtQuantTraderCallback",
                "XtQuantTrader path session /",
                "XtQuantTrader.register_callback self callback /",
                "XtQuantTrader.start self /",
                "XtQuantTrader.connect self /",
                "XtQuantTrader.subscribe self account /",
                "XtQuantTrader.query_stock_orders_async self account callback /",
                "XtQuantTrader.query_stock_trades_async self account callback /",
                "XtQuantTrader.query_stock_positions_async self account callback /",
                "XtQuantTrader.query_stock_asset_async self account callback /",
                "XtQuantTrader.stop self /",
            ),
            *_calls("xttype", "StockAccount account_id account_type /"),
        ),
    ),
    Capability(
        "data service",
        OLDEST,
        _calls(
            "xtdatacenter",
            "set_token token /",
            "set_data_home_dir folder /",
            "set_allow_optmize_address servers /",
            "init start_local_service /",
            "listen ip port /",
            "shutdown",
        ),
    ),
)


class Capabilities:
    """What the xtquant of this process can do. Any thread may use it."""

    def __init__(self) -> None:
        self.version = sdk.version() or ""
        # What was found so far, by the name of the capability.
        self._lacks: dict[str, str] = {}

    def lack(self, name: str) -> str:
        """Return in words what xtquant lacks for a capability, and which version has it; empty if it lacks nothing.

        The first call for a name imports the modules of xtquant that it needs; raise ImportError if there is none.
        """
        found = self._lacks.get(name)
        if found is None:
            found = self._lacks[name] = self._look(next(each for each in _TABLE if each.name == name))
        return found

    def require(self, name: str) -> None:
        """Raise `Refused` if xtquant lacks the capability `name`."""
        if missing := self.lack(name):
            raise Refused("unsupported_sdk", f"{name} cannot be served: {missing}")

    def table(self) -> dict[str, str]:
        """Return `lack` of every capability, by its name."""
        return {capability.name: self.lack(capability.name) for capability in _TABLE}

    def _look(self, capability: Capability) -> str:
        name = f"xtquant {self.version or 'of unknown version'}"
        if capability.name == "trade events" and not sdk.has_trading():
            # The SDK for Linux has none, and no version would help.
            return f"{name} has no native module for trading, for this Python on this system"
        # First, because it imports xtquant without its side effects.
        sdk.load()
        missing = next(filter(None, map(_fault, capability.calls)), "")
        if not missing and capability.name == "connection events" and not _has_watcher_of_its_own():
            missing = "has connection events that cannot be used"
        return f"{name} {missing}; {capability.since} has it" if missing else ""


def capability_of(parts: TopicParts) -> str:
    """Return the capability that a topic of market data needs."""
    match parts.kind:
        case Kind.WHOLE:
            return "markets"
        case Kind.L2:
            return "depth"
        case Kind.FORMULA:
            return "formulas"
    return "broker names" if parts.detail == "brokerqueue2" else "quotes"


def _fault(call: Call) -> str:
    """Return what is wrong with a function for the call that the feeder makes; empty if nothing is."""
    try:
        found: object = importlib.import_module(f"xtquant.{call.module}")
    except Exception as exc:
        return f"has no {call.module} that can be imported ({exc})"
    for step in call.function.split("."):
        found = getattr(found, step, None)
    if not callable(found):
        return f"has no {call.module}.{call.function}"
    return "" if _accepts(found, call.arguments) else f"has {call.module}.{call.function} with other parameters"


def _accepts(function: Callable[..., object], arguments: str) -> bool:
    before, _, after = arguments.rpartition("/")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # A native function does not say which parameters it has.
        return True
    try:
        signature.bind(*before.split(), **dict.fromkeys(after.split()))
    except TypeError:
        return False
    return True


def _has_watcher_of_its_own() -> bool:
    """Return whether each connection keeps the callback that was set before it was made.

    The oldest version connects when the callback is set; in the next one, the end of an earlier connection would be
    reported to the callback of the newest.
    """
    return hasattr(importlib.import_module("xtquant.xtconn"), "status_callback")
