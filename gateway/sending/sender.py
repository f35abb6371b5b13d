"""Sending to one client what is queued for it: by prepared frames, or by the plain ASGI send.

Runs on the event loop. No method waits, except `empty`, so a client that reads slowly does not delay other clients.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.counters import Sent
from gateway.sending.acks import AckWindow
from gateway.sending.flushes import Flushes
from gateway.sending.outbox import Item, Outbox
from gateway.sending.window import Window
from qmt_bridge.system import clock
from qmt_bridge.wire import frames

logger = logging.getLogger(__name__)

# The name under which a server offers prepared frames in ``scope["extensions"]``.
EXTENSION = "qmt_bridge.prepared_frames"
# Bytes that may wait in the transport before the client counts as slow, and bytes of one write: a hundred ticks.
HIGH_WATER = 32 * 1024
# A frame may wait for this part of the allowed lag before the outbox is conflated, and at most twice as long. The rest
# is for what is in flight.
OUTBOX_PART = 0.2
# Bytes that are taken from the outbox at a time: what is taken can no longer be replaced by something newer.
TAKE_BYTES = 1024 * 1024
# Seconds between two frames that tell a slow client how much it has not got.
TELL_SKIPPED_EVERY = 1.0
# Seconds without a sign of the client's machine after which it counts as gone.
GONE_AFTER = 20.0


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

    def lagging(self, stalled: float) -> None:
        """End the session: for `stalled` seconds the client has read nothing of what it was sent."""

    def vanished(self) -> None:
        """End the session: the client's machine does not answer."""

    def flooding(self) -> None:
        """End the session: the client goes on sending more frames than it may."""


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

    def peer_silence(self) -> float:
        """Return for how many seconds the client's system has acknowledged nothing of what it was sent."""

    def refund(self) -> None:
        """Charge the client nothing for the message that is being handled."""

    def abort(self) -> None:
        """Drop the connection."""


# `ready` of all ASGI senders: always empty, because they have no room. A list for each would take 56 bytes.
_NEVER_READY: list[bytes] = []

# The ASGI send.
Send = Callable[[Any], Any]


