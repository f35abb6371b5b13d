"""What clients send below the requests: prices, turns, and what floods cost (gateway/connections/intake.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import SO_RCVBUF, SOL_SOCKET
from typing import Any

import pytest

from gateway.connections import intake
from gateway.connections.intake import (
    ALL_BURST,
    ALL_SHARE,
    BURST,
    FRAME_COST,
    MESSAGE_COST,
    QUEUE_SHARE,
    SLICE,
    SOCKET_SHARE,
    TURN,
    Meter,
    Queue,
)
from gateway.server import RECEIVE_BUFFER, _bind
from gateway.writer import PONGS, PreparedFrames
from tests.support.raw import CLOSE, CONT, PING, PONG, TEXT, Raw, frame, raw_socket
from tests.support.rig import Rig, Server
from tests.support.waiting import until

PREPARED = pytest.mark.parametrize("rig", [PreparedFrames], ids=["prepared"], indirect=True)


def test_meter_allows_a_burst_and_then_a_share() -> None:
    meter = Meter()
    meter.spend(BURST, 100.0)
    assert meter.debt(100.0) == 0
    meter.spend(0.5, 100.0)
    assert meter.debt(100.0) == pytest.approx(0.5)
    assert meter.debt(101.0) == pytest.approx(0.5 - SOCKET_SHARE)
    assert meter.debt(100.0 + 0.5 / SOCKET_SHARE) == pytest.approx(0)


def test_meter_saves_nothing_while_nothing_is_spent() -> None:
    meter = Meter()
    meter.spend(FRAME_COST, 100.0)
    meter.spend(BURST + 0.1, 100_000.0)
    assert meter.debt(100_000.0) == pytest.approx(0.1)


class Clock(asyncio.AbstractEventLoop):
    """A loop that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, **_: Any) -> Any:
        return self._plan(self.now, callback, asyncio.Handle)

    def call_at(self, when: float, callback: Any, *args: Any, **_: Any) -> Any:
        return self._plan(when, callback, asyncio.TimerHandle)

    def _plan(self, when: float, callback: Callable[[], None], kind: type) -> Any:
        handle = object.__new__(kind)
        handle.cancel = lambda: self.calls.remove(entry)
        entry = (when, callback)
        self.calls.append(entry)
        return handle

    def turn(self) -> None:
        when, callback = self.calls.pop(0)
        self.now = max(self.now, when)
        callback()


class Sender:
    def __init__(self, queue: Queue, log: list[str], name: str, turns: int, *, over: bool = False) -> None:
        self.queue, self.log, self.name, self.turns = queue, log, name, turns
        self.meter = Meter()
        if over:
            self.meter.spend(1e6, 0.0)

    @property
    def waiting(self) -> int:
        return self.turns * SLICE

    def work_off(self, now: float) -> float:
        self.log.append(self.name)
        self.turns -= 1
        self.meter.spend(TURN, now)
        if self.turns:
            self.queue.add(self)
        return TURN


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    class Handle:
        cancel: Any = None

    class TimerHandle(Handle):
        pass

    monkeypatch.setattr(asyncio, "Handle", Handle)
    monkeypatch.setattr(asyncio, "TimerHandle", TimerHandle)
    return Clock()


def test_sockets_in_debt_share_a_part_of_the_loop(clock: Clock) -> None:
    queue, log = Queue(clock), list[str]()
    for name in "ab":
        queue.add(Sender(queue, log, name, 50, over=True))
    while clock.calls:
        clock.turn()
    assert log == ["a", "b"] * 50
    assert clock.now == pytest.approx(99 * TURN / QUEUE_SHARE)


def test_socket_within_its_share_waits_for_none_in_debt(clock: Clock) -> None:
    queue, log = Queue(clock), list[str]()
    queue.add(Sender(queue, log, "debtor", 2, over=True))
    clock.turn()
    queue.add(Sender(queue, log, "good", 3))
    while clock.calls:
        clock.turn()
    assert log == ["debtor", "good", "good", "good", "debtor"]


def test_sockets_within_their_share_leave_the_loop_time(clock: Clock) -> None:
    queue, log = Queue(clock), list[str]()
    for name in map(str, range(200)):
        queue.add(Sender(queue, log, name, 10))
    while clock.calls:
        clock.turn()
    assert len(log) == 2000
    assert clock.now >= (2000 * TURN - ALL_BURST) / ALL_SHARE * 0.99


