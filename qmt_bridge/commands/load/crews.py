"""The client processes: each runs one crew and is told through a pipe what to do."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crew import PAUSE, Crew
from qmt_bridge.commands.load.load import Load
from qmt_bridge.commands.load.measurement import Measurement
from qmt_bridge.process.stop import shielded

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Pipe
else:
    from multiprocessing.connection import Connection as Pipe

logger = logging.getLogger(__name__)


def _process(load: Load, numbers: Sequence[int], make: type[Client], pipe: Pipe) -> None:
    # Ctrl-C is for the parent, whose end of the pipe then closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pin(load.cores)
    crew = Crew(load, numbers, make)
    heard = 0.0
    try:
        while True:
            crew.turn()
            # To read the pipe takes as long as to count twenty frames.
            if time.monotonic() - heard > PAUSE:
                heard = time.monotonic()
                while pipe.poll():
                    pipe.send(getattr(crew, pipe.recv())())
    except (EOFError, OSError) as exc:
        # The parent process has ended.
        logger.debug("client process ends: %r", exc)
    finally:
        crew.leave()


def pin(cores: Sequence[int]) -> None:
    """Keep this process on the given cores, where the system can."""
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, cores)


class Crews:
    """All client processes. They end with the `with` block, or with this process."""

    def __init__(self, load: Load, make: type[Client] = Client) -> None:
        self.load = load
        self._make = make
        self._pipes: list[Pipe] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []

    def __enter__(self) -> Crews:
        context = multiprocessing.get_context("spawn")
        for index in range(self.load.processes):
            ours, theirs = context.Pipe()
            numbers = range(index, self.load.clients, self.load.processes)
            process = context.Process(target=_process, args=(self.load, numbers, self._make, theirs), daemon=True)
            with shielded():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()

    def connect(self) -> None:
        """Connect and subscribe every client; raise ConnectionError if one cannot."""
        self._settle("connect")

    def settle(self) -> None:
        """Wait until every client's subscription is acknowledged; raise ConnectionError if one is not."""
        self._settle("settle")

    def _settle(self, word: str) -> None:
        trouble: Counter[str] = sum(self._ask(word), Counter())
        if trouble:
            raise ConnectionError("; ".join(f"{what}, {count} clients" for what, count in trouble.most_common(3)))

    def begin(self) -> None:
        """Let all clients count from here on."""
        self._ask("begin")

    def end(self) -> None:
        """Let all clients stop counting; with a sample they wait from now on for the next frame of each topic."""
        self._ask("end")

    def result(self) -> Measurement:
        """Return the sum of what all processes have measured."""
        first, *others = self._ask("result")
        for measured in others:
            first.add(measured)
        assert isinstance(first, Measurement)
        return first

    def _ask(self, word: str) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(word)
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise ConnectionError("a client process has ended") from None
