"""The documents of the project, and the blocks in them that a reader copies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

GUIDE = "tests/websocket-guide.md"
"""The user's own text."""

_LINES = re.compile(r"^(#{2,4} .+|```.*)$", re.MULTILINE)


class Block(NamedTuple):
    """What stands between two fences: the heading above it, and the line of the document where it begins."""

    document: str
    section: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[str]:
    """Return every document that has blocks for a reader, as a path within the project."""
    own = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    return [*sorted(path.relative_to(ROOT).as_posix() for path in own), GUIDE]


def blocks(document: str) -> list[Block]:
    """Return the blocks of a document in order; fail at a fence without an end."""
    return blocks_of((ROOT / Path(document)).read_text(encoding="utf-8"), document)


def blocks_of(text: str, document: str = "") -> list[Block]:
    """Return the blocks of a text, as `blocks` does."""
    found, section, fence = [], "", None
    for line in _LINES.finditer(text):
        if fence is None and line[0].startswith("#"):
            section = line[0].lstrip("# ")
        elif line[0].startswith("```"):
            if fence is None:
                fence = line
            else:
                assert line[0] == "```", f"{document}: the fence before {line[0]!r} has no end"
                number = text.count("\n", 0, fence.start()) + 1
                inside = text[fence.end() + 1 : line.start()]
                found.append(Block(document, section, number, fence[0][3:].strip(), inside))
                fence = None
    assert fence is None, f"{document}: a fence has no end"
    return found


def placed(program: str, port: int) -> str:
    """Return a program with the port of the test; what else the program names stays."""
    usual = 'host="127.0.0.1"'
    assert usual in program
    return program.replace(usual, f"{usual}, port={port}")
