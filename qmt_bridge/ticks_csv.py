"""Recorded ticks on disk: reads what users export from xtquant as CSV.

Streams a file row by row in its own order and never holds it whole. Called from any thread; no clock, no logging.
"""

from __future__ import annotations

import ast
import csv
import gzip
import math
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec

from qmt_bridge.errors import BadCode, ConfigError
from qmt_bridge.wire.codes import check_code

# A time of fourteen digits is YYYYMMDDhhmmss, one of sixteen microseconds; thirteen reach to the year 2286.
_TIME_END = 10**13
# What pandas writes where `na_rep` was given, and for infinity. An empty cell is its default for NaN.
_FLOATS = frozenset(("nan", "inf", "-inf"))


class TickRow(NamedTuple):
    """One record of `code`; `record` has xtquant's keys without ``code``, `time` is its ms since 1970."""

    code: str
    time: int
    record: dict[str, object]


def read_csv(path: Path) -> Generator[TickRow]:
    """Yield the rows of a CSV (or ``.gz``) file in xtquant's columns plus ``code``, in the file's order.

    Integers, floats and JSON lists become such, exactly as the text says, an empty cell NaN (pandas writes NaN
    so), anything else stays text. Unknown columns pass; a first column without a name, which is pandas' index,
    does not. The text is UTF-8 with or without a mark. Raises `ConfigError` about ``file`` that names the line
    and the column.
    """
    try:
        with _open(path) as file:
            yield from _read(path, file)
    except UnicodeDecodeError as exc:
        raise ConfigError("file", f"{path} is not CSV in UTF-8: {exc.reason}") from exc
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise ConfigError("file", f"{path} is not a whole gzip file: {exc}") from exc
    except OSError as exc:
        raise ConfigError("file", f"cannot read {path}: {exc.strerror or exc}") from exc


def _open(path: Path) -> TextIO:
    # csv wants line ends as they are; utf-8-sig drops the mark that Excel writes.
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read(path: Path, file: TextIO) -> Generator[TickRow]:
    rows = csv.reader(file, strict=True)
    known: set[str] = set()
    name = ""
    try:
        header = [column.strip() for column in next(rows, ())]
        code_at, columns = _columns(path, header)
        for cells in rows:
            if not cells:
                continue
            name = ""
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells under {len(header)} columns")
            record: dict[str, object] = {}
            for at, name in columns:
                record[name] = _value(cells[at])
            name = "time"
            record["time"] = time = _time(record["time"])
            name = "code"
            code = cells[code_at]
            if code not in known:
                known.add(check_code(code))
            yield TickRow(code, time, record)
    except (csv.Error, ValueError, RecursionError, BadCode) as exc:
        # A file that cannot be decoded has no line to show; it is told apart by the caller.
        if isinstance(exc, UnicodeDecodeError):
            raise
        column = f", column {name}" if name and not isinstance(exc, csv.Error) else ""
        raise ConfigError("file", f"{path}, line {rows.line_num}{column}: {exc}") from exc


def _columns(path: Path, header: list[str]) -> tuple[int, list[tuple[int, str]]]:
    """Return where ``code`` stands, and the position and name of every column that belongs to the record."""
    if not header:
        raise ConfigError("file", f"{path} is empty, or its first line is")
    for wanted in ("code", "time"):
        if wanted not in header:
            found = ", ".join(header)
            raise ConfigError("file", f"{path} has no column {wanted!r} but {found[:200]!r}; is it a CSV of ticks?")
    columns = [(at, name) for at, name in enumerate(header) if name or at]
    for at, name in columns:
        if not name:
            raise ConfigError("file", f"{path}: column {at + 1} has no name")
        if header.index(name) != at:
            raise ConfigError("file", f"{path}: column {name!r} occurs twice")
    code_at = header.index("code")
    return code_at, [column for column in columns if column[0] != code_at]


def _value(cell: str) -> object:
    if not cell:
        return math.nan
    try:
        value: object = msgspec.json.decode(cell)
    except msgspec.DecodeError:
        if cell[0] in "[{":
            return _literal(cell)
        return float(cell) if cell.lower() in _FLOATS else cell
    # MessagePack ends here; a record that cannot be encoded would be lost on its way.
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"{cell} does not fit 64 bits")
    # `true`, `null` and a quoted word are text in a CSV file.
    return value if type(value) in (int, float, list, dict) else cell


def _literal(cell: str) -> object:
    """Return the list that `cell` is in Python's own writing, where ``nan`` and ``'text'`` occur."""
    try:
        return _build(ast.parse(cell, mode="eval").body)
    except SyntaxError as exc:
        raise ValueError(f"{cell[:80]!r} is neither a JSON list nor a Python list") from exc


def _build(node: ast.expr) -> object:
    match node:
        case ast.List(elts=items):
            return [_build(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_build(key): _build(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id="nan" | "NaN"):
            return math.nan
        case ast.Name(id="inf" | "Infinity"):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            number = _build(operand)
            if isinstance(number, int | float):
                return -number
    raise SyntaxError("not a literal")


def _time(value: object) -> int:
    # pandas turns a column of integers into floats when it joins frames.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 0 <= value < _TIME_END:
        raise ValueError(f"{value!r} is not a time in milliseconds since 1970")
    return value
