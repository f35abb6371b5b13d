"""Read instrument codes from a text file: one a line, or the first column of a CSV file. No other I/O."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from qmt_bridge.errors import BadRequest, QMTBridgeError

# Two million codes; a longer file is not a list of codes.
MAX_BYTES = 32 * 1024 * 1024
# An error names at most this many lines.
MAX_NAMED = 5
# The byte-order marks that Excel and PowerShell write.
_ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


class BadCodesFile(QMTBridgeError):
    """A file of codes that cannot be read, or lines of it that hold no code."""


def read_codes(path: str, check: Callable[[str], object]) -> list[str]:
    """Return the codes in the file `path` ("-" is standard input), each once, in their order.

    Blank lines and what follows a ``#`` are left out, and a first line that is a heading. `check` raises `BadRequest`
    for what is no code. Raise `BadCodesFile` that names the lines.
    """
    try:
        content = sys.stdin.buffer.read(MAX_BYTES + 1) if path == "-" else _bytes(Path(path))
    except OSError as exc:
        raise BadCodesFile(f"cannot read {path}: {exc.strerror or exc}") from exc
    name = "standard input" if path == "-" else path
    if len(content) > MAX_BYTES:
        raise BadCodesFile(f"{name} is larger than {MAX_BYTES >> 20} MiB, which no list of codes is")
    return codes_of(content, name, check)


def codes_of(content: bytes, name: str, check: Callable[[str], object]) -> list[str]:
    """Return the codes in `content`; see `read_codes`."""
    codes: dict[str, None] = {}
    faults: list[str] = []
    lines = list(_cells(_text(content, name), name))
    if len(lines) == 1 and len(lines[0][1]) > 1 and all(_is_code(cell, check) for cell in lines[0][1]):
        # Only the first cell of a line is read, so the other codes would be missing without an error.
        raise BadCodesFile(f"{name} holds its codes on one line; write one a line")
    for number, (line, row) in enumerate(lines):
        cell = row[0]
        try:
            check(cell)
        except BadRequest as exc:
            # A first line without a digit is a heading: every code has a digit.
            if number == 0 and not any(character.isdigit() for character in cell):
                continue
            faults.append(f"line {line}: {exc.reason}")
        else:
            codes[cell] = None
    if faults:
        rest = len(faults) - MAX_NAMED
        more = f"; and {rest:,} more lines" if rest > 0 else ""
        raise BadCodesFile(f"{name}, {'; '.join(faults[:MAX_NAMED])}{more}")
    if not codes:
        raise BadCodesFile(f"{name} holds no codes")
    return list(codes)


def _is_code(cell: str, check: Callable[[str], object]) -> bool:
    try:
        check(cell)
    except BadRequest:
        return False
    return True


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _text(content: bytes, name: str) -> str:
    marked = next((encoding for mark, encoding in _ENCODINGS if content.startswith(mark)), None)
    # Chinese Windows writes names of instruments beside the codes in GBK.
    encodings = ("utf-8", "gb18030") if marked is None else (marked,)
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as exc:
            fault = exc
        else:
            if (at := text.find("\0")) < 0:
                return text
            line = text.count("\n", 0, at) + 1
            raise BadCodesFile(
                f"{name}, line {line}: holds a NUL character: UTF-16 without its mark, or no text; save it as UTF-8"
            )
    line = fault.object[: fault.start].decode(encoding, "ignore").count("\n") + 1
    what = "neither UTF-8 nor GBK" if marked is None else f"not {marked.upper()}, as its first bytes say"
    raise BadCodesFile(f"{name}, line {line}: {what}; save it as UTF-8") from fault


def _cells(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line that holds something, and its cells."""
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].replace("\N{ZERO WIDTH NO-BREAK SPACE}", "").strip()
        if not line:
            continue
        delimiter = next((sign for sign in ",;\t" if sign in line), ",")
        try:
            row = next(csv.reader([line], delimiter=delimiter))
        except csv.Error as exc:
            raise BadCodesFile(f"{name}, line {number}: no list of codes has such a line: {exc}") from exc
        yield number, [cell.strip() for cell in row]
