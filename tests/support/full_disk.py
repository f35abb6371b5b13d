"""A disk that takes no new file for a while, also for root, whom no mode keeps from writing."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from qmt_bridge import private


@contextmanager
def full_disk() -> Iterator[None]:
    """Let nothing be written by `qmt_bridge.private` within."""

    def refuse(path: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with mock.patch.object(private, "make_part", refuse):
        yield
