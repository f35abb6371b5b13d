"""The rules for reading every event of the journal: the gateway's streams and the ZeroMQ consumer share them. Pure.

1. Subscribe, then ask for what follows the last event; hold events that arrive meanwhile.
2. An event follows if it has the same epoch and the next sequence number. After a gap, or in a new epoch, hold it and
   ask the journal: its answer has what is missing, or refuses the position because the journal is another one.
3. An answer of an older epoch than the newest that was seen says nothing about the newer journal; ask again.
4. Drop events of an older epoch: the journal of the newer one has what was saved of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qmt_bridge.errors import WireError
from qmt_bridge.wire.frames import Frame, read
from qmt_bridge.wire.positions import Position, Step
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import shown_topic

_bodies_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def replayed(state: TopicState) -> list[bytes]:
    """Return the encoded events of an answer, the last of which has the position `state.seq`; none for no body.

    Raise `WireError` for a body that is no list.
    """
    if state.body is None:
        return []
    try:
        return [bytes(body) for body in read(_bodies_decoder, state.body)]
    except WireError as exc:
        raise WireError(f"the answer about {shown_topic(state.topic)} holds no events: {exc}") from exc


def successors(after: Position, held: Iterable[tuple[Position, Frame]]) -> list[tuple[Position, Frame]]:
    """Return the events of `held`, which are in the order of arrival, that follow `after` without a gap."""
    following: list[tuple[Position, Frame]] = []
    for position, frame in held:
        if after.step(position) is Step.NEXT:
            after = position
            following.append((position, frame))
    return following
