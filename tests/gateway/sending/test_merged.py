"""The waiting frames of one topic: which record replaces which, and how the rest is sent."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sending.merged import Merged
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import BATCH_BYTES, Frame
from qmt_bridge.wire.topics import Topic, Versions

CODE = "600519.SH"


def merged(versions: Versions, *bodies: object) -> tuple[Merged, int]:
    waiting, replaced = Merged(versions), 0
    for seq, body in enumerate(bodies, 1):
        frame = Frame(Topic("quote/600519.SH/tick/"), 1, seq, seq, seq, frames.encode(body))
        replaced += waiting.add(frame)
    return waiting, replaced


def shown(waiting: Merged) -> list[Any]:
    return [frame.data for frame in waiting.batches()]


def bar(time: object, close: float = 0.0) -> dict[str, object]:
    return {"time": time, "close": close}


def values(times: list[int], value: float, *names: str) -> dict[str, object]:
    outputs = {name: [value] * len(times) for name in names or ("MA1",)}
    return {"formula_name": "MA", "data": {"dbt": 0, "timelist": times, "outputs": outputs}}


@pytest.mark.parametrize(
    ("bodies", "left", "replaced"),
    [
        pytest.param([{CODE: [1]}, {CODE: [2]}, {CODE: [3]}], [{CODE: [3]}], 2, id="lists"),
        pytest.param([{CODE: 1}, {CODE: 2}], [{CODE: 2}], 1, id="single-records"),
        pytest.param([{CODE: [1, 2]}, {CODE: [3, 4]}], [{CODE: [4]}], 3, id="lists-of-two"),
        pytest.param([{CODE: [1, 2]}, {CODE: [3]}], [{CODE: [3]}], 2, id="a-list-of-two-then-one"),
        pytest.param([{"a": 1, "b": 1}, {"b": 2}, {"c": 3}], [{"a": 1, "b": 2, "c": 3}], 1, id="codes"),
        pytest.param([{"a": 1}, {"a": 2, "b": 1}, {"b": 2}], [{"a": 2, "b": 2}], 2, id="more-codes"),
        pytest.param([{CODE: [1]}, {CODE: []}], [{CODE: [1]}], 0, id="an-empty-list-says-nothing"),
        pytest.param([{CODE: []}, {CODE: [1]}], [{CODE: [1]}], 0, id="an-empty-list-first"),
        pytest.param([[1], {CODE: 2}, {CODE: 3}], [[1], {CODE: 3}], 1, id="no-map"),
        pytest.param([{CODE: list(range(20))}, {CODE: list(range(70_000))}], [{CODE: [69_999]}], 70_019, id="long"),
    ],
)
def test_newest_tick_of_each_code_is_kept(bodies: list[object], left: list[object], replaced: int) -> None:
    waiting, count = merged("code", *bodies)
    assert (shown(waiting), count) == (left, replaced)


@pytest.mark.parametrize(
    ("bodies", "left", "replaced"),
    [
        pytest.param([{CODE: [bar(1, 5)]}, {CODE: [bar(1, 6)]}], [{CODE: [bar(1, 6)]}], 1, id="the-same-bar"),
        pytest.param([{CODE: [bar(1, 5)]}, {CODE: [bar(2, 6)]}], [{CODE: [bar(1, 5), bar(2, 6)]}], 0, id="the-next"),
        pytest.param(
            [{CODE: [bar(1, 5)]}, {CODE: [bar(1, 6), bar(2, 7)]}, {CODE: [bar(2, 8)]}],
            [{CODE: [bar(1, 6), bar(2, 8)]}],
            2,
            id="the-last-state-with-the-next-bar",
        ),
        pytest.param([{CODE: [bar(1, 5)]}, {CODE: [bar(1.0, 6)]}], [{CODE: [bar(1.0, 6)]}], 1, id="a-time-of-a-float"),
        pytest.param([{CODE: [{"n": 1}]}, {CODE: [{"n": 2}]}], [{CODE: [{"n": 1}, {"n": 2}]}], 0, id="no-time"),
        pytest.param([{CODE: [bar(None)]}, {CODE: [bar(None)]}], [{CODE: [bar(None)] * 2}], 0, id="time-null"),
        pytest.param([{CODE: [1, "x"]}, {CODE: [1]}], [{CODE: [1, "x", 1]}], 0, id="no-records"),
        pytest.param(
            [{CODE: [bar(1)]}, {CODE: bar(1, 7)}, {CODE: [bar(1, 8)]}],
            [{CODE: [bar(1)]}, {CODE: bar(1, 7)}, {CODE: [bar(1, 8)]}],
            0,
            id="another-form-keeps-its-place",
        ),
        pytest.param(
            [{"a": [bar(1, 1)]}, {"b": [bar(1, 2)]}, {"a": [bar(1, 3)]}],
            [{"a": [bar(1, 3)], "b": [bar(1, 2)]}],
            1,
            id="codes",
        ),
    ],
)
def test_newest_state_of_each_bar_is_kept(bodies: list[object], left: list[object], replaced: int) -> None:
    waiting, count = merged("bar", *bodies)
    assert (shown(waiting), count) == (left, replaced)


def test_all_events_are_kept_in_order_in_one_frame() -> None:
    prints = [{"time": 1, "tradeIndex": number} for number in range(10)]
    waiting, replaced = merged("none", *({CODE: prints[at : at + 2]} for at in range(0, 10, 2)))
    assert (shown(waiting), replaced) == ([{CODE: prints}], 0)


@pytest.mark.parametrize(
    ("bodies", "left"),
    [
        pytest.param([values([3], 1), values([3], 2)], [values([3], 2)], id="the-same-bar"),
        pytest.param([values([3], 1), values([4], 2)], [values([3], 1), values([4], 2)], id="the-next"),
        pytest.param([values([3], 1), values([3, 4], 2)], [values([3, 4], 2)], id="the-bar-with-the-next"),
        pytest.param(
            [values([1, 2, 3], 1), values([3], 2), values([3], 3)],
            [values([1, 2, 3], 1), values([3], 3)],
            id="history-stays",
        ),
        pytest.param([values([1, 3], 1), values([1, 2, 4], 2)], [values([1, 3], 1), values([1, 2, 4], 2)], id="a-hole"),
        pytest.param([values([3], 1, "A", "B"), values([3], 2, "A")], None, id="an-output-less"),
        pytest.param([values([3], 1, "A"), values([3], 2, "A", "B")], [values([3], 2, "A", "B")], id="an-output-more"),
        pytest.param([{"n": 1}, {"n": 2}], [{"n": 2}], id="no-bars"),
        pytest.param([values([3], 1), {"n": 1}], None, id="bars-then-none"),
        pytest.param([{"n": 1}, values([3], 1)], None, id="none-then-bars"),
    ],
)
def test_no_bar_of_a_formula_is_lost(bodies: list[object], left: list[object] | None) -> None:
    waiting, replaced = merged("values", *bodies)
    expected = bodies if left is None else left
    assert (shown(waiting), replaced) == (expected, len(bodies) - len(expected))


def test_only_the_newest_progress_message_is_kept() -> None:
    waiting, replaced = merged("topic", {"finished": 1}, {"finished": 2}, {"status": "done"})
    assert (shown(waiting), replaced) == ([{"status": "done"}], 2)


@pytest.mark.parametrize("versions", ["topic", "code", "bar", "values", "none"])
def test_single_waiting_frame_stays_the_same_object(versions: Versions) -> None:
    waiting, frame = Merged(versions), Frame(Topic("quote/x/1m/"), 1, 1, 0, 0, b"\xc1")
    assert not waiting
    waiting.add(frame)
    assert waiting
    assert [*waiting.batches()] == [frame]


def test_newer_tick_replaces_the_whole_frame() -> None:
    # A frame that is shared by all clients is rendered once.
    waiting = Merged("code")
    two = [Frame(Topic("quote/x/tick/"), 1, seq, 0, 0, frames.encode({CODE: [seq]})) for seq in (1, 2)]
    for frame in two:
        waiting.add(frame)
    assert [*waiting.batches()] == [two[1]]


@pytest.mark.parametrize(("versions", "body"), [("code", {"a": 1}), ("bar", {CODE: [bar(1)]}), ("none", {CODE: [1]})])
def test_merged_records_have_the_newest_stamp(versions: Versions, body: object) -> None:
    waiting, _ = merged(versions, body, {CODE: [bar(2)]}, {CODE: [bar(3)]})
    assert {(frame.seq, frame.received_ns) for frame in waiting.batches()} == {(3, 3)}


@pytest.mark.parametrize("versions", ["bar", "none"])
def test_many_records_of_one_code_are_sent_in_several_frames(versions: Versions) -> None:
    records = [{"time": time, "pad": "x" * 1000} for time in range(1200)]
    waiting, _ = merged(versions, *({CODE: [record]} for record in records))
    bodies = [frame.body for frame in waiting.batches()]
    assert len(bodies) > 1
    assert all(BATCH_BYTES - 1100 < len(body) <= BATCH_BYTES for body in bodies[:-1])
    assert [record for body in bodies for record in frames.decode(body)[CODE]] == records


def test_irreplaceable_bytes_are_counted_as_kept() -> None:
    for versions, body in (("bar", {CODE: [bar(1)]}), ("none", {CODE: [1]}), ("values", values([1], 1))):
        waiting, _ = merged(versions, body, {CODE: [bar(2)]}, body)  # type: ignore[arg-type]
        assert 0 < waiting.kept == waiting.size
    waiting, _ = merged("code", {"a": 1}, {"b": 1})
    assert 0 == waiting.kept < waiting.size
    waiting.add(Frame(Topic("quote/x/tick/"), 1, 1, 0, 0, b"\xc0" * 100))
    assert 100 < waiting.kept < waiting.size
