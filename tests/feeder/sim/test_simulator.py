from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

import pytest

from feeder.sim import formula as formula_module
from feeder.sim import simulator as simulator_module
from feeder.sim.history import FAILING_DOWNLOAD, FAILURE
from feeder.sim.indicators import calculate
from feeder.sim.market import Market
from feeder.sim.simulator import ACCOUNT, Simulator
from feeder.source import DownloadRequest, Source
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.messages import AccountState
from qmt_bridge.wire.topics import (
    FormulaSpec,
    Kind,
    Topic,
    download_topic,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    whole_topic,
)
from tests.support.sink import Recording
from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS
BANK = "000001.SZ"


class Said(NamedTuple):
    what: str
    topic: str
    body: Any


class Recorder(Recording):
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Said] = []

    def _say(self, what: str, topic: str, body: object) -> None:
        # Encode at once, as the real sink does: a source may change its objects afterwards.
        encode(body)
        self.note(self.said, Said(what, topic, deepcopy(body)))

    def publish(self, topic: Topic, body: object, received_ns: int) -> None:
        assert abs(time.time_ns() - received_ns) < 10e9
        self._say("publish", topic, body)

    def publish_whole(self, topic: Topic, ticks: Mapping[str, object], received_ns: int) -> None:
        assert abs(time.time_ns() - received_ns) < 10e9
        self._say("publish", topic, dict(ticks))

    def publish_trade(self, account: str, event: str, data: Mapping[str, object], received_ns: int) -> None:
        self._say(event, account, dict(data))

    def accept(self, topic: Topic) -> None:
        self._say("accept", topic, None)

    def refuse(self, topic: Topic, code: str, reason: str) -> None:
        self._say("refuse", topic, (code, reason))

    def set_state(self, state: str, reason: str | None = None, *, data_lost: bool = False) -> None:
        self._say("state", state, reason)

    def set_accounts(self, accounts: Sequence[AccountState]) -> None:
        self.accounts = list(accounts)

    def wait(self, enough: Callable[[list[Said]], bool]) -> list[Said]:
        with self.changed:
            assert self.changed.wait_for(lambda: enough(self.said), DEADLINE), [each[:2] for each in self.said[-20:]]
            return list(self.said)

    def bodies(self, topic: str, count: int) -> list[Any]:
        """Wait for `count` bodies of `topic` and return them."""

        def of(said: list[Said]) -> list[Any]:
            return [each.body for each in said if each.topic == topic and each.what == "publish"]

        return of(self.wait(lambda said: len(of(said)) >= count))[:count]

    def refusal(self, topic: str) -> tuple[str, str]:
        is_it = ("refuse", topic)
        said = self.wait(lambda said: any(each[:2] == is_it for each in said))
        return next(each.body for each in said if each[:2] == is_it)


class Clock:
    """A clock that runs `pace` times as fast as real time, and can be set."""

    def __init__(self, start: int, pace: int = 1) -> None:
        self._start, self._pace, self._from = start, pace, time.monotonic_ns()

    def __call__(self) -> int:
        return self._start + (time.monotonic_ns() - self._from) * self._pace // 1_000_000

    def set(self, to: int) -> None:
        self._start += to - self()


class Played(NamedTuple):
    simulator: Simulator
    sink: Recorder
    config: Config

    def subscribe(self, topic: Topic) -> Topic:
        self.simulator.subscribe(topic, parse_topic(topic))
        return topic

    def unsubscribe(self, topic: Topic) -> None:
        self.simulator.unsubscribe(topic, parse_topic(topic))


# Wednesday, 18 November 2026, 10:41:07 in Shanghai.
NOW = 1_794_969_667_000


