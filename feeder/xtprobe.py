"""What the terminal says when it is asked once: `python -m feeder.xtprobe HOST:PORT`, for `qmt-bridge doctor`.

A process of its own, because xtquant holds one client a process, and a call into it may hang: whoever starts it sets
a time and kills it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from feeder import xtsdk

# An index of each exchange has a tick every few seconds while it trades.
_INDICES = ["000001.SH", "399001.SZ"]


def probe(address: str) -> dict[str, object]:
    """Return what the terminal at `address` answers, or why it does not.

    ``{"error":"","tick_ms":<newest tick>,"tick_error":"","calendar_end":"20261231","calendar_error":""}``
    """
    answer: dict[str, object] = {"error": "", "tick_ms": 0, "calendar_end": ""}
    try:
        xtdata: Any = xtsdk.load()
        xtdata.connect(*xtsdk.parse_address(address))
    except Exception as exc:
        return {**answer, "error": str(exc)}
    asks: dict[str, Callable[[], object]] = {
        "tick_ms": lambda: max(tick["time"] for tick in xtdata.get_full_tick(_INDICES).values()),
        # Until the end of the last year whose holidays the terminal knows (xtdata.py 2136-2190).
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


def main() -> None:
    """Print what the terminal at the address in the command line says, as JSON."""
    with xtsdk.take_stdout() as out:
        out.write(msgspec.json.encode(probe(sys.argv[1])))
    # Without waiting for native threads.
    os._exit(0)


if __name__ == "__main__":
    main()
