"""Views: how each option changes a frame, and that clients with the same view share one frame."""

from __future__ import annotations

import gc
import json
import math
import weakref
import zlib
from typing import Any

import msgspec
import pytest

from gateway.sending.view import View, in_one_order
from qmt_bridge.errors import WireError
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic, quote_topic

TICK = quote_topic("600519.SH")
RECORD = {"time": 1, "lastPrice": 1858.0, "volume": 7, "pe": math.nan}


def frame(body: object, topic: Topic = TICK) -> Frame:
    return Frame(topic, 10**18 + 1, 7, 1_764_000_000_123_456_789, 1_764_000_000_123_556_789, frames.encode(body))


def shown(view: View, body: object) -> Any:
    payload = view.render(frame(body))
    return msgspec.msgpack.decode(payload) if view.binary else json.loads(payload)


@pytest.mark.parametrize("binary", [False, True])
def test_only_the_named_fields_are_kept_in_their_order(binary: bool) -> None:
    view = View(binary, ("volume", "lastPrice", "nonsense"))
    assert shown(view, {"600519.SH": [RECORD, {"volume": 8}]}) == {
        "600519.SH": [{"volume": 7, "lastPrice": 1858.0}, {"volume": 8}]
    }
    assert shown(view, {"600519.SH": RECORD}) == {"600519.SH": {"volume": 7, "lastPrice": 1858.0}}
    assert list(shown(view, {"600519.SH": RECORD})["600519.SH"]) == ["volume", "lastPrice"]


@pytest.mark.parametrize("binary", [False, True])
def test_stamp_has_position_times_and_the_plain_data(binary: bool) -> None:
    body = {"600519.SH": [{"volume": 7}]}
    assert shown(View(binary, stamped=True), body) == {
        "type": "data",
        "epoch": 10**18 + 1,
        "seq": 7,
        "time": 1_764_000_000_123.4568,
        "published": 1_764_000_000_123.5568,
        "data": body,
    }


def test_last_value_has_no_times() -> None:
    last = Frame(TICK, 5, 7, 0, 0, frames.encode({}))
    assert json.loads(View(stamped=True).render(last)) == {
        "type": "data",
        "epoch": 5,
        "seq": 7,
        "time": None,
        "published": None,
        "data": {},
    }


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("body", [{"formula_name": "MA", "data": {"v": [1]}}, {}])
def test_formula_values_name_their_subscription(binary: bool, body: dict[str, object]) -> None:
    assert shown(View(binary, seq_id=3), body) == {"type": "formula_update", "seq_id": 3, **body}
    assert shown(View(binary, stamped=True, seq_id=3), body)["data"] == {"type": "formula_update", "seq_id": 3, **body}


def test_a_body_without_options_is_sent_as_the_feeder_published_it() -> None:
    published = frame({"600519.SH": [RECORD]})
    assert View().render(published) is published.body


def test_messagepack_has_what_the_json_has() -> None:
    body = {"600519.SH": [RECORD | {"long": 2**64 - 1, "longer": 2**64 + 1, "longest": [-(10**400)]}]}
    expected = json.loads(frames.encode(body))
    expected["600519.SH"][0] |= {"longer": 2.0**64, "longest": [-math.inf]}
    assert shown(View(True), body) == expected


def test_clients_of_one_view_share_the_frame() -> None:
    published = frame({"600519.SH": [RECORD]})
    one, two = View(fields=("volume",)).of(published), View(fields=("volume",)).of(published)
    assert one is two
    assert one.framed is two.framed
    assert View(fields=("time",)).of(published).framed != one.framed


class Named(str):
    """A topic that can be watched; a frame cannot."""


def test_rendered_frame_is_freed_without_the_collector() -> None:
    gc.disable()
    try:
        published = frame({"600519.SH": [RECORD]}, Topic(Named(TICK)))
        watched = weakref.ref(published.topic)
        assert View(fields=("time",)).of(published).framed
        del published
        assert watched() is None
    finally:
        gc.enable()


def test_messagepack_frames_are_marked_as_binary() -> None:
    published = frame({"n": 1})
    packed = msgspec.msgpack.encode({"n": 1})
    assert View(True).of(published).framed == b"\x82" + bytes([len(packed)]) + packed
    assert View(False, stamped=True).of(published).framed[0] == 0x81


@pytest.mark.parametrize(("size", "deflated"), [(100, False), (5_000, True), (2_000_000, True)])
def test_long_frames_are_compressed_independently(size: int, deflated: bool) -> None:
    published = frame({"text": "行情" * (size // 6)})
    framed = View(deflated=True).of(published).framed
    if not deflated:
        assert framed == published.framed
        return
    assert framed[0] == 0xC1
    start = 2 if framed[1] < 126 else 4 if framed[1] == 126 else 10
    inflate = zlib.decompressobj(wbits=-frames.DEFLATE_WINDOW)
    assert inflate.decompress(framed[start:] + b"\x00\x00\xff\xff") == published.body
    assert len(framed) < size / 10


@pytest.mark.parametrize("view", [View(seq_id=1), View(True, seq_id=1), View(fields=("n",)), View(True, ("n",))])
@pytest.mark.parametrize("body", [b"\xc1", b"{", frames.encode(3), frames.encode([[[1]]])])
def test_body_without_fields_is_sent_whole_or_a_wire_error(view: View, body: bytes) -> None:
    try:
        view.render(Frame(TICK, 1, 1, 0, 0, body))
    except WireError:
        return
    assert body not in (b"\xc1", b"{")


@pytest.mark.parametrize("body", [
    {"a": [{"x": 1, "y": math.nan, "deep": {"z": [1]}}, {}], "b": {"x": None, "q": 2}},
    {"a": [{"x": 1, "量比": 2.5, "x y": 3, "": 4}]},
    {"a": [1, {"x": 1, "y": 2}], "b": 3, "c": "text"}, {"a": {1: 2, "x": 3}}, {1: {"x": 2, "y": 3}},
    [{"x": 1}], 7, None, {}, {"a": []}, {"a": [[{"x": 1, "y": 2}]]},
])  # fmt: skip
@pytest.mark.parametrize("fields", [("x",), ("deep", "x"), ("class", "__doc__", "x y", "", "量比")])
def test_fields_are_the_same_as_of_the_whole_record(body: object, fields: tuple[str, ...]) -> None:
    def cut(record: Any) -> Any:
        return {name: record[name] for name in fields if name in record} if isinstance(record, dict) else record

    def cut_all(body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {code: [*map(cut, of)] if isinstance(of, list) else cut(of) for code, of in body.items()}

    # New strings, as a request has them: msgspec keeps with a string how it is encoded.
    named = tuple("".join(list(name)) for name in fields)
    assert View(fields=named).render(frame(body)) == frames.encode(cut_all(body))


def test_fields_in_any_order_are_one_view() -> None:
    views = {View(fields=in_one_order(fields)) for fields in (("b", "a"), ("a", "b"), ("a", "b", "a"))}
    assert views == {View(fields=("a", "b"))}
