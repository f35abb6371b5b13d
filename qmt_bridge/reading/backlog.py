"""What a client has read and its caller has not taken: every frame, or the newest values while the caller is behind.

Pure; `now` is in seconds of any clock. Every frame is kept until one has waited for `PATIENCE`. From then until the
caller has taken everything, a newer record replaces the older one that it is a version of (wire.topics.Versions), as
in the gateway's outbox. What is no version of anything waits in its order. Beyond its bounds the backlog is `full`, and
the client stops reading: TCP then tells the gateway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Literal, NamedTuple

import msgspec

from qmt_bridge.wire.topics import Versions

# Seconds that a frame may wait before the caller counts as behind.
PATIENCE = 0.5
# Seconds between two notices of what was skipped, to a caller that stays behind.
TELL_EVERY = 1.0
# Bytes that wait before the client stops reading: where newer records replace older ones, and where all have to wait.
NEWEST_BYTES = 16 * 1024 * 1024
ALL_BYTES = 256 * 1024
# Bytes for which an entry is counted besides its own: bytes object, tuple, key and place in a dict.
OVERHEAD = 256


class Lag(NamedTuple):
    """Something to tell the caller: it is behind, so many records were skipped since the last notice, or it is not."""

    state: Literal["lagging", "skipped", "caught_up"]
    # Of `lagging` and `caught_up`: what was skipped since it fell behind, by the gateway too.
    skipped: int


class _Bar(msgspec.Struct):
    time: int | float | str | None = None


class _Values(msgspec.Struct):
    timelist: list[int | float | str] = []
    outputs: dict[str, msgspec.Raw] = {}


class _Formula(msgspec.Struct):
    data: _Values


class _Shown(NamedTuple):
    """The bars and outputs for which a formula's frame has values."""

    times: frozenset[int | float | str]
    names: frozenset[str]

    def covers(self, older: _Shown) -> bool:
        """Return whether a frame with these values replaces an older one; a frame without bars replaces no bars."""
        return bool(self.times) == bool(older.times) and self.times >= older.times and self.names >= older.names


class _Entry(NamedTuple):
    # A whole frame, or the value of one code: a list of records, or a record.
    value: bytes
    # None: `value` is a whole frame.
    code: str | None = None


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_records = msgspec.json.Decoder(list[msgspec.Raw])
_bar = msgspec.json.Decoder(_Bar)
_formula = msgspec.json.Decoder(_Formula)


