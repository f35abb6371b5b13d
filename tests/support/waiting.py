"""Waiting for what another thread or process does: a test fails at the deadline instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

DEADLINE = 30.0
LOOK_SECONDS = 0.005


def wait_for(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until `condition` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(LOOK_SECONDS)


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait on the loop until `condition` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(LOOK_SECONDS)
