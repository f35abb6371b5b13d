"""Samples of everything that BSON, and so xtquant, can give; and what JSON makes of it."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st


class Int64(int):
    """As bson gives an integer of 64 bits."""


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_NUMBERS = (
    st.integers(-(2**31), 2**31 - 1)
    | st.integers(-(2**63), 2**64 - 1).map(Int64)
    | st.sampled_from([2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40])
    | st.floats()
    | st.floats(0, 3000).map(lambda price: round(price, 2))
)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=8
)
BINARY = st.binary(max_size=20) | st.lists(st.binary(max_size=5), max_size=3)
RECORDS = st.dictionaries(NAMES, VALUES, max_size=5)
# Bodies of quotes and depth, of a whole market, and of a formula or an event.
BODIES = st.dictionaries(NAMES, st.lists(RECORDS, max_size=3) | RECORDS | VALUES, max_size=5)


def as_json(value: Any) -> Any:
    """Return what a reader of JSON gets of a value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


def rounded(value: Any) -> Any:
    """Return a value as MessagePack has it: integers of more than 64 bits are floats."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value) if abs(value) < 2**1000 else math.copysign(math.inf, value)
    return value


def samples(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return some samples, for a test that cannot be run once for each."""
    found: list[Any] = []

    @settings(max_examples=count, database=None)
    @given(strategy)
    def collect(sample: Any) -> None:
        found.append(sample)

    collect()
    return found
