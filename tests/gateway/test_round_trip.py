"""One encoding, made once: a documented client's frame has the bytes of the ZeroMQ body, whatever a source gave."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import zmq
from websockets import Subprotocol

from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic, quote_topic, trade_topic, whole_topic
from tests.support.paths import EARLIER
from tests.support.rig import DEADLINE, KEY, Rig
from tests.support.samples import BINARY, RECORDS, as_json, rounded, samples
from tests.support.waiting import until

CODE = "600519.SH"
TICK = quote_topic(CODE)


# Before the threads of a rig run: Hypothesis refuses to draw while another thread uses `random`.
@pytest.fixture(scope="module")
def records() -> list[Any]:
    """Return random records."""
    return samples(RECORDS, 60)


@pytest.fixture(scope="module")
def bodies(records: list[Any]) -> list[dict[str, Any]]:
    """Return what a source may give: random records, and what the simulator has published once."""
    lines = (EARLIER / "wire-1.tape.jsonl").read_bytes().split(b"\n")
    simulated = [json.loads(body) for head, body in zip(lines[::2], lines[1::2], strict=False) if b'"quote/' in head]
    return [{CODE: [record]} for record in records + samples(BINARY, 10)] + simulated


@pytest.fixture
def consumer(rig: Rig):
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect_subscriber(context, rig.feeder.publisher.market_addr, None)
    socket.rcvtimeo = int(DEADLINE * 1000)
    yield socket
    context.destroy(linger=0)


def heard(consumer: zmq.Socket[bytes], topic: Topic) -> Frame:
    while (frame := Frame.from_parts(consumer.recv_multipart())).topic != topic:
        pass
    return frame


async def raw(client: Any) -> bytes:
    async with asyncio.timeout(DEADLINE):
        payload: bytes = await client.socket.recv(decode=False)
    return payload


async def test_a_documented_client_gets_the_bytes_of_the_zeromq_body(
    bodies: list[dict[str, Any]], rig: Rig, consumer: zmq.Socket[bytes]
) -> None:
    consumer.subscribe(TICK)
    msgpack = [Subprotocol("qmt.v1.msgpack")]
    async with rig.connect("/ws/realtime") as client, rig.connect("/ws/realtime", subprotocols=msgpack) as binary:
        await client.send({"stocks": [CODE]})
        await raw(binary)
        await binary.socket.send(msgspec.msgpack.encode({"stocks": [CODE], "id": 1}))
        await raw(binary)
        await rig.wanted(TICK)
        # Both have joined once a marker has come.
        rig.source.publish(TICK, {"marker": []})
        assert await raw(client) == heard(consumer, TICK).body == b'{"marker":[]}'
        assert msgspec.msgpack.decode(await raw(binary)) == {"marker": []}
        for body in bodies:
            rig.source.publish(TICK, body)
            published = await asyncio.to_thread(heard, consumer, TICK)
            assert await raw(client) == published.body
            assert published.data == json.loads(published.body) == as_json(body)
            assert msgspec.msgpack.decode(await raw(binary)) == rounded(as_json(body))


async def test_a_whole_market_comes_as_it_was_published(
    records: list[Any], rig: Rig, consumer: zmq.Socket[bytes]
) -> None:
    market = whole_topic("SH")
    consumer.subscribe(market)
    async with rig.connect("/ws/whole_quote") as client:
        await client.send({"codes": ["SH"]})
        await until(lambda: market in rig.source.wanted, "the subscription")
        rig.source.sink.publish_whole(market, {"marker": {}}, 1)
        assert await raw(client) == heard(consumer, market).body
        for number, record in enumerate(records[:30]):
            ticks = {f"{600000 + number}.SH": record, "600519.SH": record}
            rig.source.sink.publish_whole(market, ticks, 1)
            published = await asyncio.to_thread(heard, consumer, market)
            assert await raw(client) == published.body
            assert published.data == as_json(ticks)


async def test_a_trade_event_is_the_same_on_both_ways(records: list[Any], rig: Rig) -> None:
    topic = trade_topic("1000000365")
    with zmq.Context() as context, connect_subscriber(context, rig.feeder.publisher.trade_addr, None) as events:
        events.rcvtimeo = int(DEADLINE * 1000)
        events.subscribe(topic)
        async with rig.connect(f"/ws/trade?ctl=1&api_key={quote(KEY)}") as client:
            assert [json.loads(await raw(client))["type"] for _ in range(2)] == ["welcome", "subscribed"]
            # The subscription of the consumer may be in force later than this event.
            rig.source.trade("order", n=0)
            assert json.loads(await raw(client))["seq"] == 1
            for record in records[:30]:
                rig.source.sink.publish_trade("1000000365", "order", record, 1)
                published = await asyncio.to_thread(heard, events, topic)
                if published.seq == 1:
                    published = await asyncio.to_thread(heard, events, topic)
                assert await raw(client) == published.body
                assert published.data["data"] == as_json(record)
