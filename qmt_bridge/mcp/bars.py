"""Bars, made of stored ticks where the store has none. Pure.

A bar has what came after its start up to its end, as xtquant's, and is named by its end. Bars begin at whole multiples
of their length from midnight in Shanghai, which is right for lengths that divide half an hour. What the exchange sends
about the opening auction belongs to the first bar of the day, and a snapshot that comes within a minute after a session
to its last bar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qmt_bridge.wire.moments import midnight

MINUTE = 60_000
# The lengths that can be made of ticks, in minutes.
LENGTHS = {"1m": 1, "5m": 5, "15m": 15, "30m": 30}
_AUCTION, _OPEN = (9 * 60 + 15) * MINUTE, (9 * 60 + 30) * MINUTE
_SESSION_ENDS = ((11 * 60 + 30) * MINUTE, 15 * 60 * MINUTE)


def bar_end(time: int, length: int) -> int:
    """Return the end of the bar of `length` ms to which a tick belongs, both times in ms since 1970."""
    day = midnight(time)
    at = time - day
    if _AUCTION <= at <= _OPEN:
        return day + _OPEN + length
    for end in _SESSION_ENDS:
        if end < at < end + MINUTE:
            return day + end
    return day + -(-at // length) * length


def bars_of(ticks: Iterable[Mapping[str, Any]], period: str) -> list[dict[str, Any]]:
    """Return the bars of a period (`LENGTHS`) that ticks of one code make, in the order of their times.

    Volume (lots) and amount (yuan) of a tick count from the open, so those of a bar are differences; the first bar has
    what was traded behind its first tick. Ticks without a price or a time, such as those before the auction, are left
    out.
    """
    length = LENGTHS[period] * MINUTE
    bars: dict[int, dict[str, Any]] = {}
    last: tuple[float, float] | None = None
    for tick in ticks:
        time, price = tick.get("time"), tick.get("lastPrice")
        if not time or not price:
            continue
        volume, amount = tick.get("volume") or 0, tick.get("amount") or 0
        # A new day counts from 0.
        before = (volume, amount) if last is None else last if volume >= last[0] else (0, 0)
        end = bar_end(time, length)
        bar = bars.get(end)
        if bar is None:
            prices = dict.fromkeys(("open", "high", "low", "close"), price)
            bar = bars[end] = {"time": end, **prices, "volume": 0, "amount": 0}
        bar["high"], bar["low"], bar["close"] = max(bar["high"], price), min(bar["low"], price), price
        bar["volume"] += volume - before[0]
        bar["amount"] += amount - before[1]
        last = (volume, amount)
    return [bars[end] for end in sorted(bars)]
