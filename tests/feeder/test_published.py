"""Which trade events are new: pure, with time as an argument."""

from __future__ import annotations

import math
from typing import Any

import pytest

from feeder.published import Published

DAY = 24 * 3600 * 1_000_000_000
NOON = 20_000 * DAY + DAY // 2


def order(status: int, order_id: int = 1, volume: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "account_id": "1",
        "order_id": order_id,
        "order_time": 1733120580,
        "order_sysid": "S1",
        "order_status": status,
        "traded_volume": volume,
        "status_msg": "",
        **fields,
    }


def fill(traded_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "account_id": "1",
        "stock_code": "600519.SH",
        "order_id": 1,
        "traded_id": traded_id,
        "traded_time": 1733120580,
        **fields,
    }


def asset(cash: float) -> dict[str, Any]:
    return {"account_type": 2, "account_id": "1", "cash": cash}


def test_each_state_of_an_order_is_news_once() -> None:
    published = Published()
    life = [order(48), order(49), order(50), order(55, volume=100), order(55, volume=200), order(56, volume=300)]
    assert [published.admit("order", state, NOON) for state in life] == [True] * 6
    assert [published.admit("order", state, NOON) for state in life] == [False] * 6
    assert [published.admit("order", state, NOON, asked=published.count) for state in life] == [False] * 6
    assert published.admit("order", order(56, order_id=2, volume=300), NOON)


@pytest.mark.parametrize(
    "change",
    [
        {"order_sysid": "S2"},
        {"status_msg": "废单"},
        {"order_time": 1733206980},
        {"account_id": "2"},
    ],
)
def test_what_belongs_to_the_state_makes_news(change: dict[str, Any]) -> None:
    published = Published()
    assert published.admit("order", order(50), NOON)
    assert published.admit("order", order(50, **change), NOON)


def test_what_does_not_belong_to_the_state_makes_none() -> None:
    published = Published()
    assert published.admit("order", order(50, price=1.0), NOON)
    assert not published.admit("order", order(50, price=math.nan), NOON)


@pytest.mark.parametrize(("open_status", "cancelling", "volume"), [(50, 51, 0), (55, 52, 100)])
def test_an_order_comes_back_from_a_cancel_that_failed(open_status: int, cancelling: int, volume: int) -> None:
    published = Published()
    for status in (open_status, cancelling, open_status, cancelling, open_status):
        assert published.admit("order", order(status, volume=volume), NOON)
        assert not published.admit("order", order(status, volume=volume), NOON)
    # But not to an earlier volume of fills, nor from its end.
    assert published.admit("order", order(55, volume=200), NOON)
    assert not published.admit("order", order(open_status, volume=volume), NOON)
    assert published.admit("order", order(56, volume=300), NOON)
    assert not published.admit("order", order(55, volume=200), NOON)
    assert not published.admit("order", order(cancelling, volume=volume), NOON)


def test_an_order_does_not_come_back_from_its_end() -> None:
    published = Published()
    for status in (50, 51, 54):
        assert published.admit("order", order(status), NOON)
    for status in (50, 51, 54):
        assert not published.admit("order", order(status), NOON)


def test_a_fill_is_news_once_and_another_days_fill_of_the_same_number_is_news() -> None:
    published = Published()
    assert published.admit("trade", fill("T1"), NOON)
    assert not published.admit("trade", fill("T1", commission=5.0), NOON, asked=published.count)
    assert not published.admit("trade", fill("T1"), NOON)
    assert published.admit("trade", fill("T2"), NOON)
    assert published.admit("trade", fill("T1", stock_code="000001.SZ"), NOON)
    assert published.admit("trade", fill("T1", traded_time=1733206980), NOON)


def test_fills_without_a_number_cannot_be_told_apart_and_are_never_dropped() -> None:
    published = Published()
    assert [published.admit("trade", fill(""), NOON) for _ in range(2)] == [True, True]


def test_an_asset_is_news_when_it_is_pushed_or_has_changed() -> None:
    published = Published()
    assert published.admit("asset", asset(math.nan), NOON, asked=0)
    assert not published.admit("asset", asset(math.nan), NOON, asked=published.count)
    assert published.admit("asset", asset(math.nan), NOON)
    assert published.admit("asset", asset(2.0), NOON, asked=published.count)
    # Back to an earlier one is a change.
    assert published.admit("asset", asset(math.nan), NOON, asked=published.count)


def test_positions_of_two_codes_and_directions_are_told_apart() -> None:
    published = Published()
    for code in ("IF2512.IF", "IF2601.IF"):
        for direction in (48, 49):
            position = {"account_id": "1", "stock_code": code, "direction": direction, "volume": 1}
            assert published.admit("position", position, NOON, asked=published.count)
            assert not published.admit("position", position, NOON, asked=published.count)


