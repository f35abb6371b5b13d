"""Break Chinese texts into lines: a character may be two columns wide, and a line may end after any of them. Pure."""

from __future__ import annotations

import re
import unicodedata

# A blank, or a default in brackets, or letters and digits up to a blank, or one wide character with the punctuation
# behind it, which begins no line.
_WIDE = r"\u2e80-\u9fff\uff00-\uffef"
_CHUNKS = rf"\s+|\[[^\s\]]*\]|[（「《【“]?[{_WIDE}][，。；：、？！）」》】”]*|[^\s{_WIDE}]+"


def width(text: str) -> int:
    """Return how many columns a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def wrapped(text: str, columns: int, first: str = "", following: str = "") -> str:
    """Return one paragraph in lines of at most so many columns, with what begins the first and the following ones."""
    lines, line = [], first
    for chunk in re.findall(_CHUNKS, text):
        if width(line) + width(chunk.rstrip()) > columns and line.strip():
            lines.append(line.rstrip())
            line = following + chunk.lstrip()
        else:
            line += chunk
    return "\n".join([*lines, line.rstrip()])
