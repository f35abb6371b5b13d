"""The option `start` of a subscription: what it asks of the store of the day, and how its answer is shown. Pure.

Frames as in docs/websocket.md, "The day so far".
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.costs.turns import OF_CLIENT, chunk_bytes
from gateway.streams.member import Beginning, Gap, StoreQuestion
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.moments import read_moment, shown_moment
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import Options
from qmt_bridge.wire.topics import Topic

# Bytes of the first answer: it has to be read and sent before the client sees anything.
FIRST_BYTES = 64 * 1024
# The names in a start or a resume that are a position, and not one by code.
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
            raise BadRequest("bad_request", f"{option} names {name[:40]!r}, which the request does not ask for")
    try:
        return {topic: msgspec.convert(given[name], Position) for topic, name in named.items() if name in given}
    except msgspec.ValidationError as exc:
        raise BadRequest("bad_request", f"{option}: {str(exc)[:1].lower()}{str(exc)[1:]}") from None


def store_questions(options: Options, named: dict[Topic, str], outbox_bytes: int) -> dict[Topic, StoreQuestion]:
    """Return what to ask of the store for each topic of a request; none without a start."""
    if options.start is None:
        if options.end is not None:
            raise BadRequest("bad_request", "end is that of a part of the day, which needs a start")
        return {}
    if options.resume:
        raise BadRequest("bad_request", "start and resume both say where to begin; choose one")
    end = options.end
    until = None if end is None else read_moment(end, "end")
    chunk = chunk_bytes(outbox_bytes)
    # The first answers come for all topics at once, the later ones as it is each topic's turn.
    room = max(1, min(FIRST_BYTES, chunk * OF_CLIENT // max(1, len(named))))
    if not isinstance(options.start, dict):
        begin = read_moment(options.start, "start")
        if until is not None and until.of_day == begin.of_day and until.ms < begin.ms:
            raise BadRequest("bad_request", "end is before start")
        return dict.fromkeys(named, StoreQuestion(options.start, None, end, room, chunk))
    positions = positions_by_topic(options.start, named, "start")
    return {topic: StoreQuestion(None, position, end, room, chunk) for topic, position in positions.items()}


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
