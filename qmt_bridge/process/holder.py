"""Find the process that holds a port in use, as far as the system tells this user."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from qmt_bridge.config import ENV_PREFIX
from qmt_bridge.process.child import python

# Options after which a command line goes on with the name of a program.
_HARMLESS = frozenset(("-m", "-P", "-I", "-u", "-E", "-s", "-B"))
_WORDS = 5
# Seconds that the search for the name may delay a start that fails anyway.
_LIMIT = 3.0


def holder(port: int) -> str:
    """Return a clause that names the process which listens on the TCP `port`: ``; python3 (pid 7) has it``, or "".

    Of its command line only the beginning is shown: behind an option there may be a key. A process of its own looks,
    because the system may take a minute (Wine 8 does), and psutil keeps the whole interpreter waiting meanwhile.
    """
    # It needs no setting, and none of the secrets among them.
    env = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    command = python("qmt_bridge.process.holder", str(port))
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=_LIMIT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.decode("utf-8", "replace") if found.returncode == 0 else ""


def _look(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return f"; {_describe(connection.pid)} has it"
    except (psutil.Error, OSError):
        # macOS shows the processes of other users only to root.
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


if __name__ == "__main__":
    sys.stdout.buffer.write(_look(int(sys.argv[1])).encode("utf-8", "replace"))
