"""What is known about xtquant: whether it is installed, and the answers of the process that asks it. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """What the process that asks xtquant says (feeder/xt/probe.py); `error` is why it can say nothing."""

    error: str = ""


class Probe(Answer, frozen=True):
    """What the terminal answered: newest tick and end of calendar, or why not."""

    tick_ms: float = 0
    tick_error: str = ""
    calendar_end: str = ""
    calendar_error: str = ""


class Center(Answer, frozen=True):
    """What xtquant's data service would meet: servers that are no addresses, and its first free port, or 0."""

    servers_error: str = ""
    host: str = ""
    ports: tuple[int, int] = (0, 0)
    port: int = 0


class Xtquant(NamedTuple):
    """What there is of xtquant: its version, and whether its native modules fit this Python."""

    version: str | None
    importable: bool
