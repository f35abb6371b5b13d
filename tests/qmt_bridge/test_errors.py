"""The close table, and what a client should do about each code."""

from __future__ import annotations

import pytest

from qmt_bridge.closes import CLOSES, may_reconnect
from qmt_bridge.errors import ERROR_CODES, RETRYABLE


@pytest.mark.parametrize("code", [None, 1001, 1006, 1011, 1012, 1013, 4000])
def test_a_client_reconnects_after_this_close_code(code: int | None) -> None:
    assert may_reconnect(code)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1008, 1009])
def test_a_client_does_not_reconnect_after_this_close_code(code: int) -> None:
    assert not may_reconnect(code)


def test_keys_and_codes_of_the_tables_agree() -> None:
    assert all(code == close.code for code, close in CLOSES.items())
    assert RETRYABLE <= ERROR_CODES
