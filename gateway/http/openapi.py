"""The page `/openapi.json`: an OpenAPI 3.1 document of every URL, made of the shapes that the code reads and writes."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from gateway.admin.clients import Clients, ClientsQuery
from gateway.admin.state import State
from gateway.admin.topics import Ended, Subscriptions, SubscriptionsQuery
from gateway.admin.verdict import Why
from gateway.endpoints.urls import ENDPOINTS
from gateway.http.administration import Capabilities, EndQuery, Kicked, KickQuery, NoQuery, WhyQuery
from gateway.http.admission import Host, identify
from gateway.http.events import EVENTS
from gateway.http.last import Last, LastQuery
from gateway.http.problems import Problem
from gateway.http.request_headers import known_tags, takes_gzip
from gateway.http.ticks import End, TicksQuery
from gateway.keys.entry import headers_of
from qmt_bridge import __version__
from qmt_bridge.wire.messages import (
    Bar,
    FormulaValue,
    L2Order,
    L2OrderQueue,
    L2QuoteAux,
    L2Thousand,
    L2Transaction,
    Tick,
)

PATH = "/openapi.json"
_RECORDS = (Tick, Bar, L2Order, L2Transaction, L2QuoteAux, L2OrderQueue, L2Thousand)
_REF = "#/components/schemas/{name}"
_JSON = "application/json"

# What each parameter is.
TOLD: Mapping[str, str] = {
    "codes": "Codes such as 600519.SH, separated by commas; /sse/whole_quote takes markets such as SH too.",
    "stocks": "Codes such as 600519.SH, separated by commas.",
    "period": "tick, a bar such as 1m, or a level-2 period such as l2quote (docs/websocket.md).",
    "gear_num": "Levels of depth on each side; 0 is every one.",
    "fields": "Only these fields of each record, separated by commas.",
    "format": "The form of the answer.",
    "start": "The moment of the first record: a time of day in Shanghai, an ISO 8601 time, or ms since 1970.",
    "end": "The moment before which the records end, as start.",
    "speed": "With start: what is stored at so many times the pace of its own times, 0.01 to 1000; 0 is as it is read.",
    "snapshot": "Whether the last value comes first.",
    "max_rate_ms": "At most one frame of a code in so many milliseconds.",
    "mode": "latest conflates for a slow client; all never does, and drops it.",
    "complete": "Whether nothing is left out: a loss is read from the store, or told as a gap; as mode all.",
    "seq": "Whether data has its position and times, as on a WebSocket.",
    "resume": "A position, or one by code; Last-Event-ID takes its place.",
    "formula_name": "The name of the formula at the terminal.",
    "stock_code": "One code.",
    "count": "Bars to calculate over; -1 is all.",
    "dividend_type": "none, front, back, front_ratio or back_ratio.",
    "params": "The parameters of the formula, an object.",
    "limit": "Entries of one answer.",
    "after": "Go on behind this entry: `next` of the answer before.",
    "key": "Only clients with a key of this name.",
    "address": "Only clients of this address.",
    "endpoint": "Only clients of this URL.",
    "prefix": "Only topics that begin so, such as l2/.",
    "client": "Only what concerns the client with this id.",
    "reason": "What the client is told.",
    "code": "A code such as 600519.SH, a market such as SH, or a topic.",
    "seconds": "For how long the workers look.",
}
# The pages of administration: the summary, the parameters, and the answer of each.
_ADMINISTRATION: Mapping[str, tuple[str, type[msgspec.Struct], type[msgspec.Struct]]] = {
    "/api/state": ("What the service does now; in full where /metrics is shown too.", NoQuery, State),
    "/api/capabilities": ("What source, SDK and accounts can serve, asked now.", NoQuery, Capabilities),
    "/api/clients": ("The connected clients of all workers; with the scope admin.", ClientsQuery, Clients),
    "/api/subscriptions": (
        "What is subscribed at the terminal, and by whom; with the scope admin.",
        SubscriptionsQuery,
        Subscriptions,
    ),
    "/api/why": ("Where the data of a code is late or lost now; with the scope admin.", WhyQuery, Why),
}
_ENDED: Mapping[str, tuple[str, type[msgspec.Struct], type[msgspec.Struct]]] = {
    "/api/clients/{id}": ("Close the connection of a client; with the scope admin.", KickQuery, Kicked),
    "/api/subscriptions/{topic}": ("End the subscription of a topic; with the scope admin.", EndQuery, Ended),
}
_EXAMPLES = {"code": "600519.SH", "id": "a3f09c1d-17", "topic": "quote/600519.SH/tick/"}
_STATUS = {
    "/healthz": "Whether the worker runs.",
    "/readyz": "Whether the feeder is connected and writes its journal (docs/deploy.md).",
    "/metrics": "The numbers of all workers for Prometheus.",
}


async def openapi(host: Host, scope: Scope) -> Response:
    """Return the document."""
    identify(host.entry, scope, needs_key=False)
    given = headers_of(scope)
    headers = {"ETag": _tag(), "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding"}
    if _tag() in known_tags(given):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if takes_gzip(given):
        return Response(_compressed(), headers={**headers, "Content-Encoding": "gzip"}, media_type=_JSON)
    return Response(encoded(), headers=headers, media_type=_JSON)


@cache
def encoded() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(document())


@cache
def _compressed() -> bytes:
    return gzip.compress(encoded(), mtime=0)


@cache
def _tag() -> str:
    return f'W/"{hashlib.sha256(encoded()).hexdigest()[:32]}"'


def document() -> dict[str, Any]:
    """Return the document."""
    administered = {**_ADMINISTRATION, **_ENDED}
    asked = tuple(shape for _, shape, _ in administered.values())
    shapes = tuple(dict.fromkeys((LastQuery, TicksQuery, *(shape for _, shape in EVENTS.values()), *asked)))
    read, queries = _schemas(shapes)
    answers_of = tuple(shape for _, _, shape in administered.values())
    _, written = _schemas((Last, End, Problem, FormulaValue, *_RECORDS, *answers_of))
    of = {shape: queries[each["$ref"].rpartition("/")[2]] for shape, each in zip(shapes, read, strict=True)}
    records = [{"$ref": _REF.format(name=record.__name__)} for record in _RECORDS]
    written["Last"]["properties"]["records"]["additionalProperties"] = {"anyOf": [*records, {"type": "null"}]}
    paths: dict[str, Any] = {
        "/api/last": _get(
            "The newest record of each code.",
            of[LastQuery],
            {_JSON: {"$ref": _REF.format(name="Last")}, "text/csv": _TEXT},
        ),
        "/api/ticks/{code}": _get(
            "What the store of the day has of one instrument, a record a line; the last line is an End.",
            of[TicksQuery],
            {
                "application/x-ndjson": {"anyOf": [*records, {"$ref": _REF.format(name="End")}]},
                "text/csv": _TEXT,
                "application/vnd.apache.parquet": {"type": "string", "format": "binary"},
            },
            path="code",
            more=_UNCHANGED,
        ),
    }
    for path, (endpoint, shape) in EVENTS.items():
        told = f"{(endpoint.__doc__ or '').partition(': ')[2].rstrip('.')}, as server-sent events."
        more = {"204": {"description": "All up to `end` was sent: connect no more."}}
        paths[path] = _get(told, of[shape], {"text/event-stream": _TEXT}, resumes=True, more=more)
    for path, (told, query, answer) in _ADMINISTRATION.items():
        paths[path] = _get(told, of[query], {_JSON: {"$ref": _REF.format(name=answer.__name__)}})
    for path, (told, query, answer) in _ENDED.items():
        named = path.partition("{")[2].rstrip("}")
        content = {_JSON: {"$ref": _REF.format(name=answer.__name__)}}
        paths[path] = {"delete": _get(told, of[query], content, path=named)["get"]}
    for path, told in _STATUS.items():
        paths[path] = _get(told, {}, {"text/plain" if path == "/metrics" else _JSON: {}})
    paths[PATH] = _get("This document.", {}, {_JSON: {"type": "object"}}, more=_UNCHANGED)
    paths["/asyncapi.json"] = _get("The WebSockets as an AsyncAPI document.", {}, {_JSON: {"type": "object"}})
    slash = {"307": {"description": "With a slash at its end the URL leads to the one without."}}
    paths["/docs"] = _get("Both documents as a page.", {}, {"text/html": _TEXT}, more=slash)
    for path, endpoint in ENDPOINTS.items():
        told = f"A WebSocket (docs/websocket.md): {(endpoint.__doc__ or '').partition(': ')[2]}"
        answers = {
            "101": {"description": "The socket is open."},
            "426": {"description": "The request is no WebSocket."},
        }
        paths[path] = {"get": {"summary": told, "responses": answers}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "QMT Bridge", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "security": [{}, {"bearer": []}, {"header": []}, {"parameter": []}],
        "paths": paths,
        "components": {
            "schemas": written,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "parameter": {"type": "apiKey", "in": "query", "name": "api_key"},
            },
        },
    }


_TEXT = {"type": "string"}
_UNCHANGED = {"304": {"description": "The answer is that of If-None-Match."}}


def _schemas(shapes: Iterable[object]) -> tuple[Iterable[dict[str, Any]], dict[str, Any]]:
    # A request takes any object as a code, to name those that are none; others are texts.
    return msgspec.json.schema_components(shapes, ref_template=_REF, schema_hook=lambda _: _TEXT)


def _get(
    summary: str,
    query: Mapping[str, Any],
    content: Mapping[str, Any],
    *,
    path: str = "",
    resumes: bool = False,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a path that takes GET."""
    parameters = [*_parameters(query)]
    if path:
        schema = {"type": "string", "examples": [_EXAMPLES[path]]}
        parameters.append({"name": path, "in": "path", "required": True, "schema": schema})
    if resumes:
        told = "The id of the last event that the client has; what follows it is sent."
        parameters.append({"name": "Last-Event-ID", "in": "header", "description": told, "schema": _TEXT})
    problem = {"content": {_JSON: {"schema": {"$ref": _REF.format(name="Problem")}}}}
    answers = {
        "200": {"description": "OK", "content": {kind: {"schema": schema} for kind, schema in content.items()}},
        **(more or {}),
        # The host and the page are refused before anything is known of the URL.
        "403": {
            "description": "The page of another origin, or a key without the scope.",
            "content": {**problem["content"], "text/plain": {"schema": _TEXT}},
        },
        "421": {"description": "Host is none of this gateway's.", "content": {"text/plain": {"schema": _TEXT}}},
        "default": {"description": "The request is not served.", **problem},
    }
    return {"get": {"summary": summary, "parameters": parameters, "responses": answers}}


def _parameters(query: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for name, schema in query.get("properties", {}).items():
        parameter = {"name": name, "in": "query", "description": TOLD[name]}
        if name in query.get("required", ()):
            parameter["required"] = True
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": False, "schema": schema}
        elif schema.get("type") == "object":
            parameter["content"] = {_JSON: {"schema": schema}}
        else:
            parameter["schema"] = schema
        yield parameter
