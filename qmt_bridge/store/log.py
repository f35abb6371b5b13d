"""The log of what was published: messages by topic and position, and the removal of old days.

One thread uses it. `append` collects, `commit` writes; a question is answered after a commit, so that it sees every
message that has arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qmt_bridge import private
from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.store.database import Database, DatabaseError, Part, Shape
from qmt_bridge.store.filled import Filled
from qmt_bridge.store.layout import Record, key_of, value_of
from qmt_bridge.store.record_time import STORED, record_ms
from qmt_bridge.store.view import View
from qmt_bridge.system import clock
from qmt_bridge.system.in_use import patiently
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import NOWHERE, Position
from qmt_bridge.wire.topics import Kind, Topic, parse_topic

logger = logging.getLogger(__name__)

# Topics that a store has seen, and the bytes of their names; they are kept when their days are removed.
MOST_TOPICS = 200_000
MOST_NAME_BYTES = 64 * 1024 * 1024
# Histories of which a topic keeps what they prove: one for each start of a feeder in the days that are kept.
MOST_FILLED = 64
# A part ends with its day, or with this share of the bytes that the store may fill, so that the removal of the oldest
# one makes some room and not all.
_SHARE = 8
_MIB = 1024 * 1024


class _Kept(msgspec.Struct, frozen=True):
    """What the database keeps of a topic: its name, and the place of the first message that was ever stored."""

    name: str
    epoch: int
    seq: int
    ms: int
    filled: list[Filled] = []


class Stored:
    """A topic: its number in the database, the places of its first message ever and of its newest, and histories."""

    __slots__ = ("filled", "first", "first_ms", "kind", "name", "newest", "newest_ms", "number", "shape")

    def __init__(self, name: Topic, number: int, kind: Kind, first: Position, first_ms: int = 0) -> None:
        self.name = name
        self.number = number
        self.kind = kind
        self.shape: Shape = "batches" if kind is Kind.WHOLE else "messages"
        self.first = first
        self.first_ms = first_ms
        # What was put in front of an epoch from the source's history, by the epoch that it has.
        self.filled: dict[int, Filled] = {}
        # None: the database has not been asked yet.
        self.newest: Position | None = None
        self.newest_ms = 0


class Log:
    """Messages on disk. Methods raise `DatabaseError` where the disk fails."""

    def __init__(self, folder: Path, max_mb: int) -> None:
        """Open the log in `folder`, or begin one; `max_mb` 0 is any size. Raise `ConfigError`."""
        self._most_bytes = max_mb * _MIB
        self._database = _open(folder)
        self._topics: dict[Topic, Stored] = {}
        # The topics by their bytes on the wire.
        self.names: dict[bytes, Topic] = {}
        self._name_bytes = 0
        self._batch = self._database.batch()
        # Messages that were appended and not committed yet.
        self.waiting = 0
        # Messages since the start: stored, and left out because they are of an older process of the feeder, are no
        # JSON, or of a topic beyond the limits.
        self.stored = 0
        self.left_out = 0
        # Bytes of all parts, when they were last counted.
        self.size = 0
        for number, content in self._database.topics():
            kept = msgspec.json.decode(content, type=_Kept)
            stored = self._add(Topic(kept.name), number, Position(kept.epoch, kept.seq), kept.ms)
            stored.filled = {each.epoch: each for each in kept.filled}
        for stored in self._topics.values():
            self._forget_end(stored)
        self._numbers = max((topic.number for topic in self._topics.values()), default=0)

    def __len__(self) -> int:
        return len(self._topics)

    @property
    def days(self) -> list[str]:
        """Return the days that are stored, oldest first."""
        return list(dict.fromkeys(part.day for part in self._database.parts))

    def find(self, topic: Topic) -> Stored | None:
        """Return what is known of a topic; None if no message of it was ever stored."""
        return self._topics.get(topic)

    def view(self, stored: Stored) -> View:
        """Return the messages of a topic that were committed."""
        return View([part.column(stored.shape) for part in self._database.parts], stored.number)

    def newest(self, topic: Topic) -> tuple[Position, int] | None:
        """Return the position of the newest message and the time of its record; None if none is stored."""
        stored = self._topics.get(topic)
        if stored is None or self._newest(stored) == NOWHERE:
            return None
        assert stored.newest is not None
        return stored.newest, stored.newest_ms

    def append(self, frame: Frame, day: str) -> None:
        """Add a message that has arrived on `day`; raise `WireError` if it is none that can be stored."""
        stored = self._topics.get(frame.topic) or self._new(frame)
        position = Position(frame.epoch, frame.seq)
        newest = self._newest(stored)
        if position <= newest:
            # The same message cannot arrive twice on one connection: this is a process that a newer one has replaced.
            self.left_out += 1
            return
        ms = record_ms(stored.kind, frame.body, frame.received_ns)
        if newest.epoch == position.epoch:
            ms = max(ms, stored.newest_ms)
        column = self._part(day).column(stored.shape)
        record = Record(frame.epoch, frame.seq, ms, frame.received_ns, frame.published_ns, frame.body)
        self._batch.put(key_of(stored.number, frame.epoch, frame.seq), value_of(record), column.handle)
        if stored.first == NOWHERE:
            stored.first, stored.first_ms = position, ms
            self._note(stored)
        stored.newest, stored.newest_ms = position, ms
        self.waiting += 1
        self.stored += 1

    def fill(self, topic: Topic, records: Sequence[Record], filled: Filled, day: str) -> None:
        """Write messages of a source's history in front of what is stored of `filled.precedes`, all or none.

        Nothing of that epoch may be stored before them. Raise `WireError` for a topic beyond the limits.
        """
        stored = self._topics.get(topic) or self._make(topic, parse_topic(topic).kind)
        newest = self._newest(stored)
        self.commit()
        column = self._part_of(stored, filled.precedes, day).column(stored.shape)
        for record in records:
            self._batch.put(key_of(stored.number, record.epoch, record.seq), value_of(record), column.handle)
        older = sorted(stored.filled.values(), key=lambda each: each.epoch)[1 - MOST_FILLED :]
        stored.filled = {each.epoch: each for each in (*older, filled)}
        if records and stored.first == NOWHERE:
            stored.first, stored.first_ms = records[0].position, records[0].ms
        if records and records[-1].position > newest:
            stored.newest, stored.newest_ms = records[-1].position, records[-1].ms
        self._note(stored)
        self.waiting += 1
        self.stored += len(records)
        self.commit()

    def commit(self) -> None:
        """Write what was appended: it is safe from the end of this process when this returns."""
        if self.waiting:
            batch, self._batch, self.waiting = self._batch, self._database.batch(), 0
            self._database.write(batch)

    def sync(self) -> None:
        """Bring what was committed to the disk: it is safe from a failure of the power when this returns."""
        self._database.sync()

    def trim(self, oldest_day: str) -> list[str]:
        """Remove what arrived before `oldest_day`, and the oldest parts beyond the limit of bytes; return their days.

        The part that is written now is never removed.
        """
        parts = self._database.parts
        sizes = [self._database.size(part) for part in parts]
        self.size = sum(sizes)
        removed: list[str] = []
        while len(parts) > 1 and (parts[0].day < oldest_day or 0 < self._most_bytes < self.size):
            removed.append(parts[0].day)
            self.size -= sizes.pop(0)
            self._database.drop_oldest()
        if removed:
            # The newest message of a topic may be among them.
            for stored in self._topics.values():
                stored.newest = None
        if self._most_bytes and sizes and sizes[-1] > self._most_bytes // _SHARE:
            self.commit()
            self._database.begin_part(parts[-1].day)
        return removed

    def close(self) -> None:
        """Write what was appended and close."""
        try:
            self.commit()
            self.sync()
        finally:
            self._database.close()

    def _part(self, day: str) -> Part:
        parts = self._database.parts
        # The clock of this machine may be set back: the part of a later day goes on.
        return parts[-1] if parts and parts[-1].day >= day else self._database.begin_part(day)

    def _newest(self, stored: Stored) -> Position:
        if stored.newest is None:
            record = self.view(stored).last()
            stored.newest, stored.newest_ms = (NOWHERE, 0) if record is None else (record.position, record.ms)
        return stored.newest

    def _forget_end(self, stored: Stored) -> None:
        """Forget where a history meets live messages of which none is stored: who subscribed meanwhile is not known."""
        if not stored.filled:
            return
        ends = self._newest(stored)
        for epoch, each in list(stored.filled.items()):
            if each.until and (ends == NOWHERE or ends.epoch == epoch):
                stored.filled[epoch] = msgspec.structs.replace(each, until=0)
                self._note(stored)
                self.waiting += 1

    def _part_of(self, stored: Stored, epoch: int, day: str) -> Part:
        """Return the part with the first message of an epoch, so that positions still grow from one to the next."""
        for part in self._database.parts:
            if (found := part.column(stored.shape).first_from(stored.number, epoch, 0)) and found.epoch == epoch:
                return part
        return self._part(day)

    def _note(self, stored: Stored) -> None:
        first = stored.first
        kept = _Kept(stored.name, int(first.epoch), first.seq, stored.first_ms, list(stored.filled.values()))
        self._database.note_topic(self._batch, stored.number, msgspec.json.encode(kept))

    def _new(self, frame: Frame) -> Stored:
        parts = parse_topic(frame.topic)
        if parts.kind not in STORED:
            raise WireError(f"{parts.kind} is no kind of topic that is stored")
        record_ms(parts.kind, frame.body, frame.received_ns)
        return self._make(frame.topic, parts.kind)

    def _make(self, topic: Topic, kind: Kind) -> Stored:
        if len(self._topics) >= MOST_TOPICS or self._name_bytes + len(topic) > MOST_NAME_BYTES:
            raise WireError("there are more topics than a store keeps")
        self._numbers += 1
        stored = self._add(topic, self._numbers, NOWHERE, kind=kind)
        stored.newest = NOWHERE
        return stored

    def _add(self, topic: Topic, number: int, first: Position, first_ms: int = 0, kind: Kind | None = None) -> Stored:
        self._name_bytes += len(topic)
        self.names[topic.encode("ascii")] = topic
        stored = self._topics[topic] = Stored(topic, number, kind or parse_topic(topic).kind, first, first_ms)
        return stored


def _open(folder: Path) -> Database:
    try:
        private.make_folder(folder)
        try:
            return Database(folder)
        except DatabaseError as exc:
            if not exc.is_damage:
                raise
            aside = folder.with_name(f"{folder.name}.damaged-{clock.time_ns()}")
            patiently(lambda: folder.rename(aside))
            logger.error("the store in %s is damaged (%s): it is %s now, and a new one begins", folder, exc, aside.name)
            private.make_folder(folder)
            return Database(folder)
    except DatabaseError as exc:
        reason = f"another store has its messages in {folder}" if exc.is_locked else f"cannot open {folder}: {exc}"
        raise ConfigError("data_dir", reason) from exc
    except OSError as exc:
        raise ConfigError("data_dir", f"cannot open {folder}: {exc.strerror or exc}") from exc