class Sender(Protocol):
    """What a subscription and a session use of a sender."""

    outbox: Outbox
    loop: asyncio.AbstractEventLoop
    # WebSocket frames of this turn of the loop that do not pass through the outbox, and the number of bytes for which
    # there is room. There is no room while frames wait in the outbox, because the order must not change.
    # Not `Frame`s, so that those and their bodies are freed at once: what a turn keeps does not fit into the caches.
    ready: list[bytes]
    room: int
    # The `seq` of each frame that is ready, if the client acknowledges frames by it.
    ready_seqs: list[int] | None
    # loop.time() when the newest frame was written.
    sent_at: float
    # Whether the client has disconnected, and the number of frames that it was sent.
    gone: bool
    frames: int

    @property
    def stalled(self) -> bool:
        """Return whether nothing can be written until the client reads."""

    @property
    def lag(self) -> float:
        """Return how many seconds passed between write and read, where the transport can tell; else 0."""

    def probe(self) -> tuple[float, float] | None:
        """Ask the client to answer; return when its newest answer came, and after how many seconds; None: unknown."""

    @property
    def skipped(self) -> int:
        """Return how many frames and records the client was not sent because a newer one had replaced them."""

    def check(self, now: float, slow_timeout: float) -> None:
        """End a session whose client reads nothing; ask one that was sent nothing whether it is there."""

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
        """Call `act` with clock.monotonic() in a later turn, once nothing waits for the client."""

    def later(self, act: Callable[[], None]) -> None:
        """Call `act` in the next turn of the loop, unless the client has disconnected by then."""

    def push(self) -> None:
        """Write what waits, beyond the window, as far as the transport takes it."""

    def processed(self, seq: int) -> bool:
        """Take an acknowledgement of a frame by its ``seq``; return whether it was waited for."""

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
        "_client", "_drained", "_sent", "_skipped", "frames", "gone", "loop", "outbox", "ready", "ready_seqs", "room",
        "sent_at",
    )  # fmt: skip

    def __init__(self, client: Client, outbox: Outbox, sent: Sent, ready: list[bytes]) -> None:
        self.outbox = outbox
        self.loop = asyncio.get_running_loop()
        self.ready = ready
        self.ready_seqs: list[int] | None = None
        self.room = 0
        self.sent_at = 0.0
        self.gone = False
        self.frames = 0
        self._client = client
        self._sent = sent
        self._skipped = 0
        self._drained: list[Callable[[float], None]] | None = None

    @property
    def skipped(self) -> int:
        return self._skipped + self.outbox.skipped

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
        if self.outbox.overflowed:
            self._client.fell_behind()
        else:
            self.wake()

    def push(self) -> None:
        """Do nothing: the server takes each message as soon as it can."""

    def processed(self, seq: int) -> bool:
        """Ignore an acknowledgement: the server does not tell what it has sent."""
        return False

    def when_drained(self, act: Callable[[float], None]) -> None:
        if self._drained is None:
            self._drained = []
        self._drained.append(act)
        # Wake later: frames of this turn of the loop, and frames that an ack releases, come first.
        self.later(self.wake)

    def later(self, act: Callable[[], None]) -> None:
        self.loop.call_soon(self._act, act)

    def _act(self, act: Callable[[], None]) -> None:
        """Call `act`; an exception, which is a bug in our code, ends this session only, and is not passed over."""
        if self.gone:
            return
        try:
            act()
        except Exception:
            self._client.broke()

    def stop(self) -> None:
        self.gone = True
        self._count_skipped()

    def _encode(self, frame: Mapping[str, Any]) -> bytes:
        return frames.to_msgpack(frame) if self.outbox.binary else frames.encode(frame)

    def _count_skipped(self) -> bool:
        """Count what was skipped; return whether a control frame that tells the client of it waits now."""
        skipped, self.outbox.skipped = self.outbox.skipped, 0
        if not skipped:
            return False
        self._sent.skipped += skipped
        self._skipped += skipped
        if self.gone or not self._client.opted_in:
            return False
        self.outbox.put_control(self._encode({"type": "skipped", "count": skipped, "reason": "slow_client"}))
        return True

    def _tell_drained(self) -> None:
        if self._drained is not None and not self.gone:
            waiting, self._drained = self._drained, None
            for act in waiting:
                act(clock.monotonic())


