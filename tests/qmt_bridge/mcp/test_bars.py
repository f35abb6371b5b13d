"""Bars that are made of ticks: which tick belongs to which bar, and what a bar has."""

from __future__ import annotations

from datetime import datetime

import pytest

from qmt_bridge.mcp.bars import MINUTE, bar_end, bars_of
from qmt_bridge.wire.shanghai import SHANGHAI


def ms(time: str, day: int = 30) -> int:
    return round(datetime.fromisoformat(f"2026-11-{day}T{time}").replace(tzinfo=SHANGHAI).timestamp() * 1000)


@pytest.mark.parametrize(
    ("tick", "minutes", "end"),
    [
        pytest.param("10:00:03", 1, "10:01", id="within"),
        pytest.param("10:01:00", 1, "10:01", id="at-the-end"),
        pytest.param("10:01:00.001", 1, "10:02", id="behind-the-end"),
        pytest.param("10:07:00", 5, "10:10", id="five"),
        pytest.param("10:07:00", 15, "10:15", id="fifteen"),
        pytest.param("13:00:03", 30, "13:30", id="thirty"),
        pytest.param("09:14:59", 1, "09:15", id="before-the-auction"),
        pytest.param("09:15:00", 1, "09:31", id="begin-of-the-auction"),
        pytest.param("09:25:03", 5, "09:35", id="auction"),
        pytest.param("09:30:00", 1, "09:31", id="open"),
        pytest.param("11:30:02", 1, "11:30", id="late-before-noon"),
        pytest.param("15:00:59.999", 5, "15:00", id="late-at-the-close"),
        pytest.param("15:01:00", 1, "15:01", id="after-the-close"),
    ],
)
def test_tick_belongs_to_the_bar_of_its_time(tick: str, minutes: int, end: str) -> None:
    assert bar_end(ms(tick), minutes * MINUTE) == ms(end)


def tick(time: str, price: float, volume: int, day: int = 30) -> dict[str, float]:
    return {"time": ms(time, day), "lastPrice": price, "volume": volume, "amount": 100.0 * volume}


def test_bar_has_prices_of_its_ticks_and_what_was_traded_in_it() -> None:
    ticks = [
        tick("10:00:03", 5.0, 100),
        tick("10:00:30", 6.0, 110),
        tick("10:01:00", 4.0, 130),
        tick("10:02:59", 5.5, 150),
        {"time": ms("10:03:30"), "lastPrice": 0},
        {"time": None, "lastPrice": 5.0},
    ]
    first = {"time": ms("10:01"), "open": 5.0, "high": 6.0, "low": 4.0, "close": 4.0, "volume": 30, "amount": 3000.0}
    second = {"time": ms("10:03"), "open": 5.5, "high": 5.5, "low": 5.5, "close": 5.5, "volume": 20, "amount": 2000.0}
    assert bars_of(ticks, "1m") == [first, second]
    (both,) = bars_of(ticks, "5m")
    assert (both["open"], both["high"], both["low"], both["close"], both["volume"]) == (5.0, 6.0, 4.0, 5.5, 50)
    assert bars_of([], "1m") == []


def test_volume_of_a_new_day_counts_from_nothing() -> None:
    bars = bars_of([tick("14:59:00", 5.0, 900, 29), tick("09:30:03", 5.0, 40), tick("09:31:03", 5.0, 45)], "1m")
    assert [bar["volume"] for bar in bars] == [0, 40, 5]
