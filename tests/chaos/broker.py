"""A pusher of trade events that are known in advance, as a process: `python -m tests.chaos.broker PORT BEGAN INTERVAL`.

The event n is there from BEGAN + n * INTERVAL on (seconds since 1970), whichever process pushes it. On each connection
all events so far are sent, as docs/push.md says, then each new one. It runs until it is killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.support.pusher import Pusher, quote

NAME = "broker"
ACCOUNT = "1000000365"
CODE = "600519.SH"
# Seconds between two looks for a new event, and until the next attempt to connect.
LOOK_SECONDS = 0.01
AGAIN = 0.2


def event(number: int) -> dict[str, Any]:
    """Return the message of an event."""
    data = {"account_id": ACCOUNT, "order_id": number, "stock_code": CODE, "order_status": 50}
    return {"topic": {"kind": "trade", "account": ACCOUNT}, "id": f"order/{number}", "event": "order", "data": data}


def count(began: float, interval: float, now: float) -> int:
    """Return how many events there are at a moment."""
    return max(0, int((now - began) / interval))


def _messages(sent: int, there: int) -> Iterator[dict[str, Any]]:
    yield from map(event, range(sent, there))
    yield {"topic": quote(CODE), "data": {"time": int(time.time() * 1000), "lastPrice": 10.0 + there % 100 / 100}}


def push(port: int, began: float, interval: float) -> None:
    """Push on one connection until it ends."""
    with Pusher.at(port) as client:
        client.join(name=NAME, kinds=["quote", "trade"], accounts=[ACCOUNT], simulated=True)
        client.drain()
        sent = 0
        while True:
            there = count(began, interval, time.time())
            if there > sent:
                client.say(*_messages(sent, there))
                sent = there
            time.sleep(LOOK_SECONDS)


def main() -> None:
    """Push until the process is killed."""
    port, began, interval = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    while True:
        try:
            push(port, began, interval)
        except (OSError, AssertionError):
            time.sleep(AGAIN)


if __name__ == "__main__":
    main()
