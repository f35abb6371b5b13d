"""The shapes of the gateway's frames: what fits them, and that a frame without documents is found."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import jsonschema
import msgspec
import pytest

from gateway.contract import asyncapi
from gateway.contract.frames import FRAMES, UndocumentedFrame, name_of
from gateway.endpoints.urls import ENDPOINTS
from tests.support.contract import documented
from tests.support.paths import ROOT

ERROR = {"type": "error", "id": 1, "code": "bad_request", "error": "no", "retry": False}


@pytest.mark.parametrize(
    ("path", "frame", "name"),
    [
        ("/ws/realtime", {"600519.SH": [{"time": 1, "unknown": None}]}, "Quotes"),
        ("/ws/whole_quote", {"600519.SH": {"time": 1}, "600000.SH": {}}, "Market"),
        ("/ws/realtime", {"type": "heartbeat", "time": 1}, "Heartbeat"),
        ("/ws/formula", {"action": "subscribed", "seq_id": 1}, "FormulaSubscribed"),
        ("/ws/trade", {"type": "order", "seq": 1, "data": {}}, "TradeEvent"),
        ("/ws/trade", {"type": "subscribed", "seq": 1, "epoch": 2**61}, "TradeSubscribed"),
        ("/ws/download_progress", {"status": "done"}, "DownloadDone"),
        ("/ws/l2_thousand", ERROR, "Error"),
    ],
)
def test_frame_is_found_by_its_shape(path: str, frame: object, name: str) -> None:
    assert name_of(path, frame) == name


@pytest.mark.parametrize(
    ("path", "frame"),
    [
        ("/ws/realtime", {"600519.SH": {"time": 1}}),
        ("/ws/realtime", {"600519": [{"time": 1}]}),
        ("/ws/realtime", {"type": "order", "seq": 1, "data": {}}),
        ("/ws/realtime", {"type": "news"}),
        ("/ws/realtime", {"type": "heartbeat", "time": 1, "more": 1}),
        ("/ws/realtime", {"type": "heartbeat"}),
        ("/ws/realtime", {**ERROR, "code": "no_such_code"}),
        ("/ws/trade", {"type": "order", "seq": 1, "data": {}, "journaled": True}),
        ("/ws/whole_quote", [1]),
    ],
)
def test_frame_without_documents_fails_a_test(path: str, frame: object) -> None:
    with pytest.raises(UndocumentedFrame, match=re.escape(path)):
        documented(f"{path}/?ctl=1", frame)


def test_body_that_a_test_invents_is_passed_on_and_nothing_else() -> None:
    stamp = {"type": "data", "epoch": 1, "seq": 1, "time": None, "published": None}
    for path, frame in (
        ("/ws/realtime", {"n": 1}),
        ("/ws/realtime", {**stamp, "data": {"n": 1}}),
        ("/ws/formula", {"type": "formula_update", "seq_id": 1, "n": 1}),
    ):
        assert documented(path, frame, invented=True) == frame
    with pytest.raises(UndocumentedFrame):
        documented("/ws/realtime", {**stamp, "more": 1, "data": {"n": 1}}, invented=True)
    with pytest.raises(UndocumentedFrame):
        documented("/ws/realtime", {"type": "news"}, invented=True)
    with pytest.raises(UndocumentedFrame):
        documented("/ws/formula", {"action": "news"}, invented=True)


def test_frames_of_other_urls_are_no_concern_of_the_check() -> None:
    assert documented("/elsewhere?a=b", {"type": "news"}) == {"type": "news"}


def test_each_url_has_its_frames() -> None:
    assert FRAMES.keys() == ENDPOINTS.keys()


def payload(name: str) -> dict[str, Any]:
    """Return the schema of a message of the document, with all that it refers to."""
    found = asyncapi.document()
    schema = copy.deepcopy(found["components"]["messages"][name]["payload"])
    return {**schema, "components": found["components"]}


# As an outsider validates them, who has the document alone.
EXAMPLES = re.findall(r"^\{.*\}$", (ROOT / "docs" / "websocket.md").read_text(encoding="utf-8"), re.MULTILINE)
SENT = [
    json.loads(each)
    for each in EXAMPLES
    if each.startswith(
        ('{"type": "welcome"', '{"type": "feed"', '{"type": "s', '{"type": "h', '{"type": "c', '{"type": "g')
    )
]


def url_of(frame: dict[str, Any]) -> str:
    return (
        "/ws/whole_quote" if "added" in frame or frame["type"] in ("snapshot_end", "subscriptions") else "/ws/realtime"
    )


def test_documented_examples_fit_the_schemas_of_the_document() -> None:
    assert len(SENT) >= 8
    for frame in SENT:
        path = "/ws/trade" if frame["type"] == "subscribed" and "added" not in frame else url_of(frame)
        name = name_of(path, frame)
        jsonschema.validate(frame, payload(name))


@pytest.mark.parametrize("name", sorted({name for frames in FRAMES.values() for name, _ in frames}))
def test_schema_of_each_frame_is_valid_and_says_what_it_is(name: str) -> None:
    schema = payload(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert len(asyncapi.document()["components"]["messages"][name]["summary"].split()) >= 3


@pytest.mark.parametrize("frame", [{"type": "heartbeat", "time": 1, "more": 1}, {"type": "heartbeat"}])
def test_schema_refuses_what_the_shape_refuses(frame: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(frame, payload("Heartbeat"))


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_of_the_document_exists() -> None:
    found = asyncapi.document()
    for reference in references(found):
        place: Any = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part.replace("~1", "/")]
    assert len(references(found)) > 50


def test_document_has_each_socket_with_both_directions() -> None:
    found = asyncapi.document()
    assert found["asyncapi"] == "3.0.0"
    assert {channel["address"] for channel in found["channels"].values()} == ENDPOINTS.keys()
    for name, channel in found["channels"].items():
        assert channel["summary"]
        for action in ("send", "receive"):
            operation = found["operations"][f"{name}.{action}"]
            assert operation["action"] == action
            assert operation["messages"]


def test_encoded_document_is_the_document() -> None:
    assert msgspec.json.decode(asyncapi.encoded()) == json.loads(json.dumps(asyncapi.document()))
