"""Codes that come and go while a stream of the asynchronous client runs, and its end from elsewhere."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from websockets.asyncio.server import serve

from qmt_bridge import BadRequest, Disconnected, QMTClient, ServerError, quote_topic, whole_topic
from qmt_bridge.clients import control
from qmt_bridge.clients.control import Ack
from qmt_bridge.reading import backlog
from tests.support.rig import DEADLINE
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(30)
A, B, C, BAD = "600000.SH", "600001.SH", "600002.SH", "999999.SZ"


def tick(code, price):
    return {code: [{"time": 1, "lastPrice": price}]}


def client(rig, **options) -> QMTClient:
    return QMTClient("127.0.0.1", rig.servers[-1].port, **options)


async def begun(rig, stream, code=A):
    """Return the first frame, once the stream is subscribed at the source."""
    first = asyncio.ensure_future(anext(stream))
    await rig.wanted(quote_topic(code, "tick"))
    rig.source.publish(quote_topic(code, "tick"), tick(code, 1))
    async with asyncio.timeout(DEADLINE):
        return await first


async def test_a_code_is_added_and_the_refused_one_is_named(rig):
    async with client(rig).realtime([A]) as stream:
        await begun(rig, stream)
        ack = await stream.add([A, B, BAD])
        assert ack.codes == (B,)
        assert [(each.code, each.error) for each in ack.rejected] == [(BAD, "unknown_symbol")]
        rig.source.publish(quote_topic(B, "tick"), tick(B, 2))
        assert await anext(stream) == tick(B, 2)


async def test_a_removed_code_sends_no_further_frame(rig):
    async with client(rig).realtime([A, B]) as stream:
        await begun(rig, stream)
        # It is read, and waits when its code is removed.
        rig.source.publish(quote_topic(A, "tick"), tick(A, 2))
        await until(lambda: stream._control._reader._backlog.size)
        assert await stream.remove([A, C]) == Ack((A,))
        await rig.unwanted(quote_topic(A, "tick"))
        rig.source.publish(quote_topic(B, "tick"), tick(B, 3))
        assert await anext(stream) == tick(B, 3)


async def test_a_market_can_be_added_to_codes_and_removed(rig):
    async with client(rig).whole_quote([A]) as stream:
        first = asyncio.ensure_future(anext(stream))
        await rig.wanted(whole_topic(A))
        rig.source.publish(whole_topic(A), {A: {"time": 1}})
        assert await first == {A: {"time": 1}}
        assert (await stream.add(["SZ"])).codes == ("SZ",)
        rig.source.publish(whole_topic("SZ"), {"000001.SZ": {"time": 2}})
        assert await anext(stream) == {"000001.SZ": {"time": 2}}
        assert (await stream.remove(["SZ"])).codes == ("SZ",)
        rig.source.publish(whole_topic(A), {A: {"time": 3}})
        assert await anext(stream) == {A: {"time": 3}}


async def test_codes_added_from_a_thread_are_served_and_answered(rig):
    async with client(rig).realtime([A]) as stream:
        await begun(rig, stream)
        acks = []
        thread = threading.Thread(target=lambda: acks.append(stream.add([C]).result(DEADLINE)))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        thread.start()
        await rig.wanted(quote_topic(C, "tick"))
        await asyncio.to_thread(thread.join)
        assert acks == [Ack((C,))]
        rig.source.publish(quote_topic(C, "tick"), tick(C, 2))
        assert await waiting == tick(C, 2)


async def test_an_answer_comes_although_the_reader_has_no_room(rig, monkeypatch):
    monkeypatch.setattr(backlog, "ALL_BYTES", 0)
    async with client(rig).realtime([A], mode="all") as stream:
        await begun(rig, stream)
        for price in range(2, 10):
            rig.source.publish(quote_topic(A, "tick"), tick(A, price))
        async with asyncio.timeout(DEADLINE):
            assert (await stream.add([B])).codes == (B,)
        assert [await anext(stream) for _ in range(8)] == [tick(A, price) for price in range(2, 10)]


async def test_changes_hold_after_a_lost_connection(rig):
    # The gateway that takes over is another one, so nothing but the client knows the codes.
    server = rig.serve()
    moving = client(rig)
    stream = moving.realtime([A, B])
    try:
        async with stream:
            await begun(rig, stream)
            assert (await stream.add([C])).codes == (C,)
            await stream.remove([A])
            await rig.unwanted(quote_topic(A, "tick"))
            moving._base = f"ws://127.0.0.1:{rig.servers[0].port}"
            server.ask_to_stop()
            again = asyncio.ensure_future(anext(stream))
            await asyncio.to_thread(server.stop)
            rig.servers.remove(server)
            # The last value of C was published before.
            await rig.wanted(quote_topic(C, "tick"))
            rig.source.publish(quote_topic(C, "tick"), tick(C, 7))
            async with asyncio.timeout(DEADLINE):
                while tick(C, 7) != await again:
                    again = asyncio.ensure_future(anext(stream))
            assert quote_topic(A, "tick") not in rig.source.wanted
    finally:
        if server in rig.servers:
            rig.servers.remove(server)
            await asyncio.to_thread(server.stop)


async def test_a_change_before_the_first_frame_is_in_the_first_request(rig):
    async with client(rig).realtime([A]) as stream:
        assert await stream.add([B]) == Ack(pending=(B,))
        assert await stream.remove([A]) == Ack((A,))
        assert await begun(rig, stream, B) == tick(B, 1)
        assert quote_topic(A, "tick") not in rig.source.wanted


async def test_a_stream_without_codes_waits_for_one_to_be_added(rig):
    async with client(rig).realtime([A]) as stream:
        await stream.remove([A])
        first = asyncio.ensure_future(anext(stream))
        while (ack := await stream.add([B])) == Ack():
            await stream.remove([B])
        assert B in ack.codes + ack.pending
        await rig.wanted(quote_topic(B, "tick"))
        rig.source.publish(quote_topic(B, "tick"), tick(B, 5))
        async with asyncio.timeout(DEADLINE):
            assert list(await first) == [B]


@pytest.mark.parametrize("where", ["task", "thread", "body"])
async def test_a_loop_ends_when_its_stream_is_closed_elsewhere(rig, where):
    stream = client(rig).realtime([A])
    frames = []

    async def read():
        async for frame in stream:
            frames.append(frame)
            if where == "body":
                stream.close()

    task = asyncio.ensure_future(read())
    await rig.wanted(quote_topic(A, "tick"))
    rig.source.publish(quote_topic(A, "tick"), tick(A, 1))
    async with asyncio.timeout(DEADLINE):
        if where == "task":
            await stream.close()
        elif where == "thread":
            await asyncio.to_thread(lambda: stream.close().result(DEADLINE))
        await task
    await rig.unwanted(quote_topic(A, "tick"))
    with pytest.raises(Disconnected, match="has ended"):
        await stream.add([B])
    assert [frame async for frame in stream] == []


async def test_a_stream_that_cannot_connect_can_be_closed(unused_port):
    stream = QMTClient("127.0.0.1", unused_port, connect_timeout=1e9).realtime([A])
    task = asyncio.ensure_future(stream.run(print))
    await until(lambda: stream._control._loop is not None)
    async with asyncio.timeout(DEADLINE):
        await stream.close()
        await task


async def test_a_stream_closed_before_its_first_frame_never_connects(unused_port):
    stream = QMTClient("127.0.0.1", unused_port).realtime([A])
    await stream.close()
    assert [frame async for frame in stream] == []


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda c: c.trade_events(), id="trade"),
        pytest.param(lambda c: c.download_progress([A], "1d"), id="download"),
        pytest.param(lambda c: c.formula("MA", A), id="formula"),
        pytest.param(lambda c: c.realtime([A], start="09:30", end="10:00"), id="part-of-the-day"),
    ],
)
def test_streams_without_codes_to_add_say_so(make):
    with pytest.raises(BadRequest, match="codes cannot be added"):
        make(QMTClient("host")).add([B])


@pytest.mark.parametrize("code", [600519, None, "", "6" * 41])
def test_what_cannot_be_a_code_is_refused_at_once(code):
    with pytest.raises(BadRequest, match="must be codes such as"):
        QMTClient("host").realtime([A, code])


def test_changes_and_ends_are_answered_by_a_loop_that_has_stopped():
    stream = control.Control(QMTClient("host").realtime([A])._control._stream)

    async def begin():
        stream.begin()

    asyncio.run(begin())
    stream._loop = asyncio.new_event_loop()
    # Nothing runs what is handed to it.
    added, closed = stream.add([B]), stream.close(begin)
    assert not added.done()
    stream.ended()
    stream._loop.close()
    with pytest.raises(Disconnected, match="the stream has ended"):
        added.result(0)
    assert closed.result(0) is None
    with pytest.raises(Disconnected, match="the stream has ended"):
        stream.add([B]).result(0)


async def test_a_server_without_the_control_layer_is_told_apart(scripted):
    async with QMTClient("127.0.0.1", scripted).realtime([A]) as stream:
        assert await anext(stream) == tick(A, 1)
        with pytest.raises(ServerError, match="no control layer"):
            await stream.add([B])


async def test_a_cancelled_wait_for_the_connection_leaves_others(rig):
    stream = client(rig).realtime([A])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.connected(), 0)
    waits = asyncio.ensure_future(stream.connected())
    await asyncio.sleep(0)
    hurried = asyncio.ensure_future(stream.connected())
    await asyncio.sleep(0)
    hurried.cancel()
    async with stream:
        await begun(rig, stream)
        async with asyncio.timeout(DEADLINE):
            await waits


async def test_no_connection_is_waited_for_once_the_stream_is_closed(unused_port):
    stream = QMTClient("127.0.0.1", unused_port).realtime([A])
    stream.close()
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(Disconnected, match="has ended"):
            await stream.connected()


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_connection_made_at_the_moment_of_the_end_is_closed(how):
    stream = control.Control(Requests())
    stream.begin()
    opening, undone = asyncio.get_running_loop().create_future(), []
    waiting = asyncio.ensure_future(stream.unless_closed(opening, undone.append))
    await asyncio.sleep(0)
    opening.set_result("socket")
    if how == "close":
        stream._closing.set_result(None)
        stream.is_closed = True
    else:
        waiting.cancel()
    with pytest.raises(control.Closed if how == "close" else asyncio.CancelledError):
        await waiting
    assert undone == ["socket"]


class Requests:
    """In the place of a stream: what it no longer asks for."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    def remove(self, codes):
        self.removed += codes
        return []


