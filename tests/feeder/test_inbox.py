"""The inbox alone: the test is the source, and it makes the queued calls instead of the publisher's thread."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec
import pytest
import zmq

from feeder.events import Unsent
from feeder.inbox import Inbox
from feeder.journal.thread import JournalThread
from feeder.source import SessionState
from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire import frames
from qmt_bridge.wire.messages import AccountState, TradeEvent
from qmt_bridge.wire.topics import Topic, quote_topic, trade_topic
from tests.support.waiting import SLOWNESS, wait_for

QUOTE = quote_topic("600519.SH")
WHOLE = Topic("whole/SH/")
L2 = Topic("l2/600519.SH/0/")
SECONDS = 30.0 * SLOWNESS


class Outlet:
    """An outlet that notes what it is told; `waiting` trade events wait for the disk."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.waiting = 0

    def send(self, topic: Topic, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, received_ns: int) -> None:
        self.told.append((topic, body, pieces, received_ns))

    def accept(self, topic: Topic) -> None:
        self.told.append(("accept", topic))

    def refuse(self, topic: Topic, code: ErrorCode, reason: str) -> None:
        self.told.append(("refuse", topic, code, reason))

    def change_state(self, state: SessionState) -> None:
        self.told.append(("state", state))

    def change_accounts(self, accounts: tuple[AccountState, ...]) -> None:
        self.told.append(("accounts", accounts))

    def held(self) -> int:
        return self.waiting


@pytest.fixture
def outlet() -> Outlet:
    return Outlet()


@pytest.fixture
def inbox(outlet: Outlet) -> Iterator[Inbox]:
    inbox = Inbox(outlet)
    inbox.open()
    yield inbox
    inbox.close()


def told(inbox: Inbox, outlet: Outlet) -> list[tuple[Any, ...]]:
    """Make the queued calls; return what they have told the outlet."""
    while inbox.calls:
        inbox.calls.popleft()()
    taken, outlet.told = outlet.told, []
    return taken


def wakes(inbox: Inbox) -> int:
    """Return how many wake-ups have come since the last look."""
    try:
        return len(inbox.waking.recv(1 << 20))
    except BlockingIOError:
        return 0


def test_calls_reach_the_outlet_in_order_on_the_publishers_thread(inbox: Inbox, outlet: Outlet) -> None:
    account = AccountState("100***65", "stock", "up")
    inbox.accept(QUOTE)
    inbox.publish(QUOTE, {"lastPrice": 1.0}, 5)
    inbox.refuse(L2, "unknown_symbol", "no such code")
    inbox.set_state("down", "gone", data_lost=True)
    inbox.set_accounts([account])
    assert outlet.told == []
    assert told(inbox, outlet) == [
        ("accept", QUOTE),
        (QUOTE, frames.encode({"lastPrice": 1.0}), None, 5),
        ("refuse", L2, "unknown_symbol", "no such code"),
        ("state", SessionState("down", "gone", True)),
        ("accounts", (account,)),
    ]


@pytest.mark.parametrize("topic", [QUOTE, WHOLE])
def test_a_body_is_encoded_before_the_call_returns(inbox: Inbox, outlet: Outlet, topic: Topic) -> None:
    tick = {"lastPrice": 1.0}
    inbox.publish(topic, {"600519.SH": tick}, 5)
    tick["lastPrice"] = 2.0
    [(_, body, _, _)] = told(inbox, outlet)
    assert frames.decode(body) == {"600519.SH": {"lastPrice": 1.0}}


def test_a_market_comes_in_batches_whose_first_has_all_pieces(inbox: Inbox, outlet: Outlet) -> None:
    market = {f"{number:06}.SH": {"text": "x" * 1000} for number in range(400)}
    inbox.publish(WHOLE, market, 5)
    sent = told(inbox, outlet)
    assert len(sent) > 1
    assert all(len(body) <= frames.BATCH_BYTES for _, body, _, _ in sent)
    assert {code: tick for _, body, _, _ in sent for code, tick in frames.decode(body).items()} == market
    assert list(sent[0][2]) == list(market)
    assert [pieces for _, _, pieces, _ in sent[1:]] == [{}] * (len(sent) - 1)


