"""Times at which a stream of stored records begins or ends."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.moments import Moment, midnight, read_moment, shown_moment

# 2026-11-27 09:30:00.500 in Shanghai.
MS = 1795743000500


@pytest.mark.parametrize(
    ("given", "ms"),
    [
        ("9:30", 34_200_000),
        ("09:30", 34_200_000),
        ("09:30:00", 34_200_000),
        ("09:30:00.5", 34_200_500),
        (" 23:59:59.999 ", 86_399_999),
        ("00:00:00.000001", 0),
    ],
)
def test_time_of_day_is_since_midnight(given: str, ms: int) -> None:
    assert read_moment(given, "start") == Moment(ms, of_day=True)


@pytest.mark.parametrize(
    "given",
    [MS, "2026-11-27T09:30:00.500", "2026-11-27 09:30:00.500", "2026-11-27T01:30:00.500Z", "20261127T093000.500"],
)
def test_date_with_a_time_is_absolute(given: object) -> None:
    assert read_moment(given, "start") == Moment(MS)


@pytest.mark.parametrize(
    "given",
    [
        "", "9", "24:00", "09:60", "09:30:60", "09:30:00.", "9.30", "morning", "٠٩:٣٠", "0001-01-01T00:00:00",
        True, None, 1.5, [], {}, 0, -1, 34_200_000, 1795743000, 1795743000500000, 2**80, "1989-12-31T00:00",
        "2" * 100, "09:30:00\n1",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused_by_name(given: object) -> None:
    with pytest.raises(BadRequest, match=r"^end is "):
        read_moment(given, "end")


def test_time_of_day_is_of_the_day_of_the_record() -> None:
    day = midnight(MS)
    assert datetime.fromtimestamp(day / 1000, UTC).isoformat() == "2026-11-26T16:00:00+00:00"
    assert read_moment("09:30:00.500", "start").on_day_of(MS + 3_600_000) == MS
    assert [midnight(day - 1), midnight(day), midnight(day + 86_399_999)] == [day - 86_400_000, day, day]


def test_absolute_moment_has_its_own_day() -> None:
    assert read_moment(MS, "start").on_day_of(0) == MS


def test_shown_moment_can_be_read() -> None:
    assert shown_moment(MS) == "09:30:00.500"
    assert read_moment(shown_moment(MS), "start").on_day_of(MS) == MS
