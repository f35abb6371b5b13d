"""What is known about xtquant: whether it is installed, and the answers of the process that asks it. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """The answer of the process that asks xtquant (feeder/xt/probe.py); `error` says why it has none."""

    error: str = ""


class Probe(Answer, frozen=True):
    """What the terminal has: the time of its newest tick in ms, and its last known trading day (YYYYMMDD)."""

    tick_ms: float = 0
    tick_error: str = ""
    calendar_end: str = ""
    calendar_error: str = ""


class Center(Answer, frozen=True):
    """What xtquant's data service needs: valid server addresses, and a free port of `ports`; 0 is no free port."""

    servers_error: str = ""
    host: str = ""
    ports: tuple[int, int] = (0, 0)
    port: int = 0


class Xtquant(NamedTuple):
    """The installed version of xtquant, and whether its native modules fit this Python."""

    version: str | None
    importable: bool
