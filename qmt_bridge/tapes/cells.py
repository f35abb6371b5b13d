"""The value of one cell of a recorded CSV file: a number, a list of numbers, a time, or text. Pure.

A cell whose meaning is certain becomes a value; anything else is refused with what is wrong and what helps. Nothing
that was meant as a number ends as text.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec

from qmt_bridge.wire.messages import Bar, L2Order, L2OrderQueue, L2QuoteAux, L2Thousand, L2Transaction, Tick
from qmt_bridge.wire.shanghai import SHANGHAI

Reader = Callable[[str], object]


class Unreadable(ValueError):
    """A cell that cannot be read; `kind` is the same for all cells with the same mistake."""

    def __init__(self, kind: str, cell: str, hint: str) -> None:
        super().__init__(f"{cell[:80]!r} is {kind}{hint and '; '}{hint}")
        self.kind = kind


_FIELDS = [
    field
    for view in (Tick, Bar, L2Order, L2Transaction, L2QuoteAux, L2OrderQueue, L2Thousand)
    for field in msgspec.structs.fields(view)
]
_LISTS = frozenset(field.encode_name for field in _FIELDS if field.default == ())
_TEXTS = frozenset(("timetag",))
_NUMBERS = frozenset(field.encode_name for field in _FIELDS) - _LISTS - _TEXTS

_SPELLINGS = {name.lower(): name for name in (*_TEXTS, *_LISTS, *_NUMBERS)}

# What pandas, databases, Excel and terminals write for a missing value.
_MISSING = frozenset(("", *"none nan -nan null nil na n/a #n/a #na <na> nat - -- — ——".split()))
_json = msgspec.json.Decoder().decode
_NUMERIC = frozenset((int, float))
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_PLAIN = frozenset((int, float, type(None)))
_INFINITY = {"inf": math.inf, "+inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
# As JSON, and besides a sign, ".5" and "5."; never leading zeros, which a code has.
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# Excel's own format shows six digits of a number that has more than eleven, and saves what it shows.
_EXCEL = re.compile(r"-?[1-9](?:\.[0-9]{1,5})?E\+[0-9]{2,3}")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:[,'，][0-9]{3})+(?:\.[0-9]+)?")
_PERCENT = re.compile(r"[+-]?[0-9.,]+ ?[%％‰]")
_CURRENCY = re.compile(
    r"[+-]?(?:[¥￥$€£]|RMB|CNY|USD|HKD) ?[+-]?[0-9.,]+|[+-]?[0-9.,]+ ?(?:元|港元|美元|CNY|RMB|USD|HKD)"
)
_UNIT = re.compile(r"[+-]?[0-9.,]+ ?(?:万|亿|万亿|手|股|万手|万股|亿元|万元)")
_WIDE = re.compile(r"[+-]?[０-９．，]+")
_OBJECT = re.compile(
    r"(?:np\.|numpy\.|pd\.)?(?:array|ndarray|Series|list|tuple|datetime64|Timestamp|(?:float|int)[0-9]+)\("
)
_ARRAY = re.compile(r"\[[-+0-9. \neEnaif]+\]")
# 1 January 1990, before the first trading day of Shanghai and Shenzhen, and 2100, in seconds.
_FIRST, _LAST = 631_152_000, 4_102_444_800
# Digits of a whole number of seconds, milliseconds, microseconds and nanoseconds by how many they are to a second.
_UNITS = (1, 1000, 1_000_000, 1_000_000_000)
_DIGITS = re.compile(
    r"([0-9]{4})([0-9]{2})([0-9]{2})(?:([0-9]{2})([0-9]{2})(?:([0-9]{2})([0-9]{3}|[0-9]{6}|[0-9]{9})?)?)?"
)
_DATE = re.compile(
    r"([0-9]{4})(?:([-/.年])([0-9]{1,2})(?:\2|月)([0-9]{1,2})日?|([0-9]{2})([0-9]{2}))"
    r"(?:[ T]+([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?)?"
    r" ?(?:(Z|UTC)|([+-])([0-9]{2}):?([0-9]{2}))?"
)
_CLOCK = re.compile(r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?")


def reader(column: str) -> Reader:
    """Return what reads the cells of `column`: `number`, `numbers`, or `value` where any kind may be meant."""
    if column in _NUMBERS:
        return number
    return numbers if column in _LISTS else value


def spelling(column: str) -> str:
    """Return xtquant's name of a column in whatever letters; any other name as it is."""
    return column if column in _NUMBERS | _LISTS | _TEXTS else _SPELLINGS.get(column.lower(), column)


