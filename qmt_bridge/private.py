"""Make files that only their owner may read, because they contain accounts, orders and fills.

On Windows a file inherits its permissions from its folder, and this changes nothing.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

_OWNER = stat.S_IRUSR | stat.S_IWUSR


def make_file(path: Path) -> None:
    """Make an empty file if there is none, and let only the owner read one that exists; raise `OSError`."""
    # Make it with this mode: another process could open it before a later change of the mode, and go on reading.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _OWNER))
    protect(path)


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
