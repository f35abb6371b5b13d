"""Records as rows of CSV."""

from __future__ import annotations

import pytest

from gateway.http.formats.table import cells, columns, lines


def test_list_has_a_column_for_each_entry_of_the_longest() -> None:
    records = [{"time": 1, "askPrice": [1.5]}, {"time": 2, "askPrice": [2.0, None], "volume": 3}]
    assert columns(records) == ["time", "askPrice1", "askPrice2", "volume"]
    assert cells(records[1]) == {"time": "2", "askPrice1": "2.0", "askPrice2": "", "volume": "3"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (-1.5, "-1.5"),
        (307621, "307621"),
        (1e16, "1e+16"),
        (2**70, str(2**70)),
        ("平安", "平安"),
        ({"a": 1}, '{"a":1}'),
        ("=1+1", "'=1+1"),
        ("-cmd", "'-cmd"),
        ("@x", "'@x"),
        ("\t=1", "'\t=1"),
    ],
)
def test_cell_is_a_text_that_no_spreadsheet_calculates(value: object, text: str) -> None:
    assert cells({"x": value}) == {"x": text}


def test_line_quotes_what_has_commas_and_quotes() -> None:
    assert lines([["a,b", 'c"d', "平"]]) == '"a,b","c""d",平\r\n'.encode()
