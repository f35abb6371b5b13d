"""The page `/docs`: both documents as tables, made by a script of its own from this gateway's URLs alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Scope

_FOLDER = Path(__file__).parent / "assets"
# Each URL with its file and type.
FILES: Mapping[str, tuple[str, str]] = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
# Scripts, styles and documents of this gateway, and nothing else. Texts of the documents are only ever shown as text.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


class _File(NamedTuple):
    body: bytes
    tag: str


def page(scope: Scope) -> Response:
    """Return the page, or one of its files. They hold nothing that needs a key."""
    name, kind = FILES[scope["path"].rstrip("/")]
    file = _read(name)
    headers = {
        # It is kept, and asked for each time by its tag: after an upgrade no browser mixes two versions.
        "Cache-Control": "no-cache",
        "ETag": file.tag,
        "Content-Security-Policy": POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    if dict(scope["headers"]).get(b"if-none-match", b"").decode("latin-1") == file.tag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.body, headers={**headers, "Content-Type": kind})


@cache
def _read(name: str) -> _File:
    body = (_FOLDER / name).read_bytes()
    return _File(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
