"""How many bytes of answers may wait in libzmq for connections that do not read. Pure.

libzmq counts messages, for each connection alone, and does not tell what has left. A message that it took shows that
those `HELD` before it on the same connection have left. So the newest ones of each connection are counted, for as long
as the system keeps a connection that reads nothing.
"""

from __future__ import annotations

from collections import deque

# Bytes from which on answers are to be small.
MOST_BYTES = 64 * 1024 * 1024
# Messages of one connection that libzmq holds beyond its mark of 4 (measured: 8 with the mark).
HELD = 8
# Seconds after which the newest messages of a connection were read, or the connection has ended (see `UNREAD_MS` of
# `qmt_bridge.sockets`).
SECONDS = 60.0


class Unread:
    """The newest messages of each connection."""

    def __init__(self) -> None:
        # By connection; the one that was sent to longest ago comes first.
        self._sent: dict[bytes, tuple[float, deque[int]]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def is_full(self) -> bool:
        """Return whether answers are to be small."""
        return self._size >= MOST_BYTES

    def sent(self, name: bytes, size: int, now: float) -> None:
        """Count a message of `size` bytes that was sent to the connection `name`."""
        _, sizes = self._sent.pop(name, (now, deque()))
        sizes.append(size)
        self._size += size
        while len(sizes) > HELD:
            self._size -= sizes.popleft()
        self._sent[name] = (now, sizes)
        self.expire(now)

    def expire(self, now: float) -> None:
        """Forget what was sent so long ago that it was read, or its connection has ended."""
        while self._sent:
            name = next(iter(self._sent))
            at, sizes = self._sent[name]
            if now - at < SECONDS:
                return
            del self._sent[name]
            self._size -= sum(sizes)

    def gone(self, name: bytes) -> None:
        """Forget a connection that is closed."""
        _, sizes = self._sent.pop(name, (0.0, ()))
        self._size -= sum(sizes)