def test_batches_of_a_push_are_one_call_that_goes_on(inbox: Inbox, outlet: Outlet) -> None:
    """No question is answered between them, but a full consumer of a lossless feeder may interrupt them."""
    market = {f"{number:06}.SH": {"text": "x" * 1000} for number in range(400)}
    refused = [zmq.Again()]
    send = inbox._send

    def full_once(topic: Topic, body: bytes, pieces: Mapping[str, msgspec.Raw] | None, received_ns: int) -> None:
        if len(outlet.told) == 2 and refused:
            raise refused.pop()
        send(topic, body, pieces, received_ns)

    inbox._send = full_once
    inbox.publish_whole(WHOLE, market, 5)
    (call,) = inbox.calls
    with pytest.raises(zmq.Again):
        call()
    assert len(outlet.told) == 2
    sent = told(inbox, outlet)
    codes = [code for _, body, _, _ in sent for code in frames.decode(body)]
    assert codes == list(market)
    assert [len(pieces) for _, _, pieces, _ in sent] == [400] + [0] * (len(sent) - 1)


def test_a_tick_that_cannot_be_encoded_is_left_out_alone(
    inbox: Inbox, outlet: Outlet, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.publish(WHOLE, {"1.SH": {"lastPrice": 1.0}, "2.SH": {"lastPrice": object()}}, 5)
    [(_, body, pieces, _)] = told(inbox, outlet)
    assert frames.decode(body) == {"1.SH": {"lastPrice": 1.0}}
    assert list(pieces) == ["1.SH"]
    assert inbox.unencodable == 1
    assert "a message of kind whole cannot be encoded and is dropped" in caplog.text


def test_a_message_that_cannot_be_encoded_is_logged_once_a_kind(
    inbox: Inbox, outlet: Outlet, caplog: pytest.LogCaptureFixture
) -> None:
    for topic in (L2, QUOTE, QUOTE):
        inbox.publish(topic, object(), 5)
    inbox.publish(QUOTE, {}, 5)
    assert [topic for topic, *_ in told(inbox, outlet)] == [QUOTE]
    assert inbox.unencodable == 3
    assert [record.getMessage().split()[4] for record in caplog.records] == ["l2", "quote"]


@pytest.mark.parametrize("received_ns", [-1, 1 << 63, 1.5, None])
@pytest.mark.parametrize("topic", [QUOTE, WHOLE])
def test_market_data_without_a_valid_time_is_dropped(
    inbox: Inbox, outlet: Outlet, caplog: pytest.LogCaptureFixture, topic: Topic, received_ns: Any
) -> None:
    inbox.publish(topic, {"600519.SH": {}}, received_ns)
    assert told(inbox, outlet) == []
    assert inbox.unencodable == 1
    assert f"received_ns must be nanoseconds since 1970, got {received_ns!r}" in caplog.text


def test_a_trade_event_has_a_queue_of_its_own(inbox: Inbox, outlet: Outlet) -> None:
    inbox.publish_trade("1", "trade", {"traded_volume": 100}, 5)
    event = Unsent("1", "trade", msgspec.Raw(frames.encode({"traded_volume": 100})))
    assert list(inbox.trades) == [(trade_topic("1"), event, 5)]
    assert told(inbox, outlet) == []


def test_a_trade_event_with_an_odd_field_is_kept_as_text(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        inbox.publish_trade("1", "trade", {"traded_volume": 100, "odd": {1, "\N{SNOWMAN}", object}}, 5)
    [(_, event, _), _] = inbox.trades
    data = frames.decode(bytes(event.data))
    assert data["traded_volume"] == 100
    assert "object" in data["odd"]
    assert inbox.unencodable == 2
    # Every one is logged, unlike market data.
    assert len([record for record in caplog.records if "has a part that cannot be encoded" in record.message]) == 2


@pytest.mark.parametrize("received_ns", [-1, None])
def test_a_trade_event_without_a_valid_time_has_the_present_one(inbox: Inbox, received_ns: Any) -> None:
    before = time.time_ns()
    inbox.publish_trade("1", "trade", {"traded_volume": 100}, received_ns)
    [(_, event, at)] = inbox.trades
    assert frames.decode(bytes(event.data)) == {"traded_volume": 100}
    assert before <= at <= time.time_ns()


def test_a_trade_event_whose_type_cannot_be_encoded_is_counted(inbox: Inbox) -> None:
    inbox.publish_trade("1", cast("str", object()), {}, 5)
    assert list(inbox.trades) == []
    assert inbox.unencodable == 1


def test_a_trade_event_after_the_end_is_logged_and_not_queued(inbox: Inbox, caplog: pytest.LogCaptureFixture) -> None:
    inbox.publish_trade("1", "order", {}, 5)
    inbox.close_trades()
    inbox.publish_trade("1", "trade", {}, 6)
    assert [event.type for _, event, _ in inbox.trades] == ["order"]
    assert "a trade event of type trade came after the feeder's end and is not in the journal" in caplog.messages


def test_only_a_thread_that_sleeps_is_woken_and_once(inbox: Inbox) -> None:
    inbox.publish(QUOTE, {}, 5)
    inbox.publish_trade("1", "trade", {}, 5)
    assert wakes(inbox) == 0
    for publish in (lambda: inbox.publish(QUOTE, {}, 5), lambda: inbox.publish_trade("1", "trade", {}, 5)):
        inbox.asleep = True
        publish()
        publish()
        assert wakes(inbox) == 1


def test_wake_ups_that_are_not_read_block_no_source(inbox: Inbox) -> None:
    for _ in range(100_000):
        inbox.wake()
    assert wakes(inbox) > 0


def test_a_callback_after_the_end_is_ignored(outlet: Outlet) -> None:
    inbox = Inbox(outlet)
    inbox.open()
    inbox.close()
    inbox.asleep = True
    inbox.publish(QUOTE, {}, 5)


def test_a_waking_socket_that_fails_before_the_end_is_told(inbox: Inbox) -> None:
    inbox._waker.close()
    with pytest.raises(OSError) as told:  # noqa: PT011
        inbox.wake()
    # A bad descriptor, and on Windows a handle that is no socket.
    assert told.value.errno in (errno.EBADF, errno.ENOTSOCK)


def test_there_is_room_below_the_limit_of_all_that_waits(inbox: Inbox, outlet: Outlet) -> None:
    inbox.publish(QUOTE, {}, 5)
    inbox.publish_trade("1", "trade", {}, 5)
    outlet.waiting = 2
    assert inbox.wait_room(5, timeout=0.0)
    assert not inbox.wait_room(4, timeout=0.0)


def test_a_wait_for_room_ends_when_there_is_some(inbox: Inbox, outlet: Outlet) -> None:
    inbox.publish(QUOTE, {}, 5)
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(inbox.wait_room(1, SECONDS)))
    waiter.start()
    wait_for(lambda: inbox._room_wanted, "the thread that waits for room")
    told(inbox, outlet)
    inbox.notify_room()
    waiter.join(SECONDS / 2)
    assert found == [True]
    waiter.join()


class Pages:
    """A journal thread that returns one page after another, and notes the positions asked for."""

    def __init__(self, *pages: list[tuple[int, object, object]]) -> None:
        self.pages = [*pages, []]
        self.asked: list[dict[str, int]] = []

    def call(self, function: Any, timeout: float) -> list[tuple[int, object, object]]:
        self.asked.append(function.keywords)
        return self.pages[len(self.asked) - 1]


def past(inbox: Inbox, pages: Pages) -> list[tuple[int, TradeEvent]]:
    inbox.use(cast("JournalThread", pages))
    return list(inbox.past_trades(1000))


def event(seq: int) -> bytes:
    return frames.encode({"type": "trade", "seq": seq, "data": {}})


def test_past_trades_are_read_page_by_page(inbox: Inbox) -> None:
    pages = Pages([(3, 1000, event(3)), (4, 1001, event(4))], [(9, 1002, event(9))])
    assert past(inbox, pages) == [(at, TradeEvent("trade", seq, {})) for seq, at in ((3, 1000), (4, 1001), (9, 1002))]
    assert pages.asked == [{"time_ms": 1000, "after": after} for after in (0, 4, 9)]


@pytest.mark.parametrize(
    ("row", "logged"),
    [
        pytest.param((4, 1001, b"\xc1"), "an event of 1 bytes in the trade journal cannot be read", id="body"),
        pytest.param((4, 1001, "text"), "an event in the trade journal is damaged", id="no-bytes"),
        pytest.param((4, "text", event(4)), "an event in the trade journal is damaged", id="no-time"),
    ],
)
def test_a_damaged_past_trade_is_left_out_alone(
    inbox: Inbox, caplog: pytest.LogCaptureFixture, row: tuple[int, object, object], logged: str
) -> None:
    pages = Pages([(3, 1000, event(3)), row, (5, 1002, event(5))], [(6, 1003, event(6))])
    with caplog.at_level(logging.ERROR):
        assert [event.seq for _, event in past(inbox, pages)] == [3, 5, 6]
    [record] = caplog.records
    assert record.getMessage().startswith(logged)
