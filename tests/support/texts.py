"""The English texts that the source says to people: found in its syntax, as the tables of a language have them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# What raises or prints a text, and which of its arguments that is.
SAYING = {
    "ConfigError": 1,
    "Unavailable": 1,
    "UsageError": 0,
    "BadCodesFile": 0,
    "PageError": 0,
    "no_effect": 1,
    "refuse": 0,
    "fail": 0,
    "_refuse_codes": 1,
    "say": 0,
    # What has happened lately, and the verdict of `why`: commands of another machine say them.
    "note": 1,
    "_note": 1,
    "_Verdict": 2,
}


def spoken(path: Path) -> Iterator[str]:
    """Yield the texts of a file that are raised or printed, f-strings with {0}, {1}, ... in the place of values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            at = SAYING.get(name)
            if at is not None and len(node.args) > at:
                yield from _texts(node.args[at])


def written(path: Path) -> Iterator[str]:
    """Yield all texts of a file in which every sentence is for people; docstrings are none."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    # The name of a check, and a pattern of files.
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    parts |= {id(node.args[0]) for node in names if getattr(node.func, "id", "") == "Finding"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and (
            isinstance(node, ast.JoinedStr) or id(node) not in parts
        ):
            yield from (text for text in _texts(node) if " " in text.strip() and "*" not in text)


def _texts(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Constant(str(text)):
            found = text
        case ast.JoinedStr(values):
            number = iter(range(len(values)))
            found = "".join(part.value if isinstance(part, ast.Constant) else f"{{{next(number)}}}" for part in values)
        case ast.IfExp(_, body, other):
            yield from _texts(body)
            yield from _texts(other)
            return
        case ast.BinOp(left, ast.Add(), right):
            yield from _texts(left)
            yield from _texts(right)
            return
        case ast.BoolOp(_, values):
            for value in values:
                yield from _texts(value)
            return
        case _:
            return
    if any(character.isalpha() for character in found):
        yield found
