"""Recorded ticks on disk: reads what users export from xtquant as CSV.

Streams a file row by row in its own order and never holds it whole. Called from any thread; no clock, no logging.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from qmt_bridge.errors import BadCode, ConfigError
from qmt_bridge.tapes import cells
from qmt_bridge.wire.codes import check_code

# What others call these columns, in the order of preference.
_CODE_NAMES = (
    *("code", "stock_code", "ts_code", "symbol", "order_book_id", "wind_code", "instrumentid", "security"),
    *("stockcode", "ticker", "instrument", "instrument_id", "security_code", "htsc_code", "thscode", "secid"),
    *("证券代码", "股票代码", "合约代码", "代码"),
)
# xtquant's own index has no name, or `stime` (qmttools); pandas calls a column that had none `Unnamed: 0`.
_TIME_NAMES = "time datetime stime timestamp trade_time timetag date 时间 日期时间".split()
_UNNAMED = re.compile(r"Unnamed: [0-9]+(?:\.[0-9]+)?")
_SEPARATORS = ",;\t|"
# Characters of one row. A depth of a thousand levels has some 64,000.
_MOST_ROW = 1024 * 1024
_MOST_COLUMNS = 1000
# All instruments of Shanghai and Shenzhen, options too, are some 30,000.
_MOST_CODES = 200_000
# Characters that a gzip file may unpack to for each of its bytes, beyond an allowance; CSV files shrink to a tenth.
_MOST_RATIO = 100
_RATIO_ALLOWANCE = 64 * 1024 * 1024
_GZIP = b"\x1f\x8b"
# A file that begins with one of these is no text, whatever its name is.
_OTHERS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save it as CSV UTF-8",
    b"PAR1": "a Parquet file: write it with pandas.read_parquet(..).to_csv(..)",
    b"ARROW1": "a Feather file: write it with pandas.read_feather(..).to_csv(..)",
    b"\x89HDF": "an HDF5 file: write it with pandas.read_hdf(..).to_csv(..)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it, or compress it by gzip",
    b"SQLite format 3": "a SQLite file: of a journal, qmt-bridge journal export writes the events",
    b"BZh": "compressed by bzip2: unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: unpack it, or compress it by gzip",
}


class TickRow(NamedTuple):
    """One record of `code`; `record` has xtquant's keys without ``code``, `time` is its ms since 1970."""

    code: str
    time: int
    record: dict[str, object]


class LeftOut(NamedTuple):
    """A row that cannot be read: its last line, the column (empty if the row has too many or too few), and why.

    `kind` is the same for all rows with the same mistake.
    """

    line: int
    column: str
    kind: str
    reason: str

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        return f"line {self.line}{column}: {self.reason}"


def read_csv(path: Path, left_out: Callable[[LeftOut], object] | None = None) -> Generator[TickRow]:
    """Yield the rows of a CSV file in xtquant's columns plus the code, in the file's order.

    What a cell becomes `cells` says. Columns that xtquant does not have pass; the index of pandas does not,
    unless it is the time. A file of one code may name it in the file's name (``600519.SH.csv``). The text is UTF-8, or
    UTF-16 with its mark, plain or gzip, separated by commas, semicolons, tabs or bars; a header that comes again is
    not a row.

    A row that cannot be read is told to `left_out`, and the others are yielded; without `left_out` it raises.
    Raises `ConfigError` about ``file`` that names the line and the column. The memory is that of a row of a million
    characters, whatever the file holds.
    """
    lines = _Lines(path)
    try:
        with path.open("rb") as raw, _open(path, raw) as file:
            yield from lines.read(_Kept(path, file, raw), left_out)
    except UnicodeDecodeError as exc:
        hint = "" if exc.encoding != "utf-8" or not _is_gbk(exc.object) else "; it looks like GBK: save it as CSV UTF-8"
        raise ConfigError("file", f"{path} is not CSV in UTF-8, after line {lines.line}: {exc.reason}{hint}") from exc
    except UnicodeError as exc:
        raise ConfigError("file", f"{path} is not CSV in UTF-8 or UTF-16: {exc}") from exc
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise ConfigError("file", f"{path} is not a whole gzip file, after line {lines.line}: {exc}") from exc
    except OSError as exc:
        raise ConfigError("file", f"cannot read {path}: {exc.strerror or exc}") from exc


def _open(path: Path, raw: BinaryIO) -> TextIO:
    """Open a file as what it is; a plain file called ``.gz`` is not whole."""
    head = raw.read(16)
    raw.seek(0)
    for mark, what in _OTHERS.items():
        if head.startswith(mark):
            raise ConfigError("file", f"{path} is no CSV but {what}")
    packed = head.startswith(_GZIP) or path.suffix.lower() == ".gz"
    if packed:
        with gzip.GzipFile(fileobj=raw) as unpacked:
            head = unpacked.read(16)
        raw.seek(0)
        if head.startswith(b"P*M\x18"):
            raise ConfigError("file", f"{path} is no CSV but a tape that was compressed by gzip: unpack it")
    # The csv module needs line ends unchanged; utf-8-sig drops the mark that Excel writes.
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0\0" in head or (b"\0" in head and not marked):
        what = "UTF-16 without its mark, UTF-32, or no text"
        raise ConfigError("file", f"{path} is not CSV in UTF-8 but {what}: save it as CSV UTF-8")
    encoding = "utf-16" if marked else "utf-8-sig"
    opened = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw
    return io.TextIOWrapper(opened, encoding=encoding, newline="")


