"""The orders that rest in the simulated market: price levels on both sides of the last price.

Pure. A level's volume depends on its price and changes slowly, so that successive snapshots look like one market;
fewer levels of the same snapshot are always the first of more.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from random import Random
from typing import NamedTuple

from feeder.sim.instruments import Instrument
from feeder.sim.walk import Day

# As many as xtquant's thousand-level depth has.
MAX_LEVELS = 1000
# Snapshots for which the levels away from the last price stay as they are.
_CALM = 8
# Orders that wait at a price limit, compared with those on any other level.
_QUEUE = 40

_MASK = 4095
_random = Random(20240101)
_VOLUMES = [max(1, round(16 * _random.lognormvariate(0, 0.8))) for _ in range(_MASK + 1)]
_STARTS = 1024
# Distances of successive levels from the first, without and with prices that have no orders.
_DENSE = list(range(MAX_LEVELS))
_SPARSE = list(accumulate((_random.choice((1, 1, 1, 2, 3, 6)) for _ in range(_STARTS + MAX_LEVELS)), initial=0))


class Depth(NamedTuple):
    """Price (yuan) and volume (lots) of each level, best first; zeros where there are no more levels."""

    ask_price: list[float]
    ask_volume: list[int]
    bid_price: list[float]
    bid_volume: list[int]


def make_depth(instrument: Instrument, day: Day, index: int, price: int, levels: int) -> Depth:
    """Return `levels` levels a side at the snapshot `index` of `day`, whose last price is `price`."""
    if instrument.type == "index":
        return Depth([0.0] * levels, [0] * levels, [0.0] * levels, [0] * levels)
    mixed = (day.seed ^ index * 0x9E3779B1) & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 15) * 0x85EBCA6B >> 8) & 0xFFFFFFFF
    calm = (day.seed >> 20) + index // _CALM * 911
    spread = 1 + (mixed >> 4) % 7 if instrument.sparse else 1
    # The last trade was with the best bid or the best ask; at a price limit one side is empty.
    if price >= day.highest:
        bid, ask = price, day.highest + 1
    elif price <= day.lowest:
        bid, ask = day.lowest - 1, price
    elif mixed & 1:
        bid, ask = price, min(price + spread, day.highest)
    else:
        bid, ask = max(price - spread, day.lowest), price
    gaps, start = (_SPARSE, calm % _STARTS) if instrument.sparse else (_DENSE, 0)
    first = gaps[start]
    distances = gaps[start : start + levels]
    asks = [ask - first + distance for distance in distances[: bisect_right(distances, first + day.highest - ask)]]
    bids = [bid + first - distance for distance in distances[: bisect_right(distances, first + bid - day.lowest)]]
    size = instrument.depth
    ask_volume = [1 + size * _VOLUMES[calm + each * 37 & _MASK] // 16 for each in asks]
    bid_volume = [1 + size * _VOLUMES[calm + each * 37 & _MASK] // 16 for each in bids]
    # What trades is taken from the best levels, and put there.
    if asks:
        ask_volume[0] = 1 + size * _VOLUMES[mixed >> 5 & _MASK] // 16
        if price == day.lowest:
            ask_volume[0] *= _QUEUE
    if bids:
        bid_volume[0] = 1 + size * _VOLUMES[mixed >> 17 & _MASK] // 16
        if price == day.highest:
            bid_volume[0] *= _QUEUE
    scale = instrument.scale
    no_asks, no_bids = levels - len(asks), levels - len(bids)
    return Depth(
        [each / scale for each in asks] + [0.0] * no_asks,
        ask_volume + [0] * no_asks,
        [each / scale for each in bids] + [0.0] * no_bids,
        bid_volume + [0] * no_bids,
    )


def queue(volume: int) -> list[int]:
    """Return the orders, at most 50, that make up `volume` on one level, first come first."""
    orders: list[int] = []
    while volume and len(orders) < 49:
        orders.append(min(volume, _VOLUMES[volume & _MASK]))
        volume -= orders[-1]
    return [*orders, volume] if volume else orders
