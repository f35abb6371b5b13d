"""CSV files that were made to cost memory or time are refused by name, within 256 MiB and some seconds."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qmt_bridge.errors import ConfigError
from qmt_bridge.tapes import ticks_csv
from qmt_bridge.tapes.ticks_csv import LeftOut, read_csv
from tests.support import hostile_files as hostile
from tests.support.limited import run_limited

HEAD = "code,time,lastPrice\n"
ROW = "600519.SH,1751338260000,1.5\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are those of Linux")
@pytest.mark.parametrize(
    ("make", "name", "said"),
    [
        pytest.param(hostile.long_field, "ticks.csv", "line 2: a row of more than 1,048,576", id="field"),
        pytest.param(hostile.long_header, "ticks.csv", "line 1: a row of more than 1,048,576", id="header"),
        pytest.param(hostile.endless_row, "ticks.csv", "a row of more than 1,048,576", id="row"),
        pytest.param(hostile.gzip_bomb, "ticks.csv.gz", "line 2: a row of more than 1,048,576", id="gzip"),
    ],
)
def test_hostile_csv_is_refused_by_name_within_limits(
    tmp_path: Path, make: Callable[[Path, int], Path], name: str, said: str
) -> None:
    path = make(tmp_path / name, 400)
    imports = (
        "from feeder.replay.recording import open_recording\nfrom pathlib import Path\nfrom qmt_bridge.errors import *"
    )
    code = "try: open_recording(Path(sys.argv[1]), 1)\nexcept QMTBridgeError as exc: sys.exit(f'Error: {exc}')"
    ended = run_limited(imports, code, path)
    path.unlink()
    assert "Traceback" not in ended.output
    assert (ended.code, said in ended.output, name in ended.output) == (1, True, True), ended.output[-500:]


def test_a_gzip_file_that_unpacks_too_far_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticks_csv, "_RATIO_ALLOWANCE", 1000)
    path = tmp_path / "ticks.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(HEAD + ROW * 10_000)
    with pytest.raises(ConfigError, match=r"ticks\.csv\.gz unpacks to more than 100 times"):
        list(read_csv(path))
    path.write_text(HEAD + ROW * 1000, encoding="utf-8")


def test_a_gzip_file_of_ordinary_rows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticks_csv, "_RATIO_ALLOWANCE", 1000)
    path = tmp_path / "ticks.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(HEAD)
        file.writelines(f"600519.SH,{1751338260000 + 3000 * n},{n * 7919 % 10_007}\n" for n in range(5000))
    assert len(list(read_csv(path))) == 5000


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEAD.strip() + ",a" * 1000, "has 1,003 columns"),
        ("a" * 5000, "has no column 'code'"),
    ],
)
def test_a_header_without_bounds_is_refused(tmp_path: Path, header: str, said: str) -> None:
    path = tmp_path / "ticks.csv"
    path.write_text(header + "\n" + ROW, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"ticks\.csv {said}") as caught:
        list(read_csv(path))
    assert len(str(caught.value)) < 1000


def test_more_codes_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticks_csv, "_MOST_CODES", 2)
    path = tmp_path / "ticks.csv"
    path.write_text(HEAD + "".join(f"60051{n}.SH,1751338260000,1\n" for n in range(3)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ticks\.csv has more than 2 codes, line 4"):
        list(read_csv(path))


@pytest.mark.parametrize(
    "cell",
    [
        "1" * 5000,
        "-" + "9" * 100_000,
        "[" + "1" * 5000 + "]",
        "[" * 60_000,
        "[" * 1000 + "]" * 1000,
        "-" * 100_000 + "1",
        "[" + "-" * 100_000 + "1]",
        "[" + "('" * 50_000,
        "{'a':" * 20_000,
        "[1" + "+1" * 50_000 + "]",
        "[" + "a." * 50_000 + "a]",
        "1e" + "9" * 5000,
        "['\\ud800']",
        "np." + "array(" * 10_000,
    ],
    ids=lambda cell: f"{cell[:6]}{len(cell)}",
)
@pytest.mark.parametrize("column", ["lastPrice", "askPrice", "other"])
def test_any_cell_is_a_value_or_costs_its_row(tmp_path: Path, column: str, cell: str) -> None:
    path = tmp_path / "ticks.csv"
    path.write_text(f'code,time,{column}\n600519.SH,1751338260000,"{cell}"\n{ROW}', encoding="utf-8")
    left_out: list[LeftOut] = []
    rows = list(read_csv(path, left_out.append))
    assert len(rows) + len(left_out) == 2
    assert all(len(str(row)) < 500 for row in left_out)
