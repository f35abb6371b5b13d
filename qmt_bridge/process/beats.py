"""Signs of life of a process that answers no questions: bytes on its standard output, which its supervisor reads.

A pipe belongs to the two processes alone, and needs no address. It is written on a thread, because a supervisor that
reads no more must not hold up what is watched; a byte says that the main thread has come by since the byte before.
"""

from __future__ import annotations

import os
import threading
import time
from typing import IO

# Seconds between two signs of life.
BEAT_SECONDS = 0.5
_BEAT = b"."


class Beats:
    """The end of the process that is watched; `beat` is for its main thread."""

    def __init__(self, descriptor: int) -> None:
        """Write to this file descriptor."""
        self._descriptor = descriptor
        self._due = threading.Event()
        threading.Thread(target=self._run, name="beats", daemon=True).start()

    def beat(self) -> None:
        """Say that the main thread goes on; it never waits."""
        self._due.set()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            try:
                os.write(self._descriptor, _BEAT)
            except OSError:
                # The supervisor has ended, and this process is about to.
                return
            time.sleep(BEAT_SECONDS)


class BeatReader:
    """The end of the supervisor: a thread that reads until the process has ended. Any thread may ask."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._heard = threading.Event()
        threading.Thread(target=self._run, name="beat-reader", daemon=True).start()

    def heard(self) -> bool:
        """Return whether there was a sign of life since the last call."""
        heard = self._heard.is_set()
        self._heard.clear()
        return heard

    def _run(self) -> None:
        with self._pipe:
            while os.read(self._pipe.fileno(), 4096):
                self._heard.set()