@pytest.fixture
def play() -> Iterator[Callable[..., Played]]:
    simulators: list[Simulator] = []

    def start(now: Callable[[], int] | None = None, **settings: Any) -> Played:
        config = Config(**{"sim_interval": 0.1, "sim_order_interval": 0.05, **settings})
        simulator = Simulator(config, Clock(NOW) if now is None else now)
        simulators.append(simulator)
        sink = Recorder()
        simulator.start(sink)
        return Played(simulator, sink, config)

    try:
        yield start
    finally:
        for simulator in simulators:
            simulator.close()
        assert not any(each.name == "simulator" for each in threading.enumerate())


def market(config: Config) -> Market:
    return Market(config.sim_seed, round(config.sim_interval * 1000), config.sim_l2_rate, config.sim_hours)


def test_the_simulator_is_a_simulated_source_of_every_kind() -> None:
    source: Source = Simulator(Config())
    assert source.name == "sim"
    assert source.simulated
    assert not source.lossless
    assert source.kinds == {Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA, Kind.DOWNLOAD, Kind.TRADE}
    # Closing a source that was never started does nothing.
    source.close()


def test_the_session_is_up_from_the_start(play: Callable[..., Played]) -> None:
    said = play().sink.wait(bool)
    assert said[0][:2] == ("state", "up")


def test_the_account_is_served_and_its_number_is_masked(play: Callable[..., Played]) -> None:
    (account,) = play().sink.accounts
    assert (account.account, account.type, account.state) == ("******0365", "STOCK", "up")


def test_a_topic_wanted_only_for_a_moment_is_not_started() -> None:
    simulator, sink = Simulator(Config(), Clock(NOW)), Recorder()
    left, wanted = l2_topic("600519.SH", 7), quote_topic("600519.SH")
    for topic in (left, wanted):
        simulator.subscribe(topic, parse_topic(topic))
    simulator.unsubscribe(left, parse_topic(left))
    try:
        simulator.start(sink)
        sink.bodies(wanted, 1)
        assert left not in {each.topic for each in sink.said}
    finally:
        simulator.close()


def test_a_quote_topic_begins_with_the_current_tick(play: Callable[..., Played]) -> None:
    played = play()
    bodies = played.sink.bodies(played.subscribe(quote_topic(BANK)), 8)
    ticks = [body[BANK][0] for body in bodies]
    assert all(list(body) == [BANK] and len(body[BANK]) == 1 for body in bodies)
    same = market(played.config)
    assert ticks == [same.tick(BANK, tick["time"]) for tick in ticks]
    times = [tick["time"] for tick in ticks]
    assert times == sorted(set(times))
    assert all((later - times[0]) % 100 == 0 for later in times)


def test_the_first_tick_does_not_wait_for_the_next_due_time(play: Callable[..., Played]) -> None:
    played = play(sim_interval=60.0)
    (body,) = played.sink.bodies(played.subscribe(quote_topic(BANK)), 1)
    assert NOW - 60_000 < body[BANK][0]["time"] <= NOW


def test_a_market_sends_its_snapshot_and_then_the_due_codes(play: Callable[..., Played]) -> None:
    played = play(sim_interval=2.0)
    same = market(played.config)
    topic = played.subscribe(whole_topic("BJ"))

    def seen(said: list[Said]) -> list[tuple[str, Any]]:
        return [item for each in said if each.topic == topic and each.body for item in each.body.items()]

    codes = set(same.codes("BJ"))
    said = played.sink.wait(lambda said: all(len(list_) >= 3 for list_ in by_code(seen(said), codes).values()))
    assert said[0].topic == "up"
    for code, ticks in by_code(seen(said), codes).items():
        assert all(tick == same.tick(code, tick["time"]) for tick in ticks)
        assert [tick["time"] for tick in ticks] == sorted(tick["time"] for tick in ticks)


@pytest.mark.parametrize("interval", [2.0, 60.0])
def test_first_push_of_a_market_has_all_its_codes(play: Callable[..., Played], interval: float) -> None:
    # There are more codes than are made between two checks; with 2 s many are due while the snapshot is made.
    played = play(sim_interval=interval)
    topic = played.subscribe(whole_topic("SH"))
    first, *_ = played.sink.bodies(topic, 1)
    assert first.keys() == set(market(played.config).codes("SH"))
    # The first body is the first sign that the market is served.
    assert next(each for each in played.sink.wait(lambda said: True) if each.topic == topic).body


