from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise

import pytest

from feeder.sim.hours import DAY, DAY_BARS, HOUR, MINUTE, MINUTE_BARS
from feeder.sim.market import HISTORY_BARS, Market
from feeder.sim.walk import find_block, measure, split
from qmt_bridge.errors import Refused

SHANGHAI = timezone(timedelta(hours=8))
# Wednesday, 18 November 2026, 10:41:07 in Shanghai.
NOW = int(datetime(2026, 11, 18, 10, 41, 7, tzinfo=SHANGHAI).timestamp() * 1000)
CODES = ("000001.SZ", "600519.SH", "300750.SZ", "688981.SH", "920001.BJ", "510300.SH")
TICK_FIELDS = [
    *("time lastPrice open high low lastClose amount volume pvolume stockStatus openInt transactionNum".split()),
    *("lastSettlementPrice settlementPrice pe askPrice bidPrice askVol bidVol volRatio speed1Min speed5Min".split()),
]
BAR_FIELDS = "time open high low close volume amount settelementPrice openInterest preClose suspendFlag".split()


def at(*clock: int, day: int = 18) -> int:
    return int(datetime(2026, 11, day, *clock, tzinfo=SHANGHAI).timestamp() * 1000)


def clock(time: float) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).astimezone(SHANGHAI).strftime("%Y-%m-%d %H:%M:%S")


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(1)


@pytest.fixture(scope="module")
def exchange() -> Market:
    return Market(1, hours="exchange")


def ticks_of(market: Market, code: str, after: int, until: int) -> list[dict]:
    """Return every tick of `code` in `after` < t <= `until`."""
    first = market.tick(code, after)["time"]
    moments = range(first, until + market.hours.interval, market.hours.interval)
    ticks = {tick["time"]: tick for tick in (market.tick(code, moment) for moment in moments)}
    return [tick for time, tick in ticks.items() if after < time <= until]


def traded_prices(market: Market, code: str, after: int, until: int) -> list[float]:
    """Return the prices of the trade prints in `after` < t <= `until`."""
    return [each["price"] for each in market.stream(code, "l2transaction", after, until)]


def limit_days(market: Market, close_at: str) -> Iterator[tuple[str, int]]:
    """Yield codes and days on which the price closes at its `highest` or `lowest` limit."""
    number, _ = market.hours.locate(NOW)
    for code, instrument in market.instruments.items():
        day = market._day(code, number)
        if instrument.type == "stock" and day.whole.last == getattr(day, close_at):
            yield code, number


def test_the_market_has_the_size_and_mix_of_the_real_one(market: Market) -> None:
    count = Counter((each.market, each.type) for each in market.instruments.values())
    assert 5300 <= len(market.instruments) <= 5500
    assert count["SH", "stock"] > 2000
    assert count["SZ", "stock"] > 2500
    assert count["BJ", "stock"] > 250
    assert count["SH", "etf"] > 100
    assert count["SZ", "etf"] > 40
    assert count["SH", "index"] > 10


@pytest.mark.parametrize("code", [*CODES, "000300.SH", "000001.SH", "399001.SZ", "830799.BJ", "600001.SH"])
def test_well_known_codes_exist(market: Market, code: str) -> None:
    assert market.tick(code, NOW)["lastPrice"] > 0


@pytest.mark.parametrize("code", ["999999.SZ", "600519.SZ", "IF2612.IF"])
def test_an_unknown_code_is_refused_by_name(market: Market, code: str) -> None:
    for ask in (market.instrument, market.codes, lambda code: market.quote(code, "1d", NOW)):
        with pytest.raises(Refused, match=code) as refused:
            ask(code)
        assert refused.value.code == "unknown_symbol"


def test_an_unknown_market_is_refused_by_name(market: Market) -> None:
    with pytest.raises(Refused, match="HK") as refused:
        market.codes("HK")
    assert refused.value.code == "unknown_symbol"
    assert sum(len(market.codes(name)) for name in ("SH", "SZ", "BJ")) == len(market.instruments)


