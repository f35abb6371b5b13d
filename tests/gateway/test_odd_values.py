"""Values of any type in any field: each is answered, by a sentence that names its type and does not repeat it."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import msgspec
import pytest
from websockets import Subprotocol

from qmt_bridge.wire.requests import ID_CHARACTERS, REQUEST_DEPTH, json_type, parse_request, request_id
from tests.support.rig import Rig

DEEP = "[" * 1000 + "]" * 1000
REQUESTS: dict[str, dict[str, Any]] = {
    "/ws/realtime": {"stocks": ["600519.SH"], "period": "tick", "mode": "latest", "resume": {}},
    "/ws/whole_quote": {"codes": ["600519.SH"], "snapshot": True, "max_rate_ms": 0, "fields": []},
    "/ws/l2_thousand": {"stocks": ["600519.SH"], "gear_num": 5, "seq": False},
    "/ws/formula": {"formula_name": "MA", "stock_code": "600519.SH", "count": 5, "params": {}, "dividend_type": "none"},
}
ODD: list[Any] = [
    None, True, 1.5, -1, 1e22, 1e308, 2**64 - 1, "", "x" * 60_000, "\u0000\ud7ff\U0010ffff", [], {}, [None], [[]],
    [True], {"": None}, {"x": {"seq": 1e300, "epoch": 1e300}}, [{}], ["x" * 60_000], {"a": [{"b": []}]},
]  # fmt: skip
# What only MessagePack has.
BINARY: list[Any] = [
    b"\xff\x00", math.nan, math.inf, msgspec.msgpack.Ext(5, b"x"),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), [b""], {"x": math.nan},
]  # fmt: skip


@pytest.mark.parametrize("path", REQUESTS)
async def test_odd_value_of_a_field_is_answered(rig: Rig, path: str) -> None:
    server = rig.serve(max_rate=1_000_000, max_code_rate=1_000_000)
    request = REQUESTS[path]
    async with rig.connect(path, server, subprotocols=[Subprotocol("qmt.v1.msgpack")]) as client:
        encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
        answers = 0

        async def ask(changed: dict[str, Any], mark: int) -> None:
            await client.socket.send(encode(changed))
            await client.socket.send(encode({"action": "ping", "id": mark}))
            while True:
                answer = decode(await client.socket.recv())
                assert answer.get("code") != "internal"
                assert len(str(answer)) < 2000
                if answer.get("type") == "pong" and answer.get("id") == mark:
                    return

        await ask({"action": "list"}, -1)
        for field in ("action", "id", "strange", *request):
            for value in (*ODD, *BINARY):
                if not (isinstance(value, str) and len(value) > 1000 and field == "stocks"):
                    answers += 1
                    await ask(request | {field: value}, answers)


@pytest.mark.parametrize("field", ["action", "id", "stocks", "mode", "key"])
async def test_request_nested_a_thousand_deep_is_refused(rig: Rig, field: str) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        await client.socket.send(f'{{"{field}": {DEEP}}}')
        assert (await client.receive())["code"] == "bad_request"
        await client.send({"action": "ping", "id": 2})
        assert (await client.receive())["id"] == 2


@pytest.mark.parametrize("given", [0, -1, 1.5, 1.7e12, 2**64 - 1, "", "a", "x" * ID_CHARACTERS])
async def test_id_is_repeated_as_it_was_given(rig: Rig, given: object) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        await client.send({"action": "ping", "id": given})
        assert (await client.receive())["id"] == given
        await client.send({"action": "nonsense", "id": given})
        assert (await client.receive())["id"] == given


@pytest.mark.parametrize("given", [True, [], {}, "x" * (ID_CHARACTERS + 1), "x" * 60_000])
async def test_id_that_is_none_is_refused_and_not_repeated(rig: Rig, given: object) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.subscribed(stocks=["600519.SH"])
        for action in ("ping", "nonsense"):
            await client.send({"action": action, "id": given})
            answer = await client.receive()
            assert (answer["code"], "id" in answer) == ("bad_request", False)
            assert len(json.dumps(answer)) < 300


@pytest.mark.parametrize("given", [math.nan, math.inf, b"x", datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)])
def test_id_that_json_does_not_have_is_refused(given: object) -> None:
    with pytest.raises(Exception, match="id must be a number or a string"):
        request_id({"id": given})


def test_name_of_a_field_that_is_nested_deep_is_named_by_its_type() -> None:
    # Arrays may be the names of a MessagePack map.
    for depth in (1, REQUEST_DEPTH, 500):
        with pytest.raises(Exception, match=r"a name is a string, not an array|not MessagePack"):
            parse_request(b"\x81" + b"\x91" * depth + b"\x01" + b"\x01")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({}, "an object"), ([], "an array"), ("", "a string"), (True, "a boolean"), (None, "null"), (1, "a number"),
        (1.5, "a number"), (b"", "binary data"),
    ],
)  # fmt: skip
def test_type_is_named_as_json_calls_it(value: object, name: str) -> None:
    assert json_type(value) == name
