"""Waiting for what another thread or process does: a test fails at the deadline instead of sleeping and hoping.

`what` names what is waited for; where the text is a function, it is called at the deadline.
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
        assert time.monotonic() < deadline, _in_vain(what)
        time.sleep(LOOK_SECONDS)


async def until(condition: Callable[[], object], what: str | Callable[[], str] = CONDITION) -> None:
    """Wait on the loop until `condition` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, _in_vain(what)
        await asyncio.sleep(LOOK_SECONDS)


def _in_vain(what: str | Callable[[], str]) -> str:
    return f"waited in vain for {what if isinstance(what, str) else what()}"
