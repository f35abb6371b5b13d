"""Bad input: it is answered as the protocol says, logged in one line, and affects no other client."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from websockets import ConnectionClosed

from qmt_bridge.wire.topics import quote_topic
from tests.support.rig import KEY, Client, Rig

TICK = quote_topic("600519.SH")
GOOD = {"stocks": ["600519.SH"], "period": "tick"}


async def send(client: Client, frame: object) -> None:
    if isinstance(frame, str | bytes):
        await client.socket.send(frame)
    else:
        await client.send(frame)


BAD = [
    pytest.param("/ws/realtime", "not json", "bad_json", id="not-json"),
    pytest.param("/ws/realtime", "", "bad_json", id="empty"),
    pytest.param("/ws/realtime", "[" * 30_000, "bad_json", id="deep"),
    pytest.param("/ws/realtime", "[]", "bad_request", id="array"),
    pytest.param("/ws/realtime", "17", "bad_request", id="number"),
    pytest.param("/ws/realtime", "null", "bad_request", id="null"),
    pytest.param("/ws/realtime", {}, "bad_request", id="no-stocks"),
    pytest.param("/ws/realtime", {"stocks": []}, "bad_request", id="empty-stocks"),
    pytest.param("/ws/realtime", {"stocks": "600519.SH"}, "bad_request", id="string"),
    pytest.param("/ws/realtime", {"stocks": {"600519.SH": 1}}, "bad_request", id="object"),
    pytest.param("/ws/realtime", {"stocks": ["600519.SH"], "period": 1}, "bad_request", id="period-type"),
    pytest.param("/ws/realtime", {"stocks": ["600519.SH"], "period": "3x"}, "unsupported_period", id="period"),
    pytest.param("/ws/realtime", {"action": "buy", "stocks": ["600519.SH"]}, "unknown_action", id="action"),
    pytest.param("/ws/realtime", {"action": ["list"]}, "unknown_action", id="action-type"),
    pytest.param("/ws/realtime", {**GOOD, "id": {"a": 1}}, "bad_request", id="id-type"),
    pytest.param("/ws/whole_quote", {"codes": []}, "bad_request", id="empty-codes"),
    pytest.param("/ws/whole_quote", {"stocks": ["SH"]}, "bad_request", id="wrong-field"),
    pytest.param("/ws/l2_thousand", {"stocks": ["600519.SH"], "gear_num": -1}, "bad_request", id="gear-negative"),
    pytest.param("/ws/l2_thousand", {"stocks": ["600519.SH"], "gear_num": "x"}, "bad_request", id="gear-type"),
    pytest.param("/ws/download_progress", {"stocks": ["nonsense"]}, "unknown_symbol", id="download-code"),
    pytest.param(
        "/ws/download_progress", {"stocks": ["600519.SH"], "period": "x"}, "unsupported_period", id="d-period"
    ),
    pytest.param("/ws/formula", {"action": "subscribe", "stock_code": "600519.SH"}, "bad_request", id="no-formula"),
    pytest.param("/ws/formula", {"formula_name": "MA", "stock_code": 600519}, "unknown_symbol", id="formula-code"),
    pytest.param(
        "/ws/formula", {"formula_name": "M" * 5000, "stock_code": "600519.SH"}, "bad_request", id="formula-name-long"
    ),
    pytest.param(
        "/ws/formula",
        {"formula_name": "MA", "stock_code": "600519.SH", "count": 10**30},
        "bad_request",
        id="count-huge",
    ),
    pytest.param("/ws/formula", {"action": "unsubscribe", "seq_id": 123}, "not_subscribed", id="seq-id"),
    pytest.param("/ws/formula", {"action": "unsubscribe", "seq_id": "a"}, "bad_request", id="seq-id-type"),
    pytest.param(
        "/ws/formula",
        {"formula_name": "MA", "stock_code": "600519.SH", "dividend_type": "x"},
        "bad_request",
        id="dividend-type",
    ),
    pytest.param(
        "/ws/formula",
        {"formula_name": "MA", "stock_code": "600519.SH", "params": {"N": []}},
        "bad_request",
        id="params",
    ),
]


@pytest.mark.parametrize(("path", "frame", "code"), BAD)
async def test_bad_first_frame_gets_an_error_and_a_close(
    rig: Rig, caplog: pytest.LogCaptureFixture, path: str, frame: Any, code: str
) -> None:
    caplog.set_level(logging.INFO)
    async with rig.connect(path) as client:
        caplog.clear()
        await send(client, frame)
        error = await client.receive()
        while error.get("symbol"):
            error = await client.receive()
        assert (error["type"], error["code"], error["retry"]) == ("error", code, False)
        closed, reason = await client.closed()
        assert closed == 1008
        assert reason.startswith(f"{code}: ")
    lines = [record for record in caplog.records if record.name.startswith(("gateway", "feeder", "uvicorn"))]
    assert all(record.levelno <= logging.INFO and not record.exc_info for record in lines)
    assert len([record for record in lines if record.name.startswith("gateway")]) <= 1


@pytest.mark.parametrize(
    ("path", "field"), [("realtime", "stocks"), ("whole_quote", "codes"), ("l2_thousand", "stocks")]
)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (600519, "code must be a string, not int; did you mean '600519.SH'?"),
        (600519.0, "code must be a string, not float; did you mean '600519.SH'?"),
        (1, "code must be a string, not int; did you mean '000001.SZ' or '000001.SH'?"),
        (None, "code must be a string, not NoneType"),
        (["600519.SH"], "code must be a string, not list"),
    ],
)
async def test_code_that_is_no_string_gets_a_hint(rig: Rig, path: str, field: str, code: object, reason: str) -> None:
    async with rig.connect(f"/ws/{path}") as client:
        await client.send({field: [code, "600519.SH"]})
        error = await client.receive()
        assert (error["type"], error["code"], error["error"]) == ("error", "unknown_symbol", reason)


URLS = ["/ws/realtime", "/ws/whole_quote", "/ws/l2_thousand", "/ws/download_progress", "/ws/formula"]


@pytest.mark.parametrize("path", URLS)
@pytest.mark.parametrize(
    "frame",
    [
        {"stocks": ["600519.SH", "DEEP"], "codes": ["SH", "DEEP"], "formula_name": "MA", "stock_code": "DEEP"},
        {"stocks": ["600519.SH"], "codes": ["SH"], "mode": "DEEP"},
        {"action": "DEEP"},
        {"stocks": ["600519.SH"], "codes": ["SH"], "x": {"y": "DEEP"}},
    ],
)
async def test_too_deeply_nested_request_is_refused(rig: Rig, path: str, frame: dict[str, Any]) -> None:
    deep = "[" * 990 + "]" * 990
    async with rig.connect(path) as client:
        await client.socket.send(json.dumps(frame).replace('"DEEP"', deep))
        assert (await client.receive())["code"] == "bad_request"
        assert (await client.closed())[0] == 1008


@pytest.mark.parametrize("path", URLS)
@pytest.mark.parametrize("name", [1, None, True, 1.5, b"k", (1, 2)])
async def test_field_name_that_is_no_string_is_refused(rig: Rig, path: str, name: Any) -> None:
    frame = {"stocks": ["600519.SH"], "codes": ["SH"], "formula_name": "MA", "stock_code": "600519.SH", name: 1}
    async with rig.connect(path, subprotocols=["qmt.v1.msgpack"]) as client:
        await client.socket.send(msgspec.msgpack.encode(frame))
        error: dict[str, Any] = {}
        while "code" not in error:
            error = msgspec.msgpack.decode(await client.socket.recv(decode=False))
        assert (error["code"], error["error"].partition(",")[0]) == ("bad_request", "a name is a string")


async def test_bad_later_frame_gets_an_error_and_closes_no_socket(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client, rig.connect("/ws/realtime") as other:
        for each in (client, other):
            await each.send(GOOD)
        await rig.wanted(TICK)
        for frame, code in (("nonsense", "bad_json"), ({"action": "buy", "id": 7}, "unknown_action")):
            await send(client, frame)
            error = await client.receive()
            assert (error["code"], error.get("id")) == (code, 7 if isinstance(frame, dict) else None)
        rig.source.publish(TICK, {"600519.SH": [{"n": 1}]})
        for each in (client, other):
            assert await each.receive() == {"600519.SH": [{"n": 1}]}


async def test_binary_frame_without_negotiation_closes_with_1003(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.socket.send(b'{"stocks":["600519.SH"]}')
        assert (await client.closed())[0] == 1003


async def test_invalid_utf8_closes_with_1007_and_no_traceback(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.socket.send(b'{"stocks":["\xff"]}', text=True)
        assert (await client.closed())[0] == 1007
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("size", [65_537, 1024 * 1024, 3 * 1024 * 1024])
async def test_too_large_request_closes_with_1009(rig: Rig, size: int) -> None:
    async with rig.connect("/ws/realtime") as client:
        # The server may close before it has received the whole request.
        with suppress(ConnectionClosed):
            await client.socket.send('{"stocks":["600519.SH"],"pad":"' + "x" * size + '"}')
        assert (await client.closed())[0] == 1009


async def test_request_of_the_largest_size_is_served(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        request = '{"stocks":["600519.SH"],"pad":"%s"}'
        await client.socket.send(request % ("x" * (65_536 - len(request) + 2)))
        await rig.wanted(TICK)


async def test_request_of_ten_thousand_codes_closes_with_1009(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.send({"stocks": [f"{number:06d}.SZ" for number in range(10_000)]})
        assert (await client.closed())[0] == 1009


async def test_codes_over_the_limit_are_refused_and_others_served(rig: Rig) -> None:
    server = rig.serve(max_topics=3)
    async with rig.connect("/ws/realtime", server) as client:
        codes = [f"{number:06d}.SZ" for number in range(50)]
        await client.send({"stocks": codes})
        errors = [await client.receive() for _ in range(21)]
        assert {error["code"] for error in errors} == {"symbol_limit"}
        assert [error["symbol"] for error in errors[:20]] == codes[3:23]
        assert errors[20]["symbols"] == codes[23:]
        await rig.wanted(quote_topic("000002.SZ"))


async def test_rate_limit_of_one_client_does_not_affect_another(rig: Rig) -> None:
    server = rig.serve(max_rate=10)
    async with rig.connect("/ws/realtime", server) as client, rig.connect("/ws/realtime", server) as other:
        await other.send(GOOD)
        await rig.wanted(TICK)
        for number in range(1000):
            await client.send({"action": "subscribe", "id": number, "stocks": ["600519.SH"]})
        served = refused = told = 0
        while served + refused < 1000:
            answer = await client.receive()
            if answer["type"] == "error":
                assert (answer["code"], answer["retry"]) == ("rate_limited", True)
                told += 1
                refused += answer["count"]
            else:
                served += 1
        assert 900 <= refused <= 960
        # The first refusal is told at once, the others once a second.
        assert told < served
        rig.source.publish(TICK, {"600519.SH": [{}]})
        assert await other.receive() == {"600519.SH": [{}]}
        assert await client.receive() == {"600519.SH": [{}]}


async def test_flood_of_small_requests_is_closed_with_1008(rig: Rig) -> None:
    server = rig.serve(max_rate=10)
    async with rig.connect("/ws/realtime", server) as client, rig.connect("/ws/realtime", server) as other:
        await client.subscribed(stocks=["600519.SH"])
        with suppress(ConnectionClosed):
            # A token comes back each 0.1 s, so not all of the refusals are in a row.
            for number in range(20_000):
                await client.send({"action": "ping", "id": number})
                if not number % 100:
                    # `send` reads nothing while there is room, and a client that does not read loses the close.
                    await asyncio.sleep(0)
        code, reason = await client.closed()
        assert (code, reason.partition(":")[0]) == (1008, "rate_limited")
        await other.send({"action": "ping", "id": 1})
        assert (await other.receive())["type"] == "pong"


@pytest.mark.parametrize("after", ["x", "-1", "9" * 19, "9" * 100])
async def test_invalid_position_is_refused(rig: Rig, after: str) -> None:
    async with rig.connect(f"/ws/trade?api_key={quote(KEY)}&after={after}") as client:
        assert (await client.receive())["code"] == "bad_request"
        assert (await client.closed())[0] == 1008


async def test_only_a_record_without_a_json_form_is_left_out(rig: Rig) -> None:
    nested: object = 1
    for _ in range(300):
        nested = {"deeper": nested}
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(**GOOD)
        for body in ({"n": 1}, {"n": nested}, {"n": 2}):
            rig.source.publish(TICK, body)
        assert [await client.receive(), await client.receive()] == [{"n": 1}, {"n": 2}]
        # Once more, with no other frame in the same write.
        rig.source.publish(TICK, {"n": nested})
        rig.source.publish(TICK, {"n": 3})
        assert await client.receive() == {"n": 3}
