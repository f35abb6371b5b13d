"""A stand-in for `xtquant.xtdata` under the public qmt-bridge: it calls back with the lines of text that it is fed.

Copied as xtquant/xtdata.py into a folder of that server. As with a terminal, another thread makes the calls.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

Callback = Callable[[dict[str, Any]], object]

_callbacks: dict[int, tuple[str, Callback]] = {}
_newest = 0
_lock = threading.Lock()


def subscribe_quote(stock_code: str, period: str, callback: Callback) -> int:
    """Return the number of a new subscription."""
    global _newest
    with _lock:
        _newest += 1
        _callbacks[_newest] = (stock_code, callback)
    return _newest


def unsubscribe_quote(seq: int) -> None:
    """End a subscription."""
    with _lock:
        _callbacks.pop(seq, None)


def _feed() -> None:
    with socket.create_server(("127.0.0.1", int(os.environ["BENCH_FEED"]))) as server:
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                for line in lines:
                    code, _, body = line.decode().partition("\t")
                    data = json.loads(body)
                    with _lock:
                        wanted = [callback for of, callback in _callbacks.values() if of == code]
                    for callback in wanted:
                        callback(data)


threading.Thread(target=_feed, daemon=True).start()
