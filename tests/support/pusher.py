"""A pusher as a test needs it: a connection of which every line is in the hands of the test (docs/push.md)."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS
# Seconds between two attempts to connect to a feeder that is about to start.
AGAIN = 0.02
# Without a key Wine would look for the user of each connection, which it does not tell.
KEY = "a-key-of-the-tests"
CODE = "600519.SH"
ACCOUNT = "1000000365"
TRADE = {"kind": "trade", "account": ACCOUNT}


def line(message: Mapping[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message).encode() + b"\n"


def quote(code: str, period: str = "tick") -> dict[str, Any]:
    """Return a topic of quotes as pushers spell it."""
    return {"kind": "quote", "code": code, "period": period}


SPOKEN = quote(CODE)


class Pusher:
    """A program that pushes, at a socket that is connected."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(DEADLINE)
        self.socket = connected
        self._rest = b""

    @classmethod
    def at(cls, port: int) -> Self:
        """Connect; a feeder that has not opened its port yet is waited for."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                connected = socket.create_connection(("127.0.0.1", port), DEADLINE)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, f"nothing listens at {port}"
                time.sleep(AGAIN)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(connected)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self.socket.close()

    def say(self, *messages: Mapping[str, Any]) -> None:
        """Send a line each."""
        self.raw(b"".join(map(line, messages)))

    def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def hello(self, **fields: Any) -> dict[str, Any]:
        """Say hello and return the answer."""
        first = {"type": "hello", "protocol": 1, "name": "desk", "kinds": ["quote"], "key": KEY}
        self.say({**first, **fields})
        answer = self.line()
        assert answer is not None
        return answer

    def join(self, **fields: Any) -> None:
        """Say hello, which has to be welcome."""
        answer = self.hello(**fields)
        assert answer["type"] == "welcome", answer

    def push(self, data: Any, topic: dict[str, Any] | None = None, **fields: Any) -> None:
        """Send a record."""
        self.say({"topic": topic or SPOKEN, "data": data, **fields})

    def line(self) -> dict[str, Any] | None:
        """Return the next line that is no heartbeat; None at the end of the connection."""
        until = time.monotonic() + DEADLINE
        while True:
            whole, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                message: dict[str, Any] = json.loads(whole)
                if message["type"] != "heartbeat":
                    return message
                continue
            # Heartbeats go on, so that one receive after the other would wait for ever.
            assert time.monotonic() < until, "no line but heartbeats has come"
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._rest += data

    def until(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Return the next line of a type with these fields; those before it are left out."""
        while (message := self.line()) is not None:
            if message["type"] == type_ and fields.items() <= message.items():
                return message
        raise AssertionError(f"the connection ended before a line {type_}")

    def is_readable(self) -> bool:
        """Return whether something waits to be read."""
        return bool(self._rest) or bool(select.select([self.socket], [], [], 0)[0])

    def drain(self) -> None:
        """Read what the feeder says, and forget it, on a thread of its own: one that does not read is cut off."""
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        # It may be closed meanwhile.
        with suppress(OSError):
            while self.socket.recv(65536):
                pass
