"""The stored records of one topic, chunk after chunk, still encoded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gateway.sending.view import View, in_one_order
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.topics import VERSIONS, Topic, parse_topic

# The last column of a table: what has none of its own, as JSON.
OTHER = "other"


class Records:
    """The records of chunks. Of a bar, which is published each time it changes, only its newest state is one."""

    def __init__(self, topic: Topic, period: str, fields: Sequence[str]) -> None:
        """Have all fields of the records, or these."""
        self._topic = topic
        self._code = parse_topic(topic).name
        self._view = View(fields=in_one_order(fields)) if fields else None
        self._bars = VERSIONS.get(period) == "bar"
        # The newest bar, which the next record may replace, and its time.
        self._open: msgspec.Raw | None = None
        self._time: object = None
        self.total = 0

    def of(self, chunk: TopicHistory) -> list[msgspec.Raw]:
        """Return the records of a chunk that nothing can replace."""
        found: list[msgspec.Raw] = []
        for frame in chunk.frames:
            for record in self._split(frame.frame(self._topic)):
                if not self._bars:
                    found.append(record)
                    continue
                time = _time(record)
                if self._open is not None and time != self._time:
                    found.append(self._open)
                self._open, self._time = record, time
        self.total += len(found)
        # The time of a bar is needed above, also where it is not asked for.
        return [self._shown(record) for record in found] if self._bars and self._view is not None else found

    def rest(self) -> list[msgspec.Raw]:
        """Return the newest bar."""
        found, self._open = [self._open] if self._open is not None else [], None
        self.total += len(found)
        return [self._shown(record) for record in found] if self._view is not None else found

    def _split(self, frame: Frame) -> Iterator[msgspec.Raw]:
        if self._view is not None and not self._bars:
            frame = frame.with_body(self._view.render(frame))
        yield from frames.split_lists(frame.body).get(self._code, ())

    def _shown(self, record: msgspec.Raw) -> msgspec.Raw:
        assert self._view is not None
        body = frames.join_all({self._code: msgspec.Raw(frames.join_records([record]))})
        [shown] = frames.split_lists(self._view.render(Frame(self._topic, 0, 0, 0, 0, body)))[self._code]
        return shown


class _Timed(msgspec.Struct):
    time: Any = None


_timed = msgspec.json.Decoder(_Timed)


def _time(record: msgspec.Raw) -> object:
    try:
        return frames.read(_timed, record).time
    except WireError:
        return None
