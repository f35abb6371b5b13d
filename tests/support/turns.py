"""A store or a forwarder that takes its turns on a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Service(Protocol):
    """What is opened, takes turns and is closed by one thread."""

    def open(self) -> None: ...

    def turn(self) -> None: ...

    def close(self) -> None: ...


S = TypeVar("S", bound=Service)


class TurnThread(Generic[S]):
    """The thread of one service."""

    def __init__(self, service: S) -> None:
        self.service = service
        self.failure: Exception | None = None
        self._stopping = threading.Event()
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Return once the service is open; raise what prevents that."""
        self._thread.start()
        self._opened.wait()
        if self.failure is not None:
            self._thread.join()
            raise self.failure

    def _run(self) -> None:
        try:
            self.service.open()
        except Exception as exc:
            self.failure = exc
            return
        finally:
            self._opened.set()
        try:
            while not self._stopping.is_set():
                self.service.turn()
        except Exception as exc:
            self.failure = exc
        finally:
            self.service.close()

    def stop(self) -> None:
        """Close the service; raise what it has failed with."""
        self._stopping.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure


@contextmanager
def turning(service: S) -> Iterator[TurnThread[S]]:
    thread = TurnThread(service)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
