"""The files that xtquant's native code writes when it crashes on Windows: 5 MB each, into the current folder.

A process that crashes at each start would fill the disk with them, and each may hold what was in memory.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

# The local time of the crash, to the millisecond; before ten o'clock the hour has one digit.
_NAME = re.compile(r"\d{16,17}\.dmp", re.ASCII)


def keep_newest(folder: Path, since: float) -> None:
    """Remove all but the newest dump in `folder`, of those that were written after `since` (s since 1970)."""
    found: list[tuple[float, Path]] = []
    try:
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name) and (written := path.stat().st_mtime) >= since:
                found.append((written, path))
        for _, path in sorted(found)[:-1]:
            path.unlink()
    except OSError as exc:
        # Another program may have the file open; the next crash tries again.
        logger.debug("cannot look after the dumps of native code in %s: %s", folder, exc)
    if found:
        logger.warning("the crash of native code is described in %s", max(found)[1])
