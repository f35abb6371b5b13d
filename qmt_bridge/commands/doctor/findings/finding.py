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
