"""Frames: the exact bytes of the wire, and each body's encodings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import Bar, FeedStatus, Tick, event_position
from qmt_bridge.wire.requests import (
    DownloadStarted,
    Reply,
    TopicState,
    ask_decoder,
    ask_reply_encoder,
    reply_decoder,
    topic_state_decoder,
)
from qmt_bridge.wire.topics import quote_topic

TOPIC = quote_topic("600519.SH")
# subscribe_whole_quote's sample in the SDK's own docstring (xtdata.py, 1492), with a field that we do not know.
TICK: dict[str, Any] = {
    "time": 1733118954000,
    "lastPrice": 11.39,
    "open": 11.39,
    "high": 11.4,
    "low": 11.31,
    "lastClose": 11.38,
    "amount": 862127800.0,
    "volume": 758613,
    "pvolume": 75861284,
    "stockStatus": 3,
    "openInt": 13,
    "transactionNum": 37062,
    "lastSettlementPrice": 11.38,
    "settlementPrice": 0.0,
    "pe": 0.0,
    "askPrice": [11.4, 11.41, 11.42, 11.43, 11.44],
    "bidPrice": [11.39, 11.38, 11.370000000000001, 11.36, 11.35],
    "askVol": [10929, 12401, 6671, 4555, 6708],
    "bidVol": [2429, 7127, 7146, 9111, 12189],
    "volRatio": 0.0,
    "speed1Min": 0.0,
    "speed5Min": 0.0,
    "unknownField": "通过",
}


class Int64(int):
    """As bson's: a subclass of int, which msgspec does not take by itself."""


def test_parts_are_topic_stamp_and_body() -> None:
    body = frames.encode({"a": 1})
    parts = Frame(TOPIC, 1, 2, 3, 4, body).to_parts()
    assert parts == [
        b"quote/600519.SH/tick/",
        bytes.fromhex("0000000000000001 0000000000000002 0000000000000003 0000000000000004"),
        b"\x81\xa1a\x01",
    ]
    back = Frame.from_parts(parts)
    assert (back.topic, back.epoch, back.seq, back.received_ns, back.published_ns) == (TOPIC, 1, 2, 3, 4)
    assert back.data == {"a": 1}


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"topic/"],
        [b"topic/", b"short", b""],
        [b"topic/", bytes(32), b"", b""],
        [b"\xff/", bytes(32), b""],
    ],
)
def test_what_is_not_a_frame_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        Frame.from_parts(parts)


def test_every_value_of_a_record_survives() -> None:
    body = {"000001.SZ": [TICK]}
    assert json.loads(Frame(TOPIC, 1, 1, 0, 0, frames.encode(body)).json) == body
    assert frames.decode(frames.encode(body)) == body


def test_numbers_that_json_cannot_hold_become_null_there_only() -> None:
    body = frames.encode({"a": math.nan, "b": math.inf, "c": [-math.inf]})
    assert json.loads(Frame(TOPIC, 1, 1, 0, 0, body).json) == {"a": None, "b": None, "c": [None]}
    assert math.isnan(frames.decode(body)["a"])


def test_numpys_scalars_and_arrays_are_encoded_as_pythons() -> None:
    numpy = pytest.importorskip("numpy")
    record = {"a": numpy.int64(2**62), "b": numpy.float32(0.5), "c": numpy.bool_(True), "d": numpy.array([1.5, 2.0])}
    assert frames.decode(frames.encode(record)) == {"a": 2**62, "b": 0.5, "c": True, "d": [1.5, 2.0]}
    with pytest.raises(TypeError, match="cannot encode datetime64"):
        frames.encode(numpy.datetime64("2025-07-01"))


def test_subclasses_of_numbers_are_encoded_as_numbers() -> None:
    assert frames.decode(frames.encode({"time": Int64(1733118954000), "n": [Int64(2**62)]})) == {
        "time": 1733118954000,
        "n": [2**62],
    }


