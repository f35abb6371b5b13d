"""What is queued for one client, and how it leaves: by prepared frames, or by the plain ASGI send.

Runs on the event loop. No method waits, except `empty`: a client that reads slowly costs its own memory and delays no
other client.
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
# Bytes that may wait in the transport before the client counts as slow, and that one write brings: a hundred ticks.
HIGH_WATER = 32 * 1024


class Client(Protocol):
    """What a sender has to know of the session, and to tell it."""

    # Whether the client understands control frames.
    opted_in: bool

    def fell_behind(self) -> None:
        """End the session: a stream that may not lose anything does not fit into the outbox."""

    def broke(self) -> None:
        """End the session because of the exception at hand."""

    def tell_closing(self) -> None:
        """Tell the client that the server stops."""


class Frames(Protocol):
    """A transport that takes whole WebSocket frames (writer.PreparedFrames)."""

    # Whether the client has to read before more is written, and whether frames may be compressed.
    full: bool
    deflates: bool
    # Set by the sender. One reference costs 128 bytes less a connection than a callback for each of its methods.
    sender: PreparedSender | None

    def forget_handshake(self) -> None:
        """Drop the headers of both sides."""

    def write(self, frames: bytes) -> bool:
        """Write whole WebSocket frames; return False if the client has gone."""

    async def room(self) -> None:
        """Wait until the transport has room, or the client is gone."""

    def abort(self) -> None:
        """Drop the connection."""


# What is ready in an ASGI sender: nothing ever, since it has no room. A list of its own would cost 56 bytes.
_NEVER_READY: list[Frame | Seen] = []

# The ASGI send.
Send = Callable[[Any], Any]


class Sender(Protocol):
    """What a subscription and a session may do with the way to the client."""

    outbox: Outbox
    loop: asyncio.AbstractEventLoop
    # Frames of this turn of the loop that go past the outbox, and the bytes for which there is room. There is none
    # while something waits in the outbox, since these frames would overtake it.
    ready: list[Frame | Seen]
    room: int
    # loop.time() when the send under way began, or None; the worker ends a session that makes no progress.
    sending_since: float | None
    sent_at: float
    # Whether the client has gone, and the number of frames that it was sent.
    gone: bool
    frames: int

    @property
    def stalled(self) -> bool:
        """Return whether nothing can be written until the client reads."""

    def wake(self) -> None:
        """Plan to send what waits."""

    def flush(self) -> None:
        """Send what waits, as far as there is room."""

    def make_room(self) -> bool:
        """Write what is ready; return whether there is room for more of it."""

    def put(self, item: Item) -> None:
        """Queue a frame of a topic."""

    def tell(self, frame: Mapping[str, Any]) -> None:
        """Queue a control frame."""

    def when_drained(self, act: Callable[[float], None]) -> None:
        """Call `act` with time.monotonic(), later, once nothing waits for the client any more."""

    def later(self, act: Callable[[], None]) -> None:
        """Call `act` in the next turn of the loop, unless the client has gone by then."""

    async def empty(self) -> None:
        """Wait until all that waits has been written."""

    def abort(self) -> None:
        """Drop the connection, where the server has a way to do that."""

    def stop(self) -> None:
        """Send nothing more; count what the client did not get."""


class _Queue:
    """What both ways have in common: the outbox, and what to call once it is empty."""

    # An idle connection should cost little memory: as a dict, the attributes would take 1 KB.
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
        # Sent after what has been delivered in this turn of the loop, or held back until an ack.
        self.later(self.wake)

    def later(self, act: Callable[[], None]) -> None:
        self.loop.call_soon(lambda: None if self.gone else act())

    def stop(self) -> None:
        self.gone = True
        self._count_skipped()

    def _encode(self, frame: Mapping[str, Any]) -> bytes:
        return frames.encode(frame) if self.outbox.binary else to_json(frame)

    def _count_skipped(self) -> bool:
        """Count what the client did not get; return whether a control frame that says so waits now."""
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
    """The senders of one worker that have something to write at the end of this turn of the loop."""

    def __init__(self) -> None:
        self._pending: list[PreparedSender] = []
        self._planned = False

    def plan(self, sender: PreparedSender) -> None:
        """Let `sender` write once the loop has run the callback at hand."""
        self._pending.append(sender)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Let every sender write that has something to; the feed does not wait for the loop's next turn."""
        self._planned = False
        pending, self._pending = self._pending, []
        for sender in pending:
            sender.flush_safely()


class PreparedSender(_Queue):
    """Writes whole WebSocket frames, all that one turn of the loop brings in one system call."""

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
            # All that this turn of the loop brings goes out in one write.
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
        """Send what waits, and last that the server stops, before it closes with 1012; do not wait for the client."""
        self._client.tell_closing()
        self.flush()

    def flush_safely(self) -> None:
        """Write what waits; a bug in our code ends this session and leaves the others as they are."""
        try:
            self.flush()
        except Exception:
            self._client.broke()

    def make_room(self) -> bool:
        """Write at once what has come in this turn of the loop; return whether the transport has room for more.

        Otherwise a turn of thousands of messages would put what exceeds the room into the outbox, which costs ten times
        as much, for clients that are not slow. What waits in the outbox already may not be overtaken.
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
        """Drop the connection: a close would wait for a buffer that a stalled client never empties."""
        self._frames.abort()

    def _write_ready(self) -> None:
        ready, self.ready = self.ready, []
        if ready and not self.gone:
            # Also if the transport has become full meanwhile: they came before what waits in the outbox by now.
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
    """Sends one message after the other by a task that exists only while something waits."""

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
        """Leave it to the task, which sends as fast as the server lets it."""
        self.wake()

    def make_room(self) -> bool:
        """Return False: every frame passes the outbox, since the server frames it."""
        return False

    async def empty(self) -> None:
        """Wait until all that waits has been sent."""
        while self._task is not None:
            await asyncio.shield(self._task)

    def abort(self) -> None:
        """Do nothing: plain ASGI has no way to drop a connection."""

    def stop(self) -> None:
        """Send nothing more; count what the client did not get."""
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
            # The client has gone; under every server the session's reader is told so by itself.
            logger.debug("a client does not read any more: %r", exc)
            self.gone = True
        finally:
            self.sending_since = None
            self._task = None

    def _next(self) -> list[bytes]:
        """Return what waits; behind it the number of frames that were skipped, if there are some."""
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