def test_an_answer_that_tells_more_of_a_code_is_read():
    requests, answer = Requests(), control.Answer()
    change = control._Change(answer)
    refused = {"code": BAD, "error": "unknown_symbol", "reason": "unknown", "hint": "of a newer gateway"}
    found = {"type": "subscribed", "added": [A], "rejected": [refused]}
    control.Control(requests)._take_answer(change, [A, BAD], found)
    change.end()
    assert answer.result() == Ack((A,), (control.Rejected(BAD, "unknown_symbol", "unknown"),))
    assert requests.removed == [BAD]


@pytest.mark.parametrize(
    ("action", "ack"), [("subscribe", Ack(pending=(A, B))), ("unsubscribe", Ack((A, B)))], ids=["add", "remove"]
)
def test_a_change_without_an_answer_ends_with_the_connection(action, ack):
    stream, answer = control.Control(Requests()), control.Answer()
    change = control._Change(answer, action)
    change.waiting = {"change-1": [A], "change-2": [B]}
    stream._changes = dict.fromkeys(change.waiting, change)
    stream.lost()
    assert answer.result(0) == ack


@pytest.mark.parametrize("told", [{"rejected": [5]}, {"rejected": [{"code": BAD}]}, {"added": 7}])
def test_an_answer_that_cannot_be_read_fails_alone(told):
    stream, answer = control.Control(Requests()), control.Answer()
    change = control._Change(answer)
    change.waiting["change-1"] = [A]
    stream._changes["change-1"] = change
    assert stream.take(json.dumps({"type": "subscribed", "id": "change-1", **told}).encode())
    with pytest.raises(ServerError, match="cannot be read"):
        answer.result(0)


async def test_a_change_that_fails_on_its_loop_is_made_once():
    made = []

    def fail():
        made.append(None)
        raise RuntimeError("it failed")

    stream = control.Control(Requests())
    stream.begin()
    with pytest.raises(RuntimeError, match="it failed"):
        stream._call(fail)
    await asyncio.sleep(0)
    assert made == [None]


@pytest.mark.parametrize("odd", [{"type": "snapshot_end", "codes": 5}, {"type": "error", "symbols": 5, "code": "x"}])
async def test_a_frame_that_cannot_be_read_ends_its_stream(odd):
    async def play(connection):
        await connection.recv()
        await connection.send(json.dumps(odd))
        await connection.wait_closed()

    async with serve(play, "127.0.0.1", 0, subprotocols=["qmt.v1.json"]) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Disconnected, match="a frame that cannot be read"):
            await anext(QMTClient("127.0.0.1", port).realtime([A]))
