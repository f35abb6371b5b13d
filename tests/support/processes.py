"""Processes of a test, on every system: end or stop one without asking it, and tell whether it runs."""

from __future__ import annotations

import signal
import sys

import psutil

# The exit code of a process that `kill` has ended; psutil gives it this one on Windows.
KILLED = int(signal.SIGTERM) if sys.platform == "win32" else -int(signal.SIGKILL)


def kill(pid: int) -> None:
    """End the process at once; it runs nothing any more."""
    psutil.Process(pid).kill()


def runs(pid: int) -> bool:
    """Return whether the process runs; a child of a killed parent may stay as a zombie, which does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
