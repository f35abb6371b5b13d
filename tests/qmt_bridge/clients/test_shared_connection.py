"""What a shared connection asks for while its streams come, wait, are refused and leave. Without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from qmt_bridge import CallbackError, ServerError
from qmt_bridge.clients.control import Ack, Answer, Rejected
from qmt_bridge.clients.shared_connection import Member, SharedConnection
from qmt_bridge.clients.stream import Stream, Verdict
from qmt_bridge.reading.backlog import Backlog
from tests.support.rig import DEADLINE
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(30)
A, B, BAD = "600000.SH", "600001.SH", "999999.SZ"
REFUSED = Rejected(BAD, "unknown_symbol", "unknown")


class Frames:
    """In the place of a stream with a connection: what it was asked for, and the frames that the test gives it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.is_connected = asyncio.Event()
        self.frames: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def connected(self) -> None:
        await self.is_connected.wait()

    def add(self, codes: list[str]) -> Answer[Ack]:
        self.asked.append(("add", codes))
        answer = Answer[Ack]()
        good = tuple(code for code in codes if code != BAD)
        answer.answer(Ack(good, (REFUSED,) if BAD in codes else ()))
        return answer

    def remove(self, codes: list[str]) -> Answer[Ack]:
        self.asked.append(("remove", codes))
        answer = Answer[Ack]()
        answer.answer(Ack(tuple(codes)))
        return answer

    def close(self) -> None:
        self.frames.put_nowait({})

    def __aiter__(self) -> Frames:
        return self

    async def __anext__(self) -> dict[str, object]:
        frame = await self.frames.get()
        if not frame:
            raise StopAsyncIteration
        return frame


async def ignore(frame: dict[str, object]) -> None:
    return None


def shared(frames: Frames, warn: Callable[..., object] = ignore) -> SharedConnection:
    return SharedConnection(frames, warn, lambda: None, snapshot=True)


def joined(connection: SharedConnection, *codes: str) -> Member:
    member = Member(set(codes), Backlog("code"))
    connection.join(member, Answer[None]())
    return member


async def test_a_stream_that_left_before_its_turn_asks_for_nothing():
    frames = Frames()
    connection = shared(frames)
    gone, stays = joined(connection, A), joined(connection, B)
    connection.leave(gone)
    frames.is_connected.set()
    await until(lambda: stays.codes)
    await until(lambda: not connection._joining)
    assert frames.asked == [("add", [B])]
    connection.leave(stays)
    await connection._task


async def test_codes_change_before_there_is_a_connection():
    frames = Frames()
    connection = shared(frames)
    member = joined(connection, A, B)
    assert await connection.add(member, [A]) == Ack()
    assert await connection.remove(member, [B]) == Ack((B,))
    frames.is_connected.set()
    await until(lambda: member.codes)
    assert frames.asked == [("remove", [B]), ("add", [A])]
    connection.leave(member)
    await connection._task


async def test_a_full_stream_that_leaves_delays_no_other():
    frames = Frames()
    connection = shared(frames)
    frames.is_connected.set()
    full, other = joined(connection, A), joined(connection, A)
    await until(lambda: full.codes and other.codes)
    full.mailbox._backlog._limit = 0
    frames.frames.put_nowait({A: [{"time": 1}]})
    await until(lambda: full.mailbox._room is not None)
    connection.leave(full)
    async with asyncio.timeout(DEADLINE):
        assert await other.mailbox.take() == b'{"600000.SH":[{"time":1}]}'
    connection.leave(other)
    await connection._task


async def test_a_code_that_was_refused_later_is_asked_for_again():
    frames = Frames()
    connection = shared(frames)
    frames.is_connected.set()
    first, second = joined(connection, A, B), joined(connection, B)
    await until(lambda: first.codes and second.codes)
    connection.refuse({"type": "error", "code": "unknown_symbol", "error": "gone", "symbol": A})
    assert (first.codes, second.codes) == ({B}, {B})
    assert await connection.add(second, [A]) == Ack((A,))
    assert frames.asked[-2:] == [("remove", [A]), ("add", [A])]
    for member in (first, second):
        connection.leave(member)
    await connection._task


async def test_a_notice_that_fails_ends_the_stream_that_asked():
    async def fail(frame: dict[str, object]) -> None:
        raise CallbackError(frame)

    frames = Frames()
    connection = shared(frames, fail)
    frames.is_connected.set()
    member = joined(connection, A, BAD)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(CallbackError):
            await member.mailbox.take()
    connection.leave(member)
    await connection._task


def test_refused_codes_of_a_shared_connection_do_not_end_it():
    stream = Stream("/ws/realtime", ({"stocks": [A]},), (A,))
    refusal = {"type": "error", "code": "unknown_symbol", "error": "gone", "symbol": A}
    assert stream.judge(refusal) is Verdict.FAIL
    carried = stream.emptied()
    carried.on_refused = lambda frame: None
    carried.add([A])
    assert carried.judge(refusal) is Verdict.WARN
    assert carried.judge({"type": "error", "code": "bad_request", "error": "all of it"}) is Verdict.FAIL


async def test_the_last_code_that_is_refused_ends_its_stream():
    connection = shared(frames := Frames())
    frames.is_connected.set()
    member = joined(connection, A)
    await until(lambda: member.codes)
    connection.refuse({"type": "error", "code": "unknown_symbol", "error": "gone", "symbol": A})
    with pytest.raises(ServerError, match="gone"):
        await member.mailbox.take()
    connection.leave(member)
    await connection._task
