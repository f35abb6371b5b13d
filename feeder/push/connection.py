"""One connection of a pusher: bytes to messages and back, and the reading that is stopped where there is no room.

It runs on the loop of the thread "push". What comes is taken line by line; a turn takes so many lines that no other
connection waits for long. While a message finds no room nothing more is read, and TCP holds the pusher.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from feeder.push.lines import LINE_BYTES, Budget, Lines
from feeder.push.message import BadLine, Message, decode, told
from feeder.refusals import Refusals
from qmt_bridge.system import clock

logger = logging.getLogger(__name__)

# Lines that are taken before another connection has its turn: some 5 ms.
TURN_LINES = 500
# Lines after which the publisher's thread has its turn: it gives up the interpreter with each call of ZeroMQ, and would
# get it back only after the switch interval while this thread computes.
STINT_LINES = 256
# Seconds until a message that found no room is tried again, and the pause after a turn of which parts had to wait.
ROOM_SECONDS = 0.002
# Bytes that wait for a pusher that does not read; more ends its connection. The demand of 100,000 topics takes 11 MB.
UNSENT_BYTES = 32 * 1024 * 1024
# Seconds until the hello, and the bytes of it.
HELLO_SECONDS = 10.0
HELLO_BYTES = 64 * 1024
# Error lines that a pusher is sent in a second.
ERRORS_A_SECOND = 10
# Seconds for the last line to be read, and for what is under way to arrive: a socket that is closed with unread data
# takes the last line from the other end.
END_SECONDS = 1.0

_failures = Refusals()


class Owner(Protocol):
    """What a connection belongs to."""

    def take(self, connection: Connection, message: Message) -> bool:
        """Take a message; return False if it has to be offered again later. Raise `BadLine`.

        It may give the connection another `taker` for the messages that follow.
        """

    def refused(self, connection: Connection, bad: BadLine) -> None:
        """Note that a line of it was refused."""

    def lost(self, connection: Connection) -> None:
        """Note that the other end is gone; not called after `end`."""

    def give_way(self) -> None:
        """Let the publisher's thread publish what was taken."""

    def is_crowded(self) -> bool:
        """Return whether the inbox has no room, so that the publisher's thread needs the time more."""


class Connection(asyncio.Protocol):
    """The feeder's end of a connection."""

    def __init__(self, owner: Owner, refusal: bytes | None = None) -> None:
        """Begin; with `refusal` this line is all that is said."""
        self._owner = owner
        self._refusal = refusal
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._lines = Lines(LINE_BYTES, HELLO_BYTES)
        self._until_hello: asyncio.TimerHandle | None = None
        self._waiting: deque[bytes | None] = deque()
        # A message that found no room, and whether a turn is planned.
        self._held: Message | None = None
        self._planned = False
        self._is_paused = False
        # What takes the messages: the owner, until it names another one.
        self.taker: Callable[[Message], bool] = partial(owner.take, self)
        self._budget = Budget(ERRORS_A_SECOND)
        # Nothing more is taken; the transport is gone.
        self.is_ended = False
        self.is_closed = False
        # Set at the hello, and at the end.
        self.arrived = asyncio.Event()
        # The number of the newest line, and its bytes.
        self.number = 0
        self.line_bytes = 0
        # When the newest bytes came, and the newest line (clock.monotonic).
        self.received_ns = clock.time_ns()
        self.heard = clock.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._refusal is not None:
            self.end(self._refusal)
        else:
            self._until_hello = self._loop.call_later(HELLO_SECONDS, self.end)

    def welcomed(self, taker: Callable[[Message], bool]) -> None:
        """Note that the hello has come; `taker` takes all that follows."""
        self.taker = taker
        self.arrived.set()
        if self._until_hello is not None:
            self._until_hello.cancel()
            self._until_hello = None

    def data_received(self, data: bytes) -> None:
        """Take what came, as far as there is room."""
        if self.is_ended:
            return
        self.received_ns = clock.time_ns()
        self._waiting.extend(self._lines.feed(data))
        if self._waiting:
            self.heard = clock.monotonic()
            if not self._planned:
                self._work()

    def eof_received(self) -> bool:
        """Close: a pusher that says no more serves nothing."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, unless it has ended the connection itself."""
        self.is_closed = True
        if not self.is_ended:
            self.is_ended = True
            self._clear()
            self._owner.lost(self)
        self.arrived.set()

    def send(self, line: bytes) -> None:
        """Send a line; end the connection of a pusher that does not read."""
        if self.is_ended or self._transport.is_closing():
            return
        self._transport.write(line)
        if self._transport.get_write_buffer_size() > UNSENT_BYTES:
            logger.warning("a pusher has not read %d bytes of demand; its connection is ended", UNSENT_BYTES)
            self._transport.abort()

    def refuse_line(self, bad: BadLine) -> None:
        """Tell that the newest line is refused, unless too many such lines were sent."""
        if self._budget.take(clock.monotonic()):
            self.send(told("error", line=self.number, code=bad.code, error=bad.reason[:300]))

    def end(self, line: bytes | None = None) -> None:
        """End the connection after a last line; the owner hears no more of it."""
        self.is_ended = True
        self.arrived.set()
        self._clear()
        transport = self._transport
        if line is None:
            transport.abort()
            return
        transport.write(line)
        if transport.can_write_eof():
            with suppress(OSError):
                # The other end may have reset it since.
                transport.write_eof()
            # What is under way is read and left out.
            transport.resume_reading()
        else:
            transport.close()
        self._loop.call_later(END_SECONDS, transport.abort)

    def abort(self) -> None:
        """Close at once a connection that has ended and whose last line is under way."""
        self._transport.abort()

    def silent(self, now: float) -> float:
        """Return for how many seconds no line came; 0 while the reading is stopped."""
        if self._planned:
            self.heard = now
        return now - self.heard

    def _work(self) -> None:
        self._planned = False
        waiting = self._waiting
        done = 0
        for done in range(TURN_LINES):
            if self.is_ended:
                return
            if done % STINT_LINES == STINT_LINES - 1:
                self._owner.give_way()
            try:
                message, self._held = self._held, None
                if message is None:
                    if not waiting:
                        break
                    line = waiting.popleft()
                    self.number += 1
                    if line is None:
                        limit = HELLO_BYTES if self.number == 1 else LINE_BYTES
                        raise BadLine("too_long", f"a line has at most {limit:,} bytes")
                    self.line_bytes = len(line)
                    message = decode(line)
                if not self.taker(message):
                    self._held = message
                    self._plan(ROOM_SECONDS)
                    return
            except BadLine as bad:
                self._owner.refused(self, bad)
            except Exception as exc:
                # One line costs neither the connection nor the feeder.
                untold = _failures.note(b"line", clock.monotonic())
                if untold is not None:
                    logger.exception("a line of a pusher could not be handled (%d more were not logged)", untold)
                self._owner.refused(self, BadLine("bad_request", f"it cannot be handled: {type(exc).__name__}"))
        if self.is_ended:
            return
        # The publisher's thread needs the time more: what came is taken, and the next bytes are read after a pause.
        is_crowded = bool(done) and self._owner.is_crowded()
        if waiting or is_crowded:
            self._plan(ROOM_SECONDS if is_crowded else 0)
        elif self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def _plan(self, seconds: float) -> None:
        self._planned = self._is_paused = True
        self._transport.pause_reading()
        self._loop.call_later(seconds, self._work)

    def _clear(self) -> None:
        self._waiting.clear()
        self._held = None
        if self._until_hello is not None:
            self._until_hello.cancel()
            self._until_hello = None
