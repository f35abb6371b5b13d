"""The window: what may be in flight to a client, measured by pongs; a model of clients that read at a steady pace."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest

from gateway.sending.window import (
    FIRST,
    KEEPALIVE,
    LARGEST,
    OFTEN,
    PONG_PART,
    SELDOM,
    SMALLEST,
    SOON,
    SOON_PONGS,
    Window,
)

LAG = 1.0
HEADER = b"\x89\x04"


def number(ping: bytes) -> bytes:
    assert ping[:2] == HEADER
    assert len(ping) == 6
    return ping[2:]


class Reader:
    """A client that reads `rate` bytes a second, and answers each ping when it has read all before it."""

    def __init__(self, window: Window, rate: float, round_trip: float = 0.001) -> None:
        self.window = window
        self.rate = rate
        self.round_trip = round_trip
        self.free_at = 0.0
        self.pongs: deque[tuple[float, bytes]] = deque()
        # Seconds between write and read of each frame, and the times of the writes.
        self.lags: list[tuple[float, float]] = []

    def take(self, size: int, now: float) -> None:
        ping = self.window.wrote(size, now)
        self.free_at = max(now, self.free_at) + size / self.rate
        self.lags.append((now, self.free_at - now))
        if ping:
            self.pongs.append((self.free_at + self.round_trip, number(ping)))

    def answer(self, now: float) -> None:
        while self.pongs and self.pongs[0][0] <= now:
            assert self.window.acknowledge(self.pongs.popleft()[1], now)
            if ping := self.window.keep_alive(now):
                self.pongs.append((max(now, self.free_at) + self.round_trip, number(ping)))


def run(rate: float, offered: float, frame: int, seconds: float, round_trip: float = 0.001) -> tuple[Reader, Window]:
    """Offer `offered` bytes a second, conflated to one frame that is always newest; return the client."""
    window = Window(LAG, 0.0)
    reader = Reader(window, rate, round_trip)
    step = 0.002
    credit = 0.0
    for turn in range(int(seconds / step)):
        now = turn * step
        reader.answer(now)
        credit = min(credit + offered * step, offered * step + 2 * frame)
        while credit >= frame and (window.room(now) or not window.in_flight):
            reader.take(frame, now)
            credit -= frame
    return reader, window


@pytest.mark.parametrize("frame", [100, 450, 4000])
@pytest.mark.parametrize("rate", [4_500, 45_000, 450_000])
def test_slow_client_lags_at_most_the_target(rate: int, frame: int) -> None:
    reader, _ = run(rate, 10 * rate, frame, 60)
    # One frame may always be written.
    allowed = max(LAG, 2 * frame / rate)
    assert max(lag for at, lag in reader.lags if at > 15) <= allowed
    # All of what the client can read is used.
    assert len([at for at, _ in reader.lags if at > 15]) * frame >= 0.8 * rate * 45


@pytest.mark.parametrize("round_trip", [0.0003, 0.03, 0.3])
def test_fast_client_gets_all_that_is_offered(round_trip: float) -> None:
    reader, window = run(1e9, 2_000_000, 4000, 10, round_trip)
    assert len([at for at, _ in reader.lags if at > 5]) * 4000 >= 0.95 * 5 * 2_000_000
    assert FIRST <= window.size <= LARGEST


def test_client_that_slows_down_soon_lags_no_more_than_the_target() -> None:
    window = Window(LAG, 0.0)
    reader = Reader(window, 1e9)
    for turn in range(30_000):
        now = turn * 0.002
        reader.rate = 1e9 if now < 10 else 45_000
        reader.answer(now)
        if window.room(now) or not window.in_flight:
            reader.take(900, now)
    assert max(lag for at, lag in reader.lags if at > 40) <= LAG


def test_nothing_is_written_while_a_pong_is_late() -> None:
    window = Window(LAG, 0.0)
    assert window.wrote(10, 0.0)
    assert window.room(PONG_PART * LAG) > 0
    assert window.room(PONG_PART * LAG + 0.01) == 0


def test_pong_answers_all_earlier_pings() -> None:
    window = Window(LAG, 0.0)
    pings = [window.wrote(FIRST // 4, n / 100) for n in range(3)]
    assert all(pings)
    assert window.in_flight == 3 * (FIRST // 4)
    assert window.acknowledge(number(pings[1]), 0.1)
    assert window.in_flight == FIRST // 4
    assert not window.acknowledge(number(pings[0]), 0.1)
    assert window.acknowledge(number(pings[2]), 0.1)
    assert window.in_flight == 0


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\0", b"\0\0\0\x02", b"\xff\xff\xff\xff", b"\0" * 8 + b"\1", b"\1"])
def test_pong_that_was_not_asked_for_changes_nothing(payload: bytes) -> None:
    window = Window(LAG, 0.0)
    assert window.wrote(1000, 0.0)
    assert not window.acknowledge(payload, 0.1)
    assert window.in_flight == 1000


def test_client_that_answers_soon_is_pinged_less_often() -> None:
    window = Window(LAG, 0.0)
    at: list[float] = []
    for turn in range(1000):
        now = turn / 100
        ping = window.wrote(1, now)
        if ping:
            at.append(now)
            window.acknowledge(number(ping), now)
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert pauses[0] == pytest.approx(OFTEN, abs=0.02)
    assert pauses[SOON_PONGS + 1 :] == pytest.approx([SELDOM] * len(pauses[SOON_PONGS + 1 :]), abs=0.02)


@pytest.mark.parametrize("rate", [1_000, 20_000, 200_000, 2_000_000])
def test_pings_to_quick_clients_depend_on_time_alone(rate: int) -> None:
    """A thousand clients of 20 KB/s, pinged with each 4 KB, would take a sixth of a worker's core."""
    window = Window(LAG, 0.0)
    sent: list[float] = []
    for turn in range(10_000):
        now = turn / 500
        ping = window.wrote(rate // 500, now)
        if ping:
            sent.append(now)
            window.acknowledge(number(ping), now + 0.001)
    pauses = [later - earlier for earlier, later in pairwise(at for at in sent if at > 10)]
    assert pauses == pytest.approx([SELDOM] * len(pauses), abs=0.01)
    assert len(pauses) >= 8


def test_quick_client_that_stops_is_sent_little_more() -> None:
    """The next ping is due after SELDOM seconds, and its pong is late after half of the lag."""
    window = Window(LAG, 0.0)
    rate, written = 200_000, 0
    for turn in range(10_000):
        now = turn / 500
        if now < 10:
            ping = window.wrote(rate // 500, now)
            if ping:
                window.acknowledge(number(ping), now + 0.001)
        elif window.room(now):
            window.wrote(rate // 500, now)
            written += rate // 500
    assert 0 < written <= (SELDOM + PONG_PART * LAG + 0.01) * rate


def test_window_that_shrank_below_what_is_in_flight_asks_again() -> None:
    window = Window(LAG, 0.0)
    first = window.wrote(FIRST // 2, 0.0)
    assert window.wrote(FIRST // 8, 0.0) == b""
    assert window.acknowledge(number(first), 10.0)
    assert window.room(10.0) == 0
    # Without this ping no pong would ever come, and nothing would be written any more.
    assert number(window.keep_alive(10.0))
    assert window.keep_alive(10.0) == b""


def test_idle_client_is_asked_whether_it_is_there() -> None:
    window = Window(LAG, 0.0)
    ping = window.wrote(10, 1.0)
    window.acknowledge(number(ping), 1.1)
    assert window.keep_alive(1.0 + KEEPALIVE - 0.1) == b""
    ping = window.keep_alive(1.0 + KEEPALIVE)
    assert number(ping)
    assert window.waits(1.0 + KEEPALIVE + 5) == pytest.approx(5)
    window.acknowledge(number(ping), 30.0)
    assert window.waits(40.0) == 0


def test_progress_is_counted_from_the_newest_pong() -> None:
    window = Window(LAG, 0.0)
    pings = [window.wrote(FIRST // 4, 0.0) for _ in range(3)]
    window.acknowledge(number(pings[0]), 50.0)
    assert window.waits(60.0) == pytest.approx(10)
    assert window.lag(60.0) == pytest.approx(60)


def test_window_never_shrinks_below_its_smallest() -> None:
    window = Window(LAG, 0.0)
    for turn in range(10):
        ping = window.wrote(10, 1000.0 * turn) or window.keep_alive(1000.0 * turn)
        window.acknowledge(number(ping), 1000.0 * turn + 999)
    assert window.size == SMALLEST


def test_stopping_server_waits_for_no_pong() -> None:
    window = Window(LAG, 0.0)
    window.wrote(10 * FIRST, 0.0)
    assert window.room(100.0) == 0
    window.lift()
    assert window.room(100.0) > 2**40


def test_client_is_quick_while_its_pong_may_come_soon() -> None:
    window = Window(LAG, 0.0)
    assert window.is_quick(0.0)
    ping = window.wrote(10, 0.0)
    # Nothing is known of a client that has not answered yet.
    assert [window.is_quick(now) for now in (0.02, 0.021)] == [True, False]
    assert window.acknowledge(number(ping), 0.1)
    assert window.is_quick(10.0)
    assert window.wrote(FIRST, 10.0)
    assert [window.is_quick(10.0 + SOON * PONG_PART * LAG + after) for after in (0.0, 0.001)] == [True, False]


def test_client_that_has_answered_late_is_not_quick() -> None:
    window = Window(LAG, 0.0)
    assert window.acknowledge(number(window.wrote(10, 0.0)), 0.3)
    assert not window.is_quick(0.3)
    assert window.wrote(FIRST, 1.0)
    assert not window.is_quick(1.0)
