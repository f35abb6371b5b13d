"""Records as rows of CSV, for a spreadsheet. Pure (docs/http.md, "CSV").

A list, such as the five ask prices, has a column for each of its entries: ``askPrice1`` to ``askPrice5``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

# A spreadsheet takes a cell with one of these at its start for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def columns(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the columns that hold all of `records`, in the order in which they come."""
    lengths: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            lengths[name] = max(lengths.get(name, 0), len(value) if isinstance(value, list) else 0)
    found: list[str] = []
    for name, length in lengths.items():
        found += _numbered(name, length) if length else [name]
    return found


def cells(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each column of a record; null is an empty cell, an object JSON."""
    found: dict[str, str] = {}
    for name, value in record.items():
        if type(value) is list:
            for column, each in zip(_numbered(name, len(value)), value, strict=True):
                found[column] = _text(each)
        else:
            found[name] = _text(value)
    return found


@lru_cache(maxsize=256)
def _numbered(name: str, length: int) -> tuple[str, ...]:
    return tuple(f"{name}{number}" for number in range(1, length + 1))


def lines(rows: Iterable[Sequence[str]]) -> bytes:
    """Return rows as lines of CSV (RFC 4180), UTF-8."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _text(value: object) -> str:
    # Most values are numbers, whose texts are the same in JSON.
    if type(value) is float or type(value) is int:
        return repr(value)
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return msgspec.json.encode(value).decode()
