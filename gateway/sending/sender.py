"""Sending to one client what is queued for it: by prepared frames, or by the plain ASGI send.

Runs on the event loop. No method waits, except `empty`, so a client that reads slowly does not delay other clients.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.counters import Sent
from gateway.sending.outbox import Item, Outbox
from gateway.sending.view import Seen
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, to_json

logger = logging.getLogger(__name__)

# The name under which a server offers prepared frames in ``scope["extensions"]``.
EXTENSION = "qmt_bridge.prepared_frames"
# Bytes that may wait in the transport before the client counts as slow, and bytes of one write: a hundred ticks.
HIGH_WATER = 32 * 1024


class Client(Protocol):
    """The session, as far as a sender uses it."""

    # Whether the client understands control frames.
    opted_in: bool

    def fell_behind(self) -> None:
        """End the session: a stream that may not lose anything does not fit into the outbox."""

    def broke(self) -> None:
        """End the session because of the exception that is being handled."""

    def tell_closing(self) -> None:
        """Tell the client that the server stops."""


class Frames(Protocol):
    """A transport that takes whole WebSocket frames (writer.PreparedFrames)."""

    # Whether the client has to read before more can be written, and whether frames may be compressed.
    full: bool
    deflates: bool
    # Set by the sender. A reference takes 128 bytes less for each connection than a callback for each method.
    sender: PreparedSender | None

    def forget_handshake(self) -> None:
        """Drop the headers of both sides."""

    def write(self, frames: bytes) -> bool:
        """Write whole WebSocket frames; return False if the client has disconnected."""

    async def room(self) -> None:
        """Wait until the transport has room, or the client has disconnected."""

    def abort(self) -> None:
        """Drop the connection."""


# `ready` of all ASGI senders: always empty, because they have no room. A list for each would take 56 bytes.
_NEVER_READY: list[Frame | Seen] = []

# The ASGI send.
Send = Callable[[Any], Any]


class Sender(Protocol):
    """What a subscription and a session use of a sender."""

    outbox: Outbox
    loop: asyncio.AbstractEventLoop
    # Frames of this turn of the loop that do not pass through the outbox, and the number of bytes for which there is
    # room. There is no room while frames wait in the outbox, because the order must not change.
    ready: list[Frame | Seen]
    room: int
    # loop.time() when the present send began, or None; the worker ends a session that makes no progress.
    sending_since: float | None
    sent_at: float
    # Whether the client has disconnected, and the number of frames that it was sent.
    gone: bool
    frames: int

    @property
    def stalled(self) -> bool:
        """Return whether nothing can be written until the client reads."""

    def wake(self) -> None:
        """Send what waits at the end of this turn of the loop."""

    def flush(self) -> None:
        """Send what waits, as far as there is room."""

    def make_room(self) -> bool:
        """Write what is ready; return whether there is room for more."""

    def put(self, item: Item) -> None:
        """Queue a frame of a topic."""

    def tell(self, frame: Mapping[str, Any]) -> None:
        """Queue a control frame."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` with time.monotonic() in a later turn, once nothing waits for the client."""

    def later(self, act: Callable[[], None]) -> None:
        """Call `act` in the next turn of the loop, unless the client has disconnected by then."""

    async def empty(self) -> None:
        """Wait until all that waits has been written."""

    def abort(self) -> None:
        """Drop the connection, if the server can do that."""

    def stop(self) -> None:
        """Send nothing more, and count what was skipped."""


