"""The ids of events: a position in each topic of a URL."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.http.event_ids import FORMULA, MOST_NAMES, Marks
from qmt_bridge.errors import BadRequest

NAMES = ["600519.SH", "000001.SZ", "600519"]


def test_id_has_the_newest_position_of_each_name() -> None:
    marks = Marks(NAMES)
    assert marks.id() == ""
    marks.reach("000001.SZ", 7, 3)
    marks.reach("600519.SH", 7, 41)
    marks.reach("000002.SZ", 7, 9)
    assert marks.id() == "7:41,3,0"


def test_names_that_come_twice_have_one_place() -> None:
    assert Marks([*NAMES, *NAMES]).names == NAMES


def test_newer_epoch_begins_anew_and_an_older_one_is_passed_over() -> None:
    marks = Marks(NAMES)
    marks.reach("600519.SH", 7, 41)
    marks.reach("000001.SZ", 8, 1)
    marks.reach("600519.SH", 7, 42)
    assert marks.id() == "8:0,1,0"


def test_client_goes_on_after_its_id() -> None:
    marks = Marks(NAMES)
    marks.begin(" 7:41,3,0 ")
    marks.reach("000001.SZ", 7, 4)
    assert marks.id() == "7:41,4,0"
    request: dict[str, Any] = {}
    marks.resume(request)
    assert request == {"resume": {"600519.SH": {"epoch": 7, "seq": 41}, "000001.SZ": {"epoch": 7, "seq": 4}}}


def test_epoch_that_a_client_claims_gives_way_to_the_feeders() -> None:
    marks = Marks(NAMES)
    marks.begin("9:41,3,0")
    marks.reach("000001.SZ", 7, 4)
    assert marks.id() == "7:0,4,0"
    marks.reach("600519.SH", 6, 9)
    assert marks.id() == "7:0,4,0"


def test_start_is_replaced_by_the_positions() -> None:
    marks = Marks([*NAMES, "SH"])
    marks.begin("7:41,0,0,0")
    request: dict[str, Any] = {"start": "09:30"}
    marks.resume(request)
    # What is no code would be refused there.
    assert request == {
        "start": {
            "600519.SH": {"epoch": 7, "seq": 41},
            "000001.SZ": {"epoch": 7, "seq": 0},
            "SH": {"epoch": 7, "seq": 0},
        }
    }


def test_formula_has_one_position() -> None:
    marks = Marks([FORMULA])
    marks.begin("7:5")
    request: dict[str, Any] = {}
    marks.resume(request)
    assert request == {"resume": {"epoch": 7, "seq": 5}}


def test_record_of_a_named_market_belongs_to_it() -> None:
    marks = Marks(["SH", "600519.SH", "000001.SZ"])
    assert [marks.name_of(code) for code in ("600519.SH", "600000.SH", "000001.SZ")] == ["SH", "SH", "000001.SZ"]


def test_too_many_names_have_no_ids() -> None:
    marks = Marks(f"{600000 + number}.SH" for number in range(MOST_NAMES + 1))
    marks.reach("600000.SH", 7, 1)
    assert marks.id() == ""
    with pytest.raises(BadRequest):
        marks.begin("7:" + ",".join("1" * (MOST_NAMES + 1)))