class PreparedSender(_Queue):
    """Writes whole WebSocket frames; one system call writes all frames of one turn of the loop.

    No more is written than the window allows (sending/window.py); what has to wait longer is conflated.
    """

    __slots__ = (
        "_acks",
        "_blocked",
        "_clock",
        "_flushes",
        "_flushing",
        "_frames",
        "_patience",
        "_told_at",
        "_waiter",
        "_window",
    )

    def __init__(
        self, client: Client, outbox: Outbox, sent: Sent, frames: Frames, flushes: Flushes, lag: float
    ) -> None:
        super().__init__(client, outbox, sent, [])
        self._frames = frames
        self._flushes = flushes
        self._flushing = False
        self._clock = flushes.clock
        self._window = Window(lag, self._clock.look())
        # The same window, once the client has acknowledged a frame by its number.
        self._acks: AckWindow | None = None
        # Seconds that a frame may wait in the outbox.
        self._patience = OUTBOX_PART * lag
        # Whether nothing may be written until the client reads.
        self._blocked = False
        # When the client was last told what it has not got.
        self._told_at = self._clock.now
        # Of the task that waits until all has been written.
        self._waiter: asyncio.Future[None] | None = None
        frames.sender = self
        outbox.deflated = frames.deflates
        self.room = min(HIGH_WATER, self._window.size)

    @property
    def stalled(self) -> bool:
        return self._frames.full or self._blocked

    @property
    def lag(self) -> float:
        return self._window.lag(self._clock.look())

    def probe(self) -> tuple[float, float] | None:
        window = self._window
        if not self.gone and (ping := window.probe(self._clock.look())):
            self._frames.write(ping)
        return window.progress_at, window.round_trip

    def put(self, item: Item) -> None:
        self._press()
        super().put(item)

    def _press(self) -> None:
        if self._window.is_quick(self._clock.now):
            self._flushes.press(self)

    @property
    def presses(self) -> bool:
        return not self.room and not self.gone and self._window.is_quick(self._clock.now)

    def wake(self) -> None:
        if not self._flushing:
            # Planned once: all frames of this turn of the loop are sent in one write.
            self._flushing = True
            self._flushes.plan(self)

    def flush(self) -> None:
        """Write what waits until the client has to read first; called again once it has."""
        self._flushing = False
        # There is room only while the outbox is empty.
        is_empty = self.room > 0
        self._write_ready()
        window = self._window
        left = window.left
        if is_empty and left > 0 and self._clock.now <= window.late_at and not (self._frames.full or self.gone):
            self.room = left if left < HIGH_WATER else HIGH_WATER
            if self._drained is not None:
                self._tell_drained()
        else:
            self._flush_outbox()

    def _flush_outbox(self) -> None:
        if self._blocked:
            # A late pong lets data be written that has waited since nothing more came.
            self.outbox.conflate_from(self._patience, self._clock.now)
        while not self.gone:
            room = self._may_write()
            if not room:
                self._block()
                return
            seqs: list[int] | None = None if self._acks is None else []
            taken = self.outbox.take(min(room, TAKE_BYTES), framed=True, seqs=seqs)
            if taken:
                if self._acks is not None and seqs:
                    self._acks.mark(seqs, taken, self._clock.now)
                self._write(taken)
                if self.outbox.skipped and self._clock.now - self._told_at >= TELL_SKIPPED_EVERY:
                    # Its outbox may never become empty.
                    self._told_at = self._clock.now
                    self._count_skipped()
            elif not self._count_skipped():
                break
        self.room = min(HIGH_WATER, self._may_write())
        self._blocked = False
        self._end_wait()
        self._tell_drained()

    def acknowledge(self, number: bytes) -> bool:
        """Take the payload of a pong; return whether it was waited for.

        The client has read what was written before the ping.
        """
        now = self._clock.look()
        awaited = self._window.acknowledge(number, now)
        if awaited and self._blocked and not self.gone:
            self.flush_safely()
            if ping := self._window.keep_alive(now):
                self._frames.write(ping)
        return awaited

    def processed(self, seq: int) -> bool:
        """Take an acknowledgement; return whether a frame with that ``seq`` was not acknowledged before."""
        now = self._clock.look()
        if self._acks is None:
            # Frames are known from now on, so the next acknowledgement is the first that counts.
            self._write_ready()
            self._window = self._acks = AckWindow(self._window)
            self.ready_seqs = []
        awaited = self._acks.processed(seq, now)
        if awaited:
            self._frames.refund()
        if awaited and self._blocked and not self.gone:
            self.flush_safely()
        return awaited

    def paused(self) -> None:
        """Count that the client has to read before more can be written."""
        self._sent.write_pauses += 1

    def flooded(self) -> None:
        """End the session: the client goes on sending more frames than it may."""
        self._client.flooding()

    def lost(self) -> None:
        """Note that the connection is gone."""
        self.gone = True
        self._end_wait()

    def check(self, now: float, slow_timeout: float) -> None:
        now = self._clock.look()
        waits = self._window.waits(now)
        if waits >= slow_timeout:
            self._client.lagging(waits)
        elif self._window.silence(now) >= GONE_AFTER and (
            not self._window.in_flight or self._frames.peer_silence() >= GONE_AFTER
        ):
            self._client.vanished()
        elif ping := self._window.keep_alive(now):
            self._frames.write(ping)
        if self._acks is not None and self._blocked and not self.gone and self._may_write():
            self.flush_safely()

    def _end_wait(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _may_write(self) -> int:
        """Return for how many bytes there is room."""
        if self._frames.full:
            return 0
        window = self._window
        return window.room(self._clock.now) or (0 if window.in_flight else 1)

    def _block(self) -> None:
        self.room = 0
        self._blocked = True
        self.outbox.conflate_from(self._patience, self._clock.now)

    def closing(self) -> None:
        """Send what waits and then the notice that the server stops (1012 follows), without waiting for the client."""
        self._client.tell_closing()
        self._window.lift()
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
        self.room = min(HIGH_WATER, self._may_write())
        if not self.room:
            self._press()
        return self.room > 0

    def push(self) -> None:
        """Write what waits, beyond the window, as far as the transport takes it."""
        while not (self.gone or self._frames.full):
            taken = self.outbox.take(HIGH_WATER, framed=True)
            if not taken:
                break
            self._write(taken)
        self.flush()

    async def empty(self) -> None:
        """Wait until all that waits has been written; a pong may never come, so none is waited for."""
        self._window.lift()
        self.flush()
        if self._blocked and not self.gone:
            self._waiter = self.loop.create_future()
            await self._waiter

    def abort(self) -> None:
        """Drop the connection. A close would wait for the buffer, which a stalled client never empties."""
        self._frames.abort()

    def _write_ready(self) -> None:
        ready, self.ready = self.ready, []
        if self._acks is not None:
            seqs, self.ready_seqs = self.ready_seqs, []
            if seqs and not self.gone:
                self._acks.mark(seqs, ready, self._clock.now)
        if ready and not self.gone:
            # Write even if the transport has become full meanwhile: these frames come before those in the outbox.
            self._write(ready)

    def _write(self, taken: list[bytes]) -> None:
        joined = taken[0] if len(taken) == 1 else b"".join(taken)
        size = len(joined)
        ping = self._window.wrote(size, self._clock.now)
        if self._frames.write(joined + ping if ping else joined):
            self.frames += len(taken)
            self.sent_at = self.loop.time()
            self._sent.frames += len(taken)
            self._sent.bytes += size
        else:
            self.gone = True


class AsgiSender(_Queue):
    """Sends one message after the other, by a task that exists only while messages wait."""

    __slots__ = ("_send", "_sending_since", "_task")

    def __init__(self, client: Client, outbox: Outbox, sent: Sent, send: Send) -> None:
        super().__init__(client, outbox, sent, _NEVER_READY)
        self._send = send
        # loop.time() when the send under way began, or None.
        self._sending_since: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def stalled(self) -> bool:
        return False

    @property
    def lag(self) -> float:
        return 0.0 if self._sending_since is None else self.loop.time() - self._sending_since

    def probe(self) -> tuple[float, float] | None:
        return None

    def check(self, now: float, slow_timeout: float) -> None:
        if self.lag > slow_timeout:
            self._client.lagging(self.lag)

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
                self._sending_since = None
                self.sent_at = self.loop.time()
            self._tell_drained()
        except (OSError, RuntimeError) as exc:
            # The client has disconnected; the server tells the session's reading task so by itself.
            logger.debug("a client has disconnected: %r", exc)
            self.gone = True
        finally:
            self._sending_since = None
            self._task = None

    def _next(self) -> list[bytes]:
        """Return what waits; after all of it, a notice with the number of skipped frames, if there are any."""
        payloads = self.outbox.take(TAKE_BYTES)
        while not payloads and self._count_skipped():
            payloads = self.outbox.take(TAKE_BYTES)
        return payloads

    async def _send_one(self, payload: bytes) -> None:
        self._sending_since = self.loop.time()
        shown = {"bytes": payload} if self.outbox.binary else {"text": payload.decode()}
        await self._send({"type": "websocket.send", **shown})
        self.frames += 1
        self._sent.frames += 1
        self._sent.bytes += len(payload)
