"""One line of the report of `qmt-bridge doctor`. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line: what was looked at, the result, and what to do, which is empty where all is well."""

    check: str
    level: Level
    said: str
    advice: str = ""
