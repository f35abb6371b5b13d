"""Unknown names in requests, over a real feeder, uvicorn and WebSocket clients: they are named and ignored."""

from __future__ import annotations

import logging
import re
from typing import Any
from urllib.parse import quote

import pytest

from qmt_bridge.wire.topics import Topic, l2_topic, quote_topic, whole_topic
from tests.support.paths import ROOT
from tests.support.rig import KEY, Client, Rig

TICK = quote_topic("600519.SH")
RECORD = {"time": 1, "lastPrice": 2.5}


def named(frame: dict[str, Any], key: str = "ignored") -> dict[str, str]:
    return {each["field"]: each["hint"] for each in frame.get(key, [])}


async def refused(client: Client) -> tuple[str, str]:
    """Return field and text of the next frame, which must be an error for an unknown name."""
    error = await client.receive()
    assert (error["type"], error["code"], error["retry"]) == ("error", "unknown_field", False)
    return error["field"], error["error"]


@pytest.mark.parametrize(
    ("path", "request_", "topic"),
    [
        ("/ws/realtime", {"stocks": ["600519.SH"]}, TICK),
        ("/ws/whole_quote", {"codes": ["SH"]}, whole_topic("SH")),
        ("/ws/l2_thousand", {"stocks": ["600519.SH"]}, l2_topic("600519.SH")),
    ],
)
async def test_ack_names_unknown_fields(rig: Rig, path: str, request_: dict[str, Any], topic: Topic) -> None:
    async with rig.connect(path) as client:
        ack = await client.subscribed(**request_, fileds=["lastPrice"], count=5)
        assert named(ack) == {"fileds": "did you mean fields", "count": "a field of /ws/formula"}
        rig.source.publish(topic, {"600519.SH": [RECORD]})
        assert await client.receive() == {"600519.SH": [RECORD]}
        assert "ignored" not in await client.subscribed(**request_)
        await client.send({"action": "unsubscribe", "id": 2, **request_, "perod": 1})
        assert named(await client.receive()) == {"perod": "did you mean period"} or path != "/ws/realtime"


@pytest.mark.parametrize("by_code", [False, True])
async def test_unknown_field_of_a_position_is_named(rig: Rig, by_code: bool) -> None:
    position = {"seq": 1, "epoch": 1, "epoc": 2}
    async with rig.connect("/ws/realtime") as client:
        resume = {"600519.SH": position} if by_code else position
        ack = await client.subscribed(stocks=["600519.SH"], resume=resume)
        assert named(ack) == {"resume.epoc": "did you mean epoch"}


async def test_unknown_field_of_a_trade_position_is_named(rig: Rig) -> None:
    async with rig.connect(f"/ws/trade?api_key={quote(KEY)}") as client:
        await client.send({"resume": {"seq": 0, "epoc": 1}})
        assert await refused(client) == (
            "resume.epoc",
            "'resume.epoc' means nothing here and is ignored; did you mean epoch",
        )


