"""Make files that only their owner may read, because they contain accounts, orders and fills.

On Windows a file inherits its permissions from its folder, and this changes nothing.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

_OWNER = stat.S_IRUSR | stat.S_IWUSR


def make_file(path: Path) -> None:
    """Make an empty file if there is none, and let only the owner read one that exists; raise `OSError`."""
    # Make it with this mode: another process could open it before a later change of the mode, and go on reading.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _OWNER))
    protect(path)


def read_small(path: Path, most: int) -> bytes:
    """Return a file of at most `most` bytes; raise `OSError`, also for a longer one and for a folder or a device.

    For files that a hostile hand may have put where ours is expected. Reading another's pipe would wait without end.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError("is not a regular file")
        content = opened.read(most + 1)
    if len(content) > most:
        raise OSError(f"has more than {most:,} bytes")
    return content


def make_part(path: Path) -> Path:
    """Make an empty file with a new name beside `path`, and return it; raise `OSError`."""
    # mkstemp makes a file that only its owner may read, and never takes one that exists.
    file, name = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
    os.close(file)
    return Path(name)


def protect(path: Path) -> None:
    """Let only the owner read a file; raise `OSError`, also if it belongs to another user."""
    if stat.S_IMODE(path.stat().st_mode) & ~_OWNER:
        path.chmod(_OWNER)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; one that exists stays as it is. Raise `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def protect_folder(path: Path) -> None:
    """Let only the owner enter a folder that is ours; raise `OSError`."""
    found = path.stat()
    # A folder with the sticky bit, such as /tmp, is for everybody.
    if sys.platform != "win32" and found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX:
        if stat.S_IMODE(found.st_mode) & ~stat.S_IRWXU:
            path.chmod(stat.S_IRWXU)


def replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, as a whole or not at all; raise `OSError`."""
    part = make_part(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
