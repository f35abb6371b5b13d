"""Which process has a port that cannot be had, as far as the system tells this user."""

from __future__ import annotations

import os

import psutil

# Options after which a command line goes on with the name of a program.
_HARMLESS = frozenset(("-m", "-P", "-I", "-u", "-E", "-s", "-B"))
_WORDS = 5


def holder(port: int) -> str:
    """Return a clause that names the process which listens on the TCP `port`: ``; python3 (pid 7) has it``, or "".

    Of its command line only the beginning is shown: behind an option there may be a key.
    """
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return f"; {_describe(connection.pid)} has it"
    except (psutil.Error, OSError):
        # macOS tells root alone.
        return ""
    return ""


def _describe(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        process = psutil.Process(pid)
        name = process.name()
        words = process.cmdline()
    except (psutil.Error, OSError):
        return f"process {pid}"
    shown: list[str] = []
    for word in words[:_WORDS]:
        if word.startswith("-") and word not in _HARMLESS:
            break
        shown.append(word if shown else os.path.basename(word))
    command = f": {' '.join(shown)}" if shown else ""
    return f"{name} (pid {pid}{command})"