async def test_client_without_acks_gets_one_error_and_is_served(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        for _ in range(2):
            await client.send({"stocks": ["600519.SH"], "fileds": [], "gear_num": 5})
        told = [await refused(client) for _ in range(2)]
        assert [field for field, _ in told] == ["fileds", "gear_num"]
        assert "did you mean fields" in told[0][1]
        assert "/ws/l2_thousand" in told[1][1]
        await rig.wanted(TICK)
        rig.source.publish(TICK, {"600519.SH": [RECORD]})
        assert await client.receive() == {"600519.SH": [RECORD]}


async def test_formula_names_unknown_fields_in_the_ack_or_once(rig: Rig) -> None:
    base = {"formula_name": "MA", "stock_code": "600519.SH"}
    async with rig.connect("/ws/formula") as client:
        assert named(await client.subscribed(**base, dividend="none")) == {"dividend": "did you mean dividend_type"}
        await client.send({"action": "list", "id": 2, "stocks": []})
        assert named(await client.receive()).keys() == {"stocks"}
    async with rig.connect("/ws/formula") as client:
        await client.send({"action": "subscribe", **base, "dividend": "none"})
        assert (await refused(client))[0] == "dividend"
        assert await client.receive() == {"action": "subscribed", "seq_id": 1}


async def test_pong_names_unknown_fields(rig: Rig) -> None:
    async with rig.connect("/ws/realtime?ctl=1") as client:
        assert (await client.receive())["type"] == "welcome"
        await client.send({"action": "ping", "id": 4, "tiem": 1})
        pong = await client.receive()
        assert (pong["type"], named(pong).keys()) == ("pong", {"tiem"})


async def test_download_names_unknown_fields_and_continues(rig: Rig) -> None:
    async with rig.connect("/ws/download_progress") as client:
        await client.send({"stocks": ["600519.SH"], "start": "20260101"})
        assert (await refused(client))[0] == "start"
        while (frame := await client.receive()) != {"status": "done"}:
            assert "finished" in frame


async def test_ack_names_fields_that_no_record_has(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as first, rig.connect("/ws/realtime") as second:
        ack = await first.subscribed(stocks=["600519.SH"], fields=["price", "lastPrice", "extra"])
        unknown = named(ack, "unknown_fields")
        assert unknown.keys() == {"price", "extra"}
        assert "lastPrice" in unknown["price"]
        # It is only a warning: a field that the source delivers is sent, and is known afterwards.
        rig.source.publish(TICK, {"600519.SH": [{**RECORD, "extra": 1}]})
        assert await first.receive() == {"600519.SH": [{"lastPrice": 2.5, "extra": 1}]}
        ack = await second.subscribed(stocks=["600519.SH"], fields=["price", "extra"])
        assert named(ack, "unknown_fields").keys() == {"price"}
        assert await second.receive() == {"600519.SH": [{"extra": 1}]}


async def test_error_names_fields_that_the_first_record_lacks(rig: Rig) -> None:
    async with rig.connect("/ws/realtime") as client:
        await client.send({"stocks": ["600519.SH"], "fields": ["price", "extra", "volume"]})
        await rig.wanted(TICK)
        rig.source.publish(TICK, {"600519.SH": []})
        assert await client.receive() == {"600519.SH": []}
        # Published only now: before the client has joined, it may receive the last value only.
        rig.source.publish(TICK, {"600519.SH": [{**RECORD, "extra": 1}]})
        got = [await client.receive() for _ in range(2)]
        assert {"600519.SH": [{"extra": 1}]} in got
        # `volume` is a documented field of ticks, although this tick has none.
        [error] = [frame for frame in got if "type" in frame]
        assert (error["code"], error["field"], "lastPrice" in error["error"]) == ("unknown_field", "price", True)


async def test_fields_without_a_description_are_checked_in_records(rig: Rig) -> None:
    topic = quote_topic("600519.SH", "snapshotindex")
    async with rig.connect("/ws/realtime") as client:
        ack = await client.subscribed(stocks=["600519.SH"], period="snapshotindex", fields=["量比", "volRatio"])
        assert "unknown_fields" not in ack
        rig.source.publish(topic, {"600519.SH": [{"time": 1, "量比": 1.5}]})
        got = [await client.receive() for _ in range(2)]
        assert {"600519.SH": [{"量比": 1.5}]} in got
        assert [frame["field"] for frame in got if "type" in frame] == ["volRatio"]


async def test_unknown_url_parameters_are_named(rig: Rig) -> None:
    async with rig.connect("/ws/realtime?ctl=1&perod=1m&ctl=yes") as client:
        assert named(await client.receive()).keys() == {"perod", "ctl"}
    async with rig.connect("/ws/realtime?apikey=secret") as client:
        field, text = await refused(client)
        assert (field, "did you mean api_key" in text, "secret" in text) == ("apikey", True, False)
    async with rig.connect(f"/ws/trade?ctl=1&afer=5&api_key={KEY.replace('&', '%26').replace('#', '%23')}") as client:
        pass


async def test_misspelled_key_parameter_is_named_without_its_value(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, logger="uvicorn.error")
    for query, hint in (
        ("apikey=hidden-one", "did you mean api_key"),
        ("hidden-one", "no API key was given"),
        ("api_key:hid", "no API key was given"),
    ):
        async with rig.connect(f"/ws/trade?{query}") as client:
            await client.send({"action": "nonsense"})
            code, reason = await client.closed()
            assert code == 1008
            assert hint in reason
            assert "hid" not in reason
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("gateway")]
    assert len(ours) >= 3
    assert not any("hid" in line for line in ours)
    # A server may log the whole query; parameters with a name like a key are hidden there too.
    assert "apikey=***" in caplog.text
    assert "apikey=hidden-one" not in caplog.text


@pytest.mark.parametrize(
    ("path", "action", "said"),
    [
        ("/ws/realtime", "subscibe", "did you mean subscribe"),
        ("/ws/realtime", "buy", "expected one of subscribe, ping, auth, unsubscribe, list"),
        ("/ws/formula", "buy", "expected one of subscribe, ping, auth, unsubscribe, list"),
        ("/ws/download_progress", "stop", "expected one of subscribe, ping, auth; close the socket"),
    ],
)
async def test_error_of_an_unknown_action_lists_the_known_ones(rig: Rig, path: str, action: str, said: str) -> None:
    async with rig.connect(path) as client:
        await client.send({"action": action})
        error = await client.receive()
        assert (error["code"], said in error["error"]) == ("unknown_action", True)


GUIDE = (ROOT / "tests" / "websocket-guide.md").read_text(encoding="utf-8")
# The frames of the guide, byte for byte but for the comments beside them.
FRAMES = [
    re.sub(r"^\s*//.*$", "", block, flags=re.MULTILINE)
    for block in re.findall(r"^```jsonc\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
]
REALTIME, WHOLE, DEPTH, DOWNLOAD, FORMULAS = FRAMES


@pytest.mark.parametrize(
    ("path", "frame", "topic"),
    [
        ("/ws/realtime", REALTIME, quote_topic("000001.SZ")),
        ("/ws/whole_quote", WHOLE, whole_topic("SZ")),
        ("/ws/l2_thousand", DEPTH, l2_topic("000001.SZ")),
    ],
)
async def test_requests_of_the_guide_are_answered_by_data_alone(rig: Rig, path: str, frame: str, topic: Topic) -> None:
    async with rig.connect(path) as client:
        await client.socket.send(frame)
        await rig.wanted(topic)
        rig.source.publish(topic, {"000001.SZ": [RECORD]})
        assert await client.receive() == {"000001.SZ": [RECORD]}


async def test_formula_and_download_of_the_guide_get_its_answers(rig: Rig) -> None:
    subscribe, unsubscribe = re.split(r"\n\s*\n(?=\{)", FORMULAS.strip())
    async with rig.connect("/ws/formula") as client:
        await client.socket.send(subscribe)
        assert await client.receive() == {"action": "subscribed", "seq_id": 1}
        await client.socket.send(unsubscribe.replace("123", "1"))
        assert await client.receive() == {"action": "unsubscribed", "seq_id": 1}
    async with rig.connect("/ws/download_progress") as client:
        await client.socket.send(DOWNLOAD)
        while (frame := await client.receive()) != {"status": "done"}:
            assert frame.keys() == {"finished", "total", "stockcode", "message"}
