"""The window of a client that acknowledges frames; a model of programs behind libraries that read without bound."""

from __future__ import annotations

from collections import deque

import pytest

from gateway.sending.acks import MOST_MARKERS, AckWindow
from gateway.sending.window import KEEPALIVE, PONG_PART, Window

LAG = 1.0
ALLOWED = PONG_PART * LAG


class Program:
    """Processes `rate` frames a second in order; its library reads at once and answers pings at once.

    It acknowledges the newest frame that it has processed, after `every` frames or `pause` seconds.
    """

    def __init__(self, rate: float, topics: int = 1, every: int = 1, pause: float = 1e9) -> None:
        self.window: Window = Window(LAG, 0.0)
        self.rate, self.topics, self.every, self.pause = rate, topics, every, pause
        self.written = self.processed = self.acknowledged = 0
        self.acknowledged_at = 0.0
        self.free_at = 0.0
        self.queue: deque[tuple[int, float]] = deque()
        self.lags: list[tuple[float, float]] = []

    def write(self, size: int, now: float) -> None:
        seq = self.written // self.topics + 1
        self.written += 1
        if isinstance(self.window, AckWindow):
            self.window.mark([seq], [b"x" * size], now)
        ping = self.window.wrote(size, now)
        if ping:
            self.window.acknowledge(ping[2:], now)
        self.free_at = max(now, self.free_at) + 1 / self.rate
        self.queue.append((seq, self.free_at))
        self.lags.append((now, self.free_at - now))

    def run(self, now: float) -> None:
        seq = 0
        while self.queue and self.queue[0][1] <= now:
            seq, _ = self.queue.popleft()
            self.processed += 1
            if self.processed % self.every == 0:
                self.acknowledge(seq, now)
        self.newest = seq or getattr(self, "newest", 0)
        if self.processed > self.acknowledged and now - self.acknowledged_at >= self.pause:
            self.acknowledge(self.newest, now)

    def acknowledge(self, seq: int, now: float) -> None:
        self.acknowledged, self.acknowledged_at = self.processed, now
        if not isinstance(self.window, AckWindow):
            self.window = AckWindow(self.window)
        self.window.processed(seq, now)


def run(program: Program, offered: float, size: int, seconds: float, until: float = 1e9) -> None:
    """Offer `offered` frames a second, conflated to one that is always newest, as far as the window has room."""
    step = 0.002
    credit = 0.0
    for turn in range(int(seconds / step)):
        now = turn * step
        program.run(now)
        if now < until:
            credit = min(credit + offered * step, offered * step + 2)
        while credit >= 1 and (program.window.room(now) or not program.window.in_flight):
            program.write(size, now)
            credit -= 1


@pytest.mark.parametrize(("every", "pause"), [(1, 1e9), (10**9, 0.1)])
@pytest.mark.parametrize("rate", [10, 100, 1000])
def test_acks_hold_the_lag_behind_a_library_without_bound(rate, every, pause):
    program = Program(rate, every=every, pause=pause)
    run(program, 10 * rate, 450, 40)
    # One frame may always be written.
    assert max(lag for at, lag in program.lags if at > 10) <= LAG
    assert program.processed > 0.5 * rate * 40, "the program is not kept waiting"


def test_without_acknowledgements_that_lag_is_not_seen():
    program = Program(10, every=10**9)
    run(program, 100, 450, 40)
    assert max(lag for _, lag in program.lags) > 100


@pytest.mark.parametrize("topics", [2, 10])
def test_topics_with_the_same_numbers_do_not_stop_a_client(topics):
    program = Program(1000, topics=topics, every=10**9, pause=0.1)
    run(program, 100, 450, 20)
    assert program.processed > 0.9 * 20 * 100
    assert program.window.waits(20.0) < 2 * ALLOWED


def test_a_client_that_acknowledges_too_seldom_is_slow_and_not_stopped():
    program = Program(1000, every=10)
    run(program, 1, 450, 100)
    assert program.processed >= 90
    assert program.window.waits(100.0) < 20


