"""Trading days and hours, quiet hours, and the times of the settings."""

from __future__ import annotations

from datetime import datetime

import pytest

from qmt_bridge.alerts import hours
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.shanghai import SHANGHAI


def at(text: str) -> float:
    """Return the seconds since 1970 of a time in Shanghai."""
    return datetime.fromisoformat(text).replace(tzinfo=SHANGHAI).timestamp()


@pytest.mark.parametrize(
    ("text", "open_then"),
    [
        ("2026-11-30 09:14:59", False),
        ("2026-11-30 09:15:00", True),
        ("2026-11-30 11:29:59", True),
        ("2026-11-30 11:30:00", False),
        ("2026-11-30 12:59:59", False),
        ("2026-11-30 13:00:00", True),
        ("2026-11-30 14:59:59", True),
        ("2026-11-30 15:00:00", False),
    ],
)
def test_sessions_are_those_of_the_exchange(text: str, open_then: bool) -> None:
    assert hours.is_session(at(text)) is open_then


def test_weekends_and_holidays_are_no_trading_days() -> None:
    monday, saturday = at("2026-11-30 10:00:00"), at("2026-11-28 10:00:00")
    assert hours.is_trading_day(monday, ())
    assert not hours.is_trading_day(monday, {"20261130"})
    assert not hours.is_trading_day(saturday, ())
    # A day begins at the midnight of Shanghai.
    assert hours.day_name(at("2026-11-30 00:00:00")) == "20261130"
    assert hours.day_name(at("2026-11-30 00:00:00") - 1) == "20261129"


@pytest.mark.parametrize(
    ("span", "text", "within"),
    [
        ("22:00-07:00", "2026-11-30 22:00:00", True),
        ("22:00-07:00", "2026-11-30 06:59:59", True),
        ("22:00-07:00", "2026-11-30 07:00:00", False),
        ("22:00-07:00", "2026-11-30 21:59:59", False),
        ("12:00-13:00", "2026-11-30 12:30:00", True),
        ("12:00-13:00", "2026-11-30 13:00:00", False),
        ("", "2026-11-30 03:00:00", False),
    ],
)
def test_quiet_hours_may_go_over_midnight(span: str, text: str, within: bool) -> None:
    assert hours.is_within(hours.read_span(span, "quiet"), at(text)) is within


@pytest.mark.parametrize("text", ["22:00", "22:00-", "22-07", "24:00-07:00", "7:00-8:00", "07:00-07:00", "a-b"])
def test_malformed_hours_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="quiet: expected hours such as 22:00-07:00"):
        hours.read_span(text, "quiet")


@pytest.mark.parametrize("text", ["9:15", "25:00", "09:60", "0915"])
def test_a_malformed_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="morning: expected a time such as 09:15"):
        hours.read_time(text, "morning")


def test_days_may_be_written_with_dashes() -> None:
    assert hours.read_days(("20261001", "2026-10-02"), "holidays") == {"20261001", "20261002"}
    with pytest.raises(ConfigError, match="holidays: expected a day such as 20261001, got '1001'"):
        hours.read_days(("1001",), "holidays")
