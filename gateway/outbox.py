"""One client's bounded queue, and what it keeps when the client is slow.

Pure. Every frame is kept until a backlog waits (`CONFLATE_FROM`). From then until it is empty the queue keeps the
newest per topic, of a market the newest per code, and up to `limit` bytes every trade event and control frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import msgspec

from gateway.view import View
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Behaviour

# Half a second of five hundred busy stocks: who is further behind is better served with the newest. A few frames are no
# backlog, however large: a market's snapshot, or depth of a thousand levels.
CONFLATE_FROM = 256 * 1024
CONFLATE_FRAMES = 8
# What a queued frame costs besides its body.
_OVERHEAD = 64


class Item(NamedTuple):
    """A frame on its way to one client, and how the client wants to see it."""

    frame: Frame
    behaviour: Behaviour
    view: View | None = None

    def payload(self) -> bytes:
        """Return what the WebSocket frame carries; raise `WireError` if it cannot be rendered."""
        return self.frame.json if self.view is None else self.view.of(self.frame).payload

    def framed(self) -> bytes:
        """Return the whole WebSocket frame, which clients of one view share."""
        return self.frame.framed if self.view is None else self.view.of(self.frame).framed


class Merged:
    """The newest record per code of a whole-market stream, not yet sent."""

    __slots__ = ("_newest", "_view", "by_code", "size")

    def __init__(self, view: View | None = None) -> None:
        self.by_code: dict[str, msgspec.Raw] = {}
        self.size = 0
        self._view = view
        self._newest: Frame | None = None

    def add(self, frame: Frame) -> int:
        """Take the frame's records; return how many older ones they replaced."""
        replaced = 0
        for code, record in frames.split(frame.body).items():
            older = self.by_code.get(code)
            if older is not None:
                replaced += 1
                self.size -= len(memoryview(older))
            # A copy, since a Raw is a view that would keep the whole batch alive.
            self.by_code[code] = record.copy()
            self.size += len(memoryview(record))
        self._newest = frame.with_body(b"")
        return replaced

    def batches(self) -> Iterator[Frame]:
        """Yield the records in batches as the feeder makes them, with the stamp of the newest frame."""
        if self._newest is not None:
            yield from map(self._newest.with_body, frames.join(self.by_code))

    def payloads(self) -> Iterator[bytes]:
        """Yield what the WebSocket frames carry."""
        for frame in self.batches():
            yield frame.json if self._view is None else self._view.render(frame)


class Outbox:
    """What waits for one client. `skipped` counts frames and records that a newer one replaced."""

    __slots__ = (
        "_conflated",
        "_queue",
        "_serial",
        "_size",
        "binary",
        "deflated",
        "limit",
        "overflowed",
        "skipped",
        "unfit",
    )

    def __init__(self, limit: int, binary: bool = False) -> None:
        self.limit = limit
        # Whether frames are binary ones, and whether they may be compressed.
        self.binary = binary
        self.deflated = False
        self.skipped = 0
        # Frames that could not be rendered; they cost nothing but themselves.
        self.unfit = 0
        # Set once something that may not be lost did not fit: the socket has to be closed with 1013.
        self.overflowed = False
        # None while nothing waits: an empty deque takes 624 bytes, and most clients have nothing waiting.
        self._queue: deque[Item | bytes] | None = None
        self._conflated: dict[Hashable, Item | Merged | bytes] | None = None
        self._size = 0
        self._serial = 0

    def __len__(self) -> int:
        """Return how many entries wait."""
        return len(self._conflated if self._conflated is not None else self._queue or ())

    @property
    def size(self) -> int:
        """Return the bytes that wait."""
        return self._size

    @property
    def conflating(self) -> bool:
        """Return whether an episode of conflation is under way; it ends when everything was taken."""
        return self._conflated is not None

    def put_control(self, payload: bytes) -> None:
        """Queue a control or error frame; it is never replaced."""
        if self._conflated is None:
            self._append(payload)
        else:
            self._merge(payload)

    def put(self, item: Item) -> None:
        """Queue a frame by the rule of its kind of topic."""
        if self._conflated is None:
            self._append(item)
        else:
            self._merge(item)

    def take(self, framed: bool = False) -> list[bytes]:
        """Return what waits, in order: what frames are to carry, or `framed` whole WebSocket frames.

        About a megabyte at a time: what is taken can no longer be replaced by something newer.
        """
        payloads: list[bytes] = []
        taken = 0
        while taken < 1024 * 1024:
            if self._conflated is None:
                if not self._queue:
                    self._queue = None
                    break
                entry: Item | Merged | bytes = self._queue.popleft()
            else:
                if not self._conflated:
                    self._conflated = None
                    continue
                key = next(iter(self._conflated))
                entry = self._conflated.pop(key)
            self._size -= _size(entry)
            try:
                rendered = self._render(entry, framed)
            except WireError:
                self.unfit += 1
                continue
            payloads += rendered
            taken += sum(map(len, rendered))
        if self._conflated is not None and not self._conflated:
            self._conflated = None
        return payloads

    def _render(self, entry: Item | Merged | bytes, framed: bool) -> list[bytes]:
        if isinstance(entry, Item):
            return [entry.framed() if framed else entry.payload()]
        payloads = [entry] if isinstance(entry, bytes) else list(entry.payloads())
        return [frames.framed(payload, self.binary, self.deflated) for payload in payloads] if framed else payloads

    def _append(self, entry: Item | bytes) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(entry)
        self._size += _size(entry)
        if self._size > self.limit or (self._size > CONFLATE_FROM and len(self._queue) > CONFLATE_FRAMES):
            self._conflate()

    def _conflate(self) -> None:
        queue, self._queue = self._queue, None
        self._conflated = {}
        self._size = 0
        for entry in queue or ():
            self._merge(entry)

    def _merge(self, entry: Item | bytes) -> None:
        assert self._conflated is not None
        self._serial += 1
        if isinstance(entry, bytes) or entry.behaviour.versions == "none":
            self._conflated[self._serial] = entry
            self._size += _size(entry)
            self.overflowed = self.overflowed or self._size > self.limit
            return
        key = (entry.frame.topic, entry.view)
        older = self._conflated.get(key)
        if entry.behaviour.keeps == "by_code":
            merged = older if isinstance(older, Merged) else Merged(entry.view)
            self._size -= _size(merged) if merged is older else 0
            try:
                self.skipped += merged.add(entry.frame)
            except WireError:
                self.unfit += 1
            self._conflated[key] = merged
            self._size += _size(merged)
            return
        if isinstance(older, Item):
            self.skipped += 1
            self._size -= _size(older)
        self._conflated[key] = entry
        self._size += _size(entry)


def _size(entry: Item | Merged | bytes) -> int:
    if isinstance(entry, bytes):
        return len(entry) + _OVERHEAD
    if isinstance(entry, Merged):
        return entry.size + _OVERHEAD * (len(entry.by_code) + 1)
    return len(entry.frame.body) + _OVERHEAD
