"""Frames: the exact bytes of the wire, and each body's encodings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import psutil
import pytest

from qmt_bridge.errors import WireError, WireVersionError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.messages import Bar, Tick, event_position, read_status
from qmt_bridge.wire.requests import DownloadStarted, Reply, TopicState, decode_ask, decode_reply, encode_reply
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
        b"quote/600519.SH/tick/" + bytes.fromhex("0000000000000001 0000000000000002 0000000000000003 0000000000000004"),
        b'{"a":1}',
    ]
    back = Frame.from_parts(parts)
    assert (back.topic, back.epoch, back.seq, back.received_ns, back.published_ns) == (TOPIC, 1, 2, 3, 4)
    assert back.data == {"a": 1}


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"topic/"],
        [b"topic/", b"{}"],
        [b"topic/" + bytes(32)],
        [b"topic/" + bytes(32), b"", b""],
        [b"\xff/" + bytes(32), b""],
    ],
)
def test_what_is_not_a_frame_is_refused(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        Frame.from_parts(parts)


def test_every_value_of_a_record_survives() -> None:
    body = {"000001.SZ": [TICK]}
    assert json.loads(frames.encode(body)) == body
    assert frames.decode(frames.encode(body)) == body


def test_numbers_that_json_cannot_hold_become_null() -> None:
    assert frames.encode({"a": math.nan, "b": math.inf, "c": [-math.inf]}) == b'{"a":null,"b":null,"c":[null]}'


def test_bytes_become_hexadecimal_digits() -> None:
    assert frames.encode([b"\xff\x00", bytearray(b"a")]) == b'["ff00","61"]'


def test_integers_of_any_size_are_exact() -> None:
    numbers = [2**63, 2**64 - 1, 2**64, -(2**63) - 1, Int64(10**40)]
    encoded = frames.encode({"n": numbers, 2**70: {"deep": ({"n": 10**30},)}, "x": 1e16})
    written = ",".join(str(int(number)) for number in numbers)
    assert encoded == f'{{"n":[{written}],"{2**70}":{{"deep":[{{"n":{10**30}}}]}},"x":1e+16}}'.encode()
    assert frames.decode(encoded)["n"] == numbers


def test_a_kept_body_takes_little_more_memory_than_its_bytes() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    kept = [frames.encode({"000001.SZ": [TICK]}) for _ in range(20_000)]
    taken = process.memory_info().rss - before
    assert taken < 3 * sum(map(len, kept))


def test_a_message_of_version_1_is_refused_in_words() -> None:
    with pytest.raises(WireVersionError, match=r"the feeder speaks version 1 .* version 2: update the feeder"):
        Frame.from_parts([b"quote/600519.SH/tick/", bytes(32), b"\x80"])


def test_a_heartbeat_of_a_later_version_is_refused_in_words() -> None:
    status = {"source": "sim", "simulated": True, "state": "up", "epoch": 1, "time": 2, "wire": 3}
    with pytest.raises(WireVersionError, match=r"the feeder speaks version 3 .* update this program"):
        read_status(frames.encode(status))
    assert read_status(frames.encode(status | {"wire": 2})).state == "up"


def test_numpys_scalars_and_arrays_are_encoded_as_pythons() -> None:
    numpy = pytest.importorskip("numpy")
    record = {"a": numpy.int64(2**62), "b": numpy.float32(0.5), "c": numpy.bool_(True), "d": numpy.array([1.5, 2.0])}
    assert frames.decode(frames.encode(record)) == {"a": 2**62, "b": 0.5, "c": True, "d": [1.5, 2.0]}
    with pytest.raises(TypeError, match=r"not JSON serializable: numpy\.datetime64"):
        frames.encode(numpy.datetime64("2025-07-01"))


def test_subclasses_of_numbers_are_encoded_as_numbers() -> None:
    assert frames.decode(frames.encode({"time": Int64(1733118954000), "n": [Int64(2**62)]})) == {
        "time": 1733118954000,
        "n": [2**62],
    }


def test_unknown_objects_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="not JSON serializable: complex"):
        frames.encode({"a": 1j})


def test_a_frame_of_a_client_is_built_once() -> None:
    frame = Frame(TOPIC, 1, 1, 0, 0, frames.encode({"a": 1}))
    assert frame.framed is frame.framed
    assert frame.framed == b'\x81\x07{"a":1}'


def test_bodies_that_are_not_json_are_refused() -> None:
    for read in (frames.decode, frames.split, frames.checked):
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
    tick = msgspec.json.decode(frames.encode({"000001.SZ": [TICK]}), type=dict[str, list[Tick]])["000001.SZ"][0]
    assert (tick.last_price, tick.bid_price[2], tick.ask_vol[0], tick.speed1_min) == (
        11.39,
        11.370000000000001,
        10929,
        0,
    )
    bar = msgspec.json.decode(
        frames.encode({"time": 1, "close": 2.5, "settelementPrice": 0.5, "suspendFlag": -1}), type=Bar
    )
    assert (bar.close, bar.settelement_price, bar.suspend_flag) == (2.5, 0.5, -1)


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="no-json"),
        pytest.param(b'{"\xff\xfe":1}', id="no-utf8"),
        pytest.param(DEEP, id="deep"),
        pytest.param(b'{"a":' + DEEP, id="deep-in-a-map"),
        pytest.param(b"{{}:1}", id="map-as-key"),
        pytest.param(b'{"a":1', id="cut"),
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
        decode_ask,
        decode_reply,
        read_status,
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
    encoded = encode_reply(reply)
    assert frames.decode(encoded)["reply"] == tag
    assert decode_reply(encoded) == reply


def test_the_body_of_an_answer_is_a_part_of_its_json() -> None:
    body = frames.encode({"600519.SH": [TICK]})
    state = TopicState(7, "quote/600519.SH/tick/", "live", None, None, 9, 4, body)
    assert json.loads(encode_reply(state))["body"] == {"600519.SH": [TICK]}
    assert decode_reply(encode_reply(state)) == state
