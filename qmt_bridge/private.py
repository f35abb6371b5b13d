"""Files that only their owner may read: what they hold names accounts, orders and fills.

On Windows, where a file inherits who may read it from its folder, this changes nothing.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

_OWNER = stat.S_IRUSR | stat.S_IWUSR


def make_file(path: Path) -> None:
    """Make an empty file if there is none, and take a file that exists from everybody else; raise `OSError`."""
    # With this mode from the beginning: a file that is opened before its mode is changed can still be read.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _OWNER))
    protect(path)


def make_part(path: Path) -> Path:
    """Make an empty file beside `path`, of a name that no other file has, and return it; raise `OSError`."""
    # mkstemp makes a file that only its owner may read, and never takes one that exists.
    file, name = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
    os.close(file)
    return Path(name)


def protect(path: Path) -> None:
    """Take a file from everybody but its owner; raise `OSError`, also if it belongs to somebody else."""
    if stat.S_IMODE(path.stat().st_mode) & ~_OWNER:
        path.chmod(_OWNER)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; one that exists stays as it is. Raise `OSError`."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