def test_a_tick_has_every_field_of_a_real_one(market: Market) -> None:
    tick = market.tick("600519.SH", NOW)
    assert list(tick) == TICK_FIELDS
    assert type(tick["time"]) is int
    assert NOW - 3000 < tick["time"] <= NOW
    assert tick["openInt"] == 13
    assert tick["stockStatus"] == 3
    assert tick["pvolume"] == tick["volume"] * 100
    assert tick["lastSettlementPrice"] == tick["lastClose"]
    assert all(len(tick[name]) == 5 for name in ("askPrice", "bidPrice", "askVol", "bidVol"))


def test_every_tick_of_the_market_is_consistent(market: Market) -> None:
    for code, instrument in market.instruments.items():
        tick = market.tick(code, NOW)
        limit = {"BJ": 0.3}.get(instrument.market, 0.2 if code[:2] == "30" or code[:3] in ("688", "588") else 0.1)
        step = 0.001 if instrument.type == "etf" else 0.01
        prices = [tick[name] for name in ("lastPrice", "open", "high", "low")]
        levels = [price for price in (*tick["askPrice"], *tick["bidPrice"]) if price]
        for price in (*prices, *levels):
            assert round(price / step) * step == pytest.approx(price, abs=1e-9), code
            assert abs(price / tick["lastClose"] - 1) <= limit + 0.6 * step / tick["lastClose"], code
        assert tick["low"] <= min(prices) <= max(prices) <= tick["high"], code
        mean = tick["amount"] / tick["pvolume"]
        assert tick["low"] - 1e-9 <= mean <= tick["high"] + 1e-9, code
        assert tick["volume"] > tick["transactionNum"] > 0
        if instrument.type == "index":
            assert not levels
            continue
        asks, bids = [[each for each in tick[name] if each] for name in ("askPrice", "bidPrice")]
        assert asks == sorted(set(asks)), code
        assert bids == sorted(set(bids), reverse=True), code
        assert not asks or not bids or asks[0] > bids[0], code
        assert tick["lastPrice"] in (asks[:1] + bids[:1]), code
        for price, volume in (("askPrice", "askVol"), ("bidPrice", "bidVol")):
            assert [bool(each) for each in tick[price]] == [bool(each) for each in tick[volume]], code


def test_closes_stay_within_the_price_limits_day_after_day(market: Market) -> None:
    number, _ = market.hours.locate(NOW)
    for code in random.Random(7).sample(sorted(market.instruments), 150):
        for each in range(number - 60, number):
            day = market._day(code, each)
            assert day.last_close == market._day(code, each - 1).whole.last
            assert day.lowest <= day.whole.low <= day.whole.high <= day.highest, (code, each)


@pytest.mark.parametrize(("close_at", "empty", "full"), [("highest", "ask", "bid"), ("lowest", "bid", "ask")])
def test_a_price_limit_has_levels_on_one_side_only(market: Market, close_at: str, empty: str, full: str) -> None:
    days = list(limit_days(market, close_at))
    # In a real market about 1 % of the stocks close at a limit.
    assert 10 < len(days) < 120
    queued = behind = 0
    for code, number in days:
        tick = market.tick(code, market.hours.midnight(number + 1))
        assert tick["lastPrice"] == tick[f"{full}Price"][0]
        assert tick[f"{empty}Price"] == [0.0] * 5
        assert tick[f"{empty}Vol"] == [0] * 5
        assert tick["lastPrice"] == (tick["high"] if close_at == "highest" else tick["low"])
        queued += tick[f"{full}Vol"][0]
        behind += tick[f"{full}Vol"][1]
        limit = market.instruments[code].limit / 100
        sign = 1 if close_at == "highest" else -1
        assert tick["lastPrice"] == pytest.approx(tick["lastClose"] * (1 + sign * limit), abs=0.00501)
    assert queued > 10 * behind


def test_a_price_that_closes_at_its_limit_stayed_there_before(market: Market) -> None:
    shares = []
    for code, number in limit_days(market, "highest"):
        evening = range(market.hours.midnight(number) + 18 * HOUR, market.hours.midnight(number + 1), 10 * MINUTE)
        limit = market.tick(code, market.hours.midnight(number + 1))["lastPrice"]
        shares.append(sum(market.tick(code, moment)["lastPrice"] == limit for moment in evening) / len(evening))
    assert sum(shares) / len(shares) > 0.8


