"""Quotes as lines of a table, for a terminal: each record one line, in columns that stay. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from qmt_bridge.wire.shanghai import SHANGHAI

_COLUMNS = (("time", 12), ("code", -10), ("last", 11), ("change", 8), ("volume", 13), ("bid", 11), ("ask", 11))
_GREEN, _RED, _RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"


def head() -> str:
    """Return the line above the quotes."""
    return _line([name for name, _ in _COLUMNS])


def quote_lines(data: object) -> list[str] | None:
    """Return the lines of ticks or bars by code, as a message or a frame has them; None for anything else.

    A price above the close of the day before is red, one below it green, as in China.
    """
    if not isinstance(data, Mapping) or not data:
        return None
    lines = []
    for code, found in data.items():
        for record in found if isinstance(found, list) else [found]:
            if not isinstance(record, Mapping):
                return None
            last = record.get("lastPrice", record.get("close"))
            if not isinstance(last, int | float) or not isinstance(record.get("time"), int | float):
                return None
            lines.append(_quote(str(code), record, float(last)))
    return lines


def _quote(code: str, record: Mapping[str, object], last: float) -> str:
    before = record.get("lastClose", record.get("preClose"))
    change = 100 * (last / before - 1) if isinstance(before, int | float) and before else None
    at = datetime.fromtimestamp(float(str(record["time"])) / 1000, SHANGHAI).strftime("%H:%M:%S.%f")[:12]
    line = _line(
        (
            at,
            code,
            _price(last),
            "-" if change is None else f"{change:+.2f}%",
            _number(record.get("volume")),
            _first(record.get("bidPrice")),
            _first(record.get("askPrice")),
        )
    )
    colour = _RED if change and change > 0 else _GREEN if change and change < 0 else ""
    return f"{colour}{line}{_RESET}" if colour else line


def _line(cells: Sequence[str]) -> str:
    shown = zip(cells, (width for _, width in _COLUMNS), strict=True)
    return "  ".join(cell.ljust(-width) if width < 0 else cell.rjust(width) for cell, width in shown)


def _price(value: float) -> str:
    # Funds and bonds have three decimals.
    return f"{value:.3f}".removesuffix("0")


def _number(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"


def _first(values: object) -> str:
    found = values[0] if isinstance(values, list) and values else None
    return _price(found) if isinstance(found, int | float) else "-"
