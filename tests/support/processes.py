"""Processes of a test, on every system: read what one prints, end it, and tell whether it runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

import psutil

from tests.support.waiting import SLOWNESS

# The exit code of a process that `kill` has ended; psutil gives it this one on Windows.
KILLED = int(signal.SIGTERM) if sys.platform == "win32" else -int(signal.SIGKILL)

DEADLINE = 30.0 * SLOWNESS


class Printing:
    """A process that runs until `close`, and the lines that it has printed."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            # Under Wine, Python ends at once where a standard stream is no pipe.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=env,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def close(self) -> None:
        """End it; raise if it does not end by itself."""
        if self.process.poll() is None:
            self.process.terminate()
        # A feeder whose supervisor is ended on Windows ends with its input.
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join()
            for pipe in (self.process.stdin, self.process.stdout):
                assert pipe is not None
                pipe.close()


def kill(pid: int) -> None:
    """End the process at once; it runs nothing any more."""
    psutil.Process(pid).kill()


def runs(pid: int) -> bool:
    """Return whether the process runs; a child of a killed parent may stay as a zombie, which does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