def test_prices_go_above_and_below_the_line_from_open_to_close(market: Market) -> None:
    number, _ = market.hours.locate(NOW)
    days = [market._day(code, number).whole for code in market.instruments]
    above = sum(day.value / day.lots > (day.first + day.last) / 2 for day in days)
    assert 0.4 < above / len(days) < 0.6


@pytest.mark.parametrize("code", CODES)
def test_totals_only_grow_and_highs_and_lows_only_widen(market: Market, code: str) -> None:
    ticks = ticks_of(market, code, NOW - 10 * MINUTE, NOW)
    assert len(ticks) == 200
    for before, after in pairwise(ticks):
        assert after["time"] == before["time"] + 3000
        assert after["volume"] > before["volume"]
        assert after["amount"] > before["amount"]
        assert after["transactionNum"] > before["transactionNum"]
        dealt = traded_prices(market, code, before["time"], after["time"])
        assert after["high"] == max(before["high"], *dealt)
        assert after["low"] == min(before["low"], *dealt)
        assert (after["open"], after["lastClose"]) == (before["open"], before["lastClose"])
    assert len({tick["lastPrice"] for tick in ticks}) > 3


def test_a_tick_depends_only_on_seed_code_and_time(market: Market) -> None:
    moments = [NOW + n * 7919 for n in range(-400, 400)]
    asked = [(code, moment) for code in CODES for moment in moments]
    in_order = {each: market.tick(*each) for each in asked}
    random.Random(3).shuffle(asked)
    fresh = Market(1)
    for code, moment in asked[:300]:
        fresh.bars(code, "5m", moment - DAY, 3)
    assert {each: fresh.tick(*each) for each in asked} == in_order
    assert Market(1).tick(*asked[0]) == in_order[asked[0]]
    assert Market(2).tick(*asked[0]) != in_order[asked[0]]


def test_a_day_is_the_sum_of_its_ticks(market: Market) -> None:
    code = "000001.SZ"
    begin = at(0)
    ticks = ticks_of(market, code, begin, begin + DAY)
    assert len(ticks) == 28_800
    prices = [tick["lastPrice"] for tick in ticks]
    assert ticks[0]["open"] == ticks[-1]["open"] == prices[0]
    high, low = 0.0, math.inf
    for before, after in pairwise([{"time": begin}, *ticks[::100]]):
        dealt = traded_prices(market, code, before["time"], after["time"])
        high, low = max(high, *dealt), min(low, *dealt)
        assert (after["high"], after["low"]) == (high, low)
    bar = market.bar(code, "1d", begin + DAY)
    assert (bar["open"], bar["close"]) == (prices[0], prices[-1])
    rest = traded_prices(market, code, ticks[-100]["time"], begin + DAY)
    assert (bar["high"], bar["low"]) == (max(high, *rest), min(low, *rest))
    assert (bar["volume"], bar["amount"]) == (ticks[-1]["volume"], ticks[-1]["amount"])
    assert market.tick(code, begin + DAY + 3000)["lastClose"] == prices[-1]
    assert market.tick(code, begin + DAY + 3000)["volume"] < ticks[-1]["volume"] / 100


@pytest.mark.parametrize("hours", ["always", "exchange"])
@pytest.mark.parametrize("interval", [3000, 7000, 500])
@pytest.mark.parametrize("period", MINUTE_BARS)
def test_bars_are_the_sum_of_their_ticks(hours: str, interval: int, period: str) -> None:
    market, code, length = Market(5, interval, hours=hours), "300750.SZ", MINUTE_BARS[period]  # type: ignore[arg-type]
    now = at(10, 41, 7)
    bar = market.bar(code, period, now)
    begin = bar["time"] - length
    assert begin < market.tick(code, now)["time"] <= bar["time"]
    assert clock(bar["time"]).endswith(":00")
    ticks = ticks_of(market, code, begin, now)
    prices = [tick["lastPrice"] for tick in ticks]
    before = market.tick(code, begin)
    if before["time"] < at(0) or clock(before["time"]).startswith("2026-11-17"):
        before = {"volume": 0, "amount": 0.0}
    assert list(bar) == BAR_FIELDS
    dealt = traded_prices(market, code, begin, ticks[-1]["time"])
    assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (prices[0], max(dealt), min(dealt), prices[-1])
    assert bar["volume"] == ticks[-1]["volume"] - before["volume"]
    assert bar["amount"] == pytest.approx(ticks[-1]["amount"] - before["amount"], abs=0.01)
    assert bar["preClose"] == ticks[-1]["lastClose"]


