"""QMT Bridge for programs: `QMTClient` for the WebSocket side, `subscribe` and the wire's names for the ZeroMQ side.

``from qmt_bridge import ...`` is the public interface. What needs websockets or zmq is imported when it is first
used, so that neither side loads the other's library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qmt_bridge.errors import (
    BadCode,
    BadRequest,
    CallbackError,
    ConfigError,
    Disconnected,
    QMTBridgeError,
    Refused,
    ServerError,
    Unavailable,
    WireError,
)
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import (
    AccountState,
    Bar,
    DownloadEnd,
    FeedStatus,
    FormulaValue,
    L2Order,
    L2OrderQueue,
    L2QuoteAux,
    L2Thousand,
    L2Transaction,
    Progress,
    Tick,
    TradeEvent,
)
from qmt_bridge.wire.topics import (
    FormulaSpec,
    download_topic,
    formula_topic,
    l2_topic,
    quote_topic,
    trade_topic,
    whole_topic,
)

if TYPE_CHECKING:
    from qmt_bridge.client import QMTClient, StreamState
    from qmt_bridge.consumer import subscribe

    __version__: str

__all__ = [
    "AccountState",
    "BadCode",
    "BadRequest",
    "Bar",
    "CallbackError",
    "ConfigError",
    "Disconnected",
    "DownloadEnd",
    "FeedStatus",
    "FormulaSpec",
    "FormulaValue",
    "Frame",
    "L2Order",
    "L2OrderQueue",
    "L2QuoteAux",
    "L2Thousand",
    "L2Transaction",
    "Progress",
    "QMTBridgeError",
    "QMTClient",
    "Refused",
    "ServerError",
    "StreamState",
    "Tick",
    "TradeEvent",
    "Unavailable",
    "WireError",
    "__version__",
    "download_topic",
    "formula_topic",
    "l2_topic",
    "quote_topic",
    "subscribe",
    "trade_topic",
    "whole_topic",
]

_LAZY = {"QMTClient": "qmt_bridge.client", "StreamState": "qmt_bridge.client", "subscribe": "qmt_bridge.consumer"}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _read_version()
    elif name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _read_version() -> str:
    # importlib.metadata takes longer to load than all the rest.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qmt-bridge-gateway")
    except PackageNotFoundError:
        # A checkout that is on the path but was never installed.
        return "0+unknown"
