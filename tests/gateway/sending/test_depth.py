"""Depths of all sizes out of few subscriptions at the terminal, with the data that it would deliver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gateway.sending.depth import SIZES, kept_levels, served_by
from gateway.writer import PreparedFrames
from qmt_bridge.config import Config
from qmt_bridge.wire.topics import MAX_GEAR_NUM, Topic, l2_topic
from tests.support.rig import DEADLINE, Client, Rig, running_rig
from tests.support.waiting import until

CODE = "000001.SZ"


def depth(levels: int) -> dict[str, object]:
    sides = {name: [number + 0.5 for number in range(levels)] for name in ("askPrice", "bidPrice")}
    volumes = {name: list(range(levels)) for name in ("askVolume", "bidVolume")}
    return {CODE: [{"time": 1, "price": 2.5, **sides, **volumes}]}


@pytest.mark.parametrize(
    ("asked", "size", "cut"),
    [(0, 0, 0), (1, 20, 1), (19, 20, 19), (20, 20, 0), (21, 100, 21), (100, 100, 0), (101, 0, 101), (1000, 0, 1000)],
)
def test_next_larger_depth_serves(asked: int, size: int, cut: int) -> None:
    assert (served_by(l2_topic(CODE, asked)), kept_levels(asked)) == (l2_topic(CODE, size), cut)


def test_all_values_of_gear_num_need_few_subscriptions() -> None:
    served = {served_by(l2_topic(CODE, asked)) for asked in range(MAX_GEAR_NUM + 1)}
    assert len(served) == len(SIZES) + 1


def test_other_topics_serve_themselves() -> None:
    for topic in (Topic("quote/000001.SZ/tick/"), Topic("whole/SH/")):
        assert served_by(topic) == topic


async def receive(client: Client) -> Any:
    """Return the next frame, text or binary."""
    async with asyncio.timeout(DEADLINE):
        frame = await client.socket.recv()
    return msgspec.msgpack.decode(frame) if isinstance(frame, bytes) else json.loads(frame)


@pytest.fixture
def rig(config: Config) -> Iterator[Rig]:
    with running_rig(config, PreparedFrames) as rig:
        rig.serve()
        yield rig


@pytest.mark.parametrize("subprotocols", [None, ["qmt.v1.msgpack"]], ids=["json", "msgpack"])
async def test_client_gets_the_levels_that_it_asked_for(rig: Rig, subprotocols: list[str] | None) -> None:
    async with rig.connect("/ws/l2_thousand", subprotocols=subprotocols) as client:
        if subprotocols:
            await receive(client)
        for gear_num in (2, 7, 15):
            await client.send({"action": "subscribe", "id": gear_num, "stocks": [CODE], "gear_num": gear_num})
            assert (await receive(client))["added"] == [CODE]
        # One subscription at the source, and one frame for each of the three.
        assert rig.source.wanted == [l2_topic(CODE, 20)]
        rig.source.publish(l2_topic(CODE, 20), depth(20))
        assert [await receive(client) for _ in range(3)] == [depth(2), depth(7), depth(15)]
        # A shallow book has fewer levels.
        rig.source.publish(l2_topic(CODE, 20), depth(5))
        assert [await receive(client) for _ in range(3)] == [depth(2), depth(5), depth(5)]
        for gear_num in (2, 15):
            request = {"action": "unsubscribe", "id": 1, "stocks": [CODE], "gear_num": gear_num}
            await client.send(request)
            assert (await receive(client))["removed"] == [CODE]
        rig.source.publish(l2_topic(CODE, 20), depth(20))
        assert await receive(client) == depth(7)
        await client.send({"action": "unsubscribe", "id": 1, "stocks": [CODE], "gear_num": 7})
        await receive(client)
        await until(lambda: not rig.source.wanted, "the end of the subscription")


async def test_levels_fields_and_positions_go_together(rig: Rig) -> None:
    async with rig.connect("/ws/l2_thousand") as client:
        await client.subscribed(stocks=[CODE], gear_num=3, fields=["time", "askPrice"], seq=True)
        rig.source.publish(l2_topic(CODE, 20), depth(20))
        assert (await client.receive())["data"] == {CODE: [{"time": 1, "askPrice": [0.5, 1.5, 2.5]}]}
