"""Wait for another thread or process: a test fails at a deadline, instead of sleeping for a fixed time.

`what` says in the failure what was waited for; a function is called at the deadline and returns the text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

DEADLINE = 30.0
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
