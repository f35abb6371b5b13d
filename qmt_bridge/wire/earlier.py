"""Version 1 of the wire, whose bodies were MessagePack: tapes and journals of it are read, its programs are refused.

Pure. The only place that knows it. Its messages had three parts: see `WireVersionError`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from qmt_bridge.errors import ErrorCode, WireVersionError
from qmt_bridge.wire import frames
from qmt_bridge.wire.requests import MAX_ASK_TOPICS
from qmt_bridge.wire.topics import STATUS_TOPIC

# The first bytes of what JSON begins with here: objects, and lists of events.
_JSON = (b"{", b"[")
# An empty list is one byte in MessagePack and 64 in memory: 4 MiB become 256 MiB. The longest bodies had some 100 KiB.
_MOST_BYTES = 4 * 1024 * 1024
_CODE: ErrorCode = "upstream_unavailable"


def modern(body: bytes) -> bytes:
    """Return a body of version 1 as version 2 has it; one of version 2, or a damaged one, as it is.

    They differ in their first byte: version 1 wrote maps and lists, whose MessagePack begins with other bytes. That a
    body is damaged is found where it is used.
    """
    if body[:1] in _JSON or len(body) > _MOST_BYTES:
        return body
    try:
        return frames.encode(msgspec.msgpack.decode(body, ext_hook=_ext))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        return body


def _ext(_: int, data: memoryview) -> str:
    return data.hex()


class _Ask(msgspec.Struct):
    """A question of version 1: `CatchUp` or `StartDownload`."""

    id: int
    topics: Annotated[list[str], msgspec.Meta(max_length=MAX_ASK_TOPICS)] | None = None


_ask_decoder = msgspec.msgpack.Decoder(_Ask)


def refusals(question: bytes, epoch: int) -> list[bytes]:
    """Return what answers a question of version 1, so that its program can tell its user; none for anything else.

    A gateway asks for the heartbeat first, and shows the state and the reason in it to its clients.
    """
    if question[:1] in _JSON:
        return []
    try:
        asked = _ask_decoder.decode(question)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    told = str(WireVersionError(frames.WIRE_VERSION, 1))
    if asked.topics is None:
        return [_encode({"reply": "download_started", "id": asked.id, "topic": None, "code": _CODE, "error": told})]
    status = {"source": "", "simulated": False, "state": "down", "epoch": epoch, "time": 0, "reason": told}
    refused = {"reply": "topic_state", "id": asked.id, "state": "refused", "error": told, "code": _CODE}
    live = {"reply": "topic_state", "id": asked.id, "state": "live", "body": _encode(status)}
    return [_encode({**(live if topic == STATUS_TOPIC else refused), "topic": topic}) for topic in asked.topics]


_encode = msgspec.msgpack.Encoder().encode
