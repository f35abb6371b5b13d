"""Lines, topics, offers and conflation of pushers. Pure."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feeder.push import pusher, snapshots
from feeder.push.conflation import Conflation
from feeder.push.lines import Budget, Lines
from feeder.push.message import BadLine, Hello, History
from feeder.push.offer import BadHello, Offer, read_offer, read_permits
from feeder.push.route import Route
from feeder.push.snapshots import Snapshots, Unfinished
from feeder.push.spoken import read_topic, spell
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.topics import FormulaSpec, Kind, Topic, formula_topic, parse_topic

FORMULA = formula_topic(FormulaSpec("MA", "600519.SH", params={"N1": 5, "名": "值"}))


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=30))
def test_lines_do_not_depend_on_how_bytes_come(data: bytes, sizes: list[int]) -> None:
    lines, found, rest = Lines(limit=8), [], data
    for size in sizes:
        found += lines.feed(rest[:size])
        rest = rest[size:]
    found += lines.feed(rest)
    assert found == [line if len(line) <= 8 else None for line in data.split(b"\n")[:-1]]
    assert len(lines._kept) <= 8


@given(st.binary(max_size=40), st.integers(0, 45))
def test_the_first_line_has_a_limit_of_its_own(data: bytes, place: int) -> None:
    lines, whole = Lines(limit=16, first_limit=4), b"hello\n1234\n" + data
    found = [*lines.feed(whole[:place]), *lines.feed(whole[place:])]
    assert found == [None, b"1234", *(line if len(line) <= 16 else None for line in data.split(b"\n")[:-1])]


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


def test_a_hello_shows_neither_key_nor_account() -> None:
    shown = repr(hello(key="a-key-of-the-tests", accounts=["1000000365"] * 200))
    assert "a-key" not in shown
    assert "1000000365" not in shown
    assert shown.startswith("kinds quote, accounts ******0365 ")
    assert len(shown) <= 500


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ctp:quote:", "expected markets such as SF+DF, or no colon for all of them"),
        ("ctp:trade:SH", "only formula l2 quote whole have markets, expected ctp:trade"),
        ("ctp:trade+download:SH+SZ", "only formula l2 quote whole have markets, expected ctp:trade+download"),
    ],
)
def test_markets_that_would_have_no_effect_are_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_permits(["desk:l2", text])
    assert str(raised.value) == f"pushers: '{text}': {told}"
    # Beside a kind with markets it has an effect.
    assert read_permits(["ctp:quote+trade:SH"])["ctp"].markets == {Kind.QUOTE: frozenset(("SH",)), Kind.TRADE: None}


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


# Of each allocation so many callers are known, of which one is in this file.
CALLERS = 6


def taken() -> int:
    """Return the bytes that were taken here since tracing began; threads of other tests take memory too."""
    gc.collect()
    ours = [tracemalloc.Filter(inclusive=True, filename_pattern=__file__, all_frames=True)]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)


@pytest.mark.parametrize(
    ("topic", "lines"),
    [
        ("quote/600519.SH/1m/", [[{"time": number} for number in range(4_000)]]),
        ("quote/600519.SH/1m/", [[{"time": f"{number:0500d}"} for number in range(2000)]]),
        ("whole/SH/", [{f"{number:06d}.SH": {} for number in range(4_000)}]),
        (FORMULA, [{"timelist": list(range(begin, begin + 5000))} for begin in range(20)]),
    ],
)
def test_the_size_is_at_least_the_memory_that_is_taken(topic: str, lines: list[Any]) -> None:
    waiting, each = Conflation(), route(topic)
    bodies = [encode(each.body(data)) for data in lines]
    # What an empty one takes is not counted.
    waiting.put(route("quote/600519.SH/tick/"), {"600519.SH": [{}]}, 1)
    count = 1
    tracemalloc.start(CALLERS)
    try:
        for encoded in bodies:
            # As it comes: each record is an object of its own, and so is its time.
            body = msgspec.json.decode(encoded)
            waiting.put(each, body, 1)
            count += each.count(body)
        del body
        memory = taken()
    finally:
        tracemalloc.stop()
    assert len(waiting) == count
    assert memory <= waiting.size <= 3 * memory


def test_tiny_records_have_room_by_their_number() -> None:
    waiting, market = Conflation(limit=100_000), route("whole/SH/")
    assert waiting.has_room(100)
    assert not waiting.has_room(300)
    waiting.put(market, {f"{number:06d}.SH": {} for number in range(100)}, 1)
    assert waiting.has_room(50)
    assert not waiting.has_room(150)


def test_a_snapshot_is_that_of_all_its_parts() -> None:
    found, market, other = Snapshots(Unfinished()), Topic("whole/SH/"), Topic("whole/SZ/")
    assert found.add(market, {"600000.SH": {"a": 1}, "600001.SH": {"a": 1}}, 10)
    assert found.add(other, {"000001.SZ": {"a": 1}}, 10)
    assert found.add(market, {"600001.SH": {"a": 2}}, 10)
    assert encode(found.take(market)) == b'{"600000.SH":{"a":1},"600001.SH":{"a":2}}'
    assert found.take(market) == {}
    nested: list[Any] = []
    for _ in range(1000):
        nested = [nested]
    with pytest.raises(BadLine):
        found.add(other, {"000001.SZ": {"a": 2}, "000002.SZ": {"a": nested}}, 10)
    assert encode(found.take(other)) == b'{"000001.SZ":{"a":1}}'


def test_snapshots_have_a_bound_each_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", 100)
    monkeypatch.setattr(snapshots, "SNAPSHOTS_BYTES", 150)
    monkeypatch.setattr(snapshots, "_OVERHEAD", 0)
    found, one, other = Snapshots(Unfinished()), Topic("whole/SH/"), Topic("whole/SZ/")
    assert found.add(one, {"600000.SH": {}}, 100)
    assert found.add(other, {"000001.SZ": {}}, 50)
    assert not found.add(other, {"000001.SZ": {}}, 1)
    assert found.take(other) == {}
    # What was forgotten counts no more.
    assert found.add(other, {"000001.SZ": {}}, 50)
    assert not found.add(one, {"600000.SH": {}}, 1)
    assert found.add(other, {"000001.SZ": {}}, 50)


def test_snapshots_of_all_pushers_have_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "ALL_BYTES", 1000)
    unfinished, topic, ticks = Unfinished(), Topic("whole/SH/"), {"600000.SH": {}}
    first, second, third = (Snapshots(unfinished) for _ in range(3))
    assert first.add(topic, ticks, 200)
    assert second.add(topic, ticks, 200)
    assert not third.add(topic, ticks, 1)
    assert third.take(topic) == {}
    assert encode(first.take(topic)) == b'{"600000.SH":{}}'
    assert third.add(topic, ticks, 200)
    assert not first.add(topic, ticks, 1)
    # What has come before counts no more, nor does what a pusher had begun that has gone.
    assert not second.add(topic, ticks, 500)
    third.clear()
    assert unfinished.size == 0


def test_tiny_ticks_of_a_snapshot_count_their_memory() -> None:
    unfinished, topic = Unfinished(), Topic("whole/SH/")
    found = Snapshots(unfinished)
    tracemalloc.start(CALLERS)
    try:
        for begin in range(0, 4_000, 1000):
            line = encode({f"{number:06d}.SH": {} for number in range(begin, begin + 1000)})
            assert found.add(topic, msgspec.json.decode(line), len(line))
        memory = taken()
    finally:
        tracemalloc.stop()
    assert memory <= unfinished.size <= 2 * memory


def test_histories_have_a_bound_each_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # A body is {"1.SH":[{}]}.
    monkeypatch.setattr(pusher, "HISTORY_BYTES", 3 * 13)
    monkeypatch.setattr(pusher, "HISTORIES_BYTES", 5 * 13)

    def add(count: int, others: int = 0) -> bool:
        return pusher.Asked("1.SH", 0, 0.0).add(History(1, [{}] * count), others)

    assert add(3)
    assert add(2, 3 * 13)
    for count, others in ((4, 0), (3, 3 * 13)):
        with pytest.raises(BadLine) as raised:
            add(count, others)
        assert raised.value.code == "too_long"


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
