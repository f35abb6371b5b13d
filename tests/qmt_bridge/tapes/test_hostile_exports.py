"""An export of a hostile tape stays in its folder and within limits, and is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qmt_bridge import cli
from tests.support import hostile_files as hostile
from tests.support.hostile_files import record
from tests.support.limited import MIB, run_limited

pytest.importorskip("pyarrow")

QUOTE = b"quote/1.SH/tick/"


def export(path: Path) -> Result:
    return CliRunner().invoke(cli.main, ["tape", "export", str(path), "--parquet", str(path.parent / "out")])


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", [r"..\\..\\evil", "../../evil", "C:evil", "..", "a/../../../evil", "CON", "/tmp/evil", "x. ", "a\\u0000b"]
)
def test_names_of_an_export_do_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    body = b'{"type": "%b", "data": {"a": 1}}' % name.encode()
    topic = b"quote/1.SH/%b/" % name.replace("\\u0000", "\0").replace("/", "%").encode()
    records = record(b"trade/1/", body), record(topic, b'{"1.SH": [{"a": 1}]}'), record(b"CON/x/", b'{"a": 1}')
    result = export(hostile.tape_of(tmp_path / "day.tape", *records))
    assert result.exit_code == 0, result.output
    files = written(tmp_path) - {"day.tape"}
    assert len(files) == 3
    assert all(file.startswith("out/") and file.count("/") == 1 and file.endswith(".parquet") for file in files)
    assert "con.parquet" not in {file.lower().removeprefix("out/") for file in files}


def test_tables_that_differ_in_case_alone_are_both_exported(tmp_path: Path) -> None:
    records = [record(b"trade/1/", b'{"type": "%b", "data": {"a": 1}}' % name) for name in (b"order", b"Order")]
    result = export(hostile.tape_of(tmp_path / "day.tape", *records))
    assert result.exit_code == 0, result.output
    assert len({file.lower() for file in written(tmp_path / "out")}) == 2


@pytest.mark.parametrize(
    ("topic", "body"),
    [
        (b"quote/x", b"{}"),
        (QUOTE, b"[]"),
        (QUOTE, b'{"a": 1}'),
        (QUOTE, b'{"a": [[]]}'),
        (b"trade/1/", b"{}"),
        (b"trade/1/", b'{"type": 3, "data": {}}'),
        (b"trade/1/", b'{"type": "order", "data": 3}'),
        (b"formula/x/", b"3"),
        (b"", b""),
        (QUOTE, b'{"1.SH": [{"%b": 1}]}' % (b"x" * 201)),
        (QUOTE, b'{"1.SH": [[' + b"],[" * 200_000 + b"]]}"),
        (QUOTE, b'{"1.SH": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ],
)
def test_a_body_of_another_form_is_refused_by_name(tmp_path: Path, topic: bytes, body: bytes) -> None:
    result = export(hostile.tape_of(tmp_path / "day.tape", record(topic, body)))
    if topic == b"quote/x":
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "day.tape: a message of" in result.output


def test_maps_within_maps_become_text_below_some_levels(tmp_path: Path) -> None:
    from pyarrow.parquet import read_table

    def nested(levels: int) -> Path:
        content = b'{"a":' * levels + b"1" + b"}" * levels
        return hostile.tape_of(tmp_path / "day.tape", record(QUOTE, b'{"1.SH": [' + content + b"]}"))

    result = export(nested(100))
    assert result.exit_code == 0, result.output
    (row,) = read_table(tmp_path / "out" / "quote-tick.parquet").to_pylist()
    assert row["a.a.a.a.a"] == '{"a":' * 95 + "1" + "}" * 95
    result = export(nested(500))
    assert (result.exit_code, "day.tape: column 'a.a.a.a.a' holds what is nested" in result.output) == (1, True)


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are those of Linux")
@pytest.mark.parametrize(
    ("records", "said"),
    [
        pytest.param(
            [record(QUOTE, b'{"1.SH":[{"c%d":1}]}' % n) for n in range(20_000)], "more than 1000 columns", id="columns"
        ),
        pytest.param(
            [record(QUOTE, b'{"1.SH":[' + (b'{"' + b"k" * 9000 + b'":') * 900 + b"1" + b"}" * 900 + b"]}")],
            "a name in it has more than 200 characters",
            id="prefixes",
        ),
        pytest.param(
            [record(QUOTE, b'{"1.SH":[[' + b"],[" * 5_000_000 + b"]]}")], "more than 200,000 lists", id="lists"
        ),
        pytest.param(
            [record(QUOTE, b'{"1.SH":[{' + b",".join(b'"c%d":1' % n for n in range(900)) + b"}]}")]
            + [record(QUOTE, b'{"1.SH":[' + b",".join([b"{}"] * 100_000) + b"]}")] * 2,
            "200,001 rows",
            id="nulls",
        ),
        pytest.param(
            [record(QUOTE, b'{"1.SH":[{"a":"' + b"x" * (8 * MIB) + b'"}]}', n) for n in range(8)] * 5,
            "40 rows",
            id="texts",
        ),
    ],
)
def test_hostile_tape_is_exported_within_limits(tmp_path: Path, records: list[bytes], said: str) -> None:
    path = tmp_path / "day.tape"
    # A block has room for some thousand short records, or one long one.
    step = 1000 if len(records) > 100 else 1
    parts = [records[at : at + step] for at in range(0, len(records), step)]
    path.write_bytes(b"".join(hostile.block(b"".join(part)) for part in parts))
    imports = "from qmt_bridge.cli import main\nimport qmt_bridge.tapes.parquet, pyarrow.parquet, pyarrow.dataset"
    code = "main(['tape', 'export', sys.argv[1], '--parquet', sys.argv[2]])"
    ended = run_limited(imports, code, path, tmp_path / "out")
    assert said in ended.output, ended.output[-800:]
    assert "Traceback" not in ended.output
