"""QMT Bridge for programs: `QMTClient` for the WebSocket side, `subscribe` and the wire's names for the ZeroMQ side.

``from qmt_bridge import ...`` is the public interface. Everything is imported when it is first used: neither side loads
the other's library, and the command has prepared its process (`process.start`) before a library is imported.
"""

from __future__ import annotations

# As typing's, which takes longer to load than all this.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from qmt_bridge.client import QMTClient
    from qmt_bridge.clients.stream import StreamState
    from qmt_bridge.consumer import subscribe
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
        WireVersionError,
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
        PusherState,
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
    "PusherState",
    "QMTBridgeError",
    "QMTClient",
    "Refused",
    "ServerError",
    "StreamState",
    "Tick",
    "TradeEvent",
    "Unavailable",
    "WireError",
    "WireVersionError",
    "__version__",
    "download_topic",
    "formula_topic",
    "l2_topic",
    "quote_topic",
    "subscribe",
    "trade_topic",
    "whole_topic",
]

_MODULES = {
    "qmt_bridge.errors": (
        "BadCode",
        "BadRequest",
        "CallbackError",
        "ConfigError",
        "Disconnected",
        "QMTBridgeError",
        "Refused",
        "ServerError",
        "Unavailable",
        "WireError",
        "WireVersionError",
    ),
    "qmt_bridge.wire.frames": ("Frame",),
    "qmt_bridge.wire.messages": (
        "AccountState",
        "Bar",
        "DownloadEnd",
        "FeedStatus",
        "FormulaValue",
        "L2Order",
        "L2OrderQueue",
        "L2QuoteAux",
        "L2Thousand",
        "L2Transaction",
        "Progress",
        "PusherState",
        "Tick",
        "TradeEvent",
    ),
    "qmt_bridge.wire.topics": (
        "FormulaSpec",
        "download_topic",
        "formula_topic",
        "l2_topic",
        "quote_topic",
        "trade_topic",
        "whole_topic",
    ),
    "qmt_bridge.client": ("QMTClient",),
    "qmt_bridge.clients.stream": ("StreamState",),
    "qmt_bridge.consumer": ("subscribe",),
}
_LAZY = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _read_version()
    elif name in _LAZY:
        from importlib import import_module

        module = import_module(_LAZY[name])
        if hasattr(module, "__path__"):
            # A folder of the other project hides our module.
            from qmt_bridge.process.other_project import MIXED

            raise ImportError(MIXED)
        value = getattr(module, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _check_folder() -> None:
    """Warn if the files of another project lie between ours: its folder `client` hides our module of that name."""
    import os

    # A look of microseconds, and nothing of ours is imported for it.
    if os.path.isdir(os.path.join(__path__[0], "client")):
        import warnings

        from qmt_bridge.process.other_project import MIXED

        warnings.warn(MIXED, RuntimeWarning, stacklevel=3)


def _read_version() -> str:
    # importlib.metadata takes longer to load than all the rest.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("qmt-bridge-gateway")
    except PackageNotFoundError:
        # A checkout that is on the path but was never installed.
        return "0+unknown"


_check_folder()
