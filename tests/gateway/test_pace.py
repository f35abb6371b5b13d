"""The client's own pace: one frame in its time, the newest, and of a market the newest of every code."""

from __future__ import annotations

from gateway.pace import Pace
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import quote_topic, whole_topic

TICK, SH = quote_topic("600519.SH"), whole_topic("SH")


def tick(seq: int) -> Frame:
    return Frame(TICK, 1, seq, 0, 0, frames.encode({"seq": seq}))


def batch(seq: int, **codes: int) -> Frame:
    return Frame(SH, 1, seq, 0, 0, frames.encode(codes))


def test_first_frame_passes_and_the_newest_of_the_rest_follows() -> None:
    pace = Pace(0.5, by_code=False)
    assert pace.admits(tick(1), 10.0)
    assert not pace.admits(tick(2), 10.1)
    assert not pace.admits(tick(3), 10.4)
    assert pace.due == 10.5
    assert [frame.seq for frame in pace.take(10.5)] == [3]
    assert not pace.admits(tick(4), 10.9)
    assert pace.due == 11.0


def test_frame_after_a_quiet_time_passes_at_once() -> None:
    pace = Pace(0.5, by_code=False)
    assert pace.admits(tick(1), 10.0)
    assert pace.admits(tick(2), 10.5)
    assert pace.take(11.0) == []


def test_what_waits_is_not_overtaken_when_its_time_has_come() -> None:
    pace = Pace(0.5, by_code=False)
    pace.admits(tick(1), 10.0)
    pace.admits(tick(2), 10.4)
    assert not pace.admits(tick(3), 10.6)
    assert [frame.seq for frame in pace.take(10.6)] == [3]


def test_market_keeps_the_newest_of_every_code() -> None:
    pace = Pace(0.5, by_code=True)
    assert pace.admits(batch(1, a=1), 10.0)
    for seq, codes in ((2, {"a": 2, "b": 2}), (3, {"b": 3}), (4, {"c": 4})):
        assert not pace.admits(batch(seq, **codes), 10.1)
    [kept] = pace.take(10.5)
    assert (kept.data, kept.seq, kept.topic) == ({"a": 2, "b": 3, "c": 4}, 4, SH)
    assert pace.take(11.0) == []
