"""What of a client's question a forwarder passes on, by the roles of the client's key. Pure.

The feeder sees the key of the forwarder alone, and decides by that one what the forwarder may ask. So a client of a
forwarder gets what both keys may have.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.requests import (
    AskHistory,
    CatchUp,
    DownloadStarted,
    Reply,
    StartDownload,
    TopicState,
    decode_ask,
    encode_ask,
)
from qmt_bridge.wire.survey import Finding, Roll
from qmt_bridge.wire.topics import ALL_TRADES

# With these a client may ask whatever the feeder answers.
ALL = frozenset(("ask", "download", "admin"))


class Passed(NamedTuple):
    """What is passed on, if anything is, and what the client is answered at once."""

    question: bytes | None
    replies: list[Reply]


def admit(payload: bytes, name: str, roles: frozenset[str], epoch: int) -> Passed:
    """Judge a question of the client key `name`; `epoch` is the feeder's, which refusals carry.

    Raise `BadRequest` or `WireError` for a question that cannot be judged, and so is not passed on.
    """
    if roles >= ALL:
        return Passed(payload, [])
    ask = decode_ask(payload)
    advice = f"the client key {name} lacks the role, which its file in clients/ of the forwarder can be given"
    if isinstance(ask, AskHistory):
        return Passed(payload, [])
    if isinstance(ask, CatchUp):
        of_trades = [topic for topic in dict.fromkeys(ask.topics) if _is_journaled(topic)]
        if "ask" in roles or not of_trades:
            return Passed(payload, [])
        others = [topic for topic in ask.topics if not _is_journaled(topic)]
        error = f"trade events are not for this asker: {advice}"
        refused: list[Reply] = [TopicState(ask.id, topic, "refused", error, "forbidden", epoch) for topic in of_trades]
        return Passed(encode_ask(msgspec.structs.replace(ask, topics=others)) if others else None, refused)
    if isinstance(ask, StartDownload):
        if "download" in roles:
            return Passed(payload, [])
        error = f"downloads are not for this asker: {advice}"
        return Passed(None, [DownloadStarted(ask.id, None, "forbidden", error)])
    if "admin" in roles:
        return Passed(payload, [])
    if isinstance(ask, Finding):
        raise BadRequest("forbidden", "a finding of an asker that may not survey")
    return Passed(None, [Roll(ask.id, [], f"surveys are not for this asker: {advice}")])


def _is_journaled(topic: str) -> bool:
    # As the feeder decides it: also what is no topic, but begins like one of trade events.
    return topic.partition("/")[0] == ALL_TRADES.rstrip("/")