def test_unknown_objects_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="cannot encode complex"):
        frames.encode({"a": 1j})


def test_json_is_rendered_once() -> None:
    frame = Frame(TOPIC, 1, 1, 0, 0, frames.encode({"a": 1}))
    assert frame.json is frame.json


def test_bodies_that_are_not_messagepack_are_refused() -> None:
    for read in (frames.decode, frames.split):
        with pytest.raises(WireError):
            read(b"\xc1")
    with pytest.raises(WireError):
        frames.split(frames.encode([1]))


def test_market_is_split_and_joined_in_batches_within_the_limit() -> None:
    market = {f"{600000 + number}.SH": {**TICK, "volume": number} for number in range(2500)}
    batches = list(frames.join(frames.split(frames.encode(market))))
    assert len(batches) > 2
    assert all(len(batch) <= frames.BATCH_BYTES for batch in batches)
    # Full but for less than one tick.
    assert len(batches[0]) > frames.BATCH_BYTES - 1000
    assert {code: tick for batch in batches for code, tick in frames.decode(batch).items()} == market


def test_a_record_larger_than_a_batch_is_a_batch_of_its_own() -> None:
    market = {"1": msgspec.Raw(frames.encode("x" * 100)), "2": msgspec.Raw(frames.encode("y"))}
    assert [frames.decode(batch) for batch in frames.join(market, 50)] == [{"1": "x" * 100}, {"2": "y"}]


def test_typed_consumers_read_what_they_know() -> None:
    tick = msgspec.msgpack.decode(frames.encode({"000001.SZ": [TICK]}), type=dict[str, list[Tick]])["000001.SZ"][0]
    assert (tick.last_price, tick.bid_price[2], tick.ask_vol[0], tick.speed1_min) == (
        11.39,
        11.370000000000001,
        10929,
        0,
    )
    bar = msgspec.msgpack.decode(
        frames.encode({"time": 1, "close": 2.5, "settelementPrice": 0.5, "suspendFlag": -1}), type=Bar
    )
    assert (bar.close, bar.settelement_price, bar.suspend_flag) == (2.5, 0.5, -1)


DEEP = b"\x91" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no-msgpack"),
        pytest.param(b"\xa2\xff\xfe", id="no-utf8"),
        pytest.param(DEEP, id="deep"),
        pytest.param(b"\x81\xa1a" + DEEP, id="deep-in-a-map"),
        pytest.param(b"\x81\x80\x01", id="map-as-key"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="long-header"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        frames.decode,
        frames.split,
        frames.split_lists,
        frames.records,
        event_position,
        partial(frames.read, ask_decoder),
        partial(frames.read, topic_state_decoder),
        partial(frames.read, reply_decoder),
        partial(frames.read, msgspec.msgpack.Decoder(FeedStatus)),
    ],
)
def test_bytes_that_cannot_be_read_are_a_wire_error(read: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(WireError):
        read(body)


@pytest.mark.parametrize(
    ("reply", "tag"),
    [
        pytest.param(TopicState(7, "quote/600519.SH/tick/", "live"), "topic_state", id="topic-state"),
        pytest.param(DownloadStarted(7, "download/1/"), "download_started", id="download-started"),
    ],
)
def test_a_reply_of_the_feeder_names_its_type(reply: Reply, tag: str) -> None:
    encoded = ask_reply_encoder.encode(reply)
    assert frames.decode(encoded)["reply"] == tag
    assert frames.read(reply_decoder, encoded) == reply


def test_a_topic_state_without_a_tag_is_read_by_its_own_decoder() -> None:
    untagged = frames.encode({"id": 7, "topic": "whole/SH/", "state": "live"})
    assert frames.read(topic_state_decoder, untagged) == TopicState(7, "whole/SH/", "live")
    with pytest.raises(WireError):
        frames.read(reply_decoder, untagged)
    with pytest.raises(WireError):
        frames.read(topic_state_decoder, ask_reply_encoder.encode(DownloadStarted(7)))
