"""What a store answers."""

from __future__ import annotations

import json

import msgspec
import pytest

from qmt_bridge.errors import WireError
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole, StoredFrame, TopicHistory, decode_history, encode_history, frames_of
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.topics import Topic

TOPIC = Topic("quote/600519.SH/tick/")
BODY = b'{"600519.SH":[{"time":1,"lastPrice":1416.05}]}'


def test_answer_survives_the_wire() -> None:
    hole = Hole("gap", Position(7, 1), Position(7, 4), 1, 2)
    stored = [StoredFrame(7, 1, 3, 4, msgspec.Raw(BODY)), StoredFrame(7, 4, 5, 6, msgspec.Raw(BODY))]
    sent = TopicHistory(1, TOPIC, frames=stored, more=True, epoch=7, seq=4, from_ms=1, holes=[hole])
    read = decode_history(encode_history(sent))
    assert (read.position, read.more, read.from_ms, read.holes) == (Position(7, 4), True, 1, [hole])
    frames = [(frame.topic, frame.epoch, frame.seq, frame.received_ns, frame.body) for frame in frames_of(read)]
    assert frames == [(TOPIC, 7, 1, 3, BODY), (TOPIC, 7, 4, 5, BODY)]


def test_bodies_are_a_part_of_the_json() -> None:
    [frame] = json.loads(encode_history(TopicHistory(1, TOPIC, frames=[StoredFrame(7, 1, 3, 4, msgspec.Raw(BODY))])))[
        "frames"
    ]
    assert frame == [7, 1, 3, 4, json.loads(BODY)]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"reply":"topic_state","id":1,"topic":""}', b'{"reply":"topic_history","id":1,"topic":1}', b"\xff"],
)
def test_what_is_no_answer_is_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_history(data)


def test_frame_has_the_stamp_of_its_message() -> None:
    frame = StoredFrame(7, 1, 3, 4, msgspec.Raw(BODY)).frame(TOPIC)
    assert isinstance(frame, Frame)
    assert (frame.received_ns, frame.published_ns) == (3, 4)
