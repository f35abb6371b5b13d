"""Which trade events were published, by their account and the `id` that their pusher gave them. Pure.

An identity is kept for three days after the event was published or came again, and no longer than there is room, or
than the journal keeps events. An older one cannot be told from a new one, so events that say that they are older are
refused. Times are in ms since 1970.
"""

from __future__ import annotations

import hashlib

WINDOW_MS = 3 * 24 * 3600 * 1000
# Some 120 bytes each (CPython 3.11): 60 MB.
MOST = 500_000
_HOUR_MS = 3600 * 1000
_DIGEST_BYTES = 16


class Identities:
    """The events of the last days."""

    def __init__(self, window_ms: int = WINDOW_MS, *, most: int = MOST) -> None:
        self._window_ms = window_ms
        self._most = most
        # By digest the hour in which it was published or came again; the oldest is the first.
        self._hours: dict[bytes, int] = {}
        # The newest hour of which an identity was forgotten.
        self._forgotten = -1
        self._now = 0

    def __len__(self) -> int:
        return len(self._hours)

    def note(self, account: str, identity: str, now_ms: int) -> bool:
        """Note an event at `now_ms`; return whether it is new."""
        # Hours never go back, so the first one is the oldest.
        self._now = max(self._now, now_ms)
        hour = self._now // _HOUR_MS
        digest = _digest(account, identity)
        # What is older than the window is new again, whether something came since then or not.
        self._expire()
        before = self._hours.pop(digest, None)
        self._hours[digest] = hour
        self._expire()
        return before is None

    def restore(self, account: str, identity: str, at_ms: int) -> None:
        """Note an event of the journal, oldest first, before any `note`."""
        self.note(account, identity, at_ms)

    def is_late(self, time_ms: int, now_ms: int) -> bool:
        """Return whether an event of this time may have been published so long ago that its identity is forgotten."""
        return time_ms < now_ms - self._window_ms or time_ms // _HOUR_MS <= self._forgotten

    def _expire(self) -> None:
        oldest = (self._now - self._window_ms) // _HOUR_MS
        while self._hours:
            digest = next(iter(self._hours))
            hour = self._hours[digest]
            if len(self._hours) <= self._most:
                if hour >= oldest:
                    return
            else:
                self._forgotten = max(self._forgotten, hour)
            del self._hours[digest]


def _digest(account: str, identity: str) -> bytes:
    whole = f"{len(account)}:{account}{identity}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(whole, digest_size=_DIGEST_BYTES).digest()