@pytest.mark.parametrize(("event", "old", "new"), [("order", order(50), order(56)), ("asset", asset(1.0), asset(2.0))])
def test_an_answer_older_than_a_push_is_no_news(event: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    published = Published()
    asked = published.count
    assert published.admit(event, new, NOON)
    assert not published.admit(event, old, NOON, asked)
    # A push that was no news does not make an answer old.
    if event == "order":
        asked = published.count
        assert not published.admit(event, new, NOON)
        assert published.admit(event, old, NOON, asked)


def position(volume: int, code: str = "600519.SH", account: str = "1", **fields: Any) -> dict[str, Any]:
    told = {"account_type": 2, "account_id": account, "stock_code": code, "volume": volume, "can_use_volume": volume}
    return told | {"market_value": volume * 10.0, "avg_price": 9.5, "profit_rate": math.nan, **fields}


def gone(published: Published, *listed: dict[str, Any], account: str = "1", asked: int | None = None) -> list[str]:
    asked = published.count if asked is None else asked
    return sorted(data["stock_code"] for data in published.sold_out(account, listed, asked).values())


def test_a_held_position_that_an_answer_lacks_is_sold_out() -> None:
    published = Published()
    for told in (position(100), position(200, "000001.SZ"), position(300, account="2"), position(0, "600000.SH")):
        assert published.admit("position", told, NOON)
    published.admit("order", order(56), NOON)
    published.admit("asset", asset(1.0), NOON)
    assert gone(published, position(999), position(200, "000001.SZ")) == []
    assert gone(published, position(100)) == ["000001.SZ"]
    assert gone(published) == ["000001.SZ", "600519.SH"]
    assert gone(published, account="2") == ["600519.SH"]
    assert gone(published, account="3") == []


def test_a_sold_out_position_is_the_last_one_with_nothing_held() -> None:
    published = Published()
    last = position(100, frozen_volume=5, on_road_volume=6, yesterday_volume=100, float_profit=1.5, instrument_name="x")
    # It could not be read.
    last["position_profit"] = None
    published.admit("position", last, NOON)
    [(key, data)] = published.sold_out("1", [], published.count).items()
    assert math.isnan(data.pop("profit_rate"))
    nothing = {"volume": 0, "can_use_volume": 0, "frozen_volume": 0, "on_road_volume": 0}
    nothing |= {"market_value": 0.0, "float_profit": 0.0}
    assert data == {name: value for name, value in last.items() if name != "profit_rate"} | nothing
    assert {name: type(value) for name, value in data.items()} == {name: type(last[name]) for name in data}
    # Once it is published there is nothing more to tell.
    assert published.admit("position", data | {"profit_rate": math.nan}, NOON, published.count)
    assert published.sold_out("1", [], published.count) == {}
    assert key[0] == "position"


def test_a_position_pushed_after_the_query_is_not_sold_out() -> None:
    published = Published()
    asked = published.count
    published.admit("position", position(100), NOON)
    assert gone(published, asked=asked) == []
    assert gone(published) == ["600519.SH"]


def test_positions_that_are_held_are_remembered_for_ever_and_others_are_not() -> None:
    published = Published()
    published.admit("position", position(100), NOON)
    published.admit("position", position(0, "600000.SH"), NOON)
    for day in range(1, 5):
        published.admit("order", order(56, day), NOON + day * DAY)
    assert gone(published) == ["600519.SH"]
    assert len(published._recent) + len(published._older) == 3
    # It has not changed, so it is no news either.
    assert not published.admit("position", position(100), NOON + 5 * DAY, published.count)


def test_other_events_are_always_news() -> None:
    published = Published()
    for event in ("order_error", "cancel_error", "account_status", "connected", "async_response"):
        assert [published.admit(event, {"account_id": "1", "order_id": 1}, NOON) for _ in range(2)] == [True, True]


def test_two_days_that_had_events_are_remembered_and_no_more() -> None:
    published = Published()
    friday, monday = NOON, NOON + 3 * DAY
    for number in range(100):
        published.admit("order", order(56, number), friday)
    assert not published.admit("order", order(56, 1), monday)
    assert not published.admit("order", order(56, 2), monday)
    # What was told again on Monday is Monday's; the rest of Friday is gone on Tuesday.
    tuesday = monday + DAY
    assert not published.admit("order", order(56, 1), tuesday)
    assert published.admit("order", order(56, 3), tuesday)
    assert len(published._recent) + len(published._older) == 3


def test_a_clock_that_is_set_back_forgets_nothing() -> None:
    published = Published()
    assert published.admit("order", order(56, 1), NOON)
    assert published.admit("order", order(56, 2), NOON - 2 * DAY)
    assert not published.admit("order", order(56, 2), NOON)
    assert not published.admit("order", order(56, 1), NOON)
