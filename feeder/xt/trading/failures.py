"""Failures: count and log what could not be read, published or called. Any thread may use it."""

from __future__ import annotations

import logging
import threading

logger = logging.getLogger(__name__)


class Failures:
    """`count` is the number of events, fields and calls that failed."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._fields: set[tuple[str, str]] = set()

    def note(self, what: str) -> None:
        """Count and log the exception that is being handled."""
        with self._lock:
            self.count += 1
        logger.exception("%s failed", what)

    def note_field(self, event: str, name: str, how: str) -> None:
        """Count a field of an event that could not be read in full; log only the first one of each name."""
        with self._lock:
            self.count += 1
            is_new = (event, name) not in self._fields
            self._fields.add((event, name))
        if is_new:
            logger.error("field %s of %s events %s", name, event, how)
