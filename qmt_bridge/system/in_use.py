"""Files that another program has open for a moment.

A virus scanner, an indexer or a backup opens each file that was written. On Windows it cannot be replaced, renamed or
deleted meanwhile, and one that is just being replaced cannot be read. Elsewhere all of this works at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Seconds until a file counts as not to be had: a scanner is done within some hundred milliseconds.
PATIENCE = 1.0
_AGAIN = 0.02
# ERROR_ACCESS_DENIED, which also stands for a file that is being deleted, ERROR_SHARING_VIOLATION,
# ERROR_LOCK_VIOLATION and ERROR_USER_MAPPED_FILE.
_IN_USE = frozenset((5, 32, 33, 1224))


def patiently(act: Callable[[], Result], seconds: float = PATIENCE) -> Result:
    """Return what `act` returns; call it again for at most `seconds` while Windows says that a file is in use.

    Raise the `OSError` of the last call. Blocks the thread.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return act()
        except OSError as exc:
            # Only Windows has this number. A file without the right to it looks the same, and is refused later.
            if getattr(exc, "winerror", None) not in _IN_USE or time.monotonic() >= until:
                raise
        time.sleep(_AGAIN)
