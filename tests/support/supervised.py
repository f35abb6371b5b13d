"""A running `qmt-bridge feeder --supervised` at free ports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support import waiting
from tests.support.ports import address_options, free_addresses
from tests.support.processes import DEADLINE, Printing

START = (sys.executable, "-m", "qmt_bridge.cli", "feeder", "--supervised")
STARTED = "feeder started: source "


class Supervised(Printing):
    """A running `qmt-bridge feeder --supervised` at free ports."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.addresses = free_addresses()
        command = [*START, f"--data-dir={folder}", *address_options(self.addresses), *arguments]
        super().__init__(command, {**os.environ, **(env or {})})

    @property
    def started(self) -> int:
        """Return how many feeders have started."""
        return self.text.count(STARTED)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        waiting.wait_for(condition, lambda: f"{what}; printed:\n{self.text}", DEADLINE)

    def wait_started(self, count: int = 1) -> None:
        self.wait_for(lambda: self.started >= count or self.process.poll() is not None, f"start {count}")
        assert self.process.poll() is None, self.text

    def wait_watched(self) -> None:
        self.wait_for(lambda: "the feeder answers (pid " in self.text, "the first answer")

    def children(self) -> list[psutil.Process]:
        """Return the processes that it has started."""
        return psutil.Process(self.process.pid).children()

    def feeder(self) -> int:
        """Return the process id of the feeder."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = psutil.Process(self.process.pid).children()
            return len(found) == 1

        self.wait_for(look, "one feeder")
        return int(found[0].pid)


@contextmanager
def supervised(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Supervised]:
    running = Supervised(folder, *arguments, env=env)
    try:
        yield running
    finally:
        running.close()
