"""The URLs of the pages. Nothing in these files depends on who asks, so they need no key; what they show does."""

from __future__ import annotations

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.page.asset import PAGES, assets

# A page takes scripts, styles and data from this gateway alone, and is shown in no frame. Without 'unsafe-inline' a
# text that came with the data can never become a script, and trusted types forbid what would make elements of a text.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
# `no-cache` keeps the file and asks for it each time by its tag: after an upgrade no browser mixes two versions.
_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY, "Cross-Origin-Opener-Policy": "same-origin"}


async def serve(request: Request) -> Response:
    """Return a page, or one of the files of both."""
    path: str | None = request.path_params.get("path")
    asset = assets().get(PAGES[request.scope["path"]] if path is None else f"assets/{path}")
    if asset is None:
        return PlainTextResponse(f"the page has no file {str(path)[:60]!r}\n", HTTPStatus.NOT_FOUND)
    headers = {**_HEADERS, "ETag": asset.etag}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or known == ["*"]:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(asset.body, headers={**headers, "Content-Type": asset.content_type})


async def without_slash(request: Request) -> Response:
    """Lead to the URL without the slash at its end: the files are named from there, also below a path of a proxy."""
    return RedirectResponse(f"..{request.scope['path'].removesuffix('/')}", HTTPStatus.TEMPORARY_REDIRECT)


ROUTES: list[BaseRoute] = [
    *(Route(url, serve) for url in PAGES),
    *(Route(f"{url}/", without_slash) for url in PAGES if url != "/"),
    Route("/assets/{path:path}", serve),
]
