"""qmt_bridge.ticks_csv: what users export from xtquant, read as it is written."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import pytest

from qmt_bridge.errors import ConfigError
from qmt_bridge.ticks_csv import TickRow, read_csv

RECORDED = Path(__file__).parents[2] / "shared" / "data" / "ticks"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="recorded ticks are not beside the project")

TIME = 1638321301000


@pytest.fixture
def read(tmp_path):
    """Read `text` as a file of the name."""

    def read(text: str | bytes, name: str = "ticks.csv") -> list[TickRow]:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return list(read_csv(path))

    return read


def one_value(read, cell: str) -> object:
    """Return what one cell of the column `x` becomes."""
    quoted = cell.replace('"', '""')
    (row,) = read(f'code,time,x\n600519.SH,{TIME},"{quoted}"\n')
    return row.record["x"]


def test_row_has_code_time_and_record_without_code(read):
    rows = read(f"code,time,lastPrice,volume\n600519.SH,{TIME},11.39,758613\n000001.SZ,{TIME},1.0,2\n")
    assert rows == [
        TickRow("600519.SH", TIME, {"time": TIME, "lastPrice": 11.39, "volume": 758613}),
        TickRow("000001.SZ", TIME, {"time": TIME, "lastPrice": 1.0, "volume": 2}),
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("11", 11),
        ("-5", -5),
        ("18446744073709551615", 2**64 - 1),
        ("0.0", 0.0),
        ("11.370000000000001", 11.370000000000001),
        ("1e5", 1e5),
        ("[]", []),
        ("[29.69, 0.0]", [29.69, 0.0]),
        ("[2, 0]", [2, 0]),
        ("[[1, 2], [3]]", [[1, 2], [3]]),
        ('{"a": 1}', {"a": 1}),
        # Python's own writing of lists
        ("[1.5, None, True]", [1.5, None, True]),
        ("['a', 'nan', -2]", ["a", "nan", -2]),
        ("{'a': [1]}", {"a": [1]}),
        # text
        ("True", "True"),
        ("true", "true"),
        ("null", "null"),
        ("007", "007"),
        ("1,5", "1,5"),
        ('"5"', '"5"'),
        ("贵州茅台", "贵州茅台"),
    ],
)
def test_cell_keeps_value_and_type(read, cell, value):
    got = one_value(read, cell)
    assert got == value
    assert json.dumps(got) == json.dumps(value)


@pytest.mark.parametrize("cell", ["", "nan", "NaN"])
def test_missing_number_is_nan(read, cell):
    got = one_value(read, cell)
    assert isinstance(got, float)
    assert math.isnan(got)


@pytest.mark.parametrize("cell", ["[1.0, nan, -inf]", "[1.0, NaN, -Infinity]"])
def test_list_may_hold_nan_and_infinity(read, cell):
    first, second, third = one_value(read, cell)
    assert (first, third) == (1.0, -math.inf)
    assert math.isnan(second)


def test_infinity_is_a_float(read):
    assert one_value(read, "-inf") == -math.inf


def test_columns_may_stand_in_any_order_and_unknown_ones_pass(read):
    (row,) = read(f"volume, time ,mine,code\n7,{TIME},x,600519.SH\n")
    assert list(row.record.items()) == [("volume", 7), ("time", TIME), ("mine", "x")]


def test_index_of_pandas_is_dropped(read):
    (row,) = read(f",code,time\n20211201091501,600519.SH,{TIME}\n")
    assert row.record == {"time": TIME}


def test_time_written_as_a_float_becomes_an_integer(read):
    (row,) = read(f"code,time\n600519.SH,{TIME}.0\n")
    assert row.time == row.record["time"] == TIME
    assert type(row.record["time"]) is int


@pytest.mark.parametrize("name", ["ticks.csv", "ticks.csv.gz", "TICKS.CSV.GZ"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_plain_and_gzip_with_and_without_a_mark_are_the_same(read, name, mark, end):
    text = mark + end.join((b"code,time,x", b"600519.SH,%d,5" % TIME, b"", b""))
    rows = read(gzip.compress(text) if name.lower().endswith("gz") else text, name)
    assert rows == [TickRow("600519.SH", TIME, {"time": TIME, "x": 5})]


def test_rows_come_one_by_one_before_a_later_mistake(tmp_path):
    path = tmp_path / "ticks.csv"
    path.write_text(f"code,time\n600519.SH,{TIME}\n600519.SH,{TIME}\n600519.SH,soon\n")
    rows = read_csv(path)
    assert [next(rows).time, next(rows).time] == [TIME, TIME]
    with pytest.raises(ConfigError, match="line 4, column time"):
        next(rows)


GOOD = f"code,time,x\n600519.SH,{TIME},1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "is empty", id="empty"),
        pytest.param(f"stock,time\n600519.SH,{TIME}\n", "no column 'code' but 'stock, time'", id="no-code"),
        pytest.param("code,price\n600519.SH,1\n", "no column 'time' but 'code, price'", id="no-time"),
        pytest.param(f"code;time\n600519.SH;{TIME}\n", "no column 'code' but 'code;time'", id="semicolons"),
        pytest.param('[{"code": 1}]', "no column 'code'", id="json"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0", "not CSV in UTF-8", id="binary"),
        pytest.param("code,time,x,x\n", "column 'x' occurs twice", id="twice"),
        pytest.param("code,time,\n", "column 3 has no name", id="unnamed"),
        pytest.param(GOOD + f"600519.SH,{TIME}\n", "line 3: 2 cells under 3 columns", id="short"),
        pytest.param(GOOD + f"600519.SH,{TIME},1,2\n", "line 3: 4 cells under 3 columns", id="long"),
        pytest.param(GOOD + f"600519,{TIME},1\n", "line 3, column code: '600519' is not a code", id="code"),
        pytest.param(GOOD + "600519.SH,,1\n", "line 3, column time: nan is not a time", id="no-moment"),
        pytest.param(GOOD + "600519.SH,20211201091501,1\n", "column time: 20211201091501 is not a time", id="stime"),
        pytest.param(GOOD + "600519.SH,-1,1\n", "line 3, column time: -1 is not a time", id="negative"),
        pytest.param(GOOD + "600519.SH,1638321301000.5,1\n", "line 3, column time", id="half-a-millisecond"),
        pytest.param(GOOD + "600519.SH,today,1\n", "line 3, column time: 'today' is not a time", id="word"),
        pytest.param(GOOD + f"600519.SH,{TIME},18446744073709551616\n", "line 3, column x: .* 64 bits", id="too-big"),
        pytest.param(GOOD + f'600519.SH,{TIME},"[1, 2"\n', r"line 3, column x: '\[1, 2' is neither", id="open-list"),
        pytest.param(GOOD + f'600519.SH,{TIME},"[open(1)]"\n', "line 3, column x: .* is neither", id="call"),
        pytest.param(GOOD + f"600519.SH,{TIME},\"[-'a']\"\n", "line 3, column x: .* is neither", id="minus-text"),
        pytest.param(GOOD + f"600519.SH,{TIME},[1. 2.]\n", "line 3, column x: .* is neither", id="numpy"),
        pytest.param(GOOD + f"600519.SH,{TIME},{'[' * 100_000}\n", "line 3, column x", id="deep"),
        pytest.param(GOOD + f'\n600519.SH,{TIME},"1\n', "line 4: unexpected end of data", id="open-quote"),
        pytest.param(GOOD.encode() + b"600519.SH,1,\xb9\xf3\n", "not CSV in UTF-8", id="gbk"),
    ],
)
def test_mistake_is_named(read, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read(text)
    assert caught.value.setting == "file"
    assert "ticks.csv" in caught.value.reason


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(GOOD.encode(), id="not-gzip"),
        pytest.param(gzip.compress(GOOD.encode())[:-12], id="cut-off"),
        pytest.param(gzip.compress(GOOD.encode())[:10] + b"\xff" * 40, id="damaged"),
    ],
)
def test_broken_gzip_is_named(read, content):
    with pytest.raises(ConfigError, match=r"ticks\.csv\.gz is not a whole gzip file"):
        read(content, "ticks.csv.gz")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.csv"):
        next(read_csv(tmp_path / "absent.csv"))


@recorded
def test_recorded_day_is_read_exactly_as_the_text_says():
    path = RECORDED / "ticks_2stocks_20230201.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        texts = list(csv.DictReader(file))
    rows = list(read_csv(path))
    assert len(rows) == len(texts) == 10_120
    for row, text in zip(rows, texts, strict=True):
        assert row.code == text.pop("code")
        assert {name: json.dumps(value) for name, value in row.record.items()} == text
