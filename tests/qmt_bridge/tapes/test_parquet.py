"""`qmt-bridge tape export`: a table for each kind of row, with columns of the right type."""

from __future__ import annotations

import json
import math
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qmt_bridge import cli
from qmt_bridge.errors import ConfigError
from qmt_bridge.tapes import parquet
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import FormulaSpec, Topic, formula_topic

pyarrow = pytest.importorskip("pyarrow")
from pyarrow.parquet import read_table  # noqa: E402

MAOTAI, BANK = "600519.SH", "600000.SH"


def write(path: Path, *messages: tuple[str, object]) -> Path:
    writer = TapeWriter(path, Recorded(1, session_frame(["quote/"], "1.0")))
    for number, (topic, body) in enumerate(messages, 1):
        writer.write(40 + number, Frame(Topic(topic), 7, number, 20 + number, 30 + number, encode(body)))
    writer.close()
    return path


@pytest.fixture
def export(tmp_path: Path):
    """Write a tape of messages (topic, body), export it, and return its tables by name."""

    def export(*messages: tuple[str, object]) -> dict[str, Any]:
        written = parquet.export(write(tmp_path / "day.tape", *messages), tmp_path / "out")
        tables = {path.stem: read_table(path) for path in written}
        assert {path: table.num_rows for path, table in zip(written, tables.values(), strict=True)} == written
        return tables

    return export


def values(table: Any) -> list[dict[str, Any]]:
    """Return the rows without topic and stamps."""
    return [{name: value for name, value in row.items() if not name.startswith("frame.")} for row in table.to_pylist()]


def test_quotes_have_a_row_a_record_with_topic_and_stamps(export) -> None:
    tick = {"time": 1, "lastPrice": 1858.0, "askPrice": [1858.1, 1858.2], "askVol": [1, 2]}
    tables = export((f"quote/{MAOTAI}/tick/", {MAOTAI: [tick, tick]}), (f"quote/{MAOTAI}/1m/", {MAOTAI: [{"time": 2}]}))
    assert set(tables) == {"quote-tick", "quote-1m"}
    stamps = {
        "frame.topic": f"quote/{MAOTAI}/tick/",
        "frame.epoch": 7,
        "frame.seq": 1,
        "frame.received_ns": 21,
        "frame.published_ns": 31,
        "frame.arrival_ns": 41,
    }
    assert tables["quote-tick"].to_pylist() == [{**stamps, "code": MAOTAI, **tick}] * 2
    kinds = {field.name: str(field.type) for field in tables["quote-tick"].schema}
    assert (kinds["time"], kinds["lastPrice"]) == ("int64", "double")
    assert (kinds["askPrice"], kinds["askVol"]) == ("list<element: double>", "list<element: int64>")


def test_whole_quotes_and_depth_have_a_row_for_each_code(export) -> None:
    tables = export(
        ("whole/SH/", {MAOTAI: {"time": 1}, BANK: {"time": 2}}),
        ("whole/SH/", {BANK: {"time": 3}}),
        (f"l2/{MAOTAI}/0/", {MAOTAI: [{"askPrice": []}]}),
    )
    assert values(tables["whole"]) == [
        {"code": MAOTAI, "time": 1},
        {"code": BANK, "time": 2},
        {"code": BANK, "time": 3},
    ]
    assert values(tables["l2"]) == [{"code": MAOTAI, "askPrice": []}]


def test_trade_events_have_a_table_for_each_type(export) -> None:
    order = {"type": "order", "seq": 8812, "data": {"order_id": 5, "seq": 6}}
    tables = export(("trade/1/", order), ("trade/1/", {"type": "asset", "seq": 8813, "data": {"cash": 1.5}}))
    assert values(tables["trade-order"]) == [{"event.seq": 8812, "order_id": 5, "seq": 6}]
    assert values(tables["trade-asset"]) == [{"event.seq": 8813, "cash": 1.5}]


def test_maps_become_columns_with_a_dot(export) -> None:
    topic = formula_topic(FormulaSpec("MA", MAOTAI))
    body = {"formula_name": "MA", "data": {"timelist": [1, 2], "outputs": {"MA1": [1.0, math.inf], "MA2": [1, 2]}}}
    [row] = values(export((topic, body))["formula"])
    assert row == {
        "formula_name": "MA",
        "data.timelist": [1, 2],
        "data.outputs.MA1": [1.0, None],
        "data.outputs.MA2": [1, 2],
    }


def column(export, *given: object) -> tuple[str, list[object]]:
    """Return type and values of a column in which `given` came."""
    table = export(*(("status/feeder/", {"x": value}) for value in given))["status"]
    return str(table.schema.field("x").type), table.column("x").to_pylist()


