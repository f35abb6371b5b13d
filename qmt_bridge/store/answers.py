"""What a store answers to one question about one topic: a chunk of its messages, and what is missing of it.

No sockets and no clock. An answer is made when its turn comes, and reads at most a chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from qmt_bridge.errors import BadRequest, ErrorCode, WireError
from qmt_bridge.store.database import DatabaseError
from qmt_bridge.store.holes import Place, between, from_the_start
from qmt_bridge.store.layout import Record
from qmt_bridge.store.log import Log, Stored
from qmt_bridge.store.record_time import STORED
from qmt_bridge.store.timeline import find
from qmt_bridge.store.view import View
from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory
from qmt_bridge.wire.moments import read_moment
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.topics import Topic, parse_topic, shown_topic

logger = logging.getLogger(__name__)

# Bytes of the messages of an answer, without `room` and at most; a larger message has an answer of its own.
CHUNK_BYTES = 256 * 1024
MOST_CHUNK_BYTES = 1024 * 1024
# What a message counts for beside its body: its stamp as text.
_STAMP_BYTES = 80

_NS_PER_MS = 1_000_000
_MOST_NUMBER = 2**62
# A float has 53 bits of the 61 of an epoch: from one to the next there are 256 ns.
_FLOAT_STEP = 256


class _Span(NamedTuple):
    """What is asked of a topic: from the record `first` on, up to `end_ms`; `holes` are before it."""

    first: Record | None
    before: Place | None
    holes: list[Hole]
    start_ms: int = 0
    end_ms: int = 0


class Answers:
    """The answers from a log; `followed` says since when (ms since 1970) the store itself subscribes a topic."""

    def __init__(self, log: Log, followed: Mapping[Topic, int]) -> None:
        self._log = log
        self._followed = followed

    def answer(self, ask: CatchUp, text: str) -> TopicHistory:
        """Return the answer about the topic `text`."""
        try:
            kind = parse_topic(text).kind
            if kind not in STORED:
                raise BadRequest("bad_request", f"a store keeps no {kind} topics: the feeder answers about them")
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
        stored = self._log.find(topic)
        view = None if stored is None else self._log.view(stored)
        newest = None if view is None else view.last()
        start_ms = 0 if ask.start is None else _moment(ask.start, "start", newest)
        end_ms = 0 if ask.end is None else _moment(ask.end, "end", newest)
        if end_ms and end_ms < start_ms:
            raise BadRequest("bad_request", "end is before start")
        if stored is None or view is None or newest is None:
            return TopicHistory(ask.id, topic, start_ms=start_ms, end_ms=end_ms, holes=self._nothing(topic, start_ms))
        if ask.start is not None:
            span = self._from_moment(view, stored, topic, start_ms, end_ms)
        elif ask.after is not None and ask.epoch is not None:
            span = self._from_position(view, stored, ask.epoch, ask.after, end_ms)
        else:
            span = _Span(None, None, [], 0, end_ms)
        history = _chunk(ask, topic, view, span, newest.position)
        if history.frames or ask.after is None or ask.epoch is None:
            return history
        epoch = _epoch(view, ask.epoch)
        return msgspec.structs.replace(history, epoch=epoch, seq=ask.after)

    def _from_moment(self, view: View, stored: Stored, topic: Topic, start_ms: int, end_ms: int) -> _Span:
        found = find(view, start_ms)
        first = found.first
        if first is None:
            return _Span(None, None, [], start_ms, end_ms)
        place = _place(first)
        if found.before is not None:
            return _Span(first, None, between(_place(found.before), place), start_ms, end_ms)
        if first.ms <= start_ms:
            return _Span(first, None, [], start_ms, end_ms)
        if self._is_after_removed(view, stored, first):
            return _Span(first, None, [Hole("removed", None, first.position, None, first.ms)], start_ms, end_ms)
        if self._followed_ms(topic, first) <= start_ms:
            return _Span(first, None, from_the_start(place, start_ms), start_ms, end_ms)
        return _Span(first, None, [Hole("store_began", None, first.position, None, first.ms)], start_ms, end_ms)

    def _from_position(self, view: View, stored: Stored, epoch: float, after: int, end_ms: int) -> _Span:
        asked = Position(_epoch(view, epoch), after)
        first = view.first_after(int(asked.epoch), after)
        if first is None:
            return _Span(None, None, [], 0, end_ms)
        holes = between(Place(asked), _place(first))
        if holes and self._is_after_removed(view, stored, first):
            holes = [Hole("removed", asked, first.position, None, first.ms)]
        return _Span(first, None, holes, 0, end_ms)

    def _nothing(self, topic: Topic, start_ms: int) -> list[Hole]:
        """Return what is missing of a topic without a message."""
        if self._log.find(topic) is not None:
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


def _chunk(ask: CatchUp, topic: Topic, view: View, span: _Span, newest: Position) -> TopicHistory:
    room = min(ask.room, MOST_CHUNK_BYTES) if ask.room > 0 else CHUNK_BYTES
    frames: list[StoredFrame] = []
    holes: list[Hole] = []
    size, more = 0, False
    last: Record | None = None
    first = span.first
    if first is not None:
        for record in view.records(first.epoch, first.seq):
            if span.end_ms and record.ms >= span.end_ms:
                break
            size += len(record.body) + _STAMP_BYTES
            if last is not None:
                if size > room:
                    more = True
                    break
                if record.seq != last.seq + 1 or record.epoch != last.epoch:
                    holes += between(_place(last), _place(record))
            frames.append(
                StoredFrame(record.epoch, record.seq, record.received_ns, record.published_ns, msgspec.Raw(record.body))
            )
            last = record
    at = newest if last is None else last.position
    is_start = ask.start is not None and first is not None and last is not None
    return TopicHistory(
        ask.id,
        topic,
        frames=frames,
        more=more,
        epoch=int(at.epoch),
        seq=at.seq,
        start_ms=span.start_ms,
        end_ms=span.end_ms,
        from_ms=first.ms if is_start and first is not None else None,
        # What is missing before the first message, which may be behind `end`.
        holes=[*span.holes, *holes],
    )


def answers(found: Answers, ask: CatchUp) -> Iterator[TopicHistory]:
    """Yield the answer about each topic of a question, each topic once."""
    for text in dict.fromkeys(ask.topics):
        yield found.answer(ask, text)


def _moment(given: int | str, name: str, newest: Record | None) -> int:
    moment = read_moment(given, name)
    if moment.of_day and newest is None:
        return 0
    return moment.on_day_of(newest.ms if newest is not None else 0)


def _epoch(view: View, epoch: float) -> int:
    """Return the stored epoch that a client means: a browser rounds it."""
    if isinstance(epoch, int):
        return epoch
    at = max(0, int(epoch) - _FLOAT_STEP)
    while (record := view.first_from(at, 0)) is not None and record.epoch <= epoch + _FLOAT_STEP:
        if float(record.epoch) == epoch:
            return record.epoch
        at = record.epoch + 1
    return int(epoch)


def _place(record: Record) -> Place:
    return Place(record.position, record.ms)


def _refused(ask: CatchUp, text: str, code: ErrorCode, reason: str) -> TopicHistory:
    return TopicHistory(ask.id, text, "refused", reason, code)
