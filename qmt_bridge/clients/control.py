"""Changes one running stream from any thread or task: further codes, fewer codes, its end.

The stream itself is `qmt_bridge.clients.stream`; its connection belongs to `qmt_bridge.client`, which tells of it here.
Answers are looked for where frames are read, not where the caller takes them, so that a loop's body can wait for one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar

import orjson
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from qmt_bridge.clients.arguments import checked_codes
from qmt_bridge.clients.stream import Stream
from qmt_bridge.errors import BadRequest, Disconnected, ServerError
from qmt_bridge.reading.reader import Mailbox, Reader

T = TypeVar("T")
Action = Literal["subscribe", "unsubscribe"]


class Rejected(NamedTuple):
    """A code that is not served: `error` is an error code of docs/websocket.md, `reason` a sentence."""

    code: str
    error: str
    reason: str


class Ack(NamedTuple):
    """What became of the codes of one `add` or `remove`.

    `codes` are those that were added or removed. `pending` are asked for, and not answered yet: the source has not said
    that it serves them, or there was no connection. A refusal that comes later is told to `on_error`.
    """

    codes: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    pending: tuple[str, ...] = ()


class Answer(concurrent.futures.Future[T]):
    """What comes back later: ``await`` it on any event loop, or wait for its ``result(timeout)`` in another thread.

    It need not be waited for. `result` in the thread of the stream's own event loop would wait for ever.
    """

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    def answer(self, result: T) -> None:
        """Set the result, unless the wait for it was cancelled."""
        with suppress(concurrent.futures.InvalidStateError):
            self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Set an error, unless the wait for the result was cancelled."""
        with suppress(concurrent.futures.InvalidStateError):
            self.set_exception(error)


Change = Callable[[Action, list[str]], Awaitable[Ack]]
"""Makes a change of a stream with a shared connection."""


class Closed(Exception):
    """The stream was closed while it waited; never leaves the client."""


class _Change:
    """One `add` or `remove` under way: the codes of each of its requests that is not answered yet."""

    def __init__(self, answer: Answer[Ack], action: Action = "subscribe") -> None:
        self.answer = answer
        self.action = action
        self.waiting: dict[str, list[str]] = {}
        self.codes: list[str] = []
        self.rejected: list[Rejected] = []
        self.pending: list[str] = []

    def end(self) -> None:
        """Give the answer to the caller."""
        self.answer.answer(Ack(tuple(self.codes), tuple(self.rejected), tuple(self.pending)))


