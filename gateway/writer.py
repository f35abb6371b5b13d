"""Prepared frames: a uvicorn WebSocket class through which a session writes what waits for it in one go.

A delivery costs a system call; server frames are not masked, so their bytes are the same for every client. This
class offers itself in ``scope["extensions"]``; under another server the session uses the plain ASGI send instead.
Built on uvicorn's sans-I/O protocol, whose attributes `tests/gateway/test_writer.py` watches. Runs on the event loop.

    uvicorn gateway.app:app --ws gateway.writer:PreparedFrames
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.server import ServerProtocol

from gateway.sending.sender import EXTENSION, HIGH_WATER, PreparedSender
from qmt_bridge.wire.frames import DEFLATE_WINDOW


class PreparedFrames(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, plus `write` of ready-made frames."""

    # Told when a transport that had been full has room again, and before the server closes the socket as it stops.
    sender: PreparedSender | None = None
    # Whether the client has to read before more is written.
    full = False
    # Whether client and server have agreed on permessage-deflate.
    deflates = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.ws_per_message_deflate:
            # Without a context that spans messages a compressed frame is the same for every client, and no client
            # costs the memory of a compressor.
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
        """Set how much may wait in the transport."""
        super().connection_made(transport)
        cast(asyncio.Transport, transport).set_write_buffer_limits(HIGH_WATER)

    def handle_connect(self, event: Request) -> None:
        """Offer this object to the app."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            # The app's task has been made but does not run before this callback ends.
            extensions: dict[str, Any] = cast(dict[str, Any], self.scope["extensions"])
            extensions[EXTENSION] = self
            # A client may insist on a smaller window than ours; it is sent what is not compressed.
            self.deflates = any(
                isinstance(extension, PerMessageDeflate) and extension.local_max_window_bits >= DEFLATE_WINDOW
                for extension in self.conn.extensions
            )

    def forget_handshake(self) -> None:
        """Drop the headers of both sides, 3 KB that are not read once the socket is open."""
        del self.request, self.response

    def shutdown(self) -> None:
        """Let the session send its last frames, then close with 1012."""
        if self.sender is not None and self.handshake_complete and not self.close_sent:
            self.sender.closing()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let a session go on that waits for room; `write` then returns False to it."""
        super().connection_lost(exc)
        self.full = False

    def pause_writing(self) -> None:
        """Note that the client has to read before more is written."""
        super().pause_writing()
        self.full = True

    def resume_writing(self) -> None:
        """Let the session go on."""
        super().resume_writing()
        self.full = False
        if self.sender is not None:
            self.sender.flush()

    def write(self, frames: bytes) -> bool:
        """Write whole WebSocket frames; return False if the client has gone."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return False
        try:
            self.transport.write(frames)
        except RuntimeError:
            # uvloop raises on a transport that has closed since it was asked.
            return False
        return True

    async def room(self) -> None:
        """Wait until the transport has room, or the client is gone."""
        await self.writable.wait()

    def abort(self) -> None:
        """Drop the connection; a close would wait for a buffer that a stalled client never empties."""
        self.transport.abort()
