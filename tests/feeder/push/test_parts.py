"""Lines, topics, offers and conflation of pushers. Pure."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.push.conflation import Conflation
from feeder.push.lines import Budget, Lines
from feeder.push.message import BadLine, Hello, Record, decode
from feeder.push.offer import BadHello, Offer, read_offer, read_permits
from feeder.push.pusher import Pusher
from feeder.push.route import Route
from feeder.push.spoken import read_topic, spell
from feeder.push.standing import Standing
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.topics import FormulaSpec, Kind, formula_topic, parse_topic, whole_topic

FORMULA = formula_topic(FormulaSpec("MA", "600519.SH", params={"N1": 5, "名": "值"}))


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=30))
def test_lines_do_not_depend_on_how_bytes_come(data: bytes, sizes: list[int]) -> None:
    lines, found, rest = Lines(limit=8), [], data
    for size in sizes:
        found += lines.feed(rest[:size])
        rest = rest[size:]
    found += lines.feed(rest)
    assert found == [line if len(line) <= 8 else None for line in data.split(b"\n")[:-1]]
    assert lines.size <= 8


def test_error_lines_have_a_rate() -> None:
    budget = Budget(10)
    assert sum(budget.take(0.0) for _ in range(50)) == 10
    assert sum(budget.take(0.5) for _ in range(50)) == 5
    assert sum(budget.take(100.0) for _ in range(50)) == 10


@pytest.mark.parametrize(
    "topic",
    [
        *("quote/600519.SH/tick/", "whole/SH/", "whole/600519.SH/", "l2/000001.SZ/10/", "download/5f-1/"),
        *("trade/1%2F2/", FORMULA),
    ],
)
def test_a_topic_is_spelled_and_read(topic: str) -> None:
    parts = parse_topic(topic)
    assert read_topic(json.dumps(spell(parts)).encode()) == (topic, parts)


@pytest.mark.parametrize(
    "spelled", [b"", b"5", b"{}", b'{"kind":"quote"}', b'{"kind":"l2","code":"600519.SH","gear_num":-1}', b"\xff"]
)
def test_what_is_no_topic_is_refused(spelled: bytes) -> None:
    with pytest.raises(BadLine):
        read_topic(spelled)


def hello(**fields: Any) -> Hello:
    return Hello(**{"protocol": 1, "name": "ctp", "kinds": ["quote"], **fields})


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        ({"kinds": ["quote"]}, {"kinds": ["whole"]}, ""),
        ({"kinds": ["quote"]}, {"kinds": ["quote"]}, "quote of all markets"),
        ({"markets": ["SH"]}, {"markets": ["SZ"]}, ""),
        ({"markets": ["SH"]}, {}, "quote of SH"),
        ({"kinds": ["download"]}, {"kinds": ["download"]}, "download"),
        ({"kinds": ["trade"]}, {"kinds": ["trade"], "accounts": ["1000000365"]}, "trade of ******0365"),
        ({"kinds": ["trade"], "accounts": ["1"]}, {"kinds": ["trade"], "accounts": ["2"]}, ""),
    ],
)
def test_what_two_would_both_serve(ours: dict[str, Any], theirs: dict[str, Any], both: str) -> None:
    first, second = read_offer(hello(**ours), {}), read_offer(hello(**theirs), {})
    assert (first.overlap(second), second.overlap(first)) == (both, both)


def test_the_setting_bounds_what_is_offered() -> None:
    permits = read_permits(["ctp:quote+whole:SF+DF", "ctp:quote:SH", "desk:trade+download"])
    assert permits == {
        "ctp": Offer({Kind.QUOTE: frozenset(("SF", "DF", "SH")), Kind.WHOLE: frozenset(("SF", "DF"))}),
        "desk": Offer({Kind.TRADE: None, Kind.DOWNLOAD: None}),
    }
    assert read_offer(hello(kinds=["quote"]), permits).markets == {Kind.QUOTE: frozenset(("SF", "DF", "SH"))}
    assert read_offer(hello(markets=["SH"]), permits).markets == {Kind.QUOTE: frozenset(("SH",))}
    for refused in ({"kinds": ["l2"]}, {"kinds": ["whole"], "markets": ["SH"]}, {"name": "other"}):
        with pytest.raises(BadHello) as raised:
            read_offer(hello(**refused), permits)
        assert raised.value.forbidden


@pytest.mark.parametrize("text", ["", "ctp", "CTP:quote", "ctp:ticks", "ctp:quote:XX", "ctp:quote:SH:1", "ctp:"])
def test_a_setting_that_is_malformed_is_told(text: str) -> None:
    with pytest.raises(ConfigError):
        read_permits([text])


def route(topic: str) -> Route:
    return Route(topic, parse_topic(topic))  # type: ignore[arg-type]


def test_the_newest_of_each_code_waits() -> None:
    waiting, market, tick = Conflation(), route("whole/SH/"), route("quote/600519.SH/tick/")
    assert waiting.put(market, {"600000.SH": {"a": 1}, "600001.SH": {"a": 1}}, 1) == 0
    assert waiting.put(tick, {"600519.SH": [{"a": 1}]}, 2) == 0
    assert waiting.put(market, {"600000.SH": {"a": 2}}, 3) == 1
    assert waiting.put(tick, {"600519.SH": [{"a": 2}]}, 4) == 1
    assert {each.topic: encode(each.body) for each in waiting.take(10)} == {
        "whole/SH/": b'{"600000.SH":{"a":2},"600001.SH":{"a":1}}',
        "quote/600519.SH/tick/": b'{"600519.SH":[{"a":2}]}',
    }
    assert (waiting.size, len(waiting)) == (0, 0)


def test_values_of_other_bars_wait_beside_each_other() -> None:
    waiting, values = Conflation(), route(FORMULA)

    def put(times: list[int], names: list[str]) -> int:
        body = values.body({"timelist": times, "outputs": {name: [1] for name in names}})
        return waiting.put(values, body, 1)

    assert [put([1], ["MA1"]), put([2], ["MA1"]), put([1], ["MA2"]), put([1], ["MA1"])] == [0, 0, 0, 1]
    assert len(waiting) == 3


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 300), st.booleans()), max_size=100))
def test_the_size_is_that_of_what_waits(steps: list[tuple[int, int, bool]]) -> None:
    waiting = Conflation()
    for number, length, takes in steps:
        each = route(f"quote/{number:06d}.SZ/tick/")
        waiting.put(each, {each.code: [{"x": "y" * length}]}, 1)
        if takes:
            list(waiting.take(3))
    assert waiting.size >= 0
    list(waiting.take(1000))
    assert waiting.size == 0


def test_parts_of_a_snapshot_are_put_together_in_place() -> None:
    topic = whole_topic("SH")
    connection: Any = SimpleNamespace(received_ns=1, line_bytes=50)
    entrance: Any = None
    standing, offer = Standing("desk", False, 0), Offer({Kind.WHOLE: None})
    pusher = Pusher(connection, standing, offer, entrance, {topic: parse_topic(topic)}, {}, has_history=False)
    put_together = []
    for code in ("600000.SH", "600519.SH"):
        record = decode(encode({"topic": {"kind": "whole", "code": "SH"}, "data": {code: {}}, "more": True}))
        assert isinstance(record, Record)
        assert pusher.take(record)
        put_together.append(pusher._snapshots[topic].ticks)
    # A copy for each part would cost the square of their number: 20,000 parts of one code each took 1.4 s.
    assert put_together[0] is put_together[1]
    assert list(put_together[0]) == ["600000.SH", "600519.SH"]
