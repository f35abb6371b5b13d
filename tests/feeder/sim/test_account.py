from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import pytest

from feeder.sim.account import SimulatedAccount
from feeder.sim.constants import NAMES

# The events are read as a client reads them: without types.
Event: TypeAlias = tuple[str, dict[str, Any]]

CODES = ("600519.SH", "000001.SZ", "600000.SH", "300750.SZ")
PRICES = dict(zip(CODES, (1500.0, 11.0, 8.0, 200.0), strict=True))
# 2024-11-25 10:00 in Shanghai
START = 1_732_500_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
# ORDER_PART_CANCEL, ORDER_CANCELED, ORDER_SUCCEEDED, ORDER_JUNK
ENDS = (53, 54, 56, 57)

SIDE = {"direction": int, "offset_flag": int, "direction_name": str, "offset_flag_name": str}
INSTRUMENT = {"stock_code": str, "secu_account": str, "instrument_name": str}
ORDER = {"order_id": int, "strategy_name": str, "order_remark": str}
ACCOUNT = {"account_type": int, "account_id": str, "account_type_name": str}
# Every field of the callback's object, including native extras, and the names of its enumerations.
FIELDS: dict[str, dict[str, type]] = {
    "account_status": {"status": int, "status_name": str},
    "asset": dict.fromkeys(
        ("cash", "frozen_cash", "market_value", "total_asset", "fetch_balance", "current_balance"), float
    ),
    "position": {
        **INSTRUMENT,
        "direction": int,
        "direction_name": str,
        "open_date": str,
        **dict.fromkeys(("volume", "can_use_volume", "frozen_volume", "on_road_volume", "yesterday_volume"), int),
        **dict.fromkeys(("open_price", "market_value", "avg_price", "last_price", "profit_rate"), float),
        **dict.fromkeys(("float_profit", "position_profit"), float),
    },
    "order": {
        **ORDER,
        **SIDE,
        **INSTRUMENT,
        "order_sysid": str,
        **dict.fromkeys(("order_time", "order_type", "order_volume", "price_type", "traded_volume"), int),
        **dict.fromkeys(("price", "traded_price"), float),
        **dict.fromkeys(("order_type_name", "price_type_name", "order_status_name", "status_msg"), str),
        "order_status": int,
    },
    "trade": {
        **ORDER,
        **SIDE,
        **INSTRUMENT,
        "order_sysid": str,
        "traded_id": str,
        **dict.fromkeys(("order_type", "traded_time", "traded_volume"), int),
        **dict.fromkeys(("traded_price", "traded_amount", "commission"), float),
        "order_type_name": str,
    },
    "order_error": {**ORDER, "error_id": int, "error_msg": str, "seq": int},
    "cancel_error": {"order_id": int, "market": int, "order_sysid": str, "error_id": int, "error_msg": str},
    "async_response": {**ORDER, "error_msg": str, "seq": int},
    "async_cancel_response": {
        "cancel_result": int,
        "order_id": int,
        "order_sysid": str,
        "seq": int,
        "error_msg": str,
    },
}


def price(code: str, ms: int) -> float:
    return PRICES[code] * (1 + 0.02 * math.sin(ms / 600_000 + PRICES[code]))


def account(seed: int = 1, interval: int = 5000, codes: Sequence[str] = CODES) -> SimulatedAccount:
    return SimulatedAccount("10000001", seed, price, codes, interval, START)


def run(simulated: SimulatedAccount, hours: float, step_ms: int) -> Iterator[list[Event]]:
    for now in range(START, START + int(hours * HOUR) + 1, step_ms):
        yield simulated.step(now)


def flatten(groups: Iterator[list[Event]]) -> list[Event]:
    return [event for group in groups for event in group]


def fen(yuan: Any) -> int:
    assert isinstance(yuan, float)
    assert abs(yuan * 100 - round(yuan * 100)) < 1e-3
    return round(yuan * 100)


@pytest.fixture(scope="module", params=range(3))
def groups(request: pytest.FixtureRequest) -> list[list[Event]]:
    """Return the events of two days with one order a minute, grouped by step."""
    return list(run(account(request.param, interval=60_000), 48, 5000))


@pytest.fixture(scope="module")
def events(groups: list[list[Event]]) -> list[Event]:
    return [event for group in groups for event in group]


def test_the_first_step_opens_the_account() -> None:
    first = account().step(START)
    assert [event for event, _ in first] == ["account_status", "asset"] + ["position"] * len(CODES)
    assert first[0][1]["status"] == 0
    assert {data["stock_code"] for event, data in first if event == "position"} == set(CODES)


