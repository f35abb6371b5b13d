"""Typed views: whatever was delivered can be read, and every documented field has its place."""

from __future__ import annotations

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from random import Random

import msgspec
import pytest

from feeder.sim.market import Market
from qmt_bridge.tapes.ticks_csv import read_csv
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import Bar, L2Order, L2OrderQueue, L2QuoteAux, L2Thousand, L2Transaction, Progress, Tick
from tests.support.paths import RECORDED

recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="recorded ticks are not beside the project")
spec = find_spec("xtquant")
assert spec is not None
assert spec.origin is not None
DOCUMENT = (Path(spec.origin).parent / "doc" / "xtdata.md").read_text("utf-8")

T = 1733118954000
View = type[msgspec.Struct]
# A view, the vendor's heading of its fields, and a record that the simulator publishes.
MARKET = Market(1)
VIEWS: dict[View, tuple[str, dict[str, object]]] = {
    Tick: ("tick - ", MARKET.tick("600519.SH", T)),
    Bar: ("1m / 5m / 1d - ", {**MARKET.bar("600519.SH", "1m", T)}),
    L2Order: ("l2order - ", {**MARKET.stream("600519.SH", "l2order", T - 5000, T)[0]}),
    L2Transaction: ("l2transaction - ", {**MARKET.stream("600519.SH", "l2transaction", T - 5000, T)[0]}),
    L2QuoteAux: ("l2quoteaux - ", MARKET.quote("600519.SH", "l2quoteaux", T)),
    L2OrderQueue: ("l2orderqueue - ", MARKET.quote("600519.SH", "l2orderqueue", T)),
    L2Thousand: ("l2thousand - ", MARKET.thousand("600519.SH", 5, T)),
}


def fields_of(view: View) -> dict[str, str]:
    """Return the attribute of each field by its name on the wire."""
    return {field.encode_name: field.name for field in msgspec.structs.fields(view)}


def same(read: object, sent: object) -> bool:
    if isinstance(sent, list) and isinstance(read, list | tuple):
        return len(read) == len(sent) and all(map(same, read, sent))
    return type(read) is type(sent) and read == sent


def check(view: View, record: dict[str, object]) -> None:
    """Read `record` out of a body, and compare what has a place; JSON has no NaN: it says null."""
    body = {"600519.SH": [record]}
    by_code = dict[str, list[view]]  # type: ignore[valid-type]
    [read] = msgspec.json.decode(frames.encode(body), type=by_code)["600519.SH"]
    plain = json.loads(frames.encode(record))
    for name, attribute in fields_of(view).items():
        if name in record:
            assert same(getattr(read, attribute), plain[name]), (name, record)


@pytest.mark.parametrize("view", VIEWS)
def test_view_has_every_field_of_the_vendors_document(view: View) -> None:
    heading = re.escape(VIEWS[view][0])
    [block] = re.findall(rf"^#### {heading}.*?```python\n(.*?)```", DOCUMENT, re.DOTALL | re.MULTILINE)
    names = set(re.findall(r"^'(\w+)'", block, re.MULTILINE))
    assert len(names) > 5
    assert names <= fields_of(view).keys()


@pytest.mark.parametrize("view", VIEWS)
def test_view_has_every_field_of_the_simulator(view: View) -> None:
    record = VIEWS[view][1]
    assert record.keys() <= fields_of(view).keys()
    check(view, record)


@recorded
def test_every_field_of_quoted_records_has_a_place() -> None:
    checked = 0
    for quoted in json.loads((RECORDED / "quoted_single_ticks.json").read_text("utf-8")):
        if not isinstance(quoted["data"], dict):
            continue
        for value in quoted["data"].values():
            for record in value if isinstance(value, list) else [value]:
                view = Bar if "close" in record else Tick
                assert record.keys() <= fields_of(view).keys()
                check(view, record)
                checked += 1
    assert checked == 8


@recorded
@pytest.mark.parametrize("name", ["ticks_2stocks_20230201.csv.gz", "ticks_30stocks_sse_20211201.csv.gz"])
def test_every_recorded_tick_is_read(name: str) -> None:
    ticks = [row.record for row in read_csv(RECORDED / name)]
    read = msgspec.json.decode(frames.encode(ticks), type=list[Tick])
    names = fields_of(Tick)
    assert len(read) == len(ticks) > 10_000
    for tick, record in zip(read, ticks, strict=True):
        assert all(same(getattr(tick, names[name]), value) for name, value in record.items())


# What xtquant has been seen to give, and what else `feeder.xt.normalize` lets pass.
ODD = [
    None,
    math.nan,
    math.inf,
    0,
    -1,
    61684.0,
    2.5,
    2**63 - 1,
    2**64 - 1,
    -(2**63),
    1e300,
    True,
    "",
    "27810",
    "--",
    [],
    [None, 1, 2.5, math.nan, "x"],
    {"a": 1},
]


@pytest.mark.parametrize("view", VIEWS)
def test_reading_fails_on_no_value_of_any_field(view: View) -> None:
    record = VIEWS[view][1]
    for name in fields_of(view):
        for odd in ODD:
            check(view, {**record, name: odd})


@pytest.mark.parametrize("view", VIEWS)
def test_reading_fails_on_no_record_of_many_odd_values(view: View) -> None:
    random = Random(16)
    for _ in range(1000):
        record = dict(VIEWS[view][1])
        for name in random.sample(sorted(record), random.randrange(len(record))):
            match random.randrange(4):
                case 0:
                    del record[name]
                case 1:
                    record[f"{name}2"] = random.choice(ODD)
                case 2 if isinstance(record[name], list):
                    record[name] = [random.choice(ODD) for _ in range(random.randrange(8))]
                case _:
                    record[name] = random.choice(ODD)
        check(view, record)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("record", [{}, {"time": 0}, {"time": None}, {"unknown": 1}])
def test_record_without_fields_is_read(view: View, record: dict[str, object]) -> None:
    read = msgspec.json.decode(frames.encode(record), type=view)
    assert not read.time  # type: ignore[attr-defined]


def test_documented_depth_is_read_by_its_names() -> None:
    document = {
        "timeTag": T,
        "price": 1.5,
        "offPrice": [1.6],
        "offVolume": [3.0],
        "bidPrice": [None],
        "bidVolume": None,
    }
    depth = msgspec.json.decode(frames.encode(document), type=L2Thousand)
    assert (depth.time, depth.time_tag, depth.off_price, depth.off_volume) == (None, T, (1.6,), (3.0,))
    assert (depth.bid_price, depth.bid_volume, depth.ask_price) == ((None,), None, ())


@pytest.mark.parametrize("record", [{"finished": 1.0, "total": 3, "stockcode": None, "message": None}])
def test_progress_is_read_whatever_its_numbers_are(record: dict[str, object]) -> None:
    assert msgspec.json.decode(frames.encode(record), type=Progress) == Progress(1.0, 3, None, None)
