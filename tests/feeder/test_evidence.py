"""Evidence: who is deaf and who has nothing to say, told by the terminal's own last ticks."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from feeder.evidence import NEWS, Evidence
from feeder.silence import SEVERAL

MORNING = int(datetime(2026, 11, 24, 10, tzinfo=timezone(timedelta(hours=8))).timestamp() * 1000)
DAY = 24 * 3_600_000
MOUTAI = "600519.SH"


class Terminal:
    """Asked every ten seconds; `trade` gives codes a new tick each time."""

    def __init__(self) -> None:
        self.evidence: Evidence[str] = Evidence()
        self.now = MORNING
        self.ticks: dict[str, Any] = {}

    def ask(self, times: int, silent: dict[str, Collection[str]], trade: Collection[str] = ()) -> list[str]:
        """Return who is deaf, whenever in `times`."""
        deaf = []
        for _ in range(times):
            self.now += 10_000
            self.ticks |= {code: {"time": self.now, "volume": self.now - MORNING, "openInt": 13} for code in trade}
            asked = {code for codes in silent.values() for code in codes}
            deaf += self.evidence.learn(self.now, asked, self.ticks, silent)
        return deaf


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_a_subscription_is_deaf_once_the_terminal_had_several_ticks_that_it_did_not_bring(terminal: Terminal) -> None:
    # The first time there is nothing to compare with.
    assert terminal.ask(NEWS, {"moutai": [MOUTAI]}, [MOUTAI]) == []
    assert terminal.ask(1, {"moutai": [MOUTAI]}, [MOUTAI]) == ["moutai"]


def test_what_does_not_move_at_the_terminal_is_silent_by_right(terminal: Terminal) -> None:
    terminal.ask(1, {"moutai": [MOUTAI]}, [MOUTAI])
    assert terminal.ask(1000, {"moutai": [MOUTAI]}) == []


def test_rare_news_adds_up_and_one_that_went_back_is_none(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI]}
    terminal.ask(1, silent, [MOUTAI])
    for _ in range(NEWS - 1):
        assert terminal.ask(50, silent) + terminal.ask(1, silent, [MOUTAI]) == []
    # Neither is one that only has a newer time.
    for tick in ({"time": MORNING - DAY, "volume": 3}, {**terminal.ticks[MOUTAI], "time": terminal.now + 5000}):
        terminal.ticks[MOUTAI] = tick
        assert terminal.ask(50, silent) == []
    assert terminal.ask(1, silent, [MOUTAI]) == ["moutai"]


def test_who_was_heard_begins_anew(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI]}
    terminal.ask(NEWS, silent, [MOUTAI])
    assert terminal.ask(1, {}, [MOUTAI]) == []
    assert terminal.ask(NEWS, silent, [MOUTAI]) == []
    assert terminal.ask(1, silent, [MOUTAI]) == ["moutai"]


def test_news_of_any_code_of_a_market_is_news_of_the_market_and_of_no_other(terminal: Terminal) -> None:
    silent = {"IF": ["IF2512.IF", "IH2512.IF"], "moutai": [MOUTAI]}
    terminal.ask(1, silent, ["IF2512.IF", "IH2512.IF", MOUTAI])
    assert terminal.ask(NEWS, silent, ["IH2512.IF"]) == ["IF"]


def test_each_time_that_it_did_not_help_takes_twice_as_much_until_the_next_day(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI]}
    for news in (NEWS, 2 * NEWS, 4 * NEWS):
        # A new session, in which it is heard first.
        terminal.ask(1, {})
        terminal.ask(1, silent, [MOUTAI])
        assert terminal.ask(news - 1, silent, [MOUTAI]) == []
        assert terminal.ask(1, silent, [MOUTAI]) == ["moutai"]
    terminal.ask(1, {})
    terminal.now += DAY
    assert terminal.ask(NEWS + 1, silent, [MOUTAI]) == ["moutai"]


@pytest.mark.parametrize("tick", [None, 7, [], {}, {"time": None}, {"time": "now"}])
def test_what_is_no_tick_is_no_news(terminal: Terminal, tick: object) -> None:
    silent = {"moutai": [MOUTAI]}
    terminal.ask(1, silent, [MOUTAI])
    terminal.ticks[MOUTAI] = tick
    assert terminal.ask(100, silent) == []
    assert terminal.evidence.active({MOUTAI}) == set()


@pytest.mark.parametrize(
    ("tick", "active"),
    [
        pytest.param({"volume": 5, "openInt": 13}, True, id="trades"),
        pytest.param({"volume": 5}, True, id="no-status"),
        pytest.param({"openInt": 13}, True, id="no-volume"),
        pytest.param({"volume": 5, "openInt": 17}, False, id="halted"),
        pytest.param({"volume": 5, "openInt": 20}, False, id="halted-until-the-close"),
        pytest.param({"volume": 0, "openInt": 13}, False, id="no-trade-today"),
        pytest.param({"volume": 5, "openInt": 13, "time": MORNING - DAY}, False, id="of-yesterday"),
        pytest.param(None, False, id="never"),
    ],
)
def test_what_is_halted_or_not_traded_today_is_not_expected_to_tick(
    terminal: Terminal, tick: dict[str, Any] | None, active: bool
) -> None:
    terminal.ticks = {} if tick is None else {MOUTAI: {"time": MORNING, **tick}}
    terminal.ask(1, {"moutai": [MOUTAI]})
    # Of a code that was not asked for, since it was heard, nothing is known.
    assert terminal.evidence.active({MOUTAI, "600000.SH"}) == ({MOUTAI, "600000.SH"} if active else {"600000.SH"})
    terminal.ask(1, {})
    assert terminal.evidence.active({MOUTAI}) == {MOUTAI}


def test_the_open_interest_of_a_future_is_no_status(terminal: Terminal) -> None:
    terminal.ticks = {"IF2512.IF": {"time": MORNING, "volume": 5, "openInt": 17}}
    terminal.ask(1, {"future": ["IF2512.IF"]})
    assert terminal.evidence.active({"IF2512.IF"}) == {"IF2512.IF"}


def test_several_codes_without_a_trade_today_are_not_believed_but_several_halted_are(terminal: Terminal) -> None:
    codes = {f"60000{number}.SH" for number in range(SEVERAL)}
    terminal.ticks = {code: {"time": MORNING - DAY, "volume": 5} for code in codes}
    terminal.ask(1, {"crowd": codes})
    assert terminal.evidence.active(codes) == codes
    assert terminal.evidence.active(set(list(codes)[1:])) == set()
    terminal.ticks = {code: {"time": MORNING, "volume": 5, "openInt": 17} for code in codes}
    terminal.ask(1, {"crowd": codes})
    assert terminal.evidence.active(codes) == set()
