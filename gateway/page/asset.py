"""The files of the pages as they are sent: body, content type and tag. They are read once, at the first request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
# The files that are pages, by their URLs; the others are served at their paths below this folder.
PAGES = {"/": "index.html", "/docs": "docs.html"}
# What may be served. A file of any other kind that lies in the folder, such as an editor's copy, is not.
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """One file."""

    body: bytes
    content_type: str
    # Changes with the body, so that a browser keeps the file and asks only whether it is still the same.
    etag: str


@cache
def assets() -> Mapping[str, Asset]:
    """Return every file of the pages by its path in the folder, such as ``assets/app.js``."""
    return dict(_read())


def _read() -> Iterator[tuple[str, Asset]]:
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in KINDS:
            body = path.read_bytes()
            tag = hashlib.sha256(body).hexdigest()[:32]
            yield path.relative_to(FOLDER).as_posix(), Asset(body, KINDS[path.suffix], f'"{tag}"')
