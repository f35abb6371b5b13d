"""A TCP proxy between two parts, whose connections can be cut and held. Runs on the event loop."""

from __future__ import annotations

import asyncio
import socket

# The buffer of each of the two sockets of a narrow connection; the kernel doubles it.
_NARROW_BYTES = 4096


class Proxy:
    """Passes every connection on to the port `target` of this machine; if `narrow`, with small buffers."""

    def __init__(self, target: int, *, narrow: bool = False) -> None:
        self.port = 0
        self._target = target
        self._narrow = narrow
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection and stop listening."""
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, as happens when a broken cable is noticed."""
        for writer in tuple(self._open):
            writer.transport.abort()

    def hold(self) -> None:
        """Pass nothing on, as with a broken cable before it is noticed."""
        self._passing.clear()

    def heal(self) -> None:
        """Pass on again, first what was held."""
        self._passing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other = socket.socket()
        other.setblocking(False)
        if self._narrow:
            # Set before connecting: the TCP window is negotiated with the connection.
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _NARROW_BYTES)
            writer.transport.set_write_buffer_limits(_NARROW_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(other, ("127.0.0.1", self._target))
            other_reader, other_writer = await asyncio.open_connection(sock=other)
        except OSError:
            other.close()
            writer.transport.abort()
            return
        self._open |= {writer, other_writer}
        for source, sink in ((reader, other_writer), (other_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink, (writer, other_writer)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        try:
            while data := await source.read(_NARROW_BYTES if self._narrow else 256 * 1024):
                await self._passing.wait()
                sink.write(data)
                await sink.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            for writer in both:
                writer.transport.abort()
                self._open.discard(writer)
