"""The keys of one gateway worker, read again when their file changes. Thin edge: files and the log.

Each worker looks at the file once a second, so a change holds in all of them, and in every gateway that has this data
folder, without a restart.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from gateway.keys.table import Table
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys import key_file
from qmt_bridge.keys.key import SIMPLE_NAME, Key

logger = logging.getLogger(__name__)

# Seconds between two notes of when keys were used.
NOTE_EVERY = 60.0


class KeyRing:
    """The keys in force, and when each was last used."""

    def __init__(self, folder: Path, api_key: str) -> None:
        """Read the keys; raise `ConfigError` for a file that is damaged."""
        self._folder = folder
        self._api_key = api_key
        self._stamp = _stamp(folder)
        self.table = Table(key_file.read_keys(folder), api_key)
        self._warn_of_readers()
        # Uses that are not noted yet, by hash, and when the last ones were.
        self._used: dict[str, int] = {}
        self._noted_at = float("-inf")

    def refresh(self) -> bool:
        """Read the keys again if their file has changed; return whether it has.

        A file that cannot be read any more leaves the keys as they were: otherwise a slip in an editor would close
        every socket. One that is gone has no keys.
        """
        now = _stamp(self._folder)
        if now == self._stamp:
            return False
        self._stamp = now
        try:
            self.table = Table(key_file.read_keys(self._folder), self._api_key)
        except ConfigError as exc:
            logger.error("%s; the keys stay as they were", exc)
            return False
        self._warn_of_readers()
        return True

    def use(self, key: Key, now: float) -> None:
        """Take down that a client uses a key at `now` (seconds since 1970)."""
        if key.name != SIMPLE_NAME:
            self._used[key.sha256] = int(now)

    def unnoted(self, now: float) -> Mapping[str, int]:
        """Return the uses to note now, for `note`; empty if it is not time."""
        if not self._used or now - self._noted_at < NOTE_EVERY:
            return {}
        self._noted_at = now
        used, self._used = self._used, {}
        return used

    def note(self, used: Mapping[str, int]) -> None:
        """Write the times of use. Any thread: a slow disk would hold up the loop."""
        try:
            key_file.note_used(self._folder, used)
        except BlockingIOError:
            # Another worker notes its own now. The times are a help for the eye, and the next use is noted.
            return
        except (OSError, ConfigError) as exc:
            logger.debug("the times at which keys were used cannot be noted: %s", exc)

    def _warn_of_readers(self) -> None:
        path = key_file.keys_path(self._folder)
        if sys.platform == "win32" or not self._stamp:
            return
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return
        if stat.S_IMODE(mode) & 0o077:
            logger.warning("%s can be read or written by others: chmod 600 it", path)


def _stamp(folder: Path) -> tuple[int, ...]:
    try:
        return key_file.stamp(folder)
    except OSError:
        # Reading it says why.
        return (0,)
