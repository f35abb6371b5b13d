"""A running stream of the synchronous client, as the caller has it: an iterator, or a callback in the background."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from qmt_bridge.clients.control import Ack
from qmt_bridge.clients.exchange import Exchange, wait
from qmt_bridge.errors import CallbackError

logger = logging.getLogger(__name__)


class Stream(Iterator[Any]):
    """The frames of one stream, for one thread: ``for frame in client.realtime([...])``.

    `add`, `remove` and `close` may be called from any thread, also while the loop waits for a frame. The stream
    connects when its first frame is asked for. It is closed by `close`, at the end of ``with stream:``, with its
    client, and once nothing refers to it, as after ``break`` out of ``for frame in client.realtime([...])``.
    """

    def __init__(self, exchange: Exchange, client: object) -> None:
        self._exchange = exchange
        # A client whose last reference is gone ends its streams.
        self._client = client

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self._exchange.next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Absent if the constructor failed.
        exchange = self.__dict__.get("_exchange")
        if exchange is not None:
            exchange.close(waits=False)

    def add(self, codes: Iterable[str], timeout: float | None = None) -> Ack:
        """Ask for further codes, and return what was added and what was refused.

        As `qmt_bridge.clients.subscription.Subscription.add`. Raises TimeoutError after `timeout` seconds without an
        answer; the codes may still be added.
        """
        return self._exchange.frames.add(codes).result(timeout)

    def remove(self, codes: Iterable[str], timeout: float | None = None) -> Ack:
        """Ask for no more of some codes; the stream goes on."""
        return self._exchange.frames.remove(codes).result(timeout)

    def close(self) -> None:
        """End the stream: a loop over it, in whichever thread, ends as after its last frame."""
        self._exchange.close()


class Background:
    """A stream whose frames are given to a callback, one after the other, in a thread of its own.

    The callback may take its time, and may use the client; no other stream waits for it. An error ends the stream: it
    is logged, and raised by `wait`.
    """

    def __init__(self, stream: Stream, callback: Callable[[Any], object]) -> None:
        if inspect.iscoroutinefunction(callback):
            raise TypeError("the callback is a coroutine function, which the client of `from qmt_bridge import` takes")
        self._stream = stream
        self._callback = callback
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qmt-bridge-callback", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None and self._error is not None:
            raise self._error

    @property
    def is_running(self) -> bool:
        """Return whether further frames may come."""
        return not self._ended.is_set()

    def add(self, codes: Iterable[str], timeout: float | None = None) -> Ack:
        """Ask for further codes; see `Stream.add`."""
        return self._stream.add(codes, timeout)

    def remove(self, codes: Iterable[str], timeout: float | None = None) -> Ack:
        """Ask for no more of some codes; see `Stream.remove`."""
        return self._stream.remove(codes, timeout)

    def close(self) -> None:
        """End the stream, and wait for a callback that runs; a callback itself may call this."""
        self._stream.close()
        if threading.current_thread() is not self._thread:
            wait(self._ended)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the stream has ended; raise what ended it, or TimeoutError after `timeout` seconds."""
        if not wait(self._ended, timeout):
            raise TimeoutError(f"the stream goes on after {timeout} s")
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for frame in self._stream:
                try:
                    self._callback(frame)
                # Also sys.exit(), which ends no program from a thread, and would be seen by nothing.
                except BaseException as exc:
                    raise CallbackError(frame) from exc
        except Exception as exc:
            self._error = exc
            logger.error("a stream in the background has ended: %s", exc, exc_info=exc)
        finally:
            try:
                self._stream.close()
            finally:
                self._ended.set()
