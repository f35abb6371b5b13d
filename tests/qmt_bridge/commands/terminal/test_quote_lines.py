"""Quotes as lines of a table: ticks and bars, prices, changes; anything else stays JSON."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qmt_bridge.commands import tail
from qmt_bridge.commands.terminal.quote_lines import head, quote_lines
from qmt_bridge.wire.frames import encode

# 2026-11-27 09:30:00.123 in Shanghai.
AT = 1795743000123
TICK = {"time": AT, "lastPrice": 1858.5, "lastClose": 1840.0, "volume": 12345, "bidPrice": [1858.4, 0], "askPrice": []}


def cells(line: str) -> list[str]:
    return re.sub(r"\x1b\[\d+m", "", line).split()


def test_tick_is_one_line_below_the_head() -> None:
    lines = quote_lines({"600519.SH": [TICK], "000001.SZ": {**TICK, "lastPrice": 1840, "bidPrice": [1.125]}})
    assert lines is not None
    assert cells(head()) == ["time", "code", "last", "change", "volume", "bid", "ask"]
    assert cells(lines[0]) == ["09:30:00.123", "600519.SH", "1858.50", "+1.01%", "12,345", "1858.40", "-"]
    assert cells(lines[1]) == ["09:30:00.123", "000001.SZ", "1840.00", "+0.00%", "12,345", "1.125", "-"]
    assert len(head()) == len(lines[1])


@pytest.mark.parametrize(("last", "colour"), [(1900, "\x1b[31m"), (1800, "\x1b[32m"), (1840, "")])
def test_rising_price_is_red_and_falling_one_green(last: float, colour: str) -> None:
    lines = quote_lines({"600519.SH": [{**TICK, "lastPrice": last}]})
    assert lines is not None
    assert lines[0].startswith(colour or " 09" if colour else "09")


def test_bar_is_shown_by_its_close() -> None:
    lines = quote_lines({"600519.SH": [{"time": AT, "close": 10.0, "preClose": 8.0, "volume": 1}]})
    assert lines is not None
    assert cells(lines[0])[2:4] == ["10.00", "+25.00%"]


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"a": 1},
        {"a": [1]},
        {"a": [{}]},
        {"a": [{"lastPrice": "x", "time": 1}]},
        {"a": [{"lastPrice": 1}]},
    ],
)
def test_what_is_no_quote_is_none(data: Any) -> None:
    assert quote_lines(data) is None


def test_table_of_tail_leaves_other_lines_as_they_are(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    show = tail._Table()
    lines = [
        b'{"type":"ack"}',
        encode({"data": {"600519.SH": [TICK]}}),
        b"\x81\xa4",
        encode({"600519.SH": [TICK]}),
    ]
    for line in lines:
        show(line)
    printed = capsysbinary.readouterr().out.splitlines()
    assert [printed[0], printed[3]] == [lines[0], lines[2]]
    assert printed[1].split()[:2] == [b"time", b"code"]
    assert len(printed) == 5
