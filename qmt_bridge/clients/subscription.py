"""A running stream of the asynchronous client, as the caller has it: its frames, further codes, its end."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Self, TypeVar

from qmt_bridge.clients.control import Ack, Answer, Control
from qmt_bridge.errors import CallbackError

T = TypeVar("T")


class Subscription(AsyncIterator[Any]):
    """The frames of one stream, for one loop: ``async for frame in client.realtime([...])``.

    `add`, `remove` and `close` may be called from any task and any thread, also while the loop waits for a frame.
    What they return can be awaited, and need not be: ``await stream.add([...])`` in a task,
    ``stream.add([...]).result()`` in another thread. The stream connects when its first frame is asked for, and is
    closed at the end of ``async with stream:``.
    """

    def __init__(self, frames: AsyncGenerator[Any, None], control: Control) -> None:
        self._frames = frames
        self._control = control
        self._runs = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._runs:
            raise RuntimeError("another task waits for the next frame of this stream; it has one reader")
        if self._control.has_ended:
            raise StopAsyncIteration
        self._runs = True
        try:
            return await self._frames.__anext__()
        finally:
            self._runs = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def add(self, codes: Iterable[str]) -> Answer[Ack]:
        """Ask for further codes, with the period and options of the stream; the answer says what was refused.

        A refused code is not part of the stream. The others are asked for again after a lost connection. While there is
        no connection the answer comes at once, with the codes as `pending`. Raises `BadRequest` for a stream that has
        no codes to add: trade events, downloads, formulas, and quotes with an `end`.
        """
        return self._control.add(codes)

    def remove(self, codes: Iterable[str]) -> Answer[Ack]:
        """Ask for no more of some codes; no frame of them comes once this is answered. The stream goes on."""
        return self._control.remove(codes)

    def close(self) -> Answer[None]:
        """End the stream: the loop over it ends as after its last frame. Answered when its connection is closed.

        A frame that the loop has not finished counts as not seen, as after ``break``.
        """
        return self._control.close(self._leave)

    async def aclose(self) -> None:
        """End the stream and wait until its connection is closed."""
        await self._leave()
        await self.close()

    async def run(self, callback: Callable[[Any], object]) -> None:
        """Call back with every frame until the stream ends, as ``client.subscribe_x`` does."""
        async with aclosing(self):
            async for frame in self:
                await call(callback, frame)

    async def connected(self) -> None:
        """Wait until the first connection was made; raise `Disconnected` if the stream ends before."""
        # Shielded: it is one for all that wait, and one of them may be cancelled.
        await asyncio.shield(asyncio.wrap_future(self._control.connection))

    async def _leave(self) -> None:
        # A stream whose next frame is waited for ends by itself.
        if not self._runs:
            await self._frames.aclose()


async def call(callback: Callable[[T], object], told: T) -> None:
    """Call a function of the caller; raise `CallbackError` if it fails."""
    try:
        result = callback(told)
        if inspect.isawaitable(result):
            await result
    except Exception as exc:
        raise CallbackError(told) from exc