def test_a_market_subscribed_again_begins_with_all_codes(play: Callable[..., Played]) -> None:
    played = play(sim_interval=60.0)
    topic = played.subscribe(whole_topic("SH"))
    played.unsubscribe(topic)
    played.subscribe(whole_topic("SH"))
    first, *_ = played.sink.bodies(topic, 1)
    assert first.keys() == set(market(played.config).codes("SH"))


def by_code(items: list[tuple[str, Any]], codes: set[str]) -> dict[str, list[Any]]:
    assert {code for code, _ in items} <= codes
    return {code: [tick for each, tick in items if each == code] for code in codes}


def test_quote_and_whole_topics_share_their_ticks(play: Callable[..., Played]) -> None:
    played = play()
    code = "920001.BJ"
    topics = [played.subscribe(topic) for topic in (whole_topic("BJ"), whole_topic(code), quote_topic(code))]

    def ticks(said: list[Said]) -> list[dict[int, Any]]:
        found = [
            [each.body[code] for each in said if each.topic == topic and code in (each.body or ())] for topic in topics
        ]
        return [
            {tick["time"]: tick for tick in (each[0] if isinstance(each, list) else each for each in bodies)}
            for bodies in found
        ]

    def shared(said: list[Said]) -> set[int]:
        return set.intersection(*map(set, ticks(said)))

    said = played.sink.wait(lambda said: len(shared(said)) >= 4)
    whole, single, quote = ticks(said)
    assert all(whole[moment] == single[moment] == quote[moment] for moment in shared(said))


@pytest.mark.parametrize("period", ["1m", "1h", "1d", "1y", "l2quote", "l2orderqueue", "l2quoteaux"])
def test_every_tick_brings_the_record_of_other_periods(play: Callable[..., Played], period: str) -> None:
    played = play()
    same = market(played.config)
    ticks, quotes = played.subscribe(quote_topic(BANK)), played.subscribe(quote_topic(BANK, period))
    records = [body[BANK][0] for body in played.sink.bodies(quotes, 5)][1:]
    # A tick may come between the two subscriptions; after both, each tick comes on both topics.
    times = [body[BANK][0]["time"] for body in played.sink.bodies(ticks, 12)]
    expected = [same.quote(BANK, period, moment) for moment in times]
    first = expected.index(records[0])
    assert records == expected[first : first + 4]


@pytest.mark.parametrize("gear_num", [0, 20])
def test_depth_has_the_requested_number_of_levels(play: Callable[..., Played], gear_num: int) -> None:
    played = play()
    bodies = played.sink.bodies(played.subscribe(l2_topic(BANK, gear_num)), 3)
    assert all(len(body[BANK][0]["askPrice"]) == (gear_num or 1000) for body in bodies)
    same = market(played.config)
    assert [body[BANK][0] for body in bodies] == [
        same.thousand(BANK, gear_num, body[BANK][0]["time"]) for body in bodies
    ]


@pytest.mark.parametrize("period", ["l2order", "l2transaction"])
def test_every_order_and_trade_print_comes_exactly_once(play: Callable[..., Played], period: str) -> None:
    played = play(sim_interval=1.0, sim_l2_rate=50)
    records = [
        record for body in played.sink.bodies(played.subscribe(quote_topic(BANK, period)), 15) for record in body[BANK]
    ]
    numbers = [record["tradeIndex" if period == "l2transaction" else "entrustNo"] for record in records]
    assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    assert records == market(played.config).stream(BANK, period, records[0]["time"] - 1, records[-1]["time"])


