"""The document of the sockets, as it is served."""

from __future__ import annotations

import httpx2

from gateway.contract import asyncapi


async def test_document_of_the_sockets_is_served_without_a_key(pages: httpx2.AsyncClient) -> None:
    response = await pages.get("/asyncapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.content == asyncapi.encoded()
    assert (await pages.get("/asyncapi.json", headers={"X-API-Key": "wrong"})).status_code == 401