class Backlog:
    """The frames of one connection that wait for the caller, as the JSON that was received."""

    def __init__(self, versions: Versions, *, joined: bool = False) -> None:
        """Keep what `versions` says; `joined`: a frame has many codes (whole markets), not one."""
        self.lagging = False
        self._versions = versions
        self._joined = joined
        self._limit = ALL_BYTES if versions == "none" else NEWEST_BYTES
        self._size = 0
        # While the caller is not behind: frames, with the time at which each was read.
        self._queue: deque[tuple[bytes, float]] = deque()
        # While it is: the newest version of each thing, by what it is a version of, oldest thing first.
        self._newest: dict[Hashable, _Entry] = {}
        self._shown: dict[int, _Shown] = {}
        self._serial = 0
        self._news: deque[Lag] = deque()
        # Records skipped since the caller fell behind, by the gateway too, and those of ours that it was not told of.
        self._episode = 0
        self._untold = 0
        self._told_at = 0.0

    @property
    def size(self) -> int:
        """Return the bytes that wait."""
        return self._size

    @property
    def full(self) -> bool:
        """Return whether to stop reading until the caller takes something."""
        return self._size > self._limit

    def put(self, frame: bytes, now: float) -> None:
        """Take a frame that was read."""
        if self.lagging and self._versions != "none":
            self._merge(frame)
        else:
            self._queue.append((frame, now))
            self._size += len(frame) + OVERHEAD
        self._look(now)

    def take(self, now: float) -> bytes | Lag | None:
        """Return what the caller gets next, a frame or a notice; None if nothing waits."""
        self._look(now)
        if self._untold and now - self._told_at >= TELL_EVERY:
            self._tell_skipped(now)
        if self._news:
            return self._news.popleft()
        if self._queue:
            frame, _ = self._queue.popleft()
            self._size -= len(frame) + OVERHEAD
            return frame
        if self._newest:
            return self._take_newest()
        if self.lagging:
            self.lagging = False
            self._tell_skipped(now)
            self._news.append(Lag("caught_up", self._episode))
            return self._news.popleft()
        return None

    def server_skipped(self, count: int) -> None:
        """Count what the gateway says it left out."""
        if self.lagging:
            self._episode += count

    def _look(self, now: float) -> None:
        """Begin to keep the newest only, if a frame has waited too long or too much waits."""
        if self.lagging or not self._queue or (now - self._queue[0][1] < PATIENCE and not self.full):
            return
        self.lagging = True
        self._episode = 0
        if self._versions != "none":
            waiting, self._queue = self._queue, deque()
            self._size = 0
            for frame, _ in waiting:
                self._merge(frame)
        self._news.append(Lag("lagging", self._episode))
        self._told_at = now

    def _tell_skipped(self, now: float) -> None:
        self._told_at = now
        if self._untold:
            self._news.append(Lag("skipped", self._untold))
            self._untold = 0

    def _take_newest(self) -> bytes:
        taken: list[_Entry] = []
        while self._newest:
            key = next(iter(self._newest))
            if taken and self._newest[key].code is None:
                break
            entry = self._newest.pop(key)
            self._size -= len(entry.value) + OVERHEAD
            if entry.code is None:
                if isinstance(key, int):
                    self._shown.pop(key, None)
                return entry.value
            taken.append(entry)
            if not self._joined:
                break
        return b"{%b}" % b",".join(msgspec.json.encode(entry.code) + b":" + entry.value for entry in taken)

    def _merge(self, frame: bytes) -> None:
        """Keep what is newest in `frame`, and whole what is no version of anything."""
        try:
            fields = _fields.decode(frame)
            kept = list(self._parts(frame, fields)) if "type" not in fields or self._versions == "values" else []
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Whatever it is, the stream judges it when its turn comes.
            kept = []
        if not kept:
            self._serial += 1
            kept = [(self._serial, _Entry(frame))]
        for key, entry in kept:
            older = self._newest.get(key)
            if older is not None:
                self._size -= len(older.value) + OVERHEAD
                self._skip(1)
            self._newest[key] = entry
            self._size += len(entry.value) + OVERHEAD

    def _parts(self, frame: bytes, fields: dict[str, msgspec.Raw]) -> Iterator[tuple[Hashable, _Entry]]:
        match self._versions:
            case "topic" if "status" not in fields:
                yield "", _Entry(frame)
            case "code" if all(map(_is_code, fields)):
                for code, value in fields.items():
                    if records := self._last(value):
                        yield code, _Entry(records, code)
            case "bar" if all(map(_is_code, fields)):
                for code, value in fields.items():
                    for record in _records.decode(value):
                        yield self._bar_key(code, record), _Entry(b"[%b]" % bytes(record), code)
            case "values" if _text(fields.get("type")) == "formula_update":
                yield self._replace_values(frame), _Entry(frame)

    def _last(self, value: msgspec.Raw) -> bytes:
        """Return a list with the newest record, or a record that is in no list; nothing for an empty list."""
        text = bytes(value)
        if text[:1] != b"[":
            return text
        records = _records.decode(text)
        if not records:
            return b""
        self._skip(len(records) - 1)
        return b"[%b]" % bytes(records[-1])

    def _bar_key(self, code: str, record: msgspec.Raw) -> Hashable:
        time = _bar.decode(record).time
        if time is None:
            self._serial += 1
        return (code, self._serial if time is None else time, time is None)

    def _replace_values(self, frame: bytes) -> int:
        """Forget the formula's older frames that `frame` replaces; return a key for it."""
        values = _formula.decode(frame).data
        shown = _Shown(frozenset(values.timelist), frozenset(values.outputs))
        for key in [key for key, older in self._shown.items() if shown.covers(older)]:
            del self._shown[key]
            self._size -= len(self._newest.pop(key).value) + OVERHEAD
            self._skip(1)
        self._serial += 1
        self._shown[self._serial] = shown
        return self._serial

    def _skip(self, count: int) -> None:
        self._untold += count
        self._episode += count


def _is_code(name: str) -> bool:
    # Control frames and progress have no such names (docs/websocket.md, Frames).
    return "." in name


def _text(value: msgspec.Raw | None) -> object:
    return None if value is None else msgspec.json.decode(value)