def test_socket_with_little_to_parse_comes_first(clock: Clock) -> None:
    queue, log = Queue(clock), list[str]()
    for name in map(str, range(200)):
        queue.add(Sender(queue, log, name, 10))
    while len(log) < 400:
        clock.turn()
    queue.add(Sender(queue, log, "good", 1))
    while len(log) < 402:
        clock.turn()
    assert "good" in log[400:]


def test_socket_with_much_to_parse_does_not_wait_for_ever(clock: Clock) -> None:
    queue, log = Queue(clock), list[str]()
    queue.add(Sender(queue, log, "large", 32))
    for _ in range(20_000):
        queue.add(Sender(queue, log, "small", 1))
        clock.turn()
        if "large" in log:
            break
    assert log[-1] == "large"
    assert clock.now == pytest.approx(30, rel=0.05)


def test_socket_waits_while_all_have_spent_their_share(clock: Clock) -> None:
    queue, meter = Queue(clock), Meter()
    queue.spend(ALL_BURST, 0.0)
    assert queue.passes(meter, 0.0)
    queue.spend(TURN, 0.0)
    assert not queue.passes(meter, 0.0)
    assert queue.passes(meter, TURN / ALL_SHARE)


def protocol(server: Server) -> PreparedFrames:
    """Return the server's side of the only WebSocket."""
    (found,) = (each for each in server._server.server_state.connections if isinstance(each, PreparedFrames))
    return found


FLOODS = {
    "pings": [frame(PING)],
    "long-pings": [frame(PING, b"x" * 125)],
    "pongs": [frame(PONG, b"nobody asked")],
    "empty-fragments": [frame(TEXT, b"{", fin=False), frame(CONT, fin=False)],
    "small-fragments": [frame(TEXT, b"{", fin=False), frame(CONT, b" ", fin=False)],
}


@PREPARED
@pytest.mark.parametrize("flood", FLOODS)
async def test_flood_is_parsed_in_slices_and_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch, flood: str) -> None:
    monkeypatch.setattr(intake, "FLOOD", 0.05)
    costs: list[float] = []
    parse = PreparedFrames._parse
    monkeypatch.setattr(PreparedFrames, "_parse", lambda self, data: costs.append(cost := parse(self, data)) or cost)
    *first, repeated = FLOODS[flood]
    async with raw_socket(rig.servers[0].port) as socket, rig.connect("/ws/realtime") as good:
        socket.write(*first, repeated * 30_000)
        await good.subscribed(stocks=["600519.SH"])
        frames = await socket.frames()
        assert frames[-1] == (CLOSE, (1008).to_bytes(2, "big") + frames[-1][1][2:])
        assert b"rate_limited: more frames" in frames[-1][1]
        await until(lambda: len(rig_sessions(rig)) == 1, "the end of the flooding connection")
    # No slice has cost more than a few milliseconds, and what was received is not parsed to its end.
    assert max(costs) <= intake.SLICE / 6 * FRAME_COST + intake.SLICE * intake.BYTE_COST * 2 + FRAME_COST
    assert sum(costs) < 30_000 * FRAME_COST


def rig_sessions(rig: Rig) -> list[PreparedFrames]:
    connections = rig.servers[0]._server.server_state.connections
    return [each for each in list(connections) if isinstance(each, PreparedFrames)]


@PREPARED
async def test_flooding_client_that_never_reads_is_aborted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "FLOOD", 0.05)
    monkeypatch.setattr("gateway.session.CLOSE_TIMEOUT", 0.1)
    async with raw_socket(rig.servers[0].port) as socket:
        socket.writer.transport.pause_reading()  # type: ignore[attr-defined]
        server = protocol(rig.servers[0])
        socket.write(frame(PING, b"x" * 125) * 30_000)
        await until(lambda: server.disconnected, "the end of the connection")
        assert server.transport.get_write_buffer_size() == 0


@PREPARED
async def test_bytes_that_wait_for_all_sockets_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "WAITING_BYTES", 50_000)
    async with raw_socket(rig.servers[0].port) as socket, rig.connect("/ws/realtime") as good:
        await until(lambda: len(rig_sessions(rig)) == 2, "both connections")
        shared = rig_sessions(rig)[0].intake
        socket.write(frame(PING) * 30_000)
        assert await socket.close_code() == 1008
        await good.subscribed(stocks=["600519.SH"])
        await until(lambda: len(rig_sessions(rig)) == 1, "the end of the flooding connection")
        assert shared.waiting == 0