class _Queue:
    """What both senders have in common: the outbox, and the calls for when it is empty."""

    # An idle connection should take little memory: in a dict, the attributes would take 1 KB.
    __slots__ = (
        "_client", "_drained", "_sent", "frames", "gone", "loop", "outbox", "ready", "room", "sending_since", "sent_at",
    )  # fmt: skip

    def __init__(self, client: Client, outbox: Outbox, sent: Sent, ready: list[Frame | Seen]) -> None:
        self.outbox = outbox
        self.loop = asyncio.get_running_loop()
        self.ready = ready
        self.room = 0
        self.sending_since: float | None = None
        self.sent_at = 0.0
        self.gone = False
        self.frames = 0
        self._client = client
        self._sent = sent
        self._drained: list[Callable[[float], None]] | None = None

    def wake(self) -> None:
        raise NotImplementedError

    def put(self, item: Item) -> None:
        self.room = 0
        self.outbox.put(item)
        if self.outbox.overflowed:
            self._client.fell_behind()
        else:
            self.wake()

    def tell(self, frame: Mapping[str, Any]) -> None:
        self.room = 0
        self.outbox.put_control(self._encode(frame))
        self.wake()

    def when_drained(self, act: Callable[[float], None]) -> None:
        if self._drained is None:
            self._drained = []
        self._drained.append(act)
        # Wake later: frames of this turn of the loop, and frames that an ack releases, come first.
        self.later(self.wake)

    def later(self, act: Callable[[], None]) -> None:
        self.loop.call_soon(lambda: None if self.gone else act())

    def stop(self) -> None:
        self.gone = True
        self._count_skipped()

    def _encode(self, frame: Mapping[str, Any]) -> bytes:
        return frames.encode(frame) if self.outbox.binary else to_json(frame)

    def _count_skipped(self) -> bool:
        """Count what was skipped; return whether a control frame that tells the client of it waits now."""
        skipped, self.outbox.skipped = self.outbox.skipped, 0
        if not skipped:
            return False
        self._sent.skipped += skipped
        if self.gone or not self._client.opted_in:
            return False
        self.outbox.put_control(self._encode({"type": "skipped", "count": skipped, "reason": "slow_client"}))
        return True

    def _tell_drained(self) -> None:
        if self._drained is not None and not self.gone:
            waiting, self._drained = self._drained, None
            for act in waiting:
                act(time.monotonic())


