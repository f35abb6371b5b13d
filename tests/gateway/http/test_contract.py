"""The page `/docs` and the document of the sockets, as they are served."""

from __future__ import annotations

import re

import httpx2
import pytest

from gateway.contract import asyncapi
from gateway.contract.site import FILES, POLICY


async def test_document_of_the_sockets_is_served_without_a_key(pages: httpx2.AsyncClient) -> None:
    response = await pages.get("/asyncapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.content == asyncapi.encoded()
    assert (await pages.get("/asyncapi.json", headers={"X-API-Key": "wrong"})).status_code == 401


@pytest.mark.parametrize("path", FILES)
async def test_page_is_served_with_a_strict_policy(pages: httpx2.AsyncClient, path: str) -> None:
    for spelled in (path, f"{path}/"):
        response = await pages.get(spelled)
        assert response.status_code == 200
        assert response.headers["content-type"] == FILES[path][1]
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
    known = await pages.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


async def test_page_has_nothing_inline_and_asks_no_other_host(pages: httpx2.AsyncClient) -> None:
    html = (await pages.get("/docs")).text
    script = (await pages.get("/docs/docs.js")).text
    assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", html) == []
    for text in (html, script, (await pages.get("/docs/docs.css")).text):
        assert "http:" not in text
        assert "https:" not in text
    assert "innerHTML" not in script
    for reference in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert (await pages.get(reference)).status_code == 200
