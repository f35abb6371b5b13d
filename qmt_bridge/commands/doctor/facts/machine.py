"""Facts about the Python version and the disk of this machine."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qmt_bridge.commands.doctor.facts.error_text import error_text
from qmt_bridge.process.other_project import NAME


def other_version() -> str:
    """Return the version of the other project with our import name that is installed too; empty without it."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return ""


def bits() -> int:
    return 64 if sys.maxsize > 1 << 32 else 32


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(path for path in _upwards(folder) if os.path.isdir(path))).free


def write_error(folder: Path) -> str | None:
    """Return why `folder`, which may not exist yet, cannot be written; None if it can."""
    try:
        # Path.exists would raise for a folder without read permission.
        tempfile.TemporaryFile(dir=next(path for path in _upwards(folder) if os.path.exists(path))).close()
    except OSError as exc:
        return error_text(exc)
    return None


def _upwards(folder: Path) -> tuple[Path, ...]:
    return folder, *folder.absolute().parents
