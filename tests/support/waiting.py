"""Wait for another thread or process: a test fails at a deadline, instead of sleeping for a fixed time.

`what` says in the failure what was waited for; a function is called at the deadline and returns the text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.support.wine import WINE

# What each deadline of the tests is multiplied by. Under Wine 8 `up` with two workers is ready after 4 to 7 s, where
# Linux takes 1.4 to 2.5 s: one process, with one thread, serves all files and processes of the run.
SLOWNESS = 4.0 if WINE else 1.0
DEADLINE = 30.0 * SLOWNESS
LOOK_SECONDS = 0.005
CONDITION = "the condition"


def wait_for(
    condition: Callable[[], object], what: str | Callable[[], str] = CONDITION, seconds: float = DEADLINE
) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, _failure(what)
        time.sleep(LOOK_SECONDS)


async def until(condition: Callable[[], object], what: str | Callable[[], str] = CONDITION) -> None:
    """Wait on the event loop until `condition` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, _failure(what)
        await asyncio.sleep(LOOK_SECONDS)


def _failure(what: str | Callable[[], str]) -> str:
    return f"waited too long for {what if isinstance(what, str) else what()}"
