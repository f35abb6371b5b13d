"""Read lists of codes from text and CSV files, of Excel and of Chinese Windows; errors name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmt_bridge.commands.codes_file import BadCodesFile, codes_of, read_codes
from qmt_bridge.wire.codes import check_code

LISTS = Path("/work/shared/data/lists")
TWO = ["600519.SH", "000001.SZ"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"600519.SH\n000001.SZ\n", id="lines"),
        pytest.param(b"600519.SH\r\n000001.SZ", id="crlf"),
        pytest.param(b"\xef\xbb\xbf600519.SH\n000001.SZ\n", id="byte-order-mark"),
        pytest.param("600519.SH\n000001.SZ\n".encode("utf-16"), id="powershell"),
        pytest.param("600519.SH\r\n000001.SZ\r\n".encode("utf-16-be").join([b"\xfe\xff", b""]), id="utf-16-be"),
        pytest.param("代码,名称\n600519.SH,贵州茅台\n000001.SZ,平安银行\n".encode("utf-16"), id="csv-in-utf-16"),
        pytest.param(b"# mine\n\n 600519.SH  # Moutai\n\t000001.SZ\n600519.SH\n", id="comments-and-repeats"),
        pytest.param("ts_code,名称\n600519.SH,贵州茅台\n000001.SZ,平安银行\n".encode(), id="csv"),
        pytest.param("代码,名称\n600519.SH,贵州茅台\n000001.SZ,平安银行\n".encode("gbk"), id="csv-in-gbk"),
        pytest.param(b'"600519.SH";"x"\n"000001.SZ";"y"\n', id="quoted-semicolons"),
        pytest.param(b"600519.SH,113001.SH\n000001.SZ,127001.SZ\n", id="two-columns-of-codes"),
        pytest.param(b"600519.SH\tx\n000001.SZ\ty\n", id="tabs"),
    ],
)
def test_codes_are_read_out_of_what_people_have(content: bytes) -> None:
    assert codes_of(content, "codes.txt", check_code) == TWO


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"600519.SH\n600519\n", "codes.txt, line 2: '600519' is not a code", id="no-market"),
        pytest.param(b"# a\n\n1.SH,x\n", "codes.txt, line 3: '1.SH'", id="after-comments"),
        pytest.param(b"code\n600519.SH\nname\n", "line 3: 'name'", id="a-heading-is-first-only"),
        pytest.param(b"x1\n" * 7, "; and 2 more lines", id="many"),
        pytest.param(b"# nothing\n", "holds no codes", id="none"),
        pytest.param(b"# mine\n600519.SH,000001.SZ\n", "on one line; write one a line", id="one-line"),
        pytest.param(b"600519.SH\n\xff\xff\xff\n", "line 2: neither UTF-8 nor GBK; save it as UTF-8", id="binary"),
        pytest.param("600519.SH\n".encode("utf-16-le"), "line 1: holds a NUL character: UTF-16", id="utf-16-no-mark"),
        pytest.param("600519.SH\n".encode("utf-32"), "line 1: holds a NUL character", id="utf-32"),
        pytest.param("600519.SH\n".encode("utf-16") + b"x", "line 2: not UTF-16, as its first", id="utf-16-cut"),
        pytest.param(b"\xef\xbb\xbf600519.SH\n\xff", "line 2: not UTF-8-SIG, as its first", id="utf-8-mark"),
        pytest.param(b"600519.SH\n" + b"x" * 200_000, "line 2: no list of codes has such a line", id="long"),
    ],
)
def test_a_mistake_is_named_by_its_line(content: bytes, said: str) -> None:
    with pytest.raises(BadCodesFile) as caught:
        codes_of(content, "codes.txt", check_code)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCodesFile, match=r"cannot read .*gone\.txt"):
        read_codes(str(tmp_path / "gone.txt"), check_code)


@pytest.mark.skipif(not LISTS.is_dir(), reason="the recorded lists are not here")
@pytest.mark.parametrize("name", ["stock_basic_20260416.csv", "a_share_daily_20260415.csv"])
def test_real_lists_are_read_whole(name: str) -> None:
    lines = (LISTS / name).read_bytes().split(b"\n")
    assert len(read_codes(str(LISTS / name), check_code)) == sum(bool(line.strip()) for line in lines) - 1