@PREPARED
async def test_no_byte_waits_after_closes_of_all_kinds(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as good:
        await until(lambda: len(rig_sessions(rig)) == 1, "the connection")
        shared = rig_sessions(rig)[0].intake
        for last in (frame(CLOSE), frame(3), b""):
            async with raw_socket(rig.servers[0].port) as socket:
                socket.write(frame(PING) * 3000, last)
                await socket.writer.drain()
        await until(lambda: len(rig_sessions(rig)) == 1, "the end of the others")
        await good.subscribed(stocks=["600519.SH"])
        assert shared.waiting == 0


@PREPARED
async def test_socket_waits_for_its_turn_while_all_are_over_their_share(rig: Rig) -> None:
    async with rig.connect("/ws/realtime?ctl=1") as client:
        await client.receive()
        server = protocol(rig.servers[0])
        server.loop.call_soon_threadsafe(server.intake.spend, 0.05, server.loop.time())
        await until(lambda: not server.intake.passes(server.meter, server.loop.time()), "the debt")
        await client.send({"action": "ping", "id": 7})
        await until(lambda: server.waiting, "the request in the queue")
        assert (await client.receive())["id"] == 7


def test_system_holds_little_of_what_a_client_sends() -> None:
    with _bind("127.0.0.1", 0) as bound:
        assert bound.getsockopt(SOL_SOCKET, SO_RCVBUF) <= 2 * RECEIVE_BUFFER


@PREPARED
async def test_pongs_do_not_pile_up_for_a_client_that_never_reads(rig: Rig) -> None:
    async with raw_socket(rig.servers[0].port) as socket:
        server = protocol(rig.servers[0])
        server.pause_writing()
        socket.write(*(frame(PING, b"%d" % number) for number in range(10)))
        socket.write(frame(TEXT, b'{"action":"ping","id":7}'))
        # The session is served, only the pongs are left out.
        assert await socket.frame() == (PING, b"\0\0\0\1")
        server.resume_writing()
        opcode, payload = await socket.frame()
        assert (opcode, b'"pong"' in payload) == (TEXT, True)


async def pongs(socket: Raw, last: bytes) -> list[bytes]:
    found: list[bytes] = []
    while not found or found[-1] != last:
        opcode, payload = await socket.frame()
        if opcode == PONG:
            found.append(payload)
    return found


async def test_few_pings_are_answered_one_by_one(rig: Rig) -> None:
    async with raw_socket(rig.servers[0].port) as socket:
        sent = [b"%d" % number for number in range(PONGS)]
        socket.write(*(frame(PING, payload) for payload in sent))
        assert await pongs(socket, sent[-1]) == sent


@PREPARED
async def test_newest_of_many_pings_is_answered(rig: Rig) -> None:
    async with raw_socket(rig.servers[0].port) as socket:
        sent = [b"%d" % number for number in range(1000)]
        socket.write(*(frame(PING, payload) for payload in sent))
        answered = await pongs(socket, sent[-1])
        assert len(answered) < 100


@PREPARED
async def test_answers_to_our_pings_cost_the_client_nothing(rig: Rig) -> None:
    async with raw_socket(rig.servers[0].port) as socket:
        socket.write(frame(TEXT, b'{"action":"ping"}'))
        number = b""
        while not number:
            opcode, payload = await socket.frame()
            number = payload if opcode == PING else b""
        server = protocol(rig.servers[0])
        costs = [server._parse(frame(PONG, number)), server._parse(frame(PONG, number))]
        assert costs[0] < FRAME_COST < costs[1]


@PREPARED
async def test_message_costs_what_its_session_does_unless_refunded(rig: Rig) -> None:
    async with raw_socket(rig.servers[0].port) as socket:
        socket.write(frame(TEXT, b'{"action":"ping"}'))
        while (await socket.frame())[0] != TEXT:
            pass
        server = protocol(rig.servers[0])
        ping, request = server._parse(frame(PING)), server._parse(frame(TEXT, b"{}"))
        assert request > ping + 0.9 * MESSAGE_COST
        spent = server.meter.free_at()
        server.refund()
        assert server.meter.free_at() < spent - 0.9 * MESSAGE_COST / SOCKET_SHARE


async def test_long_requests_pass_although_they_wait_for_a_turn(rig: Rig) -> None:
    async with rig.connect("/ws/realtime?ctl=1") as client:
        await client.receive()
        for number in range(50):
            await client.send({"action": "ping", "id": number, "padding": "字" * 9_000})
        answers = [await client.receive() for _ in range(50)]
        assert [answer["id"] for answer in answers] == list(range(50))
