"""Notice that a thread of the source has ended by an error: its data would be missing without a word."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from feeder.composite import Composite
from feeder.source import Source

logger = logging.getLogger(__name__)


class ThreadErrors:
    """A context manager; `told` has the first thread of the source that an error has ended, and the error.

    A thread is the source's if the error came through the source's own code: its folder if it is one of this project,
    else its package. What ends a thread of a library that handles it itself is no affair of the feeder's.
    """

    def __init__(self, source: Source) -> None:
        self.told: str | None = None
        self._name = source.name
        members = [member.source for member in source.members] if isinstance(source, Composite) else [source]
        self._packages = [_package(each) for each in members]

    def __enter__(self) -> ThreadErrors:
        self._before = threading.excepthook
        threading.excepthook = self._note
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self._before

    def _note(self, ended: threading.ExceptHookArgs, /) -> None:
        if not self._is_own(ended.exc_traceback):
            self._before(ended)
            return
        name = "" if ended.thread is None else ended.thread.name
        error = ended.exc_value
        logger.critical("source %s: an error has ended its thread %s", self._name, name, exc_info=error)
        if self.told is None:
            self.told = f"thread {name} of source {self._name}: {ended.exc_type.__name__}: {error}"

    def _is_own(self, traceback: TracebackType | None) -> bool:
        while traceback is not None:
            module = str(traceback.tb_frame.f_globals.get("__name__"))
            if any(module == each or module.startswith(f"{each}.") for each in self._packages):
                return True
            traceback = traceback.tb_next
        return False


def _package(source: Source) -> str:
    module = type(source).__module__
    own = module.partition(".")[0]
    return module.rpartition(".")[0] if own == "feeder" else own
