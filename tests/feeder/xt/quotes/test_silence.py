"""Silence: when a market is stale, what is done about it and how often, with the time as an argument."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import pytest

from feeder.xt.quotes.silence import ACTIONS_A_DAY, MARKETS, SEVERAL, Silence, day_name, day_number

SHANGHAI = timezone(timedelta(hours=8))
LIMIT = 30
ALL = {"SH": SEVERAL}


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=SHANGHAI).timestamp() * 1000)


# A Tuesday.
MORNING = at("2026-11-24T10:00:00")


class Watch:
    """Check once a second and keep the actions, each with its second after the start."""

    def __init__(self, start: int = MORNING, limit: int = LIMIT) -> None:
        self.silence = Silence(limit * 1000)
        self.start = self.now = start
        self.done: list[tuple[int, str]] = []

    def look(
        self,
        seconds: int,
        wanted: dict[str, int] = ALL,
        heard: Collection[str] = (),
        missed: Collection[str] | None = None,
    ) -> list[tuple[int, str]]:
        """Check for `seconds` while the markets in `heard` push, and return the actions.

        The terminal has newer data of the markets in `missed`; without it, of all markets that do not push.
        """
        if missed is None:
            missed = MARKETS - frozenset(heard)
        before = len(self.done)
        for _ in range(seconds):
            self.now += 1000
            action = self.silence.check(self.now, wanted, heard, missed)
            if action != "none":
                self.done.append(((self.now - self.start) // 1000, action))
        return self.done[before:]


@pytest.fixture
def watch() -> Watch:
    watch = Watch()
    # The time before the first check is not known.
    watch.look(1, heard={"SH", "SZ", "BJ"})
    watch.start = watch.now
    return watch


def test_a_market_with_pushes_is_never_stale(watch: Watch) -> None:
    for _ in range(20):
        assert watch.look(LIMIT - 1) == watch.look(1, heard={"SH"}) == []


def test_a_silent_market_is_renewed_then_reconnected_more_rarely(watch: Watch) -> None:
    watch.look(1000)
    assert watch.done == [
        (30, "resubscribe"),
        (90, "reconnect"),
        (210, "reconnect"),
        (450, "reconnect"),
        (930, "reconnect"),
    ]
    assert watch.silence.stale == {"SH"}


def test_a_pause_is_never_longer_than_half_an_hour(watch: Watch) -> None:
    watch.look(89 * 60)
    seconds = [second for second, _ in watch.done]
    assert [later - earlier for earlier, later in pairwise(seconds)] == [
        60,
        120,
        240,
        480,
        960,
        1800,
    ]


def test_a_market_that_pushes_again_is_recovered_once(watch: Watch) -> None:
    watch.look(LIMIT + 10)
    assert watch.look(1, heard={"SH"}) == [(41, "recovered")]
    assert watch.silence.stale == frozenset()
    assert watch.look(5, heard={"SH"}) == []
    assert watch.look(LIMIT) == [(76, "resubscribe")]
    assert watch.look(2 * LIMIT) == [(136, "reconnect")]


def test_another_market_is_no_sign_of_life(watch: Watch) -> None:
    assert watch.look(LIMIT, {"SH": SEVERAL, "SZ": SEVERAL}, {"SZ"}) == [(30, "resubscribe")]
    assert watch.silence.stale == {"SH"}
    assert watch.look(1, {"SH": SEVERAL, "SZ": SEVERAL}, {"SH"}) == [(31, "recovered")]


def test_a_second_market_that_becomes_silent_is_renewed_too(watch: Watch) -> None:
    both = {"SH": SEVERAL, "SZ": SEVERAL}
    watch.look(10, both, {"SZ"})
    watch.look(LIMIT, both)
    assert watch.done == [(30, "resubscribe"), (40, "resubscribe")]
    assert watch.silence.stale == {"SH", "SZ"}
    # The silence does not end when only one of them pushes.
    assert watch.look(5, both, {"SZ"}) == []
    assert watch.silence.stale == {"SH"}


@pytest.mark.parametrize("codes", [0, 1, SEVERAL - 1])
def test_a_few_codes_may_be_quiet_for_ten_times_as_long(watch: Watch, codes: int) -> None:
    assert watch.look(10 * LIMIT - 1, {"SH": codes}) == []
    assert watch.look(1, {"SH": codes}) == [(300, "resubscribe")]


def test_an_unsubscribed_market_is_no_longer_stale(watch: Watch) -> None:
    watch.look(LIMIT)
    assert watch.look(1, {"SZ": SEVERAL}) == [(31, "recovered")]
    assert watch.look(LIMIT - 2, {"SZ": SEVERAL}) == []


@pytest.mark.parametrize("market", ["HK", "IF", "SHO", "BKZS"])
def test_markets_with_their_own_hours_are_not_watched(watch: Watch, market: str) -> None:
    assert watch.look(1000, {market: SEVERAL}) == []


@pytest.mark.parametrize(
    ("begin", "seconds"),
    [
        pytest.param("2026-11-24T00:00:00", 3600, id="night"),
        pytest.param("2026-11-24T09:00:00", 30 * 60 + 10 + LIMIT - 2, id="before-the-open"),
        pytest.param("2026-11-24T11:29:45", 90 * 60 + 15 + 10 + LIMIT - 2, id="lunch"),
        pytest.param("2026-11-24T14:56:45", 3600, id="close"),
        pytest.param("2026-11-28T10:00:00", 3600, id="saturday"),
        pytest.param("2026-11-29T10:00:00", 3600, id="sunday"),
    ],
)
def test_no_market_is_stale_outside_trading_hours(begin: str, seconds: int) -> None:
    watch = Watch(at(begin))
    assert watch.look(seconds) == []


@pytest.mark.parametrize("begin", ["2026-11-24T09:29:00", "2026-11-24T12:59:00"])
def test_the_watch_begins_ten_seconds_after_each_open(begin: str) -> None:
    watch = Watch(at(begin))
    assert watch.look(60 + 10 + LIMIT) == [(60 + 10 + LIMIT - 1, "resubscribe")]


def test_no_market_is_stale_on_a_holiday_but_on_the_day_after() -> None:
    watch = Watch(at("2026-10-01T10:00:00"))
    watch.silence.holidays = frozenset(("20261001",))
    assert watch.look(3600) == []
    watch.now = at("2026-10-02T10:00:00")
    assert [action for _, action in watch.look(LIMIT)] == ["resubscribe"]


@pytest.mark.parametrize(
    ("begin", "closed", "opened"),
    [
        pytest.param("2026-11-24T11:29:00", 60, "2026-11-24T13:00:10", id="lunch"),
        pytest.param("2026-11-24T14:56:00", 60, "2026-11-25T09:30:10", id="evening"),
    ],
)
def test_silence_is_counted_anew_in_each_trading_session(begin: str, closed: int, opened: str) -> None:
    watch = Watch(at(begin))
    assert watch.look(closed - 1)[0][1] == "resubscribe"
    assert watch.silence.stale == {"SH"}
    assert watch.look(1800) == [(closed, "closed")]
    assert watch.silence.stale == frozenset()
    watch.now = at(opened) - 1000
    assert watch.look(LIMIT - 5) == []
    assert [action for _, action in watch.look(5)] == ["resubscribe"]


def test_a_stale_market_without_newer_ticks_is_not_renewed(watch: Watch) -> None:
    assert watch.look(80 * 60, missed=()) == [(30, "stale")]
    assert watch.silence.stale == {"SH"}
    assert watch.silence.left == ACTIONS_A_DAY
    # It is renewed as soon as the terminal has newer ticks and does not push them.
    began = watch.now - watch.start
    assert watch.look(70) == [(began // 1000 + 1, "resubscribe"), (began // 1000 + 61, "reconnect")]


def test_a_reconnect_needs_new_evidence(watch: Watch) -> None:
    watch.look(LIMIT)
    assert watch.look(1800, missed=()) == []
    assert [action for _, action in watch.look(1)] == ["reconnect"]


def test_only_the_deaf_market_is_subscribed_again(watch: Watch) -> None:
    both = {"SH": SEVERAL, "SZ": SEVERAL}
    assert watch.look(LIMIT, both, missed={"SZ"}) == [(30, "resubscribe")]
    assert watch.silence.stale == {"SH", "SZ"}
    assert watch.silence.deaf == {"SZ"}
    assert watch.look(1, both) == [(31, "resubscribe")]


def test_evidence_without_silence_causes_no_action(watch: Watch) -> None:
    assert watch.look(LIMIT - 1) == watch.look(1, heard={"SH"}, missed={"SH"}) == []


def test_the_answer_to_a_subscription_alone_ends_no_silence(watch: Watch) -> None:
    # Each action is answered with the newest ticks, and no push follows.
    for _ in range(40):
        if watch.look(10) and watch.done[-1][1] in ("resubscribe", "reconnect"):
            watch.look(1, heard={"SH"})
    acted = [action for _, action in watch.done if action in ("resubscribe", "reconnect")]
    assert acted == ["resubscribe", "reconnect", "reconnect"]


def test_a_holiday_that_is_known_late_ends_the_silence(watch: Watch) -> None:
    watch.look(LIMIT)
    watch.silence.holidays = frozenset(("20261124",))
    assert watch.look(100) == [(31, "closed")]


def test_the_time_that_the_machine_slept_does_not_count(watch: Watch) -> None:
    watch.now += 3600_000
    assert watch.look(LIMIT - 5) == []
    assert [action for _, action in watch.look(1)] == ["resubscribe"]


def test_a_clock_set_back_adds_no_silence(watch: Watch) -> None:
    watch.look(10)
    watch.now -= 600_000
    assert watch.look(LIMIT - 10) == []
    assert len(watch.look(1)) == 1


def test_the_actions_of_a_day_are_limited(watch: Watch) -> None:
    for _ in range(ACTIONS_A_DAY):
        assert [action for _, action in watch.look(LIMIT)] == ["resubscribe"]
        watch.look(3, heard={"SH"})
    assert watch.silence.left == 0
    # The market is still stale, but no more action is taken.
    assert [action for _, action in watch.look(3600)] == ["stale"]
    watch.now = at("2026-11-25T10:00:00")
    assert [action for _, action in watch.look(1)] == ["reconnect"]
    assert watch.silence.left == ACTIONS_A_DAY - 1


def test_reconnections_count_against_the_limit_too(watch: Watch) -> None:
    watch.silence.left = 2
    assert [action for _, action in watch.look(3600)] == ["resubscribe", "reconnect"]


def test_a_lost_connection_restarts_the_watch_but_not_the_limit(watch: Watch) -> None:
    watch.look(LIMIT + 20)
    watch.silence.reset()
    assert watch.silence.stale == frozenset()
    assert watch.look(LIMIT - 1) == []
    assert len(watch.look(1)) == 1
    assert watch.silence.left == ACTIONS_A_DAY - 2


def test_a_limit_of_zero_turns_the_watch_off() -> None:
    assert Watch(limit=0).look(3600) == []


def test_an_action_taken_for_another_reason_counts_too(watch: Watch) -> None:
    watch.silence.left = 1
    assert watch.silence.act()
    assert not watch.silence.act()
    assert [action for _, action in watch.look(LIMIT)] == ["stale"]


def test_a_day_is_named_and_numbered_as_in_shanghai() -> None:
    assert day_number(at("2026-11-24T00:00:00")) == day_number(at("2026-11-24T00:00:00") - 1) + 1 == 20781
    assert day_name(at("2026-11-24T00:00:00")) == "20261124"
    assert day_name(at("2026-11-24T00:00:00") - 1) == "20261123"


@pytest.mark.parametrize(
    ("day", "holidays", "trades"),
    [
        ("2026-11-24T23:59:59", {"20260101"}, True),
        ("2026-11-24T00:00:00", {"20260101", "20261124"}, False),
        ("2026-11-28T10:00:00", {"20260101"}, False),
        ("2026-11-24T10:00:00", {"20250101"}, None),
        ("2026-11-24T10:00:00", frozenset(), None),
    ],
)
def test_a_trading_day_is_known_with_the_holidays_of_its_year(
    day: str, holidays: Collection[str], trades: bool | None
) -> None:
    silence = Silence(LIMIT)
    silence.holidays = frozenset(holidays)
    assert silence.trades_on_day(at(day)) is trades
