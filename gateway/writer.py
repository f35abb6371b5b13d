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
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from gateway.sending.sender import EXTENSION, HIGH_WATER, PreparedSender
from qmt_bridge.wire.frames import DEFLATE_WINDOW

# The state of a TCP connection (linux/tcp.h): segments that wait for an acknowledgement, and the milliseconds since the
# newest one came.
_TCP_INFO = struct.Struct("=24xI28xI")


class PreparedFrames(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, plus `write` of ready-made frames."""

    # Called when a full transport has room again, and before the server closes the socket because it stops.
    sender: PreparedSender | None = None
    # Whether the client has to read before more can be written.
    full = False
    # Whether client and server have agreed on permessage-deflate.
    deflates = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn's own pings would take a client for gone while its answer waits behind data; the sender writes pings.
        self.ping_interval = None
        if self.config.ws_per_message_deflate:
            # Each message is compressed alone (no context takeover): a compressed frame is then the same for every
            # client, and a connection does not need the memory of a compressor.
            deflate = ServerPerMessageDeflateFactory(
                server_no_context_takeover=True,
                client_no_context_takeover=True,
                server_max_window_bits=DEFLATE_WINDOW,
                client_max_window_bits=DEFLATE_WINDOW,
            )
            self.conn = ServerProtocol(
                extensions=[deflate], max_size=self.config.ws_max_size, logger=logging.getLogger("uvicorn.error")
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

    def forget_handshake(self) -> None:
        """Drop the headers of both sides: 3 KB that are not needed once the socket is open."""
        del self.request, self.response

    def shutdown(self) -> None:
        """Let the sender write its last frames, then close with 1012."""
        if self.sender is not None and self.handshake_complete and not self.close_sent:
            self.sender.closing()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake a session that waits for room; its next `write` returns False."""
        super().connection_lost(exc)
        self.full = False
        if self.sender is not None:
            self.sender.lost()

    def handle_pong(self, event: Frame) -> None:
        """Tell the sender up to where the client has read."""
        if self.sender is not None:
            self.sender.acknowledge(bytes(event.data))

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
