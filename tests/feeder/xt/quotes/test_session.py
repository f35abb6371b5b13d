"""XtQuote through xtquant's real Python layer, over the stand-ins for its native modules."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import msgspec
import native
import pytest

from feeder.source import DownloadRequest, FeedState
from feeder.xt import normalize, sdk
from feeder.xt.quotes import intervals, newest, splice
from feeder.xt.quotes.last_values import LastValues
from feeder.xt.quotes.session import XtQuote
from feeder.xt.quotes.subscriptions import Subscriptions
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, ErrorCode, Refused
from qmt_bridge.wire.topics import (
    FormulaSpec,
    Kind,
    Topic,
    TopicParts,
    download_topic,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    whole_topic,
)
from tests.support.paths import FAKES, ROOT
from tests.support.sink import Recording, encoded
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS
# BSON has a type for times; a published body has no such type.
UNFIT = datetime(2026, 1, 5, tzinfo=UTC)

MOUTAI = quote_topic("600519.SH")
MOUTAI_BARS = quote_topic("600519.SH", "1m")
PINGAN_DEPTH = l2_topic("000001.SZ", 20)
SHANGHAI = whole_topic("SH")
MA = FormulaSpec("MA", "000001.SZ", "1d", 100, "front", {"n": 5})
FORMULA = formula_topic(MA)
CROWD = tuple(quote_topic(f"60000{number}.SH") for number in range(5))
CROWD_LAST = CROWD[4]
EVERY_KIND = (MOUTAI, MOUTAI_BARS, PINGAN_DEPTH, SHANGHAI, FORMULA)
NATIVE_OF_EVERY_KIND = [
    ("formula", "MA", "000001.SZ"),
    ("quote", "000001.SZ", "l2thousand"),
    ("quote", "600519.SH", "1m"),
    ("quote", "600519.SH", "tick"),
    ("whole", "SH", ""),
]


class Recorder(Recording):
    """A Sink that keeps what it is told, encoded by an encoder that knows no type of xtquant's."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[tuple[Topic, object, int]] = []
        self.accepted: list[Topic] = []
        self.refused: list[tuple[Topic, ErrorCode, str]] = []
        self.states: list[tuple[FeedState, str | None, bool]] = []
        # Called in `publish` and `accept`, outside the lock.
        self.on_publish: Callable[[], object] = int
        self.on_accept: Callable[[], object] = int

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        plain = encoded(body)
        self.on_publish()
        self.note(self.published, (topic, plain, received_ns))

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        self.publish(topic, ticks, received_ns)

    def accept(self, topic: Topic) -> None:
        self.note(self.accepted, topic)
        self.on_accept()

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        self.note(self.refused, (topic, code, reason))

    def set_state(self, state: FeedState, reason: str | None = None, *, data_lost: bool = False) -> None:
        self.note(self.states, (state, reason, data_lost))

    def bodies(self, topic: Topic) -> list:
        return [body for of, body, _ in list(self.published) if of == topic]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(intervals, "RETRY_LAST", 0.05)
    monkeypatch.setattr(intervals, "WATCH_SECONDS", 0.02)
    # No requests for the newest tick, so that a test sees only what the terminal pushes by itself.
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 3600.0)
    with native.installed() as terminal:
        yield terminal
        assert terminal.escaped == []


@pytest.fixture
def sink() -> Recorder:
    return Recorder()


@pytest.fixture
def source(terminal: native.Terminal) -> Iterator[XtQuote]:
    source = XtQuote(Config())
    try:
        yield source
    finally:
        terminal.gate.set()
        source.close()


def want(source: XtQuote, *topics: Topic) -> None:
    for topic in topics:
        source.subscribe(topic, parse_topic(topic))


def leave(source: XtQuote, *topics: Topic) -> None:
    for topic in topics:
        source.unsubscribe(topic, parse_topic(topic))


def begin(source: XtQuote, sink: Recorder, *topics: Topic) -> None:
    """Start, and wait until the topics are held and the state is up."""
    want(source, *topics)
    source.start(sink)
    sink.until(lambda: set(topics) <= set(sink.accepted) and sink.states)


# -- Published data


def test_a_tick_is_published_as_it_came(terminal: native.Terminal, source: XtQuote, sink: Recorder) -> None:
    begin(source, sink, MOUTAI)
    tick = {**native.tick("600519.SH", 1), "pe": 1.5, "不认识": "x"}
    before = time.time_ns()
    terminal.push_quote("600519.SH", "tick", tick)
    sink.until(lambda: sink.published)
    topic, body, received_ns = sink.published[0]
    assert topic == MOUTAI
    assert body == {"600519.SH": [tick]}
    assert before <= received_ns <= time.time_ns()


def test_every_kind_is_subscribed_with_the_real_signature(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, *EVERY_KIND, l2_topic("600000.SH", 0))
    extent = {"startTime": "", "endTime": "", "count": 0}
    pushed = {"needCallback": True}
    gears = {"thousandDetailGear": 0, "thousandDetailNum": 0}
    assert terminal.called("subscribe_quote") == [
        ("600519.SH", "tick", extent, pushed),
        ("600519.SH", "1m", extent, pushed),
        ("000001.SZ", "l2thousand", {"thousandGearNum": 20, **gears}, pushed),
        ("600000.SH", "l2thousand", {"thousandGearNum": None, **gears}, pushed),
    ]
    assert terminal.called("subscribe_whole_quote") == [(("SH",), pushed)]
    [(_, request)] = terminal.called("subscribeFormula")
    assert request == {
        "formulaname": "MA",
        "stockcode": "000001.SZ",
        "period": "1d",
        "starttime": "",
        "endtime": "",
        "count": 100,
        "dividendtype": "front",
        "extendparam": {"MA:n": 5},
        "create": True,
        "historycallback": 1,
        "realtimecallback": 1,
        "barmode": 0,
    }
    assert source.upstream() == len(terminal.feeds()) == 6


def test_formula_parameters_read_by_xtdata_keep_their_full_name(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, formula_topic(FormulaSpec("MA", "000001.SZ", params={"barmode": 1, "SUB:n": 2, "n": 3})))
    [(_, request)] = terminal.called("subscribeFormula")
    assert request["extendparam"] == {"barmode": 1, "SUB:n": 2, "MA:n": 3}
    assert request["barmode"] == 1


def test_bars_depth_and_formula_values_are_published(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, *EVERY_KIND)
    bar = native.record("600519.SH", "1m", 1)
    depth = native.record("000001.SZ", "l2thousand", 1)
    values = native.formula(1)
    terminal.push_quote("600519.SH", "1m", bar)
    terminal.push_quote("000001.SZ", "l2thousand", depth)
    terminal.push_formula("MA", "000001.SZ", values)
    sink.until(lambda: len(sink.published) == 3)
    assert sink.bodies(MOUTAI_BARS) == [{"600519.SH": [bar]}]
    assert sink.bodies(PINGAN_DEPTH) == [{"000001.SZ": [depth]}]
    assert sink.bodies(FORMULA) == [{"formula_name": "MA", "stock_code": "000001.SZ", "data": values}]


def test_a_market_begins_with_its_whole_snapshot(terminal: native.Terminal, source: XtQuote, sink: Recorder) -> None:
    codes = [f"{600000 + number}.SH" for number in range(2000)]
    terminal.market = {code: {"time": 1733118954000, "lastPrice": 1.5} for code in (*codes, "000001.SZ")}
    begin(source, sink, SHANGHAI, whole_topic("000001.SZ"))
    sink.until(lambda: len(sink.published) == 2)
    assert list(sink.bodies(SHANGHAI)[0]) == codes
    assert list(sink.bodies(whole_topic("000001.SZ"))[0]) == ["000001.SZ"]
    terminal.push_whole({codes[7]: {"time": 1733118957000, "lastPrice": 2.5}})
    sink.until(lambda: len(sink.published) == 3)
    assert sink.bodies(SHANGHAI)[1] == {codes[7]: {"time": 1733118957000, "lastPrice": 2.5}}


@pytest.mark.parametrize("undecoded", [False, True], ids=["bson", "undecoded"])
@pytest.mark.parametrize("wide_ints", [False, True], ids=["int32", "int64"])
def test_integers_of_any_width_and_nan_are_published(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, undecoded: bool, wide_ints: bool
) -> None:
    terminal.undecoded, terminal.wide_ints = undecoded, wide_ints
    terminal.market = {"600519.SH": native.tick("600519.SH", 0)}
    begin(source, sink, MOUTAI, SHANGHAI)
    terminal.push_quote("600519.SH", "tick", native.tick("600519.SH", 0))
    sink.until(lambda: len(sink.published) == 2)
    for tick in (sink.bodies(MOUTAI)[0]["600519.SH"][0], sink.bodies(SHANGHAI)[0]["600519.SH"]):
        assert (tick["time"], tick["volume"], tick["askVol"][0]) == (1733118954000, 758613, 10929)
        assert math.isnan(tick["pe"])


