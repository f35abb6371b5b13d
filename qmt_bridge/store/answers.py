"""What a store answers to one question about one topic: a chunk of its messages, and what is missing of it.

No sockets and no clock. An answer is made when its turn comes, and reads at most a chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import msgspec

from qmt_bridge.errors import BadRequest, ErrorCode, WireError
from qmt_bridge.store.database import DatabaseError
from qmt_bridge.store.filled import EPOCH_STEP, gaps, opening, reached
from qmt_bridge.store.holes import Place, between, from_the_start
from qmt_bridge.store.layout import Record
from qmt_bridge.store.log import Log, Stored
from qmt_bridge.store.record_time import STORED, record_ms
from qmt_bridge.store.timeline import find
from qmt_bridge.store.view import View
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.frames import record_of
from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory
from qmt_bridge.wire.moments import read_moment
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.topics import Kind, Topic, parse_topic, shown_topic, whole_topic

logger = logging.getLogger(__name__)

# Bytes of the messages of an answer, without `room` and at most; a larger message has an answer of its own.
CHUNK_BYTES = 256 * 1024
MOST_CHUNK_BYTES = 1024 * 1024
# What a message counts for beside its body: its stamp as text.
_STAMP_BYTES = 80
# Of a market from which one code is asked for: bytes of the messages that one answer looks through. That is a block of
# the database, and takes some 15 ms, in which no other question is answered.
LOOKED_BYTES = 4 * 1024 * 1024
# By so many ms a record of a code may be older than the newest one of its message.
LATE_MS = 10_000

_NS_PER_MS = 1_000_000
_MOST_NUMBER = 2**62
# A float has 53 bits of the 61 of an epoch: from one to the next there are 256 ns.
_FLOAT_STEP = 256

# Has the source asked for the history of a topic that somebody wants from a moment on (ms since 1970, 0: unknown).
# Returns None while that is done, else why it is not.
Fill = Callable[[Topic, int], str | None]


class _Span(NamedTuple):
    """Messages in their order, and what is missing before the first of them."""

    records: Iterator[Record]
    holes: list[Hole]
    first: Record | None = None
    # Whether nothing of its epoch is stored before it.
    is_first: bool = False


class Answers:
    """The answers from a log; `followed` says since when the store subscribes a topic itself, without a break.

    In ms since 1970; infinite while there is no connection to the feeder.
    """

    def __init__(self, log: Log, followed: Mapping[Topic, float], fill: Fill | None = None) -> None:
        """Answer from what is stored; `fill` completes a day from the source's history, None: that is not wanted."""
        self._log = log
        self._followed = followed
        self._fill = fill

    def answer(self, ask: CatchUp, text: str) -> TopicHistory:
        """Return the answer about the topic `text`."""
        try:
            kind = parse_topic(text).kind
            if kind not in STORED:
                raise BadRequest("bad_request", f"a store keeps no {kind} topics: the feeder answers about them")
            if ask.code is not None and (
                kind is not Kind.WHOLE or text != whole_topic(check_code(ask.code).rpartition(".")[2])
            ):
                raise BadRequest("bad_request", f"{shown_topic(text)} is not the market of {ask.code[:40]!r}")
            self._log.commit()
            return self._answer(ask, Topic(text))
        except BadRequest as exc:
            return _refused(ask, text, exc.code, exc.reason)
        except WireError as exc:
            return _refused(ask, text, "bad_request", str(exc))
        except DatabaseError as exc:
            logger.error("the store cannot read %s: %s", shown_topic(text), exc)
            return _refused(ask, text, "internal", f"the store cannot read it: {exc}")

    def _answer(self, ask: CatchUp, topic: Topic) -> TopicHistory:
        if ask.start is not None and ask.after is not None:
            raise BadRequest("bad_request", "start and after are two places to begin at: give one")
        if ask.after is not None and not (
            ask.epoch is not None and 0 <= ask.after <= _MOST_NUMBER and 0 <= ask.epoch <= _MOST_NUMBER
        ):
            raise BadRequest("bad_request", "a position is an epoch and a sequence number, from 0 to 2^62")
        stored, newest = self._log.find(topic), self._log.newest(topic)
        start_ms = 0 if ask.start is None else _moment(ask.start, "start", newest)
        end_ms = 0 if ask.end is None else _moment(ask.end, "end", newest)
        if end_ms and end_ms < start_ms:
            raise BadRequest("bad_request", "end is before start")
        if stored is not None and newest is None and not stored.first.epoch:
            # The source has nothing of the day so far, and what follows is stored.
            for each in stored.filled.values():
                if each.until:
                    return TopicHistory(ask.id, topic, end_ms=end_ms, epoch=each.precedes, seq=each.until - 1)
        if stored is None or newest is None:
            span = self._completed(stored, topic, _Span(iter(()), self._nothing(topic, start_ms)), start_ms, ask)
            if span is None:
                return TopicHistory(ask.id, topic, "filling", start_ms=start_ms, end_ms=end_ms)
            return TopicHistory(ask.id, topic, start_ms=start_ms, end_ms=end_ms, holes=span.holes)
        view = self._log.view(stored)
        asked: Position | None = None
        if ask.start is not None:
            begun = self._completed(stored, topic, self._from_moment(view, stored, topic, start_ms), start_ms, ask)
            if begun is None:
                return TopicHistory(ask.id, topic, "filling", start_ms=start_ms, end_ms=end_ms)
            span = begun
        elif ask.after is not None and ask.epoch is not None:
            asked = Position(_epoch(view, ask.epoch), ask.after)
            span = self._from_position(view, stored, asked)
        else:
            span = _Span(iter(()), [])
        if ask.code is None:
            history = _chunk(ask, topic, stored, span, asked or newest[0], end_ms)
        else:
            history = _chunk_of_code(ask, topic, ask.code, span, asked or newest[0], start_ms, end_ms)
        return msgspec.structs.replace(history, start_ms=start_ms, end_ms=end_ms)

    def _completed(self, stored: Stored | None, topic: Topic, span: _Span, start_ms: int, ask: CatchUp) -> _Span | None:
        """Return a span, or None while the source's history is put in front of its first message."""
        first, holes = span.first, span.holes
        if self._fill is None or ask.start is None or not holes or holes[0].reason == "removed":
            return span
        if first is not None and not (
            # Only the first message of an epoch can have something put in front of it, and that once.
            span.is_first and stored is not None and first.epoch - EPOCH_STEP not in stored.filled
            and first.epoch not in stored.filled and holes[0].before == first.position
        ):  # fmt: skip
            return span
        refused = self._fill(topic, start_ms)
        if refused is None:
            return None
        return span._replace(holes=[msgspec.structs.replace(holes[0], backfill=refused), *holes[1:]])

    def _from_moment(self, view: View, stored: Stored, topic: Topic, start_ms: int) -> _Span:
        first, before = find(view, start_ms)
        if first is None:
            return _Span(iter(()), [])
        place = _place(first)
        if opening(stored.filled, first.position, None if before is None else before.position, start_ms):
            holes = []
        elif before is not None:
            holes = gaps(stored.filled, _place(before), place)
        elif first.ms <= start_ms:
            holes = []
        elif first.epoch in stored.filled:
            holes = [Hole("store_began", None, first.position, None, first.ms)]
        elif self._is_after_removed(view, stored, first):
            holes = [Hole("removed", None, first.position, None, first.ms)]
        elif self._followed_ms(topic, first) <= start_ms:
            holes = from_the_start(place, start_ms)
        else:
            holes = [Hole("store_began", None, first.position, None, first.ms)]
        earlier = view.last_before(first.epoch, first.seq)
        is_first = earlier is None or earlier.epoch != first.epoch
        return _Span(view.records(first.epoch, first.seq), holes, first, is_first)

    def _from_position(self, view: View, stored: Stored, asked: Position) -> _Span:
        records = view.records(int(asked.epoch), asked.seq + 1)
        first = next(records, None)
        if first is None:
            return _Span(iter(()), [])
        holes = gaps(stored.filled, Place(asked), _place(first))
        if holes and self._is_after_removed(view, stored, first):
            holes = [Hole("removed", asked, first.position, None, first.ms)]
        return _Span(chain((first,), records), holes)

    def _nothing(self, topic: Topic, start_ms: int) -> list[Hole]:
        """Return what is missing of a topic without a message."""
        stored = self._log.find(topic)
        if stored is not None and stored.first.epoch:
            return [Hole("removed")]
        if topic not in self._followed:
            return [Hole("not_stored")]
        return [] if self._followed[topic] <= start_ms else [Hole("store_began")]

    def _is_after_removed(self, view: View, stored: Stored, first: Record) -> bool:
        """Return whether messages before this one were stored once, and are not any more."""
        return stored.first < first.position and view.last_before(first.epoch, first.seq) is None

    def _followed_ms(self, topic: Topic, first: Record) -> float:
        """Return since when nothing of a topic can have been missed, in the time of its records.

        A replay of a past day has other times than this machine: how they differ is seen at the first record.
        """
        since = self._followed.get(topic)
        if since is None:
            return float("inf")
        # The feeder published nothing before it was started.
        return max(since, first.epoch // _NS_PER_MS) + first.ms - first.received_ns // _NS_PER_MS


def _chunk(ask: CatchUp, topic: Topic, stored: Stored, span: _Span, place: Position, end_ms: int) -> TopicHistory:
    """Return the first messages of a span, or none, and then that the topic stands at `place`."""
    room = min(ask.room, MOST_CHUNK_BYTES) if ask.room > 0 else CHUNK_BYTES
    frames: list[StoredFrame] = []
    times: list[int] = []
    # What is missing before the first message counts even if that is behind `end`.
    holes = list(span.holes)
    size, more = 0, False
    from_ms: int | None = None
    last: Record | None = None
    for record in span.records:
        if end_ms and record.ms >= end_ms:
            break
        size += len(record.body) + _STAMP_BYTES
        if last is None:
            from_ms = record.ms
        else:
            if size > room:
                more = True
                break
            if record.seq != last.seq + 1 or record.epoch != last.epoch:
                holes += gaps(stored.filled, _place(last), _place(record))
        body = msgspec.Raw(record.body)
        frames.append(StoredFrame(record.epoch, record.seq, record.received_ns, record.published_ns, body))
        times.append(record.ms)
        last = record
    at = place if last is None else last.position
    if not more:
        at = reached(stored.filled, at)
    is_history = bool(frames) and frames[0].epoch in stored.filled
    return TopicHistory(
        ask.id,
        topic,
        frames=frames,
        times=times,
        more=more,
        epoch=int(at.epoch),
        seq=at.seq,
        from_ms=None if ask.start is None else from_ms,
        holes=holes,
        source="history" if ask.start is not None and is_history else None,
    )


def _chunk_of_code(
    ask: CatchUp, topic: Topic, code: str, span: _Span, place: Position, start_ms: int, end_ms: int
) -> TopicHistory:
    """Return the first records of one code in a span of a market, as far as one answer looks."""
    room = min(ask.room, MOST_CHUNK_BYTES) if ask.room > 0 else CHUNK_BYTES
    frames: list[StoredFrame] = []
    times: list[int] = []
    holes = list(span.holes)
    size, looked, more = 0, 0, False
    last: Record | None = None
    for record in span.records:
        if end_ms and record.ms >= end_ms + LATE_MS:
            break
        if last is not None and (looked >= LOOKED_BYTES or size >= room):
            more = True
            break
        looked += len(record.body)
        if last is not None and (record.seq != last.seq + 1 or record.epoch != last.epoch):
            holes += between(_place(last), _place(record))
        last = record
        try:
            found = record_of(record.body, code)
        except WireError:
            # A batch of another shape has nothing of the code that could be shown.
            continue
        if found is None:
            continue
        body = b'{"%b":[%b]}' % (code.encode(), bytes(found))
        ms = record_ms(Kind.QUOTE, body, record.received_ns)
        if ms < start_ms:
            continue
        if end_ms and ms >= end_ms:
            break
        size += len(body) + _STAMP_BYTES
        frames.append(StoredFrame(record.epoch, record.seq, record.received_ns, record.published_ns, msgspec.Raw(body)))
        times.append(max(ms, times[-1]) if times else ms)
    at = place if last is None else last.position
    return TopicHistory(
        ask.id,
        topic,
        frames=frames,
        times=times,
        more=more,
        epoch=int(at.epoch),
        seq=at.seq,
        from_ms=None if ask.start is None or not times else times[0],
        holes=holes,
    )


def _moment(given: int | str, name: str, newest: tuple[Position, int] | None) -> int:
    moment = read_moment(given, name)
    if newest is None:
        return 0 if moment.of_day else moment.ms
    return moment.on_day_of(newest[1])


def _epoch(view: View, epoch: float) -> int:
    """Return the stored epoch that a client means: a browser rounds it, and writes all of its digits, as an integer."""
    meant = int(epoch)
    at = max(0, meant - _FLOAT_STEP)
    while (record := view.first_from(at, 0)) is not None and record.epoch <= epoch + _FLOAT_STEP:
        if record.epoch == epoch:
            return record.epoch
        if float(record.epoch) == float(epoch):
            meant = record.epoch
        at = record.epoch + 1
    return meant


def _place(record: Record) -> Place:
    return Place(record.position, record.ms)


def _refused(ask: CatchUp, text: str, code: ErrorCode, reason: str) -> TopicHistory:
    return TopicHistory(ask.id, text, "refused", reason, code)