class Flushes:
    """The senders of one worker that have frames to write at the end of this turn of the loop."""

    def __init__(self) -> None:
        self._pending: list[PreparedSender] = []
        self._planned = False

    def plan(self, sender: PreparedSender) -> None:
        """Let `sender` write after the callback that the loop is running now."""
        self._pending.append(sender)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Let all planned senders write; the feed calls this without waiting for the next turn of the loop."""
        self._planned = False
        pending, self._pending = self._pending, []
        for sender in pending:
            sender.flush_safely()


class PreparedSender(_Queue):
    """Writes whole WebSocket frames; one system call writes all frames of one turn of the loop."""

    __slots__ = ("_flushes", "_flushing", "_frames")

    def __init__(self, client: Client, outbox: Outbox, sent: Sent, frames: Frames, flushes: Flushes) -> None:
        super().__init__(client, outbox, sent, [])
        self._frames = frames
        self._flushes = flushes
        self._flushing = False
        frames.sender = self
        outbox.deflated = frames.deflates
        self.room = HIGH_WATER

    @property
    def stalled(self) -> bool:
        return self._frames.full

    def wake(self) -> None:
        if not self._flushing:
            # Planned once: all frames of this turn of the loop are sent in one write.
            self._flushing = True
            self._flushes.plan(self)

    def flush(self) -> None:
        """Write what waits until the transport is full; the transport calls this again once it has room."""
        self._flushing = False
        self._write_ready()
        while not self.gone:
            if self._frames.full:
                self.room = 0
                self.sending_since = self.sending_since or self.loop.time()
                return
            taken = self.outbox.take(framed=True)
            if taken:
                self._write(taken)
            elif not self._count_skipped():
                break
        self.room = HIGH_WATER
        self.sending_since = None
        self.sent_at = self.loop.time()
        self._tell_drained()

    def closing(self) -> None:
        """Send what waits and then the notice that the server stops (1012 follows), without waiting for the client."""
        self._client.tell_closing()
        self.flush()

    def flush_safely(self) -> None:
        """Write what waits; an exception, which is a bug in our code, ends this session only."""
        try:
            self.flush()
        except Exception:
            self._client.broke()

    def make_room(self) -> bool:
        """Write at once the frames of this turn of the loop; return whether the transport has room for more.

        Otherwise, in a turn of thousands of messages, frames beyond the room would go through the outbox, which takes
        ten times as long, even for clients that are not slow. False if frames wait in the outbox: they have to be sent
        first.
        """
        if not self.ready or self.gone or len(self.outbox):
            return False
        self._write_ready()
        if self._frames.full:
            return False
        self.room = HIGH_WATER
        return True

    async def empty(self) -> None:
        """Wait until all that waits has been written."""
        while (len(self.outbox) or self.ready) and not self.gone:
            await self._frames.room()
            self.flush()

    def abort(self) -> None:
        """Drop the connection. A close would wait for the buffer, which a stalled client never empties."""
        self._frames.abort()

    def _write_ready(self) -> None:
        ready, self.ready = self.ready, []
        if ready and not self.gone:
            # Write even if the transport has become full meanwhile: these frames come before those in the outbox.
            try:
                framed = [frame.framed for frame in ready]
            except WireError:
                framed = self._fit(ready)
            if framed:
                self._write(framed)

    def _fit(self, ready: list[Frame | Seen]) -> list[bytes]:
        framed = []
        for frame in ready:
            try:
                framed.append(frame.framed)
            except WireError:
                self.outbox.unfit += 1
        return framed

    def _write(self, taken: list[bytes]) -> None:
        joined = taken[0] if len(taken) == 1 else b"".join(taken)
        if self._frames.write(joined):
            self.frames += len(taken)
            self._sent.frames += len(taken)
            self._sent.bytes += len(joined)
        else:
            self.gone = True


class AsgiSender(_Queue):
    """Sends one message after the other, by a task that exists only while messages wait."""

    __slots__ = ("_send", "_task")

    def __init__(self, client: Client, outbox: Outbox, sent: Sent, send: Send) -> None:
        super().__init__(client, outbox, sent, _NEVER_READY)
        self._send = send
        self._task: asyncio.Task[None] | None = None

    @property
    def stalled(self) -> bool:
        return False

    def wake(self) -> None:
        if self._task is None and not self.gone:
            self._task = self.loop.create_task(self._write())

    def flush(self) -> None:
        """Start the task, which sends as fast as the server accepts messages."""
        self.wake()

    def make_room(self) -> bool:
        """Return False: every message goes through the outbox, because the server makes the WebSocket frame."""
        return False

    async def empty(self) -> None:
        """Wait until all that waits has been sent."""
        while self._task is not None:
            await asyncio.shield(self._task)

    def abort(self) -> None:
        """Do nothing: plain ASGI cannot drop a connection."""

    def stop(self) -> None:
        """Send nothing more, and count what was skipped."""
        self.gone = True
        if self._task is not None:
            self._task.cancel()
        super().stop()

    async def _write(self) -> None:
        try:
            while payloads := self._next():
                for payload in payloads:
                    await self._send_one(payload)
                self.sending_since = None
                self.sent_at = self.loop.time()
            self._tell_drained()
        except (OSError, RuntimeError) as exc:
            # The client has disconnected; the server tells the session's reading task so by itself.
            logger.debug("a client has disconnected: %r", exc)
            self.gone = True
        finally:
            self.sending_since = None
            self._task = None

    def _next(self) -> list[bytes]:
        """Return what waits; after all of it, a notice with the number of skipped frames, if there are any."""
        payloads = self.outbox.take()
        while not payloads and self._count_skipped():
            payloads = self.outbox.take()
        return payloads

    async def _send_one(self, payload: bytes) -> None:
        self.sending_since = self.loop.time()
        shown = {"bytes": payload} if self.outbox.binary else {"text": payload.decode()}
        await self._send({"type": "websocket.send", **shown})
        self.frames += 1
        self._sent.frames += 1
        self._sent.bytes += len(payload)