@pytest.mark.parametrize("period", DAY_BARS)
def test_longer_bars_are_the_sum_of_their_days(exchange: Market, period: str) -> None:
    code = "000001.SZ"
    bar, days = exchange.bar(code, period, NOW), exchange.bars(code, "1d", NOW, -1)
    since = {"1d": "2026-11-18", "1w": "2026-11-16", "1mon": "2026-11-02", "1q": "2026-10-01", "1hy": "2026-07-01"}
    days = [day for day in days if clock(day["time"]) >= since.get(period, "2026-01-01")]
    last = {"1d": "11-18", "1w": "11-20", "1mon": "11-30"}.get(period, "12-31")
    assert clock(bar["time"]) == f"2026-{last} 00:00:00"
    assert (bar["open"], bar["close"]) == (days[0]["open"], days[-1]["close"])
    assert bar["high"] == max(day["high"] for day in days)
    assert bar["low"] == min(day["low"] for day in days)
    assert bar["volume"] == sum(day["volume"] for day in days)
    assert bar["preClose"] == days[0]["preClose"]


@pytest.mark.parametrize("hours", ["always", "exchange"])
@pytest.mark.parametrize("period", [*MINUTE_BARS, *DAY_BARS])
def test_history_equals_the_final_state_of_the_forming_bars(hours: str, period: str) -> None:
    market, code = Market(1, hours=hours), "601318.SH"  # type: ignore[arg-type]
    bars = market.bars(code, period, NOW, 30)
    times = [bar["time"] for bar in bars]
    assert times == sorted(set(times))
    assert bars[-1] == market.bar(code, period, NOW)
    if period in MINUTE_BARS:
        assert all(market.bar(code, period, bar["time"]) == bar for bar in bars[:-1])
    else:
        closes = [bar["close"] for bar in bars[:-1]]
        assert closes == [bar["preClose"] for bar in bars[1:]]


def test_history_has_the_requested_length(market: Market) -> None:
    assert len(market.bars("000001.SZ", "1d", NOW, -1)) == HISTORY_BARS
    assert len(market.bars("000001.SZ", "1m", NOW, 7)) == 7
    assert [clock(bar["time"])[:4] for bar in market.bars("000001.SZ", "1y", NOW, -1)] == [
        *("2022 2023 2024 2025 2026".split())
    ]
    with pytest.raises(Refused, match="got 0"):
        market.bars("000001.SZ", "1d", NOW, 0)
    with pytest.raises(Refused, match="tick") as refused:
        market.bars("000001.SZ", "tick", NOW, -1)
    assert refused.value.code == "unsupported_period"


def test_bars_in_exchange_hours_end_at_the_times_of_the_exchange(exchange: Market) -> None:
    ends = {clock(bar["time"])[-8:] for bar in exchange.bars("000001.SZ", "1h", NOW, 40)}
    assert ends == {"10:30:00", "11:30:00", "14:00:00", "15:00:00"}
    minutes = [clock(bar["time"])[-8:] for bar in exchange.bars("000001.SZ", "1m", at(13, 0, 30), 3)]
    assert minutes == ["11:29:00", "11:30:00", "13:01:00"]


def test_ticks_in_exchange_hours_follow_the_trading_phase(exchange: Market) -> None:
    def tick(*moment: int, day: int = 18) -> dict:
        return exchange.tick("600519.SH", at(*moment, day=day))

    yesterday = tick(9, day=18)
    assert clock(yesterday["time"]).startswith("2026-11-17 14:59:5") or clock(yesterday["time"])[11:] == "15:00:00"
    assert (yesterday["openInt"], yesterday["stockStatus"]) == (15, 0)
    call = tick(9, 20)
    assert call["openInt"] == 12
    assert call["lastPrice"] == call["open"] == call["amount"] == 0.0
    assert call["askPrice"] == [0.0] * 5
    assert call["bidVol"] == [0] * 5
    assert call["lastClose"] == yesterday["lastPrice"]
    assert at(9, 20) - 3000 < call["time"] <= at(9, 20)
    assert tick(9, 30, 5)["openInt"] == tick(14, 56)["openInt"] == 13
    assert tick(12) == tick(11, 30)
    assert tick(14, 58)["openInt"] == 18
    assert tick(16)["openInt"] == 15
    assert tick(12, day=22) == tick(16, day=20)
    assert tick(9, 31, day=23)["lastClose"] == tick(16, day=20)["lastPrice"]


