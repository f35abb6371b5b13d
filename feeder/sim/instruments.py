"""The instruments of the simulated market: about 5,400 codes from code ranges, and how each of them behaves.

Pure. All properties of an instrument depend only on the seed and its code.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from random import Random
from typing import Literal, NamedTuple

Market = Literal["SH", "SZ", "BJ"]
InstrumentType = Literal["stock", "etf", "index"]

MARKETS: tuple[Market, ...] = ("SH", "SZ", "BJ")

# Market, type, first and last number. The real market is sparser and reaches further: these hold the best-known
# codes and come to the real number of instruments of each board.
RANGES: tuple[tuple[Market, InstrumentType, int, int], ...] = (
    ("SH", "stock", 600000, 600929),
    ("SH", "stock", 601000, 601399),
    ("SH", "stock", 601600, 601699),
    ("SH", "stock", 601800, 601999),
    ("SH", "stock", 603000, 603299),
    ("SH", "stock", 605000, 605049),
    ("SH", "stock", 688000, 688169),
    ("SH", "stock", 688950, 688999),
    ("SZ", "stock", 1, 999),
    ("SZ", "stock", 1960, 1979),
    ("SZ", "stock", 2001, 2799),
    ("SZ", "stock", 3000, 3039),
    ("SZ", "stock", 300001, 300799),
    ("SZ", "stock", 301000, 301049),
    ("BJ", "stock", 830770, 830869),
    ("BJ", "stock", 920000, 920189),
    ("SH", "etf", 510010, 510059),
    ("SH", "etf", 510300, 510309),
    ("SH", "etf", 510500, 510509),
    ("SH", "etf", 512000, 512019),
    ("SH", "etf", 512880, 512889),
    ("SH", "etf", 513050, 513059),
    ("SH", "etf", 515000, 515009),
    ("SH", "etf", 518880, 518889),
    ("SH", "etf", 588000, 588019),
    ("SZ", "etf", 159900, 159949),
    ("SH", "index", 1, 16),
    ("SH", "index", 300, 300),
    ("SH", "index", 688, 688),
    ("SH", "index", 852, 852),
    ("SH", "index", 905, 905),
    ("SZ", "index", 399001, 399006),
    ("BJ", "index", 899050, 899050),
)
# Yuan (points of an index) around which the best-known codes move, so that they look familiar.
FAMILIAR = {
    "000001.SZ": 11.4,
    "600000.SH": 11.6,
    "600519.SH": 1450.0,
    "601318.SH": 56.0,
    "601398.SH": 7.4,
    "300750.SZ": 320.0,
    "688981.SH": 105.0,
    "510300.SH": 4.2,
    "510050.SH": 2.9,
    "000001.SH": 3500.0,
    "000016.SH": 2800.0,
    "000300.SH": 4200.0,
    "399001.SZ": 11500.0,
    "399006.SZ": 2500.0,
    "899050.BJ": 1450.0,
}


class Instrument(NamedTuple):
    """One code; prices are whole numbers of its smallest price step, which is 1/`scale` yuan."""

    code: str
    market: Market
    type: InstrumentType
    scale: int
    # Per cent that the price may leave the last close by.
    limit: int
    base: int
    # Share of the price by which a usual day's high and low lie beyond open and close.
    volatility: float
    # Lots that trade in an hour.
    turnover: float
    # Where in the snapshot interval its snapshots fall, from 0 to 1.
    phase: float
    # Typical lots on one price level.
    depth: int
    # Whether there are prices without any order between two levels, as there are where a share is dear.
    sparse: bool


def seed_of(*parts: object) -> int:
    """Return a 64-bit number that depends on all `parts`, the same on every machine and in every process."""
    return int.from_bytes(blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def unit(*parts: object) -> float:
    """Return a number from 0 to 1 (exclusive) that depends on all `parts`."""
    return seed_of(*parts) / 2**64


def make_universe(seed: int) -> dict[str, Instrument]:
    """Return every instrument by code."""
    universe = {}
    for market, type_, first, last in RANGES:
        for number in range(first, last + 1):
            instrument = _make_instrument(seed, f"{number:06d}.{market}", market, type_)
            universe[instrument.code] = instrument
    return universe


def price_limits(instrument: Instrument, last_close: int) -> tuple[int, int]:
    """Return the lowest and the highest price of a day, in price steps, rounded half up as the exchange does."""
    lowest = (last_close * (100 - instrument.limit) + 50) // 100
    highest = (last_close * (100 + instrument.limit) + 50) // 100
    return lowest, highest


def _make_instrument(seed: int, code: str, market: Market, type_: InstrumentType) -> Instrument:
    random = Random(seed_of(seed, code))
    # Quantiles of the real market: price 5, 16 and 59 yuan at 10, 50 and 90 %; 150 million yuan a day in the middle.
    price = max(2.0, math.exp(random.gauss(2.8, 0.9)))
    amount = math.exp(random.gauss(18.8, 1.1))
    volatility = 0.004 + 0.014 * random.random()
    if type_ == "etf":
        price, volatility = 0.6 + 4 * random.random() ** 2, volatility / 2
    elif type_ == "index":
        price, amount, volatility = 1000 + 9000 * random.random() ** 2, 4e11, volatility / 4
    price = FAMILIAR.get(code, price)
    return Instrument(
        code=code,
        market=market,
        type=type_,
        scale=1000 if type_ == "etf" else 100,
        limit=_limit(code, market),
        base=round(price * (1000 if type_ == "etf" else 100)),
        volatility=volatility,
        turnover=amount / price / 100 / 4,
        phase=random.random(),
        depth=max(4, round(amount / price / 100 / 2000)),
        sparse=price > 80,
    )


def _limit(code: str, market: Market) -> int:
    if market == "BJ":
        return 30
    # ChiNext, STAR market, and the ETFs of the latter.
    return 20 if code.startswith(("30", "688", "588")) else 10
