"""The page `/asyncapi.json`: an AsyncAPI 3 document of the six sockets, made of the shapes of requests and frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from gateway.contract.frames import FRAMES
from gateway.endpoints.urls import ENDPOINTS
from qmt_bridge import __version__
from qmt_bridge.wire.messages import Bar, L2Order, L2OrderQueue, L2QuoteAux, L2Thousand, L2Transaction, Tick
from qmt_bridge.wire.requests import (
    Ack,
    DownloadStart,
    FormulaRequest,
    FormulaUnsubscribe,
    L2Request,
    QuoteRequest,
    TradeResume,
    WholeRequest,
)

PATH = "/asyncapi.json"
_JSON = "application/json"
_REF = "#/components/schemas/{name}"
_ID = {"anyOf": [{"type": "number"}, {"type": "string", "maxLength": 256}], "description": "Repeated in the answer."}
# The records that are known; a source may add fields.
_RECORDS = (Tick, Bar, L2Order, L2Transaction, L2QuoteAux, L2OrderQueue, L2Thousand)
# What each URL takes: the name of the action, and what has its fields.
_ASKED: Mapping[str, tuple[tuple[str, type[msgspec.Struct]], ...]] = {
    "/ws/realtime": (("subscribe", QuoteRequest), ("unsubscribe", QuoteRequest)),
    "/ws/whole_quote": (("subscribe", WholeRequest), ("unsubscribe", WholeRequest)),
    "/ws/l2_thousand": (("subscribe", L2Request), ("unsubscribe", L2Request)),
    "/ws/download_progress": (("subscribe", DownloadStart),),
    "/ws/formula": (("subscribe", FormulaRequest), ("unsubscribe", FormulaUnsubscribe)),
    "/ws/trade": (("subscribe", TradeResume),),
}
_ACTIONS: Mapping[str, str] = {
    "subscribe": "Begin to receive; an object without `action` means it too.",
    "unsubscribe": "End what was subscribed.",
    "list": "Ask what the socket has subscribed.",
    "ping": "Ask whether the gateway is there.",
    "auth": "Show the key, in the first frame.",
    "ack": "Tell which data frame was processed, with all before it.",
}
_LISTING = frozenset(("/ws/realtime", "/ws/whole_quote", "/ws/l2_thousand", "/ws/formula"))


class Plain(msgspec.Struct):
    """A request without fields of its own."""


class Auth(msgspec.Struct):
    """A first frame that shows the key."""

    key: str


@cache
def encoded() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """Return the document."""
    shapes = {name: shape for frames in FRAMES.values() for name, shape in frames}
    asked = {each.__name__: each for asked in _ASKED.values() for _, each in asked} | {"Ack": Ack, "Auth": Auth}
    told, schemas = _schemas((*shapes.values(), *_RECORDS))
    own, requests = _schemas((*asked.values(), Plain))
    schemas |= {name: schema for name, schema in requests.items() if name not in schemas}
    # A shape that is no class, such as the data of quotes, has no name of its own in the components.
    frames = dict(zip(shapes, told, strict=False))
    requested = {name: requests[schema["$ref"].rpartition("/")[2]] for name, schema in zip(asked, own, strict=False)}
    messages: dict[str, Any] = {
        name: {"name": name, "payload": schema, "summary": _summary(shapes[name])} for name, schema in frames.items()
    }
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for path, endpoint in ENDPOINTS.items():
        name = path.rpartition("/")[2]
        for action, schema in _requests_of(path, requested).items():
            messages[f"{name}.{action}"] = {"name": action, "payload": schema, "summary": _ACTIONS[action]}
        sent = [each for each, _ in FRAMES[path]]
        taken = [f"{name}.{action}" for action in _requests_of(path, requested)]
        channels[name] = {
            "address": path,
            "summary": (endpoint.__doc__ or "").partition(": ")[2],
            "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in (*sent, *taken)},
            "bindings": {"ws": {"method": "GET"}},
        }
        operations[f"{name}.send"] = _operation("send", name, sent, "What the gateway sends.")
        operations[f"{name}.receive"] = _operation("receive", name, taken, "What a client asks for.")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "QMT Bridge",
            "version": __version__,
            "license": {"name": "MIT"},
            "description": "The WebSockets of a gateway. The text is docs/websocket.md; HTTP is in /openapi.json.",
        },
        "defaultContentType": _JSON,
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def _operation(action: str, channel: str, messages: Iterable[str], summary: str) -> dict[str, Any]:
    named = [{"$ref": f"#/channels/{channel}/messages/{each}"} for each in messages]
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary, "messages": named}


def _requests_of(path: str, requested: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the schema of each action that a URL takes."""
    found = {action: _request(action, requested[shape.__name__]) for action, shape in _ASKED[path]}
    plain: dict[str, Any] = {"type": "object", "properties": {}}
    if path in _LISTING:
        found["list"] = _request("list", plain)
    found["ping"] = _request("ping", plain)
    found["auth"] = _request("auth", requested["Auth"])
    found["ack"] = _request("ack", requested["Ack"])
    return found


def _request(action: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one action with the fields of a shape; a request without an action subscribes."""
    own = {"action": {"const": action}, "id": _ID}
    required = [*shape.get("required", ()), *([] if action == "subscribe" else ["action"])]
    return {"type": "object", "properties": {**own, **shape["properties"]}, "required": required}


def _summary(shape: object) -> str:
    if isinstance(shape, type):
        return (shape.__doc__ or "").strip().partition("\n")[0]
    return next(each.description for each in shape.__metadata__)  # type: ignore[attr-defined, no-any-return]


def _schemas(shapes: Iterable[object]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    # A request takes any object as a code, to name those that are none; others are texts.
    return msgspec.json.schema_components(shapes, ref_template=_REF, schema_hook=lambda _: {"type": "string"})
