"""A pusher as a test needs it: a connection of which every line is in the hands of the test (docs/push.md)."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Self

from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS
# Seconds between two attempts to connect to a feeder that is about to start.
AGAIN = 0.02


def line(message: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message).encode() + b"\n"


def quote(code: str, period: str = "tick") -> dict[str, Any]:
    return {"kind": "quote", "code": code, "period": period}


class PushClient:
    """One connection to a feeder."""

    def __init__(self, port: int) -> None:
        """Connect; a feeder that has not opened its port yet is waited for."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), DEADLINE)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, f"nothing listens at {port}"
                time.sleep(AGAIN)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def say(self, *messages: Mapping[str, Any]) -> None:
        self.socket.sendall(b"".join(map(line, messages)))

    def hello(self, name: str, kinds: list[str], **more: Any) -> dict[str, Any]:
        """Say hello, and return the welcome."""
        self.say({"type": "hello", "protocol": 1, "name": name, "kinds": kinds, **more})
        return self.wait_for("welcome")

    def told(self) -> Iterator[dict[str, Any]]:
        """Yield what the feeder says, until it ends the connection."""
        for each in self._lines:
            yield json.loads(each)

    def drain(self) -> None:
        """Read what the feeder says, and forget it, on a thread of its own: one that does not read is cut off."""
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        # It may be closed in the middle of a line.
        with suppress(OSError, ValueError):
            for _ in self._lines:
                pass

    def wait_for(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Return the next message of this type with these fields; what comes before it is left out."""
        for message in self.told():
            if message["type"] == type_ and fields.items() <= message.items():
                return message
            assert message["type"] not in ("refused", "error"), message
        raise AssertionError(f"the feeder ended the connection before it said {type_}")
