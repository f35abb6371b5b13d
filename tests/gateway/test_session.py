"""A session without a server: what it sends, in which order, when one turn of the loop has more than fits."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from gateway.costs.budget import Budget
from gateway.costs.slices import Slices
from gateway.costs.turns import Turns
from gateway.counters import SentByPath
from gateway.endpoints.realtime import Realtime
from gateway.sending.flushes import Flushes
from gateway.sending.pool import Pool
from gateway.sending.sender import EXTENSION, HIGH_WATER, PreparedSender
from gateway.session import Session, _Disconnected
from gateway.session_state import Event
from gateway.streams.member import Refusal
from gateway.subscription import ENDED, PASSED_A_TURN, Subscription, Terms, Ticket
from qmt_bridge.config import Config
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import IGNORED_NAMES
from qmt_bridge.wire.topics import quote_topic
from tests.support.waiting import SLOWNESS, until

TICK = quote_topic("600519.SH")
DEADLINE = 30.0 * SLOWNESS
# The head of the pings that a sender writes behind its frames.
PING = b"\x89\x04"


class Transport:
    """Prepared frames that are written down, and read at once; `full` says when there is no room."""

    deflates = False

    def __init__(self) -> None:
        self.full = False
        self.written = b""
        # Set by the sender.
        self.sender: PreparedSender

    def write(self, framed: bytes) -> bool:
        self.written += framed
        if framed[-6:-4] == PING:
            self.sender.acknowledge(framed[-4:])
        return True

    def refund(self) -> None:
        """Ignore it: no message was charged."""


def made(flushes: Flushes | None = None) -> tuple[Session, Transport, Subscription]:
    transport = Transport()
    shared = {
        "sent": SentByPath(),
        "flushes": flushes or Flushes(),
        "pool": Pool(2**30),
        "limited": Counter[str](),
        "budget": Budget(1, 1, 0.0),
        "slices": Slices(),
        "turns": Turns(),
        "opening_turns": Turns(),
    }
    host: Any = SimpleNamespace(config=Config(), note=lambda kind, text: None, **shared)
    scope: Any = {"path": "/ws/realtime", "query_string": b"", "headers": [], "extensions": {EXTENSION: transport}}
    nothing: Any = None
    session = Session(host, scope, nothing, nothing)
    session._on(Event.ADMIT)
    return session, transport, Subscription(session.sender, session, TICK)


def tick(number: int, size: int = HIGH_WATER) -> Frame:
    return Frame(TICK, 1, number, 0, 0, frames.encode({"n": number, "pad": "x" * size}))


def order(written: bytes) -> list[bytes]:
    marks = {b'"n":1,': b"1", b'"n":2,': b"2", b'"n":3,': b"3", b'"ack"': b"ack", b'"closing"': b"closing"}
    return [marks[mark] for mark in sorted(marks, key=written.find) if mark in written]


def numbers(written: bytes) -> list[int]:
    """Return the numbers of all ticks."""
    return [int(number) for number in re.findall(rb'"n":(\d+),', written)]


async def test_fast_clients_frames_beyond_the_room_are_not_queued() -> None:
    session, transport, subscription = made()
    for number in (1, 2, 3):
        subscription.deliver(tick(number))
        assert len(session.sender.outbox) == 0
    assert order(transport.written) == [b"1", b"2"]
    session.sender.flush()
    assert order(transport.written) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("size", [pytest.param(HIGH_WATER, id="full"), pytest.param(10, id="room-left")])
async def test_frame_does_not_overtake_the_outbox(size: int) -> None:
    session, transport, subscription = made()
    subscription.deliver(tick(1, size))
    session.tell({"type": "ack"})
    subscription.deliver(tick(2, size))
    subscription.deliver(tick(3, size))
    session.sender.flush()
    assert order(transport.written) == [b"1", b"ack", b"2", b"3"]


async def test_frames_are_queued_while_the_transport_is_full() -> None:
    session, transport, subscription = made()
    subscription.deliver(tick(1))
    transport.full = True
    subscription.deliver(tick(2))
    assert order(transport.written) == [b"1"]
    assert len(session.sender.outbox) == 1
    transport.full = False
    session.sender.flush()
    assert order(transport.written) == [b"1", b"2"]


async def test_body_that_cannot_be_shown_is_left_out_alone() -> None:
    session, transport, subscription = made()
    subscription.serve(Terms(), seq_id=3)
    subscription.deliver(tick(1, 10))
    subscription.deliver(Frame(TICK, 1, 2, 0, 0, b"no JSON"))
    subscription.deliver(tick(3, 10))
    session.sender.flush()
    assert order(transport.written) == [b"1", b"3"]
    assert session.sender.outbox.unfit == 1


async def test_frame_given_after_the_first_processed_is_known() -> None:
    session, transport, subscription = made()
    subscription.deliver(tick(1, 10))
    assert not session.sender.processed(1)
    subscription.deliver(tick(2, 10))
    subscription.deliver(tick(3, 10))
    session.sender.flush()
    assert order(transport.written) == [b"1", b"2", b"3"]
    assert session.sender.processed(2)
    assert not session.sender.processed(1)
    assert session.sender.processed(3)


@pytest.mark.parametrize(("opted_in", "last"), [(False, []), (True, [b"closing"])])
async def test_waiting_frames_are_written_before_the_server_stops(opted_in: bool, last: list[bytes]) -> None:
    session, transport, subscription = made()
    session.opted_in = opted_in
    subscription.deliver(tick(1))
    transport.full = True
    subscription.deliver(tick(2))
    transport.full = False
    subscription.deliver(tick(3, 10))
    transport.sender.closing()
    assert order(transport.written) == [b"1", b"2", b"3", *last]


async def test_names_told_in_acks_are_remembered_up_to_a_limit() -> None:
    session, _, _ = made()
    for request in range(100):
        session.has_told(f"name-{request}-{number}" for number in range(IGNORED_NAMES))
    assert session._ignored == {f"name-0-{number}" for number in range(IGNORED_NAMES)}


async def test_exception_in_a_flush_ends_only_its_session() -> None:
    flushes = Flushes()
    broken, transport, subscription = made(flushes)
    other, other_transport, other_subscription = made(flushes)
    for session in (broken, other):
        session._reader = asyncio.get_running_loop().create_task(asyncio.sleep(DEADLINE))
    transport.write = lambda framed: {}[framed]  # type: ignore[method-assign]
    for each in (subscription, other_subscription):
        each.deliver(tick(1, 10))
    flushes.flush()
    assert (broken._end.close_code, broken._end.code) == (1011, "internal") if broken._end else False
    assert other._end is None
    assert order(other_transport.written) == [b"1"]
    for session in (broken, other):
        assert session._reader is not None
        session._reader.cancel()


@pytest.mark.parametrize("held", [0, 1], ids=["silent", "with-data"])
async def test_failing_ack_ends_the_session_and_holds_no_data_back(held: int) -> None:
    session, transport, subscription = made()
    session._reader = asyncio.get_running_loop().create_task(asyncio.sleep(DEADLINE))
    ticket = Ticket(session.sender, [subscription], lambda _: {}[0])
    for number in range(held):
        subscription.deliver(tick(number + 1, 10))
    subscription.settle("live", None)
    await until(lambda: session._end is not None)
    assert session._end is not None
    assert session._end.close_code == 1011
    assert subscription.gate is not ticket
    session.sender.flush()
    assert order(transport.written) == [b"1"] * held
    session._reader.cancel()


async def test_exception_in_a_paced_subscription_ends_its_session() -> None:
    session, _, _ = made()
    session._reader = asyncio.get_running_loop().create_task(asyncio.sleep(DEADLINE))
    subscription = Subscription(session.sender, session, TICK, Terms(interval=0.01))
    session.subscriptions[subscription] = None
    for number in (1, 2):
        # The first one passes, the second one waits for the timer.
        subscription.deliver(tick(number, 10))
    assert subscription.pacer is not None
    pace = subscription.pacer._limit
    subscription.pacer._limit = SimpleNamespace(waits=True, due=pace.due, take=lambda now: {}[now])  # type: ignore[assignment]
    await until(lambda: session._end is not None)
    assert session._end is not None
    assert session._end.close_code == 1011
    session._reader.cancel()


@pytest.mark.parametrize("interval", [0.5, 3600.0])
async def test_paced_subscription_leaves_no_timer_behind(interval: float) -> None:
    session, _, _ = made()
    hub: Any = SimpleNamespace(join=lambda *_: None, leave=lambda *_: None)
    session.host.feed = SimpleNamespace(hub=hub)  # type: ignore[assignment]
    subscriptions = [Subscription(session.sender, session, TICK, Terms(interval=interval)) for _ in range(3)]
    session.subscribe(subscriptions, None, None)
    timers = []
    for subscription in subscriptions:
        for number in (1, 2):
            subscription.deliver(tick(number, 10))
        assert subscription.pacer is not None
        assert subscription.pacer._timer is not None
        timers.append(subscription.pacer._timer)
    session.unsubscribe(subscriptions[0])
    subscriptions[1].settle("refused", Refusal("upstream_refused", "no"))
    session.host.sessions = {session: None}
    session._leave()
    assert [timer.cancelled() for timer in timers] == [True, True, True]


async def test_held_frames_are_passed_on_in_several_turns_in_order() -> None:
    session, transport, subscription = made()
    session.subscriptions = {subscription: None}
    Ticket(session.sender, [subscription], lambda _: session.tell({"type": "ack"}))
    held = 2 * PASSED_A_TURN + 10
    for number in range(held):
        subscription.deliver(tick(number, 10))
    subscription.settle("live", None)
    turns: list[int] = []
    while subscription.gate is not None:
        await asyncio.sleep(0)
        turns.append(len(numbers(transport.written)))
        # What comes meanwhile is sent after what was held.
        subscription.deliver(tick(held, 10))
        held += 1
    session.sender.flush()
    assert transport.written.find(b'"ack"') < transport.written.find(b'"n":0,')
    assert numbers(transport.written) == list(range(held))
    assert max(later - earlier for earlier, later in pairwise(turns)) <= PASSED_A_TURN + 1


async def test_subscription_that_ends_while_held_frames_pass_gets_no_more() -> None:
    session, transport, subscription = made()
    session.host.feed = SimpleNamespace(hub=SimpleNamespace(leave=lambda *_: None))  # type: ignore[assignment]
    session.subscriptions = {subscription: None}
    Ticket(session.sender, [subscription], lambda _: session.tell({"type": "ack"}))
    for number in range(2 * PASSED_A_TURN):
        subscription.deliver(tick(number, 10))
    subscription.settle("live", None)
    await asyncio.sleep(0)
    assert not isinstance(subscription.gate, Ticket)
    session.unsubscribe(subscription)
    for _ in range(10):
        await asyncio.sleep(0)
    session.sender.flush()
    assert numbers(transport.written) == list(range(PASSED_A_TURN))
    assert subscription.gate is ENDED


async def test_frames_held_for_a_refused_code_are_dropped() -> None:
    session, transport, subscription = made()
    session.on_refused = lambda *_: None
    Ticket(session.sender, [subscription], lambda _: session.tell({"type": "ack"}))
    subscription.deliver(tick(1, 10))
    subscription.settle("refused", Refusal("upstream_refused", "not served"))
    await until(lambda: b'"ack"' in transport.written)
    session.sender.flush()
    assert order(transport.written) == [b"ack"]


async def test_answer_for_an_ended_subscription_is_dropped() -> None:
    session, transport, ended = made()
    refused: list[Subscription] = []
    session.on_refused = lambda of, _: refused.append(of)
    session.subscriptions = {ended: None}
    ended.end()
    # Its stream still has it as a member.
    ended.deliver(tick(1))
    ended.missed(3)
    ended.settle("refused", Refusal("upstream_refused", "not served"))
    session.sender.flush()
    assert (refused, session.missed, transport.written) == ([], 0, b"")


async def test_permuted_fields_are_one_view() -> None:
    session, _, _ = made()
    asked = [("volume", "lastPrice"), ("lastPrice", "volume"), ("lastPrice", "volume", "lastPrice")]
    topic = quote_topic("600519.SH")
    views = {Subscription(session.sender, session, topic, Terms(fields))._view for fields in asked}
    assert len(views) == 1


async def test_requests_of_one_read_are_served_in_several_turns() -> None:
    listed = {"type": "websocket.receive", "text": '{"action":"list"}'}
    session, transport, _ = made()
    session._receive = AsyncMock(side_effect=[*[listed] * 20, {"type": "websocket.disconnect", "code": 1000}])
    session.host.budget = Budget(1000, 1000, 0.0)
    reading = asyncio.ensure_future(session._read(Realtime))
    answered = [0]
    while not reading.done():
        await asyncio.sleep(0)
        session.sender.flush()
        answered.append(transport.written.count(b'"subscriptions"'))
    with pytest.raises(_Disconnected):
        await reading
    assert answered[-1] == 20
    assert max(later - earlier for earlier, later in pairwise(answered)) <= 2


async def test_refused_code_costs_no_look_at_the_other_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, subscription = made()
    serving = Realtime(session)
    looks: list[None] = []
    monkeypatch.setattr(serving, "_update", lambda: looks.append(None))
    serving.wanted[TICK] = "600519.SH"
    session.on_refused(subscription, Refusal("upstream_refused", "not served"))
    await asyncio.sleep(0)
    assert (looks, serving.wanted) == ([], {})
