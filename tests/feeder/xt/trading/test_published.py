"""Which trade events are new: pure, with time as an argument."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from feeder.xt.trading.published import News, Published, Record
from qmt_bridge.wire import frames

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


def test_each_state_of_an_order_is_new_once() -> None:
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
def test_a_change_of_any_field_of_the_state_is_new(change: dict[str, Any]) -> None:
    published = Published()
    assert published.admit("order", order(50), NOON)
    assert published.admit("order", order(50, **change), NOON)


# Fields whose value makes a record different, and fields whose value does not.
OTHERS: list[dict[str, Any]] = [
    {"stock_code": "000001.SZ"},
    {"price": 1.5},
    {"price": math.nan},
    {"order_remark": "r"},
    {"commission": 5.0},
    {"status_msg": None},
    {"instrument_name": "茅台"},
    {"strategy_name": "网格"},
    {"m_dNewFee": 0.5},
]
SAME: list[dict[str, Any]] = [
    {"order_status_name": "ORDER_REPORTED", "account_type_name": None},
    {"recovered": True},
    {"traded_volume": 0.0},
    {"traded_volume": -0.0},
]


@pytest.mark.parametrize("asked", [None, 1])
@pytest.mark.parametrize("order_id", [0, -1, None, "", 7])
@pytest.mark.parametrize("change", OTHERS)
def test_a_record_that_differs_in_any_field_is_new(change: dict[str, Any], order_id: object, asked: int) -> None:
    published = Published()
    one = order(57, order_id) | {"order_sysid": ""}  # type: ignore[arg-type]
    assert published.admit("order", one, NOON)
    assert published.admit("order", one | change, NOON, asked)
    for repeat in (one, one | change):
        assert not published.admit("order", repeat, NOON, published.count)


@pytest.mark.parametrize("change", SAME)
def test_fields_added_by_the_feeder_make_no_record_new(change: dict[str, Any]) -> None:
    published = Published()
    assert published.admit("order", order(50), NOON)
    assert not published.admit("order", order(50) | change, NOON)


@pytest.mark.parametrize("event", ["order", "trade", "position", "asset"])
def test_a_record_equals_itself_after_the_journal_has_stored_it(event: str) -> None:
    data = {"account_id": "1", "stock_code": "600519.SH", "order_id": 1, "a": math.nan, "b": -0.0, "c": 5, "d": 2.5}
    data |= {"e": None, "f": "废单", "g": 2**63, "h": 1e300, "i": math.inf, "recovered": True, "status_name": "x"}
    published = Published()
    published.restore(event, frames.decode(frames.encode(data)), NOON)
    again = data | {"b": 0, "c": 5.0, "a": -math.nan}
    del again["recovered"], again["status_name"]
    assert not published.admit(event, again, NOON, published.count)


def test_orders_without_a_number_hide_no_other_order() -> None:
    published = Published()
    asked = published.count
    assert published.admit("order", order(57, 0, order_sysid="", status_msg="a"), NOON)
    assert published.admit("order", order(57, 0, order_sysid="", status_msg="b"), NOON, asked)
    # The order number of the exchange also identifies an order.
    assert published.admit("order", order(56, 0, order_sysid="S9"), NOON)
    assert not published.admit("order", order(50, 0, order_sysid="S9"), NOON, asked)


def test_fills_that_share_a_number_are_all_new() -> None:
    published = Published()
    asked = published.count
    fills = [fill("T1", traded_volume=100), fill("T1", traded_volume=200), fill("T1", order_type=24)]
    assert [published.admit("trade", each, NOON) for each in fills[:1]] == [True]
    assert [published.admit("trade", each, NOON, asked) for each in fills] == [False, True, True]


@pytest.mark.parametrize("written", [93015, "09:30:15", 93015000, 0, None, ""])
@pytest.mark.parametrize("by_query", [False, True])
def test_a_time_without_a_date_differs_from_day_to_day(written: object, by_query: bool) -> None:
    published = Published()
    told = fill("T1", traded_time=written)
    assert published.admit("trade", told, NOON)
    assert not published.admit("trade", told, NOON)
    assert published.admit("trade", told, NOON + DAY, published.count if by_query else None)
    assert not published.admit("trade", told, NOON + DAY)


@pytest.mark.parametrize("written", [1733120580, 1733120580000, 20241202093015, "20241202 09:30:15", 20241202])
def test_a_time_with_a_date_is_the_same_on_every_day(written: object) -> None:
    published = Published()
    assert published.admit("trade", fill("T1", traded_time=written), NOON)
    assert not published.admit("trade", fill("T1", traded_time=written), NOON + DAY)


def test_a_record_repeated_after_midnight_is_not_new() -> None:
    # Twelve hours after noon in UTC it is 08:00 in Shanghai.
    published = Published()
    told = fill("T1", traded_time=145500)
    assert published.admit("trade", told, NOON)
    assert not published.admit("trade", told, NOON + DAY // 2)
    # The day is the same in UTC, but another one in Shanghai.
    evening = NOON + 3 * 3600 * 1_000_000_000
    assert published.admit("trade", fill("T2", traded_time=10), evening)
    assert published.admit("trade", fill("T2", traded_time=10), evening + 2 * 3600 * 1_000_000_000)


ACCOUNT = ("1", "STOCK")


def answer(published: Published, event: str, records: list[dict[str, Any]], at_ns: int = NOON) -> list[dict[str, Any]]:
    """Return the new records of an answer to a query of this moment, and note them as published."""
    found = published.answered(ACCOUNT, event, [Record(each) for each in records], at_ns, published.count)
    assert not found.is_overtaken
    for news in found.news:
        published.remember(news)
    return [news.record.data for news in found.news]


def test_a_record_that_stays_listed_is_not_new_on_each_day() -> None:
    published = Published()
    told = [fill("T1", traded_time=145500), fill("T2", traded_time=0)]
    assert answer(published, "trade", told) == told
    for day in range(1, 4):
        assert answer(published, "trade", told, NOON + day * DAY) == []
    # A record that was no longer listed and is listed again is a new one.
    assert answer(published, "trade", [], NOON + 4 * DAY) == []
    assert answer(published, "trade", told, NOON + 4 * DAY) == told


def test_each_listed_fill_without_a_number_is_published() -> None:
    published = Published()
    assert published.admit("trade", fill(""), NOON)
    assert not published.admit("trade", fill(""), NOON)
    for _ in range(2):
        assert answer(published, "trade", [fill("")]) == []
    assert answer(published, "trade", [fill(""), fill("")]) == [fill("")]
    assert answer(published, "trade", [fill(""), fill("")]) == []
    restored = Published()
    for _ in range(2):
        restored.restore("trade", fill(""), NOON)
    assert answer(restored, "trade", [fill("")] * 3) == [fill("")]
    # A fill with a number is one fill, however often it is listed.
    assert answer(published, "trade", [fill("T1"), fill("T1")]) == [fill("T1")]


def test_positions_with_the_same_identity_do_not_alternate() -> None:
    published = Published()
    listed = [position(1, open_date="20251124"), position(2, open_date="20251125")]
    assert answer(published, "position", listed) == listed
    for _ in range(2):
        assert answer(published, "position", listed) == []
    changed = [listed[0], listed[1] | {"volume": 3}]
    assert answer(published, "position", changed) == changed[1:]
    assert answer(published, "position", listed) == listed[1:]
    # The same holds for positions without a code.
    nameless = [position(1, ""), position(2, "")]
    assert answer(published, "position", nameless) == nameless
    assert answer(published, "position", nameless[::-1]) == []


@pytest.mark.parametrize("field", ["market_value", "last_price", "profit_rate", "float_profit", "position_profit"])
def test_a_queried_position_with_a_new_price_is_new(field: str) -> None:
    published = Published()
    for value in (100.0, 101.0, 100.0):
        told = [position(1) | {field: value}]
        assert answer(published, "position", told) == told
        assert answer(published, "position", told) == []


@pytest.mark.parametrize("field", ["market_value", "total_asset"])
def test_a_queried_asset_with_a_new_price_is_new(field: str) -> None:
    published = Published()
    for value in (100.0, 101.0, 100.0):
        told = [asset(1.0) | {field: value}]
        assert answer(published, "asset", told) == told
        assert answer(published, "asset", told) == []


def test_an_answer_reports_that_a_push_has_overtaken_it() -> None:
    published = Published()
    asked = published.count
    assert published.admit("order", order(56), NOON)
    other = Record(order(57, 2))
    same, old = (published.answered(ACCOUNT, "order", [Record(order(s)), other], NOON, asked) for s in (56, 50))
    assert [same.is_overtaken, old.is_overtaken] == [False, True]
    assert [[news.record for news in found.news] for found in (same, old)] == [[other], [other]]


def test_undecodable_texts_are_distinguished() -> None:
    published = Published()
    one, other = (Record(order(57, 0, status_msg="\ufffd"), unread) for unread in (b"\xff", b"\xfe"))
    for record in (one, other):
        news = published.judge("order", record, NOON)
        assert news is not None
        published.remember(news)
    assert [published.judge("order", record, NOON) for record in (one, other)] == [None, None]
    # The journal only has the replacement characters.
    published = Published()
    published.restore("order", one.data, NOON)
    assert published.judge("order", one, NOON) is None


def test_a_record_that_was_not_published_is_still_new() -> None:
    published = Published()
    for _ in range(2):
        assert published.judge("trade", Record(fill("T1")), NOON) is not None
    assert published.count == 0


def test_a_push_of_an_earlier_record_is_not_a_failed_cancel() -> None:
    published = Published()
    assert published.admit("order", order(50, order_sysid=""), NOON)
    assert published.admit("order", order(50), NOON)
    assert not published.admit("order", order(50, order_sysid=""), NOON)


@pytest.mark.parametrize(("open_status", "cancelling", "volume"), [(50, 51, 0), (55, 52, 100)])
def test_an_order_returns_to_its_state_after_a_failed_cancel(open_status: int, cancelling: int, volume: int) -> None:
    published = Published()
    for status in (open_status, cancelling, open_status, cancelling, open_status):
        assert published.admit("order", order(status, volume=volume), NOON)
        assert not published.admit("order", order(status, volume=volume), NOON)
    # It does not return to a smaller filled volume, and it does not leave its final state.
    assert published.admit("order", order(55, volume=200), NOON)
    assert not published.admit("order", order(open_status, volume=volume), NOON)
    assert published.admit("order", order(56, volume=300), NOON)
    assert not published.admit("order", order(55, volume=200), NOON)
    assert not published.admit("order", order(cancelling, volume=volume), NOON)


def test_all_states_of_an_order_pushed_again_are_not_new() -> None:
    published = Published()
    life = [order(status) for status in (48, 49, 50, 51, 50, 51, 50)]
    assert [published.admit("order", state, NOON) for state in life] == [True] * 7
    for _ in range(2):
        assert [published.admit("order", state, NOON) for state in life] == [False] * 7
    # The next cancel is a new event, also in the middle of such a repetition.
    assert published.admit("order", order(51), NOON)
    assert published.admit("order", order(50), NOON)
    assert [published.admit("order", state, NOON) for state in life[:3]] == [False] * 3
    assert published.admit("order", order(51, traded_price=1.0), NOON)
    assert published.admit("order", order(50), NOON)
    # A restarted feeder reads the sequence from its journal.
    restored = Published()
    for state in life:
        restored.restore("order", state, NOON)
    assert [restored.admit("order", state, NOON) for state in life] == [False] * 7


def test_an_order_does_not_leave_its_final_state() -> None:
    published = Published()
    for status in (50, 51, 54):
        assert published.admit("order", order(status), NOON)
    for status in (50, 51, 54):
        assert not published.admit("order", order(status), NOON)


def test_a_fill_is_new_once_a_day() -> None:
    published = Published()
    assert published.admit("trade", fill("T1"), NOON)
    assert not published.admit("trade", fill("T1"), NOON, asked=published.count)
    assert not published.admit("trade", fill("T1"), NOON)
    # The broker sets this field later.
    assert published.admit("trade", fill("T1", commission=5.0), NOON, asked=published.count)
    assert published.admit("trade", fill("T2"), NOON)
    assert published.admit("trade", fill("T1", stock_code="000001.SZ"), NOON)
    assert published.admit("trade", fill("T1", traded_time=1733206980), NOON)


def test_an_asset_is_new_if_it_is_pushed_or_has_changed() -> None:
    published = Published()
    assert published.admit("asset", asset(math.nan), NOON, asked=0)
    assert not published.admit("asset", asset(math.nan), NOON, asked=published.count)
    assert published.admit("asset", asset(math.nan), NOON)
    assert published.admit("asset", asset(2.0), NOON, asked=published.count)
    # A return to an earlier value is a change too.
    assert published.admit("asset", asset(math.nan), NOON, asked=published.count)


def test_positions_differ_by_code_and_direction() -> None:
    published = Published()
    for code in ("IF2512.IF", "IF2601.IF"):
        for direction in (48, 49):
            position = {"account_id": "1", "stock_code": code, "direction": direction, "volume": 1}
            assert published.admit("position", position, NOON, asked=published.count)
            assert not published.admit("position", position, NOON, asked=published.count)


@pytest.mark.parametrize(("event", "old", "new"), [("order", order(50), order(56)), ("asset", asset(1.0), asset(2.0))])
def test_an_answer_older_than_a_push_is_not_new(event: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    published = Published()
    asked = published.count
    assert published.admit(event, new, NOON)
    assert not published.admit(event, old, NOON, asked)
    # A push that was not new does not make an answer outdated.
    if event == "order":
        asked = published.count
        assert not published.admit(event, new, NOON)
        assert published.admit(event, old, NOON, asked)


def position(volume: int, code: str = "600519.SH", account: str = "1", **fields: Any) -> dict[str, Any]:
    told = {"account_type": 2, "account_id": account, "stock_code": code, "volume": volume, "can_use_volume": volume}
    return told | {"market_value": volume * 10.0, "avg_price": 9.5, "profit_rate": math.nan, **fields}


def sold_out_codes(
    published: Published, *listed: dict[str, Any], account: str = "1", asked: int | None = None
) -> list[str]:
    asked = published.count if asked is None else asked
    return sorted(data["stock_code"] for data in published.sold_out(account, listed, asked).values())


def test_a_held_position_missing_in_an_answer_is_sold_out() -> None:
    published = Published()
    for told in (position(100), position(200, "000001.SZ"), position(300, account="2"), position(0, "600000.SH")):
        assert published.admit("position", told, NOON)
    published.admit("order", order(56), NOON)
    published.admit("asset", asset(1.0), NOON)
    assert sold_out_codes(published, position(999), position(200, "000001.SZ")) == []
    assert sold_out_codes(published, position(100)) == ["000001.SZ"]
    assert sold_out_codes(published) == ["000001.SZ", "600519.SH"]
    assert sold_out_codes(published, account="2") == ["600519.SH"]
    assert sold_out_codes(published, account="3") == []


def test_a_sold_out_position_is_the_last_record_with_volume_zero() -> None:
    published = Published()
    last = position(100, frozen_volume=5, on_road_volume=6, yesterday_volume=100, float_profit=1.5, instrument_name="x")
    # This volume could not be read.
    last["position_profit"] = None
    published.admit("position", last, NOON)
    [(key, data)] = published.sold_out("1", [], published.count).items()
    # NaN before.
    assert data.pop("profit_rate") is None
    nothing = {"volume": 0, "can_use_volume": 0, "frozen_volume": 0, "on_road_volume": 0}
    nothing |= {"market_value": 0.0, "float_profit": 0.0}
    assert data == {name: value for name, value in last.items() if name != "profit_rate"} | nothing
    assert {name: type(value) for name, value in data.items()} == {name: type(last[name]) for name in data}
    # After it is published, it is not reported again.
    assert published.admit("position", data | {"profit_rate": math.nan}, NOON, published.count)
    assert published.sold_out("1", [], published.count) == {}
    assert key[0] == "position"


def test_a_position_pushed_after_the_query_is_not_sold_out() -> None:
    published = Published()
    asked = published.count
    published.admit("position", position(100), NOON)
    assert sold_out_codes(published, asked=asked) == []
    assert sold_out_codes(published) == ["600519.SH"]


def test_only_held_positions_are_kept_for_ever() -> None:
    published = Published()
    published.admit("position", position(100), NOON)
    published.admit("position", position(0, "600000.SH"), NOON)
    for day in range(1, 5):
        published.admit("order", order(56, day), NOON + day * DAY)
    assert sold_out_codes(published) == ["600519.SH"]
    assert len(published._recent) + len(published._older) == 3
    # It has not changed, so it is not new either.
    assert not published.admit("position", position(100), NOON + 5 * DAY, published.count)


def test_other_events_are_always_new() -> None:
    published = Published()
    for event in ("order_error", "cancel_error", "account_status", "connected", "async_response"):
        assert [published.admit(event, {"account_id": "1", "order_id": 1}, NOON) for _ in range(2)] == [True, True]


def test_only_the_last_two_days_with_events_are_kept() -> None:
    published = Published()
    friday, monday = NOON, NOON + 3 * DAY
    for number in range(100):
        published.admit("order", order(56, number), friday)
    assert not published.admit("order", order(56, 1), monday)
    assert not published.admit("order", order(56, 2), monday)
    # A record repeated on Monday counts as Monday's; the other records of Friday are dropped on Tuesday.
    tuesday = monday + DAY
    assert not published.admit("order", order(56, 1), tuesday)
    assert published.admit("order", order(56, 3), tuesday)
    assert len(published._recent) + len(published._older) == 3


def test_a_clock_set_back_removes_no_record() -> None:
    published = Published()
    assert published.admit("order", order(56, 1), NOON)
    assert published.admit("order", order(56, 2), NOON - 2 * DAY)
    assert not published.admit("order", order(56, 2), NOON)
    assert not published.admit("order", order(56, 1), NOON)


class Day:
    """A random day at a broker with unreliable numbers: records are pushed, lost, repeated, queried and journaled."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.published = Published()
        self.now = NOON
        self.happened: list[tuple[str, dict[str, Any]]] = []
        self.journal: list[tuple[str, bytes, int]] = []

    def play(self, steps: int) -> None:
        steps_of_a_day = (self.trade, self.push_again, self.ask, self.restart)
        for step in self.random.choices(steps_of_a_day, (50, 10, 10, 2), k=steps):
            self.now += self.random.randrange(1_000_000_000)
            step()
        self.ask()

    def trade(self) -> None:
        choice, number = self.random.choice, self.random.choice((0, -1, 1, 2))
        at = self.now // 1_000_000_000 - choice((0, 1, 2))
        if choice((True, False)):
            data = order(choice((48, 49, 50, 56, 57)), number, choice((0, 100)), status_msg=choice("ab"), order_time=at)
            data["price"] = choice((1.0, math.nan))
            event = "order"
        else:
            data = fill(choice(("T1", "T2")), order_id=number, traded_volume=choice((100, 200)), traded_time=at)
            data["order_type"] = choice((23, 24))
            event = "trade"
        self.happened.append((event, data))
        if self.random.random() < 0.8:
            self.push(event, data)

    def push(self, event: str, data: dict[str, Any]) -> None:
        news = self.published.judge(event, Record(dict(data)), self.now)
        if news is not None:
            self.publish(news)

    def push_again(self) -> None:
        for event, data in self.happened:
            self.push(event, data)

    def ask(self) -> None:
        for asked in ("order", "trade"):
            listed = [Record(dict(data)) for event, data in self.happened if event == asked]
            found = self.published.answered(ACCOUNT, asked, listed, self.now, self.published.count)
            for news in found.news:
                news.record.data["recovered"] = True
                self.publish(news)

    def publish(self, news: News) -> None:
        self.published.remember(news)
        self.journal.append((news.event, frames.encode(news.record.data), self.now))

    def restart(self) -> None:
        self.published = Published()
        for event, body, at_ns in self.journal:
            self.published.restore(event, frames.decode(body), at_ns)


def whole(event: str, data: dict[str, Any]) -> str:
    # As the journal has it, without NaN.
    data = frames.decode(frames.encode(data))
    return repr((event, sorted((name, repr(value)) for name, value in data.items() if name != "recovered")))


@pytest.mark.parametrize("seed", range(20))
def test_each_record_of_a_random_day_is_published_once(seed: int) -> None:
    day = Day(seed)
    day.play(300)
    told = [whole(event, frames.decode(body)) for event, body, _ in day.journal]
    assert sorted(told) == sorted({whole(event, data) for event, data in day.happened})
