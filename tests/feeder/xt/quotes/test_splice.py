"""Splice: ticks of a market and of a single subscription become one stream, in whatever order they arrive."""

from __future__ import annotations

import random
from typing import Any

import pytest

from feeder.xt.quotes.splice import OVERLAP, Splice
from qmt_bridge.wire.topics import quote_topic

TOPIC = quote_topic("600519.SH")


def tick(number: int, volume: int = 0) -> dict[str, Any]:
    return {"time": 1000 + number, "volume": volume or number}


class Stream:
    """The published stream of one code."""

    def __init__(self) -> None:
        self.splice = Splice(TOPIC)
        self.published: list[dict[str, Any]] = []

    def market(self, *ticks: dict[str, Any]) -> None:
        self.published += [tick for tick in ticks if self.splice.from_market(tick)]

    def single(self, *ticks: dict[str, Any], received_ns: int = 0) -> None:
        self.published += [tick for tick in ticks if self.splice.from_single(tick, received_ns)]

    def cut(self) -> None:
        self.published += [tick for tick, _ in self.splice.cut()]


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_ticks_of_the_market_alone_pass_unchanged(stream: Stream) -> None:
    stream.market(tick(1), tick(1), tick(3), tick(2))
    assert stream.published == [tick(1), tick(1), tick(3), tick(2)]
    assert not stream.splice.is_ready(1e9)


def test_a_tick_of_both_subscriptions_passes_once(stream: Stream) -> None:
    stream.market(tick(1))
    stream.splice.begin(0)
    stream.market(tick(2))
    stream.single(tick(2), tick(3))
    stream.market(tick(3), tick(4))
    stream.cut()
    stream.single(tick(4), tick(5))
    stream.market(tick(5))
    assert stream.published == [tick(number) for number in range(1, 6)]


def test_ticks_of_only_the_single_subscription_come_at_the_switch(stream: Stream) -> None:
    stream.splice.begin(0)
    stream.market(tick(1))
    stream.single(tick(1), tick(2), received_ns=7)
    stream.single(tick(3), received_ns=8)
    assert stream.published == [tick(1)]
    assert stream.splice.cut() == [(tick(2), 7), (tick(3), 8)]
    stream.market(tick(2), tick(3))
    assert stream.published == [tick(1)]


def test_the_first_snapshot_is_no_proof_that_the_streams_meet(stream: Stream) -> None:
    stream.market(tick(1), tick(2))
    stream.splice.begin(0)
    stream.market(tick(3))
    stream.single(tick(1))
    assert not stream.splice.is_ready(OVERLAP)
    stream.single(tick(3))
    assert stream.splice.is_ready(OVERLAP)
    stream.cut()
    assert stream.published == [tick(1), tick(2), tick(3)]


def test_two_ticks_of_one_millisecond_both_pass(stream: Stream) -> None:
    stream.market(tick(1, 10))
    stream.splice.begin(0)
    # The single subscription begins between them.
    stream.single(tick(1, 20), tick(2))
    stream.market(tick(1, 20), tick(2))
    stream.cut()
    assert stream.published == [tick(1, 10), tick(1, 20), tick(2)]


def test_fields_that_xtquant_rounds_make_no_different_tick(stream: Stream) -> None:
    stream.splice.begin(0)
    stream.market(tick(1) | {"amount": 311544200.0, "transactionNum": 0})
    stream.single(tick(1) | {"amount": 311544182.0, "transactionNum": 29434})
    assert stream.splice.is_ready(OVERLAP)
    assert stream.splice.cut() == []


def test_a_quiet_market_is_left_after_the_overlap(stream: Stream) -> None:
    stream.market(tick(1))
    stream.splice.begin(100)
    assert not stream.splice.is_ready(100 + OVERLAP - 0.1)
    assert stream.splice.is_ready(100 + OVERLAP)


def test_a_market_ahead_of_the_single_subscription_keeps_serving(stream: Stream) -> None:
    stream.splice.begin(0)
    stream.market(tick(1))
    assert not stream.splice.is_ready(3600)
    stream.market(*(tick(number) for number in range(2, 500)))
    assert len(stream.published) == 499
    stream.single(tick(500))
    assert not stream.splice.is_ready(3600)
    stream.market(tick(500))
    assert stream.splice.is_ready(3600)


def test_the_overlap_is_waited_for_even_if_both_brought_a_tick(stream: Stream) -> None:
    stream.splice.begin(0)
    stream.market(tick(1))
    stream.single(tick(1))
    assert not stream.splice.is_ready(OVERLAP - 0.1)
    assert stream.splice.is_ready(OVERLAP)


def test_a_time_that_is_a_float_is_the_same_proof(stream: Stream) -> None:
    stream.splice.begin(0)
    stream.market({"time": 1001.0, "volume": 1})
    stream.single(tick(1))
    assert stream.splice.is_ready(OVERLAP)
    assert len(stream.published) == 1


def test_two_equal_ticks_both_pass(stream: Stream) -> None:
    stream.market(tick(1))
    stream.splice.begin(0)
    stream.single(tick(1), tick(1))
    stream.cut()
    stream.market(tick(1))
    assert stream.published == [tick(1), tick(1)]


@pytest.mark.parametrize("strange", [{}, {"time": None}, {"time": "x", "volume": [1]}, {"time": {}, "volume": {}}])
def test_a_tick_without_a_time_passes_too(stream: Stream, strange: dict[str, Any]) -> None:
    stream.market(strange)
    stream.splice.begin(0)
    stream.market(strange)
    stream.single(strange)
    stream.cut()
    stream.single(strange)
    stream.single(tick(1))
    assert stream.published == [strange, strange, tick(1)]


@pytest.mark.parametrize("seed", range(300))
def test_interleaved_streams_pass_each_tick_once_and_in_order(stream: Stream, seed: int) -> None:
    dice = random.Random(seed)
    # Some ticks have the same millisecond.
    made: list[dict[str, Any]] = []
    for number in range(60):
        same = made and dice.random() < 0.2
        made.append({"time": made[-1]["time"] if same else 1000 + number, "volume": number})
    first = dice.randrange(20)
    begun = cut = False
    market = single = 0
    now = 0.0
    # Until the switch the market is up to five ticks behind or ahead, as one thread of xtquant is of another.
    while not cut or single < len(made) - first or market < len(made):
        is_markets = dice.random() < 0.5
        if is_markets and market < len(made) and market - first - single < 5:
            stream.market(made[market])
            market += 1
        elif not is_markets and single < len(made) - first and first + single - market < 5 and market >= first - 3:
            stream.single(made[first + single])
            single += 1
        # In half of the cases the ticks that the market still carries at the begin of the switch arrive in time.
        # Otherwise the market pushes a tick first, and then may take any time for the rest.
        now += OVERLAP if seed % 2 or market >= first else 0
        if not begun and market >= first - 3:
            stream.splice.begin(now)
            begun = True
            stream.market(made[market])
            market += 1
        elif begun and not cut and dice.random() < 0.3 and stream.splice.is_ready(now):
            stream.cut()
            cut = True
    assert stream.published == made
