"""Ask the terminal once: `python -m feeder.xt.probe HOST:PORT`, for `qmt-bridge doctor`.

With `--center SERVER...` check instead what the data service needs, without a token or a login; with `--sdk` which
xtquant is installed, and what it can do. This is a process of its own, because xtquant has one client per process, and
a call into it may hang: the caller sets a time limit and kills it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from feeder.xt import center, sdk
from feeder.xt.capabilities import Capabilities
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError

# One index of each exchange: it ticks every few seconds in trading hours.
_INDICES = ["000001.SH", "399001.SZ"]


def probe(address: str) -> dict[str, object]:
    """Return the answers of the terminal at `address`, or why there are none.

    ``{"error":"","tick_ms":<newest tick>,"tick_error":"","calendar_end":"20261231","calendar_error":""}``
    """
    answer: dict[str, object] = {"error": "", "tick_ms": 0, "calendar_end": ""}
    try:
        xtdata: Any = sdk.load()
        xtdata.connect(*sdk.parse_address(address))
    except Exception as exc:
        return {**answer, "error": str(exc)}
    asks: dict[str, Callable[[], object]] = {
        "tick_ms": lambda: max(tick["time"] for tick in xtdata.get_full_tick(_INDICES).values()),
        # The end of the last year of which the terminal has the holidays (xtdata.py 2136-2190).
        "calendar_end": lambda: xtdata.get_trading_calendar("SH")[-1],
    }
    for name, ask in asks.items():
        error = f"{name.partition('_')[0]}_error"
        answer[error] = ""
        try:
            answer[name] = ask()
        except Exception as exc:
            answer[error] = str(exc)
    return answer


def probe_sdk() -> dict[str, object]:
    """Return which xtquant this Python would import, and for each capability what it lacks, empty if nothing.

    ``{"error":"","version":"250807.1.2","importable":true,"lacks":{"quotes":"","formulas":".."}}``
    """
    answer: dict[str, object] = {"version": sdk.version(), "importable": sdk.importable()}
    if not answer["importable"]:
        return answer
    try:
        sdk.load()
        return {**answer, "lacks": Capabilities().table()}
    except Exception as exc:
        return {**answer, "error": f"{type(exc).__name__}: {exc}"}


def probe_center(servers: Sequence[str]) -> dict[str, object]:
    """Return whether the data service can be imported, what is wrong with `servers`, and its first free port, or 0.

    ``{"error":"","servers_error":"","host":"127.0.0.1","ports":[58609,58619],"port":58609}``
    """
    answer: dict[str, object] = {"error": "", "servers_error": "", "host": center.HOST, "ports": center.PORTS}
    try:
        # This also imports the module of the data service.
        sdk.load()
    except Exception as exc:
        answer["error"] = str(exc)
    try:
        center.check(Config(xt_servers=tuple(servers)))
    except ConfigError as exc:
        answer["servers_error"] = exc.reason
    return {**answer, "port": free_port(*center.PORTS)}


def free_port(first: int, last: int) -> int:
    """Return the first port from `first` to `last` on which the data service could listen, or 0."""
    return next(filter(_is_free, range(first, last + 1)), 0)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind((center.HOST, port))
        except OSError:
            return False
    return True


def main() -> None:
    """Print the result that the command line requests, as JSON."""
    first, *servers = sys.argv[1:]
    with sdk.take_stdout() as out:
        match first:
            case "--sdk":
                answer = probe_sdk()
            case "--center":
                answer = probe_center(servers)
            case address:
                answer = probe(address)
        out.write(msgspec.json.encode(answer))
    # Without waiting for native threads.
    os._exit(0)


if __name__ == "__main__":
    main()
