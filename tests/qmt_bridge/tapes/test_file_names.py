"""Names of files made of hostile text: safe on Windows and Unix, and different where case does not matter."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmt_bridge.tapes.file_names import file_names

DEVICES = [*"con prn aux nul".split(), *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))]


@pytest.mark.parametrize("text", ["quote-tick", "quote-1m", "whole", "l2", "trade-order", "status", "formula"])
def test_a_plain_name_stays(text: str) -> None:
    assert file_names([text]) == {text: text}


@pytest.mark.parametrize(
    "text",
    [
        *("..", "../..", r"..\..\evil", "trade-../../evil", "C:evil", "/etc/evil", r"\\host\share", "", "a/b"),
        *("CON", "con", "nul", "COM1", "lpt9", "CON.txt", "trail.", "trail ", " lead", "a\0b", "a\nb", "a:stream"),
        *("x" * 300, "茅台", "\ud800", "a*b?", "%41", "~1"),
    ],
)
def test_an_unsafe_name_becomes_a_safe_one(text: str) -> None:
    (name,) = file_names([text]).values()
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name)
    assert name.lower() not in DEVICES
    assert name != text


def test_names_that_differ_in_case_alone_get_different_files() -> None:
    names = file_names(["trade-order", "trade-Order", "trade-ORDER", "a/b", "a?b"])
    assert len({name.lower() for name in names.values()}) == 5


@given(st.lists(st.text(max_size=12), unique=True, max_size=30))
def test_any_texts_get_safe_and_different_names(texts: list[str]) -> None:
    names = list(file_names(texts).values())
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) and name.lower() not in DEVICES for name in names)
    assert len({name.lower() for name in names}) == len(texts)
