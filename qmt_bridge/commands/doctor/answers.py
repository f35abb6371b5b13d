"""The answers of the processes that ask xtquant (feeder/xt/probe.py) and other packages. Pure."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """The answer of the process that asks xtquant or a package; `error` says why it has none."""

    error: str = ""


class Made(Answer, frozen=True):
    """Whether a source of another package can be made; `package` has its name and version, empty if none is found."""

    package: str = ""


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


class Sdk(Answer, frozen=True):
    """The installed xtquant: its version, whether its native modules fit this Python, and what its capabilities lack.

    `version` is None where none is installed, and empty where it does not say it.
    """

    version: str | None = None
    importable: bool = False
    lacks: dict[str, str] = {}