@pytest.mark.parametrize("hours", ["always", "exchange"])
def test_each_code_is_due_once_an_interval_at_its_own_phase(hours: str) -> None:
    market = Market(1, hours=hours)  # type: ignore[arg-type]
    begin = at(10)
    times: dict[str, list[int]] = {}
    for slice_ in range(begin, begin + 6000, 50):
        due = list(market.due(slice_, slice_ + 50))
        assert 40 < len(due) < 160
        for code in due:
            tick = market.tick(code, slice_ + 50)
            assert slice_ < tick["time"] <= slice_ + 50
            times.setdefault(code, []).append(tick["time"])
    assert times.keys() == market.instruments.keys()
    assert all(second - first == 3000 for first, second in times.values())


def test_no_code_is_due_while_the_exchange_is_closed(exchange: Market) -> None:
    def due(after: int, until: int) -> Counter[str]:
        return Counter(code for each in range(after, until, 1000) for code in exchange.due(each, each + 1000))

    assert not due(at(11, 30, 0), at(11, 31))
    assert not due(at(15), at(15, 1))
    assert not due(at(10, day=21), at(10, 1, day=21))
    assert not due(at(9, 14), at(9, 15))
    assert set(due(at(9, 15), at(9, 15, 6)).values()) == {2}
    assert set(due(at(11, 29, 54), at(11, 31)).values()) == {2}
    assert exchange.trading_price("000001.SZ", at(12)) is None
    assert exchange.trading_price("000001.SZ", at(10, day=21)) is None
    assert exchange.trading_price("000001.SZ", at(10)) == exchange.tick("000001.SZ", at(10))["lastPrice"]
    assert exchange.trading_price("999999.SZ", at(10)) is None


def test_no_tick_is_missed_or_doubled_over_midnight(market: Market) -> None:
    begin = at(23, 59, 57)
    due = Counter(code for each in range(begin, begin + 6000, 100) for code in market.due(each, each + 100))
    assert due.keys() == market.instruments.keys()
    assert set(due.values()) == {2}
    assert Counter(market.due(begin, begin + 60_000)).keys() == market.instruments.keys()


