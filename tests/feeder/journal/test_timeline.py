"""Where a moment is among events, by when they came and by the broker's time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from feeder.journal.timeline import AHEAD_MS, LOOK_BACK, Stamp, own_ms, position_before
from qmt_bridge.wire import frames

NOON = 1_764_302_400_000


class Events:
    """Events from position 11 on, and what was looked at."""

    oldest = 10

    def __init__(self, *stamps: Stamp) -> None:
        self.stamps = stamps
        self.looks: list[int] = []

    def look(self, first: int, last: int) -> list[Stamp]:
        assert self.oldest < first <= last <= self.oldest + len(self.stamps)
        self.looks.append(last - first + 1)
        return list(self.stamps[first - self.oldest - 1 : last - self.oldest])

    def before(self, moment_ms: int) -> int:
        return position_before(self.look, self.oldest, self.oldest + len(self.stamps), moment_ms)


def came(ms: int, **data: object) -> Stamp:
    return Stamp(ms, frames.encode({"type": "trade", "seq": 1, "data": data}))


def test_moment_is_the_first_event_that_came_at_or_after_it() -> None:
    events = Events(came(100), came(200), came(200), came(300))
    assert [events.before(ms) for ms in (50, 100, 101, 200, 201, 300, 301)] == [10, 10, 11, 11, 13, 13, 14]


def test_journal_without_events_has_every_moment_at_its_end() -> None:
    assert Events().before(100) == 10


def test_search_looks_at_few_of_many_events() -> None:
    events = Events(*(came(ms) for ms in range(100_000)))
    assert events.before(77_777) == 10 + 77_777
    assert len(events.looks) <= 18
    assert sum(events.looks) <= 18 + LOOK_BACK


def test_trade_of_a_broker_whose_clock_is_ahead_is_not_left_out() -> None:
    events = Events(
        came(NOON - 2000, traded_time=NOON // 1000 - 2),
        came(NOON - 1000, traded_time=NOON // 1000),
        came(NOON - 500),
        came(NOON),
    )
    assert events.before(NOON) == 11


def test_trade_that_a_query_found_later_counts_when_it_came() -> None:
    events = Events(came(NOON - 10), came(NOON + 10, traded_time=NOON // 1000 - 3600))
    assert events.before(NOON) == 11


def test_time_too_far_ahead_is_a_wrong_one() -> None:
    ahead = came(NOON - AHEAD_MS - 1, traded_time=NOON // 1000)
    assert Events(ahead, came(NOON - 1), came(NOON)).before(NOON) == 12


@pytest.mark.parametrize(
    ("data", "ms"),
    [
        ({"traded_time": 1_764_302_400}, NOON),
        ({"order_time": 1_764_302_400}, NOON),
        ({"traded_time": NOON}, NOON),
        ({"traded_time": 1_764_302_400, "order_time": 1_764_302_000}, NOON),
        ({"traded_time": 93015}, 0),
        ({"traded_time": 0}, 0),
        ({"traded_time": True}, 0),
        ({"traded_time": "2025-11-28 12:00:00"}, 0),
        ({"traded_time": 1e300}, 0),
        ({"traded_time": None}, 0),
        ({}, 0),
    ],
)
def test_time_of_the_broker_needs_a_date(data: dict[str, Any], ms: int) -> None:
    assert own_ms(came(1, **data).body) == ms


def test_event_of_version_1_has_its_time_too() -> None:
    body = msgspec.msgpack.encode({"type": "trade", "seq": 1, "data": {"traded_time": 1_764_302_400}})
    assert own_ms(body) == NOON


@pytest.mark.parametrize("body", [b"", b"null", b"{", b'{"data": 5}', b"\xff"])
def test_event_that_cannot_be_read_has_no_time(body: bytes) -> None:
    assert own_ms(body) == 0