def test_a_formula_sends_its_history_and_then_the_newest_bar(play: Callable[..., Played]) -> None:
    # A minute passes in three seconds, so that a bar ends during the test.
    played = play(Clock(NOW, pace=20), sim_interval=3.0)
    spec = FormulaSpec(formula_name="MA", stock_code=BANK, period="1m", params={"N1": 3})
    topic = played.subscribe(formula_topic(spec))

    def ended(said: list[Said]) -> bool:
        return any(each.topic == topic and len(each.body["data"]["timelist"]) == 2 for each in said)

    bodies = [each.body for each in played.sink.wait(ended) if each.topic == topic]
    assert all((body["formula_name"], body["stock_code"]) == ("MA", BANK) for body in bodies)
    assert [body["data"]["dbt"] for body in bodies] == [0] + [1] * (len(bodies) - 1)
    first, last = bodies[0]["data"], bodies[-1]["data"]
    assert len(first["timelist"]) == len(first["outputs"]["MA1"]) == 250
    bars = market(played.config).bars(BANK, "1m", first["timelist"][-1] + 60_000, 300)
    at = [bar["time"] for bar in bars].index(first["timelist"][-1])
    assert last["timelist"] == [bar["time"] for bar in bars[at : at + 2]]
    closes = [bar["close"] for bar in bars]
    assert first["outputs"]["MA1"][-2] == pytest.approx(sum(closes[at - 3 : at]) / 3)
    # The value of an ended bar is final.
    assert last["outputs"]["MA1"][0] == pytest.approx(sum(closes[at - 2 : at + 1]) / 3)
    assert all(len(values) == 2 for values in last["outputs"].values())
    for body in bodies[1:-1]:
        assert body["data"]["timelist"] == [first["timelist"][-1]]


def many_formulas(count: int) -> list[Topic]:
    return [formula_topic(FormulaSpec("MA", BANK, "1d", count=10 + number)) for number in range(count)]


@pytest.fixture
def slow_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> dict[str, list[float]]:
        time.sleep(0.004)
        return calculate(*args)

    monkeypatch.setattr(formula_module, "calculate", slow)


