"""One client's bounded queue, and what it keeps when the client is slow.

Pure. Every frame is kept until there is a backlog (`CONFLATE_FROM`). From then until it is empty the queue keeps only
the newest version of each thing (`Behaviour.versions`): the newest tick of each code, the newest state of each bar.
All bars, and records that are no version of another (trade events, prints, orders, control frames), are kept up to
`limit` bytes; a client further behind is disconnected. The close shows to every client that data is missing, so that it
can ask again. A client that has not opted in could not see that single records were left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from gateway.sending.merged import OVERHEAD, Merged
from gateway.sending.newest import Tables
from gateway.sending.pool import Pool
from gateway.sending.view import View
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, LastValue
from qmt_bridge.wire.topics import Behaviour

# Bytes of a backlog: half a second of five hundred busy stocks. A client further behind needs the newest values. A few
# frames are no backlog, even if they are large, as a market's snapshot or depth of a thousand levels.
CONFLATE_FROM = 256 * 1024
CONFLATE_FRAMES = 8


class Item(NamedTuple):
    """A frame for one client, and the view in which the client is sent it."""

    frame: Frame
    behaviour: Behaviour
    view: View | None = None
    # The subscription. Frames of one that was ended and of the next one of the same topic are never merged: the acks
    # between them would be overtaken. None: the topic and the view stand for it.
    source: Hashable = None

    @property
    def key(self) -> Hashable:
        """Return what is equal for the frames that may be merged; they are sent in the view of the newest."""
        return (self.frame.topic, self.view) if self.source is None else self.source

    def payload(self) -> bytes:
        """Return the payload of the WebSocket frame; raise `WireError` if it cannot be rendered."""
        return self.frame.body if self.view is None else self.view.of(self.frame).payload

    def framed(self) -> bytes:
        """Return the whole WebSocket frame, the same bytes for all clients with this view."""
        return self.frame.framed if self.view is None else self.view.of(self.frame).framed


class Waiting(NamedTuple):
    """The waiting frames of one subscription in one view."""

    key: Hashable
    merged: Merged
    behaviour: Behaviour
    view: View | None

    @property
    def size(self) -> int:
        """Return the bytes that wait."""
        return self.merged.size

    @property
    def kept(self) -> int:
        """Return the bytes that no newer frame can replace."""
        return self.merged.kept

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self.merged)

    def take(self, limit: int) -> Iterator[Item]:
        """Yield the frames to send now, some `limit` bytes of them; the rest goes on waiting."""
        for frame in self.merged.take(limit):
            yield Item(frame, self.behaviour, self.view)


class Parts:
    """The waiting parts of one last value, for a client whose stream is never conflated (mode "all").

    A market's may be larger than the outbox. It does not count as what may not be lost, since a newer last value
    replaces it, and its parts, which all clients share, are not copied.
    """

    __slots__ = ("_items", "key", "position", "size")

    # No byte of it is irreplaceable.
    kept = 0

    def __init__(self, first: Item) -> None:
        self.key = first.key
        self.position = (first.frame.epoch, first.frame.seq)
        self.size = 0
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        """Return how many parts wait."""
        return len(self._items)

    def add(self, item: Item) -> None:
        """Take one more part."""
        self._items.append(item)
        self.size += _size(item)

    def take(self, limit: int) -> Iterator[Item]:
        """Yield the parts to send now, at least one; the rest goes on waiting."""
        while self._items and (limit > 0):
            item = self._items.popleft()
            self.size -= _size(item)
            limit -= _size(item)
            yield item


class Outbox:
    """The queue of one client. `skipped` counts frames and records that a newer one replaced."""

    __slots__ = (
        "_conflated",
        "_counted",
        "_draining",
        "_kept",
        "_marked",
        "_marked_at",
        "_paced",
        "_pool",
        "_queue",
        "_serial",
        "_size",
        "answers",
        "binary",
        "deflated",
        "limit",
        "overflowed",
        "skipped",
        "told",
        "unfit",
    )

    def __init__(self, limit: int, binary: bool = False, pool: Pool | None = None) -> None:
        """Keep up to `limit` bytes that no newer frame can replace; count all that waits in `pool`, if there is one."""
        self.limit = limit
        # Whether frames are binary, and whether they may be compressed.
        self.binary = binary
        self.deflated = False
        self.skipped = 0
        # Frames that could not be rendered and were left out.
        self.unfit = 0
        # True once data that may not be lost did not fit: the socket has to be closed with 1013.
        self.overflowed = False
        # The bytes of control and error frames that wait, and of all that there were.
        self.answers = 0
        self.told = 0
        # None while nothing waits: an empty deque takes 624 bytes, and most clients have nothing waiting.
        self._queue: deque[Item | bytes] | None = None
        self._conflated: dict[Hashable, Item | Waiting | Parts | bytes] | None = None
        self._size = 0
        # What the pacers of the client's subscriptions keep, which only counts for the pool.
        self._paced = 0
        # The outboxes of the worker, and the bytes that are counted there.
        self._pool = pool
        self._counted = 0
        # The bytes that no newer frame can replace; counted only while conflating.
        self._kept = 0
        self._serial = 0
        # The market of which a part was taken. It is first until the rest was taken too: what came behind it, such as
        # the end of its snapshot, may not overtake it. So it takes newer records of its codes and no other codes.
        self._draining: Waiting | Parts | None = None
        # How many entries of the queue have waited since `_marked_at`; they are the first ones.
        self._marked = 0
        self._marked_at = 0.0

    def __len__(self) -> int:
        """Return how many entries wait."""
        return len(self._conflated if self._conflated is not None else self._queue or ()) + bool(self._draining)

    @property
    def size(self) -> int:
        """Return the bytes that wait, and those that pacers keep."""
        return self._size + self._paced

    def keep_paced(self, size: int) -> None:
        """Count bytes that a pacer keeps, or keeps no longer."""
        self._paced += size
        self._count()

    @property
    def conflating(self) -> bool:
        """Return whether the queue conflates; this ends when everything has been taken."""
        return self._conflated is not None

    def put_control(self, payload: bytes) -> None:
        """Queue a control or error frame; it is never replaced."""
        self.answers += len(payload)
        self.told += len(payload)
        if self._conflated is None:
            self._append(payload)
        else:
            self._merge(payload)
        self._count()

    def put(self, item: Item) -> None:
        """Queue a frame by the rule for its kind of topic."""
        if self._conflated is None:
            self._append(item)
        else:
            self._merge(item)
        self._count()

    def take(self, limit: int, framed: bool = False, seqs: list[int] | None = None) -> list[bytes]:
        """Return what waits, in order: payloads, or with `framed` whole WebSocket frames.

        At least one and about `limit` bytes, because a newer frame can no longer replace what has been taken. `seqs`
        is given the ``seq`` of each, 0 if it has none.
        """
        payloads: list[bytes] = []
        taken = 0
        while taken < limit:
            if self._conflated is None:
                if not self._queue:
                    self._queue = None
                    break
                oldest = self._queue.popleft()
                self._marked = max(0, self._marked - 1)
                self._size -= _size(oldest)
                entry: Item | bytes | list[Item] = oldest
            else:
                if not self._conflated and self._draining is None:
                    self._conflated = None
                    continue
                entry = self._pop_conflated(limit - taken)
            rendered = self._rendered(entry, framed, seqs)
            payloads += rendered
            taken += sum(map(len, rendered))
        if not self._conflated and self._draining is None:
            self._conflated = None
        self._count()
        return payloads

    def conflate(self) -> None:
        """Keep only the newest versions, until everything was taken."""
        if self._conflated is None:
            self._conflate()
            self._count()

    def close(self) -> None:
        """Drop all that waits; the client is gone."""
        self._queue = self._draining = None
        self._conflated = None
        self._size = self._paced = self._kept = self._marked = self.answers = 0
        self._count()
        self._pool = None

    def _count(self) -> None:
        if self._pool is not None and self.size != self._counted:
            self._pool.add(self.size - self._counted)
            self._counted = self.size

    def conflate_from(self, age: float, now: float) -> None:
        """Keep only the newest versions, until everything was taken, if the oldest frame waits for `age` seconds.

        It has waited for `age` at least and for twice as long at most: the time of each frame is not kept.
        """
        if self._conflated is not None or not self._queue:
            return
        if not self._marked:
            self._marked = len(self._queue)
            self._marked_at = now
        elif now - self._marked_at >= age:
            self.conflate()

    def _pop_conflated(self, limit: int) -> Item | bytes | list[Item]:
        """Return the first entry that waits, but of a market no more than `limit` bytes at a time."""
        assert self._conflated is not None
        if self._draining is not None:
            entry: Item | Waiting | Parts | bytes = self._draining
            self._draining = None
        else:
            entry = self._conflated.pop(next(iter(self._conflated)))
        self._size -= _size(entry)
        self._kept -= _kept(entry)
        if not isinstance(entry, Waiting | Parts):
            return entry
        items = list(entry.take(limit))
        if entry:
            self._draining = entry
            self._size += _size(entry)
            self._kept += _kept(entry)
        return items

    def _rendered(self, entry: Item | bytes | list[Item], framed: bool, seqs: list[int] | None) -> list[bytes]:
        if isinstance(entry, bytes):
            self.answers -= len(entry)
            if seqs is not None:
                seqs.append(0)
            return [frames.framed(entry, self.binary, self.deflated) if framed else entry]
        rendered = []
        for item in entry if isinstance(entry, list) else [entry]:
            try:
                rendered.append(item.framed() if framed else item.payload())
            except WireError:
                self.unfit += 1
            else:
                if seqs is not None:
                    seqs.append(item.frame.seq)
        return rendered

    def _append(self, entry: Item | bytes) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(entry)
        self._size += _size(entry)
        if self._size > self.limit or (self._size > CONFLATE_FROM and len(self._queue) > CONFLATE_FRAMES):
            self._conflate()

    def _conflate(self) -> None:
        queue, self._queue = self._queue, None
        self._marked = 0
        self._conflated = {}
        self._size = self._kept = 0
        for entry in queue or ():
            self._merge(entry)

    def _merge(self, entry: Item | bytes) -> None:
        assert self._conflated is not None
        if isinstance(entry, Item) and entry.behaviour.versions == "none":
            self._seal(entry.key)
        if isinstance(entry, Item) and entry.behaviour.versions == "none" and isinstance(entry.frame, LastValue):
            self._put_part(entry)
        elif isinstance(entry, bytes) or entry.behaviour.versions == "none":
            self._serial += 1
            self._conflated[self._serial] = entry
            self._size += _size(entry)
            self._kept += _kept(entry)
        else:
            frame, behaviour, view, _ = entry
            key = entry.key
            if isinstance(self._draining, Waiting) and self._draining.key == key:
                rest = self._update(self._draining.merged, frame)
                if rest is None:
                    return
                frame = rest
            waiting = self._conflated.get(key)
            if isinstance(waiting, Waiting) and waiting.view is not view:
                waiting = self._conflated[key] = waiting._replace(view=view)
            elif not isinstance(waiting, Waiting):
                waiting = self._conflated[key] = Waiting(key, Merged(behaviour.versions, self._tables), behaviour, view)
                self._size += OVERHEAD
            merged = waiting.merged
            size, kept = merged.size, merged.kept
            self.skipped += merged.add(frame)
            self._size += merged.size - size
            self._kept += merged.kept - kept
        self.overflowed = self.overflowed or self._kept > self.limit

    @property
    def _tables(self) -> Tables | None:
        return None if self._pool is None else self._pool.tables

    def _seal(self, key: Hashable) -> None:
        """Merge nothing more into what waits of a subscription: a frame that may not be left out follows it."""
        assert self._conflated is not None
        waiting = self._conflated.pop(key, None)
        if waiting is not None:
            before = self._conflated.pop(("sealed", key), None)
            if before is not None:
                self._serial += 1
                self._conflated[self._serial] = before
            self._conflated["sealed", key] = waiting
        if isinstance(self._draining, Waiting) and self._draining.key == key:
            self._draining = self._draining._replace(key=None)

    def drop(self, source: Hashable) -> None:
        """Forget what waits of a subscription that was ended: each new one could add as much again."""
        for key in (source, ("last value", source), ("sealed", source)):
            entry = self._conflated.pop(key, None) if self._conflated is not None else None
            if entry is not None:
                self._size -= _size(entry)
                self._kept -= _kept(entry)
        if self._draining is not None and self._draining.key is source:
            self._size -= _size(self._draining)
            self._kept -= _kept(self._draining)
            self._draining = None
        self._count()

    def _put_part(self, item: Item) -> None:
        """Queue a part of a last value; the parts of an older one are dropped."""
        assert self._conflated is not None
        key, position = ("last value", item.key), (item.frame.epoch, item.frame.seq)
        draining, parts = self._draining, self._conflated.get(key)
        if isinstance(draining, Parts) and draining.key == item.key:
            parts = draining
        if isinstance(parts, Parts) and parts.position != position:
            self._size -= _size(parts)
            self.skipped += len(parts)
            if parts is draining:
                self._draining = None
            else:
                del self._conflated[key]
            parts = None
        if not isinstance(parts, Parts):
            parts = self._conflated[key] = Parts(item)
            self._size += OVERHEAD
        parts.add(item)
        self._size += _size(item)

    def _update(self, merged: Merged, frame: Frame) -> Frame | None:
        size, kept = merged.size, merged.kept
        replaced, rest = merged.update(frame)
        self.skipped += replaced
        self._size += merged.size - size
        self._kept += merged.kept - kept
        return rest


def _size(entry: Item | Waiting | Parts | bytes) -> int:
    if isinstance(entry, bytes):
        return len(entry) + OVERHEAD
    if isinstance(entry, Waiting | Parts):
        return entry.size + OVERHEAD
    return len(entry.frame.body) + OVERHEAD


def _kept(entry: Item | Waiting | Parts | bytes) -> int:
    return entry.kept if isinstance(entry, Waiting | Parts) else _size(entry)
