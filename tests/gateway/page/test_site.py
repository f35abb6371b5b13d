"""The files of the pages over HTTP: what is served, to whom, and with which headers (gateway/page)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.contract import asyncapi
from gateway.http import openapi
from gateway.page.asset import FOLDER, KINDS, PAGES, assets
from gateway.page.site import POLICY
from qmt_bridge.config import Config
from tests.support.pages import Pages
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import KEY, Rig, running_rig

FILES = sorted(assets())


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Return a gateway that asks for a key, which the page itself does not need."""
    folder = tmp_path_factory.mktemp("page")
    with running_rig(Config(**ANY_ADDRESSES, api_key=KEY, data_dir=str(folder), require_key=True)) as rig:
        rig.serve()
        yield rig


@pytest.fixture
async def pages(rig: Rig) -> AsyncIterator[httpx2.AsyncClient]:
    address = f"http://127.0.0.1:{rig.servers[0].port}"
    async with Pages(address) as client:
        yield client


def url_of(name: str) -> str:
    return next((url for url, page in PAGES.items() if page == name), f"/{name}")


@pytest.mark.parametrize("name", FILES)
async def test_file_is_served_without_a_key(pages: httpx2.AsyncClient, name: str) -> None:
    response = await pages.get(url_of(name))
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"] == KINDS[Path(name).suffix]
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers.get_list("cache-control") == ["no-cache"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


async def test_known_file_is_not_sent_again(pages: httpx2.AsyncClient) -> None:
    tag = (await pages.get("/")).headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        response = await pages.get("/", headers={"If-None-Match": known})
        assert (response.status_code, response.content) == (304, b""), known
        assert response.headers["etag"] == tag
    assert (await pages.get("/", headers={"If-None-Match": '"other"'})).status_code == 200


async def test_head_has_the_headers_alone(pages: httpx2.AsyncClient) -> None:
    response = await pages.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(assets()["index.html"].body)


@pytest.mark.parametrize(
    "path",
    [
        *("/assets/", "/assets/none.js", "/assets/../site.py", "/assets/%2e%2e/site.py", "/assets/..%2fsite.py"),
        *("/assets/uplot/LICENSE", "/assets/%00", "/index.html", "/docs.html"),
    ],
)
async def test_nothing_else_of_the_folder_is_served(pages: httpx2.AsyncClient, path: str) -> None:
    response = await pages.get(path)
    assert response.status_code == 404, response.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_page_takes_get_alone(pages: httpx2.AsyncClient, method: str) -> None:
    assert (await pages.request(method, "/")).status_code == 405


async def test_host_and_origin_are_checked_as_everywhere(pages: httpx2.AsyncClient) -> None:
    assert (await pages.get("/", headers={"Host": "evil.example"})).status_code == 421
    assert (await pages.get("/", headers={"Origin": "https://evil.example"})).status_code == 403
    framed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert (await pages.get("/", headers=framed)).status_code == 403


async def test_other_answers_keep_the_policy_that_allows_nothing(pages: httpx2.AsyncClient) -> None:
    response = await pages.get("/healthz")
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_policy_allows_nothing_inline_and_no_other_host() -> None:
    assert "unsafe" not in POLICY
    sources = {word for part in POLICY.split("; ") for word in part.split()[1:]}
    assert sources == {"'none'", "'self'", "'script'"}


@pytest.mark.parametrize("name", [name for name in FILES if "uplot" not in name])
def test_file_names_no_other_host_and_nothing_inline(name: str) -> None:
    text = assets()[name].body.decode()
    assert set(re.findall(r"https?://[^\s\"'`]*", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if name.endswith((".html", ".svg")):
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", text)


def imported(name: str) -> Iterator[str]:
    """Yield the paths of the modules that a script imports."""
    for path in re.findall(r"""(?:from |import\()"(\.[^"]+)\"""", assets()[name].body.decode()):
        yield (FOLDER / name).parent.joinpath(path).resolve().relative_to(FOLDER).as_posix()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js") and "uplot" not in name])
def test_imports_of_scripts_are_there(name: str) -> None:
    assert set(imported(name)) <= assets().keys()


def test_files_that_the_pages_name_are_there() -> None:
    html = "".join(assets()[name].body.decode() for name in PAGES.values())
    named = set(re.findall(r'(?:href|src)="(assets/[^"]+)"', html))
    assert named <= assets().keys()
    assert {name for name in FILES if name.endswith(".css")} <= named


async def test_slash_behind_docs_leads_to_the_page(pages: httpx2.AsyncClient) -> None:
    response = await pages.get("/docs/")
    assert (response.status_code, response.headers["location"]) == (307, "../docs")
    assert (await pages.get("/docs/", follow_redirects=True)).content == assets()["docs.html"].body


def texts(language: str) -> dict[str, str]:
    found = re.findall(
        r'^ {4}"?([\w.]+)"?: "(.*)",$', assets()[f"assets/texts/{language}.js"].body.decode(), re.MULTILINE
    )
    return dict(found)


def test_both_languages_have_the_same_texts_and_values() -> None:
    english, chinese = texts("en"), texts("zh")
    assert english.keys() == chinese.keys()
    assert len(english) > 200
    for name, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", chinese[name])), name


def told() -> Iterator[str]:
    """Yield what the documents tell of sockets, messages, URLs and fields, as the page `/docs` shows it."""
    sockets, urls = asyncapi.document(), openapi.document()
    messages = sockets["components"]["messages"].values()
    schemas = [schema for each in (sockets, urls) for schema in each["components"]["schemas"].values()]
    yield from (each["summary"] for each in (*sockets["channels"].values(), *messages))
    yield from (schema.get("description", "") for schema in schemas)
    for schema in (*schemas, *(message["payload"] for message in messages)):
        yield from (field.get("description", "") for field in schema.get("properties", {}).values())
    for operation in (operation for path in urls["paths"].values() for operation in path.values()):
        if "101" not in operation["responses"]:
            yield operation["summary"]
            yield from (each["description"] for each in operation["responses"].values())
            yield from (each.get("description", "") for each in operation["parameters"])


def test_all_that_the_documents_tell_is_there_in_chinese() -> None:
    rows = re.findall(
        r'^ {4}\[("(?:[^"\\]|\\.)*"), ("(?:[^"\\]|\\.)*")\],$', assets()["assets/docs/chinese.js"].body.decode(), re.M
    )
    chinese = {json.loads(english): json.loads(text) for english, text in rows}
    paragraphs = {" ".join(text.split("\n\n")[0].split()) for text in told() if text}
    assert paragraphs - chinese.keys() == set()
    assert len(paragraphs) > 100
    assert [
        text for text in chinese.values() if not re.search(r"[\u4e00-\u9fff]", text) and "front_ratio" not in text
    ] == []
