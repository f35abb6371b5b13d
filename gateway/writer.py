"""Prepared frames: a uvicorn WebSocket class that writes many ready-made WebSocket frames with one system call.

System calls are most of the cost of a delivery. A server's frames are not masked, so their bytes are the same for every
client. This class offers itself in ``scope["extensions"]``; under another server the plain ASGI send is used instead.
It uses attributes of uvicorn's sans-I/O protocol, which `tests/gateway/test_writer.py` checks. Runs on the event loop.

    uvicorn gateway.app:app --ws gateway.writer:PreparedFrames
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.extensions import ServerExtensionFactory
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import StatusLike

from gateway.access.browser_headers import BROWSER_HEADERS
from gateway.connections import intake
from gateway.sending.sender import EXTENSION, HIGH_WATER, PreparedSender
from qmt_bridge.closes import TOO_LARGE, VANISHED
from qmt_bridge.wire.frames import DEFLATE_WINDOW
from qmt_bridge.wire.requests import REQUEST_BYTES

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

# The state of a TCP connection (linux/tcp.h): segments that wait for an acknowledgement, and the milliseconds since the
# newest one came.
_TCP_INFO = struct.Struct("=24xI28xI")
# Pings of one slice that are all answered; of more, only the newest is, which answers all (RFC 6455, 5.5.3).
PONGS = 16
# Bytes to which a compressed message may inflate. Up to here a request that is too large is told so in an error frame;
# beyond, only the close says it.
INFLATED_BYTES = 2 * REQUEST_BYTES
# Seconds after which a connection is dropped that has been closed, but whose client reads nothing.
CLOSE_TIMEOUT = 5.0
# Seconds during which a client that was told to send less can read that.
LINGER = 1.0


class Receiver(ServerProtocol):
    """websockets' protocol, which leaves the answers to pings to us, and tells a client what is too large."""

    def recv_frame(self, frame: Frame) -> None:
        """Hand pings and pongs on; websockets would write a pong for each ping, whether or not the client reads."""
        if frame.opcode is Opcode.PING or frame.opcode is Opcode.PONG:
            self.events.append(frame)
        else:
            if frame.opcode is Opcode.CLOSE:
                # A client may close within a message (RFC 6455, 5.4); websockets would call that a protocol error.
                self.current_size = None
            super().recv_frame(frame)

    def reject(self, status: StatusLike, text: str) -> Response:
        """Answer a handshake that is not accepted, with the headers of every answer."""
        response = super().reject(status, text)
        response.headers.update(BROWSER_HEADERS)
        return response

    def fail(self, code: CloseCode | int, reason: str = "") -> None:
        """Close with our own sentence where a message is too large."""
        if code == TOO_LARGE.close_code:
            reason = f"{TOO_LARGE.code}: a request is at most {REQUEST_BYTES} bytes"
        super().fail(code, reason)