def test_the_unacknowledged_end_of_a_burst_is_no_delay():
    program = Program(1000, topics=10, every=10**9, pause=0.1)
    run(program, 1000, 450, 2, until=1.0)
    window = program.window
    assert window.in_flight > 0
    assert window.waits(3600.0) == 0.0
    assert window.lag(3600.0) < LAG + ALLOWED
    assert window.room(3600.0) == 1
    program.write(450, 3600.0)
    assert window.room(3600.0) == 0, "one frame, until it is acknowledged"
    assert window.processed(program.written // 10 + 1, 3600.01) or window.processed(program.written // 10, 3600.01)
    assert window.room(3600.01) > 1


def counting(now: float = 0.0) -> AckWindow:
    window = AckWindow(Window(LAG, now))
    window.mark([1], [b"x" * 100], now)
    window.acknowledge(window.wrote(100, now)[2:], now)
    assert window.processed(1, now)
    return window


def test_the_first_frame_with_a_number_is_meant_and_all_before_it():
    window = counting()
    window.mark([5, 0, 6, 5, 6], [b"x" * 100] * 5, 1.0)
    window.wrote(500, 1.0)
    assert window.processed(6, 1.1)
    assert window.in_flight == 200
    assert not window.processed(7, 1.1)
    assert window.processed(6, 1.2)
    assert window.in_flight == 0
    assert not window.processed(6, 1.3)


@pytest.mark.parametrize("seq", [0, -1, 2, 2**70])
def test_an_unknown_number_changes_nothing(seq):
    window = AckWindow(Window(LAG, 0.0))
    window.mark([1], [b"x" * 100], 0.0)
    ping = window.wrote(100, 0.0)
    assert not window.processed(seq, 0.1)
    assert not window.counts
    assert window.acknowledge(ping[2:], 0.2), "pongs count"
    assert window.in_flight == 0


def test_after_an_ack_pongs_only_keep_the_connection():
    window = counting()
    window.mark([2], [b"x" * 100], 1.0)
    assert window.wrote(100, 1.0) == b""
    window.mark([3], [b"x" * 100], 1.0 + KEEPALIVE)
    window.wrote(100, 1.0 + KEEPALIVE)
    ping = window.keep_alive(1.0 + KEEPALIVE)
    assert ping
    assert window.silence(11.0 + KEEPALIVE) == 10.0
    assert window.acknowledge(ping[2:], 2.0 + KEEPALIVE)
    assert window.silence(11.0 + KEEPALIVE) == 0.0
    assert window.in_flight == 200
    assert window.late_at == 1.0 + ALLOWED


def test_notices_need_no_acknowledgement():
    window = counting()
    for at in range(1000):
        window.wrote(1000, float(at))
    assert window.room(1000.0) > 0
    assert window.in_flight == 0


def test_waiting_is_counted_from_the_first_trial_frame():
    window = counting()
    window.mark([2], [b"x" * 100], 0.0)
    window.wrote(100, 0.0)
    assert window.waits(500.0) == 0.0
    assert window.room(500.0) == 1
    window.mark([3], [b"x" * 100], 500.0)
    window.wrote(100, 500.0)
    assert window.waits(530.0) == 30.0
    window.processed(3, 531.0)
    assert window.waits(600.0) == 0.0


@pytest.mark.parametrize("counts", [False, True])
def test_markers_are_bounded(counts):
    window = counting() if counts else AckWindow(Window(LAG, 0.0))
    for seq in range(2, 3 * MOST_MARKERS):
        if counts and not window.room(0.0):
            break
        window.size = 10**9
        window.mark([seq], [b"x" * 64], 0.0)
        window.wrote(64, 0.0)
    assert len(window._markers) <= MOST_MARKERS


def test_everything_may_be_written_when_the_server_stops():
    window = counting()
    window.lift()
    window.mark([2], [b"x" * 10**6], 5.0)
    window.wrote(10**6, 5.0)
    assert window.room(100.0) > 10**9