@pytest.mark.usefixtures("slow_formulas")
def test_no_number_of_formulas_delays_a_tick(play: Callable[..., Played]) -> None:
    played = play()
    topics = {played.subscribe(topic) for topic in many_formulas(150)}
    tick = played.subscribe(quote_topic(BANK))
    for topic in topics:
        played.sink.bodies(topic, 1)
    begun = len(played.sink.said)
    said = played.sink.wait(lambda said: sum(each.topic == tick for each in said[begun:]) >= 10)[begun:]
    ticks = [index for index, each in enumerate(said) if each.topic == tick]
    between = [sum(each.topic in topics for each in said[at:to]) for at, to in pairwise(ticks)]
    # All formulas together take six times as long as the pause between two ticks.
    assert sum(between) > 0
    assert sorted(between)[len(between) // 2] < len(topics) // 2


@pytest.mark.usefixtures("slow_formulas")
def test_a_new_quote_does_not_wait_for_formulas(play: Callable[..., Played]) -> None:
    played = play(sim_interval=60.0)
    topics = [played.subscribe(topic) for topic in many_formulas(150)]
    tick = played.subscribe(quote_topic(BANK))
    for topic in topics:
        played.sink.bodies(topic, 1)
    order = [each.topic for each in played.sink.said if each.what == "publish"]
    assert order.index(tick) < len(topics) // 2


def test_a_kind_does_not_wait_for_the_start_of_another(play: Callable[..., Played]) -> None:
    played = play(sim_interval=60.0)
    depths = [played.subscribe(l2_topic(BANK, number)) for number in range(1, 201)]
    bar = played.subscribe(quote_topic(BANK, "1m"))
    for topic in depths:
        played.sink.bodies(topic, 1)
    order = [each.topic for each in played.sink.said if each.what == "publish"]
    assert order.index(bar) < len(depths)


def test_formulas_are_limited_and_an_ended_one_makes_room(
    play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_module, "MAX_FORMULA_BARS", 250)
    played = play()
    first, second, third = many_formulas(3)
    unknown = formula_topic(FormulaSpec("NONE", BANK, "1d", count=20))
    played.subscribe(unknown)
    assert played.sink.refusal(unknown)[0] == "upstream_refused"
    for topic in (first, second, third):
        played.subscribe(topic)
    assert played.sink.refusal(third)[0] == "symbol_limit"
    for topic in (first, second):
        played.sink.bodies(topic, 2)
    assert not any(each.topic == third and each.what == "publish" for each in played.sink.said)
    played.unsubscribe(first)
    played.subscribe(third)
    played.sink.bodies(third, 2)


def test_a_formula_has_the_requested_number_of_bars(play: Callable[..., Played]) -> None:
    played = play()
    spec = FormulaSpec(formula_name="KDJ", stock_code=BANK, count=30)
    (body,) = played.sink.bodies(played.subscribe(formula_topic(spec)), 1)
    bars = market(played.config).bars(BANK, "1d", NOW + 3600_000, 30)
    assert body["data"]["timelist"] == [bar["time"] for bar in bars]
    expected = calculate("KDJ", bars, {})
    assert {name: values[:-1] for name, values in body["data"]["outputs"].items()} == pytest.approx(
        {name: pytest.approx(values[:-1], nan_ok=True) for name, values in expected.items()}
    )


@pytest.mark.parametrize(
    ("topic", "code", "named"),
    [
        pytest.param(quote_topic("999999.SZ"), "unknown_symbol", "999999.SZ", id="quote"),
        pytest.param(whole_topic("999999.SZ"), "unknown_symbol", "999999.SZ", id="whole-code"),
        pytest.param(whole_topic("HK"), "unknown_symbol", "HK", id="whole-market"),
        pytest.param(l2_topic("999999.SZ"), "unknown_symbol", "999999.SZ", id="depth"),
        pytest.param(l2_topic("000300.SH"), "upstream_refused", "000300.SH", id="depth-of-index"),
        pytest.param(quote_topic("999999.SZ", "l2order"), "unknown_symbol", "999999.SZ", id="stream"),
        pytest.param(quote_topic(BANK, "announcement"), "unsupported_period", "announcement", id="period"),
        pytest.param(formula_topic(FormulaSpec("NOPE", BANK)), "upstream_refused", "NOPE", id="formula"),
        pytest.param(formula_topic(FormulaSpec("MA", "999999.SZ")), "unknown_symbol", "999999.SZ", id="formula-code"),
        pytest.param(formula_topic(FormulaSpec("MA", BANK, "tick")), "unsupported_period", "tick", id="formula-period"),
        pytest.param(formula_topic(FormulaSpec("MA", BANK, count=0)), "upstream_refused", "count", id="formula-count"),
    ],
)
def test_an_unknown_topic_is_refused_by_name(play: Callable[..., Played], topic: Topic, code: str, named: str) -> None:
    played = play()
    played.subscribe(topic)
    refused_as, reason = played.sink.refusal(topic)
    assert refused_as == code
    assert named in reason
    assert played.simulator.upstream() == 0
    # The thread still runs.
    played.sink.bodies(played.subscribe(quote_topic(BANK)), 2)
    assert not [each for each in played.sink.said if each.topic == topic and each.what == "publish"]


@pytest.mark.parametrize(
    "topic",
    [
        quote_topic(BANK),
        quote_topic(BANK, "1m"),
        quote_topic(BANK, "l2order"),
        whole_topic("BJ"),
        whole_topic(BANK),
        l2_topic(BANK),
        formula_topic(FormulaSpec("MA", BANK)),
    ],
)
def test_an_unsubscribed_topic_is_not_published(play: Callable[..., Played], topic: Topic) -> None:
    played = play()
    played.subscribe(topic)
    played.sink.bodies(topic, 2)
    assert played.simulator.upstream() == 1
    played.unsubscribe(topic)
    # Calls are handled in order, so `topic` has ended before the first body of the other topic.
    other = played.subscribe(quote_topic("600519.SH"))
    count = len(played.sink.bodies(other, 1)) and len([each for each in played.sink.said if each.topic == topic])
    played.sink.bodies(other, 5)
    assert len([each for each in played.sink.said if each.topic == topic]) == count
    assert played.simulator.upstream() == 1
    # The topic can be subscribed again.
    played.subscribe(topic)
    played.sink.wait(lambda said: len([each for each in said if each.topic == topic]) > count)


def test_a_download_publishes_its_progress_and_its_end(play: Callable[..., Played]) -> None:
    played = play()
    topic = download_topic("1")
    played.simulator.download(topic, DownloadRequest((BANK, "600519.SH", "510300.SH"), "1d", "", ""))
    assert played.sink.bodies(topic, 4) == [
        {"finished": 1, "total": 3, "stockcode": BANK, "message": ""},
        {"finished": 2, "total": 3, "stockcode": "600519.SH", "message": ""},
        {"finished": 3, "total": 3, "stockcode": "510300.SH", "message": ""},
        {"status": "done"},
    ]


def test_a_cancelled_download_ends_as_an_error(play: Callable[..., Played]) -> None:
    played = play()
    topic = download_topic("1")
    # The cancel comes before the first turn of the download: calls are handled in order, without a turn between them.
    played.simulator.download(topic, DownloadRequest(tuple(market(played.config).instruments), "1d", "", ""))
    played.unsubscribe(topic)
    last = played.sink.wait(lambda said: any("status" in (each.body or {}) for each in said if each.topic == topic))
    end = [each.body for each in last if each.topic == topic][-1]
    assert (end["status"], end["code"]) == ("error", "upstream_unavailable")
    assert end["error"] == "the download was cancelled"
    other = played.subscribe(quote_topic("600519.SH"))
    played.sink.bodies(other, 5)
    assert [each.body for each in played.sink.said if each.topic == topic][-1] == end


def test_a_download_of_a_market_ends(play: Callable[..., Played]) -> None:
    played = play(sim_interval=0.02)
    codes = tuple(code for code in market(played.config).instruments if code != FAILING_DOWNLOAD)
    topic = download_topic("1")
    played.simulator.download(topic, DownloadRequest(codes, "tick", "20261101", ""))
    bodies = played.sink.bodies(topic, len(codes) + 1)
    assert [body["finished"] for body in bodies[:-1]] == [*range(1, len(codes) + 1)]
    assert bodies[-1] == {"status": "done"}


def test_a_download_names_the_codes_that_failed(play: Callable[..., Played]) -> None:
    played = play()
    topic = download_topic("2")
    played.simulator.download(topic, DownloadRequest((BANK, FAILING_DOWNLOAD, "999999.SZ"), "1m", "", ""))
    *progress, end = played.sink.bodies(topic, 4)
    reason = "999999.SZ is not in the simulated market"
    assert [body["message"] for body in progress] == ["", FAILURE, reason]
    assert end == {
        "status": "error",
        "type": "error",
        "code": "upstream_refused",
        "error": f"download failed for 2 of 3 codes: {FAILING_DOWNLOAD}: {FAILURE}; 999999.SZ: {reason}",
        "failed": {FAILING_DOWNLOAD: FAILURE, "999999.SZ": reason},
    }


def test_a_download_of_an_unknown_period_is_refused(play: Callable[..., Played]) -> None:
    with pytest.raises(Refused, match="announcement") as refused:
        play().simulator.download(download_topic("3"), DownloadRequest((BANK,), "announcement", "", ""))
    assert refused.value.code == "unsupported_period"


def test_the_account_trades_from_the_start_at_market_prices(play: Callable[..., Played]) -> None:
    played = play()
    needed = {"asset", "position", "order", "trade", "order_error"}
    said = played.sink.wait(lambda said: needed <= {each.what for each in said if each.topic == ACCOUNT})
    same = market(played.config)
    for each in said:
        if each.what == "trade":
            code, at = each.body["stock_code"], each.body["traded_time"]
            prices = {same.tick(code, at * 1000 + ms)["lastPrice"] for ms in range(-100, 1100, 50)}
            assert each.body["traded_price"] in prices


def test_a_late_thread_skips_ticks_and_sends_no_burst(play: Callable[..., Played]) -> None:
    clock = Clock(NOW)
    played = play(clock)
    ticks, prints = played.subscribe(quote_topic(BANK)), played.subscribe(quote_topic(BANK, "l2transaction"))
    played.sink.bodies(prints, 2)
    played.sink.bodies(ticks, 2)
    clock.set(NOW + 3 * 86_400_000)
    bodies = [
        each.body
        for each in played.sink.wait(lambda said: any(later(each, ticks) for each in said))
        if each.topic == ticks
    ]
    jump = [body[BANK][0]["time"] for body in bodies]
    assert jump[-2] < NOW + 86_400_000 < jump[-1]
    said = played.sink.wait(lambda said: any(later(each, prints) for each in said))
    missed = next(each.body[BANK] for each in said if later(each, prints))
    assert missed[0]["time"] > NOW + 3 * 86_400_000 - 2000
    times = [body[BANK][0]["time"] for body in played.sink.bodies(ticks, len(bodies) + 3)]
    assert times == sorted(set(times))


def later(said: Said, topic: str) -> bool:
    return said.topic == topic and bool(said.body) and said.body[BANK][0]["time"] > NOW + 86_400_000


def test_a_clock_set_back_does_not_stop_the_market(play: Callable[..., Played]) -> None:
    clock = Clock(NOW)
    played = play(clock)
    topic = played.subscribe(quote_topic(BANK))
    played.sink.bodies(topic, 2)
    clock.set(NOW - 3_600_000)
    times = [body[BANK][0]["time"] for body in played.sink.bodies(topic, 8)]
    assert times[-1] < NOW - 3_000_000


def test_a_changed_clock_neither_stops_nor_rewinds_the_account(play: Callable[..., Played]) -> None:
    clock = Clock(NOW)
    played = play(clock)

    def placed(said: list[Said]) -> dict[int, int]:
        return {each.body["order_id"]: each.body["order_time"] for each in said if each.what == "order"}

    orders: dict[int, int] = {}
    for hours in (0, -1, -1):
        clock.set(NOW + hours * 3_600_000)
        known = len(orders)
        orders = placed(played.sink.wait(lambda said, known=known: len(placed(said)) >= known + 10))
    assert list(orders) == sorted(orders)
    assert max(orders.values()) < NOW // 1000 + 3600
    # As soon as the clock is ahead again, the account follows it.
    clock.set(NOW + 7_200_000)
    orders = placed(played.sink.wait(lambda said: max(placed(said).values()) >= NOW // 1000 + 7200))
    assert max(orders.values()) < NOW // 1000 + 9000


def test_the_exchange_hours_are_a_setting(play: Callable[..., Played]) -> None:
    # On a Sunday the last tick of Friday is published, and nothing after it.
    played = play(Clock(NOW + 4 * 86_400_000), sim_hours="exchange")
    topic = played.subscribe(quote_topic(BANK))
    (body,) = played.sink.bodies(topic, 1)
    assert body[BANK][0]["openInt"] == 15
    job = download_topic("1")
    played.simulator.download(job, DownloadRequest((BANK,) * 20, "1d", "", ""))
    played.sink.bodies(job, 21)
    assert len([each for each in played.sink.said if each.topic == topic]) == 1
    assert not [each for each in played.sink.said if each.what == "trade"]


def test_a_failure_of_the_thread_is_reported(play: Callable[..., Played], caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> int:
        if threading.current_thread().name == "simulator":
            raise OSError("no clock")
        return NOW

    said = play(broken).sink.wait(lambda said: len(said) >= 2)
    assert said[-1][:2] == ("state", "down")
    assert said[-1].body == "simulator failed: no clock"
    assert "no clock" in caplog.text