def test_no_event_comes_before_the_start() -> None:
    assert account().step(START - 1) == []


def test_every_event_has_every_field_of_its_type(events: list[Event]) -> None:
    assert {event for event, _ in events} == set(FIELDS)
    for event, data in events:
        assert {field: type(value) for field, value in data.items()} == {**ACCOUNT, **FIELDS[event]}, event
        assert data["account_type"] == 2
        assert data["account_id"] == "10000001"


def test_enumerations_have_the_names_of_xtconstant(events: list[Event]) -> None:
    xtconstant = pytest.importorskip("xtquant.xtconstant")
    for field, names in NAMES.items():
        for value, name in names.items():
            known = xtconstant.ACCOUNT_TYPE_DICT[value] if field == "account_type" else name
            assert known == name
            if field != "account_type":
                assert getattr(xtconstant, name) == value
    for _, data in events:
        for field, names in NAMES.items():
            if field in data:
                value = data[field]
                assert data[f"{field}_name"] == names[value]


def test_the_asset_is_the_sum_of_cash_and_positions(groups: list[list[Event]]) -> None:
    values: dict[object, int] = {}
    asset: dict[str, Any] = {}
    for group in groups:
        for event, data in group:
            if event == "asset":
                asset = data
                assert fen(data["cash"]) >= 0
                assert fen(data["frozen_cash"]) >= 0
                parts = fen(data["cash"]) + fen(data["frozen_cash"]) + fen(data["market_value"])
                assert parts == fen(data["total_asset"])
                assert fen(data["current_balance"]) == fen(data["cash"]) + fen(data["frozen_cash"])
                assert 0 <= fen(data["fetch_balance"]) <= fen(data["cash"])
            elif event == "position":
                values[data["stock_code"]] = fen(data["market_value"])
        assert sum(values.values()) == fen(asset["market_value"])