def _is_gbk(text: bytes) -> bool:
    try:
        text[:4096].decode("gb18030")
    except UnicodeDecodeError as exc:
        # A character that is cut at the end.
        return exc.start > min(len(text), 4096) - 4
    return True


class _Lines:
    """One pass over the lines of a file; `line` is the last that was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0
        self._known: set[str] = set()

    def read(self, lines: _Kept, left_out: Callable[[LeftOut], object] | None) -> Generator[TickRow]:
        """Yield the rows; raise `ConfigError`."""
        first = next(lines, "")
        before = 0
        if separator := re.fullmatch(r'"?sep=(.)"?\s*', first):
            # What Excel writes and reads first.
            before, first = 1, next(lines, "")
        delimiter = separator[1] if separator else max(_SEPARATORS, key=first.count)
        lines.again(first)
        rows = csv.reader(lines, strict=True, skipinitialspace=True, delimiter=delimiter)
        columns: _Columns | None = None
        while True:
            lines.clear()
            try:
                try:
                    row = next(rows, None)
                except csv.Error as exc:
                    self.line = before + rows.line_num
                    raise self._unread(exc, columns, "".join(lines.kept), delimiter) from exc
                self.line = before + rows.line_num
                if columns is None:
                    columns = _Columns(self.path, [_name(cell) for cell in row or ()])
                elif row is None:
                    return
                elif any(row) and not columns.is_header(row):
                    yield self._row(columns, row)
            except _RowError as exc:
                said = LeftOut(self.line, exc.column, exc.kind, exc.reason)
                if left_out is None:
                    raise ConfigError("file", f"{self.path}, {said}") from exc
                left_out(said)

    def _unread(self, exc: csv.Error, columns: _Columns | None, text: str, delimiter: str) -> Exception:
        """Return the error of a row, `text`, in which csv finds no cells; one of a single line costs only itself."""
        if columns is not None and "expected after" in str(exc):
            # A quote within a cell; an unclosed one swallows the lines after it.
            return _RowError("", "a row with a quote within a cell", str(exc))
        first = self.line - max(text.count("\n") - 1, 0)
        number = _long_cell(text, delimiter, csv.field_size_limit())
        if number is None or columns is None:
            return ConfigError("file", f"{self.path}, line {self.line}: {exc}")
        column = columns.header[number] if number < len(columns.header) else ""
        if first == self.line:
            said = f"a cell of more than {csv.field_size_limit():,} characters, which no field of a tick has"
            return _RowError(column, "a cell that is too long", said)
        said = f"a quotation mark that no other one closes within {csv.field_size_limit():,} characters"
        return ConfigError("file", f"{self.path}, {LeftOut(first, column, '', said)}")

    def _row(self, columns: _Columns, row: Sequence[str]) -> TickRow:
        if len(row) != len(columns.header):
            cells_ = f"{len(row)} cells under {len(columns.header)} columns"
            raise _RowError("", "a row of another length than the header", cells_)
        name = columns.time_name
        try:
            time = cells.time(row[columns.time_at])
            if not time and columns.time_is_index:
                # pandas' own index counts the rows from 0.
                raise columns.missing("time")
            record: dict[str, object] = {}
            for at, name, read in columns.readers:
                record[name] = time if at == columns.time_at else read(row[at])
            name = columns.code_name
            code = columns.code or row[columns.code_at].strip()
            if code not in self._known:
                if len(self._known) >= _MOST_CODES:
                    raise ConfigError("file", f"{self.path} has more than {_MOST_CODES:,} codes, line {self.line}")
                self._known.add(check_code(code))
        except cells.Unreadable as exc:
            raise _RowError(name, exc.kind, str(exc)) from exc
        except BadCode as exc:
            raise _RowError(name, "no code", exc.reason) from exc
        return TickRow(code, time, record)


class _RowError(Exception):
    def __init__(self, column: str, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.kind = kind
        self.reason = reason


class _Columns:
    """Where the columns of code and time are, and how every other column is read."""

    def __init__(self, path: Path, header: list[str]) -> None:
        """Raise `ConfigError` for a header that does not say so."""
        self.header = header
        self._path = path
        if not any(header):
            raise ConfigError("file", f"{path} is empty, or its first line is")
        if len(header) > _MOST_COLUMNS:
            raise ConfigError(
                "file", f"{path} has {len(header):,} columns, and a CSV of ticks at most {_MOST_COLUMNS:,}"
            )
        self.code_name, self.code_at, self.code = "code", -1, ""
        try:
            self.code_at = _find(header, _CODE_NAMES)
            self.code_name = header[self.code_at]
        except LookupError:
            self.code = self._code_in_name()
        self.time_name, self.time_at, self.time_is_index = "time", -1, False
        try:
            self.time_at = _find(header, _TIME_NAMES)
        except LookupError:
            if header[0] and not _UNNAMED.fullmatch(header[0]):
                raise self.missing("time") from None
            # xtquant's frames have the time as their index.
            self.time_at = 0
            self.time_is_index = True
        self.time_name = header[self.time_at] or "1 (without a name)"
        self.readers: list[tuple[int, str, cells.Reader]] = []
        for at, name in enumerate(header):
            # Databases write names in capitals.
            meant = cells.spelling(name)
            if at == self.time_at:
                name = "time"
            elif at == self.code_at or (at == 0 and not name) or _UNNAMED.fullmatch(name):
                continue
            if not name:
                raise ConfigError("file", f"{path}: column {at + 1} has no name")
            if meant not in header:
                name = meant
            self.readers.append((at, name, cells.reader(name)))
        names = [self.code_name, *(name for _, name, _ in self.readers)]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("file", f"{path}: column {name!r} occurs twice")

    def is_header(self, row: Sequence[str]) -> bool:
        """Return whether a row is the header again, as where files were put together; raise for another header."""
        if row[0].strip() == self.header[0] or self.code_name in row or self.time_name in row:
            names = [_name(cell) for cell in row]
            if names == self.header:
                return True
            if set(names) & {self.code_name, self.time_name}:
                raise ConfigError(
                    "file",
                    f"{self._path} has a second header with other columns, {', '.join(names)[:200]!r}; "
                    "play the files that it was put together of one by one",
                )
        return False

    def _code_in_name(self) -> str:
        """Return the code of a file like ``600519.SH.csv`` or ``600519.SH_20250701.csv.gz``."""
        stem = re.sub(r"(?:\.csv|\.txt|\.tsv)?(?:\.gz)?$", "", self._path.name, flags=re.IGNORECASE)
        try:
            # Combinations and options have spaces and hyphens themselves.
            return check_code(stem)
        except BadCode:
            pass
        try:
            return check_code(re.split(r"[_ -]", stem)[0])
        except BadCode as exc:
            meant = re.search(r"did you mean .*", exc.reason)
            hint = f"; a file of one code may have its name, {stem[:40]!r} is none{f' ({meant[0]})' if meant else ''}"
            raise self.missing("code", hint) from None

    def missing(self, name: str, hint: str = "") -> ConfigError:
        """Return the error of a file without a column `name`."""
        found = ", ".join(self.header)
        return ConfigError(
            "file", f"{self._path} has no column {name!r} but {found[:200]!r}; is it a CSV of ticks?{hint}"
        )


def _find(header: list[str], names: Sequence[str]) -> int:
    """Return the column of the first of `names` in the header; raise LookupError if none is."""
    lowered = [name.lower() for name in header]
    for name in names:
        if name in header:
            return header.index(name)
        if name in lowered:
            return lowered.index(name)
    raise LookupError(names)


def _name(cell: str) -> str:
    # Files that were put together have marks in the middle.
    return cell.strip().lstrip("\ufeff").strip("\"' ")


def _long_cell(text: str, delimiter: str, limit: int) -> int | None:
    """Return which cell of a row, from 0, has more than `limit` characters; None if none has."""
    number = start = 0
    is_quoted = False
    for at, character in enumerate(text):
        if character == '"':
            is_quoted = not is_quoted
        elif character == delimiter and not is_quoted:
            if at - start > limit:
                return number
            number, start = number + 1, at + 1
    return number if len(text) - start > limit else None


class _Kept:
    """The lines of a file; what was read since it was cleared is kept for an error, and is bounded."""

    def __init__(self, path: Path, file: TextIO, raw: BinaryIO) -> None:
        """Read `file`, whose bytes are those of `raw`, or what they unpack to; `path` is named in errors."""
        self.kept: list[str] = []
        self._path = path
        self._file = file
        self._raw = raw
        self._line = 0
        self._size = 0
        self._total = 0
        self._again: str | None = None

    def again(self, line: str) -> None:
        """Yield a line that was taken once more."""
        self._again = line

    def clear(self) -> None:
        """Forget what was kept; a new row begins."""
        self.kept.clear()
        self._size = 0

    def __iter__(self) -> _Kept:
        return self

    def __next__(self) -> str:
        """Return the next line; raise `ConfigError` if the row or the file is longer than any."""
        line, self._again = self._again, None
        if line is None:
            line = self._file.readline(_MOST_ROW + 1)
            self._line += 1
            self._total += len(line)
            if self._total > _RATIO_ALLOWANCE + _MOST_RATIO * self._raw.tell():
                raise ConfigError("file", f"{self._path} unpacks to more than {_MOST_RATIO} times its size")
        if not line:
            raise StopIteration
        self._size += len(line)
        if self._size > _MOST_ROW:
            raise ConfigError(
                "file",
                f"{self._path}, line {self._line}: a row of more than {_MOST_ROW:,} characters, which no tick has",
            )
        self.kept.append(line)
        return line
