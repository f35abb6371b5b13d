"""The notice `snapshot_end`, over a real feeder and WebSocket clients: after the last part, to opted-in clients."""

from __future__ import annotations

from typing import Any

import pytest

from qmt_bridge.wire.topics import whole_topic
from tests.support.rig import Client, Rig
from tests.support.waiting import until

SH, SZ = whole_topic("SH"), whole_topic("SZ")
# A snapshot in three parts.
MARKET = {f"{number:06}.SH": {"n": 0, "pad": "x" * 1000} for number in range(600000, 601300)}


async def filled(rig: Rig, watcher: Client) -> None:
    """Give the feeder a snapshot of Shanghai, which `watcher` keeps subscribed, and one tick of Shenzhen."""
    await watcher.send({"codes": ["SH", "SZ"]})
    await rig.wanted(SH)
    await rig.wanted(SZ)
    rig.source.sink.publish_whole(SH, MARKET, 1)
    rig.source.publish(SZ, {"000001.SZ": {"n": 0}})
    seen: set[str] = set()
    while len(seen) < len(MARKET) + 1:
        seen |= (await watcher.receive()).keys()


async def until_end(client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the records by code before the next `snapshot_end`, and that frame."""
    records: dict[str, Any] = {}
    while (frame := await client.receive()).get("type") != "snapshot_end":
        if "type" not in frame or frame["type"] == "data":
            records |= frame.get("data", frame)
    return records, frame


@pytest.mark.parametrize("options", [{}, {"seq": True}, {"fields": ["n"]}, {"max_rate_ms": 300}], ids=str)
async def test_snapshot_end_follows_all_parts_of_a_snapshot(rig: Rig, options: dict[str, Any]) -> None:
    async with rig.connect("/ws/whole_quote") as watcher, rig.connect("/ws/whole_quote") as client:
        await filled(rig, watcher)
        await client.subscribed(codes=["SH"], **options)
        records, end = await until_end(client)
        assert records.keys() == MARKET.keys()
        assert end == {"type": "snapshot_end", "codes": ["SH"], "count": len(MARKET)}


async def test_snapshots_that_end_together_share_one_notice(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as watcher, rig.connect("/ws/whole_quote") as client:
        await filled(rig, watcher)
        await client.subscribed(codes=["SZ", "SH"])
        told: list[str] = []
        records: dict[str, Any] = {}
        while len(told) < 2:
            more, end = await until_end(client)
            told += end["codes"]
            records |= more
            assert all(any(code.endswith(market) for market in told) for code in records)
        assert sorted(told) == ["SH", "SZ"]
        assert len(records) == len(MARKET) + 1


async def test_client_that_has_not_opted_in_gets_no_snapshot_end(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as watcher, rig.connect("/ws/whole_quote") as client:
        await filled(rig, watcher)
        await client.send({"codes": ["SH"]})
        records: dict[str, Any] = {}
        while len(records) < len(MARKET):
            records |= await client.receive()
        rig.source.publish(SH, {"600000.SH": {"n": "news"}})
        assert await client.receive() == {"600000.SH": {"n": "news"}}


async def test_snapshot_of_a_market_without_data_has_an_end(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote?ctl=1") as client:
        assert (await client.receive())["type"] == "welcome"
        await client.send({"codes": ["SH"]})
        assert await client.receive() == {"type": "snapshot_end", "codes": ["SH"], "count": 0}


async def test_snapshot_pushed_to_the_first_client_has_an_end(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as client:
        await client.subscribed(codes=["SH"])
        rig.source.sink.publish_whole(SH, MARKET, 1)
        records, end = await until_end(client)
        assert records.keys() == MARKET.keys()
        assert end["count"] == len(MARKET)


async def test_snapshot_that_repairs_a_loss_has_an_end(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as watcher, rig.connect("/ws/whole_quote") as client:
        await filled(rig, watcher)
        await client.subscribed(codes=["SH"], snapshot=False)
        rig.lose(SH, {"600000.SH": {"n": 1}})
        rig.source.publish(SH, {"600001.SH": {"n": 2}})
        records, end = await until_end(client)
        assert records.keys() == MARKET.keys()
        assert (records["600000.SH"]["n"], records["600001.SH"]["n"]) == (1, 2)
        assert end["count"] == len(MARKET)


async def test_snapshot_after_a_feeder_restart_has_an_end(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as client:
        await client.subscribed(codes=["SH"])
        rig.source.publish(SH, {"600000.SH": {"n": 1}})
        records, end = await until_end(client)
        assert (records, end["count"]) == ({"600000.SH": {"n": 1}}, 1)
        rig.feeder.stop()
        rig.start_feeder()
        await rig.wanted(SH)
        rig.source.publish(SH, {"600000.SH": {"n": 2}, "600001.SH": {"n": 2}})
        records, end = await until_end(client)
        assert records.keys() == {"600000.SH", "600001.SH"}
        assert end["count"] == 2


async def test_snapshot_end_follows_the_parts_in_a_full_outbox(rig: Rig) -> None:
    server = rig.serve(outbox_bytes=300_000)
    market = {f"{number:06}.SH": {"n": 0, "pad": "x" * 1000} for number in range(600000, 608000)}
    async with rig.connect("/ws/whole_quote", server) as watcher, rig.connect("/ws/whole_quote", server) as client:
        await watcher.send({"codes": ["SH"]})
        await rig.wanted(SH)
        rig.source.sink.publish_whole(SH, market, 1)
        seen: set[str] = set()
        while len(seen) < len(market):
            seen |= (await watcher.receive()).keys()
        client.socket.transport.pause_reading()
        await client.send({"id": 1, "codes": ["SH"]})
        await until(lambda: client.socket.transport.get_write_buffer_size() == 0, "the request to be sent")
        for turn in range(1, 30):
            rig.source.publish(SH, {"600000.SH": {"n": turn}})
        while (await watcher.receive()).get("600000.SH", {}).get("n") != 29:
            pass
        client.socket.transport.resume_reading()
        records, end = await until_end(client)
        assert records.keys() == market.keys()
        assert end["count"] == len(market)
