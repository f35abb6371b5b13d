"""The price walk of one instrument's day, from the top down: what a stretch of it adds up to is known before its
parts are, so any moment is reached in a few steps, and no sum, high or low ever disagrees with the ticks.

Pure. A day is a `Stretch` over all its snapshots; `split` divides a stretch into parts that add up to it exactly,
down to single snapshots. Prices are whole price steps, `lots` traded lots, `value` is lots times price.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import inf
from random import Random
from typing import NamedTuple

# A snapshot covers at least three trade prints: two prices next to each other make any amount, and the last
# print is at the last price.
MIN_PRINTS = 3
# Expanding a part takes about a microsecond, and a new block is expanded after `_BLOCK` snapshots.
_FAN_OUT = 16
_BLOCK = 32


class Stretch(NamedTuple):
    """The snapshots from `begin` up to `end` of a day, and what they add up to.

    `first` and `last` are last prices of snapshots; `high` and `low` hold every trade print as well.
    With ``size = end - begin`` and ``span = high - low``, `value` lies in
    ``[low * lots + size * span, high * lots - size * span]``: that leaves room for parts with any prices within.
    """

    begin: int
    end: int
    first: int
    last: int
    high: int
    low: int
    lots: int
    value: int


class Day(NamedTuple):
    """One trading day of one instrument; `lowest` and `highest` are its price limits.

    Each snapshot has at least `quiet` trade prints (not fewer than `MIN_PRINTS`), and one lot more.
    """

    seed: int
    last_close: int
    lowest: int
    highest: int
    quiet: int
    whole: Stretch


Split = Callable[[Day, Stretch], Sequence[Stretch]]


class Block:
    """A few dozen successive snapshots: the `price` of each, and `high`, `low`, `lots`, `value` from the open up to it.

    `lots` and `value` have one more in front: what there was before the block.
    """

    __slots__ = ("begin", "end", "high", "lots", "low", "price", "value")

    def __init__(self, before: tuple[int, int, int, int], snapshots: Sequence[Stretch]) -> None:
        high, low, lots, value = before
        self.begin = snapshots[0].begin
        self.end = snapshots[-1].end
        # Arrays, because a market keeps 5,400 of these.
        self.price = array("q", [each.last for each in snapshots])
        self.high = array("q", [high := max(high, each.high) for each in snapshots])
        self.low = array("q", [low := min(low, each.low) for each in snapshots])
        self.lots = array("q", accumulate((each.lots for each in snapshots), initial=lots))
        self.value = array("q", accumulate((each.value for each in snapshots), initial=value))


def find_block(day: Day, index: int) -> Block:
    """Return the block that holds the snapshot `index`."""
    stretch = day.whole
    high, low, lots, value = stretch.first, stretch.first, 0, 0
    while True:
        parts = split(day, stretch)
        if stretch.end - stretch.begin <= _BLOCK:
            return Block((high, low, lots, value), parts)
        for stretch in parts:
            _, end, _, _, part_high, part_low, part_lots, part_value = stretch
            if end > index:
                break
            high = part_high if part_high > high else high
            low = part_low if part_low < low else low
            lots += part_lots
            value += part_value


def measure(day: Day, begin: int, end: int, split: Split) -> Stretch:
    """Return what the snapshots from `begin` up to `end` (at least one) add up to; `split` may be a cached one."""
    total: Stretch | None = None
    waiting = [day.whole]
    while waiting:
        stretch = waiting.pop()
        if stretch.end <= begin or stretch.begin >= end:
            continue
        if begin <= stretch.begin and stretch.end <= end:
            total = join(total, stretch)
        else:
            waiting.extend(reversed(split(day, stretch)))
    if total is None:
        raise ValueError(f"no snapshot from {begin} up to {end}")
    return total


def join(left: Stretch | None, right: Stretch) -> Stretch:
    """Return what `left`, None if there is nothing yet, and the later `right` add up to."""
    if left is None:
        return right
    return Stretch(
        left.begin,
        right.end,
        left.first,
        right.last,
        max(left.high, right.high),
        min(left.low, right.low),
        left.lots + right.lots,
        left.value + right.value,
    )


def open_day(seed: int, last_close: int, limits: tuple[int, int], quiet: int, whole: Stretch) -> Day:
    """Return the day with the prices and lots of `whole`; its value is computed from the price walk."""
    begin, end, _, _, high, low, lots, _ = whole
    day = Day(seed, last_close, *limits, quiet, whole)
    firsts, lasts, part_lots, _ = _walk(day, whole)
    value = sum((first + last) * each // 2 for first, last, each in zip(firsts, lasts, part_lots, strict=True))
    reserve = (end - begin) * (high - low)
    value = min(high * lots - reserve, max(low * lots + reserve, value))
    return day._replace(whole=whole._replace(value=value))


def dealt_at(last: int, lots: int, value: int) -> tuple[int, int]:
    """Return the price at which all lots of a snapshot but the last were dealt, and how many of them one step above.

    The last lot is dealt at the last price. The value of a part never needs a price outside the range of its stretch.
    """
    return divmod(value - last, lots - 1)


def split(day: Day, stretch: Stretch) -> list[Stretch]:
    """Return the parts of `stretch`, in order: up to 16 stretches, or single snapshots where few are left."""
    begin, end, _, _, high, low, _, value = stretch
    size = end - begin
    firsts, lasts, part_lots, random = _walk(day, stretch)
    count = len(lasts)
    edges = [begin + size * i // count for i in range(count + 1)]
    if count == size:
        highs = lows = lasts
        values = [last * each for last, each in zip(lasts, part_lots, strict=True)]
        missing = value - sum(values)
        bound = high if missing > 0 else low
        rooms = [(bound - last) * (each - 1) for last, each in zip(lasts, part_lots, strict=True)]
    else:
        highs, lows = _ranges(day, stretch, firsts, lasts, random)
        least, most = _widen(stretch, edges, part_lots, highs, lows)
        values = [
            min(above, max(below, (first + last) * each // 2))
            for first, last, each, below, above in zip(firsts, lasts, part_lots, least, most, strict=True)
        ]
        missing = value - sum(values)
        rooms = [bound - each for bound, each in zip(most if missing > 0 else least, values, strict=True)]
    if missing:
        _fill(values, rooms, missing)
        if count == size:
            # What a snapshot was worth besides its last price was dealt at other prices, which widen its range.
            paid = list(map(dealt_at, lasts, part_lots, values))
            highs = [max(last, price + (dearer > 0)) for last, (price, dearer) in zip(lasts, paid, strict=True)]
            lows = [min(last, price) for last, (price, _) in zip(lasts, paid, strict=True)]
    return list(map(Stretch, edges, edges[1:], firsts, lasts, highs, lows, part_lots, values))


def _walk(day: Day, stretch: Stretch) -> tuple[list[int], list[int], list[int], Callable[[], float]]:
    """Return first price, last price and lots of each part, and the random numbers to go on with."""
    begin, end, first, last, high, low, lots, value = stretch
    size = end - begin
    # A number for each stretch that any day can have.
    random = Random(day.seed << 64 | begin << 32 | end).random
    single = size <= _BLOCK
    count = size if single else min(_FAN_OUT, size // (_BLOCK // 2))
    part_lots = _share_lots(lots, day.quiet + 1, size, count, random)
    if high == low:
        return [first] * count, [first] * count, part_lots, random

    # A bridge of random steps away from the straight line between first and last price.
    steps = [random() - 0.5 for _ in range(count)]
    slope = sum(steps) / count
    aside, apart, line = 0.0, [], []
    # Orders at a price limit are many: a price that ends there is there early, and seldom leaves it.
    pace = 2 if last in (day.lowest, day.highest) else 1
    # Single snapshots begin with the first price, so one step fewer leads to the last.
    lead, reach = (0, count - 1) if single else (1, count)
    for i, step in enumerate(steps):
        aside += step - slope
        way = (i + lead) / reach * pace
        if way < 1:
            line.append(first + (last - first) * way)
            apart.append(aside)
        else:
            line.append(last)
            apart.append(aside if pace == 1 or random() < 0.05 else 0.0)
    # On the side where the stretch has traded; a whole day trades where its walk leads.
    if size < day.whole.end and (value / lots - (first + last) / 2) * sum(apart) < 0:
        apart = [-each for each in apart]
    # It just reaches high and low, or leaves to the parts what they may add.
    margin = 0.0 if single else (high - low) / count**0.5
    top, bottom = max(first, last, high - margin * random()), min(first, last, low + margin * random())
    up = down = inf
    for base, each in zip(line, apart, strict=True):
        if each > 0:
            up = min(up, (top - base) / each)
        elif each < 0:
            down = min(down, (bottom - base) / each)
    lasts = [
        round(base + each * (up if each > 0 else down if each else 0)) for base, each in zip(line, apart, strict=True)
    ]
    lasts[-1] = last
    if single:
        lasts[0] = first
        _touch(lasts, high, low)
        return lasts, lasts, part_lots, random
    return [first, *lasts[:-1]], lasts, part_lots, random


def _share_lots(lots: int, least: int, size: int, count: int, random: Callable[[], float]) -> list[int]:
    """Return the lots of each part: what its snapshots need, and some of what there is beyond."""
    weights = list(accumulate([0.1 + random() ** 2 for _ in range(count)]))
    spare = lots - least * size
    rate = spare / weights[-1]
    # The least of each snapshot, summed up to the end of each part; the last sum is exact.
    sums = [least * (size * (i + 1) // count) + int(rate * weight) for i, weight in enumerate(weights)]
    sums[-1] = lots
    return [after - before for before, after in pairwise([0, *sums])]


def _touch(prices: list[int], high: int, low: int) -> None:
    """Make `prices` reach `high` and `low` without moving the first or the last of them."""
    inner = range(1, len(prices) - 1)
    if high not in prices:
        prices[max(inner, key=prices.__getitem__)] = high
    if low not in prices:
        keep = prices.index(high)
        prices[min((at for at in inner if at != keep), key=prices.__getitem__)] = low


def _ranges(
    day: Day, stretch: Stretch, firsts: Sequence[int], lasts: Sequence[int], random: Callable[[], float]
) -> tuple[list[int], list[int]]:
    """Return the high and the low of each part; the stretch's own are among them."""
    high, low = stretch.high, stretch.low
    margin = (high - low) / len(firsts) ** 0.5 / 2 + 1
    limits = (day.lowest, day.highest)
    highs, lows = [], []
    for first, last in zip(firsts, lasts, strict=True):
        upper, lower = (first, last) if first > last else (last, first)
        if upper > lower or last not in limits or random() >= 0.95:
            upper += int(random() * margin)
            lower -= int(random() * margin)
        highs.append(upper if upper < high else high)
        lows.append(lower if lower > low else low)
    if high not in highs:
        highs[highs.index(max(highs))] = high
    if low not in lows:
        lows[lows.index(min(lows))] = low
    return highs, lows


