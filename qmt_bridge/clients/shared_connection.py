"""One connection that several streams of a client share (``share=True``). Runs on the caller's event loop.

A frame of quotes tells its code, and neither its period nor its options. So streams of one URL with the same period, or
depth, and the same options share a connection, and each is given the codes that it asked for. What a stream has not
taken waits in a backlog of its own, where the newest value of each code replaces older ones, so that a slow loop costs
the other streams nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import orjson

from qmt_bridge.clients.control import Ack, Answer, Closed, Rejected
from qmt_bridge.clients.stream import backoff, refused_codes, server_error
from qmt_bridge.clients.subscription import Subscription
from qmt_bridge.errors import RETRYABLE, Disconnected, QMTBridgeError
from qmt_bridge.reading.backlog import Backlog
from qmt_bridge.reading.reader import Mailbox

Warn = Callable[[dict[str, Any]], Awaitable[None]]
"""Tells the caller of a code that is refused while others are served, by its error frame."""


class Member:
    """One stream of a shared connection: what it wants, and what waits for it."""

    def __init__(self, codes: set[str], backlog: Backlog) -> None:
        # What it asks for once there is a connection, and what it has asked for.
        self.joining = codes
        self.codes: set[str] = set()
        self.mailbox = Mailbox(backlog)

    def wanted(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Return what a frame has of the codes that this stream wants, alone or with their market."""
        codes = self.codes
        return {code: of for code, of in frame.items() if code in codes or code.rpartition(".")[2] in codes}


class SharedConnection:
    """A stream of its own, whose codes are those of its members."""

    def __init__(self, frames: Subscription, warn: Warn, left: Callable[[], None], *, snapshot: bool) -> None:
        self._frames = frames
        self._warn = warn
        # Called once, when the connection ends.
        self._left = left
        self._snapshot = snapshot
        self._members: dict[Member, None] = {}
        # The newest value of each code, which a stream is given that comes later.
        self._newest: dict[str, Any] = {}
        self._ended = False
        # One after the other, so that what one is refused is asked for again by the next.
        self._adding = asyncio.Lock()
        self._joining: set[asyncio.Task[None]] = set()
        # The notices of the connection are no stream's: they must not run where the first of them does.
        self._task = asyncio.get_running_loop().create_task(self._pump(), context=Context())

    def join(self, member: Member, connection: Answer[None]) -> None:
        """Serve one more stream, with all of its codes; `connection` is answered once there is one."""
        self._members[member] = None
        task = asyncio.get_running_loop().create_task(self._join(member, connection), context=Context())
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def leave(self, member: Member) -> None:
        """Serve a stream no longer; the last one takes the connection with it."""
        if member not in self._members:
            return
        del self._members[member]
        # The connection may be waiting for room in it.
        member.mailbox.stop(Closed())
        self._drop(member.codes)
        if not self._members:
            self._end()
            self._frames.close()

    async def add(self, member: Member, codes: list[str]) -> Ack:
        """Serve further codes to a stream."""
        async with self._adding:
            return await self._add(member, [code for code in codes if code not in member.joining])

    async def _add_joining(self, member: Member) -> Ack:
        async with self._adding:
            codes, member.joining = sorted(member.joining), set()
            return await self._add(member, codes)

    async def _add(self, member: Member, codes: list[str]) -> Ack:
        if member not in self._members:
            # It has left while this waited, and would not take its codes back.
            return Ack()
        new = [code for code in dict.fromkeys(codes) if code not in member.codes]
        known = {code for other in self._members for code in other.codes}
        member.codes.update(new)
        if self._snapshot and (shown := Member.wanted(member, self._newest)):
            self._put(member, {code: of for code, of in shown.items() if code in new or code.rpartition(".")[2] in new})
        asked = [code for code in new if code not in known]
        ack = await self._frames.add(asked) if asked else Ack()
        refused = {rejected.code for rejected in ack.rejected}
        member.codes -= refused
        served = tuple(code for code in new if code not in refused and code not in ack.pending)
        return Ack(served, ack.rejected, ack.pending)

    async def remove(self, member: Member, codes: list[str]) -> Ack:
        """Serve some codes to a stream no longer."""
        gone = [code for code in dict.fromkeys(codes) if code in member.codes or code in member.joining]
        member.codes.difference_update(gone)
        member.joining.difference_update(gone)
        dropped = self._drop(gone)
        if dropped is not None:
            await dropped
        return Ack(tuple(gone))

    def _drop(self, codes: Any) -> Answer[Ack] | None:
        """Ask for no more of what no stream wants any more."""
        wanted = {code for member in self._members for code in member.codes}
        unwanted = [code for code in codes if code not in wanted]
        if not unwanted:
            return None
        for code in [code for code in self._newest if not {code, code.rpartition(".")[2]} & wanted]:
            del self._newest[code]
        return self._frames.remove(unwanted)

    def refuse(self, frame: dict[str, Any]) -> None:
        """Take codes from the streams that want them; one that has no other code left ends as one of its own would."""
        if frame.get("retry"):
            # The next connection asks for them again.
            return
        refused = refused_codes(frame)
        for member in self._members:
            if member.codes and not member.codes.isdisjoint(refused):
                member.codes.difference_update(refused)
                if not member.codes:
                    member.mailbox.end(server_error(frame))
        # So that a stream that wants one of them later asks for it, and is told.
        self._drop(refused)

    async def _join(self, member: Member, connection: Answer[None]) -> None:
        try:
            await self._frames.connected()
            connection.answer(None)
            ack, attempts = await self._add_joining(member), 0
            while not ack.codes and not ack.pending and {each.error for each in ack.rejected} & RETRYABLE:
                # A stream of its own would connect again after the same time.
                attempts += 1
                member.joining = {rejected.code for rejected in ack.rejected}
                await asyncio.sleep(backoff(attempts, random.random()))
                ack = await self._add_joining(member)
            if ack.rejected and not ack.codes and not ack.pending:
                member.mailbox.end(server_error(_frame(ack.rejected[0])))
                return
            for rejected in ack.rejected:
                await self._warn(_frame(rejected))
        except QMTBridgeError as exc:
            member.mailbox.end(exc)

    async def _pump(self) -> None:
        end: Exception = Disconnected(None, "the connection was closed")
        try:
            async for frame in self._frames:
                self._newest |= frame
                for member in [*self._members]:
                    self._put(member, member.wanted(frame))
                    await member.mailbox.has_room()
            end = Closed()
        except Exception as exc:
            end = exc
        finally:
            self._end()
            for member in self._members:
                member.mailbox.end(end)

    def _put(self, member: Member, frame: dict[str, Any]) -> None:
        if frame:
            member.mailbox.put(orjson.dumps(frame))

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._left()


def _frame(rejected: Rejected) -> dict[str, Any]:
    return {"type": "error", "code": rejected.error, "error": rejected.reason, "symbol": rejected.code}
