"""The thread of one target: order, retries, bounds, and a target that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets import sender as sender_module
from qmt_bridge.alerts.targets.sender import MOST_JOINED, MOST_WAITING, Counts, Deliver, Sender
from qmt_bridge.alerts.targets.target import Outcome
from tests.support.waiting import wait_for

Start = Callable[..., Sender]


def notice(number: int) -> Notice:
    return Notice(event="alert", id=str(number), title=str(number), text=str(number), name="a", time=0)


class Inbox:
    """A target; `outcomes` are its next answers, then it takes everything. It hangs while `open` is not set."""

    def __init__(self, outcomes: Sequence[Outcome] = ()) -> None:
        self.calls: list[list[str]] = []
        self.outcomes = list(outcomes)
        self.open = threading.Event()
        self.open.set()
        self.inside = threading.Event()

    def __call__(self, notices: Sequence[Notice]) -> tuple[Outcome, str]:
        self.inside.set()
        self.open.wait()
        self.calls.append([each.id for each in notices])
        return (self.outcomes.pop(0) if self.outcomes else "sent"), "said"


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[tuple[Sender, Deliver]] = []

    def make(deliver: Deliver, *, joins: bool = False, pace: float = 0.0) -> Sender:
        made = Sender("hook", deliver, joins=joins, pace=pace)
        made.start()
        started.append((made, deliver))
        return made

    yield make
    for made, deliver in started:
        if isinstance(deliver, Inbox):
            deliver.open.set()
        made.close(time.monotonic() + 5)
        assert not made._thread.is_alive()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BACKOFF", (0.01, 0.04))


def test_messages_arrive_in_order_one_by_one(start: Start) -> None:
    inbox = Inbox()
    sender = start(inbox)
    for number in range(50):
        sender.put(notice(number))
    wait_for(lambda: sender.counts().sent == 50)
    assert inbox.calls == [[str(number)] for number in range(50)]


def test_messages_that_wait_are_joined_for_people(start: Start) -> None:
    inbox = Inbox()
    inbox.open.clear()
    sender = start(inbox, joins=True)
    sender.put(notice(0))
    assert inbox.inside.wait(10)
    for number in range(1, 16):
        sender.put(notice(number))
    inbox.open.set()
    wait_for(lambda: sender.counts().sent == 16)
    assert [len(call) for call in inbox.calls] == [1, MOST_JOINED, 5]
    assert [each for call in inbox.calls for each in call] == [str(number) for number in range(16)]


def test_a_message_that_fails_is_sent_again(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox(["again", "again", "again", "sent"])
    sender = start(inbox)
    sender.put(notice(0))
    sender.put(notice(1))
    wait_for(lambda: sender.counts() == Counts(sent=2))
    assert inbox.calls == [["0"], ["0"], ["0"], ["0"], ["1"]]
    # It is logged once, not at each attempt.
    assert caplog.text.count("does not take alerts") == 1
    assert caplog.text.count("takes alerts again") == 1


def test_a_message_that_is_refused_is_counted_and_left_out(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox(["refused"])
    sender = start(inbox)
    sender.put(notice(0))
    sender.put(notice(1))
    wait_for(lambda: sender.counts() == Counts(sent=1, failed=1))
    assert "hook refuses an alert: said" in caplog.text


def test_a_message_that_is_old_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "GIVE_UP", 0.0)
    inbox = Inbox(["again"])
    sender = start(inbox)
    sender.put(notice(0))
    wait_for(lambda: sender.counts() == Counts(failed=1, failing=True))
    sender.put(notice(1))
    wait_for(lambda: sender.counts() == Counts(sent=1, failed=1))


def test_what_waits_for_a_target_that_hangs_is_bounded(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    inbox.open.clear()
    sender = start(inbox)
    sender.put(notice(0))
    assert inbox.inside.wait(10)
    for number in range(1, MOST_WAITING + 50):
        sender.put(notice(number))
    assert sender.counts() == Counts(dropped=50, waiting=200)
    assert caplog.text.count("the oldest are dropped") == 1
    inbox.open.set()
    wait_for(lambda: len(inbox.calls) == MOST_WAITING + 1)
    # The message that was being sent when it was dropped arrives all the same.
    assert [int(call[0]) for call in inbox.calls] == [0, *range(50, MOST_WAITING + 50)]


def test_a_fault_in_a_message_does_not_end_the_thread(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def deliver(notices: Sequence[Notice]) -> tuple[Outcome, str]:
        calls.append(notices[0].id)
        if len(calls) == 1:
            raise RuntimeError("https://robot/t0ken")
        return "sent", ""

    sender = start(deliver)
    sender.put(notice(0))
    sender.put(notice(1))
    wait_for(lambda: sender.counts() == Counts(sent=1, failed=1))
    assert "RuntimeError" in caplog.text
    assert "t0ken" not in caplog.text


def test_the_end_sends_what_waits(start: Start) -> None:
    inbox = Inbox()
    inbox.open.clear()
    sender = start(inbox)
    for number in range(5):
        sender.put(notice(number))
    inbox.open.set()
    sender.close(time.monotonic() + 20)
    assert sender.counts() == Counts(sent=5)


def test_the_end_does_not_wait_for_a_target_that_hangs(start: Start) -> None:
    inbox = Inbox()
    inbox.open.clear()
    sender = start(inbox)
    sender.put(notice(0))
    assert inbox.inside.wait(10)
    sender.close(time.monotonic() + 0.05)
    assert sender._thread.is_alive()


def test_a_pause_between_attempts_ends_with_the_process(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "BACKOFF", (3600.0, 3600.0))
    inbox = Inbox(["again"])
    sender = start(inbox)
    sender.put(notice(0))
    wait_for(lambda: inbox.calls)
    sender.close(time.monotonic() + 20)
    assert not sender._thread.is_alive()