def number(cell: str) -> int | float | None:
    """Return a number as the text says it, None where there is none."""
    found = _decoded(cell)
    kind = type(found)
    if kind is float:
        return found  # type: ignore[return-value]
    if kind is int:
        return _fitting(cell, found)  # type: ignore[no-any-return]
    cell = cell.strip()
    if cell.lower() in _MISSING:
        return None
    if _NUMBER.fullmatch(cell) and math.isfinite(plain := float(cell)):
        return plain
    if cell.lower() in _INFINITY:
        return _INFINITY[cell.lower()]
    _refuse_dressed_number(cell)
    _refuse_object(cell)
    raise Unreadable("no number", cell, "")


def numbers(cell: str) -> list[object] | None:
    """Return a list of numbers in JSON or as Python writes it, None where there is none; its NaN become None."""
    found = value(cell)
    if found is None:
        return None
    if not isinstance(found, list) or not _PLAIN.issuperset(map(type, found)):
        raise Unreadable("no list of numbers", cell, "write it like [29.69, 0.0]")
    return found


def value(cell: str) -> object:
    """Return what a cell of any column says: a number, list or map; None where there is none; anything else is text."""
    cell = cell.strip()
    found = _decoded(cell)
    # `true` and a quoted word are text in a CSV file.
    if type(found) in (int, float, list, dict):
        try:
            return _fitting(cell, found)
        except RecursionError:
            # CPython 3.13 reads lists in lists deeper than it can be called.
            raise Unreadable("too deep", cell, "lists in lists have at most some hundred levels") from None
    if cell.lower() in _MISSING:
        return None
    if cell[0] in "[{":
        return _fitting(cell, _literal(cell))
    if cell.lower() in _INFINITY:
        return _INFINITY[cell.lower()]
    _refuse_dressed_number(cell)
    _refuse_object(cell)
    return cell


def time(cell: str) -> int:
    """Return a moment in ms since 1970; 0 is that of an instrument that has never traded.

    Digits are seconds, milliseconds, microseconds or nanoseconds since 1970, or YYYYMMDD[hhmm[ss[mmm]]] as xtquant's
    index, whichever is between 1990 and 2100: no text is both. A date is Shanghai's unless it names a zone.
    """
    cell = cell.strip()
    # Most are milliseconds.
    if len(cell) == 13 and cell.isdecimal() and cell.isascii() and _FIRST * 1000 <= (found := int(cell)) < _LAST * 1000:
        return found
    # pandas turns a column of integers into floats when it joins frames.
    digits, _, fraction = cell.partition(".")
    if digits.isdecimal() and digits.isascii() and (fraction.isdecimal() or "." not in cell):
        if (moment := _of_digits(digits, fraction)) is not None:
            return moment
    elif date := _DATE.fullmatch(cell):
        return _of_date(cell, date)
    raise _no_time(cell)


def _of_digits(digits: str, fraction: str) -> int | None:
    whole = not fraction.strip("0")
    if whole and not digits.strip("0"):
        return 0
    for unit in _UNITS:
        if _FIRST * unit <= int(digits[:20]) < _LAST * unit and len(digits) <= 19:
            if unit == 1:
                return int(digits) * 1000 + int(f"{fraction:0<3}"[:3])
            # A fraction of what is finer than a second was never written by a clock.
            return int(digits) * 1000 // unit if whole else None
    if date := _DIGITS.fullmatch(digits):
        *parts, rest = date.groups(default="0")
        if whole or len(digits) == 14:
            return _moment(digits, tuple(parts), fraction if len(digits) == 14 else rest, SHANGHAI)
    return None


def _of_date(cell: str, date: re.Match[str]) -> int:
    year, _, month, day, *rest = date.groups()
    if month is None:
        month, day = rest[:2]
    hour, minute, second, fraction, utc, sign, hours, minutes = rest[2:]
    zone = SHANGHAI
    if utc:
        zone = timezone(timedelta())
    elif sign:
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        if offset >= timedelta(days=1):
            raise Unreadable("not a time", cell, "no zone is a day away")
        zone = timezone(offset if sign == "+" else -offset)
    return _moment(cell, (year, month, day, hour or "0", minute or "0", second or "0"), fraction or "0", zone)


def _moment(cell: str, parts: tuple[str, ...], fraction: str, zone: timezone) -> int:
    year, month, day, hour, minute, second = map(int, parts)
    try:
        at = datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except ValueError as exc:
        raise Unreadable("not a time", cell, str(exc)) from None
    seconds = (at - datetime(1970, 1, 1, tzinfo=timezone(timedelta()))) // timedelta(seconds=1)
    if not _FIRST <= seconds < _LAST:
        raise Unreadable("not a time", cell, "it is not between 1990 and 2100")
    return seconds * 1000 + int(f"{fraction:0<3}"[:3])


