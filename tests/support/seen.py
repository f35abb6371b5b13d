"""What good clients saw while others attacked, and its percentiles. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Good(NamedTuple):
    """What the good clients saw: when (time.monotonic()), and what."""

    # Milliseconds between the feeder's receipt and ours.
    delays: list[tuple[float, float]]
    # Milliseconds until a new client has its first frame.
    connects: list[tuple[float, float]]
    gaps: list[tuple[float, str]]
    closes: list[tuple[float, str]]


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value below which `part` of them are; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def within(seen: Sequence[tuple[float, float]], begin: float, end: float) -> list[float]:
    """Return what was seen between two times."""
    return [value for at, value in seen if begin <= at < end]
