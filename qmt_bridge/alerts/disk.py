"""The disk of the data folder, on a thread of its own: a disk that hangs must not keep the alerts from telling so."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from qmt_bridge.alerts.book import Kept
from qmt_bridge.alerts.state_file import StateFile

# Seconds between two looks at the room that is left.
LOOK_SECONDS = 5.0


class Disk:
    """Looks how much room is left, and writes what is to be kept. Any thread may call its methods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = StateFile(folder)
        self._changed = threading.Condition()
        self._wanted: Kept | None = None
        self._ending = False
        # Bytes that were left at the last look; None before the first.
        self.free: int | None = None
        self._thread = threading.Thread(target=self._run, name="alerts-disk", daemon=True)

    def load(self) -> Kept:
        """Return what was kept, before `start`."""
        return self._file.load()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def keep(self, kept: Kept) -> None:
        """Write this as soon as the disk takes it."""
        with self._changed:
            if kept != self._wanted:
                self._wanted = kept
                self._changed.notify()

    def close(self, deadline: float) -> None:
        """Write what is to be kept, and end; wait until `deadline` (time.monotonic) at most."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        look_at, written = 0.0, None
        while True:
            with self._changed:
                while self._wanted == written and not self._ending and time.monotonic() < look_at:
                    self._changed.wait(look_at - time.monotonic())
                wanted, ending = self._wanted, self._ending
            if wanted is not None and wanted != written:
                self._file.save(wanted)
                written = wanted
            if ending:
                return
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                self.free = free_bytes(self._folder)


def free_bytes(folder: Path) -> int | None:
    """Return what the disk of a folder has left, also of one that is to be made; None if that cannot be told."""
    for place in (folder, *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
