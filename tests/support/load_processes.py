"""Parts of a load test in processes of their own, so that none of them waits for the Python code of another."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any


@contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[Pipe]:
    """Run a function in a process of its own, and yield its pipe, which is the last argument of the function."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.join(0.5)
        process.kill()
        process.join()


def yield_cores() -> None:
    """Give this process the lowest priority: what others see is then the server's doing, and not this load's work."""
    os.setsid()
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    with suppress(OSError):
        # Between sessions Linux divides the cores by this value, and not by that of the processes (autogroup).
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")