def test_callbacks_of_eight_codes_do_not_wait_for_each_other(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.dispatchers = 8
    codes = [f"{600000 + number}.SH" for number in range(8)]
    # The barrier opens only when eight callbacks are inside publish at the same time.
    together = threading.Barrier(8)
    sink.on_publish = lambda: together.wait(SECONDS)
    begin(source, sink, *(quote_topic(code) for code in codes))
    for code in codes:
        terminal.push_quote(code, "tick", {"time": 1})
    sink.until(lambda: len(sink.published) == 8)


def test_eight_callbacks_at_once_lose_no_print_and_reorder_no_tick(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.dispatchers = 8
    codes = [f"{600000 + number}.SH" for number in range(8)]
    prints = [quote_topic(code, "l2transaction") for code in codes]
    begin(source, sink, *(quote_topic(code) for code in codes), *prints)
    for number in range(1, 41):
        for code in codes:
            terminal.push_quote(code, "tick", {"time": number})
            terminal.push_quote(code, "l2transaction", {"time": number})
    sink.until(lambda: len(sink.published) + source.overtaken == 640)
    for code, topic in zip(codes, prints, strict=True):
        times = [body[code][0]["time"] for body in sink.bodies(quote_topic(code))]
        assert times[-1] == 40
        assert all(later > earlier for earlier, later in pairwise(times))
        assert sorted(body[code][0]["time"] for body in sink.bodies(topic)) == list(range(1, 41))


class Slow:
    """Block the callbacks whose payload has a given code, after they were entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        self.code = code
        self.entered = threading.Event()
        self.go = threading.Event()
        for name in ("whole", "quote", "document"):
            monkeypatch.setattr(normalize, name, partial(self._wait, getattr(normalize, name)))

    def _wait(self, convert: Callable[..., object], payload: dict, *unfit: object) -> object:
        if self.code in payload:
            self.entered.set()
            assert self.go.wait(SECONDS)
        return convert(payload, *unfit)


def test_an_older_tick_in_a_big_push_does_not_follow_a_newer_one(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.dispatchers = 8
    begin(crowded, sink, SHANGHAI, *CROWD)
    slow = Slow(monkeypatch, "600009.SH")
    codes = [f"60000{number}.SH" for number in range(10)]
    terminal.push_whole({code: {"time": 1, "volume": 1} for code in codes})
    assert slow.entered.wait(SECONDS)
    terminal.push_whole({"600004.SH": {"time": 2, "volume": 2}})
    sink.until(lambda: len(sink.published) == 2)
    slow.go.set()
    sink.until(lambda: len(sink.published) == 5)
    # The other codes come, but not this one: neither in the market nor in the topic that is served from it.
    assert [set(body) for body in sink.bodies(SHANGHAI)] == [{"600004.SH"}, set(codes) - {"600004.SH"}]
    assert sink.bodies(CROWD[4]) == [{"600004.SH": [{"time": 2, "volume": 2}]}]
    assert len(sink.bodies(CROWD[3])) == len(sink.bodies(CROWD[2])) == 1
    assert crowded.overtaken == 1
    # A topic that begins now also gets the newer tick.
    leave(crowded, SHANGHAI)
    want(crowded, SHANGHAI)
    sink.until(lambda: len(sink.bodies(SHANGHAI)) == 3)
    assert sink.bodies(SHANGHAI)[2]["600004.SH"] == {"time": 2, "volume": 2}


@pytest.mark.parametrize(
    ("topic", "older", "newer", "passes"),
    [
        pytest.param(MOUTAI, {"time": 1}, {"time": 2}, False, id="tick"),
        pytest.param(MOUTAI, {"time": 2, "volume": 1}, {"time": 2, "volume": 2}, False, id="tick-of-the-same-time"),
        pytest.param(MOUTAI, {"lastPrice": 1.0}, {"lastPrice": 2.0}, False, id="tick-without-time"),
        pytest.param(l2_topic("600519.SH", 0), {"time": 1}, {"time": 2}, False, id="depth"),
        pytest.param(quote_topic("600519.SH", "l2quote"), {"time": 1}, {"time": 2}, False, id="l2quote"),
        pytest.param(MOUTAI_BARS, {"time": 1, "volume": 1}, {"time": 1, "volume": 2}, False, id="bar"),
        pytest.param(MOUTAI_BARS, {"time": 1, "volume": 9}, {"time": 2, "volume": 2}, True, id="bar-before"),
        pytest.param(quote_topic("600519.SH", "l2order"), {"time": 1}, {"time": 2}, True, id="order"),
        pytest.param(quote_topic("600519.SH", "l2transaction"), {"time": 1}, {"time": 2}, True, id="print"),
    ],
)
def test_an_older_record_never_follows_a_newer_one(
    terminal: native.Terminal,
    source: XtQuote,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    topic: Topic,
    older: dict,
    newer: dict,
    passes: bool,
) -> None:
    terminal.dispatchers = 2
    begin(source, sink, topic)
    slow = Slow(monkeypatch, "late")
    [feed] = terminal.feeds()
    assert feed.callback is not None
    # The code "late" has a record that cannot be read, so that `Slow` recognises this push.
    terminal.dispatch(feed.callback, {"600519.SH": [older], "late": [7]})
    assert slow.entered.wait(SECONDS)
    terminal.dispatch(feed.callback, {"600519.SH": [newer]})
    sink.until(lambda: len(sink.published) == 1)
    slow.go.set()
    sink.until(lambda: len(sink.published) + source.overtaken == 2)
    assert [body["600519.SH"] for body in sink.bodies(topic)] == [[newer]] + [[older]] * passes


@pytest.mark.parametrize("topic", [MOUTAI, SHANGHAI, CROWD_LAST, FORMULA])
def test_a_newer_record_waits_until_the_older_is_published(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, topic: Topic
) -> None:
    terminal.dispatchers = 2
    begin(crowded, sink, *((*CROWD[:2], topic) if topic == CROWD_LAST else (topic,)))
    inside, go, numbers = threading.Event(), threading.Event(), count(1)

    def hold_up() -> None:
        if next(numbers) == 1:
            inside.set()
            assert go.wait(SECONDS)

    sink.on_publish = hold_up

    def push(number: int) -> None:
        tick = {"time": number, "volume": number}
        terminal.push_whole({"600004.SH": tick})
        terminal.push_quote("600519.SH", "tick", tick)
        terminal.push_formula("MA", "000001.SZ", {"timelist": [1], "outputs": {"n": [number]}})

    push(1)
    assert inside.wait(SECONDS)
    push(2)
    # Give the newer record time to come first, which it would if it did not wait.
    with sink.changed:
        sink.changed.wait_for(lambda: sink.published, 0.2)
    go.set()
    sink.until(lambda: len(sink.published) == 2)
    assert [re.findall(r"[12](?=[}\]])", str(body))[-1] for body in sink.bodies(topic)] == ["1", "2"]


def test_a_big_push_never_hides_the_newer_tick_of_another_thread(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.dispatchers = 8
    codes = [f"{600000 + number}.SH" for number in range(1500)]
    begin(source, sink, SHANGHAI)
    for number in range(1, 21):
        terminal.push_whole({code: {"time": 2 * number, "volume": number} for code in codes})
        terminal.push_whole({codes[-1]: {"time": 2 * number + 1, "volume": number}})
    sink.until(lambda: sum(map(len, sink.bodies(SHANGHAI))) + source.overtaken == 20 * 1501)
    for code in (codes[0], codes[-1]):
        times = [body[code]["time"] for body in sink.bodies(SHANGHAI) if code in body]
        assert all(later > earlier for earlier, later in pairwise(times))
        assert times[-1] == 40 + (code == codes[-1])


def test_a_clock_set_back_for_good_is_followed_after_a_while(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(source, sink, MOUTAI)
    for seconds in (100, 40):
        terminal.push_quote("600519.SH", "tick", {"time": seconds})
    sink.until(lambda: source.overtaken == 1)
    with monkeypatch.context() as later:
        later.setattr(newest, "SETTLE_NS", 0)
        terminal.push_quote("600519.SH", "tick", {"time": 43})
        sink.until(lambda: len(sink.published) == 2)
    for seconds in (46, 45):
        terminal.push_quote("600519.SH", "tick", {"time": seconds})
    sink.until(lambda: source.overtaken == 2)
    assert [body["600519.SH"][0]["time"] for body in sink.bodies(MOUTAI)] == [100, 43, 46]


def test_an_unpublishable_payload_is_logged_once_and_the_next_passes(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    begin(source, sink, MOUTAI)
    for record in ({"time": UNFIT}, {"time": UNFIT}, {"time": 1}, {"time": UNFIT}, {"time": 2}):
        terminal.push_quote("600519.SH", "tick", record)
    sink.until(lambda: len(sink.published) == 2)
    assert [body["600519.SH"][0]["time"] for body in sink.bodies(MOUTAI)] == [1, 2]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert source.failed == 3
    assert errors[0].getMessage() == (
        "data of subscribe_quote(stock_code='600519.SH', period='tick', count=0) cannot be published"
    )
    assert errors[0].exc_info is not None
    assert "payload['600519.SH'][0]['time'] is datetime.datetime" in str(errors[0].exc_info[1])


def test_an_unfit_value_drops_only_its_own_code(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    begin(source, sink, MOUTAI, SHANGHAI)
    terminal.push_whole({"600000.SH": {"time": 1}, "600519.SH": {"time": UNFIT}, "601318.SH": {"time": 3}})
    terminal.push_quote("600519.SH", "tick", {"time": UNFIT}, {"time": 4}, {"time": UNFIT})
    sink.until(lambda: len(sink.published) == 2)
    assert sink.bodies(SHANGHAI) == [{"600000.SH": {"time": 1}, "601318.SH": {"time": 3}}]
    assert sink.bodies(MOUTAI) == [{"600519.SH": [{"time": 4}]}]
    assert source.failed == 3
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


@pytest.mark.parametrize("topic", [MOUTAI, SHANGHAI, FORMULA])
def test_a_payload_xtquant_cannot_decode_is_counted_logged_once(
    terminal: native.Terminal,
    source: XtQuote,
    sink: Recorder,
    topic: Topic,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begin(source, sink, topic)
    [feed] = terminal.feeds()
    assert feed.callback is not None
    # GBK text, which is not UTF-8.
    broken = native.encode({"name": "xx"}).replace(b"xx", b"\xb9\xf3")
    for _ in range(3):
        terminal._pushes.put((feed.callback, broken))
    terminal.dispatch(feed.callback, {"600519.SH": [{"time": 1}]})
    sink.until(lambda: sink.published)
    assert source.failed == 3
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.exc_info is not None
    assert error.exc_info[0] is not None
    assert error.exc_info[0].__name__ == "InvalidBSON"


def test_a_push_without_records_publishes_no_message(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, MOUTAI)
    [feed] = terminal.feeds()
    assert feed.callback is not None
    terminal.dispatch(feed.callback, {})
    terminal.push_quote("600519.SH", "tick")
    terminal.push_quote("600519.SH", "tick", {"time": 1})
    sink.until(lambda: sink.published)
    assert sink.bodies(MOUTAI) == [{"600519.SH": [{"time": 1}]}]


# -- Refusals


def test_a_refused_topic_is_reported_and_the_others_are_served(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.refused = {"999999.SH", "SZ"}
    terminal.failing = {"888888.SH", "RSI"}
    broken_formula = formula_topic(FormulaSpec("RSI", "600519.SH"))
    begin(source, sink, MOUTAI)
    refused = (quote_topic("999999.SH"), whole_topic("SZ"), quote_topic("888888.SH"), broken_formula)
    want(source, *refused, SHANGHAI)
    sink.until(lambda: SHANGHAI in sink.accepted)
    assert sink.accepted == [MOUTAI, SHANGHAI]
    assert [topic for topic, _, _ in sink.refused] == list(refused)
    assert {code for _, code, _ in sink.refused} == {"upstream_refused"}
    reasons = [reason for _, _, reason in sink.refused]
    assert reasons[0] == "subscribe_quote(stock_code='999999.SH', period='tick', count=0) returned -1"
    assert reasons[1] == "subscribe_whole_quote(code_list=['SZ']) returned -1"
    assert "raised RuntimeError: rpc request failed" in reasons[2]
    assert reasons[3].startswith("subscribe_formula(formula_name='RSI'")
    assert [state for state, _, _ in sink.states] == ["up"]
    # A refused topic is not unsubscribed: -1 may be the number of another subscription.
    leave(source, *refused)
    want(source, PINGAN_DEPTH)
    sink.until(lambda: PINGAN_DEPTH in sink.accepted)
    assert terminal.called("unsubscribe_quote") == terminal.called("unsubscribeFormula") == []


def formulas(count: int) -> list[Topic]:
    return [formula_topic(msgspec.structs.replace(MA, count=number)) for number in range(1, count + 1)]


def test_new_formulas_delay_no_other_topic(terminal: native.Terminal, source: XtQuote, sink: Recorder) -> None:
    begin(source, sink, MOUTAI)
    terminal.call_delay = 0.005
    crowd = formulas(100)
    want(source, *crowd, MOUTAI_BARS, SHANGHAI)
    sink.until(lambda: {MOUTAI_BARS, SHANGHAI, *crowd} <= set(sink.accepted))
    assert max(sink.accepted.index(topic) for topic in (MOUTAI_BARS, SHANGHAI)) < len(crowd) // 2


def test_formulas_are_limited_and_an_ended_one_makes_room(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "MAX_FORMULAS", 2)
    monkeypatch.setattr(intervals, "REFUSED_SECONDS", 0.05)
    first, second, third = formulas(3)
    begin(source, sink, first, second)
    want(source, third)
    sink.until(lambda: sink.refused)
    assert sink.refused[0][:2] == (third, "symbol_limit")
    assert len(terminal.called("subscribeFormula")) == 2
    leave(source, first)
    # The third formula is retried without a new request.
    sink.until(lambda: third in sink.accepted)
    assert sorted(kind for kind, *_ in terminal.subscriptions()) == ["formula", "formula"]


def test_formulas_keep_their_place_in_the_next_session(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "MAX_FORMULAS", 2)
    begin(source, sink, *formulas(2))
    terminal.drop()
    terminal.open()
    sink.until(lambda: len(sink.accepted) == 4)
    assert not sink.refused


def test_a_formula_dropped_while_waiting_is_not_subscribed(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, MOUTAI)
    terminal.call_delay = 0.05
    crowd = formulas(4)
    want(source, *crowd)
    leave(source, crowd[3])
    sink.until(lambda: set(crowd[:3]) <= set(sink.accepted))
    want(source, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)
    assert len(terminal.called("subscribeFormula")) == 3


def test_a_refused_topic_is_retried_on_a_new_subscription(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.refused = {"600519.SH"}
    want(source, MOUTAI)
    source.start(sink)
    sink.until(lambda: sink.refused)
    terminal.refused = set()
    want(source, MOUTAI)
    sink.until(lambda: sink.accepted)
    assert terminal.subscriptions() == [("quote", "600519.SH", "tick")]


def test_a_refused_topic_is_retried_in_the_next_session(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.refused = {"600519.SH"}
    want(source, MOUTAI)
    source.start(sink)
    sink.until(lambda: sink.refused and sink.states)
    terminal.refused = set()
    terminal.drop()
    terminal.open()
    sink.until(lambda: sink.accepted)
    assert terminal.subscriptions() == [("quote", "600519.SH", "tick")]


def test_a_refused_topic_is_retried_after_a_while(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "REFUSED_SECONDS", 0.02)
    terminal.refused = {"600519.SH"}
    begin(source, sink, PINGAN_DEPTH)
    want(source, MOUTAI)
    sink.until(lambda: len(sink.refused) >= 3)
    terminal.refused = set()
    sink.until(lambda: MOUTAI in sink.accepted)
    assert terminal.subscriptions() == [("quote", "000001.SZ", "l2thousand"), ("quote", "600519.SH", "tick")]


def test_broker_queues_are_refused_without_broker_names(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    queues = quote_topic("00700.HK", "brokerqueue2")
    want(source, queues)
    source.start(sink)
    sink.until(lambda: sink.refused)
    assert sink.refused[0][0] == queues
    terminal.controls["getdatafilepath"] = lambda _: {"result": {"XXXXXX.HK": "brokers"}}
    terminal.files["brokers"] = [{"0": "汇丰", "1": [7]}]
    want(source, queues)
    sink.until(lambda: sink.accepted)
    calls = len(terminal.calls)
    terminal.push_quote(
        "00700.HK", "brokerqueue2", {"bidbrokerqueues": [{"brokers": [7, 8]}], "askbrokerqueues": [{"brokers": []}]}
    )
    sink.until(lambda: sink.published)
    [record] = sink.bodies(queues)[0]["00700.HK"]
    assert record["bidbrokerqueues"] == [{"brokers": [[7, "汇丰"], [8, ""]]}]
    assert [call.name for call in terminal.calls[calls:]] == []


# -- The end of a topic


def test_an_ended_topic_is_unsubscribed_and_late_callbacks_ignored(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, *EVERY_KIND)
    late = [feed for feed in terminal.feeds() if feed.kind in ("quote", "whole")]
    leave(source, *EVERY_KIND)
    sink.until(lambda: terminal.subscriptions() == [] and source.upstream() == 0)
    assert len(terminal.called("unsubscribe_quote")) == 4
    assert len(terminal.called("unsubscribeFormula")) == 1
    for feed in late:
        assert feed.callback is not None
        terminal.dispatch(feed.callback, {"600519.SH": {"time": 1}})
    # This push is delivered after the late callbacks, so those have been handled.
    want(source, MOUTAI)
    sink.until(lambda: sink.accepted.count(MOUTAI) == 2)
    terminal.push_quote("600519.SH", "tick", {"time": 2})
    sink.until(lambda: sink.published)
    assert [(topic, body) for topic, body, _ in sink.published] == [(MOUTAI, {"600519.SH": [{"time": 2}]})]


def test_a_topic_wanted_only_for_a_moment_makes_no_native_call(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    first, left, last = quote_topic("600519.SH"), quote_topic("000001.SZ"), quote_topic("000002.SZ")
    release = threading.Event()
    sink.on_accept = lambda: release.wait(SECONDS)
    want(source, first)
    source.start(sink)
    sink.until(lambda: first in sink.accepted)
    want(source, left, last)
    leave(source, left)
    release.set()
    sink.until(lambda: last in sink.accepted)
    assert {code for _, code, _ in terminal.subscriptions()} == {"600519.SH", "000002.SZ"}
    assert left not in sink.accepted


def test_subscribing_twice_makes_one_native_subscription(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, MOUTAI, MOUTAI)
    want(source, MOUTAI, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)
    assert len(terminal.called("subscribe_quote")) == 2
    assert terminal.subscriptions() == [("quote", "600519.SH", "1m"), ("quote", "600519.SH", "tick")]


def test_unsubscribing_an_unknown_topic_does_nothing(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, MOUTAI)
    leave(source, SHANGHAI)
    want(source, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)
    assert terminal.called("unsubscribe_quote") == []


# -- More ticks than single subscriptions


@pytest.fixture
def crowded(terminal: native.Terminal) -> Iterator[XtQuote]:
    source = XtQuote(Config(xt_single_limit=2, xt_silence=0.0))
    try:
        yield source
    finally:
        source.close()


def test_ticks_beyond_the_limit_come_from_the_whole_market(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    begin(crowded, sink, *CROWD, quote_topic("000001.SZ"), quote_topic("600000.SH", "1m"))
    assert terminal.subscriptions() == [
        ("quote", "600000.SH", "1m"),
        ("quote", "600000.SH", "tick"),
        ("quote", "600001.SH", "tick"),
        ("whole", "SH", ""),
        ("whole", "SZ", ""),
    ]
    assert crowded.upstream() == 5
    # The body has the shape of a quote, and only subscribed codes are published.
    terminal.push_whole({"600002.SH": {"time": 2}, "600003.SH": {"time": 3}, "600008.SH": {"time": 8}})
    sink.until(lambda: len(sink.published) == 2)
    assert sink.bodies(CROWD[2]) == [{"600002.SH": [{"time": 2}]}]
    assert sink.bodies(CROWD[3]) == [{"600003.SH": [{"time": 3}]}]


def test_a_market_subscribed_after_its_single_ticks_has_a_snapshot(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    terminal.market = {"600004.SH": {"time": 3}, "600009.SH": {"time": 9}}
    begin(crowded, sink, *CROWD)
    sink.until(lambda: sink.bodies(CROWD[4]))
    terminal.push_whole({"600004.SH": {"time": 4}})
    sink.until(lambda: len(sink.bodies(CROWD[4])) == 2)
    want(crowded, SHANGHAI)
    sink.until(lambda: SHANGHAI in sink.accepted)
    # The snapshot is as new as the single ticks, which are not published again.
    assert sink.bodies(SHANGHAI) == [{"600004.SH": {"time": 4}, "600009.SH": {"time": 9}}]
    terminal.push_whole({"600004.SH": {"time": 5}})
    sink.until(lambda: len(sink.published) == 5)
    assert sink.bodies(CROWD[4]) == [{"600004.SH": [{"time": time}]} for time in (3, 4, 5)]
    assert sink.bodies(SHANGHAI)[1:] == [{"600004.SH": {"time": 5}}]
    assert terminal.called("subscribe_whole_quote") == [(("SH",), {"needCallback": True})]
    # Each topic can end alone and be subscribed again; the native subscription ends with the last topic.
    leave(crowded, SHANGHAI, CROWD[2])
    want(crowded, SHANGHAI)
    sink.until(lambda: sink.accepted.count(SHANGHAI) == 2)
    assert sink.bodies(SHANGHAI)[2:] == [{"600004.SH": {"time": 5}, "600009.SH": {"time": 9}}]
    leave(crowded, SHANGHAI, CROWD[3])
    want(crowded, quote_topic("600000.SH", "1d"))
    sink.until(lambda: len(sink.accepted) == 8)
    terminal.push_whole({"600003.SH": {"time": 6}, "600004.SH": {"time": 6}})
    sink.until(lambda: len(sink.bodies(CROWD[4])) == 4)
    assert len(sink.published) == 7
    leave(crowded, CROWD[4])
    sink.until(lambda: ("whole", "SH", "") not in terminal.subscriptions())


def test_a_market_without_any_tick_sends_no_snapshot(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    begin(crowded, sink, *CROWD)
    want(crowded, SHANGHAI)
    sink.until(lambda: SHANGHAI in sink.accepted)
    assert sink.published == []


def test_the_limit_counts_from_zero_in_each_session(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    begin(crowded, sink, *CROWD)
    held = terminal.subscriptions()
    terminal.drop()
    terminal.open()
    sink.until(lambda: len(sink.states) == 3)
    assert terminal.subscriptions() == held
    assert held == [("quote", "600000.SH", "tick"), ("quote", "600001.SH", "tick"), ("whole", "SH", "")]


def test_a_place_that_becomes_free_is_used_again(terminal: native.Terminal, crowded: XtQuote, sink: Recorder) -> None:
    begin(crowded, sink, *CROWD[:2])
    leave(crowded, CROWD[0])
    want(crowded, CROWD[2])
    sink.until(lambda: CROWD[2] in sink.accepted)
    assert terminal.subscriptions() == [("quote", "600001.SH", "tick"), ("quote", "600002.SH", "tick")]


# -- The newest tick first


def test_a_topic_beyond_the_limit_begins_with_the_newest_tick(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    terminal.market = {f"60000{number}.SH": {"time": number} for number in range(5)}
    begin(crowded, sink, *CROWD[:3])
    sink.until(lambda: sink.bodies(CROWD[2]))
    want(crowded, CROWD[3])
    sink.until(lambda: CROWD[3] in sink.accepted)
    # The tick is published at once, without a new push of the terminal.
    assert sink.bodies(CROWD[3]) == [{"600003.SH": [{"time": 3}]}]
    terminal.push_whole({"600003.SH": {"time": 30}})
    sink.until(lambda: len(sink.bodies(CROWD[3])) == 2)
    # The same holds after the topic was unsubscribed and subscribed again.
    leave(crowded, CROWD[3])
    want(crowded, CROWD[3])
    sink.until(lambda: len(sink.bodies(CROWD[3])) == 3)
    assert [body["600003.SH"][0]["time"] for body in sink.bodies(CROWD[3])] == [3, 30, 30]
    assert terminal.called("get_full_tick") == []


@pytest.mark.parametrize("limit", [1, 50], ids=["out-of-the-market", "single"])
@pytest.mark.parametrize("pushes", [False, True], ids=["silent", "answers"])
def test_after_the_close_topics_begin_with_the_terminals_newest_tick(
    terminal: native.Terminal,
    sink: Recorder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    pushes: bool,
    limit: int,
) -> None:
    # The pushes of the terminal have to arrive before the time of the query.
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 3600.0 if pushes else 0.05)
    # The time is outside the trading hours.
    clock.ms += 10 * 3_600_000
    terminal.single_snapshot, terminal.snapshot_pieces = pushes, int(pushes)
    codes = [f"{600000 + number}.SH" for number in range(50)]
    topics = [*(quote_topic(code) for code in codes), whole_topic("600000.SH")]
    terminal.market = {code: native.tick(code, 1) for code in codes}
    source = XtQuote(Config(xt_single_limit=limit, xt_silence=30.0), clock)
    try:
        begin(source, sink, *topics)
        sink.until(lambda: len(sink.published) == len(topics))
        asked = [call[0] for call in terminal.called("get_full_tick")]
        assert all(len(codes) <= intervals.FIRST_CODES for codes in asked)
        assert bool(asked) is not pushes
        for topic in topics:
            [body] = sink.bodies(topic)
            [tick] = body.values()
            assert (tick[0] if isinstance(tick, list) else tick)["time"] == native.tick("", 1)["time"]
        # A later push of the same tick is not published twice.
        assert not any(feed.has_news or feed.had_news for feed in source._table.native.values()) or pushes
        for number in (1, 2):
            terminal.push_quote("600000.SH", "tick", native.tick("600000.SH", number))
            terminal.push_whole({"600000.SH": native.tick("600000.SH", number)})
        sink.until(lambda: len(sink.published) == len(topics) + 2 + 2 * pushes)
        assert [state for state, _, _ in sink.states] == ["up"]
    finally:
        source.close()


def test_a_terminal_without_ticks_is_queried_with_growing_pauses(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 0.01)
    pauses: list[float] = []
    wait_for = LastValues.wait_for

    def note(values: LastValues, topic: Topic, pause: float) -> None:
        pauses.append(pause)
        wait_for(values, topic, pause)

    monkeypatch.setattr(LastValues, "wait_for", note)
    terminal.knows_ticks = False
    terminal.market = {"600519.SH": {"time": 7}}
    begin(source, sink, MOUTAI, FORMULA, MOUTAI_BARS, SHANGHAI, PINGAN_DEPTH)
    sink.until(lambda: len(pauses) == 4)
    assert pauses == [0.01, 0.02, 0.04, 0.08]
    assert set(terminal.called("get_full_tick")) == {(("600519.SH",),)}
    terminal.knows_ticks = True
    sink.until(lambda: sink.bodies(MOUTAI))
    assert sink.bodies(MOUTAI) == [{"600519.SH": [native.full_tick({"time": 7})]}]
    asked = len(terminal.called("get_full_tick"))
    # No query is left to send, and none is sent for topics that have ended.
    assert source._values.waiting == []
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 0.5)
    want(source, quote_topic("600000.SH"))
    sink.until(lambda: quote_topic("600000.SH") in sink.accepted)
    leave(source, quote_topic("600000.SH"))
    sink.until(lambda: source._values.waiting == [])
    assert len(terminal.called("get_full_tick")) == asked


@pytest.mark.parametrize("topic", [MOUTAI, whole_topic("600519.SH")])
def test_a_push_of_an_already_queried_tick_is_not_published(
    terminal: native.Terminal, sink: Recorder, clock: Clock, monkeypatch: pytest.MonkeyPatch, topic: Topic
) -> None:
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 0.01)
    terminal.snapshot_pieces = 0
    asked_for = native.tick("600519.SH", 1) | {"amount": 862127801.37}
    terminal.market = {"600519.SH": asked_for}
    source = XtQuote(Config(xt_silence=30.0), clock)
    try:
        begin(source, sink, topic)
        sink.until(lambda: sink.published)
        [feed] = source._table.native.values()
        terminal.push_quote("600519.SH", "tick", asked_for)
        terminal.push_whole({"600519.SH": asked_for})
        sink.until(lambda: feed._first or feed.has_news)
        assert not feed.has_news
        assert not feed.had_news
        terminal.push_quote("600519.SH", "tick", native.tick("600519.SH", 2))
        terminal.push_whole({"600519.SH": native.tick("600519.SH", 2)})
        sink.until(lambda: len(sink.published) == 2)
    finally:
        source.close()
    ticks = [next(iter(body.values())) for body in sink.bodies(topic)]
    plain = [tick[0] if isinstance(tick, list) else tick for tick in ticks]
    assert ["timetag" in tick for tick in plain] == [True, False]
    assert [tick["volume"] for tick in plain] == [758614, 758615]


@pytest.mark.parametrize("answer", ["raises", "none", "odd"])
def test_an_invalid_answer_for_last_ticks_does_no_harm(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 0.01)
    terminal.market = {"600519.SH": {"none": None, "odd": 7}.get(answer)}  # type: ignore[dict-item]

    def fail(call: native.Call) -> None:
        if call.name == "get_full_tick" and answer == "raises":
            raise RuntimeError("no ticks today")

    terminal.on_call = fail
    begin(source, sink, MOUTAI)
    sink.until(lambda: len(terminal.called("get_full_tick")) > 2)
    terminal.push_quote("600519.SH", "tick", {"time": 1})
    sink.until(lambda: sink.published)
    assert sink.bodies(MOUTAI) == [{"600519.SH": [{"time": 1}]}]
    assert [state for state, _, _ in sink.states] == ["up"]


def test_a_tick_pushed_during_the_query_stays_the_newest(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "FIRST_SECONDS", 0.01)
    terminal.market = {"600519.SH": {"lastPrice": 1.0}}

    def push(call: native.Call) -> None:
        if call.name == "get_full_tick":
            terminal.push_quote("600519.SH", "tick", {"lastPrice": 2.0})
            sink.until(lambda: sink.published)

    terminal.on_call = push
    begin(source, sink, MOUTAI)
    sink.until(lambda: sink.published and not source._values.waiting)
    want(source, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)
    assert sink.bodies(MOUTAI) == [{"600519.SH": [{"lastPrice": 2.0}]}]


# -- The order of subscriptions


class Turns:
    """Note the topic of each native subscription; `at` has functions to call at the subscription of a topic."""

    def __init__(self, terminal: native.Terminal) -> None:
        self.codes: list[object] = []
        self.at: dict[object, Callable[[], object]] = {}
        terminal.on_call = self._note

    def _note(self, call: native.Call) -> None:
        if call.name == "subscribe_quote":
            self.codes.append(call.args[0])
            self.at.pop(call.args[0], int)()


MANY = [f"{600000 + number}.SH" for number in range(40)]


def test_a_new_subscription_is_made_before_refused_ones(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.refused = set(MANY)
    begin(source, sink, PINGAN_DEPTH)
    want(source, *map(quote_topic, MANY))
    sink.until(lambda: len(sink.refused) == len(MANY))
    turns = Turns(terminal)
    turns.at[MANY[3]] = lambda: (want(source, MOUTAI), leave(source, quote_topic(MANY[5])))
    monkeypatch.setattr(intervals, "REFUSED_SECONDS", 0.05)
    # The running session still uses the longer pause; the next one retries at once.
    terminal.drop()
    terminal.open()
    sink.until(lambda: len(turns.codes) >= len(MANY) + 1)
    again = turns.codes[: len(MANY) + 1]
    # The oldest comes first, and a topic that has ended meanwhile is not subscribed.
    assert again == ["000001.SZ", *MANY[:4], "600519.SH", MANY[4], *MANY[6:]]


def test_new_subscriptions_and_checks_run_while_a_session_begins(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    listener._single_limit = 100
    begin(listener, sink, *map(quote_topic, MANY))
    turns = Turns(terminal)
    turns.at[MANY[3]] = lambda: want(listener, MOUTAI)
    seen: list[int] = []
    # The calls are slow enough for a check between them.
    turns.at[MANY[10]] = lambda: (seen.append(clock.seconds), time.sleep(0.05))
    turns.at[MANY[12]] = lambda: seen.append(clock.seconds)
    clock.go()
    terminal.drop()
    terminal.open()
    # The market may be stale soon after that.
    sink.until(lambda: ("up", None, True) in sink.states and len(turns.codes) >= len(MANY) + 1)
    assert turns.codes[: len(MANY) + 1] == [*MANY[:4], "600519.SH", *MANY[4:]]
    assert seen[1] > seen[0]


def test_a_session_is_up_only_after_its_subscriptions(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    source._single_limit = 100
    begin(source, sink, *map(quote_topic, MANY))
    turns = Turns(terminal)
    turns.at[MANY[-1]] = lambda: seen.append(sink.states[-1])
    seen: list[object] = []
    terminal.drop()
    terminal.open()
    sink.until(lambda: sink.states[-1] == ("up", None, True))
    assert seen == [("down", "terminal_disconnected", False)]


def test_a_new_subscription_is_made_before_renewed_ones(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    terminal.market = {"600000.SH": {"time": TUESDAY_MORNING, "volume": 5, "openInt": 13}}
    listener._single_limit = 100
    begin(listener, sink, SHANGHAI, *map(quote_topic, MANY))
    turns = Turns(terminal)
    deafen(terminal, clock, "000001.SH")
    turns.at[MANY[3]] = lambda: want(listener, PINGAN_DEPTH)
    # Time stands still once they are renewed: another silence would renew them again.
    clock.go(until=lambda: turns.codes)
    sink.until(lambda: len(turns.codes) == len(MANY) + 1)
    assert turns.codes == [*MANY[:4], "000001.SZ", *MANY[4:]]
    # Each one is unsubscribed just before it is renewed, so that never all of them are missing at once.
    calls = [call.name for call in terminal.calls if "subscribe" in call.name]
    assert calls[-3:] == ["subscribe_quote", "unsubscribe_quote", "subscribe_quote"]


@pytest.mark.usefixtures("at_once")
def test_a_new_subscription_is_made_before_ticks_return_to_single(terminal: native.Terminal, sink: Recorder) -> None:
    source = XtQuote(Config(xt_single_limit=10, xt_silence=0.0))
    try:
        begin(source, sink, *map(quote_topic, MANY))
        turns = Turns(terminal)
        turns.at[MANY[13]] = lambda: want(source, PINGAN_DEPTH)
        leave(source, *map(quote_topic, MANY[:10]))
        sink.until(lambda: len(turns.codes) >= 6)
        assert turns.codes[:6] == [*MANY[10:14], "000001.SZ", MANY[14]]
    finally:
        source.close()


# -- Back to single subscriptions

BACK = [("quote", f"60000{number}.SH", "tick") for number in (1, 2)]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RETURN_SECONDS", 0.0)
    monkeypatch.setattr(splice, "OVERLAP", 0.0)


@pytest.mark.usefixtures("at_once")
def test_the_oldest_ticks_leave_their_market_first_if_there_is_room(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    begin(crowded, sink, *CROWD)
    held = [("quote", f"60000{number}.SH", "tick") for number in range(5)]
    for first in (1, 2):
        leave(crowded, CROWD[first - 1])
        sink.until(lambda first=first: terminal.subscriptions() == [*held[first : first + 2], ("whole", "SH", "")])
    leave(crowded, CROWD[2])
    sink.until(lambda: terminal.subscriptions() == held[3:5])
    sink.until(lambda: crowded.upstream() == 2)
    # No answer is sent again: each topic was served all the time.
    assert sink.accepted == list(CROWD)
    terminal.push_quote("600003.SH", "tick", {"time": 1})
    terminal.push_quote("600004.SH", "tick", {"time": 1})
    sink.until(lambda: len(sink.published) == 2)


@pytest.mark.usefixtures("at_once")
def test_bars_and_depth_make_room_and_a_wanted_market_stays(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    begin(crowded, sink, MOUTAI_BARS, PINGAN_DEPTH, SHANGHAI, *CROWD[:2])
    leave(crowded, MOUTAI_BARS, PINGAN_DEPTH)
    wanted = [("quote", "600000.SH", "tick"), ("quote", "600001.SH", "tick"), ("whole", "SH", "")]
    sink.until(lambda: terminal.subscriptions() == wanted)
    terminal.push_whole({"600000.SH": {"time": 1}})
    terminal.push_quote("600000.SH", "tick", {"time": 1})
    sink.until(lambda: len(sink.published) == 2)
    assert [topic for topic, _, _ in sink.published] == [SHANGHAI, CROWD[0]]


@pytest.mark.parametrize("first", ["market", "single"])
def test_the_switch_neither_loses_nor_repeats_a_tick(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(intervals, "RETURN_SECONDS", 0.0)
    monkeypatch.setattr(splice, "OVERLAP", 3600.0)
    topic = CROWD[2]

    def push(number: int, *, market: bool = True, single: bool = True) -> None:
        tick = native.tick("600002.SH", number)
        pushes = [
            (market, lambda: terminal.push_whole({"600002.SH": tick})),
            (single, lambda: terminal.push_quote("600002.SH", "tick", tick)),
        ]
        for wanted, send in pushes if first == "market" else reversed(pushes):
            if wanted:
                send()

    def times() -> list[int]:
        return [body["600002.SH"][0]["time"] for body in sink.bodies(topic)]

    begin(crowded, sink, *CROWD[:3])
    push(1)
    sink.until(lambda: len(times()) == 1)
    [market] = [feed for feed in terminal.feeds() if feed.kind == "whole"]
    leave(crowded, CROWD[0])
    sink.until(lambda: ("quote", "600002.SH", "tick") in terminal.subscriptions())
    # Both subscriptions bring this tick, one before the other.
    push(2)
    push(3)
    sink.until(lambda: len(times()) == 3)
    push(4, market=False)
    monkeypatch.setattr(splice, "OVERLAP", 0.0)
    sink.until(lambda: terminal.subscriptions() == BACK)
    # The market still brings ticks that the single subscription has already brought.
    assert market.callback is not None
    terminal.dispatch(market.callback, {"600002.SH": native.tick("600002.SH", 4)})
    push(5)
    push(6)
    sink.until(lambda: len(times()) == 6)
    assert times() == [native.tick("", number)["time"] for number in range(1, 7)]
    # At the switch the earlier ticks are published with the time at which they arrived.
    received = [ns for of, _, ns in sink.published if of == topic]
    assert received == sorted(received)


@pytest.mark.usefixtures("at_once")
def test_a_silent_single_subscription_does_not_replace_its_market(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "OVERLAP", 3600.0)
    begin(crowded, sink, *CROWD[:3])
    leave(crowded, CROWD[0])
    both = [*BACK, ("whole", "SH", "")]
    sink.until(lambda: terminal.subscriptions() == both and CROWD[2] in crowded._subscriptions.returning)
    passes = watch_passes(crowded, monkeypatch)
    sink.until(lambda: len(passes) > 2)
    assert terminal.subscriptions() == both
    terminal.push_whole({"600002.SH": {"time": 1}})
    sink.until(lambda: len(sink.published) == 1)
    monkeypatch.setattr(splice, "OVERLAP", 0.0)
    seen = len(passes)
    sink.until(lambda: len(passes) > seen + 2)
    terminal.push_whole({"600002.SH": {"time": 2}})
    sink.until(lambda: len(sink.published) == 2)
    assert terminal.subscriptions() == both
    terminal.push_quote("600002.SH", "tick", {"time": 2})
    sink.until(lambda: terminal.subscriptions() == BACK)
    assert len(sink.published) == 2


def test_a_topic_that_leaves_at_the_limit_can_use_its_place_again(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder
) -> None:
    begin(crowded, sink, *CROWD)
    held, calls = terminal.subscriptions(), len(terminal.calls)
    for number in range(20):
        leave(crowded, CROWD[0])
        want(crowded, CROWD[0])
        sink.until(lambda number=number: sink.accepted.count(CROWD[0]) == 2 + number)
    assert terminal.subscriptions() == held
    # The topic uses its own place, and no other topic moves.
    made = [call.name for call in terminal.calls[calls:]]
    assert made == ["unsubscribe_quote", "subscribe_quote"] * 20


@pytest.mark.usefixtures("at_once")
def test_ticks_move_only_if_there_is_room_for_a_while(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "RETURN_SECONDS", 3600.0)
    begin(crowded, sink, *CROWD)
    passes = watch_passes(crowded, monkeypatch)
    leave(crowded, CROWD[0])
    sink.until(lambda: crowded.upstream() == 2 and len(passes) > 3)
    assert terminal.subscriptions() == [("quote", "600001.SH", "tick"), ("whole", "SH", "")]
    monkeypatch.setattr(intervals, "RETURN_SECONDS", 0.0)
    sink.until(lambda: terminal.subscriptions() == [*BACK, ("whole", "SH", "")])


def watch_passes(source: XtQuote, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that grows each time the source looks for ticks that may return to single subscriptions."""
    passes: list[float] = []
    step = source._returns.step
    monkeypatch.setattr(source._returns, "step", lambda now: (step(now), passes.append(now)))
    return passes


@pytest.mark.usefixtures("at_once")
def test_a_refused_single_subscription_stays_in_the_market(
    terminal: native.Terminal,
    crowded: XtQuote,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begin(crowded, sink, *CROWD[:3])
    terminal.refused = {"600002.SH"}
    leave(crowded, CROWD[0])
    passes = watch_passes(crowded, monkeypatch)
    sink.until(lambda: len(terminal.called("subscribe_quote")) == 3)
    seen = len(passes)
    sink.until(lambda: len(passes) > seen + 3)
    assert len(terminal.called("subscribe_quote")) == 3
    terminal.push_whole({"600002.SH": {"time": 1}})
    sink.until(lambda: len(sink.published) == 1)
    assert sink.refused == []
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "quote/600002.SH/tick/ is still served by the subscription of its whole market: "
        "subscribe_quote(stock_code='600002.SH', period='tick', count=0) returned -1"
    ]
    # Other ticks may return.
    want(crowded, CROWD[3], CROWD[4])
    sink.until(lambda: CROWD[4] in sink.accepted)
    leave(crowded, CROWD[1])
    sink.until(lambda: ("quote", "600004.SH", "tick") in terminal.subscriptions())


@pytest.mark.usefixtures("at_once")
def test_a_refused_single_subscription_is_retried(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "REFUSED_SECONDS", 0.05)
    begin(crowded, sink, *CROWD[:3])
    terminal.refused = {"600002.SH"}
    leave(crowded, CROWD[0])
    sink.until(lambda: len(terminal.called("subscribe_quote")) >= 5)
    terminal.refused = set()
    sink.until(lambda: terminal.subscriptions() == BACK)


@pytest.mark.usefixtures("at_once")
def test_a_terminal_that_refuses_all_gets_one_retry_at_a_time(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(crowded, sink, *CROWD)
    terminal.refused = {f"60000{number}.SH" for number in range(5)}
    asked: list[int] = []
    step = crowded._returns.step

    def note(now: float) -> None:
        before = len(terminal.called("subscribe_quote"))
        step(now)
        asked.append(len(terminal.called("subscribe_quote")) - before)

    monkeypatch.setattr(crowded._returns, "step", note)
    leave(crowded, CROWD[0], CROWD[1])
    sink.until(lambda: asked.count(1) >= 3)
    assert set(asked) <= {0, 1}
    assert terminal.subscriptions() == [("whole", "SH", "")]


@pytest.mark.parametrize("end", ["leave", "drop"])
def test_a_topic_that_ends_at_the_switch_leaves_nothing_behind(
    terminal: native.Terminal, crowded: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(intervals, "RETURN_SECONDS", 0.0)
    monkeypatch.setattr(splice, "OVERLAP", 3600.0)
    begin(crowded, sink, *CROWD[:3])
    leave(crowded, CROWD[0])
    sink.until(lambda: ("quote", "600002.SH", "tick") in terminal.subscriptions())
    late = [feed for feed in terminal.feeds() if feed.name != "600001.SH"]
    if end == "drop":
        terminal.drop()
        sink.until(lambda: len(sink.states) == 2)
    leave(crowded, CROWD[2])
    terminal.open()
    sink.until(lambda: terminal.subscriptions() == [("quote", "600001.SH", "tick")])
    for feed in late:
        assert feed.callback is not None
        terminal.dispatch(feed.callback, {"600002.SH": {"time": 1}})
    terminal.push_quote("600001.SH", "tick", {"time": 1})
    sink.until(lambda: sink.published)
    assert [topic for topic, _, _ in sink.published] == [CROWD[1]]
    # Its place is free again.
    want(crowded, CROWD[3])
    sink.until(lambda: ("quote", "600003.SH", "tick") in terminal.subscriptions())


# -- The session


def test_topics_wait_until_a_closed_terminal_opens(terminal: native.Terminal, source: XtQuote, sink: Recorder) -> None:
    terminal.is_open = False
    want(source, *EVERY_KIND)
    source.start(sink)
    sink.until(lambda: len(terminal.called("connect")) >= 3)
    want(source, quote_topic("600000.SH"))
    leave(source, SHANGHAI)
    sink.until(lambda: len(terminal.called("connect")) >= 5)
    assert sink.states == [("down", "terminal_unreachable", False)]
    assert (sink.accepted, sink.refused, sink.published, source.upstream()) == ([], [], [], 0)
    terminal.open()
    sink.until(lambda: len(sink.states) == 2)
    assert sink.states[1] == ("up", None, False)
    held = {MOUTAI, MOUTAI_BARS, PINGAN_DEPTH, FORMULA, quote_topic("600000.SH")}
    assert set(sink.accepted) == held
    assert source.upstream() == len(terminal.subscriptions()) == len(held)


@pytest.mark.parametrize("status_events", [True, False], ids=["told", "not-told"])
@pytest.mark.parametrize("keeps_subscriptions", [True, False], ids=["kept", "lost"])
@pytest.mark.parametrize("auto_reconnect", [True, False], ids=["native-reconnect", "no-reconnect"])
def test_a_drop_and_return_restores_exactly_the_subscriptions(
    terminal: native.Terminal,
    source: XtQuote,
    sink: Recorder,
    auto_reconnect: bool,
    keeps_subscriptions: bool,
    status_events: bool,
) -> None:
    terminal.auto_reconnect, terminal.keeps_subscriptions = auto_reconnect, keeps_subscriptions
    terminal.status_events = status_events
    gone = quote_topic("600000.SH")
    begin(source, sink, gone, *EVERY_KIND)
    old = terminal.feeds()
    calls = len(terminal.calls)
    terminal.drop()
    sink.until(lambda: len(sink.states) == 2)
    assert sink.states[1] == ("down", "terminal_disconnected", False)
    assert source.upstream() == 0
    leave(source, gone)
    # While the terminal is closed, no call except connecting is tried.
    sink.until(lambda: len(terminal.called("connect")) >= 4)
    during = {call.name for call in terminal.calls[calls:]}
    assert during == {
        "shutdown",
        "init",
        "load_config",
        "set_config_addr",
        "registerCommonControlCallback",
        "connect",
    }
    terminal.open()
    sink.until(lambda: len(sink.states) == 3)
    assert sink.states[2] == ("up", None, True)
    assert terminal.subscriptions() == NATIVE_OF_EVERY_KIND
    assert source.upstream() == len(EVERY_KIND)
    # A late push of the closed client is not data of this session.
    for feed in old:
        assert feed.callback is not None
        terminal.dispatch(feed.callback, {"600519.SH": {"time": 1}})
    terminal.push_quote("600519.SH", "tick", {"time": 2})
    terminal.push_quote("600519.SH", "1m", {"time": 2})
    terminal.push_whole({"600519.SH": {"time": 2}})
    sink.until(lambda: len(sink.published) == 3)
    assert sink.bodies(MOUTAI) == [{"600519.SH": [{"time": 2}]}]
    assert sink.bodies(SHANGHAI) == [{"600519.SH": {"time": 2}}]
    assert sink.refused == []


def test_numbers_of_a_closed_client_are_not_used_on_the_next(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, quote_topic("600000.SH"), MOUTAI)
    terminal.drop()
    sink.until(lambda: len(sink.states) == 2)
    leave(source, quote_topic("600000.SH"))
    terminal.open()
    sink.until(lambda: len(sink.states) == 3)
    # 600519.SH now has the number that 600000.SH had.
    leave(source, quote_topic("600000.SH"))
    want(source, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)
    assert ("quote", "600519.SH", "tick") in terminal.subscriptions()
    assert terminal.called("unsubscribe_quote") == []


def test_a_connection_lost_for_a_moment_is_replaced(terminal: native.Terminal, source: XtQuote, sink: Recorder) -> None:
    begin(source, sink, *EVERY_KIND)
    terminal.gate.clear()
    terminal.drop()
    terminal.open()
    terminal.gate.set()
    sink.until(lambda: len(sink.states) == 3)
    assert [state for state, _, _ in sink.states] == ["up", "down", "up"]
    assert sink.states[2] == ("up", None, True)
    assert terminal.subscriptions() == NATIVE_OF_EVERY_KIND


def test_an_unreported_loss_of_connection_makes_one_new_client(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.auto_reconnect = terminal.status_events = False
    begin(source, sink, *EVERY_KIND)
    terminal.drop()
    terminal.open()
    sink.until(lambda: len(sink.states) == 3)
    assert len(terminal.clients) == 2


@pytest.mark.parametrize("hides_shutdown", [False, True])
def test_a_client_replaced_by_another_call_is_noticed(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, hides_shutdown: bool
) -> None:
    begin(source, sink, *EVERY_KIND)
    terminal.status_events, terminal.hides_shutdown = False, hides_shutdown
    sdk.load().reconnect("127.0.0.1", 58610)
    sink.until(lambda: len(sink.states) == 3)
    assert sink.states[1:] == [("down", "terminal_disconnected", False), ("up", None, True)]
    assert terminal.subscriptions() == NATIVE_OF_EVERY_KIND


def test_a_connection_lost_during_a_subscription_refuses_no_topic(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    begin(source, sink, MOUTAI)
    terminal.gate.clear()
    want(source, MOUTAI_BARS)
    sink.until(lambda: len(terminal.called("subscribe_quote")) == 2)
    terminal.drop()
    terminal.gate.set()
    sink.until(lambda: len(sink.states) == 2)
    terminal.open()
    sink.until(lambda: len(sink.states) == 3)
    assert sink.refused == []
    assert terminal.subscriptions() == [("quote", "600519.SH", "1m"), ("quote", "600519.SH", "tick")]


def test_all_native_calls_come_from_one_thread_even_if_slow(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.calls.clear()
    terminal.gate.clear()
    source.start(sink)
    # This returns although the call of xtquant does not.
    want(source, *EVERY_KIND)
    terminal.gate.set()
    sink.until(lambda: SHANGHAI in sink.accepted)
    terminal.gate.clear()
    leave(source, SHANGHAI)
    terminal.gate.set()
    sink.until(lambda: len(terminal.called("unsubscribe_quote")) == 1)
    terminal.drop()
    terminal.open()
    sink.until(lambda: len(sink.states) == 3)
    source.close()
    threads = {call.thread for call in terminal.calls}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_unexpected_error_refuses_only_its_own_topic(
    terminal: native.Terminal,
    source: XtQuote,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intervals, "REFUSED_SECONDS", 0.05)
    begin(source, sink, MOUTAI)
    hold = Subscriptions._hold

    def fail_once(self: Subscriptions, topic: Topic, parts: TopicParts) -> None:
        monkeypatch.setattr(Subscriptions, "_hold", hold)
        raise RuntimeError("boom")

    monkeypatch.setattr(Subscriptions, "_hold", fail_once)
    want(source, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)
    assert sink.refused == [(MOUTAI_BARS, "internal", "source xtquant failed: boom")]
    assert terminal.subscriptions() == [("quote", "600519.SH", "1m"), ("quote", "600519.SH", "tick")]
    # The session continued.
    assert [state for state, _, _ in sink.states] == ["up"]
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.getMessage() == "a call of the xtquant session failed"


def test_an_unexpected_error_is_logged_and_the_session_continues(
    terminal: native.Terminal,
    source: XtQuote,
    sink: Recorder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin(source, sink, MOUTAI)
    watch = source._watch

    def fail_once() -> bool:
        monkeypatch.setattr(source, "_watch", watch)
        raise RuntimeError("boom")

    # The error is not in a call about one topic, which would refuse only that topic.
    monkeypatch.setattr(source, "_watch", fail_once)
    sink.until(lambda: len(sink.states) == 3)
    assert sink.states[1:] == [("down", "internal", False), ("up", None, True)]
    assert terminal.subscriptions() == [("quote", "600519.SH", "tick")]
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.getMessage() == "xtquant session failed"


def test_an_error_in_one_topic_does_not_end_the_new_session(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.is_open = False
    want(source, MOUTAI, SHANGHAI)
    source.start(sink)
    sink.until(lambda: len(source._table.wanted) == 2)

    def fail_for_one() -> None:
        if sink.accepted[-1] == MOUTAI:
            raise RuntimeError("boom")

    sink.on_accept = fail_for_one
    terminal.open()
    sink.until(lambda: ("up", None, False) in sink.states)
    assert SHANGHAI in sink.accepted
    assert source.failed_calls == 1
    assert [reason for _, reason, _ in sink.states] == ["terminal_unreachable", None]


def test_attempts_to_connect_become_rarer(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    wait = XtQuote._wait
    monkeypatch.setattr(XtQuote, "_wait", lambda self, seconds: (waits.append(seconds), wait(self, seconds))[1])
    terminal.is_open = False
    source.start(sink)
    sink.until(lambda: len(waits) >= 6)
    assert waits[:2] == [0.01, 0.02]
    assert waits[5] == 0.05
    assert all(later >= earlier for earlier, later in pairwise(waits[:6]))


# -- Silence

# 10:00 on a Tuesday in Shanghai.
TUESDAY_MORNING = 1_795_485_600_000


class Clock:
    """A clock that stands still until `go`; from then on each reading advances it.

    A test prepares all of a session before it lets time pass: a machine may be busy for many checks of the session.
    """

    def __init__(self, ms: int = TUESDAY_MORNING) -> None:
        self.began = self.ms = ms
        self.step = 0
        self.readings = 0
        self._until: Callable[[], object] = bool

    def __call__(self) -> int:
        self.readings += 1
        # A test may set the time while it stands still.
        if self.step and self._until():
            self.stop()
        if self.step:
            self.ms += self.step
        return self.ms

    def go(self, step: int = 1000, until: Callable[[], object] = bool) -> None:
        """Advance `step` ms at each reading, up to the first one at which `until` holds."""
        self.step, self._until = step, until

    @property
    def seconds(self) -> int:
        return (self.ms - self.began) // 1000

    def stop(self) -> None:
        """Keep the time constant."""
        self.step = 0


def let_pass(clock: Clock, seconds: int, sink: Recorder, step: int = 1000) -> None:
    """Let `clock` go, and wait until so many of its seconds have passed; each check advances it by `step` ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "WATCH_SECONDS", 0.001)
        clock.go(step)
        sink.until(lambda: clock.seconds > seconds)


def delivered(terminal: native.Terminal) -> None:
    """Wait until the session was called back with everything that was pushed before."""
    done = threading.Event()
    terminal.dispatch(lambda _: done.set(), {}, bson=False)
    assert done.wait(SECONDS)


def heard(terminal: native.Terminal, clock: Clock, sink: Recorder, step: int = 1000) -> None:
    """Let `step` ms pass once what was pushed is delivered, and wait until a check has seen the new time."""
    delivered(terminal)
    clock.ms += step
    before = clock.readings
    sink.until(lambda: clock.readings > before)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def listener(terminal: native.Terminal, clock: Clock) -> Iterator[XtQuote]:
    """Return a source for which a market is stale after five checks."""
    terminal.holidays = [20260101]
    source = XtQuote(Config(xt_silence=5), clock)
    try:
        yield source
    finally:
        terminal.gate.set()
        source.close()


def deafen(terminal: native.Terminal, clock: Clock, *codes: str) -> None:
    """Let the terminal have a new tick of `codes` at each query, and push none of them."""
    before = terminal.on_call

    def on_call(call: native.Call) -> None:
        before(call)
        if call.name == "get_full_tick":
            terminal.unpushed.update({code: {"time": clock.ms, "volume": clock.ms, "openInt": 13} for code in codes})

    terminal.on_call = on_call


def test_a_silent_market_is_stale_and_all_of_it_is_subscribed_again(
    terminal: native.Terminal,
    listener: XtQuote,
    sink: Recorder,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    of_shanghai = (SHANGHAI, MOUTAI, quote_topic("600519.SH", "1d"), formula_topic(FormulaSpec("MA", "600519.SH")))
    deafen(terminal, clock, "000001.SH")
    begin(listener, sink, *of_shanghai, PINGAN_DEPTH)
    before = terminal.subscriptions()
    terminal.push_whole({"600519.SH": {"time": 1}})
    delivered(terminal)
    clock.go(until=lambda: len(sink.accepted) == 9)
    sink.until(lambda: len(sink.states) == 2)
    assert sink.states[1] == ("stale", "market_silent", False)
    sink.until(lambda: len(sink.accepted) == 9)
    assert sink.accepted[5:] == list(of_shanghai)
    assert terminal.subscriptions() == before
    assert len(terminal.called("unsubscribe_quote")) == 3
    assert len(terminal.called("unsubscribeFormula")) == 1
    assert len(terminal.clients) == 1
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == ("nothing came from SH while it trades; subscribing again; 11 more tries today")
    terminal.push_whole({"600519.SH": {"time": 2}})
    sink.until(lambda: len(sink.states) == 3)
    assert sink.states[2] == ("up", None, True)


def test_an_old_snapshot_does_not_end_the_silence_of_a_market(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    terminal.market = {"600519.SH": {"time": 5}, "600000.SH": {"time": 2**62}}
    deafen(terminal, clock, "000001.SH")
    begin(listener, sink, SHANGHAI)
    clock.go(until=lambda: len(sink.accepted) == 3)
    sink.until(lambda: len(terminal.clients) == 2 and len(sink.accepted) == 3)
    sink.until(lambda: len(sink.states) >= 3 and len(sink.bodies(SHANGHAI)) >= 3)
    assert sink.states == [("up", None, False), *[("stale", "market_silent", False)] * 2]
    assert terminal.subscriptions() == [("whole", "SH", "")]
    terminal.push_whole({"600519.SH": {"time": 6}})
    sink.until(lambda: len(sink.states) == 4)
    assert sink.states[3] == ("up", None, True)


def test_a_market_with_a_lost_subscription_recovers_by_its_snapshot(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    terminal.market = {"600519.SH": {"time": 5}}
    deafen(terminal, clock, "000001.SH")
    begin(listener, sink, SHANGHAI)
    sink.until(lambda: sink.published)
    # The native side drops the subscription without a callback, while the market continues.
    terminal.clients[0].feeds.clear()
    terminal.market = {"600519.SH": {"time": 6}}
    clock.go(until=lambda: len(sink.states) >= 3)
    sink.until(lambda: len(sink.states) >= 3)
    assert sink.states[:3] == [("up", None, False), ("stale", "market_silent", False), ("up", None, True)]
    assert sink.bodies(SHANGHAI)[:2] == [{"600519.SH": {"time": 5}}, {"600519.SH": {"time": 6}}]
    assert len(terminal.clients) == 1


def test_a_market_whose_renewal_is_refused_stays_stale(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    deafen(terminal, clock, "000001.SH")
    begin(listener, sink, SHANGHAI)
    terminal.refused = {"SH"}
    clock.go(until=lambda: len(terminal.clients) == 2)
    sink.until(lambda: len(terminal.clients) == 2 and not clock.step)
    assert {state for state, _, _ in sink.states[1:]} == {"stale"}
    terminal.refused = set()
    clock.go()
    sink.until(lambda: len(terminal.clients) >= 3 and SHANGHAI in sink.accepted[1:])
    assert {state for state, _, _ in sink.states[1:]} == {"stale"}


def test_a_market_that_was_refused_from_the_start_is_never_stale(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    terminal.refused = {"SH"}
    want(listener, SHANGHAI)
    listener.start(sink)
    let_pass(clock, 60, sink)
    assert [state for state, _, _ in sink.states] == ["up"]


ODD_TICKS = [
    pytest.param({"time": None}, id="no-time"),
    pytest.param({"time": 0}, id="time-0"),
    pytest.param({"time": TUESDAY_MORNING // 1000}, id="seconds"),
    pytest.param({"time": TUESDAY_MORNING + 7_200_000}, id="two-hours-ahead"),
    pytest.param({"time": TUESDAY_MORNING - 86_400_000}, id="of-yesterday"),
    pytest.param({"time": 2**62}, id="far-future"),
    pytest.param({"time": "10:00:00"}, id="text"),
    pytest.param({"openInt": 17}, id="halted"),
    pytest.param({"openInt": 1, "volume": 0}, id="unknown-status"),
    pytest.param({"time": UNFIT}, id="unfit"),
]


@pytest.mark.parametrize("tick", ODD_TICKS)
@pytest.mark.parametrize("topic", [SHANGHAI, whole_topic("600519.SH"), MOUTAI])
def test_any_push_counts_as_a_sign_of_life(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, tick: dict, topic: Topic
) -> None:
    trades = [quote_topic(f"60000{number}.SH") for number in range(5)]
    begin(listener, sink, topic, *trades)
    for _ in range(20):
        # Push the same record repeatedly.
        terminal.push_whole({"600519.SH": tick})
        terminal.push_quote("600519.SH", "tick", tick)
        heard(terminal, clock, sink)
    assert [state for state, _, _ in sink.states] == ["up"]


@pytest.mark.parametrize("topic", [SHANGHAI, MOUTAI_BARS, quote_topic("600519.SH", "1d"), PINGAN_DEPTH, FORMULA])
def test_an_undecodable_push_counts_as_a_sign_of_life(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, topic: Topic
) -> None:
    market = "SZ" if topic in (PINGAN_DEPTH, FORMULA) else "SH"
    begin(listener, sink, topic, *(quote_topic(f"60000{number}.{market}") for number in range(5)))
    callback = next(feed.callback for feed in terminal.feeds() if feed.detail != "tick")
    assert callback is not None
    for _ in range(20):
        terminal._pushes.put((callback, native.encode({"name": "xx"}).replace(b"xx", b"\xb9\xf3")))
        heard(terminal, clock, sink)
    assert [state for state, _, _ in sink.states] == ["up"]


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("topic", [SHANGHAI, MOUTAI])
def test_the_answer_to_a_subscription_is_never_a_recovery(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, topic: Topic, pieces: int
) -> None:
    terminal.single_snapshot, terminal.snapshot_pieces = True, pieces
    terminal.market = {
        f"{code}.SH": native.tick(code, 1) for code in ("600519", "600000", "600001", "600002", "600003", "600004")
    }
    crowd = [quote_topic(code) for code in terminal.market if code != "600519.SH"] if topic == MOUTAI else []
    begin(listener, sink, topic, *crowd)
    delivered(terminal)
    clock.go()
    if topic == MOUTAI:
        # Without this wait the single topics, which had ticks, would be found deaf before the market is stale.
        sink.until(lambda: len(sink.states) > 1)
    deafen(terminal, clock, *(terminal.market if topic == MOUTAI else ["000001.SH"]))
    clock.go(until=lambda: len(terminal.clients) == 3)
    sink.until(lambda: not clock.step)
    assert {state for state, _, _ in sink.states[1:]} == {"stale"}
    # So far it is only connected: a push before the new subscription would reach no subscription.
    sink.until(lambda: len(terminal.feeds()) == 1 + len(crowd))
    # These pushes come after the answer to the subscription, so even the same tick ends the silence.
    terminal.push_whole({"600519.SH": native.tick("600519", 1)})
    terminal.push_quote("600519.SH", "tick", native.tick("600519", 1))
    sink.until(lambda: sink.states[-1] == ("up", None, True))


def test_a_silent_market_is_renewed_while_other_markets_push(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    beijing = whole_topic("BJ")
    deafen(terminal, clock, "899050.BJ")
    begin(listener, sink, SHANGHAI, beijing)
    for _ in range(120):
        terminal.push_whole({"600519.SH": {"time": clock.ms}})
        heard(terminal, clock, sink)
    assert len(terminal.clients) == 1
    assert terminal.called("subscribe_whole_quote").count((("SH",), {"needCallback": True})) == 1
    assert terminal.called("subscribe_whole_quote").count((("BJ",), {"needCallback": True})) >= 3
    assert "nothing came from BJ while it trades; subscribing again; 11 more tries today" in caplog.messages
    assert not [message for message in caplog.messages if "connecting again" in message]


def test_one_deaf_subscription_is_renewed_alone(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    begin(listener, sink, MOUTAI, quote_topic("600000.SH"), SHANGHAI)
    terminal.push_quote("600519.SH", "tick", {"time": clock.ms})
    sink.until(lambda: sink.published)
    trade(terminal, clock, "600519.SH")
    while len(terminal.called("subscribe_quote")) < 3:
        terminal.push_whole({"600000.SH": {"time": clock.ms}})
        heard(terminal, clock, sink, 850)
    sink.until(lambda: sink.accepted.count(MOUTAI) == 2)
    assert len(terminal.clients) == 1
    assert len(terminal.called("unsubscribe_quote")) == 1
    assert sink.accepted == [MOUTAI, quote_topic("600000.SH"), SHANGHAI, MOUTAI]
    assert [state for state, _, _ in sink.states] == ["up"]
    [said] = [message for message in caplog.messages if "has news" in message]
    assert said.endswith("did not bring; subscribing these again; 11 more tries today")
    terminal.push_quote("600519.SH", "tick", {"time": clock.ms + 1})
    sink.until(lambda: len(sink.bodies(MOUTAI)) == 2)


@pytest.mark.parametrize("status", [0, 1, 14, 16, 17, 20, 21, 23, 99])
def test_quiet_instruments_of_any_status_are_not_renewed(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, status: int
) -> None:
    codes = [f"60000{number}.SH" for number in range(8)]
    terminal.market = {code: {"time": TUESDAY_MORNING, "volume": 5, "openInt": status} for code in codes}
    begin(listener, sink, *(quote_topic(code) for code in codes))
    let_pass(clock, 120, sink)
    assert [state for state, _, _ in sink.states] == ["up"]
    assert len(terminal.clients) == 1


def test_rarely_traded_codes_are_not_renewed_while_the_index_moves(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    codes = [f"60000{number}.SH" for number in range(8)]
    terminal.market = {code: {"time": TUESDAY_MORNING, "volume": 5, "openInt": 13} for code in codes}
    trade(terminal, clock, "000001.SH")
    begin(listener, sink, *(quote_topic(code) for code in codes))
    let_pass(clock, 120, sink)
    assert [state for state, _, _ in sink.states] == ["up"]
    # From here on the terminal itself receives no ticks.
    terminal.on_call = bool
    sink.until(lambda: len(sink.states) > 1)
    assert sink.states[1] == ("stale", "market_silent", False)


def test_one_quiet_code_and_long_bars_do_not_count_as_silence(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    codes = [f"{600000 + number}.SH" for number in range(8)]
    bars = [quote_topic(code, "1m") for code in codes] + [quote_topic(code, "1d") for code in codes]
    begin(listener, sink, MOUTAI, FORMULA, *bars)
    let_pass(clock, 30, sink)
    assert [state for state, _, _ in sink.states] == ["up"]
    # Several quiet codes do count as silence.
    want(listener, *(quote_topic(code) for code in codes))
    sink.until(lambda: len(sink.states) > 1)
    assert sink.states[1] == ("stale", "market_silent", False)


def test_a_clock_set_back_does_not_delay_the_next_query(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    clock.began = clock.ms = TUESDAY_MORNING + 3_600_000
    begin(listener, sink, MOUTAI)
    clock.go(until=lambda: len(terminal.called("get_full_tick")) > 1)
    sink.until(lambda: not clock.step)
    clock.ms -= 3_600_000
    before = len(terminal.called("get_full_tick"))
    clock.go()
    sink.until(lambda: len(terminal.called("get_full_tick")) > before + 2)
    assert clock.ms < TUESDAY_MORNING + 1_800_000


def test_a_tick_of_a_single_code_ends_the_silence(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    codes = [f"{600000 + number}.SH" for number in range(8)]
    begin(listener, sink, *(quote_topic(code) for code in codes))
    clock.go()
    sink.until(lambda: len(sink.states) > 1)
    terminal.push_quote(codes[3], "tick", {"time": 1})
    sink.until(lambda: len(sink.states) > 2)
    assert [state for state, _, _ in sink.states[:3]] == ["up", "stale", "up"]


@pytest.mark.parametrize(
    ("ms", "holidays"),
    [
        pytest.param(TUESDAY_MORNING - 4 * 3_600_000, [20260101], id="before-the-open"),
        pytest.param(TUESDAY_MORNING, [20260101, 20261124], id="holiday"),
    ],
)
def test_silence_outside_trading_hours_is_not_stale(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, ms: int, holidays: list[int]
) -> None:
    clock.began = clock.ms = ms
    terminal.holidays = holidays
    begin(listener, sink, SHANGHAI, MOUTAI)
    let_pass(clock, 60, sink)
    assert [state for state, _, _ in sink.states] == ["up"]
    assert listener.health().trading_day is (20261124 not in holidays)
    assert len(terminal.called("subscribe_whole_quote")) == 1
    # The holidays are queried once a day after a download, as xtquant's own calendar is made.
    assert len(terminal.called("get_holidays")) == 1
    assert ("downloadholidaydata", {"incrementally": True}) in terminal.called("commonControl")
    assert terminal.called("get_full_tick") == []


def test_the_calendar_is_queried_again_on_the_next_day(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    begin(listener, sink, MOUTAI)
    clock.go(3_600_000)
    sink.until(lambda: len(terminal.called("get_holidays")) >= 3)
    # Advance from 10:00 to the second midnight.
    assert clock.seconds >= 38 * 3600


@pytest.mark.parametrize("holidays", [[], [20250101, 20251001]], ids=["none", "of-last-year"])
def test_without_a_calendar_every_weekday_trades_logged_once(
    terminal: native.Terminal,
    listener: XtQuote,
    sink: Recorder,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    holidays: list[int],
) -> None:
    terminal.holidays = holidays
    begin(listener, sink, SHANGHAI)
    clock.go()
    sink.until(lambda: len(sink.states) > 1)
    assert sink.states[1] == ("stale", "market_silent", False)
    clock.go(3_600_000)
    sink.until(lambda: len(terminal.called("get_holidays")) >= 3)
    assert listener.health().trading_day is None
    said = [message for message in caplog.messages if "trading calendar" in message]
    assert said == [
        "no trading calendar, so every weekday is taken for a trading day: the terminal has no holidays of 2026"
    ]


def test_a_connection_lost_while_stale_is_down_and_then_up(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    begin(listener, sink, SHANGHAI)
    clock.go()
    sink.until(lambda: len(sink.states) > 1)
    clock.stop()
    terminal.drop()
    sink.until(lambda: sink.states[-1][0] == "down")
    terminal.open()
    sink.until(lambda: sink.states[-1][0] == "up")
    assert [state for state, _, _ in sink.states if state != "stale"] == ["up", "down", "up"]
    assert sink.states[-1] == ("up", None, True)


def test_a_market_that_is_silent_at_the_close_is_up_again(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    # The clock starts half a minute before the lunch break.
    clock.began = clock.ms = TUESDAY_MORNING + 90 * 60_000 - 30_000
    caplog.set_level(logging.INFO)
    begin(listener, sink, SHANGHAI)
    let_pass(clock, 120, sink)
    assert sink.states[0] == ("up", None, False)
    assert {state for state, _, _ in sink.states[1:-1]} == {"stale"}
    assert sink.states[-1] == ("up", None, True)
    assert "nothing trades any more, so silence is right" in caplog.messages


def trade(terminal: native.Terminal, clock: Clock, *codes: str) -> None:
    """Let the terminal have a new tick of `codes` at each query, whatever it pushes."""

    def on_call(call: native.Call) -> None:
        if call.name == "get_full_tick":
            terminal.market.update({code: {"time": clock.ms, "volume": clock.ms} for code in codes})

    terminal.on_call = on_call


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        pytest.param(MOUTAI, "600519.SH", id="stock"),
        pytest.param(SHANGHAI, "600519.SH", id="market"),
        pytest.param(whole_topic("600519.SH"), "600519.SH", id="code-of-the-market"),
        pytest.param(quote_topic("IF2512.IF"), "IF2512.IF", id="future"),
        pytest.param(whole_topic("IF"), "IF2512.IF", id="futures"),
        pytest.param(quote_topic("00700.HK"), "00700.HK", id="hong-kong"),
    ],
)
def test_lost_subscriptions_are_found_by_the_terminals_new_ticks(
    terminal: native.Terminal,
    listener: XtQuote,
    sink: Recorder,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    topic: Topic,
    code: str,
) -> None:
    terminal.status_events = False
    begin(listener, sink, topic, FORMULA)
    terminal.push_whole({code: {"time": clock.ms}})
    terminal.push_quote(code, "tick", {"time": clock.ms})
    sink.until(lambda: sink.published)
    delivered(terminal)
    trade(terminal, clock, code)
    held = terminal.subscriptions()
    # The connection is lost and restored between two checks, without its subscriptions.
    terminal.clients[0].feeds.clear()
    # A step is as long as the pause between two queries.
    clock.go(850, until=lambda: len(sink.states) >= 3)
    sink.until(lambda: len(sink.states) >= 3)
    assert sink.states[:3] == [("up", None, False), ("stale", "market_silent", False), ("up", None, True)]
    assert terminal.subscriptions() == held
    said = [message for message in caplog.messages if "has news" in message]
    assert len(said) == 1
    assert said[0].endswith("did not bring; connecting again; 11 more tries today")


def test_a_subscription_without_any_push_yet_is_not_deaf(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    begin(listener, sink, quote_topic("IF2512.IF"), quote_topic("IH2512.IF"))
    terminal.push_quote("IF2512.IF", "tick", {"time": clock.ms})
    delivered(terminal)
    # The terminal has newer ticks of another code.
    trade(terminal, clock, "IH2512.IF")
    let_pass(clock, 100, sink, 4000)
    assert set(terminal.called("get_full_tick")) == {(("IF2512.IF",),)}
    assert [state for state, _, _ in sink.states] == ["up"]


def test_a_subscription_that_brings_all_ticks_is_not_deaf(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock
) -> None:
    future = quote_topic("IF2512.IF")
    begin(listener, sink, future)
    trade(terminal, clock, "IF2512.IF")
    for _ in range(40):
        terminal.push_quote("IF2512.IF", "tick", {"time": clock.ms})
        heard(terminal, clock, sink)
    assert [state for state, _, _ in sink.states] == ["up"]


def test_a_deaf_subscription_is_only_logged_without_tries_left(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    begin(listener, sink, quote_topic("IF2512.IF"))
    # The first check of a day sets the number of tries; no later one of this day does.
    sink.until(lambda: clock.readings > 1)
    listener._watchdog._silence.left = 0
    terminal.push_quote("IF2512.IF", "tick", {"time": clock.ms})
    delivered(terminal)
    trade(terminal, clock, "IF2512.IF")
    clock.go()
    sink.until(lambda: any("has news" in message for message in caplog.messages))
    assert "did not bring; waiting; 0 more tries today" in caplog.text
    assert [state for state, _, _ in sink.states] == ["up"]
    assert len(terminal.clients) == 1


@pytest.mark.parametrize(
    ("tick", "stale"),
    [
        pytest.param({"time": TUESDAY_MORNING, "volume": 5, "openInt": 13}, True, id="trades"),
        pytest.param({"time": TUESDAY_MORNING, "volume": 5, "openInt": 17}, False, id="halted"),
        pytest.param({"time": TUESDAY_MORNING, "volume": 0, "openInt": 13}, False, id="suspended"),
        pytest.param({"time": TUESDAY_MORNING - 86_400_000, "volume": 5, "openInt": 15}, False, id="of-yesterday"),
        pytest.param(None, False, id="never"),
    ],
)
@pytest.mark.parametrize("topic", [MOUTAI, MOUTAI_BARS, whole_topic("600519.SH")])
def test_a_single_code_that_is_not_traded_is_never_stale(
    terminal: native.Terminal,
    listener: XtQuote,
    sink: Recorder,
    clock: Clock,
    topic: Topic,
    tick: dict | None,
    stale: bool,
) -> None:
    terminal.market = {} if tick is None else {"600519.SH": tick}
    begin(listener, sink, topic)
    let_pass(clock, 80, sink, 4000)
    assert {state for state, _, _ in sink.states} == ({"up", "stale"} if stale else {"up"})


def test_a_failing_query_for_last_ticks_is_logged_once(
    terminal: native.Terminal, listener: XtQuote, sink: Recorder, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    begin(listener, sink, MOUTAI)

    def fail(call: native.Call) -> None:
        if call.name == "get_full_tick":
            raise RuntimeError("no ticks today")

    terminal.on_call = fail
    clock.go()
    sink.until(lambda: len(terminal.called("get_full_tick")) > 5)
    assert [message for message in caplog.messages if "last ticks" in message] == [
        "the terminal's last ticks cannot be read: RuntimeError: no ticks today"
    ]
    want(listener, MOUTAI_BARS)
    sink.until(lambda: MOUTAI_BARS in sink.accepted)


def test_the_silence_check_turned_off_makes_no_query(
    terminal: native.Terminal, sink: Recorder, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = XtQuote(Config(xt_silence=0.0), clock)
    try:
        begin(source, sink, SHANGHAI, MOUTAI)
        clock.go()
        passes = watch_passes(source, monkeypatch)
        sink.until(lambda: len(passes) > 20)
        assert terminal.called("get_holidays") == terminal.called("get_full_tick") == []
    finally:
        source.close()


# -- The end


def test_close_unsubscribes_every_topic(terminal: native.Terminal, source: XtQuote, sink: Recorder) -> None:
    begin(source, sink, *EVERY_KIND)
    source.close()
    assert terminal.subscriptions() == []
    assert not any(client.is_connected() for client in terminal.clients)
    assert len(terminal.called("unsubscribe_quote")) == 4
    assert len(terminal.called("unsubscribeFormula")) == 1
    assert [state for state, _, _ in sink.states] == ["up"]
    source.close()


def test_close_does_not_wait_for_a_call_that_hangs(
    terminal: native.Terminal,
    source: XtQuote,
    sink: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(intervals, "JOIN_SECONDS", 0.05)
    begin(source, sink, MOUTAI)
    terminal.gate.clear()
    want(source, MOUTAI_BARS)
    sink.until(lambda: len(terminal.called("subscribe_quote")) == 2)
    source.close()
    assert "an xtquant call still runs; its thread is left behind" in caplog.messages
    terminal.gate.set()
    source._thread.join(SECONDS)
    assert not source._thread.is_alive()


def test_close_stops_connecting_to_a_closed_terminal(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.is_open = False
    source.start(sink)
    sink.until(lambda: sink.states)
    source.close()
    assert not source._thread.is_alive()
    assert terminal.feeds() == []


def test_close_before_start_does_nothing(source: XtQuote) -> None:
    source.close()


# -- A call that does not return


@pytest.fixture
def short_call_limit(terminal: native.Terminal) -> Iterator[XtQuote]:
    clock = Clock()
    clock.go()
    source = XtQuote(Config(xt_hang=0.2, xt_silence=5), clock)
    try:
        yield source
    finally:
        terminal.hanging = set()
        source.close()


@pytest.mark.parametrize(
    ("call", "do"),
    [
        ("subscribe_quote", lambda source, terminal: want(source, MOUTAI_BARS)),
        ("subscribe_whole_quote", lambda source, terminal: want(source, SHANGHAI)),
        ("subscribeFormula", lambda source, terminal: want(source, FORMULA)),
        ("unsubscribe_quote", lambda source, terminal: leave(source, MOUTAI)),
        ("get_full_tick", lambda source, terminal: None),
        ("get_holidays", lambda source, terminal: None),
        ("connect", lambda source, terminal: (terminal.drop(), terminal.open())),
    ],
)
def test_a_call_that_does_not_return_is_reported_by_name(
    terminal: native.Terminal,
    short_call_limit: XtQuote,
    sink: Recorder,
    call: str,
    do: Callable[[XtQuote, native.Terminal], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert short_call_limit.hung() is None
    if call in ("get_full_tick", "get_holidays"):
        terminal.hanging = {call}
    begin(short_call_limit, sink, MOUTAI)
    terminal.hanging = {call}
    do(short_call_limit, terminal)
    name = {
        "subscribe_quote": "subscribe_quote2",
        "subscribeFormula": "subscribe_formula",
        "connect": "reconnect",
    }.get(call, call)
    # On a busy machine the call before it, or the work after that, may be reported for a moment.
    sink.until(lambda: str(short_call_limit.hung()).startswith(f"{name} has not returned for "))
    # Closing does not wait for the call, which never returns.
    monkeypatch.setattr(intervals, "JOIN_SECONDS", SECONDS)
    began = time.monotonic()
    short_call_limit.close()
    assert time.monotonic() - began < SECONDS
    assert short_call_limit.hung() is None


def test_slow_calls_and_waiting_do_not_count_as_a_hang(
    terminal: native.Terminal, short_call_limit: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The thread waits for the whole test once its work is done.
    monkeypatch.setattr(intervals, "WATCH_SECONDS", 3600.0)
    terminal.call_delay = 0.02
    codes = [quote_topic(f"60000{number}.SH", "1d") for number in range(10)]
    want(short_call_limit, *codes)
    short_call_limit.start(sink)
    running, said = short_call_limit._running, []

    def look() -> bool:
        # Of the time of this clock each call takes less than the limit, and all of them take more.
        said.append(running.hung(0.15 * len(terminal.called("subscribe_quote"))))
        return len(sink.accepted) == len(codes)

    sink.until(look)
    sink.until(lambda: not short_call_limit._may_return and running.under_way() is None)
    said += [running.hung(100.0 + second) for second in range(5)]
    assert set(said) == {None}


def test_endless_queued_calls_do_not_block_other_work(
    terminal: native.Terminal, source: XtQuote, sink: Recorder
) -> None:
    terminal.is_open = False
    want(source, *EVERY_KIND)
    source.start(sink)
    sink.until(lambda: len(source._table.wanted) == len(EVERY_KIND))
    stopping = threading.Event()

    def come_again() -> None:
        if not stopping.is_set():
            source._work.put(come_again)

    come_again()
    terminal.open()
    try:
        sink.until(lambda: ("up", None, False) in sink.states)
        assert set(sink.accepted) == set(EVERY_KIND)
    finally:
        stopping.set()


def test_the_end_of_the_thread_is_reported(
    terminal: native.Terminal, short_call_limit: XtQuote, sink: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    begin(short_call_limit, sink, MOUTAI)

    def end(_: object) -> None:
        raise SystemExit

    short_call_limit._work.put(partial(end, None))
    sink.until(lambda: short_call_limit.hung() == "the thread that calls xtquant has ended")


# -- Settings and shape


def test_the_address_of_the_terminal_is_a_setting(terminal: native.Terminal, sink: Recorder) -> None:
    terminal.address = "127.0.0.2:58611"
    source = XtQuote(Config(xt_addr="127.0.0.2:58611"))
    try:
        source.start(sink)
        sink.until(lambda: sink.states)
        assert sink.states == [("up", None, False)]
        assert set(terminal.called("connect")) == {("127.0.0.2:58611",)}
    finally:
        source.close()


@pytest.mark.parametrize("address", ["", "58610", ":58610", "host:", "host:x", "host:0", "host:65536", "::1:58610"])
def test_an_invalid_address_is_named(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        XtQuote(Config(xt_addr=address))
    assert str(error.value) == f"xt_addr: expected 'host:port', got {address!r}"


def test_the_source_has_its_name_and_serves_no_download() -> None:
    source = XtQuote(Config())
    assert (source.name, source.simulated, source.lossless) == ("xtquant", False, False)
    assert source.kinds == {Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA}
    with pytest.raises(Refused, match="source xtquant does not serve download"):
        source.download(download_topic("1"), DownloadRequest(("600519.SH",), "1d", "", ""))


# -- Loading the SDK: each test uses a new process, because a module is imported once per process


def run(code: str, *path: Path, **env: str) -> str:
    """Run `code` in a new interpreter with `path` before this project on its path; return what it printed."""
    variables = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50 * SLOWNESS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORTABLE = """
    import sys
    from feeder.xt import sdk
    print(sdk.importable(), "xtquant" in sys.modules)
"""


def test_finding_xtquant_does_not_import_it() -> None:
    assert run(IMPORTABLE, FAKES) == "True False"


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows")
def test_xtquant_is_not_importable_without_its_native_modules() -> None:
    assert run(IMPORTABLE) == "False False"


@pytest.mark.skipif(sys.platform == "win32", reason="the wheel's native modules are for Windows")
def test_a_start_without_the_native_modules_raises_import_error(sink: Recorder) -> None:
    assert "xtquant.datacenter" not in sys.modules
    code = """
        from feeder.xt.quotes.session import XtQuote
        from qmt_bridge.config import Config
        try:
            XtQuote(Config()).start(None)
        except ImportError as exc:
            print(exc)
    """
    assert "datacenter" in run(code)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Return a folder with the two packages with which xtquant queries the package index; a request writes a file."""
    (tmp_path / "requests.py").write_text(
        "from pathlib import Path\ndef get(url, **_):\n    Path(__file__).with_name('asked').touch()\n",
        encoding="utf-8",
    )
    (tmp_path / "pkg_resources.py").write_text(
        "class _D:\n    version = '0'\ndef get_distribution(name):\n    return _D\n", encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize("loaded", ["", "import requests"], ids=["not-loaded", "loaded"])
def test_loading_xtquant_makes_no_http_request_and_prints_nothing(index: Path, loaded: str) -> None:
    code = f"""
        {loaded or "pass"}
        import sys
        before = sys.modules.get("requests")
        from feeder.xt import sdk
        xtdata = sdk.load()
        assert xtdata.__name__ == "xtquant.xtdata"
        assert sys.modules.get("requests") is before and ("requests" in sys.modules) == (before is not None)
        import requests
        assert xtdata.connect("127.0.0.1", 58610).is_connected()
    """
    assert run(code, FAKES, index) == ""
    assert not (index / "asked").exists()


def test_a_plain_import_of_xtquant_makes_an_http_request(index: Path) -> None:
    run("import xtquant", FAKES, index)
    assert (index / "asked").exists()


PROCESS = """
    import threading
    from feeder.app import make_source
    from qmt_bridge.config import load_config
    from qmt_bridge.wire.topics import parse_topic, quote_topic

    came = threading.Event()

    class Sink:
        def publish(self, topic, body, received_ns):
            self.body = body
            came.set()

        def accept(self, topic): ...

        def refuse(self, topic, code, reason):
            raise AssertionError(reason)

        def set_state(self, state, reason=None, *, data_lost=False):
            print(state, flush=True)

    sink, topic = Sink(), quote_topic("600519.SH")
    source = make_source(load_config())
    source.start(sink)
    source.subscribe(topic, parse_topic(topic))
    assert came.wait(10)
    source.close()
    print(source.name, *sink.body)
"""


def test_another_process_has_a_terminal_that_pushes_by_itself() -> None:
    assert run(PROCESS, FAKES, FAKE_XT_TICK_MS="10").split() == ["up", "xtquant", "600519.SH"]


def test_the_terminal_of_another_process_opens_with_a_removed_file(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.touch()
    opens = f"__import__('pathlib').Path({str(closed)!r}).unlink(missing_ok=True)"
    code = PROCESS.replace("print(state, flush=True)", f"print(state, flush=True); {opens}")
    printed = run(code, FAKES, FAKE_XT_TICK_MS="10", FAKE_XT_DOWN_FILE=str(closed))
    assert printed.split() == ["down", "up", "xtquant", "600519.SH"]


def test_an_exception_in_one_queued_call_loses_only_that_call(
    terminal: native.Terminal, source: XtQuote, sink: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    source.start(sink)
    want(source, MOUTAI)
    sink.until(lambda: MOUTAI in sink.accepted)

    def fail() -> None:
        raise KeyError("600519.SH")

    source._work.put(fail)
    want(source, whole_topic("SH"))
    sink.until(lambda: whole_topic("SH") in sink.accepted)
    assert source.failed_calls == 1
    assert "a call of the xtquant session failed" in caplog.text
    # Neither topic lost its subscription, as it would if the session had ended.
    assert [state for state, _, _ in sink.states] == ["up"]
    assert source.upstream() == 2
