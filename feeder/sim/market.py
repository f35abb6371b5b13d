"""The simulated market: ticks, bars, depth, orders and trade prints of about 5,400 instruments at any moment.

Pure: time (ms since 1970) is an argument, and every answer depends only on the settings, the code and the time. Two
threads must not use it at the same time, because it caches results.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from operator import mul
from random import Random
from typing import Literal

from feeder.sim.depth import MAX_LEVELS, Depth, make_depth, queue
from feeder.sim.hours import DAY_BARS, HOUR, MINUTE_BARS, Hours
from feeder.sim.instruments import MARKETS, Instrument, make_universe, price_limits, seed_of, unit
from feeder.sim.prints import LOT, Print, Span, count_prints, make_prints
from feeder.sim.walk import MIN_PRINTS, Block, Day, Stretch, find_block, join, measure, open_day, split
from qmt_bridge.errors import Refused

Record = dict[str, object]
Bar = dict[str, float]

# The number of bars for a count of -1, the largest count, and the first day of which there are bars.
HISTORY_BARS = 250
MAX_BARS = 2000
LISTED = 18_993  # 1 January 2022, in days since 1970
STREAMS = ("l2order", "l2transaction")
DEPTHS = ("l2quote", "l2orderqueue", "l2quoteaux")

# Trading phases, as openInt has them for anything but derivatives.
_CALL, _CONTINUOUS, _CLOSED, _CLOSING_CALL = 12, 13, 15, 18
_CLOSING_CALL_TIME = 3 * 60_000
# A stock may close at its price limit at the first day of any eight; the next days lead back.
_CYCLE = 8
_LIMIT_UP, _LIMIT_DOWN = 0.08, 0.04
# Days over which a price swings, and how far: no sum of them comes near a price limit from one day to the next.
_SWINGS = ((64, 0.2), (16, 0.05), (1, 0.009))
_USUAL_VOLATILITY = 0.011


def bars_wanted(count: int) -> int:
    """Return how many bars a formula with this `count` is calculated over at the most."""
    return HISTORY_BARS if count == -1 else min(max(count, 0), MAX_BARS)


class Market:
    """The whole market under one seed; `interval` is ms between two snapshots of a code, `l2_rate` prints a second."""

    def __init__(
        self, seed: int, interval: int = 3000, l2_rate: float = 5.0, hours: Literal["always", "exchange"] = "always"
    ) -> None:
        self.instruments = make_universe(seed)
        self.hours = Hours(hours, interval)
        self._listed = self.hours.first_day_from(LISTED)
        self._seed = seed
        self._prints = max(MIN_PRINTS, round(l2_rate * interval / 1000))
        self._phases = {code: 1 + int(each.phase * interval) for code, each in self.instruments.items()}
        # Every code by where in the interval its snapshots fall.
        self._due = sorted((phase % interval, code) for code, phase in self._phases.items())
        self._blocks: dict[str, tuple[int, Block]] = {}
        self._day = lru_cache(maxsize=16384)(self._make_day)
        self._close = lru_cache(maxsize=16384)(self._make_close)
        self._days_before = lru_cache(maxsize=1024)(self._sum_days)
        self._split = lru_cache(maxsize=512)(split)
        self._deals = lru_cache(maxsize=256)(self._make_deals)

    def instrument(self, code: str) -> Instrument:
        """Return the instrument `code`; raise `Refused` (unknown_symbol) if there is none."""
        try:
            return self.instruments[code]
        except KeyError:
            raise Refused("unknown_symbol", f"{code} is not in the simulated market") from None

    def codes(self, market_or_code: str) -> list[str]:
        """Return the codes of a market, or the one code; raise `Refused` (unknown_symbol) if there is none."""
        if market_or_code in MARKETS:
            return [code for code, each in self.instruments.items() if each.market == market_or_code]
        if "." not in market_or_code:
            raise Refused("unknown_symbol", f"{market_or_code} is not simulated; the markets are {', '.join(MARKETS)}")
        return [self.instrument(market_or_code).code]

    def check_period(self, code: str, period: str) -> None:
        """Raise `Refused` if there are no quotes of `code` in `period`."""
        type_ = self.instrument(code).type
        if period in STREAMS or period in DEPTHS:
            if type_ == "index":
                raise Refused("unsupported_period", f"{code} is an index: it has no {period}")
        elif period != "tick" and period not in MINUTE_BARS and period not in DAY_BARS:
            raise Refused("unsupported_period", f"{period} is not simulated")

    def due(self, after: int, until: int) -> Iterator[str]:
        """Yield the codes of which a snapshot falls in `after` < t <= `until`, once for each session that it is of."""
        interval = self.hours.interval
        for low, high in self.hours.windows(after, until):
            if high - low >= interval:
                yield from (code for _, code in self._due)
                continue
            begin, end = low % interval, high % interval
            at, to = (bisect_right(self._due, moment, key=lambda each: each[0]) for moment in (begin, end))
            part = self._due[at:to] if begin <= end else self._due[at:] + self._due[:to]
            yield from (code for _, code in part)

    def tick(self, code: str, time: int) -> Record:
        """Return the newest tick of `code` at `time`, as xtquant has it: prices in yuan, `volume` in lots."""
        return self._tick(code, time, 5)

    def trading_price(self, code: str, time: int) -> float | None:
        """Return the last price of `code` in yuan, None if it does not trade at `time`."""
        instrument = self.instruments.get(code)
        if instrument is None or not self.hours.is_open(time):
            return None
        number, index = self._newest(code, time)
        block = self._block(code, number, index)
        return block.price[index - block.begin] / instrument.scale

    def quote(self, code: str, period: str, time: int) -> Record:
        """Return the newest record of `code` in any period but the `STREAMS`; raise `Refused` if there are none."""
        self.check_period(code, period)
        match period:
            case "tick":
                return self.tick(code, time)
            case "l2quote":
                return self._tick(code, time, 10)
            case "l2orderqueue":
                return self._order_queue(code, time)
            case "l2quoteaux":
                return self._quote_totals(code, time)
        return {**self.bar(code, period, time)}

    def stream(self, code: str, period: str, after: int, until: int) -> list[Print]:
        """Return the l2order or l2transaction records of `code` in `after` < t <= `until`, oldest first."""
        self.check_period(code, period)
        phase = self._phases[code]
        number, index = self._newest(code, after)
        records: list[Print] = []
        while True:
            index += 1
            if index == self.hours.snapshots:
                number, index = number + 1, 0
            since = self._time(code, number, index) - self.hours.gap(index, phase)
            if since >= until:
                return records
            trades, orders = self._deals(code, number, index)
            deals = trades if period == "l2transaction" else orders
            records += [each for each in deals if after < each["time"] <= until]

    def thousand(self, code: str, gear_num: int, time: int) -> Record:
        """Return the depth of `code`: `gear_num` levels a side, 0 = 1,000; zeros beyond the price limits.

        Volumes in lots. Raise `Refused` for an index, which has no orders.
        """
        if self.instrument(code).type == "index":
            raise Refused("upstream_refused", f"{code} is an index: it has no depth")
        moment, price, depth = self._depth(code, time, min(gear_num or MAX_LEVELS, MAX_LEVELS))
        return {
            "time": moment,
            "price": price,
            "askPrice": depth.ask_price,
            "askVolume": depth.ask_volume,
            "bidPrice": depth.bid_price,
            "bidVolume": depth.bid_volume,
        }

    def bar(self, code: str, period: str, time: int) -> Bar:
        """Return the bar that the newest tick of `code` belongs to, as far as it has come."""
        number, index = self._newest(code, time)
        if period in MINUTE_BARS:
            begin, end = self.hours.minute_bar(period, self.hours.elapsed(index, self._phases[code]))
            first = self.hours.count(begin, self._phases[code])
            return self._minute_bar(code, number, first, index + 1, end)
        day, block = self._day(code, number), self._block(code, number, index)
        at = index - block.begin
        today = Stretch(
            begin=0,
            end=index + 1,
            first=day.whole.first,
            last=block.price[at],
            high=block.high[at],
            low=block.low[at],
            lots=block.lots[at + 1],
            value=block.value[at + 1],
        )
        return self._day_bar(code, period, number, today)

    def bars(self, code: str, period: str, time: int, count: int) -> list[Bar]:
        """Return the last `count` bars of `code`, the forming one included, oldest first; -1 = `HISTORY_BARS`.

        There may be fewer: bars begin with the day `LISTED`, and `MAX_BARS` is the most. Raise `Refused` for
        any other period or count.
        """
        self.instrument(code)
        if period not in MINUTE_BARS and period not in DAY_BARS:
            raise Refused("unsupported_period", f"{period} is no period of bars")
        if count != -1 and count < 1:
            raise Refused("upstream_refused", f"count must be -1 or positive, got {count}")
        number, index = self._newest(code, time)
        back = (self._minute_bars_back if period in MINUTE_BARS else self._day_bars_back)(code, period, number, index)
        return [self.bar(code, period, time), *islice(back, bars_wanted(count) - 1)][::-1]

    def _minute_bars_back(self, code: str, period: str, number: int, index: int) -> Iterator[Bar]:
        phase = self._phases[code]
        end, _ = self.hours.minute_bar(period, self.hours.elapsed(index, phase))
        while number >= self._listed:
            while end > 0:
                begin, _ = self.hours.minute_bar(period, end)
                first, last = self.hours.count(begin, phase), self.hours.count(end, phase)
                # An interval that does not divide a session leaves a gap at its end.
                if first < last:
                    yield self._minute_bar(code, number, first, last, end)
                end = begin
            number, end = number - 1, self.hours.total

    def _day_bars_back(self, code: str, period: str, number: int, _: int) -> Iterator[Bar]:
        number = self.hours.day_bar(period, number).first - 1
        while number >= self._listed:
            yield self._day_bar(code, period, number, self._day(code, number).whole)
            number = self.hours.day_bar(period, number).first - 1

    def _newest(self, code: str, time: int) -> tuple[int, int]:
        """Return day and index of the newest snapshot with prices."""
        number, elapsed = self.hours.locate(time)
        count = self.hours.count(elapsed, self._phases[code])
        return (number, count - 1) if count else (number - 1, self.hours.snapshots - 1)

    def _time(self, code: str, number: int, index: int) -> int:
        return self.hours.clock(number, self.hours.elapsed(index, self._phases[code]))

    def _block(self, code: str, number: int, index: int) -> Block:
        known = self._blocks.get(code)
        if known is not None and known[0] == number and known[1].begin <= index < known[1].end:
            return known[1]
        block = find_block(self._day(code, number), index)
        self._blocks[code] = number, block
        return block

    def _tick(self, code: str, time: int, levels: int) -> Record:
        instrument = self.instrument(code)
        called = self.hours.call_snapshot(time, self._phases[code])
        if called is not None:
            return self._call_tick(code, called, levels)
        number, index = self._newest(code, time)
        day, block = self._day(code, number), self._block(code, number, index)
        at = index - block.begin
        scale, price, lots = instrument.scale, block.price[at], block.lots[at + 1]
        last, last_close = price / scale, day.last_close / scale
        elapsed = self.hours.elapsed(index, self._phases[code])
        phase = self._trading_phase(index, elapsed)
        asks, ask_volume, bids, bid_volume = make_depth(instrument, day, index, price, levels)
        return {
            "time": self.hours.clock(number, elapsed),
            "lastPrice": last,
            "open": day.whole.first / scale,
            "high": block.high[at] / scale,
            "low": block.low[at] / scale,
            "lastClose": last_close,
            "amount": block.value[at + 1] * LOT / scale,
            "volume": lots,
            "pvolume": lots * LOT,
            "stockStatus": 0 if phase == _CLOSED else 3,
            "openInt": phase,
            "transactionNum": self._count_prints(day, index + 1, lots),
            "lastSettlementPrice": last_close,
            "settlementPrice": 0.0,
            # The value of an ETF's basket; xtquant has no other use for it.
            "pe": last if instrument.type == "etf" else 0.0,
            "askPrice": asks,
            "bidPrice": bids,
            "askVol": ask_volume,
            "bidVol": bid_volume,
            "volRatio": 0.0,
            "speed1Min": 0.0,
            "speed5Min": 0.0,
        }

    def _call_tick(self, code: str, time: int, levels: int) -> Record:
        number, _ = self.hours.locate(time)
        tick = self._tick(code, self.hours.midnight(number), levels)
        last_close = tick["lastPrice"]
        for name, value in tick.items():
            tick[name] = [type(value[0])()] * levels if isinstance(value, list) else type(value)()
        return {**tick, "time": time, "lastClose": last_close, "lastSettlementPrice": last_close, "openInt": _CALL}

    def _trading_phase(self, index: int, elapsed: int) -> int:
        if self.hours.never_closes:
            return _CONTINUOUS
        if index == self.hours.snapshots - 1:
            return _CLOSED
        return _CLOSING_CALL if elapsed > self.hours.total - _CLOSING_CALL_TIME else _CONTINUOUS

    def _count_prints(self, day: Day, snapshots: int, lots: int) -> int:
        return count_prints(day, snapshots, lots, self._prints)

    def _depth(self, code: str, time: int, levels: int) -> tuple[int, float, Depth]:
        """Return time and last price of the newest snapshot, and its depth."""
        number, index = self._newest(code, time)
        block, instrument = self._block(code, number, index), self.instruments[code]
        price = block.price[index - block.begin]
        depth = make_depth(instrument, self._day(code, number), index, price, levels)
        return self._time(code, number, index), price / instrument.scale, depth

    def _order_queue(self, code: str, time: int) -> Record:
        moment, _, depth = self._depth(code, time, 1)
        bids, asks = queue(depth.bid_volume[0]), queue(depth.ask_volume[0])
        return {
            "time": moment,
            "bidLevelPrice": depth.bid_price[0],
            "bidLevelVolume": bids,
            "offerLevelPrice": depth.ask_price[0],
            "offerLevelVolume": asks,
            "bidLevelNumber": len(bids),
            "offLevelNumber": len(asks),
        }

    def _quote_totals(self, code: str, time: int) -> Record:
        moment, _, depth = self._depth(code, time, MAX_LEVELS)
        bids, asks = sum(depth.bid_volume), sum(depth.ask_volume)
        return {
            "time": moment,
            "avgBidPrice": sum(map(mul, depth.bid_price, depth.bid_volume)) / max(1, bids),
            "totalBidQuantity": bids,
            "avgOffPrice": sum(map(mul, depth.ask_price, depth.ask_volume)) / max(1, asks),
            "totalOffQuantity": asks,
            # No order of this market is ever withdrawn.
            "withdrawBidQuantity": 0,
            "withdrawBidAmount": 0.0,
            "withdrawOffQuantity": 0,
            "withdrawOffAmount": 0.0,
        }

    def _minute_bar(self, code: str, number: int, first: int, last: int, end: int) -> Bar:
        day = self._day(code, number)
        stretch = measure(day, first, last, self._split)
        return self._bar(code, self.hours.clock(number, end), stretch, day.last_close)

    def _day_bar(self, code: str, period: str, number: int, today: Stretch) -> Bar:
        span = self.hours.day_bar(period, number)
        first = max(span.first, min(self._listed, number))
        if first < number:
            today = join(self._days_before(code, first, number), today)
        return self._bar(code, span.time, today, self._close(code, first - 1))

    def _sum_days(self, code: str, first: int, after: int) -> Stretch:
        whole = self._day(code, first).whole
        for number in range(first + 1, after):
            whole = join(whole, self._day(code, number).whole)
        return whole

    def _bar(self, code: str, time: int, stretch: Stretch, last_close: int) -> Bar:
        scale = self.instruments[code].scale
        return {
            "time": time,
            "open": stretch.first / scale,
            "high": stretch.high / scale,
            "low": stretch.low / scale,
            "close": stretch.last / scale,
            "volume": stretch.lots,
            "amount": stretch.value * LOT / scale,
            # As xtquant spells it.
            "settelementPrice": 0.0,
            "openInterest": _CONTINUOUS,
            "preClose": last_close / scale,
            "suspendFlag": 0,
        }

    def _make_day(self, code: str, number: int) -> Day:
        instrument = self.instruments[code]
        last_close, close = self._close(code, number - 1), self._close(code, number)
        limits = lowest, highest = price_limits(instrument, last_close)
        seed = seed_of(self._seed, code, number)
        random = Random(seed)
        usual = last_close * instrument.volatility
        opening = min(highest, max(lowest, last_close + round(random.gauss(0, 0.4) * usual)))
        # Some days at the price limit are there from the open to the close.
        if close in limits and random.random() < 0.15:
            opening = high = low = close
        else:
            high = min(highest, max(opening, close) + int(abs(random.gauss(0, 0.6)) * usual))
            low = max(lowest, min(opening, close) - int(abs(random.gauss(0, 0.6)) * usual))
        snapshots = self.hours.snapshots
        traded = instrument.turnover * self.hours.total / HOUR * random.lognormvariate(0, 0.4)
        lots = (self._prints + 1) * snapshots + int(traded)
        quiet = max(MIN_PRINTS, self._prints * 2 // 3)
        return open_day(seed, last_close, limits, quiet, Stretch(0, snapshots, opening, close, high, low, lots, 0))

    def _make_close(self, code: str, number: int) -> int:
        instrument = self.instruments[code]
        price = self._swing(instrument, number)
        cycle, offset = divmod(number + seed_of(self._seed, code, "cycle") % _CYCLE, _CYCLE)
        chance = unit(self._seed, code, "limit", cycle)
        if instrument.type == "stock" and chance < _LIMIT_UP + _LIMIT_DOWN:
            # The last day of a cycle stays as it was, so the day before a cycle depends on no other cycle.
            begin = number - offset
            lowest, highest = price_limits(instrument, round(self._swing(instrument, begin - 1)))
            limit = highest if chance < _LIMIT_UP else lowest
            price *= (limit / self._swing(instrument, begin)) ** (1 - offset / (_CYCLE - 1))
        return round(price)

    def _swing(self, instrument: Instrument, number: int) -> float:
        moved = 0.0
        for days, reach in _SWINGS:
            at, within = divmod(number, days)
            height = 2 * unit(self._seed, instrument.code, days, at) - 1
            if within:
                way = within / days
                next_height = 2 * unit(self._seed, instrument.code, days, at + 1) - 1
                height += (next_height - height) * way * way * (3 - 2 * way)
            moved += height * reach
        return instrument.base * math.exp(moved * instrument.volatility / _USUAL_VOLATILITY)

    def _make_deals(self, code: str, number: int, index: int) -> tuple[list[Print], list[Print]]:
        day, block = self._day(code, number), self._block(code, number, index)
        at = index - block.begin
        lots, after = block.lots[at], block.lots[at + 1]
        before = self._count_prints(day, index, lots)
        time, phase = self._time(code, number, index), self._phases[code]
        # A bar holds whole snapshots: the prints of one are in the minute of its bar, so that the minute's prints are
        # the bar's, and no bar's range is left by a print of its minute.
        begin, _ = self.hours.minute_bar("1m", elapsed := self.hours.elapsed(index, phase))
        span = Span(
            seed=day.seed,
            before=before,
            prints=self._count_prints(day, index + 1, after) - before,
            since=time - min(self.hours.gap(index, phase), elapsed - begin),
            time=time,
            price=block.price[at],
            lots=after - lots,
            value=block.value[at + 1] - block.value[at],
        )
        return make_prints(span, self.instruments[code].scale)