class PreparedFrames(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, plus `write` of ready-made frames."""

    # Called when a full transport has room again, and before the server closes the socket because it stops.
    sender: PreparedSender | None = None
    # Whether the client has to read before more can be written.
    full = False
    # Whether client and server have agreed on permessage-deflate.
    deflates = False

    # What was received and not yet parsed; None: nothing waits, and the socket is read.
    backlog: bytearray | None = None
    # Whether the socket stands in the queue of those whose data wait, and whether it is being closed for a flood.
    queued = False
    flooded = False

    def __init__(self, config: uvicorn.Config, server_state: ServerState, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, server_state, *args, **kwargs)
        # uvicorn's own pings would take a client for gone while its answer waits behind data; the sender writes pings.
        self.ping_interval = None
        self.meter = intake.Meter()
        # One for each server.
        shared = vars(server_state)
        self.intake: intake.Queue = shared.get("intake") or shared.setdefault("intake", intake.Queue(self.loop))
        extensions: list[ServerExtensionFactory] = []
        if config.ws_per_message_deflate:
            # Each message is compressed alone (no context takeover): a compressed frame is then the same for every
            # client, and a connection does not need the memory of a compressor.
            extensions.append(
                ServerPerMessageDeflateFactory(
                    server_no_context_takeover=True,
                    client_no_context_takeover=True,
                    server_max_window_bits=DEFLATE_WINDOW,
                    client_max_window_bits=DEFLATE_WINDOW,
                )
            )
        self.conn = Receiver(
            extensions=extensions, max_size=config.ws_max_size, logger=logging.getLogger("uvicorn.error")
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set how many bytes may wait in the transport."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(HIGH_WATER)

    def handle_connect(self, event: Request) -> None:
        """Offer this object to the app."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            # The task of the app exists, but it does not run before this callback ends.
            extensions: dict[str, Any] = cast(dict[str, Any], self.scope["extensions"])
            extensions[EXTENSION] = self
            # Our compressed frames need our window: a client that insists on a smaller one is sent uncompressed frames.
            self.deflates = any(
                isinstance(extension, PerMessageDeflate) and extension.local_max_window_bits >= DEFLATE_WINDOW
                for extension in self.conn.extensions
            )
            if self.conn.extensions and self.conn.max_message_size is not None:
                # A frame of 2 KB may inflate to 2 MB, which takes 6 ms.
                self.conn.max_message_size = min(self.conn.max_message_size, INFLATED_BYTES)

    def forget_handshake(self) -> None:
        """Drop the headers of both sides: 3 KB that are not needed once the socket is open."""
        del self.request, self.response

    def shutdown(self) -> None:
        """Let the sender write its last frames, then close with 1012."""
        if self.handshake_complete and not self.close_sent and self.conn.state is not OPEN:
            # The client has just closed; a close of ours would be an error.
            self.transport.close()
            return
        if self.sender is not None and self.handshake_complete and not self.close_sent:
            self.sender.closing()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake a session that waits for room; its next `write` returns False."""
        # uvicorn says 1005, which is a close frame without a code (RFC 6455, 7.1.5); what comes first is read.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": VANISHED.close_code})
        super().connection_lost(exc)
        self.full = False
        self._forget_backlog()
        if self.sender is not None:
            self.sender.lost()

    def data_received(self, data: bytes) -> None:
        """Parse a little at once; let more wait for its turn, and the socket unread until then."""
        if self.flooded:
            self.transport.pause_reading()
        elif not self.handshake_initiated:
            super().data_received(data)
        elif self.backlog is None and len(data) <= intake.SLICE and self.handshake_complete and self._passes():
            self.intake.spend(self._parse(data), self.loop.time())
        else:
            if self.backlog is None:
                self.backlog = bytearray()
                self.transport.pause_reading()
            self.backlog += data
            self.intake.waiting += len(data)
            if self.intake.waiting > intake.WAITING_BYTES and len(self.backlog) > intake.SLICE:
                self._close_flood()
            else:
                self._queue()

    @property
    def waiting(self) -> int:
        """Return how many bytes wait to be parsed (intake.Source)."""
        return len(self.backlog or b"")

    def work_off(self, now: float) -> float:
        """Parse what waits for about a millisecond, as long as no message waits for the session (intake.Source)."""
        self.queued = False
        cost = 0.0
        while self.backlog and cost < intake.TURN and not self.read_paused:
            piece = bytes(self.backlog[: intake.SLICE])
            del self.backlog[: intake.SLICE]
            self.intake.waiting -= len(piece)
            cost += self._parse(piece)
        if self.meter.debt(now) > intake.FLOOD:
            self._close_flood()
        elif self.backlog:
            self._queue()
        elif self.backlog is not None:
            self.backlog = None
            self._read_on()
        return cost

    def _passes(self) -> bool:
        return self.intake.passes(self.meter, self.loop.time())

    def _forget_backlog(self) -> None:
        self.intake.waiting -= self.waiting
        self.backlog = None

    def _queue(self) -> None:
        if not self.queued and not self.read_paused and self.handshake_complete and not self.disconnected:
            self.queued = True
            self.intake.add(self)

    def _read_on(self) -> None:
        if self.backlog is not None:
            self._queue()
        elif not self.read_paused and not self.flooded and not self.transport.is_closing():
            self.transport.resume_reading()

    def _close_flood(self) -> None:
        """End the session of a client that goes on sending more than it may, without reading anything more."""
        self.flooded = True
        self._forget_backlog()
        self.transport.pause_reading()
        if self.sender is None or self.close_sent:
            self.abort()
        else:
            self.sender.flooded()

    def _parse(self, data: bytes) -> float:
        """Parse and handle `data`; return what that costs."""
        self.conn.receive_data(data)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
            return 0.0
        events = self.conn.events_received()
        cost = len(data) * intake.BYTE_COST
        pings: list[Frame] = []
        for event in events:
            # After the handshake there are frames only.
            assert isinstance(event, Frame)
            cost += intake.FRAME_COST
            if event.opcode is Opcode.PONG:
                if self.sender is not None and self.sender.acknowledge(bytes(event.data)):
                    # The answer to a ping of ours, however many we send, is not at the client's expense.
                    cost -= intake.FRAME_COST
            elif event.opcode is Opcode.PING:
                pings.append(event)
            elif event.opcode is Opcode.CLOSE:
                self._answer(pings)
                pings = []
                self.handle_close(event)
            else:
                cost += len(event.data) * intake.BYTE_COST + event.fin * intake.MESSAGE_COST
                self._take(event)
        self._answer(pings)
        self.meter.spend(cost, self.loop.time())
        return cost

    def refund(self) -> None:
        """Charge nothing for a message that acknowledges a frame: the client sends as many as it is sent frames."""
        self.meter.spend(-intake.FRAME_COST - intake.MESSAGE_COST, self.loop.time())

    def _answer(self, pings: list[Frame]) -> None:
        """Answer pings, unless the client does not read: the pongs would pile up here."""
        if pings and not (self.full or self.close_sent or self.transport.is_closing()):
            answered = pings if len(pings) <= PONGS else pings[-1:]
            self.transport.write(b"".join(frame_of(Opcode.PONG, bytes(ping.data)) for ping in answered))

    def _take(self, event: Frame) -> None:
        """Add a fragment to its message; keep one buffer and not a list, which empty fragments would fill."""
        if event.opcode is not Opcode.CONT:
            self.curr_msg_data_type = "text" if event.opcode is Opcode.TEXT else "bytes"
            self.frames = [bytes(event.data)]
        elif event.data:
            if not isinstance(self.frames[0], bytearray):
                self.frames = [bytearray(self.frames[0])]  # type: ignore[list-item]
            self.frames[0] += event.data
        if event.fin:
            self._hand_over(bytes(self.frames[0]))

    def _hand_over(self, payload: bytes) -> None:
        """Queue a message for the session, and read no more until the session has taken it."""
        self.frames = []
        if self.close_sent or self.transport.is_closing():
            return
        if self.curr_msg_data_type == "bytes":
            self.queue.put_nowait({"type": "websocket.receive", "bytes": payload})
        else:
            try:
                text = payload.decode()
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA, "a text is not valid UTF-8")
                self.handle_parser_exception()
                return
            self.queue.put_nowait({"type": "websocket.receive", "text": text})
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_parser_exception(self) -> None:
        """Close because of what the client sent, without waiting for a client that does not read."""
        close = self.conn.close_sent
        if close is None or self.close_sent:
            # Both sides have closed before, or there was no handshake yet.
            self.abort()
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.close_sent = True
        self._forget_backlog()
        self.transport.write(b"".join(self.conn.data_to_send()))
        if close.code == TOO_LARGE.close_code:
            # If the connection ended while the client is sending, its system would not show it the close.
            self.close_timer = self.loop.call_later(LINGER, self._end)
            if self.read_paused:
                self.read_paused = False
            self._read_on()
        else:
            self._end()

    def _end(self) -> None:
        """Close the connection; drop it after a while if the client does not read what is left."""
        self.transport.close()
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.abort)

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next message; read on once the session has taken all."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._read_on()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        """Send as uvicorn does, then serve what came too early, or wait for the client's close, but not for ever."""
        await super().send(message)
        if self.close_sent or self.transport.is_closing():
            # uvicorn leaves this out if a handshake is answered with a page, or if its client has left: for each it
            # would log an error when the session returns.
            self.handshake_complete = True
        if self.close_timer is not None and message["type"] == "websocket.close":
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(LINGER if self.flooded else CLOSE_TIMEOUT, self.abort)
        if self.backlog is not None:
            self._queue()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Drop the connection after a while if the client does not read what is left."""
        super().on_task_complete(task)
        if not self.disconnected and self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.abort)

    def peer_silence(self) -> float:
        """Return for how many seconds the client's system has acknowledged nothing of what it was sent.

        0 where the system does not tell (only Linux does), or all was acknowledged.
        """
        connection = self.transport.get_extra_info("socket")
        if connection is None or not hasattr(socket, "TCP_INFO") or self.transport.is_closing():
            return 0.0
        try:
            waiting, milliseconds = _TCP_INFO.unpack(
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            )
        except (OSError, struct.error):
            return 0.0
        return milliseconds / 1000 if waiting else 0.0

    def pause_writing(self) -> None:
        """Note that the client has to read before more can be written."""
        super().pause_writing()
        self.full = True
        if self.sender is not None:
            self.sender.paused()

    def resume_writing(self) -> None:
        """Let the sender continue."""
        super().resume_writing()
        self.full = False
        if self.sender is not None:
            self.sender.flush()

    def write(self, frames: bytes) -> bool:
        """Write whole WebSocket frames; return False if the client has disconnected."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return False
        try:
            self.transport.write(frames)
        except RuntimeError:
            # uvloop raises this if the transport has closed after the check above.
            return False
        return True

    def abort(self) -> None:
        """Drop the connection. A close would wait for the buffer, which a stalled client never empties."""
        self.transport.abort()


def frame_of(opcode: Opcode, payload: bytes) -> bytes:
    """Return a control frame of a server: at most 125 bytes, not masked."""
    return bytes((0x80 | opcode, len(payload))) + payload
