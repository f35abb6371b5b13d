"""The documented layer and the acks, over a real feeder, ZeroMQ, uvicorn and WebSocket clients."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import time
import urllib.request
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from websockets import ConnectionClosed
from websockets.asyncio.client import connect

from feeder.events import Unsent
from feeder.journal.journal import Chunk, Journal
from gateway import hub
from gateway.endpoints.urls import ENDPOINTS
from qmt_bridge.journal_file import journal_path
from qmt_bridge.wire.topics import FormulaSpec, Topic, formula_topic, l2_topic, quote_topic, whole_topic
from tests.support.raw import opened
from tests.support.rig import DEADLINE, KEY, Client, Rig, metrics, readiness
from tests.support.waiting import until

TICK = quote_topic("600519.SH")
TRADE_URL = f"/ws/trade?ctl=1&api_key={quote(KEY)}"
NOT_JSON_NUMBERS = {"time": 1, "pe": math.nan, "volRatio": math.inf}


async def test_realtime_delivers_the_records_of_the_source(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.send({"stocks": ["600519.SH"], "period": "tick"})
        await rig.wanted(TICK)
        delivered = {"lastPrice": 1858.0000000000002, "新字段": [1, 2], **NOT_JSON_NUMBERS}
        rig.source.publish(TICK, {"600519.SH": [delivered]})
        record = {"lastPrice": 1858.0000000000002, "新字段": [1, 2], "time": 1, "pe": None, "volRatio": None}
        assert await client.receive() == {"600519.SH": [record]}


async def test_period_defaults_to_tick_and_a_second_request_adds(rig: Rig) -> None:
    bar = quote_topic("000001.SZ", "1m")
    async with rig.connect("/ws/realtime") as client:
        await client.send({"stocks": ["600519.SH"]})
        await client.send({"stocks": ["000001.SZ"], "period": "1m"})
        for topic in (TICK, bar):
            await rig.wanted(topic)
        rig.source.publish(TICK, {"600519.SH": [{}]})
        rig.source.publish(bar, {"000001.SZ": [{}]})
        assert [await client.receive(), await client.receive()] == [{"600519.SH": [{}]}, {"000001.SZ": [{}]}]


async def test_late_joiner_receives_the_last_value(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as first, rig.connect("/ws/realtime") as second:
        await first.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)
        rig.source.publish(TICK, {"600519.SH": [{"n": 1}]})
        await first.receive()
        await second.send({"stocks": ["600519.SH"]})
        assert await second.receive() == {"600519.SH": [{"n": 1}]}


async def test_clients_share_one_upstream_subscription(rig: Rig) -> None:
    other = rig.serve()
    async with rig.connect("/ws/realtime") as one, rig.connect("/ws/realtime") as two:
        async with rig.connect("/ws/realtime", other) as three:
            for client in (one, two, three):
                await client.send({"action": "subscribe", "id": 1, "stocks": ["600519.SH"]})
                assert (await client.receive())["added"] == ["600519.SH"]
            assert rig.source.wanted == [TICK]
        await one.socket.close()
        rig.source.publish(TICK, {"600519.SH": [{}]})
        assert await two.receive() == {"600519.SH": [{}]}
    await rig.unwanted(TICK)


async def test_bad_codes_get_errors_and_the_others_are_served(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.send({"stocks": ["999999.SZ", "600519.XX", 7, "600519.SH"]})
        errors = [await client.receive() for _ in range(3)]
        assert {error["symbol"] for error in errors} == {"999999.SZ", "600519.XX", "7"}
        assert {(error["type"], error["code"], error["retry"]) for error in errors} == {
            ("error", "unknown_symbol", False)
        }
        await rig.wanted(TICK)
        rig.source.publish(TICK, {"600519.SH": [{}]})
        assert await client.receive() == {"600519.SH": [{}]}


async def test_whole_quote_sends_a_snapshot_and_each_code_once(rig: Rig) -> None:
    sh, code = whole_topic("SH"), whole_topic("000001.SZ")
    async with rig.connect("/ws/whole_quote") as keeper, rig.connect("/ws/whole_quote") as client:
        await keeper.subscribed(codes=["SH"])
        rig.source.publish(sh, {"600519.SH": {"n": 1}, "601988.SH": {"n": 1}})
        rig.source.publish(sh, {"600519.SH": {"n": 2}})
        assert [await keeper.receive(), await keeper.receive()][1] == {"600519.SH": {"n": 2}}
        await client.send({"codes": ["600519.SH", "SH", "000001.SZ"]})
        assert await client.receive() == {"600519.SH": {"n": 2}, "601988.SH": {"n": 1}}
        await rig.wanted(code)
        assert sorted(rig.source.wanted) == sorted([sh, code])
        # Without its market the code needs its own subscription.
        await client.send({"action": "unsubscribe", "id": 1, "codes": ["SH"]})
        await rig.wanted(whole_topic("600519.SH"))


async def test_l2_thousand_with_and_without_gear_num(rig: Rig) -> None:
    async with rig.connect("/ws/l2_thousand") as client:
        await client.send({"stocks": ["000001.SZ"]})
        await client.send({"stocks": ["000001.SZ"], "gear_num": 20})
        for gear_num in (0, 20):
            topic = l2_topic("000001.SZ", gear_num)
            await rig.wanted(topic)
            rig.source.publish(topic, {"000001.SZ": [{"levels": gear_num}]})
            assert await client.receive() == {"000001.SZ": [{"levels": gear_num}]}


async def test_download_ends_with_done_and_close_1000(rig: Rig) -> None:
    async with rig.connect("/ws/download_progress") as client:
        await client.send({"stocks": ["000001.SZ"], "period": "1d", "start_time": "", "end_time": ""})
        frames = [await client.receive()]
        while "status" not in frames[-1]:
            frames.append(await client.receive())
        assert frames[-1] == {"status": "done"}
        assert all(frame["stockcode"] == "000001.SZ" for frame in frames[:-1])
        assert (await client.closed())[0] == 1000


async def test_failed_download_ends_with_an_error_and_close_1011(rig: Rig) -> None:
    async with rig.connect("/ws/download_progress") as client:
        await client.send({"stocks": ["600000.SH"], "period": "1d"})
        frame = await client.receive()
        while "status" not in frame:
            frame = await client.receive()
        assert (frame["type"], frame["status"], frame["failed"]) == ("error", "error", {"600000.SH": "no data"})
        assert await client.closed() == (1011, "upstream_refused: failed")


async def test_download_with_a_malformed_time_is_a_bad_request(rig: Rig) -> None:
    async with rig.connect("/ws/download_progress") as client:
        await client.send({"stocks": ["600000.SH"], "period": "1d", "start_time": "yesterday"})
        frame = await client.receive()
        assert (frame["type"], frame["code"], frame["retry"]) == ("error", "bad_request", False)
        assert (await client.closed())[0] == 1008


async def test_download_without_a_feeder_closes_with_1013(rig: Rig) -> None:
    rig.feeder.stop()
    async with rig.connect("/ws/download_progress") as client:
        await client.send({"stocks": ["000001.SZ"]})
        assert (await client.receive())["code"] == "upstream_unavailable"
        assert (await client.closed())[0] == 1013
    rig.start_feeder()


def formula(**changes: Any) -> dict[str, Any]:
    return {
        "action": "subscribe",
        "formula_name": "MA",
        "stock_code": "000001.SZ",
        "period": "1d",
        "count": -1,
        "dividend_type": "none",
        "params": {},
        **changes,
    }


async def test_formula_ack_precedes_values_until_unsubscribe(rig: Rig) -> None:
    topic = formula_topic(FormulaSpec("MA", "000001.SZ"))
    value = {"formula_name": "MA", "stock_code": "000001.SZ", "data": {"outputs": {"MA1": [math.nan, 1.5]}}}
    async with rig.connect("/ws/formula") as client:
        await client.send(formula())
        ack = await client.receive()
        assert ack == {"action": "subscribed", "seq_id": ack["seq_id"]}
        rig.source.publish(topic, value)
        assert await client.receive() == {
            "type": "formula_update",
            "seq_id": ack["seq_id"],
            "formula_name": "MA",
            "stock_code": "000001.SZ",
            "data": {"outputs": {"MA1": [None, 1.5]}},
        }
        # The same formula once more: it gets its own seq_id, and the last value right after the ack.
        await client.send(formula())
        second = await client.receive()
        assert second["seq_id"] != ack["seq_id"]
        assert (await client.receive())["seq_id"] == second["seq_id"]
        await client.send({"action": "unsubscribe", "seq_id": ack["seq_id"]})
        assert await client.receive() == {"action": "unsubscribed", "seq_id": ack["seq_id"]}
        rig.source.publish(topic, value)
        assert (await client.receive())["seq_id"] == second["seq_id"]
        await client.send({"action": "unsubscribe", "seq_id": second["seq_id"]})
        await rig.unwanted(topic)


async def test_refused_formula_gets_an_error_instead_of_an_ack(rig: Rig) -> None:
    async with rig.connect("/ws/formula") as client:
        await client.send(formula(stock_code="999999.SZ"))
        error = await client.receive()
        assert (error["type"], error["code"]) == ("error", "unknown_symbol")
        await client.send({"action": "unsubscribe", "seq_id": 1})
        assert (await client.receive())["code"] == "not_subscribed"


async def live(client: Client) -> int:
    """Wait for the ack of an opted-in trade socket, after which no event is missed; return its position."""
    while (frame := await client.receive())["type"] != "subscribed":
        assert frame["type"] in ("welcome", "authenticated", "error"), frame
    return int(frame["seq"])


async def test_eight_trade_sockets_on_two_workers_get_the_same(rig: Rig) -> None:
    servers = [rig.servers[0], rig.serve()]
    sockets = [rig.connect(TRADE_URL, servers[number % 2]) for number in range(8)]
    clients = [await socket.__aenter__() for socket in sockets]
    try:
        for client in clients:
            await live(client)
        for number in range(20):
            rig.source.trade("order", order_id=number, price=10.5)
        received = [[await client.receive() for _ in range(20)] for client in clients]
    finally:
        for socket in sockets:
            await socket.__aexit__(None, None, None)
    assert all(events == received[0] for events in received)
    assert received[0][3] == {"type": "order", "seq": 4, "data": {"order_id": 3, "price": 10.5}}
    assert [event["seq"] for event in received[0]] == list(range(1, 21))


async def test_trade_resumes_after_a_position_without_gap_or_duplicate(rig: Rig) -> None:
    for number in range(5):
        rig.source.trade("order", order_id=number)
    async with rig.connect(f"{TRADE_URL}&after=2") as client:
        # The feeder may still be writing the newest events.
        assert 2 <= await live(client) <= 5
        events = [await client.receive() for _ in range(3)]
        rig.source.trade("order", order_id=5)
        events.append(await client.receive())
        assert [event["seq"] for event in events] == [3, 4, 5, 6]


async def test_journal_larger_than_an_outbox_is_replayed_completely(rig: Rig) -> None:
    server = rig.serve(outbox_bytes=50_000)
    url = f"/ws/trade?after=0&api_key={quote(KEY)}"
    count = 3000

    async with rig.connect(TRADE_URL) as watcher:
        assert [(await watcher.receive())["type"] for _ in range(2)] == ["welcome", "subscribed"]
        for number in range(count):
            rig.source.trade("order", order_id=number, padding="x" * 4000)
            # More than 4 MiB at once would overflow the outbox of a client that does not read at once.
            while number % 500 == 499 and (await watcher.receive())["seq"] != number + 1:
                pass
    async with rig.connect(url, server) as quick, rig.connect(url, server) as slow:
        slow.socket.transport.pause_reading()
        assert [(await quick.receive())["seq"] for _ in range(count)] == list(range(1, count + 1))
        # More events are published before the slow client has read the first one.
        for number in range(20):
            rig.source.trade("order", order_id=number)
        assert [(await quick.receive())["seq"] for _ in range(20)] == list(range(count + 1, count + 21))
        slow.socket.transport.resume_reading()
        assert [(await slow.receive())["seq"] for _ in range(count + 20)] == list(range(1, count + 21))


async def test_unknown_trade_position_is_refused_and_events_continue(rig: Rig) -> None:
    async with rig.connect(f"{TRADE_URL}&after=900") as client:
        assert (await client.receive())["type"] == "welcome"
        assert (await client.receive())["code"] == "resume_expired"
        assert await live(client) == 0
        rig.source.trade("order", order_id=1)
        assert (await client.receive())["seq"] == 1


async def test_trade_client_gets_every_event_after_it_connects(rig: Rig) -> None:
    port = rig.servers[0].port
    rig.source.trade("order", order_id=0)
    for number in range(1, 20):
        await until(lambda number=number: readiness(port)["frames_received"] == number, "the previous event")
        # No other client of this worker subscribes trade events.
        async with rig.connect(f"/ws/trade?api_key={quote(KEY)}") as client:
            rig.source.trade("order", order_id=number)
            assert (await client.receive())["data"]["order_id"] == number


async def test_events_of_several_accounts_share_one_sequence(rig: Rig) -> None:
    def trade(number: int) -> None:
        rig.source.sink.publish_trade(f"account {number % 3}", "order", {"order_id": number}, 1)

    for number in range(1, 8):
        trade(number)

    async def receive(client: Client, first: int, last: int) -> None:
        events = [await client.receive() for _ in range(first, last + 1)]
        assert [(event["seq"], event["data"]["order_id"]) for event in events] == [
            (number, number) for number in range(first, last + 1)
        ]

    async with rig.connect(f"{TRADE_URL}&after=2") as early:
        await live(early)
        await receive(early, 3, 7)
        async with rig.connect(f"{TRADE_URL}&after=5") as late, rig.connect(TRADE_URL) as fresh:
            await live(late)
            await receive(late, 6, 7)
            assert await live(fresh) == 7
            for number in range(8, 11):
                trade(number)
            for client in (early, late, fresh):
                await receive(client, 8, 10)
    assert readiness(rig.servers[0].port)["gaps"] == 0


async def test_unreadable_journal_closes_only_resuming_sockets(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Chunk:
        raise sqlite3.OperationalError("disk I/O error")

    for number in range(3):
        rig.source.trade("order", order_id=number)
    await until(lambda: readiness(rig.servers[0].port)["frames_received"] == 3, "the events")
    async with rig.connect(TRADE_URL) as watcher:
        assert await live(watcher) == 3
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "read", fail)
            async with rig.connect(f"{TRADE_URL}&after=1") as client:
                assert (await client.receive())["type"] == "welcome"
                error = await client.receive()
                assert (error["code"], error["retry"]) == ("internal", True)
                assert "disk I/O error" in error["error"]
                assert (await client.closed())[0] == 1011
        async with rig.connect(f"{TRADE_URL}&after=1") as client:
            await live(client)
            assert [(await client.receive())["seq"] for _ in range(2)] == [2, 3]
        rig.source.trade("order", order_id=3)
        assert (await watcher.receive())["seq"] == 4


async def test_refusal_of_an_expired_position_names_the_oldest(rig: Rig) -> None:
    rig.feeder.stop()
    journal = Journal(journal_path(rig.config.data_path, "hand"), days=30)
    journal.append(journal.positions.give([Unsent("1", "order", msgspec.Raw(b"{}"))] * 4, 0))
    journal.append(journal.positions.give([Unsent("1", "order", msgspec.Raw(b"{}"))] * 3, time.time_ns() // 1_000_000))
    journal.close()
    rig.start_feeder()
    await until(
        lambda: rig.feeder.publisher._journal.call(Journal.oldest, DEADLINE) == 4, "the old events to be deleted"
    )
    async with rig.connect(f"{TRADE_URL}&after=3") as client:
        frames = [await client.receive()]
        while frames[-1]["type"] != "subscribed":
            frames.append(await client.receive())
        (error,) = [frame for frame in frames if frame["type"] == "error"]
        assert (error["code"], error["oldest"], error["newest"], error["retry"]) == ("resume_expired", 4, 7, False)
        assert frames[-1]["after"] == 7
        await client.send({"resume": {"seq": error["oldest"]}})
        await live(client)
        assert [(await client.receive())["seq"] for _ in range(3)] == [5, 6, 7]


async def test_position_of_another_journal_is_refused_then_served(rig: Rig) -> None:
    async with rig.connect(TRADE_URL) as client:
        await live(client)
        for number in range(3):
            rig.source.trade("order", order_id=number)
        assert [(await client.receive())["seq"] for _ in range(3)] == [1, 2, 3]
        rig.feeder.stop()
        for file in rig.config.data_path.glob("journal-*"):
            file.unlink()
        rig.start_feeder()
        rig.source.trade("order", order_id="new")
        frames = [await client.receive()]
        while frames[-1]["type"] != "error":
            frames.append(await client.receive())
        error = frames[-1]
        assert {frame["type"] for frame in frames} == {"feed", "error"}
        assert (error["code"], error["oldest"]) == ("resume_expired", 0)
        ack = await client.receive()
        while ack["type"] == "feed":
            ack = await client.receive()
        assert (ack["type"], ack["after"]) == ("subscribed", error["newest"])
        rig.source.trade("order", order_id="newer")
        events: list[int] = []
        while not events or events[-1] != 2:
            frame = await client.receive()
            events += [frame["seq"]] if frame["type"] == "order" else []
        assert events == list(range(error["newest"] + 1, 3))


async def test_position_of_another_longer_journal_is_refused(rig: Rig) -> None:
    async with rig.connect(TRADE_URL) as client:
        await live(client)
        rig.source.trade("order", order_id=0)
        assert (await client.receive())["seq"] == 1
        rig.feeder.stop()
        for file in rig.config.data_path.glob("journal-*"):
            file.unlink()
        journal = Journal(journal_path(rig.config.data_path, "hand"), days=30)
        journal.append(
            journal.positions.give([Unsent("1", "order", msgspec.Raw(b"{}"))] * 5, time.time_ns() // 1_000_000)
        )
        journal.close()
        rig.start_feeder()
        while (told := await client.receive())["type"] != "error":
            assert told["type"] == "feed"
        assert (told["code"], told["oldest"], told["newest"]) == ("resume_expired", 0, 5)
        assert told["epoch"] == rig.feeder.publisher._epoch
        rig.source.trade("order", order_id=1)
        while (told := await client.receive())["type"] != "order":
            assert told["type"] in ("feed", "subscribed")
        assert told["seq"] == 6


async def test_second_resume_during_a_refusal_gets_each_event_once(rig: Rig) -> None:
    async with rig.connect(TRADE_URL) as client:
        await live(client)
        for number in range(60):
            await client.send({"id": 1, "resume": {"seq": 10_000}})
            await client.send({"id": 2, "resume": {"seq": number}})
            while (told := await client.receive()).get("id") != 2:
                assert told["type"] in ("error", "subscribed")
            rig.source.trade("order", order_id=number)
            # A repeated event would arrive before the next one.
            assert (await client.receive())["seq"] == number + 1


async def test_position_with_an_epoch_names_the_journal(rig: Rig) -> None:
    for number in range(3):
        rig.source.trade("order", order_id=number)
    await until(lambda: readiness(rig.servers[0].port)["frames_received"] == 3, "the events")
    async with rig.connect(TRADE_URL) as client:
        welcome, ack = await client.receive(), await client.receive()
    epoch = welcome["epoch"]
    assert (ack["seq"], ack["epoch"]) == (3, epoch)
    rig.feeder.stop()
    rig.start_feeder()
    await until(lambda: readiness(rig.servers[0].port).get("epoch") not in (None, epoch), "the next epoch")
    async with rig.connect(f"{TRADE_URL}&after=2&epoch={epoch}") as client:
        await live(client)
        assert (await client.receive())["seq"] == 3
        # A browser rounds the epoch to a float.
        await client.send({"resume": {"seq": 1, "epoch": float(epoch)}})
        await live(client)
        assert [(await client.receive())["seq"] for _ in range(2)] == [2, 3]
        await client.send({"id": 7, "resume": {"seq": 1, "epoch": 12345}})
        error = await client.receive()
        assert (error["id"], error["code"], error["newest"]) == (7, "resume_expired", 3)
        assert "position 1 is not one of this journal" in error["error"]
        rig.source.trade("order", order_id=3)
        assert [(await client.receive())["type"], (await client.receive())["seq"]] == ["subscribed", 4]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("after=1&epoch=x", "epoch must be that of an ack or a feed notice, got 'x'"),
        ("after=1&epoch=1.5", "epoch must be that of an ack or a feed notice, got '1.5'"),
        ("after=%C2%B2", "after must be a position in the journal, got '²'"),
        ("epoch=0", "epoch says which journal has the position `after`, which is missing"),
        (f"after={2**63}", f"after must be a position in the journal, got '{2**63}'"),
    ],
)
async def test_invalid_trade_position_is_a_bad_request(rig: Rig, query: str, reason: str) -> None:
    async with rig.connect(f"{TRADE_URL}&{query}") as client:
        assert (await client.receive())["type"] == "welcome"
        assert (await client.receive())["error"] == reason
        assert await client.closed() == (1008, f"bad_request: {reason}")


async def test_reused_positions_after_a_crash_are_refused(rig: Rig) -> None:
    async with rig.connect(TRADE_URL) as client:
        await client.receive()
        await live(client)
        for number in range(3):
            rig.source.trade("order", order_id=number)
        assert [(await client.receive())["seq"] for _ in range(3)] == [1, 2, 3]
        rig.feeder.stop()
        # As if the last event had never been written to the disk.
        database = sqlite3.connect(journal_path(rig.config.data_path, "hand"))
        with contextlib.closing(database), database:
            database.execute("DELETE FROM event WHERE seq = 3")
            database.execute("UPDATE sqlite_sequence SET seq = 2")
            database.execute("UPDATE account SET newest = 2")
        rig.start_feeder()
        publisher = rig.feeder.publisher
        transmit = publisher._transmit
        # The first events of the new epoch are lost on the way.
        publisher._transmit = lambda to, *rest: None if to is publisher._doors.trade else transmit(to, *rest)  # type: ignore
        for number in range(5):
            rig.source.trade("order", order_id=number)
        await until(lambda: publisher._sent.newest == 7, "the events")
        publisher._transmit = transmit  # type: ignore[method-assign]
        while (told := await client.receive())["type"] != "error":
            assert told["type"] == "feed"
        assert (told["code"], told["oldest"], told["newest"]) == ("resume_expired", 0, 7)
        rig.source.trade("order", order_id=8)
        while (told := await client.receive())["type"] != "order":
            assert told["type"] in ("feed", "subscribed")
        assert told["seq"] == 8


async def test_opted_in_clients_are_told_of_a_new_epoch_and_loss(rig: Rig) -> None:
    async with rig.connect("/ws/realtime?ctl=1") as client:
        epoch = (await client.receive())["epoch"]
        # A killed feeder does not announce its end.
        rig.feeder.publisher._drain = lambda: None  # type: ignore[method-assign]
        rig.feeder.stop()
        rig.start_feeder()
        notice = await client.receive()
        while notice["state"] != "up":
            notice = await client.receive()
        # The new process has lost nothing itself, but nothing was published between the two epochs.
        assert (notice["epoch"] > epoch, notice["data_lost"]) == (True, True)
        rig.source.sink.set_state("stale")
        rig.source.sink.set_state("up")
        assert [(await client.receive())["data_lost"] for _ in range(2)] == [False, False]


async def test_feeder_restart_closes_no_socket_and_data_flows_again(rig: Rig) -> None:
    sh = whole_topic("SH")
    async with (
        rig.connect("/ws/realtime") as realtime,
        rig.connect("/ws/whole_quote") as whole,
        rig.connect(TRADE_URL) as trade,
    ):
        await realtime.send({"action": "subscribe", "id": 1, "stocks": ["600519.SH"]})
        await realtime.receive()
        await whole.send({"codes": ["SH"]})
        await live(trade)
        await rig.wanted(sh)
        rig.source.trade("order", order_id=1)
        assert (await trade.receive())["seq"] == 1
        rig.feeder.stop()
        rig.start_feeder()
        for topic in (TICK, sh):
            await rig.wanted(topic)
        rig.source.trade("order", order_id=2)
        rig.source.publish(TICK, {"600519.SH": [{"epoch": 2}]})
        rig.source.publish(sh, {"600519.SH": {"epoch": 2}})
        frame = await trade.receive()
        while frame["type"] == "feed":
            frame = await trade.receive()
        assert frame["seq"] == 2
        assert await whole.receive() == {"600519.SH": {"epoch": 2}}
        frame = await realtime.receive()
        while frame.get("type") == "feed":
            frame = await realtime.receive()
        assert frame == {"600519.SH": [{"epoch": 2}]}


async def test_readiness_follows_the_feeder(rig: Rig) -> None:
    port = rig.servers[0].port
    assert readiness(port)["ready"]
    rig.feeder.stop()
    await until(lambda: not readiness(port)["ready"], "the absence to be noticed")
    assert readiness(port)["reason"] == "feeder_absent"
    rig.start_feeder()
    await until(lambda: readiness(port)["ready"], "the return to be noticed")


async def test_acks_name_added_rejected_removed_and_active_codes(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.send({"action": "subscribe", "id": 1, "stocks": ["600519.SH", "999999.SZ", "bad"]})
        ack = await client.receive()
        assert (ack["type"], ack["id"], ack["added"], ack["active"]) == ("subscribed", 1, ["600519.SH"], 1)
        assert [(r["code"], r["error"]) for r in ack["rejected"]] == [
            ("bad", "unknown_symbol"),
            ("999999.SZ", "unknown_symbol"),
        ]
        await client.send({"action": "list", "id": "two"})
        assert await client.receive() == {"type": "subscriptions", "id": "two", "stocks": ["600519.SH"]}
        await client.send({"action": "unsubscribe", "id": 3, "stocks": ["600519.SH", "000001.SZ"]})
        ack = await client.receive()
        assert (ack["type"], ack["removed"], ack["active"]) == ("unsubscribed", ["600519.SH"], 0)
        assert [r["error"] for r in ack["rejected"]] == ["not_subscribed"]
        await rig.unwanted(TICK)
        await client.send({"action": "ping", "id": 4})
        pong = await client.receive()
        assert (pong["type"], pong["id"]) == ("pong", 4)
        assert isinstance(pong["time"], int)


async def test_ack_comes_before_the_last_value(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as first, rig.connect("/ws/realtime") as second:
        await first.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)
        rig.source.publish(TICK, {"600519.SH": [{"n": 1}]})
        await first.receive()
        await second.send({"action": "subscribe", "id": 1, "stocks": ["600519.SH", "000001.SZ"]})
        assert (await second.receive())["type"] == "subscribed"
        assert await second.receive() == {"600519.SH": [{"n": 1}]}


async def test_only_opted_in_clients_get_feed_notices(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as documented, rig.connect("/ws/realtime?ctl=1") as opted_in:
        welcome = await opted_in.receive()
        assert (welcome["type"], welcome["feed"], welcome["simulated"]) == ("welcome", "up", True)
        for client in (documented, opted_in):
            await client.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)
        rig.source.sink.set_state("down", "terminal_disconnected", data_lost=True)
        notice = await opted_in.receive()
        assert (notice["type"], notice["state"], notice["reason"]) == ("feed", "down", "terminal_disconnected")
        rig.source.publish(TICK, {"600519.SH": [{}]})
        assert await documented.receive() == {"600519.SH": [{}]}


async def notice(client: Client) -> dict[str, Any]:
    """Return the next feed notice."""
    while (frame := await client.receive()).get("type") != "feed":
        pass
    return frame


@pytest.mark.parametrize("away", [False, True], ids=["replaced", "away"])
async def test_notices_tell_of_an_absent_feeder_and_its_return(rig: Rig, away: bool) -> None:
    port = rig.servers[0].port
    async with rig.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["feed"] == "up"
        rig.feeder.stop()
        told = await notice(client)
        assert (told["state"], told["reason"], told["data_lost"]) == ("down", "feeder_stopped", False)
        if away:
            told = await notice(client)
            assert (told["state"], told["reason"], told["data_lost"]) == ("down", "feeder_absent", True)
            assert readiness(port)["reason"] == "feeder_absent"
        rig.start_feeder()
        while (told := await notice(client))["state"] != "up":
            pass
        # The new process has lost nothing itself, but the clients have lost data in between.
        assert (told["data_lost"], told["epoch"]) == (True, readiness(port)["epoch"])
        rig.source.sink.set_state("stale", "silent")
        assert (await notice(client))["data_lost"] is False


async def test_topic_refused_after_a_source_outage_gets_an_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without this, the refusal would be found some seconds later too.
    monkeypatch.setattr(hub, "QUIET_SECONDS", math.inf)
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH", "000001.SZ"])
        sink = rig.source.sink
        sink.set_state("down", "terminal_disconnected", data_lost=True)
        sink.refuse(TICK, "upstream_refused", "not any more")
        sink.set_state("up", data_lost=True)
        while (frame := await client.receive())["type"] == "feed":
            pass
        assert (frame["type"], frame["code"], frame["symbol"]) == ("error", "upstream_refused", "600519.SH")


async def test_slow_client_is_conflated_and_delays_no_other(rig: Rig) -> None:
    server = rig.serve(outbox_bytes=200_000)
    padding = "x" * 20_000
    async with rig.connect("/ws/realtime", server) as fast, rig.connect("/ws/realtime?ctl=1", server) as slow:
        await slow.receive()
        for client in (fast, slow):
            # What is published before the ack may be only in the last value, and that is not the first one.
            await client.subscribed(stocks=["600519.SH"])
        # The socket is not read: the buffers of the kernel and the server fill up, then the outbox.
        slow.socket.transport.pause_reading()
        total = 1500
        for number in range(total):
            rig.source.publish(TICK, {"600519.SH": [{"n": number, "padding": padding}]})
            assert (await fast.receive())["600519.SH"][0]["n"] == number
        slow.socket.transport.resume_reading()
        seen: list[int] = []
        skipped = 0
        while not seen or seen[-1] != total - 1 or len(seen) + skipped < total:
            frame = await slow.receive()
            if frame.get("type") == "skipped":
                skipped += frame["count"]
            elif "600519.SH" in frame:
                seen.append(frame["600519.SH"][0]["n"])
        assert seen == sorted(set(seen))
        assert len(seen) + skipped == total


async def test_client_not_reading_trade_events_is_closed_with_1013(rig: Rig) -> None:
    server = rig.serve(outbox_bytes=100_000)
    async with rig.connect(TRADE_URL, server) as client:
        await live(client)
        client.socket.transport.pause_reading()
        for number in range(1000):
            rig.source.trade("order", order_id=number, status_msg="x" * 20_000)
        published = rig.feeder.publisher
        await until(lambda: published.published > 1000, "the events")
        client.socket.transport.resume_reading()
        # 1013 if the close frame can still be sent, otherwise the connection is dropped.
        code, reason = await client.closed()
        assert (code, reason.partition(":")[0]) in ((1013, "slow_client"), (1006, ""), (None, ""))


async def test_key_in_a_header_may_be_raw_utf8(rig: Rig) -> None:
    port = rig.servers[0].port
    lines = ["GET /ws/trade?ctl=1 HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"X-API-Key: {KEY}", "", ""]
    async with asyncio.timeout(DEADLINE), opened(port) as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        await reader.readuntil(b"\r\n\r\n")
        assert b'"welcome"' in await reader.readuntil(b"}")


@pytest.mark.parametrize("kind", ["header", "bearer", "subprotocol", "query", "first frame"])
async def test_each_way_of_giving_the_key_opens_the_trade_socket(rig: Rig, kind: str) -> None:
    server = rig.serve(api_key="plain-key")
    path, options = "/ws/trade?ctl=1", {}
    match kind:
        case "header":
            options = {"additional_headers": {"X-API-Key": "plain-key"}}
        case "bearer":
            options = {"additional_headers": {"Authorization": "Bearer plain-key"}}
        case "subprotocol":
            options = {"subprotocols": ["key.plain-key"]}
        case "query":
            path = "/ws/trade?ctl=1&api_key=plain-key"
    async with rig.connect(path, server, **options) as client:
        if kind == "first frame":
            await client.send({"action": "auth", "key": "plain-key"})
        await live(client)
        rig.source.trade("order", order_id=1)
        assert (await client.receive())["type"] == "order"


@pytest.mark.parametrize(
    ("path", "frame", "reason"),
    [
        pytest.param("/ws/trade?api_key=wrong", None, "unauthorized: the API key is wrong", id="wrong"),
        pytest.param("/ws/trade", {"action": "auth", "key": "wrong"}, "unauthorized: the API key is wrong", id="frame"),
        pytest.param("/ws/trade", {"stocks": []}, "unauthorized: no API key was given", id="other-frame"),
    ],
)
async def test_no_trade_event_without_the_key(rig: Rig, path: str, frame: object, reason: str) -> None:
    async with rig.connect(path) as client:
        if frame is not None:
            await client.send(frame)
        rig.source.trade("order", order_id=1)
        # Without an error frame: the reason of the close says everything.
        with pytest.raises(ConnectionClosed):
            await client.receive()
        assert await client.closed() == (1008, reason)


async def test_no_trade_events_are_sent_without_a_configured_key(rig: Rig) -> None:
    server = rig.serve(api_key="")
    async with rig.connect("/ws/trade?api_key=", server) as client:
        assert (await client.closed())[0] == 1008


async def test_require_key_applies_to_market_data_too(rig: Rig) -> None:
    server = rig.serve(require_key=True)
    async with rig.connect("/ws/realtime?api_key=wrong", server) as client:
        assert (await client.closed())[0] == 1008
    async with rig.connect(f"/ws/realtime?api_key={quote(KEY)}", server) as client:
        await client.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)


async def test_foreign_origin_is_refused(rig: Rig) -> None:
    server = rig.serve(origins=("https://desk.example",))
    async with rig.connect("/ws/realtime", server, origin="https://evil.example") as client:
        code, reason = await client.closed()
        assert (code, reason.partition(":")[0]) == (1008, "origin_denied")
    async with rig.connect("/ws/realtime", server, origin="https://desk.example") as client:
        await client.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)


async def test_program_with_the_server_address_as_origin_is_served(rig: Rig) -> None:
    server = rig.serve(origins=("https://desk.example",))
    own = f"http://127.0.0.1:{server.port}"
    async with rig.connect("/ws/realtime", server, origin=own) as client:
        await client.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)
    # A page in a browser, with a name that was changed to lead to this address (DNS rebinding).
    evil = f"evil.example:{server.port}"
    here: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "proxy": None}
    async with connect(
        f"ws://{evil}/ws/realtime", origin=f"http://{evil}", user_agent_header="Mozilla/5.0", **here
    ) as it:
        assert (await Client(it).closed())[0] == 1008


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_url_with_a_slash_at_its_end_is_served(rig: Rig, path: str) -> None:
    async with rig.connect(f"{path}/?ctl=1&api_key={quote(KEY)}") as client:
        assert (await client.receive())["type"] == "welcome"
        await until(lambda: metrics(rig.servers[0].port).get(f'connections{{path="{path}"}}') == 1, "the connection")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_page_with_a_slash_at_its_end_is_served(rig: Rig, path: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = f"http://127.0.0.1:{rig.servers[0].port}{path}/"
    answer = await asyncio.to_thread(lambda: opener.open(url, timeout=DEADLINE))
    # No redirect was followed.
    assert (answer.status, answer.url) == (200, url)
    answer.close()


async def test_connection_over_the_limit_closes_with_1013(rig: Rig) -> None:
    server = rig.serve(max_connections=1)
    async with rig.connect("/ws/realtime", server) as first:
        async with rig.connect("/ws/realtime", server) as second:
            assert (await second.closed())[0] == 1013
        await first.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)


async def test_each_address_has_a_limit_of_connections(rig: Rig) -> None:
    server = rig.serve(max_connections_per_address=1)
    counted = metrics(server.port)['limited_total{limit="connections"}']
    async with rig.connect("/ws/realtime", server) as first:
        async with rig.connect("/ws/realtime", server) as second:
            assert await second.closed() == (
                1013,
                "connection_limit: this worker serves at most 1 sockets of one address",
            )
        async with rig.connect("/ws/realtime", server, local_addr=("127.0.0.2", 0)) as other:
            await other.send({"action": "ping", "id": 1})
            assert (await other.receive())["id"] == 1
        await first.send({"action": "ping", "id": 2})
        assert (await first.receive())["id"] == 2
    assert metrics(server.port)['limited_total{limit="connections"}'] == counted + 1
    await until(lambda: readiness(server.port)["connections"] == 0, "the end of all sessions")
    async with rig.connect("/ws/realtime", server) as later:
        await later.send({"action": "ping", "id": 3})
        assert (await later.receive())["id"] == 3


@pytest.mark.parametrize("topic", [Topic("quote/"), Topic("quote/600519.SH/tick")])
async def test_prefix_subscription_alone_requests_no_data(rig: Rig, topic: Topic) -> None:
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.connect(rig.config.market_addr)
        socket.subscribe(topic)
        async with rig.connect("/ws/realtime") as client:
            await client.send({"stocks": ["600519.SH"]})
            await rig.wanted(TICK)
            assert rig.source.wanted == [TICK]
    finally:
        context.destroy(linger=0)
