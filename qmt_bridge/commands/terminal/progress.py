"""Show on a terminal how far a command is: a bar on standard error, for what takes longer than a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from qmt_bridge.language.catalog import say

# Seconds without a bar: what is done by then needs none, and rich takes a tenth of a second to load.
QUIET = 0.5
# Seconds between two looks at the clock while a command only waits.
STEP = 0.1

Done = Callable[[float], None]


@contextmanager
def progress(label: str, total: float, *, shown: bool = True) -> Iterator[Done]:
    """Give what is called with how much of `total` is done; without a terminal, or `shown`, it does nothing."""
    if not shown or total <= 0 or not sys.stderr.isatty():
        yield _nothing
        return
    with ExitStack() as closing:
        yield _Bar(label, total, closing).update


def waiting(done: Done, seconds: float) -> None:
    """Wait, and tell how long that has been."""
    if done is _nothing:
        time.sleep(seconds)
        return
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        done(passed)
        time.sleep(min(STEP, seconds - passed))


class _Bar:
    def __init__(self, label: str, total: float, closing: ExitStack) -> None:
        self._label = label
        self._total = total
        self._closing = closing
        self._begun = time.monotonic()
        self._update: Done | None = None

    def update(self, done: float) -> None:
        if self._update is None and time.monotonic() - self._begun >= QUIET:
            self._update = self._draw()
        if self._update is not None:
            self._update(done)

    def _draw(self) -> Done:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        # Transient: what the command says remains alone.
        drawn = self._closing.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        task = drawn.add_task(say(self._label), total=self._total)
        return lambda done: drawn.update(task, completed=done)


def _nothing(_: float) -> None:
    return None
