"""A client of plain HTTP for tests: each answer that it reads as a whole is one that `/openapi.json` has."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import httpx2
import jsonschema

from gateway.http import openapi
from tests.support.rig import DEADLINE

# Of these only the last line has a shape of its own; the records before it are what the source gives.
_LINES = "application/x-ndjson"
_JSON = "application/json"


class UndocumentedAnswer(AssertionError):
    """An answer that the document does not have at its URL."""


class Pages(httpx2.AsyncClient):
    """A client that the environment's proxies do not concern, and that refuses undocumented answers."""

    def __init__(self, base_url: str = "") -> None:
        super().__init__(base_url=base_url, timeout=DEADLINE, trust_env=False)

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        response = await super().send(request, stream=stream, **options)
        # A stream is read by the test; its events are checked one by one (`contract.documented`).
        if not stream:
            kind = response.headers.get("content-type", "").partition(";")[0]
            check(request.method, request.url.path, response.status_code, kind, response.content)
        return response


def check(method: str, path: str, status: int, kind: str, body: bytes) -> None:
    """Raise `UndocumentedAnswer` if the document has the URL and the method, and not this answer."""
    template = next((each for each, form in _forms().items() if form.fullmatch(path)), None)
    operation = None if template is None else _document()["paths"][template].get(method.lower())
    if template is None or operation is None:
        return
    code = str(status) if str(status) in operation["responses"] else "default"
    content = operation["responses"].get(code, {}).get("content", {})
    if not body and not content:
        return
    if kind not in content:
        raise UndocumentedAnswer(f"{method} {path} does not answer {status} with {kind!r}: {body[:300]!r}")
    if kind not in (_JSON, _LINES) or not body:
        return
    shown = json.loads(body if kind == _JSON else body.splitlines()[-1])
    try:
        _validator(template, method.lower(), code, kind).validate(shown)
    except jsonschema.ValidationError as exc:
        raise UndocumentedAnswer(f"{method} {path} {status}: {exc.message[:300]} in {str(shown)[:500]}") from None


@cache
def _document() -> dict[str, Any]:
    return openapi.document()


@cache
def _forms() -> dict[str, re.Pattern[str]]:
    """Return what the paths of the document match; a topic has slashes, and each URL may have one at its end."""
    return {path: re.compile(re.sub(r"\{\w+\}", ".+", path) + "/?") for path in _document()["paths"]}


@cache
def _validator(template: str, method: str, code: str, kind: str) -> jsonschema.Draft202012Validator:
    schema = _document()["paths"][template][method]["responses"][code]["content"][kind].get("schema", {})
    if kind == _LINES:
        schema = {"$ref": "#/components/schemas/End"}
    return jsonschema.Draft202012Validator({**schema, "components": _document()["components"]})
