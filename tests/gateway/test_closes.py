"""The close codes of the gateway: from the table of errors.py only, and each of them known to clients."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from qmt_bridge import errors
from tests.support.paths import ROOT

ENDINGS = {name: value for name, value in vars(errors).items() if isinstance(value, errors.Ending)}
FILES = sorted((ROOT / "gateway").rglob("*.py"))


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_ending_has_known_close_and_error_codes(ending: errors.Ending) -> None:
    assert ending.close_code in errors.CLOSES
    assert ending.code is None or ending.code in errors.ERROR_CODES


def test_no_two_endings_are_the_same() -> None:
    assert len(set(ENDINGS.values())) == len(ENDINGS)


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_gateway_has_no_close_code_of_its_own(path: Path) -> None:
    numbers = {
        node.value: node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, int)
    }
    # 1005 is the client's: no code at all. 1000 is also a thousand.
    assert numbers.keys() & (errors.CLOSES.keys() - {1000}) == set()