def fee(amount: int, sale: bool) -> int:
    """0.025 % and at least 5 yuan, on a sale 0.05 % stamp duty too."""
    return max(500, amount // 4000) + (amount // 2000 if sale else 0)


def test_cash_changes_only_by_traded_amounts_and_fees(events: list[Event]) -> None:
    cash = 0
    amounts: Counter[object] = Counter()
    charged: Counter[object] = Counter()
    for event, data in events:
        if event == "trade":
            sale, order_id = data["order_type"] == 24, data["order_id"]
            amount, commission = fen(data["traded_amount"]), fen(data["commission"])
            amounts[order_id] += amount
            charged[order_id] += commission
            assert charged[order_id] == fee(amounts[order_id], sale)
            cash += (amount if sale else -amount) - commission
        elif event == "asset":
            # Freezing cash does not change the total.
            assert cash in (0, fen(data["current_balance"]))
            cash = fen(data["current_balance"])


def test_frozen_cash_is_the_remaining_cost_of_open_buys(groups: list[list[Event]]) -> None:
    junk = {data["order_id"] for group in groups for event, data in group if event == "order_error"}
    open_buys: dict[object, dict[str, Any]] = {}
    charged: Counter[object] = Counter()
    frozen = most = 0
    for group in groups:
        for event, data in group:
            if event == "order" and data["order_type"] == 23 and data["order_id"] not in junk:
                open_buys[data["order_id"]] = data
                if data["order_status"] in ENDS:
                    del open_buys[data["order_id"]]
            elif event == "trade":
                charged[data["order_id"]] += fen(data["commission"])
            elif event == "asset":
                frozen = fen(data["frozen_cash"])
        expected = 0
        for order_id, order in open_buys.items():
            cost, volume = fen(order["price"]), order["order_volume"]
            expected += cost * (volume - order["traded_volume"]) + fee(cost * volume, sale=False) - charged[order_id]
        assert frozen == expected
        most = max(most, frozen)
    assert most > 0


def test_proceeds_of_today_cannot_be_withdrawn(events: list[Event]) -> None:
    proceeds = 0
    for event, data in events:
        if event == "trade" and data["order_type"] == 24:
            proceeds += fen(data["traded_amount"]) - fen(data["commission"])
        elif event == "asset":
            if fen(data["fetch_balance"]) == fen(data["cash"]):
                # No share was sold yet, or a new day began.
                proceeds = 0
            assert fen(data["fetch_balance"]) == max(0, fen(data["cash"]) - proceeds)
    assert proceeds > 0


def test_the_cost_of_a_position_is_the_price_paid(events: list[Event]) -> None:
    costs: dict[object, float] = {}
    volumes: dict[object, int] = {}
    trade: dict[str, Any] | None = None
    for event, data in events:
        if event == "trade":
            trade = data
        elif event == "position":
            code, volume = data["stock_code"], data["volume"]
            cost = data["avg_price"] * volume
            if trade is not None:
                # The position event follows its trade event, and is valued at the price of that trade.
                assert trade["stock_code"] == code
                assert data["last_price"] == trade["traded_price"]
                if trade["order_type"] == 23:
                    paid = trade["traded_amount"] + trade["commission"]
                else:
                    paid = -costs[code] * trade["traded_volume"] / volumes[code]
                assert cost == pytest.approx(costs[code] + paid, abs=0.02)
            elif code in costs:
                assert cost == pytest.approx(costs[code], abs=0.001)
            assert data["market_value"] == pytest.approx(data["last_price"] * volume, abs=0.001)
            assert data["float_profit"] == pytest.approx(data["market_value"] - cost, abs=0.001)
            assert data["profit_rate"] == pytest.approx(data["market_value"] / cost - 1)
            assert data["avg_price"] >= data["open_price"] > 0
            costs[code], volumes[code], trade = cost, volume, None


def test_positions_are_whole_lots_and_shares_of_today_cannot_be_sold(events: list[Event]) -> None:
    held: dict[object, dict[str, Any]] = {}
    for event, data in events:
        if event == "position":
            parts = [data[name] for name in ("can_use_volume", "frozen_volume", "on_road_volume")]
            for volume in (*parts, data["volume"], data["yesterday_volume"]):
                assert volume >= 0
                assert volume % 100 == 0
            assert sum(parts) == data["volume"]
            can_use, frozen, yesterday = data["can_use_volume"], data["frozen_volume"], data["yesterday_volume"]
            assert can_use + frozen <= yesterday
            held[data["stock_code"]] = data
        elif event == "trade" and data["order_type"] == 24:
            frozen, sold = held[data["stock_code"]]["frozen_volume"], data["traded_volume"]
            assert sold <= frozen


def test_shares_bought_can_be_sold_the_next_day() -> None:
    simulated = account(interval=60_000)
    # Midnight in Shanghai is 14 hours after the start.
    evening = {
        str(data["stock_code"]): data for event, data in flatten(run(simulated, 13.99, 60_000)) if event == "position"
    }
    assert any(data["on_road_volume"] for data in evening.values())
    night = simulated.step(START + 14 * HOUR)
    morning = {str(data["stock_code"]): data for event, data in night if event == "position"}
    assert morning.keys() == evening.keys()
    for data in morning.values():
        assert data["on_road_volume"] == 0
        assert data["yesterday_volume"] == data["volume"]
    assets = [data for event, data in night if event == "asset"]
    assert assets[-1]["fetch_balance"] == assets[-1]["cash"]


def test_every_order_ends_in_one_of_four_states_in_plausible_steps(events: list[Event]) -> None:
    lives: dict[object, list[int]] = defaultdict(list)
    for event, data in events:
        if event == "order":
            lives[data["order_id"]].append(data["order_status"])
    # The last orders may still be open.
    last = list(lives)[-2:]
    ends: Counter[int] = Counter()
    for order_id, life in lives.items():
        if order_id in last and life[-1] not in ENDS:
            continue
        fills = [status for status in life if status == 55]
        ways = (
            [48, 49, 57],
            [48, 49, 50, *fills, 56],
            [48, 49, 50, 51, 54],
            [48, 49, 50, *fills, 52, 53],
        )
        assert life in ways
        assert life[-1] != 53 or fills
        ends[life[-1]] += 1
    assert set(ends) == set(ENDS)


def test_fills_add_up_to_the_order_within_its_limit(events: list[Event]) -> None:
    orders: dict[object, dict[str, Any]] = {}
    volumes: Counter[object] = Counter()
    amounts: Counter[object] = Counter()
    for event, data in events:
        if event == "order":
            orders[data["order_id"]] = data
        elif event == "trade":
            order = orders[data["order_id"]]
            volume, traded, limit = data["traded_volume"], data["traded_price"], order["price"]
            assert volume % 100 == 0
            assert fen(data["traded_amount"]) == fen(traded) * volume
            assert traded <= limit if data["order_type"] == 23 else traded >= limit
            now = data["traded_time"]
            # The time has whole seconds; the price was taken at some moment of that second.
            code = str(data["stock_code"])
            around = [price(code, now * 1000), price(code, now * 1000 + 999)]
            assert min(around) - 0.0051 <= traded <= max(around) + 0.0051
            volumes[data["order_id"]] += volume
            amounts[data["order_id"]] += fen(data["traded_amount"])
            # The order event of a fill comes before its trade event.
            assert volumes[data["order_id"]] == order["traded_volume"]
            assert order["order_sysid"] == data["order_sysid"] != ""
    assert volumes
    for order_id, order in orders.items():
        assert volumes[order_id] == order["traded_volume"]
        if volumes[order_id]:
            assert order["traded_price"] == pytest.approx(amounts[order_id] / volumes[order_id] / 100)
        if order["order_status"] == 56:
            assert order["traded_volume"] == order["order_volume"]


def test_ids_are_unique(events: list[Event]) -> None:
    trades = [data["traded_id"] for event, data in events if event == "trade"]
    assert len(trades) == len(set(trades))
    placed = [data["order_id"] for event, data in events if event == "order" and data["order_status"] == 48]
    assert len(placed) == len(set(placed))
    reported = [data["order_sysid"] for event, data in events if event == "order" and data["order_status"] == 50]
    assert "" not in reported
    assert len(reported) == len(set(reported))
    requests = [data["seq"] for event, data in events if event in ("async_response", "async_cancel_response")]
    assert requests == list(range(1, len(requests) + 1))


def test_a_rejection_is_an_order_error_that_names_the_request(events: list[Event]) -> None:
    requests = {data["order_id"]: data["seq"] for event, data in events if event == "async_response"}
    junk = {
        data["order_id"]: data["status_msg"]
        for event, data in events
        if event == "order" and data["order_status"] == 57
    }
    errors = {data["order_id"]: data for event, data in events if event == "order_error"}
    assert errors.keys() == junk.keys()
    for order_id, error in errors.items():
        assert error["error_msg"] == junk[order_id] != ""
        assert error["seq"] == requests[order_id]


def test_a_cancel_that_comes_too_late_is_a_cancel_error(events: list[Event]) -> None:
    status: dict[object, object] = {}
    refused = []
    for event, data in events:
        if event == "order":
            status[data["order_id"]] = data["order_status"]
        elif event == "async_cancel_response":
            assert (data["cancel_result"] == -1) == (status[data["order_id"]] == 56)
            if data["cancel_result"]:
                refused.append(data["order_id"])
    errors = [data for event, data in events if event == "cancel_error"]
    assert [data["order_id"] for data in errors] == refused
    codes = {data["order_id"]: str(data["stock_code"]) for event, data in events if event == "order"}
    for data in errors:
        assert data["market"] == {"SH": 0, "SZ": 1}[codes[data["order_id"]][-2:]]


def test_times_are_whole_seconds_since_1970(events: list[Event]) -> None:
    times = [data["order_time"] for event, data in events if event == "order"]
    times += [data["traded_time"] for event, data in events if event == "trade"]
    assert START // 1000 < min(times) < max(times) <= (START + 2 * DAY) // 1000


@pytest.mark.parametrize("interval", [10, 5000])
def test_the_size_of_the_steps_does_not_change_the_events(interval: int) -> None:
    seconds = 61 if interval == 10 else 600
    fine = flatten(run(account(7, interval), seconds / 3600, 10))
    minutes, rest = account(7, interval), START + seconds * 1000
    coarse = [event for now in [*range(START, rest, 60_000), rest] for event in minutes.step(now)]
    assert fine == coarse
    assert len(fine) > 100


def test_one_large_step_gives_the_same_days_as_small_steps() -> None:
    fine = flatten(run(account(3, HOUR), 100, 60_000))
    assert account(3, HOUR).step(START + 100 * HOUR) == fine


def test_another_seed_gives_other_events() -> None:
    assert account(1).step(START + HOUR) != account(2).step(START + HOUR)


def test_a_long_pause_is_not_traded_afterwards() -> None:
    simulated = account(interval=10)
    before = simulated.step(START + 1000)
    placed = {data["order_id"] for event, data in before if event == "async_response"}
    later = START + 30 * DAY + 5
    after = simulated.step(later)
    assert {data["order_id"] for event, data in after if event == "order"} <= placed
    ended = {data["order_id"] for event, data in before + after if event == "order" and data["order_status"] in ENDS}
    assert ended == placed
    assert any(event == "async_response" for event, _ in simulated.step(later + 1000))


def test_a_pause_of_many_days_counts_as_one_new_day() -> None:
    simulated = account(interval=10, codes=())
    simulated.step(START)
    assert [event for event, _ in simulated.step(START + 30 * DAY)] == ["asset"]
    assert [event for event, _ in simulated.step(START + 31 * DAY)] == ["asset"]


def test_a_price_beyond_the_limit_fills_nothing() -> None:
    def leaping(code: str, ms: int) -> float:
        return price(code, ms) * (1.1 if ms // 3000 % 2 else 1)

    simulated = SimulatedAccount("10000001", 1, leaping, CODES, 1000, START)
    limits: dict[object, Any] = {}
    fills = 0
    events: list[Event] = simulated.step(START + 900_000)
    for event, data in events:
        if event == "order":
            limits[data["order_id"]] = data["price"]
        elif event == "trade":
            fills += 1
            limit, traded = limits[data["order_id"]], data["traded_price"]
            assert traded <= limit if data["order_type"] == 23 else traded >= limit
    assert fills > 100


def test_a_sold_position_is_listed_as_empty_until_the_day_ends() -> None:
    # At this price the account holds one lot and cannot afford a second one; the market closes when it is sold.
    closed = False
    simulated = SimulatedAccount("10000001", 1, lambda code, ms: None if closed else 150_000, CODES[:1], 600_000, START)
    assert simulated.step(START)[-1][1]["volume"] == 100
    now, volume, position = START, 100, {}
    while volume and now < START + 13 * HOUR:
        now += 100
        for event, data in simulated.step(now):
            if event == "position":
                position, volume = data, data["volume"]  # type: ignore[assignment]
    closed = True
    assert volume == position["avg_price"] == position["market_value"] == position["profit_rate"] == 0
    night = Counter(event for event, _ in simulated.step(START + 15 * HOUR))
    assert night["asset"] > 0 == night["position"]


def test_an_order_that_gets_no_fill_is_priced_away_from_the_market() -> None:
    simulated = SimulatedAccount("10000001", 1, lambda code, ms: 300.0, CODES, 1000, START)
    unfilled = [
        (data["order_type"], data["price"])
        for event, data in simulated.step(START + 900_000)
        if event == "order" and data["order_status"] == 54
    ]
    assert set(unfilled) == {(23, 297.0), (24, 303.0)}


def test_no_order_is_placed_or_filled_without_a_price() -> None:
    closed = START + 10 * 60_000

    def until_closed(code: str, ms: int) -> float | None:
        return price(code, ms) if ms < closed else None

    simulated = SimulatedAccount("10000001", 1, until_closed, CODES, 1000, START)
    simulated.step(closed - 1)
    evening = [event for minute in range(60) for event in simulated.step(closed + minute * 60_000)]
    kinds = {event for event, _ in evening}
    assert "order" in kinds
    assert kinds.isdisjoint(("trade", "async_response"))
    assert simulated.step(closed + 2 * HOUR) == []


def test_without_codes_there_is_only_cash() -> None:
    opened = account(codes=()).step(START + HOUR)
    assert [event for event, _ in opened] == ["account_status", "asset"]
    assert opened[1][1]["market_value"] == 0


def test_an_account_started_without_prices_buys_shares_later() -> None:
    simulated = SimulatedAccount(
        "10000001", 1, lambda code, ms: price(code, ms) if ms > START else None, CODES, 1000, START
    )
    assert [event for event, _ in simulated.step(START)] == ["account_status", "asset"]
    later = simulated.step(START + 600_000)
    assert {data["order_type"] for event, data in later if event == "trade"} == {23}


def test_buys_without_enough_cash_are_rejected() -> None:
    simulated = SimulatedAccount(
        "10000001", 1, lambda code, ms: 2e6 if ms > START else None, ("600519.SH",), 86_400_000, START
    )
    events = simulated.step(START + 20 * DAY)
    assert "可用资金不足" in str([data["error_msg"] for event, data in events if event == "order_error"])
    assert not any(event == "trade" for event, _ in events)


def test_a_code_that_cannot_be_bought_is_sold_if_it_is_held() -> None:
    # At this price the account holds one lot and cannot afford a second one.
    for seed in range(10):
        simulated = SimulatedAccount("10000001", seed, lambda code, ms: 150_000, CODES[:1], 600_000, START)
        first = next(data for event, data in simulated.step(START + 600_000) if event == "order")
        assert first["order_type"] == 24


def test_the_account_has_enough_cash_for_its_order_rate() -> None:
    simulated = account(interval=100)
    for minute in range(1, 11):
        events = simulated.step(START + minute * 60_000)
        assert {data["error_id"] for event, data in events if event == "order_error"} == {-1002}
        assert {data["order_type"] for event, data in events if event == "trade"} == {23, 24}


def test_an_order_interval_below_10_ms_is_refused() -> None:
    with pytest.raises(ValueError, match="order_interval_ms must be at least 10, got 9"):
        account(interval=9)