class Control:
    """Of one stream. Every method without a leading word of its thread runs on the stream's event loop."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop: asyncio.AbstractEventLoop | None = None
        # Guards the moments in which the stream begins and ends, which are on its loop, against other threads.
        self._lock = threading.Lock()
        self._closing: asyncio.Future[None] | None = None
        self.is_closed = False
        self.has_ended = False
        # What was asked for in any thread and is not answered. The end of the stream answers it, because a loop that
        # is stopped meanwhile never runs what was handed to it.
        self._asked: set[Answer[Ack]] = set()
        self._ends: list[Answer[None]] = []
        self._socket: ClientConnection | None = None
        self._reader: Mailbox | None = None
        # Of a stream with a shared connection: how it makes changes.
        self._shared: Change | None = None
        self._changes: dict[str, _Change] = {}
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # The first connection.
        self.connection = Answer[None]()

    # From any thread.

    def add(self, codes: Iterable[str]) -> Answer[Ack]:
        """Ask for further codes."""
        return self._change("subscribe", codes)

    def remove(self, codes: Iterable[str]) -> Answer[Ack]:
        """Ask for no more of some codes."""
        return self._change("unsubscribe", codes)

    def close(self, leave: Callable[[], Awaitable[None]]) -> Answer[None]:
        """End the stream; `leave` ends it where it does not run."""
        ended = Answer[None]()
        with self._lock:
            if self._loop is None:
                self.is_closed = self.has_ended = True
                self.connection.fail(_ended())
            if not self.has_ended:
                self._ends.append(ended)
        if self.has_ended or not self._call(self._close, leave):
            ended.answer(None)
        return ended

    def _change(self, action: Action, asked: Iterable[str]) -> Answer[Ack]:
        if not self._stream.is_changeable:
            raise BadRequest("bad_request", self._stream.unchangeable)
        codes = checked_codes(self._stream.field, asked)
        answer = Answer[Ack]()
        with self._lock:
            if self._loop is None and not self.is_closed:
                # Nothing was asked for yet: the first connection asks for what the stream has then.
                new = self._stream.add(codes) if action == "subscribe" else self._stream.remove(codes)
                named = tuple(code for request in new for code in request[self._stream.field])
                answer.answer(Ack(pending=named) if action == "subscribe" else Ack(named))
                return answer
            if not self.has_ended:
                self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        if self.has_ended or not self._call(self._begin_change, action, codes, answer):
            answer.fail(_ended())
        return answer

    def _call(self, method: Callable[..., None], *arguments: Any) -> bool:
        """Run a method on the loop, at once if this is its thread; return whether it will run."""
        loop = self._loop
        assert loop is not None
        running = None
        with suppress(RuntimeError):
            running = asyncio.get_running_loop()
        if running is loop:
            method(*arguments)
            return True
        with suppress(RuntimeError):
            # The loop is closed, and so is what ran on it.
            loop.call_soon_threadsafe(method, *arguments)
            return True
        return False

    # On the stream's event loop.

    def begin(self) -> None:
        """Take the loop that runs now for the stream's; raise `Closed` if it was closed before it began."""
        with self._lock:
            if self.is_closed:
                raise Closed
            self._loop = asyncio.get_running_loop()
            self._closing = self._loop.create_future()

    def joined(self, mailbox: Mailbox, change: Change) -> None:
        """Take the shared connection that the stream has joined, which makes its changes from now on."""
        self._reader, self._shared = mailbox, change
        if self.is_closed:
            mailbox.stop(Closed())

    async def _share_change(
        self,
        change: Change,
        action: Action,
        codes: list[str],
        answer: Answer[Ack],
    ) -> None:
        try:
            answer.answer(await change(action, codes))
        except Exception as exc:
            answer.fail(exc)

    def connected(self, socket: ClientConnection, reader: Reader) -> None:
        """Take the connection that has been made."""
        self._socket, self._reader = socket, reader
        self.connection.answer(None)
        if self.is_closed:
            reader.stop(Closed())
        late = [orjson.dumps(request).decode() for request in self._stream.late()] if self._stream.field else []
        if late:
            self._send(socket, late)

    def lost(self) -> None:
        """Answer what waits: the next connection asks for all that the stream has."""
        self._socket = self._reader = None
        for change in dict.fromkeys(self._changes.values()):
            for codes in change.waiting.values():
                # What was removed is not asked for again, so it is removed.
                (change.pending if change.action == "subscribe" else change.codes).extend(codes)
            change.end()
        self._changes.clear()

    def ended(self) -> None:
        """Tell that the stream has ended."""
        with self._lock:
            self.has_ended = True
        self.lost()
        self.connection.fail(_ended())
        for answer in [*self._asked]:
            answer.fail(_ended())
        for ended in self._ends:
            ended.answer(None)

    async def unless_closed(self, awaitable: Awaitable[T], undo: Callable[[T], object] | None = None) -> T:
        """Wait for something; raise `Closed` as soon as the stream is closed.

        `undo` is called with a result that the caller does not get, because it came when the wait ended otherwise.
        """
        assert self._closing is not None
        task: asyncio.Future[T] = asyncio.ensure_future(awaitable)
        both: set[asyncio.Future[Any]] = {task, self._closing}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self.is_closed:
                raise Closed
            return task.result()
        except (Closed, asyncio.CancelledError):
            if not task.done():
                task.cancel()
                # It closes what it has opened.
                await asyncio.wait({task})
            if undo is not None and not task.cancelled() and task.exception() is None:
                undo(task.result())
            raise

    @property
    def waits(self) -> bool:
        """Return whether a request waits for its answer."""
        return bool(self._changes)

    def take(self, frame: bytes) -> bool:
        """Take a frame that was read; return whether it is the answer to a change."""
        if b'"id"' not in frame:
            return False
        try:
            answer = orjson.loads(frame)
        except orjson.JSONDecodeError:
            return False
        number = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(number, str) or number not in self._changes:
            return False
        change = self._changes.pop(number)
        try:
            self._take_answer(change, change.waiting.pop(number), answer)
        except (KeyError, TypeError):
            change.answer.fail(ServerError("internal", "the answer of the server cannot be read", answer))
        if not change.waiting:
            change.end()
        return True

    def _take_answer(self, change: _Change, codes: list[str], answer: dict[str, Any]) -> None:
        if answer.get("type") == "unsubscribed":
            change.codes += codes
            return
        if answer.get("type") == "error":
            refused = [Rejected(code, answer.get("code") or "", answer.get("error") or "") for code in codes]
        else:
            added = set(answer.get("added") or ())
            change.codes += [code for code in codes if code in added]
            # A newer gateway may tell more of a code.
            refused = [Rejected(each["code"], each["error"], each["reason"]) for each in answer.get("rejected") or ()]
            pending = set(answer.get("pending") or ())
            change.pending += [code for code in codes if code in pending]
            if answer.get("rejected_more"):
                named = {*change.codes, *pending, *(rejected.code for rejected in refused)}
                told = "refused; the gateway names the first hundred only"
                refused += [Rejected(code, "unknown_symbol", told) for code in codes if code not in named]
        change.rejected += refused
        self._stream.remove([rejected.code for rejected in refused])

    def _begin_change(self, action: Action, codes: list[str], answer: Answer[Ack]) -> None:
        if self.is_closed or self.has_ended:
            answer.fail(_ended())
            return
        if self._shared is not None:
            self._keep(self._share_change(self._shared, action, codes, answer))
            return
        if self._socket is not None and self._socket.subprotocol is None:
            told = f"the server of {self._stream.path} has no control layer: it takes no {action} while a stream runs"
            answer.fail(ServerError("unknown_action", told, {}))
            return
        requests = self._stream.add(codes) if action == "subscribe" else self._stream.remove(codes)
        named = tuple(code for request in requests for code in request[self._stream.field])
        if self._socket is None or not requests:
            answer.answer(Ack(pending=named) if action == "subscribe" else Ack(named))
            return
        change = _Change(answer, action)
        texts = []
        for request in requests:
            self._numbers += 1
            number = f"change-{self._numbers}"
            change.waiting[number] = request[self._stream.field]
            self._changes[number] = change
            texts.append(orjson.dumps({"action": action, "id": number, **request}).decode())
        self._send(self._socket, texts)
        if self._reader is not None:
            # It may wait for room, with the answer behind what it does not read.
            self._reader.go_on()

    def _close(self, leave: Callable[[], Awaitable[None]]) -> None:
        if self.has_ended or self.is_closed:
            return
        self.is_closed = True
        assert self._closing is not None
        self._closing.set_result(None)
        if self._reader is not None:
            self._reader.stop(Closed())
        self._keep(_left(leave))

    def _send(self, socket: ClientConnection, texts: list[str]) -> None:
        self._keep(_sent(socket, texts))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task, which a loop would otherwise forget."""
        assert self._loop is not None
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ended() -> Disconnected:
    return Disconnected(None, "the stream has ended")


async def _left(leave: Callable[[], Awaitable[None]]) -> None:
    await leave()


async def _sent(socket: ClientConnection, texts: list[str]) -> None:
    # The reader of the socket sees its end too, and `lost` answers.
    with suppress(ConnectionClosed):
        for text in texts:
            await socket.send(text)
