"""The client's limit on the rate of frames: the newest frame, and of a market the newest tick of every code."""

from __future__ import annotations

import pytest

from gateway.sending.pace import SHORTEST, MarketPace, Pace, limit
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, LastValue
from qmt_bridge.wire.topics import behaviour_of, quote_topic, whole_topic

TICK, SH = quote_topic("600519.SH"), whole_topic("SH")


def tick(seq: int) -> Frame:
    return Frame(TICK, 1, seq, 0, 0, frames.encode({"seq": seq}))


def batch(seq: int, **codes: int) -> Frame:
    return Frame(SH, 1, seq, 0, 0, frames.encode(codes))


def test_first_frame_and_then_the_newest_are_passed_on() -> None:
    pace = Pace(0.5, "code")
    assert pace.admits(tick(1), 10.0)
    assert not pace.admits(tick(2), 10.1)
    assert not pace.admits(tick(3), 10.4)
    assert pace.due == 10.5
    assert [frame.seq for frame in pace.take(10.5)] == [3]
    assert not pace.admits(tick(4), 10.9)
    assert pace.due == 11.0


def test_frame_after_a_quiet_time_is_passed_on_at_once() -> None:
    pace = Pace(0.5, "code")
    assert pace.admits(tick(1), 10.0)
    assert pace.admits(tick(2), 10.5)
    assert pace.take(11.0) == []


def test_due_frame_is_not_overtaken() -> None:
    pace = Pace(0.5, "code")
    pace.admits(tick(1), 10.0)
    pace.admits(tick(2), 10.4)
    assert not pace.admits(tick(3), 10.6)
    assert [frame.seq for frame in pace.take(10.6)] == [3]


def test_market_keeps_the_newest_of_every_code() -> None:
    pace = Pace(0.5, "code")
    assert pace.admits(batch(1, a=1), 10.0)
    for seq, codes in ((2, {"a": 2, "b": 2}), (3, {"b": 3}), (4, {"c": 4})):
        assert not pace.admits(batch(seq, **codes), 10.1)
    [kept] = pace.take(10.5)
    assert (kept.data, kept.seq, kept.topic) == ({"a": 2, "b": 3, "c": 4}, 4, SH)
    assert pace.take(11.0) == []


def quoted(seq: int, period: str, *records: object) -> Frame:
    return Frame(quote_topic("600519.SH", period), 1, seq, 0, 0, frames.encode({"600519.SH": records}))


@pytest.mark.parametrize("period", ["l2transaction", "l2order", "announcement"])
def test_events_are_gathered_and_sent_together(period: str) -> None:
    pace = Pace(0.5, behaviour_of(quote_topic("600519.SH", period)).versions)
    assert pace.admits(quoted(1, period, 1), 10.0)
    for seq in range(2, 6):
        assert not pace.admits(quoted(seq, period, seq, -seq), 10.1)
    [gathered] = pace.take(10.5)
    assert (gathered.data, gathered.seq) == ({"600519.SH": [2, -2, 3, -3, 4, -4, 5, -5]}, 5)


def test_last_state_of_a_bar_is_sent_with_the_next_bar() -> None:
    pace = Pace(0.5, "bar")
    pace.admits(quoted(1, "1m", {"time": 1, "n": 1}), 10.0)
    for seq, time in ((2, 1), (3, 1), (4, 2), (5, 2)):
        pace.admits(quoted(seq, "1m", {"time": time, "n": seq}), 10.1)
    [gathered] = pace.take(10.5)
    assert gathered.data == {"600519.SH": [{"time": 1, "n": 3}, {"time": 2, "n": 5}]}


def test_irreplaceable_records_wait_up_to_one_frames_size() -> None:
    pace = Pace(3600.0, "none")
    pace.admits(quoted(1, "l2order", 0), 10.0)
    sent = 0
    while not pace.full:
        sent += 1
        assert sent < 1000
        pace.admits(quoted(sent + 1, "l2order", "x" * 1000), 10.0)
    assert sum(len(frame.data["600519.SH"]) for frame in pace.take(10.0)) == sent
    assert not pace.full
    ticks = Pace(3600.0, "code")
    for seq in range(2000):
        ticks.admits(quoted(seq, "tick", "x" * 1000), 10.0)
    assert not ticks.full


