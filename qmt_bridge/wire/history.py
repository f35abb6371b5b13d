"""What a store answers to a `CatchUp`: the records of a topic that it has kept, in chunks (docs/wire.md, "The store").

Pure. One answer a chunk; a reader that has taken it asks for what follows its last frame, at its own pace.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.frames import Frame, read
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Topic

# Why a store does not have what was published:
# store_began  it began to follow the topic later, or no program had asked for it before;
# gap          it has missed messages, or was away;
# restart      the feeder was another process; what it would have published between is unknown;
# removed      the day is older than the store keeps, or its limit of bytes was reached;
# not_stored   it does not keep this topic.
Missing = Literal["store_began", "gap", "restart", "removed", "not_stored"]


class StoredFrame(NamedTuple):
    """A message as it was published: its stamp, and its body as JSON."""

    epoch: int
    seq: int
    received_ns: int
    published_ns: int
    body: msgspec.Raw

    def frame(self, topic: Topic) -> Frame:
        """Return it as it arrived."""
        return Frame(topic, self.epoch, self.seq, self.received_ns, self.published_ns, bytes(self.body))


class Hole(msgspec.Struct, frozen=True):
    """A part of a topic that is missing: after one stored position (None: from the start on) and before another."""

    reason: Missing
    after: Position | None = None
    before: Position | None = None
    # Time of the record before the hole and of the one behind it, in ms since 1970; None where there is none.
    from_ms: int | None = None
    until_ms: int | None = None
    # Why the source's history is not there instead, as a sentence; None if it was not asked for.
    backfill: str | None = None


class TopicHistory(msgspec.Struct, frozen=True, tag_field="reply", tag="topic_history"):
    """The answer to `CatchUp` for one topic, or a part of it."""

    id: int
    topic: str
    # `filling`: the source is asked for what is before the first message that is stored; ask again in a moment.
    state: Literal["stored", "filling", "refused"] = "stored"
    error: str | None = None
    code: ErrorCode | None = None
    # In the order of their positions; between two of them nothing is missing but what `holes` says.
    frames: list[StoredFrame] = []
    # Of each frame the time of its newest record, in ms since 1970, which never goes back within an epoch.
    times: list[int] = []
    # Whether more is stored up to now, or up to `end`: ask again after the last frame.
    more: bool = False
    # The position of the last frame of this answer; without one, the position that was asked for or of the newest
    # record; 0, 0 for a topic without any.
    epoch: int = 0
    seq: int = 0
    # The moment that a `start` or `end` means, in ms since 1970; 0 if that is unknown, as without any record.
    start_ms: int = 0
    end_ms: int = 0
    # Time of the first record of an answer to `start`; None without one.
    from_ms: int | None = None
    holes: list[Hole] = []
    # Of an answer to `start`: "history" if its first message was not received live, but is one of the source's history.
    source: Literal["history"] | None = None

    @property
    def position(self) -> Position:
        """Return the position up to which the reader has everything that is stored."""
        return Position(self.epoch, self.seq)


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[TopicHistory] = msgspec.json.Decoder(TopicHistory)


def encode_history(history: TopicHistory) -> bytes:
    """Return an answer as it is sent."""
    return _encoder.encode(history)


def decode_history(data: bytes) -> TopicHistory:
    """Return an answer that has arrived; raise `WireError` if it is none."""
    return read(_decoder, data)


def frames_of(history: TopicHistory) -> list[Frame]:
    """Return the messages of an answer as they arrived."""
    topic = Topic(history.topic)
    # As `StoredFrame.frame` does: to call it for each takes half as long again.
    return [
        Frame(topic, epoch, seq, received_ns, published_ns, bytes(body))
        for epoch, seq, received_ns, published_ns, body in history.frames
    ]


def timed_frames(history: TopicHistory) -> list[tuple[int, Frame]]:
    """Return the messages of an answer with their times; an older store tells none, and it is when they came."""
    times = history.times
    if len(times) != len(history.frames):
        times = [stored.received_ns // 1_000_000 for stored in history.frames]
    return list(zip(times, frames_of(history), strict=True))


class StoreStatus(msgspec.Struct, frozen=True):
    """How a store is: the answer to a question about `STORE_TOPIC` has it as the body of its only message.

    `failure` is why messages are not stored at the moment; `left_out` counts those that arrived and were not stored
    since the start, `refused` questions that were malformed or too many. `instance` is the run of `qmt-bridge up` that
    has started the store, empty without one. `size` counts bytes on the disk, `days` are those that are stored.
    `free` is how many bytes its disk had left some seconds ago. `filled` counts the topics whose day was completed from
    the source's history since the start, `unfilled` those for which that failed or was refused. `waiting` counts
    messages that were taken and are not written yet, `lag` is the seconds between the feeder and the store of the
    newest message that was taken. `syncs` counts how often what was written was brought to the disk, which took
    `sync_seconds`.
    """

    time: int
    version: str = ""
    instance: str = ""
    failure: str | None = None
    topics: int = 0
    stored: int = 0
    left_out: int = 0
    refused: int = 0
    size: int = 0
    days: tuple[str, ...] = ()
    free: int = 0
    filled: int = 0
    unfilled: int = 0
    waiting: int = 0
    lag: float = 0.0
    syncs: int = 0
    sync_seconds: float = 0.0


_status_decoder = msgspec.json.Decoder(StoreStatus)


def encode_status(status: StoreStatus) -> bytes:
    """Return a status as the body of a message."""
    return _encoder.encode(status)


def decode_status(body: bytes) -> StoreStatus:
    """Return the status that a body is; raise `WireError` if it is none."""
    return read(_status_decoder, body)