@pytest.mark.parametrize(
    ("given", "kind", "read"),
    [
        pytest.param([1, -2], "int64", [1, -2], id="int"),
        pytest.param([1, 2.5, None], "double", [1.0, 2.5, None], id="float"),
        pytest.param(["a", "ä"], "string", ["a", "ä"], id="text"),
        pytest.param([True, False], "bool", [True, False], id="bool"),
        pytest.param([None, None], "null", [None, None], id="nothing"),
        pytest.param([[], []], "list<element: null>", [[], []], id="empty-lists"),
        pytest.param([[1], [2.5, None], []], "list<element: double>", [[1.0], [2.5, None], []], id="lists"),
        pytest.param([["a"]], "list<element: string>", [["a"]], id="list-of-text"),
        pytest.param([1, "a", None], "string", ["1", '"a"', None], id="mixed"),
        pytest.param([1, True], "string", ["1", "true"], id="int-or-bool"),
        pytest.param([1, [2]], "string", ["1", "[2]"], id="list-or-not"),
        pytest.param([[[1], [2]]], "string", ["[[1],[2]]"], id="lists-of-lists"),
        pytest.param([[{"a": 1}]], "string", ['[{"a":1}]'], id="list-of-maps"),
        pytest.param([[1, "a"]], "string", ['[1,"a"]'], id="mixed-list"),
    ],
)
def test_a_column_has_the_type_that_all_its_values_have(export, given, kind, read) -> None:
    assert column(export, *given) == (kind, read)


def test_nan_is_null(export) -> None:
    assert column(export, math.nan, 1.5) == ("double", [None, 1.5])


def test_a_field_that_comes_later_is_null_before(export) -> None:
    tables = export(("whole/SH/", {MAOTAI: {"a": 1}}), ("whole/SH/", {MAOTAI: {"b": 2}}))
    assert values(tables["whole"]) == [{"code": MAOTAI, "a": 1, "b": None}, {"code": MAOTAI, "a": None, "b": 2}]


def test_many_rows_are_written_in_groups(export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROWS", 3)
    tables = export(*(("whole/SH/", {MAOTAI: {"time": n}}) for n in range(8)))
    assert [row["time"] for row in values(tables["whole"])] == list(range(8))
    metadata = pyarrow.parquet.read_metadata(tmp_path / "out" / "whole.parquet")
    assert metadata.num_row_groups == 3


def test_what_is_recorded_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "day.tape", ("whole/SH/", {MAOTAI: {"time": 1}}))

    def read(tape: Path, *told: Any) -> Any:
        # The second pass alone reads so.
        write(tape, ("l2/600519.SH/0/", {MAOTAI: [{"other": 1}]}))
        return original(tape, *told)

    original = parquet.read_tape
    monkeypatch.setattr(parquet, "read_tape", read)
    assert parquet.export(path, tmp_path / "out") == {tmp_path / "out" / "whole.parquet": 1}


def test_the_command_says_what_it_has_written(tmp_path: Path) -> None:
    path = write(tmp_path / "day.tape.zst", ("whole/SH/", {MAOTAI: {"time": 1}, BANK: {"time": 2}}))
    result = CliRunner().invoke(cli.main, ["tape", "export", str(path), "--parquet", str(tmp_path / "a" / "b")])
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'a' / 'b' / 'whole.parquet'}: 2 rows\n")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(tmp_path / "day.tape")
    result = CliRunner().invoke(cli.main, ["tape", "export", str(path), "--parquet", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "pip install 'qmt-bridge-gateway[parquet]'" in result.output
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = write(tmp_path / "day.tape", ("whole/SH/", {MAOTAI: {"time": 1}}))
    with pytest.raises(ConfigError, match="parquet: cannot write"):
        parquet.export(path, tmp_path / "file" / "out")
    big = write(tmp_path / "big.tape", ("whole/SH/", {MAOTAI: {"time": 2**64 - 1}}))
    with pytest.raises(ConfigError, match="does not fit Parquet"):
        parquet.export(big, tmp_path / "out")


def test_json_text_can_be_read_back(export) -> None:
    given = [{"a": [1, 2.5]}, "text"]
    _, texts = column(export, *([value] for value in given), 5)
    assert [json.loads(str(text)) for text in texts] == [[given[0]], [given[1]], 5]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_the_owner_may_read_the_tables_of_a_tape(tmp_path: Path) -> None:
    tape = write(tmp_path / "day.tape", ("trade/1/", {"type": "order", "seq": 1, "data": {"order_id": 7}}))
    written = parquet.export(tape, tmp_path / "day")
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}


def test_a_damaged_tape_is_written_as_far_as_it_goes_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "day.tape", (f"quote/{MAOTAI}/tick/", {MAOTAI: [{"time": 1}]}))
    path.write_bytes(path.read_bytes() + b"torn")
    assert parquet.export(path, tmp_path / "out") == {tmp_path / "out" / "quote-tick.parquet": 1}
    assert f"{path} is damaged: 1 messages can be read, the last 4 bytes of" in caplog.text
