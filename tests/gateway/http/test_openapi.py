"""The page `/openapi.json`: every route, every parameter, and references that exist."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import msgspec
import pytest

from gateway.admin.clients import ClientsQuery
from gateway.admin.topics import SubscriptionsQuery
from gateway.app import create_app
from gateway.http.administration import EndQuery, KickQuery, WhyQuery
from gateway.http.events import EVENTS
from gateway.http.last import LastQuery
from gateway.http.openapi import document, encoded
from gateway.http.ticks import TicksQuery
from qmt_bridge.config import Config

SHAPES = {
    "/api/last": LastQuery,
    "/api/ticks/{code}": TicksQuery,
    "/api/clients": ClientsQuery,
    "/api/clients/{id}": KickQuery,
    "/api/subscriptions": SubscriptionsQuery,
    "/api/subscriptions/{topic}": EndQuery,
    "/api/why": WhyQuery,
    **{path: shape for path, (_, shape) in EVENTS.items()},
}


def test_every_route_of_the_app_is_described(config: Config) -> None:
    paths = [route.path for route in create_app(config).routes]  # type: ignore[attr-defined]
    # A topic has slashes, which only the router has to know.
    routes = {path.removesuffix("/").replace(":path}", "}") for path in paths}
    # The page is no interface of a program, and has as many files as it likes.
    assert document()["paths"].keys() == routes - {"", "/assets/{path}"}


@pytest.mark.parametrize("path", SHAPES)
def test_parameters_are_the_fields_that_the_page_reads(path: str) -> None:
    [operation] = document()["paths"][path].values()
    described = operation["parameters"]
    fields = msgspec.structs.fields(SHAPES[path])
    query = {each["name"]: each for each in described if each["in"] == "query"}
    assert query.keys() == {field.encode_name for field in fields}
    assert {name for name, each in query.items() if each.get("required")} == {
        field.encode_name for field in fields if field.required
    }
    assert all(len(each["description"].split()) >= 2 for each in query.values())
    assert {each["name"] for each in described if each["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path))


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_exists_and_every_schema_is_used_or_told() -> None:
    found = document()
    schemas = {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    assert references(found) <= schemas
    assert {"Last", "End", "Problem", "Tick", "Bar"} <= found["components"]["schemas"].keys()


async def test_document_is_served_to_whom_shows_no_wrong_key(pages: httpx2.AsyncClient) -> None:
    response = await pages.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.content == encoded()
    assert (await pages.get("/openapi.json", headers={"X-API-Key": "wrong"})).status_code == 401


async def test_unchanged_document_is_not_sent_again(pages: httpx2.AsyncClient) -> None:
    packed = await pages.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == encoded()
    assert packed.num_bytes_downloaded < len(encoded()) / 3
    tag = packed.headers["etag"]
    again = await pages.get("/openapi.json", headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert again.headers["cache-control"] == "private, no-cache"
    assert (await pages.get("/openapi.json", headers={"If-None-Match": '"other"'})).status_code == 200