def _no_time(cell: str) -> Unreadable:
    if cell.lower() in _MISSING:
        return Unreadable("not a time", cell, "every row needs one")
    if re.fullmatch(r"[0-9.]+[eE]\+?[0-9]+", cell):
        return Unreadable(
            "a time cut by Excel", cell, "its last digits are lost; format the column as text and save it again"
        )
    if _CLOCK.fullmatch(cell):
        return Unreadable("a time without a date", cell, "write 2025-07-01 10:51:00 or milliseconds since 1970")
    hint = "write milliseconds since 1970, 20250701105100 or 2025-07-01 10:51:00"
    if re.fullmatch(r"[1-9][0-9]{4}(?:\.[0-9]+)?", cell):
        hint = f"Excel counts days in such numbers, and others hhmmss; {hint}"
    elif re.fullmatch(r"[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{4}.*", cell):
        hint = f"day and month may be exchanged; {hint}"
    return Unreadable("not a time", cell, hint)


def _decoded(cell: str) -> object:
    """Return the JSON value of a cell, or its own text; refuse a number of which Excel has cut digits."""
    if "E+" in cell and _EXCEL.fullmatch(cell.strip()):
        raise Unreadable("cut by Excel", cell, "its digits are lost; format the column as a number and save it again")
    try:
        return _json(cell)
    except (msgspec.DecodeError, RecursionError):
        return cell


def _fitting(cell: str, found: Any) -> Any:
    """Return `found`; refuse it if it holds a number of more than 64 bits, which no field of xtquant has."""
    kind = type(found)
    if kind is list:
        if not _NUMERIC.issuperset(map(type, found)) or (
            found and not _INT_MIN <= min(found) <= max(found) <= _INT_MAX
        ):
            for item in found:
                _fitting(cell, item)
    elif kind is dict:
        for item in found.values():
            _fitting(cell, item)
    elif kind is int and not _INT_MIN <= found <= _INT_MAX:
        raise Unreadable("too large", cell, f"{str(found)[:40]} does not fit 64 bits")
    return found


def _literal(cell: str) -> object:
    """Return the list or map that `cell` is in Python's own writing, where ``nan``, None and ``'text'`` occur."""
    try:
        return _build(ast.parse(cell, mode="eval").body)
    except OverflowError:
        raise Unreadable("too large", cell, "it is beyond the range of a float") from None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        # Half of a surrogate pair is a ValueError.
        hint = "numpy wrote it; call .tolist() before the file is written" if _ARRAY.fullmatch(cell) else ""
        raise Unreadable("neither a JSON list nor a Python list", cell, hint) from None


def _build(node: ast.expr) -> object:
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_build(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_name(key): _build(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.Constant(value=None | bool() | int() | float() | str() as found):
            if isinstance(found, str):
                found.encode()
            elif isinstance(found, float) and not math.isfinite(found):
                raise OverflowError
            return found
        # numpy 2 writes the items of a list so, with all their digits.
        case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr=kind), args=[operand], keywords=[]):
            if re.fullmatch(r"u?int[0-9]+|float64", kind):
                return _build(operand)
        case ast.Name(id="nan" | "NaN" | "null"):
            return None
        case ast.Name(id="inf" | "Infinity"):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            positive = _build(operand)
            if isinstance(positive, int | float):
                return -positive
    raise SyntaxError("not a literal")


def _name(node: ast.expr) -> str:
    # JSON has no other names, and of what has them no frame could be made.
    name = _build(node)
    if not isinstance(name, str):
        raise SyntaxError("not a name")
    return name


def _refuse_dressed_number(cell: str) -> None:
    """Raise `Unreadable` for a number with characters that no program writes in one."""
    for kind, dress, hint in (
        ("a number with thousands separators", _THOUSANDS, "write " + re.sub("[,'，]", "", cell)),
        ("a percentage", _PERCENT, "write a plain number"),
        ("an amount with its currency", _CURRENCY, "write a plain number"),
        ("a number with its unit", _UNIT, "write a plain number"),
        ("a number in full-width digits", _WIDE, "write ASCII digits"),
    ):
        if dress.fullmatch(cell):
            raise Unreadable(kind, cell, hint)
    if _NUMBER.fullmatch(cell) and not math.isfinite(float(cell)):
        raise Unreadable("too large", cell, "it is beyond the range of a float")


def _refuse_object(cell: str) -> None:
    """Raise `Unreadable` for what str() makes of an object; of numpy's arrays it leaves out digits and items."""
    if _OBJECT.match(cell):
        raise Unreadable(
            "the writing of a Python object", cell, "call .tolist() on numpy's arrays before the file is written"
        )
