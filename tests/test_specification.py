"""docs/websocket.md and docs/wire.md: the examples have the fields that a running gateway and feeder send."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from websockets.sync.client import ClientConnection, connect

from tests.support.paths import ROOT
from tests.support.up import Up, running
from tests.support.waiting import SLOWNESS

DOCS = ROOT / "docs"
SECONDS = 40.0 * SLOWNESS
BLOCK = re.compile(r"^```jsonc?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples(document: str) -> list[dict[str, Any]]:
    """Return the JSON objects of a document, in blocks and in backquotes within a line."""
    text = (DOCS / document).read_text(encoding="utf-8")
    found = []
    decoder = json.JSONDecoder()
    for block in BLOCK.findall(text):
        plain = re.sub(r"(?m)(^|\s)// .*$", "", block)
        start = 0
        while (start := plain.find("{", start)) >= 0:
            value, start = decoder.raw_decode(plain, start)
            found.append(value)
    for inline in re.findall(r"`(\{.*?\})`", text):
        try:
            found.append(json.loads(inline))
        except json.JSONDecodeError:
            # It shows units instead of values.
            continue
    return found


WEBSOCKET = examples("websocket.md")


def documented(**fields: object) -> set[str]:
    """Return the fields of all examples that have these values."""
    fitting = [each for each in WEBSOCKET if all(each.get(name) == value for name, value in fields.items())]
    assert fitting, fields
    return {name for each in fitting for name in each}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("specification")
    with running(folder, "--source=sim", "--api-key=specification-key", "--sim-order-interval=0.2") as up:
        yield up


def talk(up: Up, path: str, *requests: object, until: str) -> dict[str, dict[str, Any]]:
    """Send requests; return the newest frame of each type or action, up to the first one of the type `until`."""
    frames: dict[str, dict[str, Any]] = {}
    with connect(up.url(path), proxy=None, max_size=None, close_timeout=1) as socket:
        for request in requests:
            socket.send(json.dumps(request))
        deadline = time.monotonic() + SECONDS
        while until not in frames:
            assert time.monotonic() < deadline, frames.keys()
            frame = receive(socket)
            frames[str(frame.get("type") or frame.get("action") or frame.get("status") or "data-frame")] = frame
    return frames


def receive(socket: ClientConnection) -> dict[str, Any]:
    frame = json.loads(socket.recv(SECONDS))
    assert isinstance(frame, dict)
    return frame


def test_welcome_and_ack_have_the_documented_fields(up):
    request = {"stocks": ["000001.SZ"], "period": "tick", "id": 1, "fileds": 1, "fields": ["lastPrise"]}
    frames = talk(up, "/ws/realtime?ctl=1", {**request, "stocks": ["000001.SZ", "999999"]}, until="subscribed")
    assert frames["welcome"].keys() <= documented(type="welcome")
    assert documented(type="welcome") - {"ignored"} <= frames["welcome"].keys()
    assert frames["subscribed"].keys() <= documented(type="subscribed") | {"pending"}
    assert {"rejected", "ignored", "unknown_fields"} <= frames["subscribed"].keys()
    assert frames["subscribed"]["rejected"][0].keys() == {"code", "error", "reason"}


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        pytest.param({"action": "list", "id": 3}, "subscriptions", id="list"),
        pytest.param({"action": "ping", "id": 4}, "pong", id="ping"),
        pytest.param({"action": "auth", "id": 5, "key": "k"}, "authenticated", id="auth"),
        pytest.param({"action": "unsubscribe", "id": 2, "stocks": ["000001.SZ"]}, "unsubscribed", id="unsubscribe"),
    ],
)
def test_reply_has_the_documented_fields(up, request_, answer):
    subscribe = {"action": "subscribe", "id": 1, "stocks": ["000001.SZ"]}
    frames = talk(up, "/ws/realtime", subscribe, request_, until=answer)
    assert frames[answer].keys() <= documented(type=answer)
    assert {"type", "id"} <= frames[answer].keys()


def test_stamped_frame_has_the_documented_fields(up):
    frames = talk(up, "/ws/realtime", {"id": 1, "stocks": ["000001.SZ"], "seq": True}, until="data")
    assert frames["data"].keys() == documented(type="data")


def test_snapshot_end_has_the_documented_fields(up):
    frames = talk(up, "/ws/whole_quote", {"id": 1, "codes": ["BJ"], "fields": ["lastPrice"]}, until="snapshot_end")
    assert frames["snapshot_end"].keys() == documented(type="snapshot_end")


def test_download_sends_the_documented_frames(up):
    frames = talk(up, "/ws/download_progress", {"stocks": ["000001.SZ"], "period": "1d"}, until="done")
    progress = next(each for each in WEBSOCKET if "finished" in each)
    assert frames["data-frame"].keys() == progress.keys()
    assert frames["done"] == {"status": "done"}


def test_formula_sends_the_documented_frames(up):
    request = next(each for each in WEBSOCKET if each.get("formula_name") and each.get("action") == "subscribe")
    frames = talk(up, "/ws/formula", request, until="formula_update")
    assert frames["subscribed"] == {"action": "subscribed", "seq_id": 1}
    example = next(each for each in WEBSOCKET if each.get("type") == "formula_update")
    assert frames["formula_update"].keys() == example.keys()
    assert frames["formula_update"]["data"].keys() == example["data"].keys()


def test_trade_frames_have_the_documented_fields(up):
    frames = talk(up, "/ws/trade?api_key=specification-key&ctl=1&after=0", until="order")
    assert frames["order"].keys() == documented(type="order")
    assert frames["subscribed"].keys() <= documented(type="subscribed")


def test_expired_position_has_the_documented_fields(up):
    frames = talk(up, "/ws/trade?api_key=specification-key", {"resume": {"seq": 10**9}, "id": 3}, until="error")
    assert frames["error"].keys() == documented(type="error", code="resume_expired")


def test_unknown_code_has_the_documented_fields(up):
    frames = talk(up, "/ws/realtime", {"stocks": ["600519"]}, until="error")
    assert frames["error"].keys() <= documented(type="error", code="unknown_symbol")


def test_heartbeat_and_reply_have_the_documented_fields(up):
    wire = examples("wire.md")
    _, market, ask, *_ = up.ports
    with zmq.Context() as context, context.socket(zmq.SUB) as news, context.socket(zmq.DEALER) as questions:
        news.connect(f"tcp://127.0.0.1:{market}")
        news.subscribe("status/feeder/")
        questions.connect(f"tcp://127.0.0.1:{ask}")
        question = next(each for each in wire if each.get("ask") == "catch_up")
        questions.send(msgspec.json.encode(question))
        assert news.poll(SECONDS * 1000)
        heartbeat = msgspec.json.decode(news.recv_multipart()[-1])
        assert questions.poll(SECONDS * 1000)
        reply = msgspec.json.decode(questions.recv())
    example = next(each for each in wire if "simulated" in each)
    assert heartbeat.keys() == example.keys()
    assert heartbeat["accounts"][0].keys() == example["accounts"][0].keys()
    # `reply` distinguishes two kinds of answers.
    assert reply.keys() | {"reply"} == next(each for each in wire if each.get("id") == 7 and "ask" not in each).keys()
