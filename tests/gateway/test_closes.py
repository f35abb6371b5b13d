"""The close codes of the gateway: all are in the table of closes.py, which clients know."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qmt_bridge import closes, errors
from tests.support.paths import ROOT

ENDINGS = {name: value for name, value in vars(closes).items() if isinstance(value, closes.Ending)}
FILES = sorted((ROOT / "gateway").rglob("*.py"))


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_ending_has_known_close_and_error_codes(ending: closes.Ending) -> None:
    assert ending.close_code in closes.CLOSES
    assert ending.code is None or ending.code in errors.ERROR_CODES


def test_endings_are_distinct() -> None:
    assert len(set(ENDINGS.values())) == len(ENDINGS)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_gateway_takes_close_codes_from_the_table_only(path: Path) -> None:
    numbers = {
        node.value: node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, int)
    }
    # 1000 is not checked, because it is also used as a number.
    assert numbers.keys() & (closes.CLOSES.keys() - {1000}) == set()
