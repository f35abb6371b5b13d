"""One line of the report of `qmt-bridge doctor`. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line: the check, its result, and what to do; `advice` is empty if nothing has to be done."""

    check: str
    level: Level
    said: str
    advice: str = ""


def lasted(since: int, now: int) -> str:
    """Return for how long something has been so, in words; both are ms since 1970, and 0 is not known."""
    minutes = (now - since) // 60_000
    if not since or minutes < 1:
        return ""
    return f" for {minutes} min" if minutes < 120 else f" for {minutes // 60} h"