@pytest.mark.parametrize("code", CODES)
def test_trade_prints_add_up_to_the_tick(market: Market, code: str) -> None:
    ticks = ticks_of(market, code, NOW - 20 * 3000, NOW)
    for before, after in pairwise(ticks):
        prints = market.stream(code, "l2transaction", before["time"], after["time"])
        assert sum(each["volume"] for each in prints) == after["pvolume"] - before["pvolume"]
        assert sum(each["amount"] for each in prints) == pytest.approx(after["amount"] - before["amount"], abs=0.01)
        assert len(prints) == after["transactionNum"] - before["transactionNum"]
        assert [each["tradeIndex"] for each in prints] == [
            *range(before["transactionNum"] + 1, after["transactionNum"] + 1)
        ]
        assert (prints[-1]["price"], prints[-1]["time"]) == (after["lastPrice"], after["time"])
        # All trades between two snapshots in different minutes belong to the later minute, as in the bar.
        minute = (after["time"] - 1) // MINUTE * MINUTE
        assert before["time"] < prints[0]["time"] < max(before["time"], minute) + 1000
        for each in prints:
            assert each["volume"] % 100 == 0 < each["volume"]
            assert after["low"] <= each["price"] <= after["high"]
            assert each["tradeFlag"] == (1 if each["buyNo"] > each["sellNo"] else 2)
        orders = market.stream(code, "l2order", before["time"], after["time"])
        assert [max(each["buyNo"], each["sellNo"]) for each in prints] == [each["entrustNo"] for each in orders]
        assert [each["tradeFlag"] for each in prints] == [each["entrustDirection"] for each in orders]
        assert all(order["volume"] >= each["volume"] for order, each in zip(orders, prints, strict=True))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("hours", "interval", "rate"), [("always", 3000, 5), ("exchange", 3000, 40), ("exchange", 500, 5)]
)
def test_trade_prints_stay_in_the_range_of_their_tick_and_bar(seed: int, hours: str, interval: int, rate: int) -> None:
    market = Market(seed, interval, rate, hours)  # type: ignore[arg-type]
    rng = random.Random(seed)
    codes = [code for code, each in market.instruments.items() if each.type != "index"]
    # The range is smallest at a price limit.
    cases = list(islice(limit_days(market, "highest"), 2)) + list(islice(limit_days(market, "lowest"), 2))
    number, _ = market.hours.locate(NOW)
    cases += [(rng.choice(codes), number - rng.randrange(200)) for _ in range(10)]
    checked = 0
    for code, day in cases:
        opens = market.hours.midnight(day) + (0 if hours == "always" else 9 * HOUR + HOUR // 2)
        # After the open, where ranges are narrow; at any time; over the lunch break; up to the close.
        for begin in (
            0,
            rng.randrange(10 * MINUTE),
            rng.randrange(2 * HOUR),
            2 * HOUR - 5000,
            5 * HOUR + HOUR // 2 - 4000,
        ):
            until = opens + begin + 9000
            ticks = ticks_of(market, code, opens + begin, until + interval)
            for each in market.stream(code, "l2transaction", opens + begin, until):
                # The first tick that includes this trade print.
                tick = next((tick for tick in ticks if tick["time"] >= each["time"]), None)
                if tick is None:
                    continue
                checked += 1
                assert tick["low"] <= each["price"] <= tick["high"], (code, day, each, tick)
                bar = market.bar(code, "1m", tick["time"])
                assert bar["time"] - MINUTE < each["time"] <= bar["time"]
                assert bar["low"] <= each["price"] <= bar["high"], (code, day, each, bar)
                assert bar["low"] <= tick["lastPrice"] <= bar["high"]
    assert checked > 100


@pytest.mark.parametrize("hours", ["always", "exchange"])
@pytest.mark.parametrize(("interval", "rate"), [(3000, 5), (700, 5), (7000, 15)])
def test_the_trade_prints_of_a_minute_add_up_to_its_bar(hours: str, interval: int, rate: int) -> None:
    market = Market(9, interval, rate, hours)  # type: ignore[arg-type]
    for bar in market.bars("300750.SZ", "1m", at(13, 7), 130)[:-1]:
        prints = market.stream("300750.SZ", "l2transaction", bar["time"] - MINUTE, bar["time"])
        prices = [each["price"] for each in prints]
        assert (bar["low"], bar["high"]) == (min(prices), max(prices))
        assert bar["volume"] * 100 == sum(each["volume"] for each in prints)


@pytest.mark.parametrize("rate", [1, 5, 40])
def test_the_number_of_trade_prints_follows_the_setting(rate: int) -> None:
    market = Market(1, l2_rate=rate)
    for code in CODES:
        prints = market.stream(code, "l2transaction", NOW - 10 * MINUTE, NOW)
        assert rate * 600 * 0.6 < len(prints) < rate * 600 * 2


def test_a_stream_may_be_read_in_pieces_of_any_size(market: Market) -> None:
    for period in ("l2transaction", "l2order"):
        for end in (NOW, at(0, 0, 20), at(9, 30, 10)):
            whole = market.stream("000001.SZ", period, end - 30_000, end)
            pieces = [market.stream("000001.SZ", period, at, at + 70) for at in range(end - 30_000, end, 70)]
            assert [each for piece in pieces for each in piece if each["time"] <= end] == whole
            assert [each["time"] for each in whole] == sorted(each["time"] for each in whole)


@pytest.mark.parametrize("begin", [at(9, 30), at(13)])
def test_no_trade_print_is_before_the_open(exchange: Market, begin: int) -> None:
    for code in CODES:
        prints = exchange.stream(code, "l2transaction", begin - 10 * MINUTE, begin + 6000)
        assert begin < prints[0]["time"] < begin + 3000


@pytest.mark.parametrize("code", CODES)
def test_level_2_quotes_agree_with_the_tick(market: Market, code: str) -> None:
    for moment in range(NOW, NOW + 30 * 3000, 3000):
        tick, quote = market.tick(code, moment), market.quote(code, "l2quote", moment)
        book, twenty = market.thousand(code, 0, moment), market.thousand(code, 20, moment)
        queue, totals = market.quote(code, "l2orderqueue", moment), market.quote(code, "l2quoteaux", moment)
        for price, volume in (("askPrice", "askVol"), ("bidPrice", "bidVol")):
            thousand = price[:3] + "Volume"
            assert len(quote[price]) == len(quote[volume]) == 10
            assert quote[price][:5] == book[price][:5] == twenty[price][:5] == tick[price]
            assert quote[volume][:5] == book[thousand][:5] == twenty[thousand][:5] == tick[volume]
            assert len(book[price]) == len(book[thousand]) == 1000
            assert len(twenty[price]) == len(twenty[thousand]) == 20
            assert book[price][:20] == twenty[price]
        assert {name: value for name, value in quote.items() if not isinstance(value, list)} == {
            name: value for name, value in tick.items() if not isinstance(value, list)
        }
        assert (book["time"], book["price"]) == (tick["time"], tick["lastPrice"])
        assert sum(queue["bidLevelVolume"]) == tick["bidVol"][0]
        assert sum(queue["offerLevelVolume"]) == tick["askVol"][0]
        assert len(queue["bidLevelVolume"]) == queue["bidLevelNumber"]
        assert totals["totalBidQuantity"] == sum(book["bidVolume"])
        assert totals["avgOffPrice"] > totals["avgBidPrice"]


def test_depth_has_a_thousand_levels_or_ends_at_the_price_limits(market: Market) -> None:
    dear, cheap = market.thousand("600519.SH", 0, NOW), market.thousand("000001.SZ", 0, NOW)
    assert all(dear["askPrice"])
    assert all(dear["bidPrice"])
    asks = [price for price in cheap["askPrice"] if price]
    assert 10 < len(asks) < 1000
    assert asks[-1] == pytest.approx(market.tick("000001.SZ", NOW)["lastClose"] * 1.1, abs=0.00501)
    assert asks == sorted(asks)


@pytest.mark.parametrize(
    ("code", "period"),
    [
        ("000001.SZ", "l2transactioncount"),
        ("000001.SZ", "announcement"),
        ("000300.SH", "l2quote"),
        ("000300.SH", "l2order"),
    ],
)
def test_a_period_that_is_not_simulated_is_refused_by_name(market: Market, code: str, period: str) -> None:
    with pytest.raises(Refused, match=period) as refused:
        market.check_period(code, period)
    assert refused.value.code == "unsupported_period"


def test_an_index_has_no_depth(market: Market) -> None:
    with pytest.raises(Refused, match=r"000300\.SH"):
        market.thousand("000300.SH", 0, NOW)


def test_any_part_of_a_walk_is_the_sum_of_its_snapshots(market: Market) -> None:
    number, _ = market.hours.locate(NOW)
    rng = random.Random(11)
    for code in rng.sample(sorted(market.instruments), 20):
        day = market._day(code, number)
        begin = rng.randrange(28_000)
        end = begin + rng.randrange(1, 800)
        part = measure(day, begin, end, split)
        blocks = [find_block(day, index) for index in range(begin, end)]
        prices = [block.price[index - block.begin] for index, block in enumerate(blocks, begin)]
        assert (part.first, part.last) == (prices[0], prices[-1])
        each = [measure(day, index, index + 1, market._split) for index in range(begin, end)]
        assert all(one.low <= price <= one.high for one, price in zip(each, prices, strict=True))
        assert (part.high, part.low) == (max(one.high for one in each), min(one.low for one in each))
        first, last = blocks[0], blocks[-1]
        assert part.lots == last.lots[end - last.begin] - first.lots[begin - first.begin]
        assert part.value == last.value[end - last.begin] - first.value[begin - first.begin]
    whole = measure(day, 0, 28_800, split)
    assert whole == day.whole
