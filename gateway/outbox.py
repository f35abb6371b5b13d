"""One client's bounded queue, and what it keeps when the client is slow.

Pure. Order is kept until `limit` bytes wait; from then until it is empty the queue keeps the newest per topic,
the newest per code of a whole-market stream, and every trade event and control frame, for which it overflows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Behaviour

# What a queued frame costs besides its body.
_OVERHEAD = 64


class Item:
    """A frame on its way to one client; `prefix` is spliced in front of the body's fields (formula updates)."""

    __slots__ = ("behaviour", "frame", "prefix")

    def __init__(self, frame: Frame, behaviour: Behaviour, prefix: bytes = b"") -> None:
        self.frame = frame
        self.behaviour = behaviour
        self.prefix = prefix

    def render(self, framed: bool) -> bytes:
        """Return the JSON text; `framed`, as a WebSocket frame, which clients share unless there is a prefix."""
        if not self.prefix:
            return self.frame.text_frame if framed else self.frame.json
        text = self.prefix + self.frame.json[1:]
        return frames.text_frame(text) if framed else text


class Merged:
    """The newest record per code of a whole-market stream, not yet sent."""

    __slots__ = ("by_code", "size")

    def __init__(self) -> None:
        self.by_code: dict[str, msgspec.Raw] = {}
        self.size = 0

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
        return replaced

    def render(self) -> Iterator[bytes]:
        """Yield the JSON texts, in batches as the feeder makes them."""
        for body in frames.join(self.by_code):
            yield frames.render(body)


class Outbox:
    """What waits for one client. `skipped` counts frames and records that a newer one replaced."""

    __slots__ = ("_conflated", "_queue", "_serial", "_size", "limit", "overflowed", "skipped", "unfit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0
        # Frames that could not be rendered; they cost nothing but themselves.
        self.unfit = 0
        # Set once something that may not be lost did not fit: the socket has to be closed with 1013.
        self.overflowed = False
        self._queue: deque[Item | bytes] = deque()
        self._conflated: dict[Hashable, Item | Merged | bytes] | None = None
        self._size = 0
        self._serial = 0

    def __len__(self) -> int:
        """Return how many entries wait."""
        return len(self._queue) if self._conflated is None else len(self._conflated)

    @property
    def size(self) -> int:
        """Return the bytes that wait."""
        return self._size

    @property
    def conflating(self) -> bool:
        """Return whether an episode of conflation is under way; it ends when everything was taken."""
        return self._conflated is not None

    def put_control(self, text: bytes) -> None:
        """Queue a control or error frame; it is never replaced."""
        if self._conflated is None:
            self._queue.append(text)
            self._size += len(text) + _OVERHEAD
            if self._size > self.limit:
                self._conflate()
        else:
            self._merge(text)

    def put(self, item: Item) -> None:
        """Queue a frame by the rule of its kind of topic."""
        if self._conflated is None:
            self._queue.append(item)
            self._size += len(item.frame.body) + _OVERHEAD
            if self._size > self.limit:
                self._conflate()
        else:
            self._merge(item)

    def take(self, framed: bool = False) -> list[bytes]:
        """Return what waits as JSON texts, in order, or `framed` as WebSocket frames.

        About a megabyte at a time: what is taken can no longer be replaced by something newer.
        """
        texts: list[bytes] = []
        taken = 0
        while taken < 1024 * 1024:
            if self._conflated is None:
                if not self._queue:
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
                rendered = _render(entry, framed)
            except WireError:
                self.unfit += 1
                continue
            texts += rendered
            taken += sum(map(len, rendered))
        if self._conflated is not None and not self._conflated:
            self._conflated = None
        return texts

    def _conflate(self) -> None:
        queue, self._queue = self._queue, deque()
        self._conflated = {}
        self._size = 0
        for entry in queue:
            self._merge(entry)

    def _merge(self, entry: Item | bytes) -> None:
        assert self._conflated is not None
        self._serial += 1
        if isinstance(entry, bytes) or entry.behaviour.when_full == "strict":
            self._conflated[self._serial] = entry
            self._size += _size(entry)
            self.overflowed = self.overflowed or self._size > self.limit
            return
        key = (entry.frame.topic, entry.prefix)
        older = self._conflated.get(key)
        if entry.behaviour.when_full == "newest_per_code":
            merged = older if isinstance(older, Merged) else Merged()
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


def _render(entry: Item | Merged | bytes, framed: bool) -> list[bytes]:
    if isinstance(entry, Item):
        return [entry.render(framed)]
    texts = [entry] if isinstance(entry, bytes) else list(entry.render())
    return [frames.text_frame(text) for text in texts] if framed else texts
