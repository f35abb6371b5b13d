"""The page `/docs` in a real Chromium: every message and URL of both documents, in both languages and themes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from gateway.contract import asyncapi
from gateway.http import openapi
from tests.support.browser import Visit

pytestmark = pytest.mark.timeout(180)

READY = "() => document.querySelectorAll('.item').length > 100 && !document.querySelector('#status').textContent"
# The fields of each item, by its id.
SHOWN = """() => Object.fromEntries([...document.querySelectorAll('.item')].map(item => [item.id,
    [...item.querySelectorAll('td:first-child')].map(cell => cell.textContent)]))"""


def test_every_message_url_and_schema_is_shown_with_its_fields(visit: Visit) -> None:
    visit.open(path="/docs")
    visit.until(READY)
    shown = visit.page.evaluate(SHOWN)
    sockets, urls = asyncapi.document(), openapi.document()
    for name, channel in sockets["channels"].items():
        for message in channel["messages"]:
            payload = sockets["components"]["messages"][message]["payload"]
            if "$ref" in payload:
                payload = sockets["components"]["schemas"][payload["$ref"].rpartition("/")[2]]
            assert shown[f"{name}-{message}"] == [*payload.get("properties", {})]
    for of, document in (("socket", sockets), ("http", urls)):
        for name, schema in document["components"]["schemas"].items():
            assert shown[f"{of}-{name}"] == [*schema.get("properties", {})]
    for path, methods in urls["paths"].items():
        for method, operation in methods.items():
            if "101" in operation["responses"]:
                continue
            cells = [each["name"] for each in operation["parameters"]] + [*operation["responses"]]
            assert shown[f"{method}-{path}"] == cells
    # Each link of a type leads to a schema of the page.
    dead = """() => [...document.querySelectorAll('#sections a')].map(link => link.hash.slice(1))
        .filter(id => !document.getElementById(id))"""
    assert visit.page.evaluate(dead) == []
    assert visit.page.locator(".item a").count() > 50


def test_filter_leaves_what_has_the_word(visit: Visit) -> None:
    visit.open(path="/docs")
    visit.until(READY)
    visit.page.fill("#filter", "resume_EXPIRED")
    left = [item.inner_text() for item in visit.page.locator(".item:visible").all()]
    assert 0 < len(left) < 30
    assert all("resume_expired" in text for text in left)
    visit.page.fill("#filter", "no such word")
    assert visit.page.locator(".chapter:visible").count() == 0


def test_page_at_the_root_links_to_the_documents(visit: Visit) -> None:
    visit.open("consoles")
    visit.page.click(".view-head a")
    visit.until(READY)
    assert visit.page.url == f"{visit.base}/docs"
    visit.page.click("a.brand")
    visit.until("() => document.querySelector('.verdict')")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_documents_fit_a_phone_in_chinese_and_pass_axe(visits: Callable[..., Visit], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed")
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    visit = visits(locale="zh-CN", color_scheme=scheme, **phone)
    visit.open(path="/docs")
    visit.until(READY)
    assert visit.page.evaluate("() => document.documentElement.dataset.theme") == scheme
    assert visit.text("h1 span") == "接口文档"
    assert "订阅的确认。" in visit.text("#realtime-Subscribed")
    assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    # All items are made alike, and axe would look at thousands of cells for a minute.
    visit.page.fill("#filter", "AccountState")
    visit.page.evaluate(
        "() => document.querySelectorAll('.item[hidden], .chapter[hidden]').forEach(each => each.remove())"
    )
    found = axe.Axe().run(visit.page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert serious == [], json.dumps(serious, indent=1)[:3000]
    visit.page.fill("#filter", "")
    visit.page.click("#language")
    assert visit.text("h1 span") == "Every frame and URL"
    assert "The ack of a subscription." in visit.text("#realtime-Subscribed")
    # What was chosen here holds on the other page, too.
    assert visit.page.evaluate("() => localStorage.getItem('qmt-bridge.language')") == '"en"'
