"""Options as in docs/websocket.md, "Options of a subscription", over a real feeder, uvicorn and WebSocket clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from websockets import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.typing import Subprotocol

from gateway.writer import PreparedFrames
from qmt_bridge.wire.topics import FormulaSpec, formula_topic, quote_topic, whole_topic
from tests.support.rig import DEADLINE, KEY, Client, Rig, readiness
from tests.support.waiting import until

TICK = quote_topic("600519.SH")
OTHER = quote_topic("000001.SZ")
SH = whole_topic("SH")
FORMULA = formula_topic(FormulaSpec("MA", "600519.SH"))
TRADE_URL = f"/ws/trade?api_key={quote(KEY)}"
MSGPACK = [Subprotocol("qmt.v1.msgpack")]


async def received(client: Client) -> Any:
    """Return the next MessagePack frame."""
    async with asyncio.timeout(DEADLINE):
        payload = await client.socket.recv()
    assert isinstance(payload, bytes)
    return msgspec.msgpack.decode(payload)


async def test_fields_are_selected_only_for_the_asking_client(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as narrow, rig.connect("/ws/realtime") as wide:
        await narrow.subscribed(stocks=["600519.SH"], fields=["lastPrice", "time"])
        await wide.subscribed(stocks=["600519.SH"])
        record = {"time": 1, "lastPrice": 2.5, "volume": 3}
        rig.source.publish(TICK, {"600519.SH": [record]})
        assert await narrow.receive() == {"600519.SH": [{"lastPrice": 2.5, "time": 1}]}
        assert await wide.receive() == {"600519.SH": [record]}


async def test_stamped_frames_are_numbered_without_a_gap(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"], seq=True)
        for number in range(3):
            rig.source.publish(TICK, {"600519.SH": [{"n": number}]})
        got = [await client.receive() for _ in range(3)]
        assert [frame["seq"] for frame in got] == [1, 2, 3]
        assert [frame["data"]["600519.SH"][0]["n"] for frame in got] == [0, 1, 2]
        assert all(frame["type"] == "data" and frame["time"] <= frame["published"] for frame in got)


async def test_rate_limited_quote_keeps_its_interval_and_newest(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as slow, rig.connect("/ws/realtime") as fast:
        await slow.subscribed(stocks=["600519.SH"], max_rate_ms=600)
        await fast.subscribed(stocks=["600519.SH"])
        for number in range(50):
            rig.source.publish(TICK, {"n": number})
            assert await fast.receive() == {"n": number}
        got = [(await slow.receive())["n"]]
        while got[-1] != 49:
            got.append((await slow.receive())["n"])
        assert got == sorted(set(got))
        assert got[0] == 0
        assert len(got) < 50


async def test_rate_limited_market_loses_no_code(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as slow, rig.connect("/ws/whole_quote") as fast:
        for client, options in ((slow, {"max_rate_ms": 600}), (fast, {})):
            await client.subscribed(codes=["SH"], **options)
        codes = [f"{600000 + number}.SH" for number in range(50)]
        for code in codes:
            rig.source.publish(SH, {code: {"n": 1}})
            await fast.receive()
        seen: set[str] = set()
        while seen != set(codes):
            seen |= (await slow.receive()).keys()


async def test_options_of_a_repeated_code_replace_earlier_ones(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        assert (await client.subscribed(stocks=["600519.SH"]))["added"] == ["600519.SH"]
        for request, expected in (
            ({"fields": ["n"]}, {"n": 1}),
            ({}, {"n": 1}),
            ({"max_rate_ms": 1}, {"n": 1, "m": 2}),
            ({"fields": ["m"]}, {"m": 2}),
        ):
            assert (await client.subscribed(stocks=["600519.SH"], **request))["added"] == []
            rig.source.publish(TICK, {"600519.SH": [{"n": 1, "m": 2}]})
            assert await client.receive() == {"600519.SH": [expected]}


async def test_without_snapshot_only_new_frames_are_sent(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as first, rig.connect("/ws/realtime") as second:
        await first.subscribed(stocks=["600519.SH"])
        rig.source.publish(TICK, {"n": "old"})
        assert await first.receive() == {"n": "old"}
        await second.subscribed(stocks=["600519.SH"], snapshot=False)
        rig.source.publish(TICK, {"n": "new"})
        assert await second.receive() == {"n": "new"}


async def test_resume_says_whether_anything_was_missed(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as watcher, rig.connect("/ws/realtime") as client:
        await watcher.subscribed(stocks=["600519.SH"], seq=True)
        for number in range(3):
            rig.source.publish(TICK, {"n": number})
        positions = [await watcher.receive() for _ in range(3)]
        epoch = positions[0]["epoch"]

        async def resumed(seq: int, of: float = epoch) -> tuple[bool, Any]:
            ack = await client.subscribed(stocks=["600519.SH"], resume={"epoch": of, "seq": seq})
            last = None if ack["recovered"] and seq == 3 else await client.receive()
            await client.send({"action": "unsubscribe", "id": 2, "stocks": ["600519.SH"]})
            assert (await client.receive())["type"] == "unsubscribed"
            return ack["recovered"], last

        assert await resumed(3) == (True, None)
        # A browser rounds the epoch to a float.
        assert await resumed(3, float(epoch)) == (True, None)
        assert await resumed(2) == (True, {"n": 2})
        assert await resumed(1) == (False, {"n": 2})
        assert await resumed(4) == (False, {"n": 2})
        assert await resumed(3, epoch - 10**9) == (False, {"n": 2})


async def test_resume_of_several_codes_names_each(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as watcher, rig.connect("/ws/realtime") as client:
        stocks = ["600519.SH", "000001.SZ"]
        await watcher.subscribed(stocks=stocks, seq=True)
        for topic in (TICK, OTHER, OTHER, OTHER):
            rig.source.publish(topic, {"n": 1})
            epoch = (await watcher.receive())["epoch"]
        resume = {code: {"epoch": epoch, "seq": 1} for code in stocks}
        ack = await client.subscribed(stocks=stocks, resume=resume)
        assert ack["recovered"] == {"600519.SH": True, "000001.SZ": False}
        assert await client.receive() == {"n": 1}


async def test_resume_of_a_subscribed_code_starts_at_its_position(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as keeper, rig.connect("/ws/realtime") as client:
        await keeper.subscribed(stocks=["600519.SH"])
        await client.subscribed(stocks=["600519.SH"], seq=True)
        for number in range(3):
            rig.source.publish(TICK, {"n": number})
        (epoch,) = {(await client.receive())["epoch"] for _ in range(3)}
        ack = await client.subscribed(stocks=["600519.SH"], resume={"epoch": epoch, "seq": 1})
        assert (ack["added"], ack["recovered"], ack["active"]) == ([], False, 1)
        assert await client.receive() == {"n": 2}
        ack = await client.subscribed(stocks=["600519.SH"], resume={"epoch": epoch, "seq": 3})
        assert ack["recovered"] is True
        rig.source.publish(TICK, {"n": 3})
        assert await client.receive() == {"n": 3}


async def test_resume_of_a_code_within_its_market_is_not_recovered(rig: Rig) -> None:
    async with rig.connect("/ws/whole_quote") as client:
        position = {"epoch": 1, "seq": 1}
        await client.subscribed(codes=["SH"])
        assert (await client.subscribed(codes=["600519.SH"], resume=position))["recovered"] is False
        ack = await client.subscribed(codes=["601988.SH", "000001.SZ"], resume={"601988.SH": position})
        assert ack["recovered"] == {"601988.SH": False}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"mode": "some"}, "mode"),
        ({"mode": "all", "max_rate_ms": 5}, "choose one"),
        ({"max_rate_ms": -1}, "max_rate_ms"),
        ({"max_rate_ms": "1"}, "max_rate_ms"),
        ({"fields": "lastPrice"}, "fields"),
        ({"fields": [1]}, "fields"),
        ({"fields": ["x" * 101]}, "fields"),
        ({"seq": 1}, "seq"),
        ({"snapshot": None}, "snapshot"),
        ({"resume": 8}, "resume"),
        ({"resume": {"epoch": 1}}, "resume"),
        ({"resume": {"000001.SZ": {"epoch": 1, "seq": 1}}}, "000001.SZ"),
        ({"stocks": ["600519.SH", "000001.SZ"], "resume": {"epoch": 1, "seq": 1}}, "by code"),
    ],
)
async def test_invalid_option_is_named(rig: Rig, request_: dict[str, Any], words: str) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.send({"action": "ping"})
        assert (await client.receive())["type"] == "pong"
        await client.send({"id": 5, "stocks": ["600519.SH"], **request_})
        error = await client.receive()
        assert (error["type"], error["code"], error["id"]) == ("error", "bad_request", 5)
        assert words in error["error"]


async def test_mode_all_keeps_every_frame_or_ends_with_1013(rig: Rig) -> None:
    server = rig.serve(outbox_bytes=200_000)
    async with rig.connect("/ws/realtime", server) as every, rig.connect("/ws/realtime", server) as newest:
        for client, options in ((every, {"mode": "all"}), (newest, {})):
            await client.subscribed(stocks=["600519.SH"], **options)
            client.socket.transport.pause_reading()
        padding = "x" * 50_000
        for number in range(400):
            rig.source.publish(TICK, {"n": number, "padding": padding})
        await until(lambda: readiness(server.port)["frames_received"] >= 400, "the frames")
        for client in (every, newest):
            client.socket.transport.resume_reading()
        numbers = []
        while not numbers or numbers[-1] != 399:
            frame = await newest.receive()
            if "n" in frame:
                numbers.append(frame["n"])
        assert numbers == sorted(set(numbers))
        code, reason = await every.closed()
        # Plain ASGI cannot drop a client that does not read, so frames may still arrive after the session has ended.
        assert code in (1013, 1006)
        assert code == 1006 or reason.startswith("slow_client")


async def test_messagepack_clients_get_the_published_values(rig: Rig) -> None:
    async with rig.connect("/ws/realtime", subprotocols=MSGPACK) as client:
        assert client.socket.subprotocol == "qmt.v1.msgpack"
        assert (await received(client))["type"] == "welcome"
        await client.socket.send(msgspec.msgpack.encode({"stocks": ["600519.SH"], "id": 1}))
        assert (await received(client))["added"] == ["600519.SH"]
        rig.source.publish(TICK, {"600519.SH": [{"pe": math.nan, "n": 2**63}]})
        [record] = (await received(client))["600519.SH"]
        assert record == {"pe": None, "n": 2**63}
        # Text frames are accepted as well.
        await client.send({"action": "ping", "id": 2})
        assert (await received(client))["type"] == "pong"
        for nonsense in (b"\xc1", b"\x91" * 60_000, msgspec.msgpack.encode([1]), b"\x81\x91\x01\x02"):
            await client.socket.send(nonsense)
            assert (await received(client))["type"] == "error"


async def test_every_url_speaks_messagepack(rig: Rig) -> None:
    async with rig.connect("/ws/formula", subprotocols=MSGPACK) as client:
        await received(client)
        asked = {"action": "subscribe", "formula_name": "MA", "stock_code": "600519.SH"}
        await client.socket.send(msgspec.msgpack.encode(asked))
        assert (await received(client))["action"] == "subscribed"
        rig.source.publish(FORMULA, {"formula_name": "MA", "stock_code": "600519.SH", "data": {"MA1": [math.nan]}})
        update = await received(client)
        assert (update["type"], update["seq_id"]) == ("formula_update", 1)
        assert update["data"]["MA1"] == [None]
    async with rig.connect(TRADE_URL, subprotocols=MSGPACK) as client:
        assert [(await received(client))["type"] for _ in range(2)] == ["welcome", "subscribed"]
        rig.source.trade("order", order_id=1)
        assert (await received(client))["data"] == {"order_id": 1}
    async with rig.connect("/ws/download_progress", subprotocols=MSGPACK) as client:
        await received(client)
        await client.socket.send(msgspec.msgpack.encode({"stocks": ["600519.SH"], "period": "1d"}))
        while (frame := await received(client)).get("status") != "done":
            assert frame["finished"] == 1
        assert (await client.closed())[0] == 1000


async def test_formula_takes_a_rate_limit_and_a_position(rig: Rig) -> None:
    async with rig.connect("/ws/formula") as client:
        base = {"formula_name": "MA", "stock_code": "600519.SH"}
        ack = await client.subscribed(**base, seq=True)
        rig.source.publish(FORMULA, {"n": 1})
        frame = await client.receive()
        assert frame["data"] == {"type": "formula_update", "seq_id": ack["seq_id"], "n": 1}
        ack = await client.subscribed(**base, resume={"epoch": frame["epoch"], "seq": 1})
        assert ack["recovered"] is True
        await client.send({"action": "subscribe", "id": 9, **base, "fields": ["n"]})
        assert "fields" in (await client.receive())["error"]


async def test_trade_socket_resumes_after_a_position(rig: Rig) -> None:
    async with rig.connect(f"{TRADE_URL}&ctl=1") as client:
        assert [(await client.receive())["type"] for _ in range(2)] == ["welcome", "subscribed"]
        for number in range(5):
            rig.source.trade("order", order_id=number)
        assert [(await client.receive())["seq"] for _ in range(5)] == [1, 2, 3, 4, 5]
        await client.send({"resume": {"seq": 2}, "id": 7})
        ack = await client.receive()
        assert (ack["type"], ack["id"], ack["after"]) == ("subscribed", 7, 2)
        rig.source.trade("order", order_id=5)
        assert [(await client.receive())["seq"] for _ in range(4)] == [3, 4, 5, 6]
        await client.send({"resume": {"seq": 99}, "id": 8})
        error = await client.receive()
        assert (error["code"], error["id"], error["oldest"], error["newest"]) == ("resume_expired", 8, 0, 6)
        # No event is missing between the position of the ack and the new events.
        ack = await client.receive()
        assert (ack["type"], ack["after"]) == ("subscribed", 6)
        rig.source.trade("order", order_id=6)
        assert (await client.receive())["seq"] == 7
        for bad in ({"resume": -1}, {"resume": {"seq": -1}}, {"resume": {"seq": 2**63}}, {"resume": {}}):
            await client.send(bad)
            assert (await client.receive())["code"] == "bad_request"


@pytest.mark.parametrize("rig", [PreparedFrames], ids=["prepared"], indirect=True)
async def test_stopping_server_tells_opted_in_clients(rig: Rig) -> None:
    # With plain ASGI, uvicorn closes the socket before the app knows of the stop.
    server = rig.serve()
    async with rig.connect("/ws/realtime?ctl=1", server) as told, rig.connect("/ws/realtime", server) as documented:
        assert (await told.receive())["type"] == "welcome"
        await documented.send({"stocks": ["600519.SH"]})
        await rig.wanted(TICK)
        stopping = asyncio.get_running_loop().run_in_executor(None, server.stop)
        assert await told.receive() == {"type": "closing", "reason": "server_restart"}
        assert (await told.closed())[0] == 1012
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(Exception, match="1012"):
                await documented.socket.recv()
        await stopping
        rig.servers.remove(server)


@pytest.mark.parametrize("rig", [PreparedFrames], ids=["prepared"], indirect=True)
@pytest.mark.parametrize(("window", "compressed"), [(15, True), (12, True), (10, False)])
async def test_frames_are_compressed_if_both_sides_agree(rig: Rig, window: int, compressed: bool) -> None:
    server = rig.serve(deflate=True)
    record = {"text": "行情" * 2000, "n": 1}
    size = len(json.dumps(record, ensure_ascii=False).encode())
    extension = ClientPerMessageDeflateFactory(server_max_window_bits=window)
    async with (
        rig.connect("/ws/realtime", server, compression=None, extensions=[extension]) as one,
        rig.connect("/ws/realtime", server, compression=None, extensions=[extension]) as two,
        rig.connect("/ws/realtime", server, compression=None) as plain,
    ):
        clients = (one, two, plain)
        for client in clients:
            await client.subscribed(stocks=["600519.SH"])
        assert len(one.socket.protocol.extensions) == 1
        for _ in range(3):
            before = readiness(server.port)["bytes_sent"]
            rig.source.publish(TICK, record)
            assert [await client.receive() for client in clients] == [record] * 3
            whole = (readiness(server.port)["bytes_sent"] - before) / size
            assert 0.9 < whole < 1.1 if compressed else 2.9 < whole < 3.1


async def test_feed_loss_is_repaired_and_told_if_opted_in(rig: Rig) -> None:
    async with rig.connect("/ws/realtime?ctl=1") as told, rig.connect("/ws/realtime") as documented:
        assert (await told.receive())["type"] == "welcome"
        # A client without a snapshot is sent the last value too if it replaces lost frames.
        await told.subscribed(stocks=["600519.SH", "000001.SZ"], snapshot=False)
        await documented.send({"stocks": ["600519.SH", "000001.SZ"]})
        await rig.wanted(TICK)
        await rig.wanted(OTHER)
        for topic in (TICK, OTHER):
            rig.source.publish(topic, {"n": 1})
        for client in (told, documented):
            assert [await client.receive() for _ in range(2)] == [{"n": 1}] * 2
        # As if a full socket had dropped them: no later frame shows the second loss.
        rig.lose(TICK, {"n": 2})
        rig.lose(OTHER, {"n": "newest"})
        rig.source.publish(TICK, {"n": 3})
        assert await documented.receive() == {"n": 3}
        assert await documented.receive() == {"n": "newest"}
        got = [await told.receive() for _ in range(3)]
        assert {"type": "skipped", "count": 1, "reason": "feed_gap"} in got
        assert {"n": "newest"} in got


async def test_rate_limit_keeps_all_prints_and_each_bar(rig: Rig) -> None:
    prints, bars = quote_topic("600519.SH", "l2transaction"), quote_topic("600519.SH", "1m")
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"], period="l2transaction", max_rate_ms=400)
        await client.subscribed(stocks=["600519.SH"], period="1m", max_rate_ms=400)
        for number in range(60):
            rig.source.publish(prints, {"600519.SH": [{"tradeIndex": number}]})
            rig.source.publish(bars, {"600519.SH": [{"time": number // 20, "close": number}]})
        seen: list[int] = []
        closes: dict[int, int] = {}
        frames = 0
        while len(seen) < 60 or closes.get(2) != 59:
            frames += 1
            for record in (await client.receive())["600519.SH"]:
                if "close" in record:
                    closes[record["time"]] = record["close"]
                else:
                    seen.append(record["tradeIndex"])
        assert seen == list(range(60))
        assert closes == {0: 19, 1: 39, 2: 59}
        assert frames < 60


@pytest.mark.parametrize("period", ["l2transaction", "1m"])
async def test_slow_client_gets_all_prints_and_bars_or_1013(rig: Rig, period: str) -> None:
    server = rig.serve(outbox_bytes=200_000)
    topic = quote_topic("600519.SH", period)
    async with rig.connect("/ws/realtime", server) as client:
        await client.subscribed(stocks=["600519.SH"], period=period)
        client.socket.transport.pause_reading()
        padding = "x" * 50_000
        for number in range(400):
            rig.source.publish(topic, {"600519.SH": [{"time": number, "padding": padding}]})
        await until(lambda: readiness(server.port)["topics"] == 1, "the end of the socket, which leaves its topic")
        client.socket.transport.resume_reading()
        got: list[int] = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                got += [record["time"] for record in (await client.receive())["600519.SH"]]
        # No record is missing before the close, which shows that later ones are.
        assert got == list(range(got[0], got[0] + len(got)))
        assert client.socket.close_code in (1013, 1006)
