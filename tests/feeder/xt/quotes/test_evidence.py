"""Evidence: the terminal's own last ticks tell a deaf subscription from one whose codes have no new ticks."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from feeder.xt.quotes.evidence import INDICES, NEWS, Evidence
from feeder.xt.quotes.silence import SEVERAL

MORNING = int(datetime(2026, 11, 24, 10, tzinfo=timezone(timedelta(hours=8))).timestamp() * 1000)
DAY = 24 * 3_600_000
MOUTAI = "600519.SH"


class Terminal:
    """A terminal that is queried every ten seconds; `trade` gives codes a new tick each time."""

    def __init__(self) -> None:
        self.evidence: Evidence[str] = Evidence()
        self.now = MORNING
        self.ticks: dict[str, Any] = {}

    def ask(self, times: int, silent: dict[str, Collection[str]], trade: Collection[str] = ()) -> list[str]:
        """Query `times` times; return the subscriptions found deaf in any of them."""
        deaf = []
        for _ in range(times):
            self.now += 10_000
            self.ticks |= {code: {"time": self.now, "volume": self.now - MORNING, "openInt": 13} for code in trade}
            asked = {code for codes in silent.values() for code in codes}
            brought = {name: dict.fromkeys(codes) for name, codes in silent.items()}
            deaf += self.evidence.learn(self.now, asked, self.ticks, brought)
        return deaf


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_a_subscription_is_deaf_after_several_missed_ticks(terminal: Terminal) -> None:
    # The first query has no earlier ticks to compare with.
    assert terminal.ask(NEWS, {"moutai": [MOUTAI]}, [MOUTAI]) == []
    assert terminal.ask(1, {"moutai": [MOUTAI]}, [MOUTAI]) == ["moutai"]


def test_a_code_without_new_ticks_at_the_terminal_is_not_deaf(terminal: Terminal) -> None:
    terminal.ask(1, {"moutai": [MOUTAI]}, [MOUTAI])
    assert terminal.ask(1000, {"moutai": [MOUTAI]}) == []


def test_rare_new_ticks_add_up_and_older_ones_do_not_count(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI]}
    terminal.ask(1, silent, [MOUTAI])
    for _ in range(NEWS - 1):
        assert terminal.ask(50, silent) + terminal.ask(1, silent, [MOUTAI]) == []
    # A tick that only has a newer time does not count either.
    for tick in ({"time": MORNING - DAY, "volume": 3}, {**terminal.ticks[MOUTAI], "time": terminal.now + 5000}):
        terminal.ticks[MOUTAI] = tick
        assert terminal.ask(50, silent) == []
    assert terminal.ask(1, silent, [MOUTAI]) == ["moutai"]


@pytest.mark.parametrize("time", [None, 0, "10:00", 1_795_485_600, MORNING, MORNING + 3_600_000])
def test_a_growing_volume_is_new_whatever_the_time_is(terminal: Terminal, time: object) -> None:
    deaf = []
    for volume in range(NEWS + 1):
        terminal.ticks[MOUTAI] = {"time": time, "volume": volume, "openInt": 13}
        deaf += terminal.ask(1, {"moutai": [MOUTAI]})
    assert deaf == ["moutai"]


@pytest.mark.parametrize("tick", [{"time": 0}, {"time": MORNING}, {"openInt": 14}, {"lastPrice": 9.0}, {"volume": "7"}])
def test_a_change_without_a_trade_is_not_new(terminal: Terminal, tick: dict[str, Any]) -> None:
    silent = {"moutai": [MOUTAI]}
    terminal.ask(1, silent, [MOUTAI])
    before = terminal.ticks[MOUTAI]
    for _ in range(5 * NEWS):
        terminal.ticks[MOUTAI] = {**before, **tick}
        assert terminal.ask(1, silent) == []
        terminal.ticks[MOUTAI] = before
        assert terminal.ask(1, silent) == []


def test_a_tick_that_is_pushed_late_is_not_missed(terminal: Terminal) -> None:
    for volume in range(10 * NEWS):
        terminal.now += 10_000
        tick = {"time": terminal.now, "volume": volume}
        assert terminal.evidence.learn(terminal.now, [MOUTAI], {MOUTAI: tick}, {"moutai": {MOUTAI: dict(tick)}}) == []


def test_a_push_resets_the_count_of_missed_ticks(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI]}
    terminal.ask(NEWS, silent, [MOUTAI])
    assert terminal.ask(1, {}, [MOUTAI]) == []
    assert terminal.ask(NEWS, silent, [MOUTAI]) == []
    assert terminal.ask(1, silent, [MOUTAI]) == ["moutai"]


def test_new_ticks_count_only_for_their_own_market(terminal: Terminal) -> None:
    silent = {"IF": ["IF2512.IF", "IH2512.IF", "IC2512.IF"], "moutai": [MOUTAI]}
    terminal.ask(1, silent, ["IF2512.IF", "IH2512.IF", "IC2512.IF", MOUTAI])
    news = [["IF2512.IF"], ["IH2512.IF"], ["IF2512.IF"]]
    assert [terminal.ask(1, silent, codes) for codes in news] == [[], [], ["IF"]]


def test_new_ticks_of_one_code_out_of_several_take_longer(terminal: Terminal) -> None:
    silent = {"IF": ["IF2512.IF", "IF00.IF"]}
    terminal.ask(1, silent, ["IF2512.IF", "IF00.IF"])
    # The terminal may compute a continuous contract itself.
    assert terminal.ask(4 * NEWS - 1, silent, ["IF00.IF"]) == []
    assert terminal.ask(1, silent, ["IF00.IF"]) == ["IF"]


def test_each_renewal_of_a_day_doubles_the_evidence_needed(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI]}
    for news in (NEWS, 2 * NEWS, 4 * NEWS):
        # In the new session the subscription brings a tick first.
        terminal.ask(1, {})
        terminal.ask(1, silent, [MOUTAI])
        assert terminal.ask(news - 1, silent, [MOUTAI]) == []
        assert terminal.ask(1, silent, [MOUTAI]) == ["moutai"]
    terminal.ask(1, {})
    terminal.now += DAY
    assert terminal.ask(NEWS + 1, silent, [MOUTAI]) == ["moutai"]


@pytest.mark.parametrize("tick", [None, 7, [], {}, {"time": None}, {"time": "now"}])
def test_an_invalid_tick_is_not_new(terminal: Terminal, tick: object) -> None:
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
        *(
            pytest.param({"volume": 5, "openInt": status}, False, id=f"status-{status}")
            for status in (0, 1, 2, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 99, -1, "halted", 13.5)
        ),
        pytest.param({"volume": 0, "openInt": 13}, False, id="no-trade-today"),
        pytest.param({"volume": 5, "openInt": 13, "time": MORNING - DAY}, False, id="of-yesterday"),
        pytest.param(None, False, id="never"),
    ],
)
def test_halted_or_untraded_codes_are_not_expected_to_tick(
    terminal: Terminal, tick: dict[str, Any] | None, active: bool
) -> None:
    terminal.ticks = {} if tick is None else {MOUTAI: {"time": MORNING, **tick}}
    terminal.ask(1, {"moutai": [MOUTAI]})
    # Nothing is known of a code that was not queried because it had been pushed.
    assert terminal.evidence.active({MOUTAI, "600000.SH"}) == ({MOUTAI, "600000.SH"} if active else {"600000.SH"})
    terminal.ask(1, {})
    assert terminal.evidence.active({MOUTAI}) == {MOUTAI}


def test_the_open_interest_of_a_future_is_not_a_status(terminal: Terminal) -> None:
    terminal.ticks = {"IF2512.IF": {"time": MORNING, "volume": 5, "openInt": 17}}
    terminal.ask(1, {"future": ["IF2512.IF"]})
    assert terminal.evidence.active({"IF2512.IF"}) == {"IF2512.IF"}


def test_several_halted_codes_are_idle_but_untraded_ones_are_not(terminal: Terminal) -> None:
    codes = {f"60000{number}.SH" for number in range(SEVERAL)}
    terminal.ticks = {code: {"time": MORNING - DAY, "volume": 5} for code in codes}
    terminal.ask(1, {"crowd": codes})
    assert terminal.evidence.active(codes) == codes
    assert terminal.evidence.active(set(list(codes)[1:])) == set()
    for status in (17, 1, 21):
        terminal.ticks = {code: {"time": MORNING, "volume": 5, "openInt": status} for code in codes}
        terminal.ask(1, {"crowd": codes})
        assert terminal.evidence.active(codes) == set()


@pytest.mark.parametrize("status", [13, 17, 1, None])
@pytest.mark.parametrize("count", [1, SEVERAL])
def test_only_traded_codes_are_expected_while_the_index_moves(
    terminal: Terminal, count: int, status: int | None
) -> None:
    codes = {f"60000{number}.SH" for number in range(count)}
    terminal.ticks = {code: {"time": MORNING, "volume": 5, "openInt": status} for code in codes}
    silent = {"crowd": {*codes, INDICES["SH"]}}
    terminal.ask(2, silent, [INDICES["SH"]])
    assert terminal.evidence.active(codes) == set()
    # A code with a trade at the terminal is expected to tick, whatever its status is.
    terminal.ticks["600000.SH"] = {"time": MORNING, "volume": 6, "openInt": status}
    terminal.ask(1, silent, [INDICES["SH"]])
    assert terminal.evidence.active(codes) == {"600000.SH"}


def test_a_code_is_expected_to_tick_if_the_index_does_not_move(terminal: Terminal) -> None:
    silent = {"moutai": [MOUTAI, INDICES["SH"]]}
    terminal.ask(1, silent, [MOUTAI, INDICES["SH"]])
    terminal.ask(1, silent, [INDICES["SH"]])
    assert terminal.evidence.active({MOUTAI}) == set()
    terminal.ask(10, silent)
    assert terminal.evidence.active({MOUTAI}) == {MOUTAI}


def test_the_time_of_a_tick_may_be_only_text(terminal: Terminal) -> None:
    terminal.ticks = {MOUTAI: {"timetag": "20261124 10:00:00", "volume": 5, "openInt": 13}}
    terminal.ask(1, {"moutai": [MOUTAI]})
    assert terminal.evidence.active({MOUTAI}) == {MOUTAI}
    for text in ("20261123 10:00:00", "20269924 10:00:00", "10:00"):
        terminal.ticks[MOUTAI]["timetag"] = text
        terminal.ask(1, {"moutai": [MOUTAI]})
        assert terminal.evidence.active({MOUTAI}) == set()


def test_the_reset_before_a_trading_day_is_not_a_trade(terminal: Terminal) -> None:
    silent = {"market": [MOUTAI, "600000.SH", "600001.SH"]}
    terminal.ask(1, silent, silent["market"])
    for code in silent["market"] * NEWS:
        terminal.ticks[code] = {"time": terminal.now + 10_000, "volume": 0, "openInt": 11}
        assert terminal.ask(1, silent) == []
