"""The file of the full terminal's strategy: its syntax, and that it needs nothing but the standard library of 3.6."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from tests.support.programs import check, needs
from tests.support.strategies import STRATEGY, strategy


def test_the_file_is_valid_in_gbk() -> None:
    text = strategy()

    assert text.encode("gbk").decode("gbk") == text
    assert text.startswith("# coding:gbk\n")


def test_the_file_needs_no_later_python_than_3_6(tmp_path: Path) -> None:
    path = tmp_path / "strategy.py"
    path.write_bytes(strategy().encode("gbk"))

    # It succeeds also with a file that it cannot read.
    assert "versions: 3.6\n" in check([needs("vermin"), "--no-tips", "--target=3.6-", str(path)])


def test_the_file_imports_the_standard_library_only() -> None:
    nodes = list(ast.walk(ast.parse(strategy(), str(STRATEGY))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}

    assert names <= sys.stdlib_module_names
