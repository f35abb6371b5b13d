"""The first server-sent events of a URL, for tests that look at nothing else of them."""

from __future__ import annotations

import json
from typing import Any

from tests.support.contract import documented
from tests.support.pages import Pages
from tests.support.rig import Rig


async def events(rig: Rig, url: str, count: int) -> list[Any]:
    """Return the data of the first `count` events; the ack is the first one."""
    base = f"http://127.0.0.1:{rig.servers[-1].port}"
    found: list[Any] = []
    async with (
        Pages(base) as pages,
        pages.stream("GET", url) as response,
    ):
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                found.append(documented(url, json.loads(line.removeprefix("data: ")), invented=True))
            if len(found) == count:
                break
    return found
