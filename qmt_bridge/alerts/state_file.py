"""What of the alerts is kept over a restart: the open incidents, so that none is told twice, in one small file."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from qmt_bridge import private
from qmt_bridge.alerts.book import Kept

logger = logging.getLogger(__name__)

NAME = "alerts.json"
# An incident takes some hundred bytes, and there are at most some hundred clients and accounts.
_MOST_BYTES = 256 * 1024


class StateFile:
    """The file in the data folder; one thread uses it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._saved: Kept | None = None
        self._failing = False

    def load(self) -> Kept:
        """Return what was kept; nothing if there is no file, or one that cannot be read, which is logged."""
        try:
            found = msgspec.json.decode(private.read_small(self._path, _MOST_BYTES), type=Kept)
        except FileNotFoundError:
            return Kept()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            logger.warning("%s cannot be read, so open incidents are told anew: %s", self._path, exc)
            return Kept()
        self._saved = found
        return found

    def save(self, kept: Kept) -> None:
        """Write what has changed. A disk that fails is logged once: alerts go on, and that disk is one of them."""
        if kept == self._saved:
            return
        try:
            private.keep_folder(self._path.parent)
            private.replace(self._path, msgspec.json.encode(kept) + b"\n")
        except OSError as exc:
            if not self._failing:
                logger.error("cannot write %s: %s", self._path, exc.strerror or exc)
            self._failing = True
            return
        self._saved, self._failing = kept, False