def last(seq: int, **codes: int) -> LastValue:
    return LastValue(SH, 1, seq, 0, 0, frames.encode(codes))


def bodies(passed: list[Frame]) -> list[object]:
    return [frame.data for frame in passed]


def test_each_code_of_a_market_is_due_by_itself() -> None:
    pace = limit(0.8, behaviour_of(SH))
    assert isinstance(pace, MarketPace)
    whole = batch(1, a=1, b=1)
    # Passed as it is, so it is rendered once for all clients.
    assert pace.offer(whole, 10.0) == [whole]
    assert bodies(pace.offer(batch(2, a=2, c=2), 10.5)) == [{"c": 2}]
    assert pace.offer(batch(3, b=3), 10.6) == []
    assert pace.offer(batch(4, c=4), 10.6) == []
    assert (pace.waits, pace.due) == (True, 10.8)
    [taken] = pace.take(10.8)
    assert (taken.data, taken.seq) == ({"a": 2, "b": 3}, 4)
    # The code that is due later waits for its own time, and a newer record replaces the one that waits.
    assert pace.due == 11.3
    assert pace.offer(batch(5, c=5), 11.0) == []
    assert bodies(pace.take(11.3)) == [{"c": 5}]
    assert not pace.waits


def test_codes_that_wait_during_a_restart_of_the_feeder_are_passed_on() -> None:
    """The first frame of the new feeder process need not have all codes of the market."""
    pace = MarketPace(0.5)
    pace.offer(batch(1, a=1, b=1), 10.0)
    pace.offer(batch(2, a=2, b=2), 10.1)
    [first] = pace.offer(Frame(SH, 2, 1, 0, 0, frames.encode({"a": 3})), 10.2)
    assert first.data == {"a": 3}
    assert [frame.data for frame in pace.take(pace.due)] == [{"b": 2}]
    assert (pace.waits, pace.size) == (False, 0)


def test_codes_that_are_due_one_after_the_other_are_passed_on_together() -> None:
    pace = MarketPace(1.0)
    names = [f"c{number}" for number in range(100)]
    for number, name in enumerate(names):
        pace.offer(batch(number, **{name: 1}), 10.0 + number / 1000)
    for name in names:
        assert pace.offer(batch(200, **{name: 2}), 10.5) == []
    taken, times = [], 0
    while pace.waits:
        times += 1
        taken += [code for frame in pace.take(pace.due) for code in frame.data]
    assert sorted(taken) == sorted(names)
    assert times == 2
    assert pace.due > 10.0 + SHORTEST


def test_last_value_of_a_market_passes_at_once_and_replaces_what_waits() -> None:
    pace = MarketPace(3600.0)
    pace.offer(batch(1, a=1, b=1), 10.0)
    pace.offer(batch(2, a=2, b=2), 10.1)
    for part in (last(5, a=5), last(5, c=5)):
        assert pace.offer(part, 10.2) == [part]
    assert bodies(pace.take_all()) == [{"b": 2}]
    # The first records of a new epoch are its last values, although the feeder pushes them.
    pushed = Frame(SH, 2, 1, 1, 1, frames.encode({"a": 6}))
    assert pace.offer(pushed, 10.3) == [pushed]


@pytest.mark.parametrize("period", ["tick", "1m", "l2order"])
def test_last_value_of_a_quote_passes_at_once_in_order(period: str) -> None:
    pace = Pace(3600.0, behaviour_of(quote_topic("600519.SH", period)).versions)
    for seq in (1, 2, 3):
        pace.offer(quoted(seq, period, {"time": seq}), 10.0)
    newest = LastValue(quote_topic("600519.SH", period), 1, 9, 0, 0, frames.encode({"600519.SH": [{"time": 9}]}))
    passed = pace.offer(newest, 10.1)
    assert passed[-1] is newest
    before = [record["time"] for frame in passed[:-1] for record in frame.data["600519.SH"]]
    # An older tick is of no use after a newer one; bars and orders are.
    assert before == ([] if period == "tick" else [2, 3])
    assert pace.take(10.2) == []
