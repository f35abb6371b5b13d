"""The position of a program in the trade events of one gateway, in a file that survives the program.

Called from the client's event loop, which waits while a position is written: at most once a second. The file must
never be ahead of what it is told, nor be half written: what a crash leaves is an older position, which repeats events.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import orjson

from qmt_bridge import private
from qmt_bridge.errors import ConfigError

logger = logging.getLogger(__name__)

# A write waits for the disk (fsync), and events come in bursts.
SAVE_SECONDS = 1.0
# A position takes some hundred.
_MOST_BYTES = 64 * 1024


class Bookmark(NamedTuple):
    """The `seq` of the last event that was seen, and that event's fingerprint, if one was seen at all."""

    seq: int
    event: str | None = None


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: JSON."""

    server: str
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    event: str | None = None


def fingerprint(event: Mapping[str, object]) -> str:
    """Return what tells an event from another one at the same position, without showing what is in it."""
    # Not all of it: an event that could not be journaled at first is marked when it is published only.
    content = orjson.dumps([event.get("type"), event.get("data")])
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class BookmarkFile:
    """The file at `path`, which belongs to one program and to the gateway `server` (``host:port``)."""

    def __init__(self, path: str | os.PathLike[str], server: str) -> None:
        self.path = Path(path)
        # When `save` should be called (the caller's clock); None: everything is on disk.
        self.due: float | None = None
        self._server = server
        self._reached: Bookmark | None = None
        self._saved: Bookmark | None = None
        self._saved_at: float | None = None
        self._failing = False

    def load(self) -> Bookmark | None:
        """Read the file; None if there is none yet; raise `ConfigError` if it is anything but this gateway's."""
        try:
            saved = msgspec.json.decode(private.read_small(self.path, _MOST_BYTES), type=_Saved)
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise ConfigError("state", f"there is no folder {str(self.path.parent)!r}") from None
            return None
        except OSError as exc:
            raise ConfigError("state", f"cannot read {str(self.path)!r}: {exc.strerror or exc}") from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ConfigError("state", f"{str(self.path)!r} holds no position: {exc}") from exc
        if saved.server != self._server:
            raise ConfigError(
                "state", f"{str(self.path)!r} holds a position at {saved.server}, which is not one at {self._server}"
            )
        self._reached = self._saved = Bookmark(saved.seq, saved.event)
        return self._saved

    def reach(self, position: Bookmark, now: float) -> None:
        """Take the position up to which everything has been seen; write it, unless that was done within a second.

        Raise `ConfigError` if the first write fails.
        """
        if position == self._reached:
            return
        self._reached = position
        if self._saved_at is None or now >= self._saved_at + SAVE_SECONDS:
            self.save(now)
        else:
            self.due = self._saved_at + SAVE_SECONDS

    def save(self, now: float) -> None:
        """Write what is not on disk yet. A failure later than the first write is logged, and tried again when due."""
        if self._reached is None or self._reached == self._saved:
            self.due = None
            return
        try:
            self._replace(msgspec.json.encode(_Saved(self._server, *self._reached)))
        except OSError as exc:
            if self._saved_at is None:
                self._reached = self._saved
                raise ConfigError("state", f"cannot write {str(self.path)!r}: {exc.strerror}") from exc
            # Events matter more than their position: with an old one they come twice, without the stream not at all.
            if not self._failing:
                logger.error("position %d cannot be written to %s: %s", self._reached.seq, self.path, exc)
            self._failing = True
            self.due = now + SAVE_SECONDS
            return
        if self._failing:
            logger.warning("positions are written to %s again", self.path)
        self._failing = False
        self._saved = self._reached
        self._saved_at = now
        self.due = None

    def _replace(self, content: bytes) -> None:
        private.replace(self.path, content)
        if os.name != "nt":
            # Windows cannot open a folder. Elsewhere the first file of all would otherwise not survive a power cut.
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
