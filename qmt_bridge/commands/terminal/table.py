"""Rows below heads: a table of rich on a terminal, and in a pipe plain columns that never depend on its width."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from qmt_bridge.language.catalog import say
from qmt_bridge.language.wrapping import width, wrapped

if TYPE_CHECKING:
    from rich.text import Text

# Columns that a text has on the narrowest terminal.
LEAST = 20


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], styles: Sequence[str] = ()) -> str:
    """Return a table for standard output; `styles` are of its columns on a terminal.

    In a pipe the columns are as wide as their texts, the last one is not filled up, and heads are English, so that a
    script finds them.
    """
    shown = [[str(cell) for cell in row] for row in rows]
    heads = [label(head) for head in heads]
    return _drawn(heads, shown, styles) if on_terminal() else plain_table(heads, shown)


def on_terminal() -> bool:
    """Return whether a person reads the standard output."""
    return sys.stdout.isatty()


def label(name: str) -> str:
    """Return the name of a column, a line or a hop: English in a pipe, so that a script finds it."""
    return say(name) if on_terminal() else name


def labelled(lines: Iterable[tuple[str, str]], columns: int, margin: str = "") -> str:
    """Return texts behind their labels, which take so many columns, or one more than a long label has.

    On a terminal a text that is longer than its line goes on below its beginning.
    """
    shown = []
    for name, text in lines:
        name = label(name)
        head = f"{margin}{name}{' ' * max(1, columns - width(name))}"
        if on_terminal():
            room = max(LEAST, shutil.get_terminal_size().columns - width(head))
            text = wrapped(text, room).replace("\n", "\n" + " " * width(head))
        shown.append(head + text)
    return "\n".join(shown)


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows below their heads, in columns as wide as their texts; the last one is not filled up."""
    shown = [[*heads], *map(list, rows)]
    widths = [max(map(width, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (most - width(cell)) for cell, most in zip(row, widths, strict=True)).rstrip()
        for row in shown
    )


def _drawn(heads: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> str:
    # It takes a tenth of a second to load, which a pipe need not wait for.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_header=any(heads), pad_edge=False, show_edge=False)
    for at, head in enumerate(heads):
        numbers = bool(rows) and all(_is_number(row[at]) for row in rows)
        style = styles[at] if at < len(styles) else None
        drawn.add_column(Text(head), justify="right" if numbers else "left", style=style, overflow="fold")
    for row in rows:
        drawn.add_row(*map(_cell, row))
    # Only its width is asked of the terminal, by the environment or the system.
    console = Console(file=io.StringIO(), width=Console().width, force_terminal=True)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def _cell(text: str) -> Text:
    from rich.text import Text

    # As text: brackets in it are no markup.
    return Text(text, style=_COLOURS.get(text, ""))


# What a number may have behind it or in it: 1,234, 12.5 ms, 0.003 s, 7 %.
_NUMBER = re.compile(r"-|-?\d[\d,.]*( (ms|s|%))?")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None
