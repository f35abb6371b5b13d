"""qmt_bridge.tapes.ticks_csv: read CSV files that users export from xtquant."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re

import pytest

from qmt_bridge.errors import ConfigError
from qmt_bridge.tapes.ticks_csv import LeftOut, TickRow, read_csv
from tests.support.paths import RECORDED

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


def one_value(read, cell: str, column: str = "x") -> object:
    """Return what one cell of a column becomes; xtquant has no column `x`."""
    quoted = cell.replace('"', '""')
    (row,) = read(f'code,time,{column}\n600519.SH,{TIME},"{quoted}"\n')
    return row.record[column]


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


@pytest.mark.parametrize("column", ["x", "volume", "askPrice"])
@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "None", "null", "NULL", "N/A", "#N/A", "<NA>", "-", "--"])
def test_missing_value_is_none(read, column, cell):
    assert one_value(read, cell, column) is None


@pytest.mark.parametrize("column", ["x", "askPrice"])
@pytest.mark.parametrize("cell", ["[1.0, nan, -inf]", "[1.0, NaN, -Infinity]", "[1.0, None, -inf]"])
def test_list_may_hold_nothing_and_infinity(read, column, cell):
    assert one_value(read, cell, column) == [1.0, None, -math.inf]


def test_list_of_numpys_own_numbers_keeps_their_digits(read):
    assert one_value(read, "[np.float64(11.370000000000001), np.float64(nan), np.int64(2)]", "askPrice") == [
        11.370000000000001,
        None,
        2,
    ]


def test_infinity_is_a_float(read):
    assert one_value(read, "-inf") == -math.inf


def test_columns_have_any_order_and_unknown_ones_pass(read):
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


def test_names_in_capitals_are_those_of_xtquant(read):
    rows = read(f"TICKER,TIME,LASTPRICE,askprice,Volume,VOL\n600519.SH,{TIME},1.5,[2.5],3,4\n")
    assert rows[0].record == {"time": TIME, "lastPrice": 1.5, "askPrice": [2.5], "volume": 3, "VOL": 4}


@pytest.mark.parametrize("code", ["m2509-C-3000.DF", "SP a2501&a2505.DF"])
def test_file_may_be_named_after_an_option_or_a_combination(read, code):
    assert [row.code for row in read(f"time,x\n{TIME},1\n", f"{code}.csv")] == [code]


def test_quote_within_a_cell_costs_its_row_only(tmp_path):
    path = tmp_path / "ticks.csv"
    path.write_text(f'code,time,x\n600519.SH,{TIME},"a"b"\n600519.SH,{TIME},5\n')
    left_out = []
    assert [row.record["x"] for row in read_csv(path, left_out.append)] == [5]
    assert [(row.line, row.kind) for row in left_out] == [(2, "a row with a quote within a cell")]
    with pytest.raises(ConfigError, match="line 2: ',' expected after"):
        list(read_csv(path))


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
        pytest.param('[{"code": 1}]', "no column 'code'", id="json"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0", "not CSV in UTF-8", id="binary"),
        pytest.param(
            GOOD.encode("utf-16-le"), "not CSV in UTF-8 but UTF-16 without its mark", id="utf-16-without-mark"
        ),
        pytest.param(GOOD.encode("utf-32"), "not CSV in UTF-8 but UTF-16 without its mark, UTF-32", id="utf-32"),
        pytest.param("code,time,x,x\n", "column 'x' occurs twice", id="twice"),
        pytest.param("code,time,\n", "column 3 has no name", id="unnamed"),
        pytest.param(GOOD + f"600519.SH,{TIME}\n", "line 3: 2 cells under 3 columns", id="short"),
        pytest.param(GOOD + f"600519.SH,{TIME},1,2\n", "line 3: 4 cells under 3 columns", id="long"),
        pytest.param(GOOD + f"600519,{TIME},1\n", "line 3, column code: '600519' is not a code", id="code"),
        pytest.param(GOOD + "600519.SH,,1\n", "line 3, column time: '' is not a time; every row", id="no-moment"),
        pytest.param(GOOD + "600519.SH,20211301091501,1\n", "'20211301091501' is not a time; month must", id="month"),
        pytest.param(GOOD + "600519.SH,-1,1\n", "line 3, column time: '-1' is not a time", id="negative"),
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


NUMBERS = ["volume", "x"]


@pytest.mark.parametrize(
    ("cell", "columns", "said"),
    [
        ("27,810", NUMBERS, "thousands separators; write 27810"),
        ("1,234,567.5", NUMBERS, "thousands separators; write 1234567.5"),
        ("1.25%", NUMBERS, "a percentage"),
        ("¥11.39", NUMBERS, "an amount with its currency"),
        ("11.39元", NUMBERS, "an amount with its currency"),
        ("2.5亿", NUMBERS, "a number with its unit"),
        ("２７８１０", NUMBERS, "full-width"),
        ("1.75E+12", NUMBERS, "cut by Excel; its digits are lost"),
        ("1e400", NUMBERS, "too large"),
        ("[1e400]", ["askPrice"], "too large"),
        ("11,39", ["volume"], "no number"),
        ("007", ["volume"], "no number"),
        ("True", ["volume"], "no number"),
        ("[1]", ["volume"], "no number"),
        ("贵州茅台", ["volume"], "no number"),
        ("array([29.69, 0.  , 0.  ])", ["volume", "askPrice", "x"], "Python object; call .tolist()"),
        ("array([29.69, 0.  ,\n       0.  ], dtype=float32)", ["askPrice", "x"], "Python object; call .tolist()"),
        ("np.float64(29.69)", NUMBERS, "Python object"),
        ("[29.69  0.    0.  ]", ["askPrice", "x"], "neither a JSON list nor a Python list; numpy wrote it"),
        ("[29.69\n nan ... 0.]", ["askPrice", "x"], "neither a JSON list nor a Python list; numpy wrote it"),
        ("[1, ..., 2]", ["askPrice", "x"], "neither a JSON list"),
        ("['29.69', '0.0']", ["askPrice"], "no list of numbers; write it like"),
        ("29.69", ["askPrice"], "no list of numbers"),
        ("29.69;0.0", ["askPrice"], "no list of numbers"),
        ("[18446744073709551616]", ["askPrice", "x"], "does not fit 64 bits"),
        # What no message or no JSON frame could carry would be lost later without a line number.
        ("{[1]: 2}", ["x"], "neither a JSON list nor a Python list"),
        ("{1: 2, None: 3}", ["x"], "neither a JSON list nor a Python list"),
        (r"['\ud800']", ["x"], "neither a JSON list nor a Python list"),
    ],
)
def test_cell_that_is_no_value_is_named_with_what_helps(read, cell, columns, said):
    for column in columns:
        with pytest.raises(ConfigError) as caught:
            one_value(read, cell, column)
        assert re.search(rf"ticks\.csv, line \d+, column {column}: ", caught.value.reason)
        assert said in caught.value.reason


@pytest.mark.parametrize("cell", ["+5", "5.", ".5", "-.5", "5e3", " 5 "])
def test_number_column_reads_every_writing_of_a_number(read, cell):
    assert one_value(read, cell, "volume") == float(cell)


# 1 July 2025, 10:51:00.123 in Shanghai
MOMENT = 1751338260123


@pytest.mark.parametrize(
    ("cell", "time"),
    [
        ("1751338260", MOMENT - 123),
        ("1751338260.123", MOMENT),
        ("1751338260123", MOMENT),
        ("1751338260123.0", MOMENT),
        ("1751338260123456", MOMENT),
        ("1751338260123456789", MOMENT),
        ("20250701105100", MOMENT - 123),
        ("20250701105100.0", MOMENT - 123),
        ("20250701105100123", MOMENT),
        ("202507011051", MOMENT - 123),
        ("20250701", MOMENT - 123 - 39_060_000),
        ("2025-07-01", MOMENT - 123 - 39_060_000),
        ("2025-07-01 10:51:00", MOMENT - 123),
        ("2025-07-01 10:51:00.123", MOMENT),
        ("2025-07-01 10:51:00.123456", MOMENT),
        ("2025-07-01T10:51:00.123", MOMENT),
        ("2025-07-01 10:51:00.123+08:00", MOMENT),
        ("2025-07-01T02:51:00.123Z", MOMENT),
        ("2025-06-30 22:51:00.123-0400", MOMENT),
        ("2025/7/1 10:51", MOMENT - 123),
        ("20250701 10:51:00.123", MOMENT),
        ("2025年7月1日 10:51:00", MOMENT - 123),
        (" 1751338260123 ", MOMENT),
        ("662688000", 662688000000),
        ("0", 0),
    ],
)
def test_time_is_read_in_every_writing_that_has_one_meaning(read, cell, time):
    (row,) = read(f'code,time\n600519.SH,"{cell}"\n')
    assert row.time == row.record["time"] == time
    assert type(row.time) is int


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("1", "write milliseconds since 1970"),
        ("93005", "not a time"),
        ("105100", "not a time"),
        ("93005000", "not a time"),
        ("45839.4521", "Excel counts days"),
        ("1.75E+12", "cut by Excel"),
        ("1.75133826e+12", "last digits are lost; format the column as text"),
        ("17513382601", "not a time"),
        ("10:51:00.123", "without a date"),
        ("01/07/2025 10:51", "day and month may be exchanged"),
        ("2025-02-30 10:51:00", "day"),
        ("2025-07-01 24:51:00", "hour"),
        ("2025-07-01 10:51:00+99:00", "zone"),
        ("1970-01-01 08:00:00", "between 1990 and 2100"),
        ("１７５１３３８２６０１２３", "not a time"),
        ("9" * 5000, "not a time"),
        ("NaT", "every row needs one"),
    ],
)
def test_time_of_uncertain_meaning_is_refused(read, cell, said):
    with pytest.raises(ConfigError, match="line 2, column time: ") as caught:
        read(f'code,time\n600519.SH,"{cell}"\n')
    assert said in caught.value.reason


ROW = TickRow("600519.SH", TIME, {"time": TIME, "askPrice": [1.5, 2.0]})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"code;time;askPrice\n600519.SH;{TIME};[1.5, 2.0]\n", id="semicolons"),
        pytest.param(f"code\ttime\taskPrice\n600519.SH\t{TIME}\t[1.5, 2.0]\n", id="tabs"),
        pytest.param(f"sep=;\ncode;time;askPrice\n600519.SH;{TIME};[1.5, 2.0]\n", id="excels-mark"),
        pytest.param(f'code\ttime\taskPrice\r\n600519.SH\t{TIME}\t"[1.5, 2.0]"\r\n'.encode("utf-16"), id="utf-16"),
        pytest.param(f'"code","time","askPrice"\n"600519.SH","{TIME}","[1.5, 2.0]"\n', id="quoted"),
        pytest.param(f'code, time, "askPrice"\n 600519.SH , {TIME}, "[1.5, 2.0]"\n', id="spaces"),
        pytest.param(f'Code,TIME,askPrice\n600519.SH,{TIME},"[1.5, 2.0]"\n', id="capitals"),
        pytest.param(f'stock_code,time,askPrice\n600519.SH,{TIME},"[1.5, 2.0]"\n', id="stock-code"),
        pytest.param(
            f'Unnamed: 0.1,Unnamed: 0,ts_code,time,askPrice\n0,0,600519.SH,{TIME},"[1.5, 2.0]"\n', id="pandas"
        ),
        pytest.param(f',time,symbol,askPrice\n20211201091501,{TIME},600519.SH,"[1.5, 2.0]"\n', id="index-beside-time"),
        pytest.param(',symbol,askPrice\n20211201091501,600519.SH,"[1.5, 2.0]"\n', id="index-of-xtquant"),
        pytest.param('Unnamed: 0,code,askPrice\n2021-12-01 09:15:01,600519.SH,"[1.5, 2.0]"\n', id="index-of-dates"),
        pytest.param('stime,code,askPrice\n20211201091501,600519.SH,"[1.5, 2.0]"\n', id="stime"),
        pytest.param('datetime,证券代码,askPrice\n2021-12-01 09:15:01,600519.SH,"[1.5, 2.0]"\n', id="chinese"),
    ],
)
def test_other_programs_files_are_read(read, text):
    (row,) = read(text)
    assert (row.code, row.time) == (ROW.code, ROW.time)
    assert row.record == ROW.record


@pytest.mark.parametrize(
    "name", ["600519.SH.csv", "600519.SH_tick_20211201.csv", "600519.SH.csv.gz", "600519.SH-1.CSV"]
)
def test_file_of_one_code_is_named_after_it(read, name):
    text = f"time,x\n{TIME},5\n".encode()
    assert read(gzip.compress(text) if name.endswith("gz") else text, name) == [
        TickRow("600519.SH", TIME, {"time": TIME, "x": 5})
    ]


@pytest.mark.parametrize(
    ("name", "hint"), [("SH600519.csv", "did you mean '600519.SH'"), ("ticks.csv", "'ticks' is none")]
)
def test_file_that_names_no_code_has_a_hint(read, name, hint):
    with pytest.raises(ConfigError, match="has no column 'code' but 'time, x'") as caught:
        read(f"time,x\n{TIME},5\n", name)
    assert hint in caught.value.reason


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_header_that_comes_again_is_no_row(read, mark):
    text = f"code,time,x\n600519.SH,{TIME},1\n"
    assert [row.record["x"] for row in read(text + mark + text + "\n" + text)] == [1, 1, 1]


def test_other_header_in_the_middle_ends_the_reading(tmp_path):
    path = tmp_path / "ticks.csv"
    path.write_text(f"code,time,x,y\n600519.SH,{TIME},1,2\ncode,time,y,x\n600519.SH,{TIME},2,1\n")
    with pytest.raises(ConfigError, match="a second header with other columns, 'code, time, y, x'"):
        list(read_csv(path, lambda _: None))


def test_gzip_is_known_by_its_content(read):
    assert read(gzip.compress(GOOD.encode()), "ticks.csv") == read(GOOD)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04" + bytes(20), "Excel workbook"),
        (b"PAR1" + bytes(20), "Parquet"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd"),
        ("code,time,名称\n".encode("gbk"), "looks like GBK: save it as CSV UTF-8"),
        ("code,time,x\n".encode("utf-16")[:-1], "not CSV in UTF-8"),
        ("code,time,x\n".encode("utf-16-le"), "UTF-16 without its mark"),
        (gzip.compress("code,time,x\n".encode("utf-16-be"), mtime=0), "UTF-16 without its mark"),
        (b"", "is empty"),
        (b",code,x\n0,600519.SH,1\n1,600519.SH,2\n", "has no column 'time'"),
    ],
)
def test_other_file_is_named_with_what_helps(read, content, said):
    with pytest.raises(ConfigError, match=r"ticks\.csv") as caught:
        read(content)
    assert said in caught.value.reason


LONG = "x" * 131_073


@pytest.mark.parametrize("cell", [LONG, f'"{LONG}"', f'"a,{LONG},b"'])
def test_a_cell_that_is_too_long_costs_its_row(tmp_path, cell):
    path = tmp_path / "ticks.csv"
    path.write_text(f"code,time,x,y\n600519.SH,{TIME},1,2\n600519.SH,{TIME},1,{cell}\n600519.SH,{TIME},3,4\n")
    told: list[LeftOut] = []
    assert [row.record["x"] for row in read_csv(path, told.append)] == [1, 3]
    assert [str(each) for each in told] == [
        "line 3, column y: a cell of more than 131,072 characters, which no field of a tick has"
    ]
    with pytest.raises(ConfigError, match=r"ticks\.csv, line 3, column y: a cell of more than"):
        list(read_csv(path))


def test_a_quotation_mark_that_is_not_closed_is_named_where_it_is(tmp_path):
    path = tmp_path / "ticks.csv"
    row = f"600519.SH,{TIME},1,2\n"
    path.write_text(f'code,time,x,y\n{row}600519.SH,{TIME},"1,2\n{row * 6000}')
    told: list[LeftOut] = []
    with pytest.raises(ConfigError, match=r"ticks\.csv, line 3, column x: a quotation mark that no other one closes"):
        list(read_csv(path, told.append))
    assert not told


def test_row_that_cannot_be_read_is_told_and_the_others_come(tmp_path):
    path = tmp_path / "ticks.csv"
    path.write_text(
        f"code,time,volume\n600519.SH,{TIME},1\n600519.sh,{TIME},2\n600519.SH,soon,3\n"
        f'600519.SH,{TIME},"27,810"\n600519.SH,{TIME}\nSHRQ88.SH,{TIME},6\n'
    )
    told: list[LeftOut] = []
    assert [row.record["volume"] for row in read_csv(path, told.append)] == [1, 6]
    assert [(each.line, each.column) for each in told] == [(3, "code"), (4, "time"), (5, "volume"), (6, "")]
    assert "did you mean '600519.SH'" in str(told[0])
    assert len({each.kind for each in told}) == 4


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
