"""Frames as tables of pandas and Polars, and what the clients' `last` and `ticks` make of them."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import msgspec
import pytest

from qmt_bridge import frames
from qmt_bridge.clients import typed
from qmt_bridge.frames import to_df

TICK = {"time": 1795904064954, "lastPrice": 10.64, "askPrice": [10.65, 10.66], "bidPrice": [10.63]}
AT = "2026-11-29T06:14:24.954000+08:00"


@pytest.fixture(params=["pandas", "polars"])
def library(request):
    return request.param


def rows(table) -> list[dict]:
    """Return the rows of a table of either library, without what is null."""
    found = table.to_dicts() if hasattr(table, "to_dicts") else table.to_dict("records")
    return [{name: value for name, value in row.items() if value is not None and value == value} for row in found]


def test_a_record_is_a_row_with_its_code_and_time(library):
    table = to_df([{"600000.SH": [TICK, TICK | {"lastPrice": 10}]}, {"000001.SZ": TICK}], library)
    assert list(table.columns) == ["code", "time", "datetime", "lastPrice", "askPrice1", "askPrice2", "bidPrice1"]
    assert [(row["code"], row["time"], row["lastPrice"]) for row in rows(table)] == [
        ("600000.SH", 1795904064954, 10.64),
        ("600000.SH", 1795904064954, 10),
        ("000001.SZ", 1795904064954, 10.64),
    ]
    assert rows(table)[0]["datetime"].isoformat() == AT
    assert rows(table)[0]["datetime"].utcoffset() == timedelta(hours=8)


def test_long_lists_stay_lists_unless_columns_are_asked_for(library):
    depth = {"000001.SZ": [{"time": 1, "askPrice": [float(level) for level in range(12)], "bidPrice": [1.0]}]}
    [row] = rows(to_df(depth, library))
    assert (list(row["askPrice"]), row["bidPrice1"]) == ([float(level) for level in range(12)], 1.0)
    [row] = rows(to_df(depth, library, lists="columns"))
    assert row["askPrice12"] == 11.0
    [row] = rows(to_df(depth, library, lists="lists"))
    assert list(row["bidPrice"]) == [1.0]


def test_events_formulas_and_progress_have_their_fields(library):
    fill = {"type": "trade", "seq": 7, "data": {"stock_code": "600000.SH", "traded_time": 1795904064, "traded_id": "9"}}
    [row] = rows(to_df(fill, library))
    assert (row["type"], row["seq"], row["traded_id"]) == ("trade", 7, "9")
    assert row["traded_time_datetime"].isoformat() == "2026-11-29T06:14:24+08:00"
    value = {
        "type": "formula_update",
        "seq_id": 1,
        "formula_name": "MA",
        "stock_code": "000001.SZ",
        "data": {"timelist": [1795881600000, 1795968000000], "outputs": {"MA1": [10.61, None]}},
    }
    assert [(row["code"], row["time"], row.get("MA1")) for row in rows(to_df(value, library))] == [
        ("000001.SZ", 1795881600000, 10.61),
        ("000001.SZ", 1795968000000, None),
    ]
    assert rows(to_df([{"finished": 1, "total": 2, "stockcode": "x", "message": ""}], library))[0]["total"] == 2


def test_typed_frames_give_the_columns_of_plain_ones(library):
    frame = {"600000.SH": [TICK]}
    [row] = rows(to_df(typed.quotes("tick", True)(frame), library))
    plain = rows(to_df(frame, library))[0]
    assert plain.items() <= row.items()
    event = typed.events(True)({"type": "order", "seq": 1, "data": {"order_id": 3, "order_time": 1, "new": 1}})
    assert rows(to_df([event], library))[0]["order_id"] == 3


def test_values_of_several_types_and_nothing_make_a_table(library):
    mixed = [{"a.SH": [{"time": 1, "v": 1}]}, {"a.SH": [{"time": None, "v": 2.5, "w": "x"}]}]
    assert [row["v"] for row in rows(to_df(mixed, library))] == [1, 2.5]
    assert len(to_df([], library)) == 0
    with pytest.raises(TypeError, match="must be a frame"):
        to_df("600000.SH", library)


def test_what_is_no_time_is_kept_and_dates_nothing(library):
    times = [10**30, -(10**15), 10**18, float("inf"), float("nan"), TICK["time"]]
    found = rows(to_df({"600000.SH": [{"time": time} for time in times]}, library))
    assert [row["datetime"].isoformat() for row in found if "datetime" in row] == [AT]
    assert found[-1]["time"] == TICK["time"]


def test_no_field_is_lost_to_a_column_of_the_same_name(library):
    record = {"time": 1, "datetime": "x", "askPrice": [1, 2], "askPrice1": 9}
    assert rows(to_df({"600000.SH": [record]}, library)) == [{"code": "600000.SH", **record}]
    event = {"type": "order", "seq": 5, "data": {"type": "x", "order_id": 1}}
    assert rows(to_df(event, library)) == [{"type": "order", "seq": 5, "order_id": 1}]


def test_newest_records_say_why_one_is_missing(library):
    answer = {"records": {"a.SH": TICK, "b": None}, "missing": {"b": {"code": "unknown_symbol"}}, "feed": "up"}
    for table in (frames.last_to_df(answer, library), to_df(answer, library)):
        assert [row.get("missing") for row in rows(table)] == [None, "unknown_symbol"]
        assert list(table.columns)[-1] == "missing"


def test_without_a_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(frames.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs pandas or polars: pip install 'qmt-bridge-gateway\[pandas\]'"):
        to_df([])
    with pytest.raises(ImportError, match=r"\[polars\]"):
        to_df([], "polars")
    with pytest.raises(ValueError, match="must be 'pandas' or 'polars'"):
        to_df([], "numpy")


def test_importing_a_client_loads_no_library_of_tables():
    program = (
        "import sys, qmt_bridge.sync, qmt_bridge.frames;"
        "assert not {'pandas', 'polars', 'numpy', 'zmq', 'http.server'} & sys.modules.keys(), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("shape", "frame", "shown"),
    [
        (typed.quotes("1d", True), {"a.SH": [{"close": 1.5, "other": 1}]}, lambda f: f["a.SH"][0].close == 1.5),
        (typed.market(True), {"a.SH": {"lastPrice": 2}}, lambda f: f["a.SH"].last_price == 2),
        (typed.depth(True), {"a.SH": [{"askVolume": [1]}]}, lambda f: f["a.SH"][0].ask_volume == (1,)),
        (
            typed.events(True),
            {"type": "trade", "seq": 1, "data": {"traded_price": 3}},
            lambda f: f.data.traded_price == 3,
        ),
        (typed.events(True), {"type": "invented", "seq": 1, "data": {"x": 3}}, lambda f: f.data == {"x": 3}),
        (typed.events(True), {"type": "order", "seq": 1, "data": {"price": "x"}}, lambda f: f.data.price == "x"),
        (typed.download(True), {"finished": 1, "total": 2}, lambda f: f.total == 2),
        (typed.download(True), {"status": "done"}, lambda f: f.status == "done"),
        (
            typed.formula(True),
            {"type": "formula_update", "seq_id": 1, "formula_name": "MA", "stock_code": "a.SH", "data": {}},
            lambda f: f.formula_name == "MA",
        ),
    ],
)
def test_a_typed_frame_has_the_known_fields(shape, frame, shown):
    assert shown(shape(frame))
    assert isinstance(msgspec.to_builtins(shape(frame)), dict)