def _widen(
    stretch: Stretch, edges: Sequence[int], lots: Sequence[int], highs: list[int], lows: list[int]
) -> tuple[list[int], list[int]]:
    """Widen the parts' ranges until their values can add up to the stretch's; return each one's least and most.

    This always ends, because parts that are as wide as the stretch can (see `Stretch`).
    """
    sizes = [after - before for before, after in pairwise(edges)]
    at = 0
    while True:
        reserves = [size * (high - low) for size, high, low in zip(sizes, highs, lows, strict=True)]
        most = [high * each - reserve for high, each, reserve in zip(highs, lots, reserves, strict=True)]
        least = [low * each + reserve for low, each, reserve in zip(lows, lots, reserves, strict=True)]
        short, over = stretch.value - sum(most), sum(least) - stretch.value
        if short <= 0 and over <= 0:
            return least, most
        at = (at + 1) % len(sizes)
        weight = lots[at] - sizes[at]
        if short > 0:
            highs[at] = min(stretch.high, highs[at] - -short // weight)
        else:
            lows[at] = max(stretch.low, lows[at] + -over // weight)


def _fill(values: list[int], rooms: Sequence[int], missing: int) -> None:
    """Add `missing` to `values`, a like share of its room to each; all have one sign and there is room enough."""
    sign = 1 if missing > 0 else -1
    amount, room = abs(missing), abs(sum(rooms))
    shares = [amount * abs(each) // room for each in rooms]
    rest = amount - sum(shares)
    for at, each in enumerate(rooms):
        more = min(rest, abs(each) - shares[at])
        rest -= more
        values[at] += sign * (shares[at] + more)
