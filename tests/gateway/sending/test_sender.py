"""The sender of a client that acknowledges frames: each frame that it writes is known, also those that had to wait."""

from __future__ import annotations

import pytest

from gateway.counters import Sent
from gateway.sending.flushes import Flushes
from gateway.sending.outbox import Item, Outbox
from gateway.sending.sender import PreparedSender
from gateway.sending.view import View
from gateway.sending.window import FIRST
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import behaviour_of, quote_topic

STAMPED = View(stamped=True)


class Clock:
    now = 0.0

    def look(self) -> float:
        return self.now


class Transport:
    """A transport that takes everything."""

    full = False
    deflates = False
    sender = None

    def __init__(self) -> None:
        self.written = b""
        self.refunds = 0

    def write(self, data: bytes) -> bool:
        self.written += data
        return True

    def peer_silence(self) -> float:
        return 0.0

    def refund(self) -> None:
        self.refunds += 1


class Client:
    opted_in = True

    def __init__(self) -> None:
        self.stalled = 0.0

    def lagging(self, stalled: float) -> None:
        self.stalled = stalled


def frame(number: int) -> Frame:
    code = f"{number:06}.SZ"
    return Frame(quote_topic(code), 1, number, 1, 1, frames.encode({code: [{"pad": "x" * 1000}]}))


class Rig:
    def __init__(self) -> None:
        flushes = Flushes()
        self.clock = flushes.clock = Clock()  # type: ignore[assignment]
        self.transport = Transport()
        self.client = Client()
        self.sender = PreparedSender(self.client, Outbox(10**7), Sent(), self.transport, flushes, 1.0)  # type: ignore[arg-type]
        self.number = 0

    def put(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            made = frame(self.number)
            self.sender.outbox.put(Item(made, behaviour_of(made.topic), STAMPED))
        self.sender.room = 0
        self.sender.flush()

    def taken(self) -> list[int]:
        """Return the numbers of the frames that the library has read, and forget them; it answers no ping."""
        parts = self.transport.written.split(b'"seq":')[1:]
        self.transport.written = b""
        return [int(part.partition(b",")[0]) for part in parts]


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    rig.sender.processed(1)
    rig.put(1)
    assert rig.taken() == [1]
    assert rig.sender.processed(1)
    return rig


async def test_frames_that_waited_count_as_unacknowledged(rig: Rig) -> None:
    rig.put(300)
    numbers = rig.taken()
    assert len(numbers) * 1000 < 2 * FIRST
    got = numbers
    while got[-1] < 301:
        # Acknowledged at once, so the window grows; each acknowledgement lets more frames pass, in order.
        assert rig.sender.processed(got[-1])
        got += rig.taken()
    assert got == list(range(2, 302))


async def test_only_an_awaited_acknowledgement_is_refunded(rig: Rig) -> None:
    rig.put(1)
    before = rig.transport.refunds
    assert rig.sender.processed(2)
    assert not rig.sender.processed(2)
    assert rig.transport.refunds == before + 1


async def test_program_that_stops_acknowledging_is_dropped(rig: Rig) -> None:
    rig.put(300)
    rig.taken()
    sent = 0
    for second in range(1, 100):
        rig.clock.now = float(second)
        rig.sender.check(rig.clock.now, 60.0)
        sent += len(rig.taken())
        if rig.client.stalled:
            break
    assert 60 <= rig.client.stalled < 65
    assert 30 < sent < 70


async def test_program_that_answers_a_single_frame_gets_the_rest(rig: Rig) -> None:
    rig.put(300)
    rig.taken()
    rig.clock.now = 10.0
    rig.sender.check(rig.clock.now, 60.0)
    (single,) = rig.taken()
    assert rig.sender.processed(single)
    assert len(rig.taken()) > 1
