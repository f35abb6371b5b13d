"""The trade prints and orders behind one snapshot of the simulated market.

Pure. The prints since the snapshot before add up to the lots and the amount by which the tick has grown; the last
of them is at the tick's time and last price.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from feeder.sim.walk import Day, dealt_at

LOT = 100
# A record of either stream: nothing but numbers.
Print = dict[str, float]


class Span(NamedTuple):
    """A snapshot: the number of prints on the day `before` it, and the number of its own `prints`.

    These are later than `since` and not later than `time`, both in ms; `price` in price steps, `value` in lots times
    price steps.
    """

    seed: int
    before: int
    prints: int
    since: int
    time: int
    price: int
    lots: int
    value: int


def count_prints(day: Day, snapshots: int, lots: int, average: int) -> int:
    """Return how many prints the first `snapshots`, of so many `lots`, have; the day has `average` a snapshot."""
    whole = day.whole
    least = day.quiet + 1
    spare, whole_spare = lots - least * snapshots, whole.lots - least * whole.end
    return day.quiet * snapshots + spare * (average - day.quiet) * whole.end // max(1, whole_spare)


def make_prints(span: Span, scale: int) -> tuple[list[Print], list[Print]]:
    """Return xtquant's l2transaction and l2order records, oldest first; volumes in shares.

    Each print has the order that caused it, and one that rested before. One print an order; no cancels.
    """
    random = Random(span.seed << 64 | span.before)
    trades: list[Print] = []
    orders: list[Print] = []
    for at, (price, lots) in enumerate(_deals(span, random), 1):
        number = span.before + at
        # Rounded up, so that no print has the time of the snapshot before.
        time = span.time - (span.time - span.since) * (span.prints - at) // span.prints
        buys = _buys(span.seed, number)
        resting = number - 1 - random.randrange(20)
        while resting > 0 and _buys(span.seed, resting) == buys:
            resting -= 1
        resting = max(0, resting)
        trades.append(
            {
                "time": time,
                "price": price / scale,
                "volume": lots * LOT,
                "amount": lots * LOT * price / scale,
                "tradeIndex": number,
                "buyNo": number if buys else resting,
                "sellNo": resting if buys else number,
                "tradeType": 1,
                "tradeFlag": 1 if buys else 2,
            }
        )
        orders.append(
            {
                "time": time,
                "price": price / scale,
                "volume": (lots + random.randrange(2 * lots + 1)) * LOT,
                "entrustNo": number,
                "entrustType": 1,
                "entrustDirection": 1 if buys else 2,
            }
        )
    return trades, orders


def _deals(span: Span, random: Random) -> list[tuple[int, int]]:
    """Return price (price steps) and lots of each print of a snapshot, in order."""
    # All prints but the last one are at one of two neighbouring prices.
    lots = span.lots - 1
    price, dearer = dealt_at(span.price, span.lots, span.value)
    many = span.prints - 1
    # At least one print for each price that is dealt at, and at least one lot for each print.
    fair = round(many * dearer / lots)
    dearer_prints = max(1, many - (lots - dearer), min(dearer, many - 1, fair)) if dearer else 0
    deals = [(price + 1, each) for each in _cut(dearer, dearer_prints, random)]
    deals += [(price, each) for each in _cut(lots - dearer, many - dearer_prints, random)]
    random.shuffle(deals)
    return [*deals, (span.price, 1)]


def _buys(seed: int, number: int) -> bool:
    return bool(((seed + number) * 0x9E3779B97F4A7C15 >> 40) & 1)


def _cut(lots: int, count: int, random: Random) -> list[int]:
    """Return `count` numbers of 1 and more that add up to `lots`."""
    pieces = []
    for left in range(count, 0, -1):
        spare = lots - left
        piece = lots if left == 1 else 1 + min(spare, int(spare / left * 2 * random.random()))
        pieces.append(piece)
        lots -= piece
    return pieces
