"""For which clients a worker's turn waits: those that answer soon and can take no more until they have."""

from __future__ import annotations

import pytest

from gateway.counters import Sent
from gateway.read_subscription import ReadSubscription
from gateway.sending.flushes import Flushes
from gateway.sending.outbox import Item, Outbox
from gateway.sending.sender import PreparedSender
from gateway.streams.member import StoreQuestion
from gateway.subscription import DOCUMENTED, Subscription
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import behaviour_of, quote_topic
from tests.support.waiting import until

TOPIC = quote_topic("600519.SH")


class Clock:
    now = 100.0

    def look(self) -> float:
        return self.now

    def exclude(self, turn: float) -> None:
        """Ignore it: the test sets the time."""


class Transport:
    """A transport that takes everything, and keeps the pings."""

    full = False
    deflates = False
    sender = None

    def __init__(self) -> None:
        self.pings: list[bytes] = []

    def write(self, data: bytes) -> bool:
        if data[-6:-4] == b"\x89\x04":
            self.pings.append(data[-4:])
        return True


class Owner:
    """A session whose subscriptions have no turns."""

    def rest(self, subscription: Subscription) -> None:
        """Ignore it."""


class Rig:
    def __init__(self) -> None:
        self.flushes = Flushes()
        self.clock = self.flushes.clock = Clock()  # type: ignore[assignment]
        self.transport = Transport()
        self.sender = PreparedSender(None, Outbox(10**7), Sent(), self.transport, self.flushes, 1.0)  # type: ignore[arg-type]
        self.seq = 0

    def fill(self) -> None:
        """Put frames until the client can take no more."""
        while self.sender.room:
            self.put()
            self.flushes.flush()
        self.put()

    def put(self) -> None:
        self.seq += 1
        body = frames.encode({"600519.SH": [{"pad": "x" * 1000}]})
        self.sender.put(Item(Frame(TOPIC, 1, self.seq, 1, 1, body), behaviour_of(TOPIC)))

    def answer(self) -> None:
        self.sender.acknowledge(self.transport.pings[-1])


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    rig.fill()
    assert rig.flushes.pressed
    rig.flushes.end_turn(0.001)
    assert not rig.flushes.pressed
    return rig


async def test_turn_waits_until_a_quick_client_answers(rig: Rig) -> None:
    assert rig.flushes.waits()
    rig.flushes.flush()
    assert rig.flushes.waits()
    rig.answer()
    assert not rig.flushes.waits()


async def test_turn_waits_a_moment_for_a_client_that_never_answered(rig: Rig) -> None:
    rig.clock.now += 0.019
    assert rig.flushes.waits()
    rig.clock.now += 0.002
    assert not rig.flushes.waits()


async def test_turn_does_not_wait_for_a_late_answer(rig: Rig) -> None:
    rig.answer()
    rig.fill()
    rig.flushes.end_turn(0.001)
    rig.clock.now += 0.12
    assert rig.flushes.waits()
    rig.clock.now += 0.01
    assert not rig.flushes.waits()
    # Neither do the frames after that.
    rig.put()
    assert not rig.flushes.pressed
    assert not rig.flushes.waits()


async def test_turn_does_not_wait_for_a_client_that_has_left(rig: Rig) -> None:
    rig.sender.gone = True
    assert not rig.flushes.waits()


async def test_turn_does_not_wait_for_a_slow_client(rig: Rig) -> None:
    rig.clock.now += 0.4
    rig.answer()
    rig.fill()
    assert not rig.flushes.pressed
    assert not rig.flushes.waits()


async def test_nobody_waits_for_a_client_that_is_read_the_store(rig: Rig) -> None:
    rig.sender.readings = 1
    rig.fill()
    assert not rig.flushes.pressed
    assert not rig.flushes.waits()
    # What it was read waits no more for it, and live data does.
    rig.sender.readings = 0
    rig.put()
    assert rig.flushes.pressed
    assert rig.flushes.waits()


async def test_client_counts_as_read_until_it_was_sent_all(rig: Rig) -> None:
    subscription = ReadSubscription(rig.sender, Owner(), TOPIC, DOCUMENTED, StoreQuestion(start=1))  # type: ignore[arg-type]
    other = ReadSubscription(rig.sender, Owner(), TOPIC, DOCUMENTED, StoreQuestion(start=1))  # type: ignore[arg-type]
    subscription.met()
    other.stop()
    await until(lambda: rig.sender.stalled)
    assert rig.sender.readings == 2
    rig.answer()
    await until(lambda: rig.sender.readings == 0)
    subscription.stop()
    assert rig.sender.readings == 0
    assert rig.sender._drained is None
