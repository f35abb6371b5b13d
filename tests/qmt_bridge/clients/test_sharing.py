"""Several streams of one client on one connection: who gets what, what is refused, and who ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from qmt_bridge import Disconnected, QMTClient, ServerError, l2_topic, quote_topic, sync, whole_topic
from qmt_bridge import client as client_module
from qmt_bridge.clients import shared_connection
from qmt_bridge.clients.control import Ack
from qmt_bridge.reading import backlog
from tests.support.rig import DEADLINE
from tests.support.waiting import until, wait_for

pytestmark = pytest.mark.timeout(30)
A, B, BAD = "600000.SH", "600001.SH", "999999.SZ"


def tick(code, price):
    return {code: [{"time": 1, "lastPrice": price}]}


@pytest.fixture
def opened(monkeypatch):
    """Return the URLs that were connected to."""
    urls = []
    connect = client_module.connect

    def recorded(url, **options):
        urls.append(url.rpartition("/")[2])
        return connect(url, **options)

    monkeypatch.setattr(client_module, "connect", recorded)
    return urls


def client(rig, **options) -> QMTClient:
    return QMTClient("127.0.0.1", rig.servers[-1].port, share=True, **options)


async def waits(rig, stream, topic):
    task = asyncio.ensure_future(anext(stream))
    await rig.wanted(topic)
    return task


async def test_streams_alike_share_a_connection_and_get_their_codes(rig, opened):
    c = client(rig)
    async with asyncio.timeout(DEADLINE), c.realtime([A]) as one, c.realtime([A, B]) as both:
        first = [await waits(rig, one, quote_topic(A, "tick")), await waits(rig, both, quote_topic(B, "tick"))]
        for code in (A, B):
            rig.source.publish(quote_topic(code, "tick"), tick(code, 1))
        assert [await each for each in first] == [tick(A, 1), tick(A, 1)]
        assert await anext(both) == tick(B, 1)
        rig.source.publish(quote_topic(B, "tick"), tick(B, 2))
        rig.source.publish(quote_topic(A, "tick"), tick(A, 2))
        assert await anext(one) == tick(A, 2)
        assert opened == ["realtime"]
        # Its codes stay for the other one.
        await both.aclose()
        await rig.unwanted(quote_topic(B, "tick"))
        rig.source.publish(quote_topic(A, "tick"), tick(A, 3))
        assert await anext(one) == tick(A, 3)
    await rig.unwanted(quote_topic(A, "tick"))
    await until(lambda: not c._shared)


async def test_a_stream_that_comes_later_gets_the_newest_value_first(rig, opened):
    c = client(rig)
    async with asyncio.timeout(DEADLINE), c.realtime([A]) as one, c.realtime([A]) as late:
        first = await waits(rig, one, quote_topic(A, "tick"))
        rig.source.publish(quote_topic(A, "tick"), tick(A, 1))
        await first
        assert await anext(late) == tick(A, 1)
    assert opened == ["realtime"]


async def test_other_terms_have_a_connection_of_their_own(rig, opened):
    c = client(rig)
    streams = [
        (c.realtime([A]), quote_topic(A, "tick"), tick(A, 1)),
        (c.realtime([A], "1m"), quote_topic(A, "1m"), tick(A, 2)),
        (c.realtime([A], mode="all"), quote_topic(A, "tick"), tick(A, 1)),
        (c.l2_thousand([A]), l2_topic(A), tick(A, 4)),
    ]
    for stream, topic, body in streams:
        first = await waits(rig, stream, topic)
        rig.source.publish(topic, body)
        async with asyncio.timeout(DEADLINE):
            assert await first == body
    assert opened == ["realtime", "realtime", "realtime", "l2_thousand"]
    for stream, _, _ in streams:
        await stream.aclose()


async def test_a_market_is_shared_by_code(rig, opened):
    c = client(rig)
    async with asyncio.timeout(DEADLINE), c.whole_quote(["SH"]) as market, c.whole_quote([A]) as single:
        first = [await waits(rig, market, whole_topic("SH")), asyncio.ensure_future(anext(single))]
        # Answered after the codes of the stream, of which the market has this one.
        await until(lambda: single._control._shared)
        assert await single.add([A]) == Ack()
        rig.source.publish(whole_topic("SH"), {A: {"time": 1}, B: {"time": 1}})
        assert [await each for each in first] == [{A: {"time": 1}, B: {"time": 1}}, {A: {"time": 1}}]
    assert opened == ["whole_quote"]


async def test_a_stream_whose_codes_are_refused_fails_alone(rig, opened):
    told = []
    c = client(rig, on_error=told.append)
    async with asyncio.timeout(DEADLINE), c.realtime([A, BAD]) as good, c.realtime([BAD]) as bad:
        first = await waits(rig, good, quote_topic(A, "tick"))
        with pytest.raises(ServerError, match="unknown_symbol"):
            await anext(bad)
        rig.source.publish(quote_topic(A, "tick"), tick(A, 1))
        assert await first == tick(A, 1)
        assert [rejected.code for rejected in (await good.add([B, BAD])).rejected] == [BAD]
        assert (await good.remove([B])).codes == (B,)
        await rig.unwanted(quote_topic(B, "tick"))
    assert [frame["symbol"] for frame in told] == [BAD]
    assert opened == ["realtime"]


async def test_a_slow_loop_delays_no_other_stream(rig, opened, monkeypatch):
    monkeypatch.setattr(backlog, "PATIENCE", 0.0)
    c = client(rig)
    async with asyncio.timeout(DEADLINE), c.realtime([A]) as slow, c.realtime([A]) as fast:
        first = [await waits(rig, slow, quote_topic(A, "tick")), asyncio.ensure_future(anext(fast))]
        await until(lambda: len(next(iter(c._shared.values()))._members) == 2)
        rig.source.publish(quote_topic(A, "tick"), tick(A, 0))
        for each in first:
            await each
        for price in range(1, 201):
            rig.source.publish(quote_topic(A, "tick"), tick(A, price))
            assert await anext(fast) == tick(A, price)
        assert await anext(slow) == tick(A, 200)
    assert opened == ["realtime"]


async def test_a_gateway_that_is_not_there_fails_every_stream(unused_port):
    from qmt_bridge import Disconnected

    c = QMTClient("127.0.0.1", unused_port, share=True, connect_timeout=0.1)
    ends = await asyncio.gather(anext(c.realtime([A])), anext(c.realtime([B])), return_exceptions=True)
    assert [type(end) for end in ends] == [Disconnected, Disconnected]


async def test_a_stream_can_wait_for_the_shared_connection(rig):
    async with asyncio.timeout(DEADLINE), client(rig).realtime([A]) as stream:
        first = await waits(rig, stream, quote_topic(A, "tick"))
        await stream.connected()
        rig.source.publish(quote_topic(A, "tick"), tick(A, 1))
        await first


def test_a_notice_of_a_shared_connection_may_close_the_client(rig):
    closed = threading.Event()

    def close(state):
        c.close()
        closed.set()

    c = sync.QMTClient("127.0.0.1", rig.servers[-1].port, share=True, on_state=close)
    assert list(c.realtime([A])) == []
    assert closed.wait(DEADLINE)


def test_the_synchronous_client_shares_too(rig, opened):
    got = {A: [], B: []}
    told = []
    with sync.QMTClient("127.0.0.1", rig.servers[-1].port, share=True, on_state=told.append) as c:
        for code, frames in got.items():
            c.subscribe_realtime([code], frames.append)
        for code in got:
            wait_for(lambda code=code: quote_topic(code, "tick") in rig.source.wanted)
            rig.source.publish(quote_topic(code, "tick"), tick(code, 1))
        wait_for(lambda: all(got.values()))
    assert got == {A: [tick(A, 1)], B: [tick(B, 1)]}
    assert opened == ["realtime"]
    assert "connected" in [state.state for state in told]


def test_a_code_that_is_being_added_when_the_client_ends_is_answered(rig, monkeypatch):
    async def never(*_):
        await asyncio.Event().wait()

    with sync.QMTClient("127.0.0.1", rig.servers[-1].port, share=True) as c:
        stream = c.realtime([A])
        reading = threading.Thread(target=lambda: list(stream))
        reading.start()
        wait_for(lambda: quote_topic(A, "tick") in rig.source.wanted)
        monkeypatch.setattr(shared_connection.SharedConnection, "add", never)
        answer = stream._exchange.frames.add([B])
        c.close()
        reading.join(DEADLINE)
    with pytest.raises(Disconnected, match="the stream has ended"):
        answer.result(DEADLINE)
