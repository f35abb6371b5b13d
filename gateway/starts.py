"""The options `start` and `complete`: what they ask of the store or of the journal, and how the answer is shown. Pure.

Frames as in docs/websocket.md, "The day so far".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.costs.turns import chunk_bytes
from gateway.streams.member import Beginning, Gap, StoreQuestion
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.moments import Moment, read_moment, shown_moment
from qmt_bridge.wire.playback import Playback, check_speed
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.requests import Options
from qmt_bridge.wire.topics import Kind, Topic, parse_topic

# Bytes of the first answer: it has to be read and sent before the client sees anything.
FIRST_BYTES = 64 * 1024
# Bytes of an answer that is played: each topic of a client holds one until its records are due.
PLAYED_BYTES = 32 * 1024
# Positions beyond this cannot be (docs/wire.md, "The store").
_MOST_NUMBER = 2**62
# The names in a start or a resume that are a position, and not one by code; beside them a start may have `market`.
_OF_POSITION = frozenset(Position.__struct_fields__)


def positions_by_topic(given: dict[str, Any], named: dict[Topic, str], option: str) -> dict[Topic, Position]:
    """Return the positions that an option names, for all or for each of its codes; raise `BadRequest` otherwise."""
    if not _OF_POSITION.isdisjoint(given):
        if len(named) != 1:
            raise BadRequest("bad_request", f"{option} of several codes is an object of positions by code")
        given = dict.fromkeys(named.values(), given)
    names = set(named.values())
    for name in given:
        if name not in names:
            raise _not_asked_for(option, name)
    try:
        return {topic: msgspec.convert(given[name], Position) for topic, name in named.items() if name in given}
    except msgspec.ValidationError as exc:
        raise BadRequest("bad_request", f"{option}: {str(exc)[:1].lower()}{str(exc)[1:]}") from None


def store_questions(options: Options, named: dict[Topic, str], outbox_bytes: int) -> dict[Topic, StoreQuestion]:
    """Return what to ask of the store for each topic of a request; none without `start` and `complete`."""
    if options.start is None:
        if options.end is not None:
            raise BadRequest("bad_request", "end is that of a part of the day, which needs a start")
        if options.speed:
            raise BadRequest("bad_request", "speed is that of the day so far, which needs a start")
        return dict.fromkeys(named, complete_question(outbox_bytes, len(named))) if options.complete else {}
    if options.resume:
        raise BadRequest("bad_request", "start and resume both say where to begin; choose one")
    end = options.end
    until = None if end is None else read_moment(end, "end")
    chunk = chunk_bytes(outbox_bytes, len(named))
    # The first answers come for all topics at once, the later ones as it is each topic's turn.
    room = max(1, min(FIRST_BYTES, outbox_bytes // 2 // max(1, len(named))))
    playback = Playback(options.speed) if check_speed(options.speed) else None
    if playback is not None:
        chunk = room = min(room, PLAYED_BYTES)
    if not isinstance(options.start, dict):
        _check_order(read_moment(options.start, "start"), until)
        question = StoreQuestion(options.start, None, end, room, chunk, playback, complete=options.complete)
        questions = dict.fromkeys(named, question)
        return questions if playback is None else _spread(questions)
    by_name = options.start
    is_position = not _OF_POSITION.isdisjoint(by_name)
    times = {} if is_position else {name: each for name, each in by_name.items() if not isinstance(each, dict)}
    positions = positions_by_topic({name: by_name[name] for name in by_name if name not in times}, named, "start")
    asked = StoreQuestion(None, None, end, room, chunk, playback, complete=options.complete)
    questions = {topic: asked._replace(after=after) for topic, after in positions.items()}
    for topic, position in positions.items():
        _check(position)
        given = by_name if is_position else by_name[named[topic]]
        if "market" in given:
            questions[topic] = questions[topic]._replace(code=_code_of(topic, given["market"]))
    for name, given in times.items():
        topics = [topic for topic, each in named.items() if each == name]
        if not topics:
            raise _not_asked_for("start", name)
        read_moment(given, "start")
        questions |= dict.fromkeys(topics, asked._replace(start=given))
    if options.complete and end is None:
        # Codes that the start does not name begin with their last value.
        questions = dict.fromkeys(named, complete_question(outbox_bytes, len(named))) | questions
    return questions if playback is None else _spread(questions)


def complete_question(outbox_bytes: int, readers: int) -> StoreQuestion:
    """Return what a subscription asks of the store that begins with the last value and is to miss nothing later."""
    chunk = chunk_bytes(outbox_bytes, readers)
    return StoreQuestion(room=chunk, chunk=chunk, complete=True)


def journal_question(start: int | str | JournalPosition, end: int | str | None) -> JournalPosition:
    """Return what to ask of the journal of trade events; raise `BadRequest` for what is no moment."""
    until = None if end is None else read_moment(end, "end")
    if isinstance(start, JournalPosition):
        # A position that a client names is never exact.
        return JournalPosition(start.seq, start.epoch, end=end)
    _check_order(read_moment(start, "start"), until)
    return JournalPosition(0, start=start, end=end)


def _check_order(begin: Moment, until: Moment | None) -> None:
    if until is not None and until.of_day == begin.of_day and until.ms < begin.ms:
        raise BadRequest("bad_request", "end is before start")


def _check(position: Position) -> None:
    """Raise `BadRequest` for what no frame has as its position; infinity and NaN are numbers of MessagePack."""
    if not (0 <= position.epoch <= _MOST_NUMBER and 0 <= position.seq <= _MOST_NUMBER):
        raise BadRequest("bad_request", "start: the position of a frame has an epoch and a seq from 0 to 2^62")


def _code_of(topic: Topic, market: object) -> str:
    """Return the code of a topic whose position is one of its market."""
    parts = parse_topic(topic)
    if (parts.kind, parts.detail) != (Kind.QUOTE, "tick"):
        raise BadRequest("bad_request", "only ticks of a code have a position in a market")
    if market != parts.name.rpartition(".")[2]:
        raise BadRequest("bad_request", f"{parts.name} is of the market {parts.name.rpartition('.')[2]}")
    return parts.name


def _spread(questions: dict[Topic, StoreQuestion]) -> dict[Topic, StoreQuestion]:
    """Return questions for chunks of several sizes.

    Codes have their ticks at the same times. With chunks of one size all would be asked for the next one at once, and
    the last of them would be late.
    """
    return {
        topic: question._replace(chunk=max(1, question.chunk * (len(questions) + place) // (2 * len(questions))))
        for place, (topic, question) in enumerate(questions.items())
    }


def _not_asked_for(option: str, name: str) -> BadRequest:
    return BadRequest("bad_request", f"{option} names {name[:40]!r}, which the request does not ask for")


def playback_of(questions: Mapping[Topic, StoreQuestion]) -> Playback | None:
    """Return the clock by which all topics of a request are played, if they are."""
    return next((question.playback for question in questions.values() if question.playback is not None), None)


def shown_playback(questions: Mapping[Topic, StoreQuestion]) -> dict[str, Any]:
    """Return what an ack says of the pace: from which time of records on, and whether it meets the live stream."""
    playback = playback_of(questions)
    if playback is None:
        return {}
    begins = None if playback.first_ms is None else shown_moment(playback.first_ms)
    is_part = any(question.end is not None for question in questions.values())
    return {"play": {"speed": playback.speed, "from": begins, "meets_live": playback.gains and not is_part}}


def shown_beginning(beginning: Beginning) -> dict[str, Any]:
    """Return the entry of an ack: from when a code is complete, or why it is not."""
    begins = None if beginning.from_ms is None else shown_moment(beginning.from_ms)
    source = {} if beginning.source is None else {"source": beginning.source}
    if beginning.gap is None:
        return {"from": begins, "complete": True, **source}
    return {"from": begins, "complete": False, **source, **shown_gap(beginning.gap)}


def shown_gap(gap: Gap) -> dict[str, Any]:
    """Return what is told of a gap: the reason, and both of its sides as far as they are known."""
    sides = (("after", gap.after, gap.from_ms), ("before", gap.before, gap.until_ms))
    why = {} if gap.backfill is None else {"backfill": gap.backfill}
    return {"reason": gap.reason} | why | {name: _side(position, ms) for name, position, ms in sides if position or ms}


def _side(position: Position | None, ms: int | None) -> dict[str, Any]:
    where = {} if position is None else {"epoch": position.epoch, "seq": position.seq}
    return where if ms is None else where | {"time": ms}
