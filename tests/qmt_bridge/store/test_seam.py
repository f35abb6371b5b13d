"""Where a history meets stored messages: each record of either once, as often as where it is more often, in order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmt_bridge.errors import WireError
from qmt_bridge.store.seam import Message, join, marked, message_of, same, up_to
from qmt_bridge.wire import frames

CODE = "600519.SH"


def message(ms: int, **fields: Any) -> Message:
    return message_of(ms, frames.encode({CODE: [{"time": ms, **fields}]}))


def shown(messages: list[Message]) -> list[tuple[int, Any]]:
    return [(each.ms, each.records[CODE][0].get("volume")) for each in messages]


# A day: ticks with few times and few values, so that equal times with other values, and equal ticks, are common.
_ticks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=14).map(
    lambda steps: [(sum(step for step, _ in steps[: n + 1]), volume) for n, (_, volume) in enumerate(steps)]
)


def of(ticks: list[tuple[int, int]]) -> list[Message]:
    return [message(ms, volume=volume) for ms, volume in ticks]


@given(_ticks, st.data())
def test_history_and_live_together_are_the_day(day: list[tuple[int, int]], data: st.DataObject) -> None:
    begins = data.draw(st.integers(0, len(day)))
    # The history reaches at least to the first live tick, so both overlap by any number of ticks.
    ends = data.draw(st.integers(min(begins + 1, len(day)), len(day)))
    live = of(day[begins:])
    joined = join(of(day[:ends]), [], live)
    total = shown(joined.messages) + shown(live)
    assert joined.right == bool(live)
    # Of equal ticks nobody can tell which ones both have.
    assert Counter(total) == Counter(day[:ends]) | Counter(day[begins:])
    assert [ms for ms, _ in total] == sorted(ms for ms, _ in total)
    if len(set(day)) == len(day):
        assert total == day


@given(_ticks, st.data())
def test_history_between_two_stored_parts_completes_the_day(day: list[tuple[int, int]], data: st.DataObject) -> None:
    ended, begins = sorted(data.draw(st.tuples(st.integers(0, len(day)), st.integers(0, len(day)))))
    before, live = of(day[:ended]), of(day[begins:])
    joined = join(of(day), before, live)
    total = shown(before) + shown(joined.messages) + shown(live)
    assert Counter(total) == Counter(day)
    assert [ms for ms, _ in total] == [ms for ms, _ in day]
    assert (joined.left, joined.right) == (bool(before), bool(live))


@given(_ticks, _ticks)
def test_any_two_parts_give_each_tick_as_often_as_the_larger(
    history: list[tuple[int, int]], live: list[tuple[int, int]]
) -> None:
    joined = shown(join(of(history), [], of(live)).messages)
    if not live:
        assert joined == history
        return
    first = live[0][0]
    # What the live stream has lost behind its first tick is a gap of its numbers, and stays one.
    early = Counter(tick for tick in history if tick[0] <= first)
    assert Counter(joined) + Counter(tick for tick in live if tick[0] == first) == early | Counter(
        tick for tick in live if tick[0] == first
    )
    assert [ms for ms, _ in joined] == sorted(ms for ms, _ in joined)


def test_ticks_of_one_time_with_other_values_both_stay() -> None:
    one, other = message(5, volume=1, lastPrice=9.5), message(5, volume=1, lastPrice=9.6)
    joined = join([one, other], [], [other])
    assert shown(joined.messages) == [(5, 1)]
    assert joined.messages == [one]
    assert join([one], [], [other])._replace(right=True).messages == [one]
    assert not join([one], [], [other]).right


def test_tick_that_repeats_is_dropped_from_behind() -> None:
    a, b = message(5, volume=1), message(5, volume=2)
    assert shown(join([a, b, a], [], [a]).messages) == [(5, 1), (5, 2)]


@pytest.mark.parametrize(
    ("history", "live"),
    [
        # Fields that only one side has.
        ({"volume": 10, "tickvol": 4}, {"volume": 10, "speed1Min": 0.0}),
        # Types, and the last digits of a float.
        ({"volume": 10.0, "lastPrice": 8.450000000000001}, {"volume": 10, "lastPrice": 8.45}),
        # Amounts that are rounded to yuan, and to a hundred of them.
        ({"volume": 10, "amount": 23538925.4}, {"volume": 10, "amount": 23538925}),
        ({"volume": 10, "amount": 862127751.0}, {"volume": 10, "amount": 862127800.0}),
        # A depth with fewer levels, and what is not a number.
        ({"volume": 10, "askPrice": [1.1, 1.2, 1.3]}, {"volume": 10, "askPrice": [1.1, 1.2]}),
        ({"volume": 10, "pe": None}, {"volume": 10, "pe": 3.5}),
    ],
)
def test_differences_between_the_two_ways_are_no_other_tick(history: dict[str, Any], live: dict[str, Any]) -> None:
    one, other = message(5, **history), message(5, **live)
    assert same(one, other)
    assert same(other, one)


@pytest.mark.parametrize(
    ("history", "live"),
    [
        ({"volume": 10}, {"volume": 11}),
        ({"volume": 1_000_000_000}, {"volume": 1_000_000_001.0}),
        ({"volume": 10, "amount": 862127751.0}, {"volume": 10, "amount": 862127901.0}),
        ({"volume": 10, "amount": 862127751.5}, {"volume": 10, "amount": 862127752.5}),
        ({"volume": 10, "askPrice": [1.1, 1.2]}, {"volume": 10, "askPrice": [1.1, 1.3]}),
        # Nothing in common but the time.
        ({"volume": 10}, {"lastPrice": 1.0}),
    ],
)
def test_other_values_are_another_tick(history: dict[str, Any], live: dict[str, Any]) -> None:
    assert not same(message(5, **history), message(5, **live))


def test_history_ends_with_the_newest_published_tick() -> None:
    ticks = of([(1, 1), (2, 2), (3, 3), (4, 4)])
    assert up_to(ticks, message(3, volume=3)) == ticks[:3]
    assert up_to(ticks, message(3, volume=9)) is None


def test_each_record_of_a_history_is_marked() -> None:
    assert frames.decode(marked(message(5, volume=1))) == {CODE: [{"time": 5, "volume": 1, "source": "history"}]}
    # A marked one is the same tick.
    assert same(message(5, volume=1), message(5, volume=1, source="history"))


def test_body_without_records_by_code_is_refused() -> None:
    with pytest.raises(WireError):
        message_of(1, b"[1]")
