"""Watchdog: what it does about silence over simulated days, with the exchange's time apart from the machine's clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from feeder.xt.quotes.newest import Moment
from feeder.xt.quotes.subscription import NativeSubscription
from feeder.xt.quotes.topic_state import TopicState
from feeder.xt.quotes.watchdog import Advice, Watchdog
from qmt_bridge.wire.topics import Topic, TopicParts, parse_topic, quote_topic, whole_topic

SHANGHAI = timezone(timedelta(hours=8))
HOUR = 3600
LIMIT = 30
ACTIONS = ("renew", "resubscribe", "reconnect")
# To make few checks in a test, one check may stand for this much time.
LOOK = 5
TUESDAY = datetime(2026, 11, 24, tzinfo=SHANGHAI)
# The times in which ticks are pushed or the terminal changes some of them.
BUSY = (("2:20", "2:35"), ("8:59", "9:02"), ("9:14", "11:35"), ("12:55", "15:35"), ("20:59", "21:05"))
# The second at which the terminal resets its ticks before the trading day; it pushes none of that.
RESETS = {"000001.SH": 32400, "600519.SH": 32430, "600000.SH": 32470, "600001.SH": 32510}
TRADED = ["000001.SH", "600519.SH", "600000.SH", "688981.SH", "399001.SZ", "000001.SZ", "899050.BJ", "430047.BJ"]


def clock(text: str) -> int:
    """Return the second of the day of "9:30"."""
    hours, minutes = text.split(":")
    return int(hours) * HOUR + int(minutes) * 60


def is_within(second: int, *spans: tuple[str, str]) -> bool:
    return any(clock(begin) <= second < clock(end) for begin, end in spans)


def subscribed(topic: Topic | None, parts: TopicParts) -> NativeSubscription:
    return NativeSubscription(TopicState(parts, topic), topic)


class SimulatedDay:
    """An exchange, a terminal with its ticks, and a watchdog on a machine whose clock is `offset` seconds ahead.

    `day` is "trading", "half" (only the morning) or "holiday" (missing in the calendar). From the second `deaf` on the
    terminal pushes nothing; from the second `cut` on it receives nothing itself.
    """

    def __init__(
        self, *topics: Topic, offset: int = 0, day: str = "trading", deaf: int = 86400, cut: int = 86400
    ) -> None:
        self.offset, self.day, self.deaf, self.cut = offset, day, deaf, cut
        self.second = 0
        # A test may replace how the terminal answers a query for last ticks.
        self.answer: Callable[[dict[str, Any]], Any] = dict
        self.ticks: dict[str, dict[str, Any]] = {}
        self.wanted: dict[Topic, TopicParts] = {topic: parse_topic(topic) for topic in topics}
        self.subscriptions: dict[TopicParts, NativeSubscription] = {}
        self.subscribe()
        self.watchdog = Watchdog(self, LIMIT, self.now, lambda: True)
        self.advice: list[tuple[int, Advice]] = []
        yesterday = self.time(-9 * HOUR)
        for code in (*TRADED, "600001.SH", "600002.SH", "ag2612.SF", "00700.HK"):
            self.ticks[code] = {"time": yesterday, "volume": 9_000_000, "lastPrice": 10.0, "openInt": 15}

    def subscribe(self) -> None:
        self.subscriptions = {parts: subscribed(topic, parts) for topic, parts in self.wanted.items()}

    def time(self, second: int) -> int:
        return int((TUESDAY + timedelta(seconds=second)).timestamp() * 1000)

    def now(self) -> int:
        return self.time(self.second + self.offset)

    # The functions of xtdata that the watchdog calls.

    def get_full_tick(self, codes: list[str]) -> Any:
        # As in the wheel: a tick also has its time as text, and amounts are in whole yuan.
        return self.answer({code: {**self.ticks[code], "timetag": "x", "amount": 7} for code in codes})

    def download_holiday_data(self) -> None: ...

    def get_holidays(self) -> list[str]:
        return ["20260101"]

    # Running the simulated day.

    def run(self, begin: int, end: int) -> SimulatedDay:
        for second in range(begin, end, LOOK):
            clock_says = (second + self.offset) % 86400
            if not (is_within(second, *BUSY) or is_within(clock_says, ("9:25", "15:00"))):
                # No code trades, and the watchdog would neither query nor count.
                continue
            self.second = second
            self.trade()
            advice = self.watchdog.look(self.wanted, list(self.wanted), self.subscriptions)
            if advice.action != "none":
                self.advice.append((second, advice))
            if advice.action == "reconnect":
                self.subscribe()
            for subscription in advice.subscriptions:
                self.subscriptions[subscription.parts] = subscribed(subscription.topic, subscription.parts)
        return self

    def trade(self) -> None:
        second = self.second
        if second >= self.cut:
            return
        if is_within(second, ("0:00", "2:30"), ("21:00", "24:00")):
            self.tick("ag2612.SF", 3)
        if self.day == "holiday":
            return
        for code, reset in RESETS.items():
            if reset <= second < reset + LOOK:
                self.ticks[code] = {"time": self.time(second), "volume": 0, "lastPrice": 10.0, "openInt": 11}
        morning, afternoon = ("9:30", "11:30"), ("13:00", "14:57")
        if self.day == "half":
            afternoon = ("0:00", "0:00")
        if is_within(second, ("9:15", "9:25")):
            # Only orders change, without a trade.
            self.move(TRADED, 0, status=12)
        elif is_within(second, morning, afternoon) or second == clock("9:25"):
            self.move(TRADED, 10)
            if second % 420 == 0:
                self.tick("600001.SH", 1)
        elif self.day != "half" and is_within(second, ("14:57", "15:00")):
            self.move(TRADED, 0, status=18)
        elif self.day != "half" and second == clock("15:00"):
            self.move(TRADED, 500, status=15)
        elif self.day != "half" and is_within(second, ("15:05", "15:30")):
            self.tick("688981.SH", 1, status=22)
        if is_within(second, ("9:30", "12:00"), ("13:00", "16:00")):
            self.tick("00700.HK", 10)

    def move(self, codes: list[str], volume: int, status: int = 13) -> None:
        for code in codes:
            self.tick(code, volume, status)
        for subscription in self.subscriptions.values():
            if subscription.is_market and self.second < self.deaf:
                # One push has all of them.
                market = subscription.parts.name
                subscription.pushed = {code: self.ticks[code] for code in codes if code.endswith(market)}

    def tick(self, code: str, volume: int, status: int = 13) -> None:
        before = self.ticks[code]["volume"] % 9_000_000
        self.ticks[code] = tick = {
            "time": self.time(self.second),
            "volume": before + volume,
            "lastPrice": 10.0,
            "openInt": status,
        }
        if self.second >= self.deaf:
            return
        for subscription in self.subscriptions.values():
            if code == subscription.parts.name or code.rpartition(".")[2] == subscription.parts.name:
                subscription.note_push({code: tick})
                if subscription.is_market:
                    subscription.pushed = {code: tick}
                subscription.state.newest.admit(code, tick, Moment(self.time(self.second) * 1_000_000, self.second))

    @property
    def actions(self) -> list[tuple[int, str]]:
        return [(second, advice.action) for second, advice in self.advice if advice.action in ACTIONS]

    @property
    def said(self) -> list[str]:
        return [advice.action for _, advice in self.advice]


MARKET = (whole_topic("SH"),)
SEVERAL = (
    whole_topic("SH"),
    whole_topic("BJ"),
    quote_topic("600519.SH"),
    quote_topic("600519.SH", "1m"),
    quote_topic("ag2612.SF"),
    quote_topic("00700.HK"),
)
# One code that trades, one that trades every seven minutes, a halted one, and more of a market than may be halted.
SINGLES = (
    *(quote_topic(code) for code in ("600519.SH", "600000.SH", "688981.SH", "600001.SH", "600002.SH", "000001.SZ")),
    whole_topic("000001.SH"),
)
# One code that is halted and one that trades rarely.
QUIET = (quote_topic("600002.SH"), quote_topic("600001.SH"))


@pytest.mark.parametrize(
    ("day", "offset"),
    [
        *(("trading", offset) for offset in range(-12, 13)),
        *((day, offset) for day in ("holiday", "half") for offset in (-8, -1, 0, 1, 8)),
    ],
)
def test_a_healthy_day_causes_no_action_whatever_the_clock_shows(day: str, offset: int) -> None:
    assert SimulatedDay(*SEVERAL, offset=offset * HOUR, day=day).run(0, 86400).actions == []


@pytest.mark.parametrize("offset", [-8, -1, 1])
@pytest.mark.parametrize("topics", [MARKET, SINGLES, QUIET], ids=["market", "singles", "quiet"])
def test_other_subscriptions_cause_no_action_on_a_healthy_day(topics: tuple[Topic, ...], offset: int) -> None:
    assert SimulatedDay(*topics, offset=offset * HOUR).run(0, 86400).actions == []


@pytest.mark.parametrize("offset", [-90, -45, -1, 1, 45, 90])
def test_a_clock_that_is_some_minutes_off_causes_no_action(offset: int) -> None:
    for topics in (SEVERAL, SINGLES):
        assert SimulatedDay(*topics, offset=offset * 60).run(clock("8:30"), clock("15:40")).actions == []


def test_a_clock_that_jumps_causes_no_action() -> None:
    world = SimulatedDay(*SEVERAL)
    for begin in range(0, 86400, HOUR):
        world.run(begin, begin + HOUR)
        world.offset = (world.offset + 7 * HOUR) % (12 * HOUR) - 6 * HOUR
    assert world.actions == []


@pytest.mark.parametrize("offset", [0, 1])
def test_a_holiday_missing_in_the_calendar_is_only_stale(offset: int) -> None:
    world = SimulatedDay(*MARKET, offset=offset * HOUR, day="holiday").run(0, 86400)
    assert world.said == ["stale", "closed"] * 2
    assert abs(world.advice[0][0] + offset * HOUR - clock("9:30") - 10 - LIMIT) <= LOOK


@pytest.mark.parametrize("topics", [MARKET, SEVERAL, SINGLES], ids=["market", "several", "singles"])
@pytest.mark.parametrize("deaf", ["10:00", "13:40"])
@pytest.mark.parametrize("offset", [0, 1, -1, 8, -8])
def test_a_session_that_becomes_deaf_is_replaced_in_time(topics: tuple[Topic, ...], deaf: str, offset: int) -> None:
    world = SimulatedDay(*topics, offset=offset * HOUR, deaf=clock(deaf)).run(clock(deaf) - 600, clock(deaf) + 600)
    assert world.actions[0][0] <= clock(deaf) + LIMIT
    # If another subscription had a push a moment ago, the deaf one is first only subscribed again.
    if topics == MARKET or not offset:
        assert "reconnect" in [action for _, action in world.actions[: 1 if topics == MARKET else None]]


@pytest.mark.parametrize("topics", [MARKET, SINGLES], ids=["market", "singles"])
@pytest.mark.parametrize("offset", [0, -0.1, 0.1])
def test_a_session_that_is_deaf_from_the_open_is_noticed(topics: tuple[Topic, ...], offset: float) -> None:
    world = SimulatedDay(*topics, offset=round(offset * HOUR), deaf=0).run(clock("9:20"), clock("10:00"))
    first = world.actions[0]
    again = next(second for second, action in world.actions if action == "reconnect")
    assert first[1] == "resubscribe"
    # While the index moves, fewer than five traded codes have ten times as long.
    patience = 1 if topics == MARKET else 10
    assert first[0] <= clock("9:30") + max(0, -offset) * HOUR + 10 + patience * LIMIT + 4 * LOOK
    assert again - first[0] <= (patience + 2) * LIMIT + 4 * LOOK
    assert len(world.actions) <= 12


def test_a_terminal_without_data_is_stale_until_it_pushes_again() -> None:
    world = SimulatedDay(*MARKET, cut=clock("10:00")).run(clock("9:00"), clock("11:00"))
    assert world.said == ["stale"]
    assert world.advice[0][0] == clock("10:00") + LIMIT - LOOK
    world.cut = 86400
    world.run(clock("11:00"), clock("11:20"))
    assert world.said == ["stale", "recovered"]


def test_a_terminal_that_has_data_again_but_pushes_none_is_deaf() -> None:
    world = SimulatedDay(*MARKET, cut=clock("10:00"), deaf=clock("10:00")).run(clock("9:00"), clock("10:40"))
    assert world.said == ["stale"]
    world.cut = 86400
    world.run(clock("10:40"), clock("10:41"))
    assert world.actions[0][1] in ("resubscribe", "reconnect")


def fails(_: object) -> Any:
    raise RuntimeError("no answer")


@pytest.mark.parametrize("answer", [lambda _: {}, lambda _: None, lambda _: 7, fails])
def test_a_terminal_that_never_answers_is_only_stale(answer: Callable[[Any], Any]) -> None:
    world = SimulatedDay(*MARKET, deaf=0)
    world.answer = answer
    assert world.run(clock("9:00"), clock("11:00")).said == ["stale"]


def test_a_session_without_pushes_and_answers_is_replaced() -> None:
    # Quiet codes were queried before, so it is known that the terminal answers.
    world = SimulatedDay(*MARKET, *QUIET, deaf=clock("10:00")).run(clock("9:00"), clock("10:00"))
    world.answer = fails
    world.run(clock("10:00"), clock("10:03"))
    assert [action for _, action in world.actions] == ["resubscribe", "reconnect"]
    # In the new session the terminal never answered.
    assert world.run(clock("10:03"), clock("11:00")).actions == world.actions[:2]


@pytest.mark.parametrize("topics", [QUIET, (quote_topic("600002.SH"),)], ids=["rare", "halted"])
def test_codes_that_do_not_trade_are_no_evidence(topics: tuple[Topic, ...]) -> None:
    assert SimulatedDay(*topics, deaf=0, offset=0).run(clock("9:00"), clock("9:40")).actions == []
