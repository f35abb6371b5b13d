"""What the feeder answers to an `AskHistory`: messages of the past of a topic, as its source has them. Pure.

A question has one answer that it was taken, refused, or has to be asked again. The messages follow the first of these,
in parts. They have no numbers of the feeder: `seq` and `last` say where they meet what is published.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire.frames import read

# Bytes of the messages of a part, about.
PART_BYTES = 256 * 1024
# Bytes of all messages of an answer: a code has some 5,000 ticks of 470 bytes in a day.
HISTORY_BYTES = 16 * 1024 * 1024


class SourceHistory(msgspec.Struct, frozen=True, tag_field="reply", tag="history"):
    """One answer about one topic.

    `taken`: the source looks for it, and the messages follow; `pending`: the source does not serve the topic yet, so
    ask again; `refused`: `code` and `error` say why; `history`: a part of the messages.
    """

    id: int
    topic: str
    state: Literal["taken", "pending", "refused", "history"]
    error: str | None = None
    code: ErrorCode | None = None
    # The feeder's.
    epoch: int = 0
    # The newest message of the topic when the question came, and its body: what was published up to then is in the
    # history, unless that is late.
    seq: int = 0
    last: msgspec.Raw = msgspec.Raw(b"null")
    # The newest message of the topic when the history was found.
    newest: int = 0
    # Since when nothing is left out that the source has, in ms since 1970: the begin of the day.
    from_ms: int = 0
    # The bodies of the messages, oldest first.
    bodies: list[msgspec.Raw] = []
    more: bool = False


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[SourceHistory] = msgspec.json.Decoder(SourceHistory)


def encode_source_history(answer: SourceHistory) -> bytes:
    """Return an answer as it is sent."""
    return _encoder.encode(answer)


def decode_source_history(data: bytes) -> SourceHistory:
    """Return an answer that has arrived; raise `WireError` if it is none."""
    return read(_decoder, data)
