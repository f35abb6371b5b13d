"""The processes of a run, and the disk of the journal. Linux only: it stops processes and reads /proc."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

DISK_BYTES = 512 * 1024 * 1024


class Part:
    """A process that is started again whenever it ends."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.name = name
        # How often it ended by itself.
        self.crashes = 0
        self._command = command
        self._env = {**os.environ, **env}
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = False
        self._over = False

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """Return the ids of the worker processes that it has started."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
            return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        except OSError:
            return []

    def tend(self) -> None:
        """Start the process if it has ended, unless it was stopped."""
        if self._over or (self._process is not None and self._process.poll() is None):
            return
        if self._process is not None and not self._asked:
            self.crashes += 1
        self._asked = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._env, stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self._process is not None and self._process.poll() is None:
            self._asked = self._asked or number in (signal.SIGKILL, signal.SIGTERM)
            self._process.send_signal(number)

    def stop(self) -> None:
        """End the process without a restart, by SIGTERM and then by SIGKILL."""
        self._over = True
        if self._process is None:
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Disk:
    """A small file system for the journal alone, if this user may mount one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.mounted = False
        if os.geteuid() == 0 and shutil.which("mount"):
            mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(path)]
            self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """Fill the file system completely."""
        with (self.path / "ballast").open("wb", buffering=0) as ballast:
            # A write that does not fit writes less than asked for; only the next one fails.
            block = bytes(1024 * 1024)
            try:
                while ballast.write(block):
                    pass
            except OSError:
                return

    def empty(self) -> None:
        """Free the space again."""
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount the file system."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)


def bridge(*arguments: str) -> list[str]:
    """Return the command line of `qmt-bridge`."""
    return [sys.executable, "-m", "qmt_bridge.cli", *arguments]
